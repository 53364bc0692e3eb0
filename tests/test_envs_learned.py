"""The simulator fitted to a log: the simulators' promises, its history, and that it learns what is in the log."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import stats
from toy_ranker import ToyConfig, ToyRanker

from feedgym.data import realism
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS
from feedgym.data.sessions import histories, logged_sessions
from feedgym.data.splits import take_users
from feedgym.envs.check import check_simulator
from feedgym.envs.feed import FeedVectorEnv, make_simulator
from feedgym.envs.history import History
from feedgym.envs.learned import LearnedSimulator
from feedgym.envs.learned import features as learned_features
from feedgym.envs.learned import fit as learned_fit
from feedgym.envs.learned.fit import LearnedConfig, fit_figures, fit_simulator
from feedgym.envs.learned.users import replay_users
from feedgym.envs.logging import collect_log
from feedgym.envs.luck import user_seeds
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.protocols import put_users
from feedgym.protocols import take_users as take_states

LENGTH = 5


@pytest.fixture(scope="module")
def feed():
    simulator = ShortVideo(ShortVideoConfig(num_items=300))
    log = collect_log(simulator, num_users=500, num_visits=8, session_length=LENGTH, seed=1)
    held_out_U = np.arange(500) % 4 == 0
    return simulator.catalog, take_users(log, ~held_out_U), take_users(log, held_out_U)


@pytest.fixture(scope="module")
def fitted(feed):
    catalog, log, _ = feed
    ranker = ToyRanker(torch.from_numpy(catalog.content_IE))
    unseen_U = np.arange(log.num_users) % 2 == 0
    return fit_simulator(log, catalog, ranker, unseen_U=unseen_U, config=LearnedConfig(session_length=LENGTH))


def slates(num_users, num_items, seed=0):
    return np.random.default_rng(seed).permuted(np.tile(np.arange(num_items), (num_users, 1)), axis=1)[:, :LENGTH]


def test_it_keeps_the_promises_of_simulators(fitted):
    check_simulator(fitted)  # determinism, other batches and orders to the bit, no writing into inputs, both shells


def test_a_ranker_without_watching_and_with_few_tasks_will_do(feed):
    catalog, log, _ = feed
    ranker = ToyRanker(torch.from_numpy(catalog.content_IE), ToyConfig(5, ("click",)), watch=False)
    simulator = fit_simulator(log, catalog, ranker, unseen_U=np.arange(log.num_users) < 100)
    response, _ = simulator.respond(simulator.reset(user_seeds(300, 0, "test")), slates(300, 300))
    seen = response.examined_UK
    rates = response.behaviours_UKB[seen].mean(axis=0)
    assert 0.1 < rates[0] < 0.5 and 0 < rates[2] < 0.1  # what it does not predict happens as often as in the log
    assert 0.2 < (response.watch_s_UK / simulator.catalog.duration_s_I[slates(300, 300)])[seen].mean() < 0.5


def test_fresh_users_are_users_of_the_log_after_their_first_visits(feed, fitted):
    catalog, log, _ = feed
    state = fitted.reset(user_seeds(400, 0, "test"))
    sessions = logged_sessions(log, LENGTH)
    number_N = np.arange(len(sessions)) - np.searchsorted(sessions.user_idx_N, sessions.user_idx_N)
    count_U = np.bincount(sessions.user_idx_N)
    at_N = number_N == np.minimum(LearnedConfig().known_visits, count_U[sessions.user_idx_N] - 1)
    known = {float(s): n for n, s in zip(np.flatnonzero(at_N), sessions.start_s_N[at_N], strict=True)}
    row_U = np.array([known[s] for s in state.time_s_U])  # everyone begins at such a login
    sessions = sessions.rows(row_U)
    there = histories(log, catalog, sessions.user_idx_N, sessions.row_N, sessions.start_s_N, 12)
    here = state.event_batch()
    np.testing.assert_array_equal(state.profile_UF, log.profile_UF[sessions.user_idx_N])
    for f in fields(there):
        if getattr(there, f.name) is None:
            continue
        np.testing.assert_allclose(getattr(here, f.name), getattr(there, f.name), rtol=1e-4, atol=0.05, err_msg=f.name)
    assert len(np.unique(row_U)) > 200  # and many of them


def test_the_history_grows_by_what_was_examined(fitted):
    state = fitted.reset(user_seeds(60, 0, "test"))
    for visit in range(4):
        served = slates(60, 300, visit)
        before = [state.items_UT[u, : state.length_U[u]].tolist() for u in range(60)]
        response, after = fitted.respond(state, served)
        for u in range(60):
            seen = served[u][response.examined_UK[u]].tolist()
            now = after.items_UT[u, : after.length_U[u]].tolist()
            assert now == (before[u] + seen)[-12:]
            last = int(response.examined_UK[u].sum()) - 1
            np.testing.assert_array_equal(
                after.behaviours_UTB[u, after.length_U[u] - 1], response.behaviours_UKB[u, last]
            )
            assert (after.items_UT[u, after.length_U[u] :] == 0).all()
        assert (after.time_s_U > state.time_s_U).all() and (after.visit_U == visit + 1).all()
        state = after


def test_answers_depend_on_the_history(fitted):
    state = fitted.reset(user_seeds(200, 0, "test"))
    other = fitted.reset(user_seeds(200, 1, "test"))
    swapped = replace(other, seed_U=state.seed_U, visit_U=state.visit_U)  # other people with the same random numbers
    a, b = (fitted.respond(s, slates(200, 300))[0] for s in (state, swapped))
    assert 0.01 < (a.behaviours_UKB[:, 0, 0] != b.behaviours_UKB[:, 0, 0]).mean() < 0.5


def test_a_user_alone_answers_as_among_others(fitted):
    state = fitted.reset(user_seeds(40, 3, "test"))
    served = slates(40, 300)
    response, after = fitted.respond(state, served)
    for rows in (np.array([7]), np.array([31, 2, 7])):
        part, part_after = fitted.respond(take_states(state, rows), served[rows])
        np.testing.assert_array_equal(part.watch_s_UK, response.watch_s_UK[rows])
        np.testing.assert_array_equal(part.return_gap_s_U, response.return_gap_s_U[rows])
        np.testing.assert_array_equal(part_after.time_s_U, after.time_s_U[rows])


def test_a_ranker_is_always_asked_in_one_shape(fitted, monkeypatch):
    asked = []
    predict = ToyRanker.predict

    def noted(self, histories, item_ids_UK, mask_UK=None):
        asked.append((tuple(item_ids_UK.shape), int(histories.mask_UT.sum(1).max())))
        return predict(self, histories, item_ids_UK, mask_UK)

    monkeypatch.setattr(ToyRanker, "predict", noted)
    for users in (1, 63, 64, 130):
        fitted.respond(fitted.reset(user_seeds(users, 0, "test")), slates(users, 300))
    assert set(asked) == {((learned_features.BLOCK_USERS, LENGTH), 12)} and len(asked) == 1 + 1 + 2 + 3


def test_marginal_probabilities_of_behaviours_are_kept(fitted):
    rng = np.random.default_rng(0)
    prob_B = np.array([0.3, 0.25, 0.05, 0.01, 0.01, 0.01, 0.02])
    did_UB = fitted._behave(np.tile(prob_B, (200_000, 1)), rng.random((200_000, len(BEHAVIOURS))))
    np.testing.assert_allclose(did_UB.mean(axis=0), prob_B, atol=0.003)
    like, click = did_UB[:, BEHAVIOUR_IDX["like"]], did_UB[:, BEHAVIOUR_IDX["click"]]
    assert not (like & ~click).any()  # as in the log


def test_watching_keeps_to_the_rule_of_long_views(fitted):
    state = fitted.reset(user_seeds(500, 0, "test"))
    served = slates(500, 300)
    response, _ = fitted.respond(state, served)
    duration_s = fitted.catalog.duration_s_I[served]
    long = response.behaviours_UKB[:, :, BEHAVIOUR_IDX["long_view"]] == 1
    assert long.any() and fitted.numbers.long_view_s[0] == 18
    enough = response.watch_s_UK >= np.minimum(np.float32(18), duration_s)
    np.testing.assert_array_equal(enough[response.examined_UK], long[response.examined_UK])


def test_it_is_read_back_as_it_was_written(fitted, tmp_path, monkeypatch):
    fitted.save(tmp_path / "users")
    with pytest.raises(ValueError, match=r"simulator.json would import and run 'toy_ranker:ToyRanker' \(its ranker\)"):
        make_simulator(str(tmp_path / "users"))
    again = make_simulator(str(tmp_path / "users"), trust=True)
    assert isinstance(again, LearnedSimulator) and again.profile_sizes == fitted.profile_sizes
    state = fitted.reset(user_seeds(30, 0, "test"))
    a, b = (s.respond(s.reset(state.seed_U), slates(30, 300))[0] for s in (fitted, again))
    for f in fields(a):
        np.testing.assert_array_equal(getattr(a, f.name), getattr(b, f.name))
    (tmp_path / "users" / "simulator.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="holds no learned simulator"):
        make_simulator(str(tmp_path / "users"), trust=True)


def test_environments_show_what_is_known_of_the_users(fitted):
    env = FeedVectorEnv(6, fitted, session_length=LENGTH, history_length=4)
    observation, _ = env.reset(seed=0)
    assert observation["history_mask"].sum() > 6
    for slot in range(6):
        kept = env.state.items_UT[slot, : env.state.length_U[slot]][-4:]
        np.testing.assert_array_equal(observation["history_items"][slot][: len(kept)], kept)


def test_histories_of_another_length_keep_the_newest_events():
    rng = np.random.default_rng(0)
    long = History(
        items_UT=np.array([[1, 2, 3, 0], [4, 0, 0, 0], [5, 6, 7, 8]]),
        behaviours_UTB=rng.integers(0, 2, (3, 4, 7)).astype(np.int8),
        watch_fraction_UT=rng.random((3, 4)).astype(np.float32),
        time_s_UT=np.arange(12.0).reshape(3, 4),
        length_U=np.array([3, 1, 4]),
    )
    short = long.resized(2)
    assert short.items_UT.tolist() == [[2, 3], [4, 0], [7, 8]] and short.length_U.tolist() == [2, 1, 2]
    np.testing.assert_array_equal(short.behaviours_UTB[2], long.behaviours_UTB[2, 2:])
    assert long.resized(6).items_UT.tolist() == [[1, 2, 3, 0, 0, 0], [4, 0, 0, 0, 0, 0], [5, 6, 7, 8, 0, 0]]


# ---------------------------------------------------------------- what it learned


def test_held_out_users_are_predicted_better_than_by_the_mean(feed, fitted):
    figures = fit_figures(fitted, feed[2], LENGTH)
    assert figures["click"]["auc"] > 0.6 and figures["leave"]["auc"] > 0.55
    for name in ("click", "long_view", "leave"):
        assert figures[name]["log_loss"] < figures[name]["base_log_loss"]
        assert 0.8 < figures[name]["calibration"] < 1.25  # 125 users, whose visits go together


def test_replayed_users_look_like_those_of_the_log(feed, fitted):
    catalog, _, held_out = feed
    again = replay_users(fitted, held_out, seed=1)
    found = realism.distances(realism.describe(held_out, catalog), realism.describe(again, catalog))
    distance = {(d.aspect, d.figure, d.kind): d.distance for d in found}
    for aspect in ("session length", "watch ratio", "return gaps"):
        assert distance[aspect, "distribution", "KS"] < 0.1, aspect
    assert distance["behaviour rates", "click", "absolute difference"] < 0.08
    assert again.num_users == held_out.num_users and (again.item_id[again.examined] >= 0).all()


def test_a_stream_is_served_from_where_the_user_stopped(feed, fitted):
    _, _, log = feed
    ragged = replace(log, examined=log.examined | (log.item_id >= 0))  # all is examined, as in KuaiRand
    keep = ~((log.position == LENGTH - 1) & (log.session_id == 1))  # and one visit is shorter
    offsets = np.append(0, np.cumsum(np.add.reduceat(keep.astype(int), log.offsets_U1[:-1])))
    rows = {
        f.name: getattr(ragged, f.name)[keep]
        for f in fields(ragged)
        if np.shape(getattr(ragged, f.name))[:1] == keep.shape
    }
    ragged = replace(ragged, **rows, offsets_U1=offsets)
    again = replay_users(fitted, ragged, session_length=3)
    for user in range(20):
        own = ragged.item_id[ragged.offsets_U1[user] : ragged.offsets_U1[user + 1]]
        seen = again.item_id[again.offsets_U1[user] : again.offsets_U1[user + 1]][
            again.examined[again.offsets_U1[user] : again.offsets_U1[user + 1]]
        ]
        own = own[own >= 0][: len(seen)]
        np.testing.assert_array_equal(seen[: len(own)], own)


def test_the_log_says_who_left_and_who_churned_only_where_it_can(feed, fitted):
    _, log, _ = feed
    rows = learned_fit.SessionsWithHistory.of(log, fitted.catalog, LENGTH, 12)
    features, _, gap_s, churned = learned_fit._visit_rows(log, rows)
    user = rows.sessions.user_idx_N
    visits_U = np.bincount(user)
    last = np.append(user[1:] != user[:-1], True)
    assert np.isnan(gap_s[last]).all() and not np.isnan(gap_s[~last]).any()
    assert np.isnan(churned[last & (visits_U[user] == 8)]).all()  # the log stopped counting at 8
    assert (churned[last & (visits_U[user] < 3)] == 1).all() and (churned[~last & ~np.isnan(churned)] == 0).all()
    assert len(features) == len(user)


def test_regressions_recover_what_made_the_labels():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (40_000, 2))
    weight = np.array([0.8, -0.5, 0.3])
    y = (rng.random(len(x)) < learned_features.sigmoid(learned_features.linear(x, weight))).astype(float)
    np.testing.assert_allclose(learned_fit._fit_logistic(x, y), weight, atol=0.08)
    constant = learned_fit._fit_logistic(x, np.zeros(len(x)))
    assert constant[:2].tolist() == [0, 0] and learned_features.sigmoid(constant[2]) < 1e-4


def test_quantiles_draw_the_distribution_they_were_taken_from():
    rng = np.random.default_rng(0)
    sample = rng.exponential(size=20_000)
    table = np.tile(np.quantile(sample, np.linspace(0, 1, 101)), (20_000, 1))
    drawn = learned_features.quantile(table, rng.random(20_000))
    assert stats.ks_2samp(drawn, sample).statistic < 0.02


def test_a_log_without_times_is_refused(feed, fitted):
    catalog, log, _ = feed
    with pytest.raises(ValueError, match="order of events"):
        fit_simulator(replace(log, has_time=False), catalog, fitted.ranker, unseen_U=np.ones(log.num_users, bool))
    with pytest.raises(ValueError, match="give more of them"):
        fit_simulator(log, catalog, fitted.ranker, unseen_U=np.zeros(log.num_users, bool))


def test_states_are_put_and_taken_like_any_others(fitted):
    state = fitted.reset(user_seeds(9, 0, "test"))
    other = put_users(state, np.array([1, 2]), take_states(state, np.array([3, 4])))
    np.testing.assert_array_equal(other.items_UT[1:3], state.items_UT[3:5])


def test_users_who_judge_are_others_than_those_who_train(fitted, tmp_path):
    judges, seeds_U = fitted.judging(), user_seeds(3000, 0, "test")
    drawn, judging = ({tuple(row) for row in s.reset(seeds_U).items_UT.tolist()} for s in (fitted, judges))
    donors = {tuple(row) for row in fitted.donors.items_UT.tolist()}
    assert drawn | judging == donors and len(drawn & judging) < 0.05 * len(donors)  # but for histories that are alike
    everyone = np.concatenate([fitted.drawn_G, judges.drawn_G])
    assert sorted(everyone.tolist()) == list(range(len(fitted.donors.seed_U)))
    assert 0.2 < len(judges.drawn_G) / len(everyone) < 0.4
    assert (judges.judging().drawn_G == judges.drawn_G).all()
    fitted.save(tmp_path / "kept")
    kept = LearnedSimulator.load(tmp_path / "kept", trust=True)
    assert (kept.drawn_G == fitted.drawn_G).all() and (kept.judging().drawn_G == judges.drawn_G).all()


def test_the_test_population_of_the_environment_is_of_judges(fitted):
    train, test = (FeedVectorEnv(5, fitted, session_length=LENGTH, population=name) for name in ("train", "test"))
    assert train.simulator is fitted and (test.simulator.drawn_G == fitted.judging().drawn_G).all()


def test_too_few_users_judge_nobody(fitted):
    one = LearnedSimulator(
        fitted.ranker, fitted.catalog, fitted.profile_names, fitted.profile_sizes, fitted.numbers,
        take_states(fitted.donors, np.zeros(1, int)), fitted.exposures_I,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"1 user\(s\) of the log are too few for two groups"):
        one.judging()

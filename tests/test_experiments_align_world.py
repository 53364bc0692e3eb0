import os
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from feedgym.agents.baselines import PopularRecommender, RandomRecommender
from feedgym.data.batches import DatedEventBatch
from feedgym.data.events import BEHAVIOUR_IDX, Event
from feedgym.data.readers import column_pair
from feedgym.data.requests import last_requests
from feedgym.data.sessions import SessionFilter, histories, logged_sessions, quality_filter
from feedgym.data.sources import ReadOptions
from feedgym.data.splits import split_users
from feedgym.envs.luck import LOG_GROUP, user_seeds
from feedgym.envs.short_video import ShortVideoConfig
from feedgym.envs.truth import replica_seeds, session_reward
from feedgym.experiments.align import world as worlds
from feedgym.experiments.align.pool import HELD_OUT, Pool
from feedgym.experiments.align.presets import AlignConfig, RoundsConfig
from feedgym.experiments.align.world import Recorded, Simulated, plan_world, world_of
from feedgym.experiments.configs import JudgeConfig, LogConfig
from feedgym.experiments.logs import LOG, simulator_key
from feedgym.experiments.rollouts import RolloutConfig, Rollouts
from feedgym.experiments.run import Plan

LENGTH, HISTORY, VISITS = 4, 6, 4
CONFIG = AlignConfig(
    seed=3,
    simulator_options=ShortVideoConfig(num_items=60, memory_items=8, churn_logit=-2.5),
    log=LogConfig(users=50, visits=VISITS),
    session_length=LENGTH,
    history_length=HISTORY,
    rounds=RoundsConfig(truth_replicas=3),
    judge=JudgeConfig(users=40, visits=2),
)


@pytest.fixture(scope="module")
def world():
    return Simulated(CONFIG)


@pytest.fixture(scope="module")
def data(world):
    return world.collect(None)


@pytest.fixture(scope="module")
def pool(world, data):
    return Pool.of(data, world, CONFIG)


def users_of(requests):
    return set(requests.sessions.user_idx_N.tolist())


def keys_of(requests):
    return requests.sessions.row_N.tolist()


# ---------------------------------------------------------------- the pool


def test_no_model_is_trained_on_a_held_out_user(pool, data):
    held_out = set(split_users(data[0].user_ids_U, validation=0, held_out=HELD_OUT, seed=0).held_out_idx.tolist())
    assert held_out
    assert users_of(pool.unseen) <= held_out and users_of(pool.unseen_good) <= held_out
    assert not users_of(pool.imitate) & held_out and not users_of(pool.rate) & held_out
    assert users_of(pool.rate) | users_of(pool.unseen) == set(range(50)), "everybody is in one of the two"


def test_the_pool_loses_no_session_and_imitates_the_good_ones_alone(pool, data):
    sessions = logged_sessions(data[0], LENGTH)
    good = sessions.row_N[quality_filter(sessions, CONFIG.sessions)].tolist()
    assert 0 < len(good) < len(sessions)
    assert sorted(keys_of(pool.rate) + keys_of(pool.unseen)) == sessions.row_N.tolist()
    assert sorted(keys_of(pool.imitate) + keys_of(pool.unseen_good)) == good


def test_another_split_seed_holds_out_other_users(world, data, pool):
    other = Pool.of(data, world, replace(CONFIG, split_seed=1))
    assert users_of(other.unseen) != users_of(pool.unseen)


@pytest.mark.parametrize("part", ["imitate", "rate", "unseen", "unseen_good"])
def test_each_request_has_its_own_session_history_and_targets(pool, data, part):
    requests = getattr(pool, part)
    assert len(requests) == len(requests.sessions) == len(requests.histories) > 0
    for n in range(0, len(requests), 7):
        session = requests.sessions.rows(np.array([n]))
        known = histories(*data, session.user_idx_N, session.row_N, session.start_s_N, HISTORY)
        for f in fields(known):
            if getattr(known, f.name) is None:
                continue
            assert torch.equal(getattr(requests.histories.rows([n]), f.name), getattr(known, f.name)), f.name
        examined = session.item_ids_NK[0][session.examined_NK[0]].tolist()
        assert requests.targets_NK[n].tolist() == examined + [-1] * (LENGTH - len(examined))
    if part == "rate":
        assert (requests.targets_NK == -1).any(), "some item must have been served and never seen"


def test_rows_are_picked_by_number_and_by_mask_alike(pool):
    mask = np.zeros(len(pool.rate), bool)
    mask[[2, 5, 11]] = True
    by_mask, by_number = pool.rate.rows(mask), pool.rate.rows(np.array([11, 2, 5]))
    assert keys_of(by_mask) == [keys_of(pool.rate)[n] for n in (2, 5, 11)]
    assert keys_of(by_number) == [keys_of(pool.rate)[n] for n in (11, 2, 5)]
    assert torch.equal(by_number.targets_NK, by_mask.targets_NK[[2, 0, 1]])
    found, expected = (part.histories.rows(idx) for part, idx in ((by_number, slice(None)), (by_mask, [2, 0, 1])))
    assert torch.equal(found.item_ids_UT, expected.item_ids_UT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"session_length": 61}, "session_length=61 exceeds the catalogue's 60 items.*lower --session-length"),
        ({"sessions": SessionFilter(min_watched=1, min_watch_s=1e9)}, "left to train on; loosen --sessions"),
    ],
)
def test_a_pool_that_cannot_be_is_refused_with_a_remedy(data, changes, message):
    config = replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=message):
        Pool.of(data, Simulated(config), config)


# ---------------------------------------------------------------- drawing users


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 1.0])
def test_a_share_of_the_users_is_drawn_with_one_session_each(pool, share):
    rows = pool.draw_users(share, np.random.default_rng(0))
    users = pool.imitate.sessions.user_idx_N[rows]
    assert len(set(users.tolist())) == len(rows) == max(1, round(share * len(users_of(pool.imitate))))
    assert (rows == pool.draw_users(share, np.random.default_rng(0))).all()
    assert not np.array_equal(
        pool.draw_users(1.0, np.random.default_rng(0)), pool.draw_users(1.0, np.random.default_rng(1))
    )


def test_every_user_and_each_of_their_sessions_has_its_turn(pool):
    draws, rng = 600, np.random.default_rng(0)
    count_N = np.bincount(
        np.concatenate([pool.draw_users(0.5, rng) for _ in range(draws)]), minlength=len(pool.imitate)
    )
    user_N = pool.imitate.sessions.user_idx_N
    num_users = len(users_of(pool.imitate))
    chance = round(0.5 * num_users) / num_users
    for row, user in enumerate(user_N):
        p = chance / (user_N == user).sum()
        assert abs(count_N[row] / draws - p) < 5 * np.sqrt(p * (1 - p) / draws), row


# ---------------------------------------------------------------- last requests


def test_requests_tell_their_time_where_items_come_and_go_and_nowhere_else(pool):
    lively = replace(CONFIG, simulator_options=replace(CONFIG.simulator_options, arrivals_a_day=2, arrival_days=10))
    world = Simulated(lively)
    found = Pool.of(world.collect(None), world, lively)
    for requests in (found.imitate, found.rate, found.unseen, found.unseen_good):
        asked = requests.histories.rows(slice(None))
        assert isinstance(asked, DatedEventBatch)
        assert asked.time_s_U.tolist() == requests.sessions.start_s_N.tolist()
        shown_NK = found.catalog.exists(requests.sessions.start_s_N[:, None], requests.sessions.item_ids_NK)
        assert shown_NK[requests.sessions.item_ids_NK >= 0].all()
    for requests in (pool.imitate, pool.rate, pool.unseen, pool.unseen_good):
        assert not isinstance(requests.histories.rows(slice(None)), DatedEventBatch)


def test_the_last_request_of_a_user_is_their_latest(pool):
    last = last_requests(pool.rate)
    expected = {}
    for user, start_s, row in zip(pool.rate.sessions.user_idx_N.tolist(), pool.rate.sessions.start_s_N.tolist(),
                                  keys_of(pool.rate), strict=True):  # fmt: skip
        expected[user] = max(expected.get(user, (0.0, 0)), (start_s, row))
    assert keys_of(last) == [row for _, row in expected.values()]
    assert len(last) == len(users_of(pool.rate)) < len(pool.rate)


# ---------------------------------------------------------------- simulated users


def plain_value(world, data, session, items):
    """A session's worth to the user of a logged session: their visits lived through again, then copies are asked."""
    log, _ = data
    user = int(session.user_idx_N[0])
    state = world.simulator.reset(user_seeds(CONFIG.log.users, CONFIG.seed, LOG_GROUP)[user : user + 1])
    while state.time_s_U[0] < session.start_s_N[0]:
        rows = slice(log.offsets_U1[user], log.offsets_U1[user + 1])
        here = (log.session_id[rows] == state.visit_U[0]) & (log.event[rows] == Event.IMPRESSION)
        _, state = world.simulator.respond(state, log.item_id[rows][here][None].astype(np.int64))
    assert state.time_s_U[0] == session.start_s_N[0]
    rewards = []
    for seed in replica_seeds(state.seed_U, CONFIG.rounds.truth_replicas, 0)[0]:
        response, _ = world.simulator.respond(replace(state, seed_U=np.array([seed])), items[None])
        rewards.append(session_reward(response, CONFIG.weights)[0])
    return np.mean(rewards)


def test_the_truth_is_what_users_brought_to_the_moment_of_their_request_say(world, data, pool):
    row_U = pool.draw_users(0.3, np.random.default_rng(1))
    sessions_USK = np.random.default_rng(2).permuted(np.tile(np.arange(60), (len(row_U), 5, 1)), axis=2)[..., :LENGTH]
    found = world.true_value(pool, row_U, sessions_USK, lambda *_: None)
    assert found.shape == (len(row_U), 5) and found.dtype == np.float32
    for u, row in enumerate(row_U):
        session = pool.imitate.sessions.rows(np.array([row]))
        for s in (0, 4):
            assert found[u, s] == pytest.approx(plain_value(world, data, session, sessions_USK[u, s]), rel=1e-5), (u, s)


def test_the_truth_does_not_depend_on_how_many_are_asked_at_a_time(world, pool, monkeypatch):
    row_U = pool.draw_users(0.2, np.random.default_rng(1))
    sessions_USK = np.random.default_rng(2).permuted(np.tile(np.arange(60), (len(row_U), 3, 1)), axis=2)[..., :LENGTH]
    whole, heard = world.true_value(pool, row_U, sessions_USK, lambda *_: None), []
    monkeypatch.setattr(worlds, "TRUTH_USERS", 4)
    assert (world.true_value(pool, row_U, sessions_USK, lambda *now: heard.append(now)) == whole).all()
    blocks = -(-len(row_U) // 4)
    assert heard == [(done, blocks) for done in range(1, blocks + 1)] and blocks > 1


def test_true_values_and_judgement_are_the_same_on_actors_and_in_this_process(world, pool):
    row_U = pool.draw_users(0.9, np.random.default_rng(1))
    sessions_USK = np.random.default_rng(2).permuted(np.tile(np.arange(60), (len(row_U), 2, 1)), axis=2)[..., :LENGTH]
    agents = {"random": RandomRecommender(60, LENGTH, seed=1), "popular": PopularRecommender(torch.arange(60), LENGTH)}
    with Rollouts(CONFIG.rollouts, "local") as workers:
        spread = Simulated(CONFIG, workers=workers)
        answers = [some.true_value(pool, row_U, sessions_USK, lambda *_: None) for some in (world, spread)]
        served = [some.served(agents, None, pool) for some in (world, spread)]
    assert (answers[0] == answers[1]).all() and len(np.unique(answers[0])) > 10
    assert list(served[0]) == list(served[1]) == ["random", "popular", "oracle"]
    for name, record in served[0].items():
        other = served[1][name]
        for metric, count_VU in record.by_visit.items():
            np.testing.assert_array_equal(count_VU, other.by_visit[metric])
        np.testing.assert_array_equal(record.log.item_id, other.log.item_id)


def log_key(config):
    plan = Plan()
    plan_world(plan, config)
    return dict(plan)["log"]


def test_the_log_is_decided_by_the_key(world, data):
    again, other = Simulated(CONFIG), Simulated(replace(CONFIG, seed=4))
    assert log_key(again.config) == log_key(world.config) != log_key(other.config)
    assert (again.collect(None)[0].item_id == data[0].item_id).all()
    log, catalog = other.collect(None)
    assert not np.array_equal(log.item_id, data[0].item_id)
    assert not np.array_equal(catalog.content_IE, data[1].content_IE), "another seed is another catalogue too"
    for changes in ({"session_length": 3}, {"log": LogConfig(users=50, visits=2)}, {"simulator": "toy_users:ToyUsers"}):
        assert log_key(replace(CONFIG, **changes)) != log_key(CONFIG)
    assert log_key(replace(CONFIG, history_length=9, judge=JudgeConfig(users=5))) == log_key(CONFIG)


def test_a_simulator_of_ones_own_is_found_by_its_path():
    own = world_of(replace(CONFIG, simulator="toy_users:ToyUsers", simulator_options=None))
    log, catalog = own.collect(None)
    assert "ToyUsers" in own.title and (catalog.num_items, log.profile_names) == (40, ("age", "device"))


def test_judges_are_users_whom_no_log_has_seen(world, pool, monkeypatch):
    asked = []
    monkeypatch.setattr(worlds, "judge_online", lambda *arguments: asked.append(arguments[4]))
    world.judge({}, None, pool, {})
    Simulated(replace(CONFIG, judge=replace(CONFIG.judge, seed=1))).judge({}, None, pool, {})
    logged = user_seeds(CONFIG.log.users, CONFIG.seed, LOG_GROUP)
    assert [len(seeds_U) for seeds_U in asked] == [40, 40]
    assert len(np.unique(np.concatenate([*asked, logged]))) == 40 + 40 + 50


def test_a_log_that_was_kept_can_be_drawn_from_and_replayed_like_the_one_in_memory(world, data, pool, tmp_path):
    LOG.save(data, tmp_path)
    kept = Pool.of(LOG.load(tmp_path), world, CONFIG)
    assert keys_of(kept.imitate) == keys_of(pool.imitate) and users_of(kept.unseen) == users_of(pool.unseen)
    rows, sessions = np.arange(3), np.arange(3 * 2 * LENGTH).reshape(3, 2, LENGTH)
    values = [world.true_value(some, rows, sessions, lambda *_: None) for some in (kept, pool)]
    assert (values[0] == values[1]).all()


# ---------------------------------------------------------------- recorded logs


def write_table(path, users=40, likes=True, visits=2, apart_s=0):
    """Each user sees 8 items in two visits a day apart and likes every other one; users begin ``apart_s`` apart."""
    lines = ["uid,item_id,timestamp,watch_s,duration_s,like"]
    for user in range(users):
        for n in range(4 * visits):
            second = 1_600_000_000 + 86_400 * (n // 4) + 60 * n + apart_s * user
            lines.append(f"{user},{(user + 3 * n) % 25},{second},{n + 1},30,{int(likes and n % 2 == 0)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def recorded(tmp_path, **changes):
    path = write_table(tmp_path / "views.csv")
    return Recorded(replace(CONFIG, data=str(path), columns=("user_id=uid",), **changes)), path


def test_a_recorded_log_is_imitated_where_it_was_liked_and_rated_wherever_it_was_seen(tmp_path):
    world, _ = recorded(tmp_path)
    data = world.collect(None)
    good, every = world.requests(data)
    assert (data[0].num_users, data[1].num_items) == (40, 25)
    assert len(good) == 40 and len(every) == 80  # four likes per user are one session, two visits are two
    liked = data[0].item_id[data[0].behaviours[:, BEHAVIOUR_IDX["like"]] == 1]
    assert good.targets_NK.flatten().tolist() == liked.tolist()
    assert world.true_value(Pool.of(data, world, world.config), np.arange(2), np.zeros((2, 3, 4)), None) is None
    assert isinstance(world_of(world.config), Recorded) and isinstance(world_of(CONFIG), Simulated)
    assert "views.csv" in world.title
    fewer, _ = recorded(tmp_path, read=ReadOptions(users=0.5))
    assert 5 < fewer.collect(None)[0].num_users < 35


def test_a_recorded_log_is_judged_by_the_last_sessions_of_held_out_users(tmp_path, monkeypatch):
    world, _ = recorded(tmp_path, session_length=2)
    pool = Pool.of(world.collect(None), world, world.config)
    asked = []
    monkeypatch.setattr(worlds, "judge_offline", lambda *arguments: asked.append(arguments[3]))
    world.judge({}, None, pool, {})
    assert users_of(asked[0]) == users_of(pool.unseen_good) and len(asked[0]) == len(users_of(pool.unseen_good)) > 0
    assert len(pool.unseen_good) == 2 * len(asked[0])


def test_a_held_out_user_is_not_counted_by_popularity(tmp_path):
    world, _ = recorded(tmp_path, session_length=2)
    data = world.collect(None)
    pool = Pool.of(data, world, world.config)
    events_U, counted_U = np.diff(data[0].offsets_U1), np.diff(pool.known.offsets_U1)
    held_out = sorted(users_of(pool.unseen))
    assert held_out and not counted_U[held_out].any()
    assert (np.delete(counted_U, held_out) == np.delete(events_U, held_out)).all()


def test_a_simulated_log_is_counted_whole_for_its_judges_are_fresh(pool, data):
    assert pool.known is data[0]


def test_a_split_by_time_trains_on_what_came_before_and_is_judged_by_what_came_after(tmp_path, monkeypatch):
    world, path = recorded(tmp_path, session_length=2, split="time")
    write_table(path, visits=6, apart_s=3000)
    log, catalog = world.collect(None)
    pool = Pool.of((log, catalog), world, world.config)
    cut_s = pool.unseen_good.sessions.start_s_N.min()
    assert log.timestamp_s.min() < cut_s <= log.timestamp_s.max()
    assert pool.known.timestamp_s.max() < cut_s and pool.unseen.sessions.start_s_N.min() >= cut_s
    # Everything trained on is cut out of the log as it was at the moment, targets and what followed on them included.
    for requests in (pool.imitate, pool.rate):
        times_N = [pool.known.timestamp_s[row] for row in requests.sessions.row_N]
        assert max(times_N) < cut_s and (np.array(times_N) == requests.sessions.start_s_N).all()
    assert users_of(pool.imitate) & users_of(pool.unseen_good), "everybody is trained on, and judges later"
    before = (log.event == Event.IMPRESSION) & (log.timestamp_s < cut_s)
    assert pool.rate.sessions.examined_NK.sum() == before.sum()
    asked = []
    monkeypatch.setattr(worlds, "judge_offline", lambda *arguments: asked.append(arguments))
    world.judge({}, None, pool, {})
    assert (asked[0][3].sessions.start_s_N >= cut_s).all()


def test_a_split_by_time_needs_a_recorded_log_with_times(tmp_path):
    with pytest.raises(ValueError, match="split='time' cuts a recorded log; give one with --data"):
        replace(CONFIG, split="time")
    (tmp_path / "lists.txt").write_text("".join(f"{u} 1 2 3 4 5 6\n" for u in range(30)))
    config = replace(CONFIG, data=str(tmp_path / "lists.txt"), split="time", session_length=2)
    world = Recorded(config)
    with pytest.raises(
        ValueError, match="knows only the order of events, so it cannot be cut by time; choose --split users"
    ):
        Pool.of(world.collect(None), world, config)


def test_the_key_follows_the_file_and_how_it_is_read(tmp_path):
    world, path = recorded(tmp_path)
    key = log_key(world.config)
    assert log_key(world.config) == key
    others = ({"columns": ()}, {"columns": ("user_id=uid", "click=like")}, {"data": str(tmp_path)})
    for changes in (*others, {"read": ReadOptions(ties="file")}):
        assert log_key(replace(world.config, **changes)) != key
    assert log_key(replace(world.config, seed=9, history_length=3)) == key, "these do not change the log"
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert log_key(world.config) == key, "the same data, copied or mounted there anew"
    write_table(path, likes=False)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert path.stat().st_size == stat.st_size
    touched = log_key(world.config)
    assert touched != key
    write_table(path, users=41)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert log_key(world.config) not in (key, touched)


def test_the_key_follows_the_items_file_and_all_files_of_a_folder(tmp_path):
    world, _ = recorded(tmp_path)
    items = tmp_path / "items.csv"
    items.write_text("item_id,topic\n0,a\n")
    with_items = Recorded(replace(world.config, items=str(items)))
    key = log_key(with_items.config)
    assert key != log_key(world.config)
    items.write_text("item_id,topic\n0,bb\n")
    assert log_key(with_items.config) != key
    folder = Recorded(replace(world.config, data=str(tmp_path), columns=()))
    key = log_key(folder.config)
    (tmp_path / "deep").mkdir()
    assert log_key(folder.config) == key
    (tmp_path / "deep/more.csv").write_text("x")
    assert log_key(folder.config) != key


def test_the_key_of_a_simulator_in_a_folder_follows_its_files(tmp_path):
    (tmp_path / "ranker").mkdir()
    (tmp_path / "ranker/model").write_text("as fitted")
    key = simulator_key(str(tmp_path))
    assert simulator_key(str(tmp_path)) == key
    (tmp_path / "ranker/model").write_text("fitted again")
    assert simulator_key(str(tmp_path)) != key
    assert simulator_key("toy_users:ToyUsers") == "toy_users:ToyUsers"


# ---------------------------------------------------------------- columns


def test_a_column_pair_is_cut_at_its_first_equals_sign():
    assert column_pair("user_id=uid") == ("user_id", "uid")
    assert column_pair("like=a=b") == ("like", "a=b")


@pytest.mark.parametrize("text", ["", "uid", "=uid", "user_id=", "="])
def test_what_is_no_pair_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=rf"--columns got '{text}'; write NAME=COLUMN, e.g. user_id=uid"):
        column_pair(text)


def test_a_run_made_on_a_gpu_is_read_back_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = replace(CONFIG, rollouts=RolloutConfig(device="cuda", gpus_per_actor=0.5))
    assert Simulated(config).workers.config.device == "cpu"

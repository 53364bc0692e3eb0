"""Deployment cycles: who is served, what is learned from, what is told, and that a stopped run goes on to the same."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from feedgym.agents.baselines import PopularRecommender
from feedgym.cli import main
from feedgym.data.events import Event
from feedgym.envs.luck import user_seeds
from feedgym.envs.replay import states_at
from feedgym.experiments.align.pool import Pool
from feedgym.experiments.align.presets import smoke
from feedgym.experiments.align.world import Simulated
from feedgym.experiments.configs import LogConfig
from feedgym.experiments.cycles import learners
from feedgym.experiments.cycles.effects import effects_of, entropy
from feedgym.experiments.cycles.populations import (
    SERVED,
    group_of,
    learned_from,
    requests_in,
    serve_cycle,
    slates_of,
)
from feedgym.experiments.cycles.presets import CycleConfig, cycles_smoke, with_cycles
from feedgym.experiments.exposure import times_seen
from feedgym.rewards.config import RewardModelConfig
from feedgym.rewards.measures import auc_per_tower
from feedgym.rewards.training import fit_reward_model, train_reward_model_further

LENGTH, ITEMS, USERS, VISITS = 5, 120, 12, 3
NO_STEP = lambda *_: None  # noqa: E731


def config_of(**cycles):
    usual = {"num": 3, "users": USERS, "visits": VISITS, "stay": 2}
    return with_cycles(replace(smoke(), log=LogConfig(users=50, visits=4)), CycleConfig(**usual | cycles))


CONFIG = config_of()


@pytest.fixture(scope="module")
def world():
    return Simulated(CONFIG)


@pytest.fixture(scope="module")
def start(world):
    return Pool.of(world.collect(None), world, CONFIG)


def agent_of(cycle):
    return PopularRecommender(torch.arange(ITEMS).roll(cycle), LENGTH)


def through(config, world, cycles=3):
    """The latest records after each cycle."""
    served, every = {}, []
    for cycle in range(1, cycles + 1):
        served = {**served, **serve_cycle(config, world.simulator, agent_of(cycle), served, cycle, NO_STEP)}
        every.append(served)
    return every


@pytest.fixture(scope="module")
def cycles(world):
    return through(CONFIG, world)


def test_who_returns_goes_on_where_they_left_and_all_others_are_new(cycles):
    first, second, third = cycles
    assert [list(served) for served in cycles] == [[1], [1, 2], [1, 2, 3]]
    assert third[1] is second[1], "who stays for two cycles is not served in the third"
    before, after = slates_of(first[1]), slates_of(second[1])
    assert before.shape == (VISITS, USERS, LENGTH) and after.shape == (2 * VISITS, USERS, LENGTH)
    assert (after[:VISITS] == before).all()
    for name, count_VU in first[1].by_visit.items():
        if name != "favourites_used":
            assert (second[1].by_visit[name][:VISITS] == count_VU).all(), name
    left = first[1].by_visit["churn_rate"].any(axis=0)
    assert (after[VISITS:, left] == -1).all() and (after[VISITS, ~left] >= 0).all()
    seeds = [user_seeds(USERS, CONFIG.seed, group_of(cycle)) for cycle in (1, 2, 3)]
    assert len(np.unique(seeds)) == 3 * USERS


def test_a_record_can_be_replayed_to_the_moment_of_any_visit(world, cycles):
    log = cycles[1][1].log
    _, every = world.requests((log, world.simulator.catalog))
    state = states_at(world.simulator, log, every.sessions, CONFIG.seed, group_of(1))
    assert (state.time_s_U == every.sessions.start_s_N).all()


@pytest.mark.parametrize("explore", [0.0, 0.4, 1.0])
def test_a_share_of_the_visits_is_answered_at_random(world, explore):
    config = config_of(explore=explore, users=60)
    served = serve_cycle(config, world.simulator, agent_of(1), {}, 1, NO_STEP)
    first_UK = slates_of(served[1])[0]
    popular = agent_of(1).count_I.argsort(descending=True)[:LENGTH].numpy()
    by_agent_U = (first_UK == popular).all(axis=1)
    assert by_agent_U.mean() == pytest.approx(1 - explore, abs=0.2 if 0 < explore < 1 else 0)


def times_of(pool):
    """The group and the number of each visit that is learned from."""
    groups = {source.group: source.log for source in pool.served}
    found = []
    begins = [source.first for source in pool.served] + [len(pool.imitate)]
    for source, low, high in zip(pool.served, begins, begins[1:], strict=False):
        rows = pool.imitate.sessions.row_N[low:high]
        found += [(source.group, int(visit)) for visit in groups[source.group].session_id[rows]]
    return found


@pytest.mark.parametrize(("window", "oldest"), [(0, 0), (1, 3), (2, 2), (3, 1), (4, 0), (9, 0)])
def test_a_window_holds_its_latest_cycles_and_no_other(world, start, cycles, window, oldest):
    config = config_of(window=window)
    pool = learned_from(config, start, cycles[-1], 3, world)
    expected = [
        (group_of(first), visit)
        for first, record in cycles[-1].items()
        for visit in range(int(record.by_visit["visits"].shape[0]))
        if first + visit // VISITS >= oldest
    ]
    assert set(times_of(pool)) <= set(expected)
    logged = pool.served[0].first
    assert (logged > 0) == (oldest == 0) and logged in (0, len(start.imitate))
    paid = {first: record.by_visit["visits"] for first, record in cycles[-1].items()}
    visits = sum(int(count_VU[max(0, (oldest - first) * VISITS) :].sum()) for first, count_VU in paid.items())
    assert len(pool.rate) == visits + (len(start.rate) if oldest == 0 else 0)
    assert pool.unseen is start.unseen


def test_the_latest_cycle_is_what_the_fresh_share_draws_from(world, start, cycles):
    pool = learned_from(CONFIG, start, cycles[-1], 3, world)
    fresh = times_of(pool)[pool.fresh.start - pool.served[0].first :]
    assert {(group, visit // VISITS) for group, visit in fresh} <= {(group_of(2), 1), (group_of(3), 0)} and fresh
    rng = np.random.default_rng(0)
    assert (pool.draw_users(0.2, rng, 1.0) >= pool.fresh.start).all()
    assert (pool.draw_users(0.3, rng, 0.0) < pool.fresh.start).all()
    alone = learned_from(config_of(window=1), start, cycles[-1], 3, world)
    assert alone.fresh.start == 0 and len(alone.draw_users(0.5, rng, 0.5)) == round(
        0.5 * len(alone.draw_users(1.0, rng))
    )
    some = pool.draw_users(0.3, rng, 0.5)
    assert (some >= pool.fresh.start).sum() == round(0.5 * len(some))


def test_true_values_are_asked_of_the_populations_that_rows_come_from(world, start, cycles):
    pool = learned_from(CONFIG, start, cycles[-1], 3, world)
    rows = np.concatenate([source.first + np.arange(2) for source in pool.served])
    sessions = np.arange(len(rows) * 2 * LENGTH).reshape(len(rows), 2, LENGTH) % ITEMS
    values = world.true_value(pool, rows, sessions, NO_STEP)
    assert values.shape == (len(rows), 2) and len(np.unique(values)) > len(rows)
    assert (world.true_value(pool, rows[3:5], sessions[3:5], NO_STEP) == values[3:5]).all()


def test_popularity_counts_what_was_seen_in_the_window(world, start, cycles):
    pool = learned_from(config_of(window=1), start, cycles[-1], 3, world)
    count_I = np.zeros(ITEMS, int)
    for first, record in cycles[-1].items():
        log = record.log
        now = (log.event == Event.IMPRESSION) & log.examined & (first + log.session_id // VISITS == 3)
        np.add.at(count_I, log.item_id[now], 1)
    assert (times_seen(pool.rate.sessions, ITEMS) == count_I).all()


def test_requests_are_the_visits_of_the_cycle(cycles):
    came = {first: cycles[-1][first] for first in (2, 3)}
    logins = sum(
        ((record.log.event == Event.LOGIN) & (first + record.log.session_id // VISITS == 3)).sum()
        for first, record in came.items()
    )
    assert requests_in(came, 3, VISITS) == logins > 0


def test_records_are_kept_as_they_were(cycles, tmp_path):
    SERVED.save(cycles[-1], tmp_path)
    kept = SERVED.load(tmp_path)
    assert list(kept) == list(cycles[-1])
    for first, record in cycles[-1].items():
        assert (slates_of(kept[first]) == slates_of(record)).all()
        assert all((kept[first].by_visit[name] == values).all() for name, values in record.by_visit.items())


# ---------------------------------------------------------------- slow effects


def test_slow_effects_are_what_the_users_of_the_cycle_saw(world, start, cycles):
    code_I = np.arange(ITEMS) % 7
    came = {first: cycles[-1][first] for first in (2, 3)}
    told = effects_of(came, 3, VISITS, world.simulator.catalog, code_I, start.log, 0)
    reward, visits, same, codes, lost, users = 0.0, 0.0, [], [], 0, 0
    for first, record in came.items():
        since = (3 - first) * VISITS
        reward += record.by_visit["true_reward"][since:].sum()
        visits += record.by_visit["visits"][since:].sum()
        lost += record.by_visit["churn_rate"][since:].sum()
        users += record.by_visit["visits"][since].sum()
        log = record.log
        for user in range(USERS):
            rows = np.arange(log.offsets_U1[user], log.offsets_U1[user + 1])
            rows = rows[(log.event[rows] == Event.IMPRESSION) & log.examined[rows] & (log.session_id[rows] >= since)]
            items = log.item_id[rows]
            codes += code_I[items].tolist()
            topics = world.simulator.catalog.topic_I[items]
            if len(topics) > 1:
                equal = (topics[:, None] == topics).sum() - len(topics)
                same.append(equal / (len(topics) * (len(topics) - 1)))
    assert told["true_reward"]["mean"] == pytest.approx(reward / visits)
    assert told["users_lost"]["mean"] == pytest.approx(lost / users)
    assert told["topic_concentration"]["mean"] == pytest.approx(np.mean(same))
    share = np.bincount(codes, minlength=7) / len(codes)
    assert told["code_entropy"]["mean"] == pytest.approx(-sum(p * np.log(p) for p in share if p))
    assert -1 <= told["satisfaction"]["mean"] <= 1
    assert all(value["low"] <= value["high"] for value in told.values())


def test_entropy_is_that_of_the_shares():
    assert entropy(np.array([[1.0, 1, 0], [4, 0, 0], [0, 0, 0]])).tolist() == pytest.approx([np.log(2), 0, 0])


# ---------------------------------------------------------------- further training


@pytest.mark.parametrize("members", [1, 2])
def test_a_reward_model_that_is_trained_further_fits_the_new_sessions_better_and_stays_itself(start, tmp_path, members):
    config = RewardModelConfig(width=16, heads=2, epochs=1, members=members)
    rate = start.rate
    first = fit_reward_model(start.catalog, rate.histories, rate.sessions, config, tmp_path / "first")
    kept = {name: value.clone() for name, value in first.state_dict().items()}
    told = (rate.histories, rate.sessions, replace(config, epochs=8.0), tmp_path / "further")
    after = train_reward_model_further(first, *told)
    assert all(torch.equal(value, kept[name]) for name, value in first.state_dict().items())
    assert type(after) is type(first)
    before, now = (auc_per_tower(model, rate.histories, rate.sessions) for model in (first, after))
    assert now["click"] > before["click"] + 0.01


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learners": ("base",)}, "must include aligned"),
        ({"learners": ("aligned", "aligned")}, "no name twice"),
        ({"learners": ("aligned", "oracle")}, "learners='oracle' is unknown"),
        ({"further_lr": 0.1}, "no model to train further"),
        ({"base": "again"}, "base='again' is unknown"),
        ({"window": 1, "fresh_share": 0.2}, "does nothing if window=1"),
    ],
)
def test_cycles_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        CycleConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stop": "kl", "stop_options": None}, "cycles are not probed"),
        ({"data": "log.csv"}, "need simulated users"),
        ({"rounds": replace(smoke().rounds, serve=5)}, "does not fit cycles"),
    ],
)
def test_parts_of_an_alignment_that_do_nothing_in_cycles_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(cycles_smoke(), **changes)


# ---------------------------------------------------------------- the whole


SMALL = ["--judge.users", "8", "--judge.beams", "0", "--cycles.users", "4", "--pretrain.steps", "4", "--ray", "off"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [*SMALL, "--cycles.base", "continue", "--cycles.reward", "continue"]
    main(["run", "onerec-cycles-smoke", *options, "--run", "whole"])

    class Killed(Exception):
        pass

    def killed(*arguments, **named):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(learners, "further_reward", killed)
        main(["run", "onerec-cycles-smoke", *options, "--run", "stopped"])
    assert not (tmp_path / "stopped" / "summary.json").exists()
    main(["run", "onerec-cycles-smoke", *options, "--resume", "stopped"])
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "stopped"))
    for part in ("agents", "cycles", "effects", "lift"):
        assert one[part] == two[part], part
    rows = one["cycles"]
    assert list(rows) == ["aligned", "offline", "base", "popular"]
    assert [row["requests"] for row in rows["offline"]] == [0, 0, 0]
    spent = [row["requests"] for row in rows["aligned"]]
    assert 0 == spent[0] < spent[1] <= 8 and spent[1] < spent[2] <= spent[1] + 16
    assert rows["aligned"][0]["true_reward"] == rows["offline"][0]["true_reward"]
    assert list(one["effects"]) == ["aligned", "base", "popular"]
    assert "True reward against the requests" in (tmp_path / "whole" / "report.html").read_text()

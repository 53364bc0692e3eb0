from dataclasses import fields, replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from toy_users import ToyUsers

from feedgym.data.events import Event, EventLog
from feedgym.data.parquet import read_catalog, read_log
from feedgym.data.readers import load_data
from feedgym.data.sessions import logged_sessions
from feedgym.envs.feed import FeedEnv, FeedVectorEnv, observation_space
from feedgym.envs.logging import collect_log
from feedgym.envs.logging_policy import LoggingPolicy
from feedgym.envs.luck import user_seeds
from feedgym.envs.recorder import RecordLog, VectorRecordLog, read_seeds, replay, transitions
from feedgym.envs.registration import ENVIRONMENTS
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.envs.truth import RewardWeights

SMALL = {"num_users": 40, "num_visits": 5, "session_length": 4, "seed": 3}
T = 9


def simulators():
    return [ToyUsers(churn=0.2), ShortVideo(ShortVideoConfig(num_items=300, memory_items=16, churn_logit=-2))]


IDS = ["toy", "short_video"]


# ---------------------------------------------------------------- transitions


@pytest.mark.parametrize("simulator", simulators(), ids=IDS)
def test_transitions_are_what_the_environment_showed(simulator):
    """Serving a collected log's sessions to its users: observations and rewards, visit by visit."""
    log = collect_log(simulator, **SMALL)
    weights = RewardWeights(like=1.5, click=0.25)
    got = transitions(log, simulator.catalog, T, 4, weights)
    env = FeedVectorEnv(
        40, simulator, session_length=4, history_length=T, horizon=9, reward=weights, autoreset_mode="Disabled"
    )
    observation, _ = env.reset(seed=user_seeds(40, 3, "log").tolist())
    served_U = np.diff(np.searchsorted(got["users"], np.arange(41)))
    first_U = np.cumsum(served_U) - served_U
    space = observation_space(simulator, T)
    for visit in range(5):
        here = np.flatnonzero(served_U > visit)
        rows = first_U[here] + visit
        for name in observation:
            assert got["observations"][name].dtype == space[name].dtype, name
            assert np.array_equal(got["observations"][name][rows], observation[name][here]), name
        slates = np.tile(np.arange(4), (40, 1))
        slates[here] = got["actions"][rows]
        env._over_U[:] = False  # churned users answer as well: here it matters only what the others do
        observation, reward, *_ = env.step(slates)
        goes_on = served_U[here] > visit + 1
        for name in observation:
            mine = got["next_observations"][name]
            assert np.array_equal(mine[rows[goes_on]], observation[name][here[goes_on]]), name
            if name not in ("time_of_day", "history_gap_s"):  # the next request of a last visit is unknown
                assert np.array_equal(mine[rows], observation[name][here]), name
        np.testing.assert_allclose(got["rewards"][rows[goes_on]], reward[here[goes_on]], rtol=1e-6)
        assert (got["truncateds"][rows] == ~goes_on).all() and not got["terminateds"].any()
    assert (got["episodes"] == got["users"]).all()
    assert ((got["propensities"] > 0) & (got["propensities"] <= 1)).all()


def test_transitions_of_uneven_visits_leave_out_what_is_no_action_and_break_the_episode_there():
    simulator = ToyUsers(churn=0.0)
    log = collect_log(simulator, num_users=2, num_visits=3, session_length=5, seed=0)
    drop = (log.session_id == 1) & (log.position == 4)
    drop[log.offsets_U1[1] :] = False  # the first user's second visit has four items
    columns = {
        name: getattr(log, name)[~drop]
        for name in ("timestamp_s", "event", "session_id", "position", "item_id", "watch_s", "examined")
    }
    columns |= {name: getattr(log, name)[~drop] for name in ("behaviours", "propensity")}
    log = replace(log, offsets_U1=log.offsets_U1 - np.array([0, 1, 1]), **columns)
    got = transitions(log, simulator.catalog, 6, 5)
    assert got["users"].tolist() == [0, 0, 1, 1, 1]
    assert got["truncateds"].tolist() == [True, True, False, False, True]
    assert got["episodes"].tolist() == [0, 1, 2, 2, 2]
    seen = np.flatnonzero(log.examined[: log.offsets_U1[1]])
    last = got["next_observations"]["history_items"][1]
    assert last[: min(6, len(seen))].tolist() == log.item_id[seen[-6:]].tolist()
    halves = transitions(log, simulator.catalog, 6, 2)  # each visit: two rows of two, the fifth item is left out
    assert len(halves["users"]) == 12
    served = logged_sessions(log, 2)
    assert (halves["actions"] == served.item_ids_NK[(served.item_ids_NK >= 0).all(axis=1)]).all()
    assert (log.event == Event.LOGIN).sum() == 6
    with pytest.raises(ValueError, match="session_length=6"):
        transitions(log, simulator.catalog, 6, 6)


def test_an_empty_visit_at_the_end_tells_when_the_user_came_back():
    simulator = ToyUsers(churn=0.0)
    log = collect_log(simulator, num_users=1, num_visits=2, session_length=3, seed=1)
    shown = (log.event == Event.IMPRESSION) & (log.session_id == 1)
    columns = [f.name for f in fields(EventLog) if len(np.shape(getattr(log, f.name))) and f.name[-2] != "_"]
    kept = {
        name: getattr(log, name)[~shown]
        for name in columns
        if len(getattr(log, name)) == log.num_events and name not in ("offsets_U1", "profile_UF")
    }
    got = transitions(replace(log, offsets_U1=log.offsets_U1 - [0, 3], **kept), simulator.catalog, 4, 3)
    whole = transitions(log, simulator.catalog, 4, 3)
    assert len(got["rewards"]) == 1 and got["truncateds"].all()
    assert got["rewards"][0] == whole["rewards"][0]


# ---------------------------------------------------------------- recordings


def serve(env, policy, num_visits, seeds_U, tmp_path):
    """The logging policy served through a recorded environment."""
    recorder = RecordLog(env, tmp_path)
    recorder.reset(seed=seeds_U.tolist())
    taste_UE = policy.no_taste(len(seeds_U))
    over_U = np.zeros(len(seeds_U), bool)
    for _ in range(num_visits):
        slates_UK, propensity_UK = policy.serve(env.state, taste_UE)
        recorder.propensity = propensity_UK
        *_, terminated_U, _, info = recorder.step(slates_UK)
        info = info.get("final_info", {}) | info
        taste_UE = policy.learn(taste_UE, slates_UK, info["behaviours"])
        over_U |= terminated_U
        if over_U.all():
            break
        yield recorder, over_U


@pytest.mark.parametrize("simulator", simulators(), ids=IDS)
def test_recording_the_logging_policy_gives_the_log_it_collects(simulator, tmp_path):
    log = collect_log(simulator, **SMALL)
    seeds_U = user_seeds(40, 3, "log")
    env = FeedVectorEnv(40, simulator, session_length=4, autoreset_mode="NextStep", horizon=99)
    *_, (recorder, _) = serve(env, LoggingPolicy(simulator, 4, seed=3), 5, seeds_U, tmp_path)
    # After churn a slot serves its next users, whom the collected log does not have.
    recorded, ours = recorder.log(), recorder.seeds_U
    assert (ours[:40] == seeds_U).all() and recorded.num_users == len(ours) > 40
    rows = slice(0, recorded.offsets_U1[40])
    for f in fields(EventLog):
        if f.name.endswith(("names", "sizes", "time")):
            assert getattr(recorded, f.name) == getattr(log, f.name)
        elif f.name == "profile_UF" or f.name == "user_ids_U":
            assert np.array_equal(getattr(recorded, f.name)[:40], getattr(log, f.name))
        elif f.name == "offsets_U1":
            assert np.array_equal(recorded.offsets_U1[:41], log.offsets_U1)
        elif f.name != "extra":
            mine, theirs = getattr(recorded, f.name)[rows], getattr(log, f.name)
            assert mine.dtype == theirs.dtype
            assert np.array_equal(mine, theirs, equal_nan=f.name == "propensity"), f.name
    first = recorded.extra["churned"][rows][log.event == Event.IMPRESSION].reshape(-1, 4)
    last = np.append(np.diff(logged_sessions(log, 4).user_idx_N), 1) != 0
    assert (first.max(axis=1) == first.min(axis=1)).all() and not first[~last].any() and first[last].any()


def steps(env, num_steps, seed, rng):
    """Random sessions; what the environment answers is what is yielded."""
    env.reset(seed=seed)
    over = False
    for _ in range(num_steps):
        if np.any(over) and env.metadata.get("autoreset_mode") is AutoresetMode.DISABLED:
            env.reset(options={"reset_mask": over})
        result = env.step(rng.integers(40, size=env.action_space.shape))
        over = result[2] | result[3]
        yield result


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", ["native", "sync", "wrapped"])
def test_every_kind_of_vector_and_autoreset_is_recorded_alike(mode, kind, tmp_path):
    """One after another, the users of slot u have the seeds of slot u, and replaying them gives all that was logged."""
    kwargs = dict(simulator=ToyUsers(churn=0.2), session_length=3, horizon=4)
    if kind == "sync":
        env = SyncVectorEnv([lambda: FeedEnv(**kwargs)] * 5, autoreset_mode=mode)
    else:
        env = FeedVectorEnv(5, autoreset_mode=mode, **kwargs)
        env = gym.wrappers.vector.RecordEpisodeStatistics(env) if kind == "wrapped" else env
    env = RecordLog(env, tmp_path)
    assert isinstance(env, VectorRecordLog)
    answers = list(steps(env, 12, 7, np.random.default_rng(1)))
    log, seeds_U = env.log(), env.seeds_U
    served = sum(int(r[4].get("_watch_s", np.zeros(5)).sum()) for r in answers)
    served += sum(int(r[4]["final_info"]["_watch_s"].sum()) for r in answers if "final_info" in r[4])
    ended = sum(int((r[2] | r[3]).sum()) for r in answers)
    assert (log.event == Event.LOGIN).sum() == served and ended <= log.num_users <= ended + 5
    assert np.isnan(log.propensity).all()
    response = replay(env, log, seeds_U)
    got = transitions(log, kwargs["simulator"].catalog, 6, 3)
    assert (got["terminateds"].sum(), got["terminateds"].any()) == (sum(int(r[2].sum()) for r in answers), True)
    assert (response.churned_U == got["terminateds"]).all()
    shown = log.event == Event.IMPRESSION
    assert np.array_equal(log.extra["return_gap_s"][shown].reshape(-1, 3)[:, 0], response.return_gap_s_U)
    total = sum(float(r[1].sum()) for r in answers)
    assert got["rewards"].sum() == pytest.approx(total, rel=1e-4)  # the last visits' returns are told too


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("name", [*ENVIRONMENTS])
def test_recordings_of_every_registered_environment_are_what_it_showed(name, mode, tmp_path):
    """Observations, actions, rewards and endings of all steps, users with a past and visits of several pages too."""
    few = {} if ENVIRONMENTS[name][2] else {"num_items": 80}
    env = gym.make_vec(name, 3, vectorization_mode="vector_entry_point", autoreset_mode=mode, history_length=T, **few)
    recorder = RecordLog(env, tmp_path)
    observation, _ = recorder.reset(seed=5)
    env.action_space.seed(1)
    fresh_U, user_U, num_users, shown, over_U = np.ones(3, bool), np.zeros(3, int), 0, [], np.zeros(3, bool)
    for _ in range(14):
        if mode == "Disabled" and over_U.any():
            observation, _ = recorder.reset(options={"reset_mask": over_U})
        before, actions = observation, env.action_space.sample()
        observation, _, terminated_U, truncated_U, info = recorder.step(actions)
        served_U = info.get("_watch_s", np.zeros(3, bool)) | info.get("final_info", {}).get("_watch_s", False)
        for u in np.flatnonzero(served_U):
            if fresh_U[u]:
                user_U[u], num_users = num_users, num_users + 1
            part = info["final_info"] if "_final_info" in info and info["_final_info"][u] else info
            parts = {n: c[u] for n, c in part["reward_components"].items() if not n.startswith("_")}
            worth = sum(getattr(RewardWeights(), f.name) * parts[f.name] for f in fields(RewardWeights))
            known = {n: c[u] for n, c in before.items()}
            after = info["final_obs"][u] if "_final_info" in info and info["_final_info"][u] else observation
            after = after if after is not observation else {n: c[u] for n, c in observation.items()}
            shown.append((user_U[u], known, actions[u], worth, after, terminated_U[u], truncated_U[u]))
        over_U = terminated_U | truncated_U
        fresh_U = (fresh_U & ~served_U) | over_U
    log = recorder.log()
    got = transitions(log, env.simulator.catalog, T, env.single_action_space.shape[0])
    shown.sort(key=lambda step: step[0])
    assert got["users"].tolist() == [step[0] for step in shown]
    assert np.array_equal(got["actions"], [step[2] for step in shown])
    np.testing.assert_allclose(got["rewards"], [step[3] for step in shown], rtol=1e-5, atol=1e-5)
    last = np.append(np.diff(got["users"]) != 0, True)
    assert np.array_equal(got["terminateds"], [step[5] for step in shown])
    assert np.array_equal(got["truncateds"], last & ~got["terminateds"])  # in the middle of an episode, too
    for n in got["observations"]:
        mine, theirs = got["observations"][n], np.array([step[1][n] for step in shown])
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=2e-2 if n == "history_gap_s" else 1e-5, err_msg=n)
        mine, theirs = got["next_observations"][n], np.array([step[4][n] for step in shown])
        rows = ~last if n in ("time_of_day", "history_gap_s") else slice(None)
        np.testing.assert_allclose(mine[rows], theirs[rows], rtol=1e-5, atol=2e-2 if n == "history_gap_s" else 1e-5)
    assert len(replay(env, log, recorder.seeds_U).churned_U) == (log.event == Event.LOGIN).sum()


def test_transitions_tell_the_time_where_items_come_and_go(tmp_path):
    simulator = ShortVideo(ShortVideoConfig(num_items=60, arrivals_a_day=4, arrival_days=10, lifetime_days=20))
    recorder = RecordLog(FeedVectorEnv(5, simulator, session_length=3, horizon=9, history_length=T), tmp_path)
    shown = [recorder.reset(seed=0)[0]]
    for _ in range(3):
        shown.append(recorder.step(recorder.action_space.sample())[0])
    log = recorder.log()
    got = transitions(log, simulator.catalog, T, 3, dated=True, weekday=True)
    assert (got["observations"].pop("weekday") == got["observations"]["time_s"] // 86_400 % 7).all()
    assert set(got["observations"]) == set(recorder.observation_space.spaces)
    assert (got["observations"]["time_s"][got["users"] == 0] == [s["time_s"][0] for s in shown[:3]]).all()
    assert got["next_observations"]["time_s"][2] == pytest.approx(shown[3]["time_s"][0], abs=0.1)
    replay(simulator, log, recorder.seeds_U)


def test_one_user_at_a_time_is_recorded_like_many(tmp_path):
    simulator = ToyUsers(churn=0.3)
    single = RecordLog(gym.wrappers.Autoreset(FeedEnv(simulator, session_length=3, horizon=4)), tmp_path / "one")
    vector = RecordLog(FeedVectorEnv(1, simulator, session_length=3, horizon=4), tmp_path / "many")
    rng = np.random.default_rng(0)
    single.reset(seed=4)
    vector.reset(seed=4)
    for _ in range(15):
        slate, propensity = rng.integers(40, size=3), rng.uniform(0.01, 1, 3)
        single.propensity, vector.propensity = propensity, propensity[None]
        mine, theirs = single.step(slate), vector.step(slate[None])
        assert all(np.array_equal(mine[0][n], v[0]) for n, v in theirs[0].items()) and mine[1] == theirs[1][0]
    assert (single.seeds_U == vector.seeds_U).all() and len(single.seeds_U) > 2
    single.close()
    vector.close()
    for name in ("events.parquet", "catalog.parquet", "seeds.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def test_gymnasiums_own_processes_are_recorded_too(tmp_path):
    envs = [lambda: FeedEnv("toy_users:ToyUsers", session_length=3)] * 2
    logs = []
    for env in (AsyncVectorEnv(envs), SyncVectorEnv(envs)):
        recorder = RecordLog(env, tmp_path)
        list(steps(recorder, 4, 3, np.random.default_rng(2)))
        logs.append(recorder.log())
        env.close()
    assert np.array_equal(logs[0].timestamp_s, logs[1].timestamp_s)
    assert np.array_equal(logs[0].watch_s, logs[1].watch_s)


def test_a_saved_recording_is_read_back_replayed_and_taken_as_data(tmp_path):
    env = gym.make("feedgym/ShortVideo-v1", num_items=60, session_length=4, horizon=5)
    recorder = RecordLog(env, tmp_path / "log")
    recorder.close()
    assert not (tmp_path / "log").exists()  # nothing happened, nothing is written
    recorder.reset(seed=1)
    for episode in range(3):
        over = False
        while not over:
            *_, terminated, truncated, _ = recorder.step(recorder.action_space.sample())
            over = terminated or truncated
        if episode < 2:
            recorder.reset()
    recorder.save()
    catalog = read_catalog(tmp_path / "log" / "catalog.parquet")
    log = read_log(tmp_path / "log" / "events.parquet", catalog)
    assert log.num_users == 3 and np.array_equal(log.watch_s, recorder.log().watch_s)
    seeds_U = read_seeds(tmp_path / "log")
    assert (seeds_U == recorder.seeds_U).all() and len(np.unique(seeds_U)) == 3
    assert len(replay(env, log, seeds_U).churned_U) == (log.event == Event.LOGIN).sum()
    data = load_data(tmp_path / "log")
    assert isinstance(data[0], EventLog) and data[0].num_events == log.num_events


def test_replay_refuses_other_users():
    simulator = ToyUsers(churn=0.0)
    log = collect_log(simulator, **SMALL)
    replay(simulator, log, user_seeds(40, 3, "log"))
    with pytest.raises(ValueError, match="Replaying the log gives other responses"):
        replay(simulator, log, user_seeds(40, 4, "log"))
    with pytest.raises(ValueError, match="39 seeds do not fit"):
        replay(simulator, log, user_seeds(39, 3, "log"))


def test_user_faults_are_named(tmp_path):
    with pytest.raises(ValueError, match="not a feed"):
        RecordLog(gym.make("CartPole-v1"), tmp_path)
    feed = FeedEnv(ToyUsers(), session_length=2)
    changed = gym.wrappers.TransformAction(feed, lambda a: a, gym.spaces.Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match="around the feed itself"):
        RecordLog(changed, tmp_path)
    recorder = RecordLog(feed, tmp_path)
    with pytest.raises(ValueError, match="Nothing is recorded"):
        recorder.log()
    recorder.reset(seed=0)
    for wrong, message in (([0.5], r"shape \(1, 1\)"), ([0.0, 0.5], "not probabilities")):
        recorder.propensity = wrong
        with pytest.raises(ValueError, match=message):
            recorder.step(np.array([1, 2]))

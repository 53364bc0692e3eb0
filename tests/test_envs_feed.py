import subprocess
import sys
import warnings
from dataclasses import fields, replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_users import ToyUsers

import feedgym
from feedgym.data.batches import HISTORY_COLUMNS
from feedgym.data.events import BEHAVIOURS
from feedgym.envs.feed import FeedEnv, FeedVectorEnv, History, event_batch, event_times_s, make_simulator
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.envs.truth import RewardWeights
from feedgym.protocols import Response

MODES = list(AutoresetMode)


def small(num_envs=5, **kwargs):
    return FeedVectorEnv(num_envs, **{"simulator": ToyUsers(), "session_length": 4, "history_length": 7, **kwargs})


def simulators():
    return [ToyUsers(churn=0.3), ShortVideo(ShortVideoConfig(num_items=60, memory_items=16, churn_logit=-1.0))]


# ---------------------------------------------------------------- Gymnasium's interface


def test_importing_feedgym_loads_nothing_heavy():
    heavy = ["torch", "trl", "ray", "wandb", "transformers", "pandas", "sklearn"]
    code = f"import sys, feedgym; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("env_id", ["feedgym/ShortVideoRequest-v1", "feedgym/InterestEvolution-v1"])
def test_workers_serve_users_without_waiting_for_torch(env_id):
    heavy = ["torch", "transformers", "pandas", "sklearn", "pyarrow", "matplotlib"]
    code = (
        f"import sys, gymnasium as gym, feedgym.envs.feed; env = gym.make({env_id!r}); env.reset(seed=0); "
        f"env.step(env.action_space.sample()); print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_every_public_name_can_be_imported():
    for name in feedgym.__all__:
        assert getattr(feedgym, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = feedgym.nothing_like_it


@pytest.mark.parametrize("kwargs", [{"num_items": 60}, {"simulator": "toy_users:ToyUsers", "num_items": 12}])
def test_check_env_passes_without_a_warning(kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("feedgym/ShortVideo-v1", session_length=4, history_length=6, **kwargs)
        check_env(env.unwrapped)
        assert gym.spaces.flatten(env.observation_space, env.reset(seed=3)[0]).ndim == 1


def test_make_vec_gives_the_native_environment_and_truncates_by_max_episode_steps():
    make = dict(id="feedgym/ShortVideo-v1", num_envs=3, vectorization_mode="vector_entry_point", num_items=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make_vec(**make)
        assert isinstance(env.unwrapped, FeedVectorEnv) and env.simulator.catalog.num_items == 60
        env = gym.make_vec(**make, max_episode_steps=2)
    env.reset(seed=0)
    slates = np.tile(np.arange(10), (3, 1))
    assert not env.step(slates)[3].any() and env.step(slates)[3].all()


@pytest.mark.parametrize("mode", MODES)
def test_metadata_names_the_autoreset_mode_and_spaces_hold_what_is_returned(mode):
    env = small(autoreset_mode=mode.value, horizon=100)
    assert env.metadata["autoreset_mode"] is mode
    observation, _ = env.reset(seed=1)
    for _ in range(12):
        assert env.observation_space.contains(observation)
        if mode is AutoresetMode.DISABLED and env._over_U.any():
            env.reset(options={"reset_mask": env._over_U})
        observation, *_ = env.step(env.action_space.sample())


# ---------------------------------------------------------------- one user or many, to the bit


@pytest.mark.parametrize("simulator", simulators(), ids=["toy", "short_video"])
@pytest.mark.parametrize("mode", MODES)
def test_vector_env_equals_gymnasiums_own_vector_of_single_envs(simulator, mode):
    """Observations, rewards, endings, infos and fresh users, through every kind of reset, bit by bit."""
    kwargs = dict(simulator=simulator, session_length=4, history_length=7, horizon=4)
    native = FeedVectorEnv(6, autoreset_mode=mode, **kwargs)
    single = SyncVectorEnv([lambda: FeedEnv(**kwargs)] * 6, autoreset_mode=mode)
    rng = np.random.default_rng(0)
    ends = 0
    assert data_equivalence(native.reset(seed=11), single.reset(seed=11), exact=True)
    for _ in range(14):
        slates = rng.integers(simulator.catalog.num_items, size=(6, 4))
        ours, theirs = native.step(slates), single.step(slates)
        for mine, yours in zip(ours, theirs, strict=True):
            assert data_equivalence(mine, yours, exact=True)
        over_U = ours[2] | ours[3]
        ends += ours[2].sum()
        if mode is AutoresetMode.DISABLED and over_U.any():
            seeds = rng.integers(1000, size=6).tolist() if ends % 2 else None
            mine = native.reset(seed=seeds, options={"reset_mask": over_U})
            assert data_equivalence(mine, single.reset(seed=seeds, options={"reset_mask": over_U}), exact=True)
    assert ends > 3, "the test must see churned users"


def test_seeds_choose_users():
    env = small(3)
    first, _ = env.reset(seed=7)
    listed, _ = env.reset(seed=[7, 8, 9])
    assert data_equivalence(first, listed, exact=True)
    swapped, _ = env.reset(seed=np.array([9, 8, 7]))
    assert data_equivalence(swapped["time_of_day"][::-1].copy(), first["time_of_day"], exact=True)
    fresh, _ = env.reset()
    assert (fresh["time_of_day"] != swapped["time_of_day"]).all()
    partly, _ = env.reset(seed=[None, 8, None])
    assert partly["time_of_day"][1] == first["time_of_day"][1]
    assert (partly["time_of_day"] != fresh["time_of_day"]).all()


def users_of(population, seed=None):
    """Seeds of all users of three episodes a slot."""
    env = small(50, horizon=1, autoreset_mode="SameStep", population=population, simulator=ToyUsers(churn=0))
    env.np_random = np.random.default_rng(1)
    env.reset(seed=seed)
    seeds = [env.state.seed_U]
    for _ in range(2):
        env.step(env.action_space.sample())
        seeds.append(env.state.seed_U)
    return set(np.concatenate(seeds).tolist())


def test_test_users_are_met_in_no_training():
    train = set.union(*(users_of("train", seed) for seed in range(40)), users_of("train"))
    test = set.union(*(users_of("test", seed) for seed in range(40)), users_of("test"))
    assert len(train) == len(test) == 3 * (89 + 50) and not train & test
    alone = FeedEnv(ToyUsers(), session_length=4, history_length=7, population="test")
    alone.reset(seed=3)
    assert alone.state.seed_U[0] in users_of("test", 3)
    with pytest.raises(ValueError, match="population='judge' is unknown; give train or test"):
        small(population="judge")


def test_the_weekday_is_told_on_demand():
    env = small(6, weekday=True, horizon=100, simulator=ToyUsers(churn=0))
    observation, _ = env.reset(seed=0)
    assert "weekday" not in small().single_observation_space.spaces
    seen = set()
    for _ in range(40):
        days = np.floor(env.state.time_s_U / 86_400)
        assert observation in env.observation_space and observation["weekday"][:, 0].tolist() == (days % 7).tolist()
        seen |= set(observation["weekday"].ravel().tolist())
        observation, *_ = env.step(env.action_space.sample())
    assert seen == set(range(7))


def test_unseeded_users_come_from_np_random_and_differ():
    a, b = small(3), small(3)
    a.np_random, b.np_random = np.random.default_rng(5), np.random.default_rng(5)
    assert data_equivalence(a.reset()[0], b.reset()[0], exact=True)
    times = np.concatenate([a.reset()[0]["time_of_day"] for _ in range(4)])
    assert len(np.unique(times)) == 12


# ---------------------------------------------------------------- episodes


def test_next_step_ignores_the_action_of_a_slot_being_reset():
    env = small(2, horizon=1, simulator=ToyUsers(churn=0))
    env.reset(seed=0)
    slates = np.zeros((2, 4), int)
    assert env.step(slates)[3].all()
    observation, reward, terminated, truncated, info = env.step(np.full((2, 4), -99))
    assert not reward.any() and not terminated.any() and not truncated.any()
    assert not observation["history_mask"].any() and not any(key in info for key in ("watch_s", "_watch_s"))
    with pytest.raises(ValueError, match="-99"):
        env.step(np.full((2, 4), -99))


def test_disabled_mode_never_answers_a_churned_user():
    env = small(2, autoreset_mode=AutoresetMode.DISABLED, simulator=ToyUsers(churn=1.0))
    env.reset(seed=0)
    slates = np.zeros((2, 4), int)
    assert env.step(slates)[2].all()
    with pytest.raises(ResetNeeded, match=r"slots \[0, 1\]"):
        env.step(slates)
    env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded, match=r"slots \[1\]"):
        env.step(slates)
    env.reset(options={"reset_mask": np.array([False, True])})
    env.step(slates)


def test_a_single_user_whose_episode_is_over_asks_for_reset():
    env = FeedEnv(ToyUsers(), session_length=4, horizon=1)
    env.reset(seed=0)
    assert env.step(np.arange(4))[3]
    with pytest.raises(ResetNeeded, match=r"^The episode is over; call reset\(\)"):
        env.step(np.arange(4))
    env.reset()
    env.step(np.arange(4))


@pytest.mark.parametrize("name", ["autoreset_mode", "num_envs"])
def test_a_single_environment_refuses_what_is_for_many(name):
    with pytest.raises(ValueError, match=f"{name}=2 is for vector environments"):
        gym.make("feedgym/ShortVideo-v1", **{name: 2})


def test_churn_terminates_and_the_horizon_truncates():
    env = small(64, horizon=3, simulator=ToyUsers(churn=0.5), autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(env.action_space.sample())
    assert terminated.any() and not truncated.any()
    assert (info["final_info"]["churned"] == terminated).all()
    stayed = ~terminated
    for _ in range(2):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        stayed &= ~(terminated & ~truncated)
    assert truncated[stayed].all() and stayed.any()


# ---------------------------------------------------------------- rewards, observations, leaks


def test_reward_is_the_weighted_sum_of_the_components():
    weights = RewardWeights(watch_minutes=2.0, click=0.25, like=1.5, hate=-3.0, return_24h=0.75)
    env = small(8, reward=weights, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=2)
    _, reward, _, _, info = env.step(env.action_space.sample())
    parts = info["reward_components"]
    by_hand = sum(getattr(weights, f.name) * parts[f.name] for f in fields(weights))
    np.testing.assert_allclose(reward, by_hand, rtol=1e-5)
    np.testing.assert_allclose(parts["watch_minutes"], info["watch_s"].sum(axis=1) / 60, rtol=1e-5)
    assert (parts["like"] == info["behaviours"][:, :, BEHAVIOURS.index("like")].sum(axis=1)).all()


@pytest.mark.parametrize("simulator", simulators(), ids=["toy", "short_video"])
def test_nothing_hidden_reaches_observations_and_infos(simulator):
    """Names are the agreed ones, and changing hidden state alone changes neither observation nor space."""
    env = FeedVectorEnv(4, simulator, session_length=4, history_length=7)
    env.reset(seed=3)
    observation, _, _, _, info = env.step(env.action_space.sample())
    history = {f"history_{x}" for x in ("items", "behaviours", "watch_fraction", "gap_s", "mask")}
    assert set(env.single_observation_space) == set(observation) == {"profile", "time_of_day"} | history
    measured = {f.name.rsplit("_", 1)[0] for f in fields(Response)} | {"reward_components"}
    assert {key for key in info if not key.startswith("_")} == measured

    open_to_all = {"profile_UF", "time_s_U"}
    hidden = [f.name for f in fields(env._state) if f.name not in open_to_all]
    noise = {n: np.full_like(getattr(env._state, n), 1) for n in hidden}
    env._state = replace(env._state, **noise)
    assert data_equivalence(env._observation(), observation, exact=True)


def test_observations_are_fresh_copies():
    env = small(3)
    first, _ = env.reset(seed=0)
    kept = {name: column.copy() for name, column in first.items()}
    second, *_ = env.step(env.action_space.sample())
    assert data_equivalence(first, kept, exact=True)
    kept = {name: column.copy() for name, column in second.items()}
    for column in [*first.values(), *second.values()]:
        column[...] = 1
    assert data_equivalence(env._observation(), kept, exact=True)


def plain_history(visits, request_s, length, duration_s):
    """The observation of one user, event by event, from the definitions."""
    events = []
    for login_s, slate, watch_s, examined in visits:
        clock = login_s
        for item, watched, seen in zip(slate, watch_s, examined, strict=True):
            if seen:
                events.append((item, min(watched / duration_s[item], 5), clock))
            clock += watched
    events = events[-length:]
    times = [event[2] for event in events] + [request_s]
    return [(item, fraction, times[i + 1] - times[i]) for i, (item, fraction, _) in enumerate(events)]


def test_observation_is_what_a_plain_loop_over_events_gives():
    simulator = ToyUsers(churn=0.0)
    env = FeedEnv(simulator, session_length=4, history_length=7)
    state = simulator.reset(np.array([5], np.uint64))
    observation, _ = env.reset(seed=5)
    visits = []
    for step in range(9):
        assert observation["time_of_day"].tolist() == [np.float32(state.time_s_U[0] % 86_400 / 3600)]
        expected = plain_history(visits, state.time_s_U[0], 7, simulator.catalog.duration_s_I)
        n = len(expected)
        assert observation["history_mask"].tolist() == [1] * n + [0] * (7 - n)
        if n:
            items, fractions, gaps = map(np.array, zip(*expected, strict=True))
            assert observation["history_items"].tolist() == items.tolist() + [0] * (7 - n)
            np.testing.assert_allclose(observation["history_watch_fraction"][:n], fractions, rtol=1e-6)
            np.testing.assert_allclose(observation["history_gap_s"][:n], gaps, rtol=1e-5)
        assert not observation["history_gap_s"][n:].any() and not observation["history_behaviours"][n:].any()
        slate = np.array([[3, 1, 30 + step, 3]])  # an item twice is no error
        response, next_state = simulator.respond(state, slate)
        visits.append((state.time_s_U[0], slate[0], response.watch_s_UK[0], response.examined_UK[0]))
        observation, *_ = env.step(slate[0])
        state = next_state
    assert n == 7


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6), st.integers(1, 8))
def test_history_keeps_the_last_examined_events_whatever_their_pattern(examined, length):
    history = History.empty(1, length)
    expected = []
    for visit, seen in enumerate(examined):
        slate = np.array([[visit * 3, visit * 3 + 1, visit * 3 + 2]])
        response = Response(
            behaviours_UKB=np.ones((1, 3, len(BEHAVIOURS)), np.uint8),
            watch_s_UK=np.ones((1, 3), np.float32),
            examined_UK=np.sort(np.array([seen]))[:, ::-1],
            elapsed_s_U=np.zeros(1, np.float32),
            left_U=np.zeros(1, bool),
            return_gap_s_U=np.zeros(1, np.float32),
            churned_U=np.zeros(1, bool),
        )
        history = history.after(np.zeros(1), slate, response, np.ones(18, np.float32))
        expected += slate[0, : sum(seen)].tolist()
    kept = expected[-length:]
    assert history.items_UT[0].tolist() == kept + [0] * (length - len(kept))
    assert history.length_U[0] == len(kept)
    assert (history.behaviours_UTB[0].any(axis=1) == (np.arange(length) < len(kept))).all()


def test_event_times():
    times = event_times_s(np.array([100.0]), np.array([[2.0, 0.5, 0.0]], np.float32))
    assert times.tolist() == [[100.0, 102.0, 102.5]]


def test_event_batch_takes_batched_and_single_observations():
    env = small(3)
    env.reset(seed=0)
    observation, *_ = env.step(env.action_space.sample())
    batch = event_batch(observation)
    assert len(batch) == 3 and batch.mask_UT.dtype == torch.bool and batch.behaviours_UTB.dtype == torch.float32
    assert batch.mask_UT.sum(dim=1).tolist() == observation["history_mask"].sum(axis=1).tolist()
    alone = event_batch({name: column[1] for name, column in observation.items()})
    for name in HISTORY_COLUMNS:
        assert torch.equal(getattr(alone, name), getattr(batch, name)[1:2]), name


# ---------------------------------------------------------------- user faults


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((2, 3), int), r"shape \(2, 3\)"),
        (np.zeros((2, 4)), "dtype float64"),
        (np.full((2, 4), 40), r"Item id 40 is outside 0\.\.39"),
        (np.full((2, 4), -1), r"Item id -1"),
    ],
)
def test_wrong_actions_are_refused(actions, message):
    env = small(2)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(actions)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(actions)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small(0), "num_envs=0"),
        (lambda: small(horizon=0), "horizon=0"),
        (lambda: small(num_items=3), "existing simulator"),
        (lambda: make_simulator(num_item=3), "num_item"),
        (lambda: small(2).reset(seed=[1]), "1 seeds do not fit 2"),
        (lambda: small(2).reset(seed=[1, -4]), "-4 is negative"),
        (lambda: small(2).reset(options={"reset_mask": np.array([1, 0])}), "reset_mask of shape"),
        (lambda: small(2).reset(options={"reset_mask": np.array([True, False])}), "first reset"),
    ],
)
def test_user_faults_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_make_simulator_takes_objects_paths_and_configs():
    toy = ToyUsers()
    assert make_simulator(toy) is toy
    assert make_simulator("toy_users:ToyUsers", num_items=9).catalog.num_items == 9
    assert make_simulator(num_items=50, churn_logit=-2.0).config == ShortVideoConfig(num_items=50, churn_logit=-2.0)

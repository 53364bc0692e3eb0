import warnings
from dataclasses import fields, replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_users import ToyUsers, toy_catalog

from feedgym.data.events import BEHAVIOURS, Event
from feedgym.envs import features
from feedgym.envs.features import compact_state, item_points, nearest_items
from feedgym.envs.feed import FeedEnv, FeedVectorEnv
from feedgym.envs.recorder import RecordLog
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.envs.wrappers import (
    CompactObservation,
    ItemByItem,
    ProtoItems,
    VectorCompactObservation,
    VectorItemByItem,
    VectorProtoItems,
)

K, T = 4, 7
TWINS = {
    "compact": (CompactObservation, VectorCompactObservation),
    "proto": (
        lambda env: ProtoItems(CompactObservation(env, width=3), width=2),
        lambda env: VectorProtoItems(VectorCompactObservation(env, width=3), width=2),
    ),
    "item": (ItemByItem, VectorItemByItem),
    "compact_item": (
        lambda env: CompactObservation(ItemByItem(env)),
        lambda env: VectorCompactObservation(VectorItemByItem(env)),
    ),
    "item_compact": (
        lambda env: ItemByItem(CompactObservation(env)),
        lambda env: VectorItemByItem(VectorCompactObservation(env)),
    ),
}


def small(**kwargs):
    return {"simulator": ToyUsers(churn=0.2), "session_length": K, "history_length": T, "horizon": 5, **kwargs}


# ---------------------------------------------------------------- wrappers of one user and of many


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("name", TWINS)
def test_vector_wrappers_equal_gymnasiums_vector_of_single_wrappers(name, mode):
    """Observations, final ones too, rewards, endings and infos, bit by bit, through resets."""
    one, many = TWINS[name]
    if "item" in name and mode is AutoresetMode.NEXT_STEP:
        with pytest.raises(ValueError, match="SameStep"):
            many(FeedVectorEnv(6, autoreset_mode=mode, **small()))
        return
    native = many(FeedVectorEnv(6, autoreset_mode=mode, **small()))
    single = SyncVectorEnv([lambda: one(FeedEnv(**small()))] * 6, autoreset_mode=mode)
    assert native.observation_space == single.observation_space and native.action_space == single.action_space
    native.action_space.seed(3)
    assert data_equivalence(native.reset(seed=5), single.reset(seed=5), exact=True)
    ends = 0
    for _ in range(14 * (K if "item" in name else 1)):
        actions = native.action_space.sample()
        ours, theirs = native.step(actions), single.step(actions)
        assert native.observation_space.contains(ours[0])
        for mine, yours in zip(ours[:4], theirs[:4], strict=True):
            assert data_equivalence(mine, yours, exact=True)
        if ours[4]:  # Gymnasium gives masks even for empty infos
            assert data_equivalence(ours[4], theirs[4], exact=True)
        over_U = ours[2] | ours[3]
        ends += ours[2].sum()
        if mode is AutoresetMode.DISABLED and over_U.any():
            options = {"reset_mask": over_U}
            mine, yours = native.reset(options=options), single.reset(options=options)
            assert data_equivalence(mine, yours, exact=True)
    assert ends > 2, "the test must see churned users"
    if "item" in name:
        assert np.array_equal(inner(native).action_masks(), [inner(env).action_masks() for env in single.envs])


def inner(env):
    """The item-by-item wrapper among the wrappers."""
    while not isinstance(env, (ItemByItem, VectorItemByItem)):
        env = env.env
    return env


@pytest.mark.parametrize("name", TWINS)
def test_check_env_passes_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("feedgym/ShortVideo-v1", session_length=4, history_length=6, num_items=60)
        wrapped = TWINS[name][0](env)
        again = gym.make(wrapped.spec)  # the spec tells the wrappers and their arguments
        assert again.observation_space == wrapped.observation_space and again.action_space == wrapped.action_space
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version.*")
        check_env(wrapped)


def test_wrappers_go_around_gymnasiums_own_vectors():
    envs = [lambda: FeedEnv("toy_users:ToyUsers", session_length=K)] * 2
    shown = []
    for env in (AsyncVectorEnv(envs), SyncVectorEnv(envs), FeedVectorEnv(2, ToyUsers(), session_length=K)):
        wrapped = VectorProtoItems(VectorCompactObservation(env))
        wrapped.reset(seed=1)
        shown.append(wrapped.step(np.full(wrapped.action_space.shape, 0.3, np.float32)))
        wrapped.close()
    for other in shown[1:]:
        assert data_equivalence(shown[0][:4], other[:4], exact=True)


# ---------------------------------------------------------------- the compact state


def plain_state(observation, points, topics, num_topics, sizes, half_life, hours):
    """One user's state, event by event, from its description."""
    n = int(observation["history_mask"].sum())
    out = []
    for value, size in zip(observation["profile"], sizes, strict=True):
        out += [float(value == i) for i in range(size)]
    weight, watched, pleased, ages = [], [], [], []
    for t in range(n):
        weight.append(0.5 ** ((n - 1 - t) / half_life))
        watched.append(weight[t] * min(observation["history_watch_fraction"][t], 1))
        deeds = dict(zip(BEHAVIOURS, observation["history_behaviours"][t], strict=True))
        pleased.append(weight[t] * any(deeds[b] for b in ("long_view", "like", "follow", "comment", "forward")))
        ages.append(observation["history_gap_s"][t:n].sum(dtype=float) / 3600)
    items = observation["history_items"][:n]
    for weights in (watched, pleased):
        mean = sum(w * points[i] for w, i in zip(weights, items, strict=True)) / (sum(weights) or 1)
        out += list(np.broadcast_to(mean, points.shape[1]))
    for b in range(len(BEHAVIOURS)):
        out.append(sum(w * observation["history_behaviours"][t, b] for t, w in enumerate(weight)) / (sum(weight) or 1))
    out.append(sum(watched) / (sum(weight) or 1))
    for topic in range(num_topics):
        count = sum(np.exp(-age / hours) for age, i in zip(ages, items, strict=True) if topics[i] == topic)
        out.append(count / (1 + count))
    angle = 2 * np.pi * observation["time_of_day"][0] / 24
    out += [np.sin(angle), np.cos(angle), np.exp(-ages[-1] / 24) if n else 0, n / len(observation["history_mask"])]
    return np.array(out)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), visits=st.integers(0, 4), half_life=st.floats(0.5, 50), hours=st.floats(0.5, 50))
def test_compact_state_is_what_its_description_says(seed, visits, half_life, hours):
    simulator = ToyUsers(churn=0.0)
    topics = simulator.catalog.topic_I.copy()
    topics[::5] = -1
    env = FeedVectorEnv(3, simulator, session_length=K, history_length=T)
    observation, _ = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(visits):
        observation, *_ = env.step(rng.integers(40, size=(3, K)))
    points = item_points(simulator.catalog, 3).astype(np.float32)
    state = compact_state(observation, points, topics, (4, 2), half_life=half_life, satiation_hours=hours)
    assert state.dtype == np.float32 and np.abs(state).max() <= 1
    for user in range(3):
        alone = {name: column[user] for name, column in observation.items()}
        expected = plain_state(alone, points, topics, 3, (4, 2), half_life, hours)
        np.testing.assert_allclose(state[user], expected, atol=2e-6)


def test_compact_state_tells_the_weekday_where_observations_do():
    env = CompactObservation(FeedEnv(ToyUsers(churn=0), session_length=4, history_length=6, weekday=True))
    plain = CompactObservation(FeedEnv(ToyUsers(churn=0), session_length=4, history_length=6))
    state_D, _ = env.reset(seed=0)
    plain_D, _ = plain.reset(seed=0)
    day = int(env.unwrapped.state.time_s_U[0] // 86_400) % 7
    assert (
        state_D[len(plain_D) :].tolist() == np.eye(7)[day].tolist()
        and state_D[: len(plain_D)].tolist() == plain_D.tolist()
    )
    check_env(FeedEnv(ToyUsers(), session_length=4, history_length=6, weekday=True, population="test"))


def test_compact_state_shows_the_slate_and_hides_the_users_state():
    env = CompactObservation(ItemByItem(FeedEnv(**small())), width=2)
    start, _ = env.reset(seed=0)
    points = item_points(env.unwrapped.simulator.catalog, 2)
    topics = env.unwrapped.simulator.catalog.topic_I
    first, *_ = env.step(7)
    second, *_ = env.step(11)
    num = 2 + 3 + 1
    assert not start["observations"][-num:].any()
    assert np.array_equal(first["observations"][:-num], start["observations"][:-num])
    np.testing.assert_allclose(first["observations"][-num : -num + 2], points[7], atol=1e-6)
    np.testing.assert_allclose(second["observations"][-num : -num + 2], points[[7, 11]].mean(axis=0), atol=1e-6)
    share = np.bincount(topics[[7, 11]], minlength=3) / K
    np.testing.assert_allclose(second["observations"][-4:], [*share, 2 / K], atol=1e-6)

    feed = FeedVectorEnv(3, **small())
    wrapped = VectorCompactObservation(feed)
    wrapped.reset(seed=1)
    shown, *_ = wrapped.step(wrapped.action_space.sample())
    hidden = {f.name for f in fields(feed._state)} - {"profile_UF", "time_s_U"}
    feed._state = replace(feed._state, **{name: np.ones_like(getattr(feed._state, name)) for name in hidden})
    assert np.array_equal(wrapped.observations(feed._observation()), shown)


# ---------------------------------------------------------------- proto-items


def brute_force(points, protos, taken=()):
    sessions = []
    for proto in protos:
        session = []
        for point in proto:
            order = np.argsort(((points - point) ** 2).sum(axis=1), kind="stable")
            session.append(next(i for i in order if i not in session and i not in taken))
        sessions.append(session)
    return sessions


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(6, 30), st.integers(1, 5), st.integers(1, 6))
def test_nearest_items_are_those_of_brute_force(seed, length, num_items, width, num_users):
    rng = np.random.default_rng(seed)
    points, protos = rng.uniform(-1, 1, (num_items, width)), rng.uniform(-1, 1, (num_users, length, width))
    protos[0] = protos[0, :1]  # the same point at all places: the nearest, the second nearest ...
    assert nearest_items(points, protos).tolist() == brute_force(points, protos)
    taken = rng.permutation(num_items)[: num_items - length]
    allowed = np.ones((num_users, num_items), bool)
    allowed[:, taken] = False
    assert nearest_items(points, protos, allowed.__getitem__).tolist() == brute_force(points, protos, taken.tolist())


def test_nearest_items_do_not_depend_on_the_block_size(monkeypatch):
    rng = np.random.default_rng(0)
    points, protos = rng.uniform(-1, 1, (500, 8)), rng.uniform(-1, 1, (90, 5, 8))
    whole = nearest_items(points, protos)
    for cells in (1, 500 * 7):
        monkeypatch.setattr(features, "BLOCK_CELLS", cells)
        assert np.array_equal(nearest_items(points, protos), whole)


def test_item_points_fill_the_box_and_keep_the_strongest_directions():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(200, 2)) * [5, 2]
    content = latent @ np.linalg.qr(rng.normal(size=(6, 6)))[0][:2] + 3 + 1e-3 * rng.normal(size=(200, 6))
    catalog = replace(toy_catalog(200), content_IE=content.astype(np.float32))
    points = item_points(catalog, 2)
    assert points.shape == (200, 2) and np.abs(points).max(axis=0) == pytest.approx([1, 1])
    for axis in range(2):
        assert abs(np.corrcoef(points[:, axis], latent[:, axis])[0, 1]) > 0.99
    whole = item_points(catalog)
    assert whole.shape == (200, 6) and np.abs(whole).max(axis=0) == pytest.approx(np.ones(6))
    assert not item_points(replace(catalog, content_IE=np.ones((200, 3), np.float32))).any()  # one point for all
    with pytest.raises(ValueError, match=r"width=7 is outside 1\.\.6"):
        item_points(catalog, 7)


def test_a_proto_item_that_is_an_item_serves_it(tmp_path):
    feed = FeedEnv(**small())
    recorder = RecordLog(feed, tmp_path)
    env = ProtoItems(recorder)
    env.reset(seed=0)
    points = item_points(feed.simulator.catalog)
    env.set_wrapper_attr("propensity", np.array([0.1, 0.2, 0.3, 0.4]))
    env.step(points[[3, 1, 3, 9]].astype(np.float32))
    log = recorder.log()
    shown = log.item_id[log.item_id >= 0]
    assert shown[[0, 1, 3]].tolist() == [3, 1, 9] and len(set(shown.tolist())) == 4
    assert log.propensity[2:6] == pytest.approx([0.1, 0.2, 0.3, 0.4])


# ---------------------------------------------------------------- items that come and go


LIVELY = {"num_items": 60, "arrivals_a_day": 4, "arrival_days": 10, "lifetime_days": 20, "fresh_weight": 1.0}


@pytest.mark.parametrize("name", ["proto", "item"])
def test_only_items_that_exist_are_served(name, tmp_path):
    kwargs = small(simulator=ShortVideo(ShortVideoConfig(**LIVELY)), horizon=4)
    recorder = RecordLog(FeedVectorEnv(8, autoreset_mode="SameStep", **kwargs), tmp_path)
    native = TWINS[name][1](recorder)
    single = SyncVectorEnv([lambda: TWINS[name][0](FeedEnv(**kwargs))] * 8, autoreset_mode="SameStep")
    catalog = recorder.unwrapped.simulator.catalog
    native.action_space.seed(0)
    assert data_equivalence(native.reset(seed=3), single.reset(seed=3), exact=True)
    for _ in range(6 * (K if name == "item" else 1)):
        if name == "item":
            exists_UI = catalog.exists(recorder.unwrapped.state.time_s_U)
            assert (exists_UI >= native.action_masks()).all() and (~exists_UI).any()
        action = native.action_space.sample()
        ours, theirs = native.step(action), single.step(action)
        assert data_equivalence(ours[:4], theirs[:4], exact=True)
    log = recorder.log()
    shown = log.item_id >= 0
    login_s = log.timestamp_s[np.maximum.accumulate(np.where(log.event == Event.LOGIN, np.arange(log.num_events), 0))]
    assert catalog.exists(login_s[shown], log.item_id[shown]).all() and shown.sum() == 8 * 6 * K


def test_too_few_items_are_refused():
    with pytest.raises(ValueError, match="3 different items was requested when only 2 exist"):
        nearest_items(np.eye(5), np.zeros((1, 3, 5)), lambda _: np.array([[True, True, False, False, False]]))


# ---------------------------------------------------------------- item by item


def test_item_by_item_serves_the_session_it_built():
    kwargs = small(horizon=3)
    whole, built = FeedEnv(**kwargs), ItemByItem(FeedEnv(**kwargs))
    known, _ = whole.reset(seed=2)
    observation, _ = built.reset(seed=2)
    rng = np.random.default_rng(0)
    for _ in range(3):
        session = rng.permutation(40)[:K]
        for position, item in enumerate(session):
            assert (
                observation["position"] == position
                and observation["slate"][:position].tolist() == session[:position].tolist()
            )
            assert (observation["slate"][position:] == -1).all()
            assert np.flatnonzero(observation["action_mask"] == 0).tolist() == sorted(session[:position])
            assert np.array_equal(observation["action_mask"], built.action_masks())
            assert all(np.array_equal(observation[name], known[name]) for name in known)
            observation, *outcome, info = built.step(item)
            if position < K - 1:
                assert outcome == [0.0, False, False] and info == {}
        known, *expected, expected_info = whole.step(session)
        assert outcome == expected and data_equivalence(info, expected_info, exact=True)
        if outcome[1] or outcome[2]:
            break
    assert outcome[1] or outcome[2]


def test_an_item_chosen_again_is_replaced_by_its_nearest_neighbour():
    env = VectorItemByItem(FeedVectorEnv(3, autoreset_mode="Disabled", **small()))
    env.reset(seed=0)
    env.step(np.array([5, 6, 7]))
    observation, *_ = env.step(np.array([5, 5, 7]))
    points = item_points(env.unwrapped.simulator.catalog)
    near = [brute_force(points, points[[i]][None], (i,))[0][0] for i in (5, 7)]
    assert observation["slate"][:, 1].tolist() == [near[0], 5, near[1]]
    assert observation["position"].tolist() == [2, 2, 2]
    for _ in range(K - 2):
        env.step(np.array([5, 5, 5]))
    observation, *_ = env.step(np.array([5, 6, 7]))
    assert observation["position"].tolist() == [1, 1, 1]


# ---------------------------------------------------------------- user faults


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CompactObservation(CompactObservation(FeedEnv(**small()))), "hold no history"),
        (lambda: CompactObservation(FeedEnv(**small()), half_life=0), "half_life=0"),
        (lambda: CompactObservation(FeedEnv(**small()), width=9), r"width=9 is outside 1\.\.4"),
        (lambda: ProtoItems(ProtoItems(FeedEnv(**small()))), "not sessions of item ids"),
        (lambda: ItemByItem(FeedEnv(**small(simulator=ToyUsers(num_items=3)))), "3; lower session_length"),
        (lambda: act(ProtoItems, np.zeros((K, 3))), r"shape \(4, 3\)"),
        (lambda: act(ProtoItems, np.full((K, 4), np.nan)), "NaN"),
        (lambda: act(ItemByItem, 40), r"Item id 40 is outside 0\.\.39"),
        (lambda: act(ItemByItem, 1.5), "one item id per slot"),
        (lambda: act(ItemByItem, [1, 2]), "one item id per slot"),
    ],
)
def test_user_faults_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def act(wrapper, action):
    env = wrapper(FeedEnv(**small()))
    env.reset(seed=0)
    env.step(action)


def test_slots_cannot_be_reset_in_the_middle_of_a_session():
    env = VectorItemByItem(FeedVectorEnv(2, autoreset_mode="Disabled", **small()))
    env.reset(seed=0)
    env.step(np.array([1, 2]))
    with pytest.raises(ValueError, match="at place 1 of 4"):
        env.reset(options={"reset_mask": np.array([True, False])})
    observation, _ = env.reset(seed=1)
    assert not observation["position"].any()

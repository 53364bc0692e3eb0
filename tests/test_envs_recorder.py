from dataclasses import replace

import numpy as np
import pytest
from toy_users import ToyUsers

from feedgym.data.events import Event
from feedgym.data.sessions import logged_sessions
from feedgym.envs.feed import FeedVectorEnv, observation_space
from feedgym.envs.logging import collect_log, user_seeds
from feedgym.envs.recorder import transitions
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

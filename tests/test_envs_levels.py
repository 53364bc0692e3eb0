from dataclasses import fields, replace

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from toy_users import ToyUsers

from feedgym.data.events import Event
from feedgym.envs.feed import FeedVectorEnv
from feedgym.envs.history import History
from feedgym.envs.levels import (
    NOTHING,
    RequestVectorEnv,
    RetentionEnv,
    RetentionVectorEnv,
    SessionVectorEnv,
    require_causal,
)
from feedgym.envs.logging import collect_log
from feedgym.envs.logging_policy import LoggingPolicy
from feedgym.envs.luck import user_seeds
from feedgym.envs.recsim import InterestEvolution
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.envs.truth import RewardWeights, session_reward
from feedgym.envs.warmup import warm_up
from feedgym.protocols import take_users

DISABLED, SAME_STEP = AutoresetMode.DISABLED, AutoresetMode.SAME_STEP
EVERYTHING = RewardWeights(click=0.2)


def short_video(**changes):
    return ShortVideo(ShortVideoConfig(num_items=60, memory_items=16, **changes))


# ---------------------------------------------------------------- warm-up


def test_the_past_of_the_warm_up_is_the_log_of_the_same_users():
    simulator = short_video(churn_logit=-50.0)
    log = collect_log(simulator, num_users=9, num_visits=3, session_length=4, seed=5)
    policy = LoggingPolicy(simulator, 4, seed=5)
    state = simulator.reset(user_seeds(9, 5, "log"))
    after, history = warm_up(policy, state, History.empty(9, 40), 3)
    assert (after.visit_U == 3).all() and not state.visit_U.any()
    for user in range(9):
        rows = slice(*log.offsets_U1[user : user + 2])
        seen = (log.event[rows] == Event.IMPRESSION) & log.examined[rows]
        length = history.length_U[user]
        assert history.items_UT[user, :length].tolist() == log.item_id[rows][seen].tolist()
        assert (history.behaviours_UTB[user, :length] == log.behaviours[rows][seen]).all()
        np.testing.assert_allclose(history.time_s_UT[user, :length], log.timestamp_s[rows][seen], atol=1e-2)


def test_nobody_is_lost_in_the_warm_up_and_nobody_depends_on_the_others():
    simulator = ToyUsers(churn=0.9)
    policy = LoggingPolicy(simulator, 4)
    state = simulator.reset(np.arange(700, dtype=np.uint64))  # more than a block
    after, history = warm_up(policy, state, History.empty(700, 9), 2)
    assert (after.visit_U == 2).all() and (history.length_U >= 2).all()
    rows = np.array([3, 699, 511, 512])
    few, past = warm_up(policy, take_users(state, rows), History.empty(4, 9), 2)
    for whole, part in ((after, few), (history, past)):
        for field in fields(whole):
            assert np.array_equal(getattr(whole, field.name)[rows], getattr(part, field.name)), field.name


def test_the_horizon_counts_from_the_end_of_the_warm_up():
    env = FeedVectorEnv(3, ToyUsers(churn=0.0), session_length=4, horizon=2, warmup_visits=3, autoreset_mode=DISABLED)
    env.reset(seed=0)
    assert not env.step(env.action_space.sample())[3].any() and env.step(env.action_space.sample())[3].all()


# ---------------------------------------------------------------- request


@pytest.mark.parametrize("simulator", [ToyUsers(), short_video()], ids=["toy", "short_video"])
def test_a_request_is_one_step_of_a_user_with_a_past(simulator):
    env = RequestVectorEnv(40, simulator, session_length=4, autoreset_mode=SAME_STEP)
    for observation in (env.reset(seed=3)[0], env.step(env.action_space.sample())[0]):
        assert (observation["history_mask"].sum(axis=1) >= env.warmup_visits).all()
    state = env.state
    slates_UK = env.action_space.sample()
    _, reward_U, terminated_U, truncated_U, _ = env.step(slates_UK)
    assert terminated_U.all() and not truncated_U.any()
    response, _ = simulator.respond(state, slates_UK)
    assert np.array_equal(reward_U.astype(np.float32), session_reward(response, RewardWeights(return_24h=0)))


def test_a_request_has_no_horizon():
    with pytest.raises(ValueError, match="horizon=3 has no effect"):
        RequestVectorEnv(2, ToyUsers(), horizon=3)


# ---------------------------------------------------------------- whole session


@pytest.mark.parametrize("simulator", [ToyUsers(), short_video(budget_s=400.0)], ids=["toy", "short_video"])
def test_a_visit_page_by_page_is_the_visit_in_one_go(simulator):
    """Answers, rewards, times and histories, for users who leave on different pages."""
    num_users, length, pages = 60, 3, 4
    env = SessionVectorEnv(
        num_users, simulator, session_length=length, horizon=pages, reward=EVERYTHING, history_length=20
    )
    env.reset(seed=1)
    login, before = env.state, env._login_history
    served_UX = np.random.default_rng(0).integers(simulator.catalog.num_items, size=(num_users, pages * length))
    steps, going_U, last_page_U = [], np.ones(num_users, bool), np.zeros(num_users, int)
    reward_U, elapsed_s_U = np.zeros(num_users), np.zeros(num_users)
    for page in range(pages):
        now_s_U, asked_U = env._now_s_U(), going_U.copy()
        slates_UK = served_UX[:, page * length : (page + 1) * length]
        observation, page_reward_U, terminated_U, truncated_U, info = env.step(slates_UK)
        reward_U[asked_U] += page_reward_U[asked_U]
        elapsed_s_U[asked_U] += info["elapsed_s"][asked_U]
        last_page_U[asked_U] = page + 1
        ended_U = asked_U & (terminated_U | truncated_U)
        assert not info["churned"][asked_U & ~ended_U].any() and not info["return_gap_s"][asked_U & ~ended_U].any()
        assert (env._now_s_U() >= now_s_U)[asked_U].all()
        steps.append((asked_U, ended_U, observation, info))
        going_U &= ~ended_U
    assert not going_U.any() and len(np.unique(last_page_U)) == pages, "users must leave on all pages"

    for page, (asked_U, ended_U, observation, info) in enumerate(steps, start=1):
        so_far_UX = served_UX[:, : page * length]
        whole, _ = simulator.respond(login, so_far_UX)
        history = before.after(login.time_s_U, so_far_UX, whole, simulator.catalog.duration_s_I)
        expected = history.observation(login.profile_UF, login.time_s_U + whole.elapsed_s_U)
        for name, column in expected.items():
            assert np.array_equal(observation[name][asked_U], column[asked_U]), name
        for name in ("examined_UK", "watch_s_UK", "behaviours_UKB"):
            new = getattr(whole, name)[:, -length:]
            assert np.array_equal(info[name.rsplit("_", 1)[0]][asked_U], new[asked_U]), name
        for name in ("churned_U", "return_gap_s_U", "left_U"):
            assert np.array_equal(info[name[:-2]][ended_U], getattr(whole, name)[ended_U]), name
        np.testing.assert_allclose(reward_U[ended_U], session_reward(whole, EVERYTHING)[ended_U], atol=1e-4)
        np.testing.assert_allclose(elapsed_s_U[ended_U], whole.elapsed_s_U[ended_U], rtol=1e-5)


def test_terminated_is_left_and_truncated_is_the_last_page():
    env = SessionVectorEnv(200, short_video(), session_length=2, horizon=3, autoreset_mode=DISABLED)
    env.reset(seed=0)
    for page in range(1, 4):
        _, _, terminated_U, truncated_U, info = env.step(env.action_space.sample())
        assert (terminated_U == info["left"]).all() and (terminated_U == ~info["examined"].all(axis=1)).all()
        assert truncated_U.all() == (page == 3) and truncated_U.any() == (page == 3)
        env._over_U[:] = False  # who left goes on being asked here, which changes nothing for the others


def test_simulators_whose_users_choose_from_a_slate_are_refused_page_by_page():
    with pytest.raises(ValueError, match=r"InterestEvolution answers a page differently.*level 'visit'"):
        SessionVectorEnv(2, InterestEvolution(), session_length=2)
    require_causal(ToyUsers(), 3)


class Averse(ToyUsers):
    """Users who look ahead: they leave at once if they see item 0 anywhere."""

    def respond(self, state, slates_UK):
        response, after = super().respond(state, slates_UK)
        return replace(response, watch_s_UK=response.watch_s_UK * (slates_UK != 0).all(axis=1)[:, None]), after


def test_looking_ahead_is_found_however_rare():
    with pytest.raises(ValueError, match="watch_s_UK differs"):
        require_causal(Averse(), 5)


# ---------------------------------------------------------------- retention


def test_retention_rewards_returns_within_the_window_and_ends_after_days():
    simulator, days, hours = ToyUsers(churn=0.05), 6.0, 12.0
    env = RetentionVectorEnv(
        50, simulator, session_length=4, horizon_days=days, return_hours=hours, autoreset_mode=DISABLED
    )
    env.reset(seed=2)
    start_s_U, over_U = env.state.time_s_U.copy(), np.zeros(50, bool)
    ends = {"terminated": 0, "truncated": 0}
    while not over_U.all():
        _, reward_U, terminated_U, truncated_U, info = env.step(env.action_space.sample())
        returned_U = ~info["churned"] & (info["return_gap_s"] <= hours * 3600)
        assert (reward_U == returned_U).all() and (info["reward_components"]["returned"] == returned_U).all()
        assert (np.isinf(info["return_gap_days"]) == info["churned"]).all()
        stays_U = ~info["churned"]
        np.testing.assert_allclose(info["return_gap_days"][stays_U], info["return_gap_s"][stays_U] / 86_400, rtol=1e-6)
        assert (terminated_U == info["churned"]).all()
        assert (truncated_U == (env.state.time_s_U - start_s_U >= days * 86_400)).all()
        ends["terminated"] += (terminated_U & ~over_U).sum()
        ends["truncated"] += (truncated_U & ~terminated_U & ~over_U).sum()
        over_U |= terminated_U | truncated_U
        env._over_U[:] = False
    assert min(ends.values()) > 5


def test_retention_can_weigh_the_visit_too_and_counts_days_anew_for_every_user():
    env = RetentionEnv(ToyUsers(churn=0.0), session_length=4, horizon_days=2, reward=replace(NOTHING, like=3.0))
    for _ in range(3):
        env.reset(seed=4)
        truncated, steps = False, 0
        while not truncated:
            _, reward, _, truncated, info = env.step(np.arange(4))
            likes = info["behaviours"][:, 2].sum()
            assert reward == 3 * likes + info["reward_components"]["returned"]
            steps += 1
        assert steps > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RetentionVectorEnv(2, ToyUsers(), horizon_days=0), "horizon_days=0"),
        (lambda: RetentionVectorEnv(2, ToyUsers(), return_hours=-1), "return_hours=-1"),
        (lambda: FeedVectorEnv(2, ToyUsers(), warmup_visits=-1), "warmup_visits=-1"),
        (lambda: FeedVectorEnv(2, ToyUsers(), reward="toy_users:ToyUsers"), "is not a RewardWeights"),
        (lambda: RequestVectorEnv(1, ToyUsers(num_items=3), session_length=4).reset(seed=0), r"1\.\.3"),
    ],
)
def test_user_faults_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_reward_weights_may_be_named():
    env = FeedVectorEnv(2, ToyUsers(), reward="feedgym.envs.levels:NOTHING")
    assert env.reward is NOTHING

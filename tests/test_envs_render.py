"""Text and pictures say what happened, obey Gymnasium's conventions, and change nothing."""

import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import RenderCollection
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_users import ToyUsers

from feedgym.data.events import BEHAVIOURS
from feedgym.envs.check import check_simulator
from feedgym.envs.feed import FeedEnv, FeedVectorEnv
from feedgym.envs.render.picture import BLUE, UNSEEN, VERMILION, WATCHED, picture_height
from feedgym.envs.render.view import BAR, TRAIL, bar, clock, span
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig

LENGTH = 4


class Told(ToyUsers):
    """Toy users whose interests are known: topic 2 most, and tired of topic 0 alone."""

    def interests(self, state):
        taste = np.tile([0.25, 0.0, 0.75], (len(state.seed_U), 1)).astype(np.float32)
        return taste, np.tile([0.5, 0.0, 0.0], (len(state.seed_U), 1)).astype(np.float32)


class Scripted(ToyUsers):
    """Users who watch half of the first item and all of the second twice, like both, hate the second, and leave."""

    def respond(self, state, slates_UK):
        response, after = super().respond(state, slates_UK)
        num_users, length = slates_UK.shape
        share_K = np.array([0.5, 2.0] + [0.0] * (length - 2), np.float32)
        did_KB = np.zeros((length, len(BEHAVIOURS)), np.uint8)
        did_KB[:2, BEHAVIOURS.index("like")] = 1
        did_KB[1, BEHAVIOURS.index("hate")] = 1
        watch_s_UK = self.catalog.duration_s_I[slates_UK] * share_K
        elapsed_s_U = watch_s_UK.sum(axis=1)
        response = replace(
            response,
            behaviours_UKB=np.tile(did_KB, (num_users, 1, 1)),
            watch_s_UK=watch_s_UK,
            examined_UK=np.tile(np.arange(length) < 2, (num_users, 1)),
            elapsed_s_U=elapsed_s_U,
            left_U=np.ones(num_users, bool),
            return_gap_s_U=np.full(num_users, 7200, np.float32),
            churned_U=np.zeros(num_users, bool),
        )
        return response, replace(after, time_s_U=state.time_s_U + elapsed_s_U + 7200)


def env_of(mode, simulator=None, **kwargs):
    return FeedEnv(simulator or ToyUsers(), session_length=LENGTH, history_length=5, render_mode=mode, **kwargs)


def count(picture, colour):
    """Pixels of exactly a colour."""
    return int((picture == np.array(colour, np.uint8)).all(axis=2).sum())


# ---------------------------------------------------------------- Gymnasium's conventions


@pytest.mark.parametrize("mode", ["ansi", "rgb_array", None])
def test_check_env_renders_without_a_warning(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("feedgym/ShortVideo-v1", session_length=LENGTH, num_items=60, render_mode=mode).unwrapped)


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_render_before_reset_is_refused(mode):
    with pytest.raises(ResetNeeded, match="reset"):
        env_of(mode).render()
    with pytest.raises(ResetNeeded, match="reset"):
        FeedVectorEnv(2, ToyUsers(), render_mode=mode).render()


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"render_mode='human' is unknown; give one of ansi, rgb_array"):
        env_of("human")


def test_without_a_mode_render_warns_and_nothing_is_kept():
    env = FeedVectorEnv(2, ToyUsers())
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert env._screen is None
    with pytest.warns(UserWarning, match="without a render mode"):
        assert env.render() is None


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_render_collection_gets_a_frame_a_step(mode):
    env = RenderCollection(env_of(mode, ToyUsers(churn=0)), pop_frames=False)
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    frames = env.render()
    assert len(frames) == 4 and env.render_mode == f"{mode}_list"
    if mode == "rgb_array":
        assert len({frame.shape for frame in frames}) == 1
        assert len({frame.tobytes() for frame in frames}) == 4
    made = gym.make("feedgym/ShortVideo-v1", num_items=60, render_mode=f"{mode}_list")
    made.reset(seed=0)
    assert len(made.render()) == 1


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_rendering_changes_nothing(mode):
    plain, drawn = env_of(None, ToyUsers(churn=0.3)), env_of(mode, ToyUsers(churn=0.3))
    assert data_equivalence(plain.reset(seed=3), drawn.reset(seed=3), exact=True)
    plain.action_space.seed(0)
    for _ in range(12):
        drawn.render()
        action = plain.action_space.sample()
        step = plain.step(action)
        assert data_equivalence(step, drawn.step(action), exact=True)
        if step[2] or step[3]:
            assert data_equivalence(plain.reset(), drawn.reset(), exact=True)


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
@pytest.mark.parametrize("autoreset", list(AutoresetMode))
def test_a_vector_of_slots_renders_what_single_environments_render(mode, autoreset):
    simulator = ToyUsers(churn=0.4)
    many = gym.make_vec(
        "feedgym/ShortVideo-v1",
        3,
        vectorization_mode="vector_entry_point",
        simulator=simulator,
        session_length=LENGTH,
        horizon=3,
        autoreset_mode=autoreset,
        render_mode=mode,
    )
    assert many.render_mode == mode and many.metadata["render_fps"] > 0
    singles = [env_of(mode, simulator, horizon=3) for _ in range(3)]
    many.reset(seed=5)
    for slot, env in enumerate(singles):
        env.reset(seed=5 + slot)
    over = np.zeros(3, bool)
    many.action_space.seed(1)
    for _ in range(8):
        frames = many.render()
        assert isinstance(frames, tuple)
        assert all(np.array_equal(frame, env.render()) for frame, env in zip(frames, singles, strict=True))
        if autoreset is AutoresetMode.DISABLED and over.any():
            many.reset(options={"reset_mask": over})
            for slot in np.flatnonzero(over):
                singles[slot].reset()
            over = np.zeros(3, bool)
        actions = many.action_space.sample()
        _, _, ended, late, _ = many.step(actions)
        for slot, env in enumerate(singles):
            if autoreset is AutoresetMode.NEXT_STEP and over[slot]:
                env.reset()
                continue
            _, _, terminated, truncated, _ = env.step(actions[slot])
            if autoreset is AutoresetMode.SAME_STEP and (terminated or truncated):
                env.reset()
        over = ended | late


# ---------------------------------------------------------------- what they say


def test_the_text_tells_the_visit():
    simulator = Scripted()
    simulator.catalog = replace(
        simulator.catalog,
        raw_ids_I=np.array([f"film-{i}" for i in range(40)]),
        duration_s_I=np.full(40, 60, np.float32),
        topic_I=np.where(np.arange(40) == 7, -1, np.arange(40) % 3).astype(np.int32),
    )
    env = env_of("ansi", simulator)
    env.reset(seed=12)
    login_s = float(env._feed.state.time_s_U[0])
    waiting = env.render().splitlines()
    assert waiting[0] == f"user 12 · visit 1 · {clock(login_s)} · " + waiting[0].split(" · ")[-1]
    assert waiting[1].strip() == "no session served yet"
    env.step(np.array([5, 7, 30, 8]))
    header, first, second, third, fourth, ending, reward, watched = env.render().splitlines()
    assert header.startswith("user 12 · visit 1 · day 1, ") and "age " in header and "device " in header
    assert first.split() == ["1", "film-5", "topic", "2", "60", "s", "█████░░░░░", "30", "s", "like"]
    assert second.split() == [
        *("2", "film-7", "no", "topic", "60", "s", "██████████+", "120", "s", "like", "hate", "<<", "left", "here")
    ]
    assert "film-30" in third and third.endswith("not reached") and fourth.endswith("not reached")
    assert ending.strip() == f"left after 2 of 4 items, 2.5 min; back in 2.0 h ({clock(login_s + 150 + 7200)})"
    assert reward.strip() == "reward 4.50 = +2.50 watch_minutes +1.00 like -1.00 hate +2.00 return_24h"
    assert watched.strip() == "watched by topic: 2 1.00", "an item without a topic does not count"
    env.step(np.array([5, 7, 30, 8]))
    assert "· visit 2 ·" in env.render().splitlines()[0]


def test_the_truth_is_told_where_there_is_one_and_labelled():
    for simulator, told in ((Told(), True), (ToyUsers(), False)):
        env = env_of("ansi", simulator)
        env.reset(seed=0)
        env.step(np.array([2, 3, 4, 5]))
        text = env.render()
        assert ("true interests (agents never see them): 2 0.75, 0 0.25 (tired 0.50)" in text) == told
        assert ("watched by topic" in text) != told


def test_the_truth_of_short_video_is_at_the_login_and_comes_from_its_own_state():
    simulator = ShortVideo(ShortVideoConfig(num_items=60))
    env = env_of("ansi", simulator)
    env.reset(seed=4)
    before = simulator.interests(env._feed.state)[0][0]
    env.step(np.arange(LENGTH))
    best = int(before.argmax())
    assert f"{best} {before[best]:.2f}" in env.render().splitlines()[-1]
    loved = simulator.reset(np.arange(500, dtype=np.uint64))
    taste_UM, tired_UM = simulator.interests(loved)
    cosine_UM = loved.interest_UD @ simulator.latents.topic_MD.T
    np.testing.assert_allclose(taste_UM, cosine_UM, atol=1e-5)  # without a mood, interests alone
    assert not tired_UM.any()
    _, later = simulator.respond(loved, np.tile(np.arange(LENGTH), (500, 1)))
    assert simulator.interests(later)[1].any()


def test_a_new_user_begins_with_an_empty_screen():
    env = env_of("ansi", ToyUsers(churn=0))
    env.reset(seed=1)
    env.step(env.action_space.sample())
    env.reset()
    lines = env.render().splitlines()
    assert lines[1].strip() == "no session served yet" and len(lines) == 2, "nothing is left of the last user"


@given(st.floats(0, 3))
@settings(deadline=None)
def test_bars_have_one_width_and_grow_with_what_was_watched(fraction):
    drawn = bar(fraction)
    assert len(drawn) == BAR + 1
    assert drawn.count("█") == min(int(round(min(fraction, 1) * BAR * 8) // 8), BAR)
    assert drawn.endswith("+") == (fraction > 1.005)


def test_clock_and_span():
    assert clock(0) == "day 1, 00:00" and clock(86_400 * 2 + 3600 * 13 + 59 * 60 + 59.9) == "day 3, 13:59"
    assert [span(s) for s in (5, 90, 5400, 129_600)] == ["5 s", "1.5 min", "1.5 h", "1.5 days"]


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("length", [1, 3, 5, 7, 12, 70])
def test_all_pictures_of_an_environment_have_one_size(length):
    env = FeedEnv(ToyUsers(num_items=80), session_length=length, render_mode="rgb_array")
    env.reset(seed=0)
    shapes = {env.render().shape}
    env.step(env.action_space.sample())
    picture = env.render()
    shapes.add(picture.shape)
    assert shapes == {(picture_height(length), 1000, 3)}
    assert picture.dtype == np.uint8 and picture.flags.writeable


def test_cards_are_filled_as_far_as_they_were_watched_and_grey_where_not_reached():
    def picture_of(share):
        class Part(Scripted):
            def respond(self, state, slates_UK):
                response, after = super().respond(state, slates_UK)
                watch_s_UK = self.catalog.duration_s_I[slates_UK] * np.array([share, 0, 0, 0], np.float32)
                return replace(response, watch_s_UK=watch_s_UK), after

        env = env_of("rgb_array", Part())
        env.reset(seed=0)
        env.step(np.array([1, 2, 4, 5]))
        return env.render()

    filled = [count(picture_of(share), WATCHED) for share in (0.0, 0.25, 0.5, 1.0)]
    assert filled[0] == 0
    # The writing on a card hides some of its filling.
    assert filled[1] / filled[3] == pytest.approx(0.25, abs=0.05)
    assert filled[2] / filled[3] == pytest.approx(0.5, abs=0.05)
    picture = picture_of(0.5)
    assert count(picture[:, :325], UNSEEN) < 100 and count(picture[:, 325:650], UNSEEN) > 10_000
    assert count(picture[:, 175:330], VERMILION) > 500, "the frame of the item after which the user left"


def test_the_interest_bars_are_as_long_as_the_interests():
    env = env_of("rgb_array", Told())
    env.reset(seed=0)
    picture = env.render()  # the bars lie between the topics' names and the numbers
    bars = [int((picture[y, 736:846] == BLUE).all(axis=1).sum()) for y in range(picture.shape[0])]
    lengths = sorted({length for length in bars if length > 20}, reverse=True)
    assert lengths[0] / lengths[1] == pytest.approx(3, rel=0.1), "0.75 against 0.25"


def test_a_long_life_is_looked_back_on_for_a_while_only():
    env = FeedVectorEnv(1, Told(churn=0), session_length=LENGTH, horizon=2 * TRAIL, render_mode="rgb_array")
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(TRAIL + 5):
        env.step(env.action_space.sample())
    assert len(env._screen._steps) == TRAIL
    assert env.render()[0].shape == (picture_height(LENGTH), 1000, 3)


def test_odd_items_and_users_are_drawn_too():
    """Long and foreign ids, texts, no topics at all, a user of a huge seed, and interests beyond every scale."""
    simulator = ToyUsers()
    simulator.catalog = replace(
        simulator.catalog,
        raw_ids_I=np.array(["Видео-" * 20 + str(i) for i in range(40)]),
        topic_I=np.full(40, -1, np.int32),
        text_I=np.array(["", *["an item's text " * 9] * 39]),
    )
    loud = Told()
    loud.interests = lambda state: (np.full((len(state.seed_U), 3), -7.0), np.full((len(state.seed_U), 3), 9.0))
    for users in (simulator, loud):
        for mode in ("ansi", "rgb_array"):
            env = env_of(mode, users)
            env.reset(seed=2**63)
            env.render()
            env.step(np.arange(LENGTH))
            env.render()


# ---------------------------------------------------------------- conformance


def test_conformance_looks_at_the_interests():
    check_simulator(Told())

    def told(interests):
        simulator = Told()
        simulator.interests = interests
        return simulator

    with pytest.raises(ValueError, match="one column for each of the catalogue's 3 topics"):
        check_simulator(told(lambda state: (np.zeros((16, 2)), np.zeros((16, 2)))))
    with pytest.raises(ValueError, match="two arrays"):
        check_simulator(told(lambda state: np.zeros((16, 3))))
    with pytest.raises(ValueError, match="not finite"):
        check_simulator(told(lambda state: (np.full((16, 3), np.nan), np.zeros((16, 3)))))

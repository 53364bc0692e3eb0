from dataclasses import dataclass, replace

import numpy as np
import pytest
from toy_users import ToyState, ToyUsers

from feedgym.envs import luck
from feedgym.envs.check import check_simulator
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig


def breaking(change):
    """Toy users whose answers, (response, next state), go through ``change``, with the state and slates they got."""

    class Broken(ToyUsers):
        def respond(self, state, slates_UK):
            response, next_state = super().respond(state, slates_UK)
            return change(response, next_state, state, slates_UK)

    return Broken


def response_with(**columns):
    """Toy users with some columns of the response computed from the response."""
    return breaking(
        lambda response, after, *_: (replace(response, **{k: f(response) for k, f in columns.items()}), after)
    )


def state_with(**columns):
    """Toy users with some columns of the next state computed from (the next state, the state before)."""
    return breaking(
        lambda response, after, before, _: (
            response,
            replace(after, **{k: f(after, before) for k, f in columns.items()}),
        )
    )


def hate_unseen(response):
    behaviours = response.behaviours_UKB.copy()
    behaviours[:, -1, -1] = 1
    return behaviours


def hole(response):
    examined = response.examined_UK.copy()
    examined[:, 1] = False
    examined[:, 2:] = True
    return examined


class Scribbling(ToyUsers):
    def respond(self, state, slates_UK):
        answer = super().respond(state, slates_UK)
        state.mood_U[:] = 0
        return answer


class Sorting(ToyUsers):
    def respond(self, state, slates_UK):
        answer = super().respond(state, slates_UK)
        slates_UK.sort(axis=1)
        return answer


class SeedEater(ToyUsers):
    def reset(self, seeds_U):
        state = super().reset(seeds_U)
        seeds_U[:] = 0
        return state


class GlobalDice(ToyUsers):
    def reset(self, seeds_U):
        return replace(super().reset(seeds_U), mood_U=np.random.rand(len(seeds_U)).astype(np.float32))  # noqa: NPY002


class Neighbourly(ToyUsers):
    """The mood of the first user of the batch is everyone's."""

    def respond(self, state, slates_UK):
        return super().respond(replace(state, mood_U=np.full_like(state.mood_U, state.mood_U[0])), slates_UK)


class Ordered(ToyUsers):
    def reset(self, seeds_U):
        state = super().reset(seeds_U)
        return replace(state, mood_U=np.linspace(0, 1, len(seeds_U), dtype=np.float32))


class Remembering(ToyUsers):
    """Keeps a count between calls."""

    calls = 0

    def respond(self, state, slates_UK):
        self.calls += 1
        response, after = super().respond(state, slates_UK)
        return replace(response, return_gap_s_U=response.return_gap_s_U + np.float32(self.calls)), after


class Wrapping(ToyUsers):
    """Takes any item id by NumPy's rules."""

    def respond(self, state, slates_UK):
        return super().respond(state, np.asarray(slates_UK).astype(np.int64) % self.catalog.num_items)


class Crashing(ToyUsers):
    def respond(self, state, slates_UK):
        self.catalog.duration_s_I[np.abs(slates_UK)]
        return super().respond(state, slates_UK)


class Picky(ToyUsers):
    def respond(self, state, slates_UK):
        if (np.diff(np.sort(slates_UK)) == 0).any():
            raise ValueError("an item is twice in a session")
        return super().respond(state, slates_UK)


class Nameless(ToyUsers):
    profile_names = ("age",)


class Uncatalogued(ToyUsers):
    def __init__(self):
        super().__init__()
        self.catalog = None


class Mute:
    pass


@dataclass(frozen=True, kw_only=True, eq=False)
class ScalarState(ToyState):
    day: int = 0


class Scalar(ToyUsers):
    def reset(self, seeds_U):
        return ScalarState(**vars(super().reset(seeds_U)))


class TwoFaced(ToyUsers):
    """Other users in small batches than in large ones, unless they are asked alone."""

    def reset(self, seeds_U):
        state = super().reset(seeds_U)
        return replace(state, mood_U=1 - state.mood_U) if len(seeds_U) == 4 else state


class SeedMakesTheUser(ToyUsers):
    """Traits are drawn from the seed whenever they are needed, so judges, who replace it, ask somebody else."""

    def respond(self, state, slates_UK):
        traits = self.reset(state.seed_U)
        return super().respond(replace(state, mood_U=traits.mood_U), slates_UK)


class SeedMakesHalfTheUser(ToyUsers):
    """The same, beside a trait that is where it belongs."""

    def respond(self, state, slates_UK):
        mood_U = 0.5 * self.reset(state.seed_U).mood_U + 0.5 * state.mood_U
        return super().respond(replace(state, mood_U=mood_U), slates_UK)


class SeedMakesTheTaste(ToyUsers):
    """The same for the topic whose items are watched longer: on the whole all users watch alike."""

    def respond(self, state, slates_UK):
        response, after = super().respond(state, slates_UK)
        loved_U = (luck.draw(luck.traits(state.seed_U), 0, 0) * 3).astype(int)
        loves_UK = self.catalog.topic_I[slates_UK] == loved_U[:, None]
        watch_s_UK = response.watch_s_UK * np.where(loves_UK, np.float32(1), np.float32(0.5))
        return replace(response, watch_s_UK=watch_s_UK), after


class SeedBlind(ToyUsers):
    """All users have the random numbers of seed 0."""

    def respond(self, state, slates_UK):
        response, after = super().respond(replace(state, seed_U=np.zeros_like(state.seed_U)), slates_UK)
        return response, replace(after, seed_U=state.seed_U)


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenState(ToyState):
    trust_U: np.ndarray


class NaNTrust(ToyUsers):
    """A hidden column that was never filled, and decides nothing because every comparison with it is false."""

    def reset(self, seeds_U):
        return HiddenState(**vars(super().reset(seeds_U)), trust_U=np.full(len(seeds_U), np.nan))


class Alike(ToyUsers):
    """Healthy users with next to no traits: one in ten has another mood."""

    def reset(self, seeds_U):
        state = super().reset(seeds_U)
        return replace(state, mood_U=np.where(state.mood_U < 0.1, np.float32(0.3), np.float32(0.5)))


@pytest.mark.parametrize(
    "simulator",
    [ToyUsers(), ToyUsers(num_items=3), Alike(), ShortVideo(ShortVideoConfig(num_items=60, memory_items=16))],
)
def test_good_simulators_pass(simulator):
    check_simulator(simulator)


BROKEN = [
    (SeedMakesTheUser, "all users of one seed the same answer, whatever their state; keep what makes users differ"),
    (SeedMakesHalfTheUser, "other people when seed_U is replaced"),
    (SeedMakesTheTaste, r"other people when seed_U is replaced.*their watch time at position"),
    (SeedBlind, "answers the same for every seed_U; draw random events from seed_U and visit_U"),
    (NaNTrust, r"reset\(\) gives trust_U that is not finite"),
    (
        state_with(mood_U=lambda after, before: after.mood_U * np.float32("inf")),
        r"respond\(\) gives mood_U that is not",
    ),
    (Mute, r"has no reset\(\)"),
    (Uncatalogued, r"catalog is a NoneType"),
    (Nameless, r"profile_names is \('age',\)"),
    (SeedEater, r"reset\(\) changed the seeds"),
    (GlobalDice, r"reset\(\) gave other mood_U for the same seeds"),
    (Ordered, r"reset\(\) gave other mood_U in another batch"),
    (Scalar, r"gives day of shape \(\)"),
    (Scribbling, r"respond\(\) changed mood_U of the state it was given"),
    (Sorting, r"respond\(\) changed the slates"),
    (Remembering, r"gave other return_gap_s_U for the same inputs"),
    (breaking(lambda response, *_: response), r"returned Response; return"),
    (response_with(watch_s_UK=lambda r: r.watch_s_UK.astype(np.float64)), "watch_s_UK of type float64"),
    (response_with(churned_U=lambda r: r.churned_U[:, None]), r"churned_U of type bool and shape \(16, 1\)"),
    (response_with(behaviours_UKB=lambda r: r.behaviours_UKB * 2), "behaviours up to 2"),
    (response_with(behaviours_UKB=hate_unseen), "behaviours on items that were not examined"),
    (response_with(examined_UK=hole), "examined after one that was not"),
    (response_with(watch_s_UK=lambda r: r.watch_s_UK + np.float32(1)), "watch_s_UK above 0 on items that were not"),
    (response_with(watch_s_UK=lambda r: -r.watch_s_UK), "watch_s_UK that is negative"),
    (
        response_with(return_gap_s_U=lambda r: r.return_gap_s_U / np.float32(0)),
        "return_gap_s_U that is negative or not fin",
    ),
    (response_with(left_U=lambda r: ~r.left_U), "left_U that disagrees with examined_UK"),
    (response_with(elapsed_s_U=lambda r: r.elapsed_s_U / 2), "elapsed_s_U shorter than the seconds watched"),
    (state_with(visit_U=lambda after, before: before.visit_U), "visit_U from 0 to 0"),
    (state_with(time_s_U=lambda after, before: after.time_s_U + 60), "moves the clock by"),
    (state_with(time_s_U=lambda after, before: after.time_s_U.astype(np.float32)), "time_s_U is float32"),
    (state_with(seed_U=lambda after, before: after.seed_U + np.uint64(1)), "changed seed_U of the users"),
    (state_with(profile_UF=lambda after, before: after.profile_UF + 9), r"outside profile_sizes=\(4, 2\)"),
    (Neighbourly, "gave users asked alone other"),
    (Wrapping, "meets item id 40 of 40 items with Response"),
    (Crashing, "meets item id 40 of 40 items with IndexError"),
    (Picky, "the same item three times with ValueError"),
    (TwoFaced, "differs from single environments"),
]


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(("broken", "message"), BROKEN)
def test_a_broken_simulator_is_told_what_to_change(broken, message):
    with pytest.raises(ValueError, match=message):
        check_simulator(broken())

"""A user simulator fitted to a log: its users are the log's, and a ranker predicts their responses.

The response to a visit has four fitted parts, whose numbers :mod:`feedgym.envs.learned.fit` learns:

* response: the ranker predicts every behaviour and the watch fraction of the slate's items from the history before the
  visit. A logistic regression on its logits, on the earlier items of the slate and on the visit so far calibrates them.
  The click is drawn first. The other behaviours are drawn given the click, with the log's own association, so that the
  marginal probabilities stay the ranker's. The seconds watched come from the log's quantiles among similar exposures;
* leaving: the session ends after an item by logistic regression on the visit so far;
* returning: a linear model of the log seconds to the next visit, with the log's residuals by hour of the day;
* churn: by logistic regression.

A fresh user is one of the log's, with profile, clock and the history of their first visits; the same seed gives the
same user. Users who judge are drawn from other users of the log than those for training (``judging``). From there on
the history records the simulation. All randomness is keyed by user (:mod:`feedgym.envs.luck`). Responses must not
depend on the batch, but float arithmetic rounds differently in arrays of another shape. So the ranker runs in blocks of
one shape, filled up with an artificial user. Its predictions only decide between outcomes (a behaviour happens or not,
which quantiles apply).

Limits: the simulator knows items and users only from the log. ``exposures_I`` counts how often each item was examined
in it; responses to rarely shown items are the ranker's extrapolation.

Deviations: in KuaiSim (arXiv:2309.12645) users leave by a temper budget and return by a separate model of days. Here
both are fitted to the log. Differences between users beyond history and profile are not modelled.

Axes beyond the legend of :mod:`feedgym.data.events`: ``G`` donors, the log's users; ``X`` features of a regression,
``H`` parts of the day, ``Q`` evenly spaced quantiles.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, BoolArray, Catalog, FloatArray, IntArray
from feedgym.data.parquet import read_catalog, replacing, write_catalog
from feedgym.data.whole import check_product, product_of
from feedgym.envs import luck
from feedgym.envs.history import History, event_batch
from feedgym.envs.learned.features import (
    CLICK,
    LONG_VIEW,
    ItemColumns,
    Request,
    ResponseModel,
    habits,
    hour_bin,
    leave_features,
    linear,
    quantile,
    sigmoid,
    surplus,
    visit_features,
)
from feedgym.protocols import Response, checked_slates, load, take_users
from feedgym.trust import check_named

WATCH, LEAVE, FIRST_BEHAVIOUR = 0, 1, 2
"""Channels of random numbers at a position; the behaviours follow."""
GAP, CHURN = 0, 1
"""Channels of random numbers for a whole visit."""
DONOR = 0x646F6E6F72
"""Salt for drawing which of the log's users a seed gives."""
JUDGES = 0.3
"""Share of the donors who are only judges."""
JUDGE = 0x6A75646765
"""Salt for drawing the judges."""
MIN_GAP_S = 1.0
FILE, NUMBERS, RANKER = "simulator.json", "simulator.safetensors", "ranker"


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedNumbers:
    """The fitted numbers. X counts the features of each model, in the order of the functions below.

    Attributes:
        response_BX: weights of a behaviour's logit on the ranker's logit and :func:`context`, with the bias last.
        clicked_B: share of a behaviour's occurrences that come with a click; 1 for the click itself.
        duration_edges_s: inner edges of the bins of durations.
        fraction_edges: [bins, 2] inner edges of the three bins of predicted watch fractions, by bin of duration.
        watch_22DFQ: quantiles of the watch ratio by click, long view, bin of duration and of predicted fraction.
        long_view_s: a long view means watching this long or to the end; 0 if the log follows no such rule.
        leave_X: weights of :func:`leave_features`, with the bias last.
        gap_X: weights of :func:`visit_features`, with the bias last; log seconds.
        gap_HQ: quantiles of the residual log seconds, by part of the day of the logout.
        gap_max_s: longest return gap.
        churn_X: weights of :func:`visit_features`, with the bias last.
    """

    response_BX: NDArray[np.float64]
    clicked_B: NDArray[np.float64]
    duration_edges_s: NDArray[np.float64]
    fraction_edges: NDArray[np.float64]
    watch_22DFQ: NDArray[np.float64]
    long_view_s: NDArray[np.float64]
    leave_X: NDArray[np.float64]
    gap_X: NDArray[np.float64]
    gap_HQ: NDArray[np.float64]
    gap_max_s: NDArray[np.float64]
    churn_X: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedState:
    """U users between two visits: their clock, profile and history (the fields of ``History``).

    Attributes:
        seed_U: uint64 key of the user's random numbers.
        visit_U: int64 number of visits so far.
        time_s_U: float64 start of the next visit, seconds.
        profile_UF: int64 profile fields.
        items_UT: int64 the last T examined items, oldest first, right-padded.
        behaviours_UTB: int8.
        watch_fraction_UT: float32.
        time_s_UT: float64 time at which each appeared on the screen, seconds.
        length_U: int64 number of real events.
    """

    seed_U: NDArray[np.uint64]
    visit_U: NDArray[np.int64]
    time_s_U: NDArray[np.float64]
    profile_UF: NDArray[np.int64]
    items_UT: NDArray[np.int64]
    behaviours_UTB: NDArray[np.int8]
    watch_fraction_UT: FloatArray
    time_s_UT: NDArray[np.float64]
    length_U: NDArray[np.int64]

    def history(self) -> History:
        """The users' history."""
        return History(**{f.name: getattr(self, f.name) for f in fields(History)})

    def event_batch(self) -> EventBatch:
        """Input of a ranker at the next visit."""
        return event_batch(self.history().observation(self.profile_UF, self.time_s_U))


def _groups(donors: LearnedState) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the donors for logs and training, and of those for judges; disjoint, and fixed for a log."""
    luck_G = luck.draw(luck.derive(donors.seed_U, JUDGE), luck.VISIT, 0)
    judges = np.sort(np.argsort(luck_G, kind="stable")[: round(JUDGES * len(luck_G))])
    return np.setdiff1d(np.arange(len(luck_G)), judges), judges


class LearnedSimulator:
    """Users fitted to a log; see the module's docstring.

    Args:
        ranker: predicts behaviours and watch fractions.
        catalog: the log's items.
        profile_names: names of the log's profile fields.
        profile_sizes: their cardinalities.
        numbers: the fitted numbers.
        donors: the log's users at the time when the simulation begins.
        exposures_I: int64 how often each item was examined in the log.

    Attributes:
        popularity_I: float32 weights of the items by popularity.
        drawn_G: int64 rows of the donors that fresh users are drawn from. These are seven tenths of the log's users for
            logs and training, or the others for :meth:`judging`.
    """

    def __init__(
        self,
        ranker: ResponseModel,
        catalog: Catalog,
        profile_names: tuple[str, ...],
        profile_sizes: tuple[int, ...],
        numbers: FittedNumbers,
        donors: LearnedState,
        exposures_I: NDArray[np.int64],
    ) -> None:
        self.ranker, self.catalog, self.numbers, self.donors = ranker, catalog, numbers, donors
        self.profile_names, self.profile_sizes = tuple(profile_names), tuple(profile_sizes)
        self.exposures_I = exposures_I
        self.drawn_G, self._judges_G = _groups(donors)
        self.popularity_I = (exposures_I + 1).astype(np.float32)
        self.items = ItemColumns.of(catalog)

    def reset(self, seeds_U: NDArray[np.uint64]) -> LearnedState:
        """Draws users of the log with replacement by their seeds, after their first visits."""
        seeds_U = np.array(seeds_U, np.uint64)
        uniform_U = luck.draw(luck.derive(seeds_U, DONOR), luck.VISIT, 0).astype(np.float64)
        at_U = np.minimum((uniform_U * len(self.drawn_G)).astype(np.int64), len(self.drawn_G) - 1)
        return replace(take_users(self.donors, self.drawn_G[at_U]), seed_U=seeds_U)

    def judging(self) -> Self:
        """The same simulator, with fresh users from the donors that it does not use otherwise.

        Raises:
            ValueError: the log has too few users for two groups.
        """
        if not len(self._judges_G):
            raise ValueError(
                f"{len(self.donors.seed_U)} user(s) of the log are too few for two groups; fit it to a longer log."
            )
        other = copy.copy(self)
        other.drawn_G = self._judges_G
        return other

    def known_history(self, state: LearnedState, length: int) -> History:
        """The known history of fresh users: the last ``length`` events of their first visits in the log."""
        return state.history().resized(length)

    def respond(self, state: LearnedState, slates_UK: IntArray) -> tuple[Response, LearnedState]:
        """Responses of the users to one session each, and the users at their next visit.

        Args:
            state: U users; stays unchanged.
            slates_UK: item ids, the same number K for all users.

        Raises:
            ValueError: the slates have another shape, are not integers, or hold an unknown item.
        """
        slates_UK = checked_slates(slates_UK, len(state.seed_U), self.catalog.num_items).astype(np.int64)
        histories = state.event_batch()
        request = Request.of(self.ranker, self.items, histories, slates_UK)
        habits_U3 = habits(histories)
        key_U = luck.stream(state.seed_U, state.visit_U)
        num_users, length = slates_UK.shape
        behaviours_UKB = np.zeros((num_users, length, len(BEHAVIOURS)), np.uint8)
        watch_s_UK = np.zeros((num_users, length), np.float32)
        examined_UK = np.zeros((num_users, length), bool)
        here_U, clicks_U, expected_U = np.ones(num_users, bool), np.zeros(num_users), np.zeros(num_users)
        for k in range(length):
            uniform_CU = luck.draw(key_U, k, np.arange(FIRST_BEHAVIOUR + len(BEHAVIOURS))[:, None]).astype(np.float64)
            surplus_U = surplus(clicks_U, expected_U, k)
            prob_UB = self.probabilities(request, k, surplus_U)
            did_UB = self._behave(prob_UB, uniform_CU[FIRST_BEHAVIOUR:].T) & here_U[:, None]
            behaviours_UKB[:, k], examined_UK[:, k] = did_UB, here_U
            watch_s_UK[:, k] = np.where(here_U, self._watch(request, k, did_UB, uniform_CU[WATCH]), 0)
            clicks_U, expected_U = clicks_U + did_UB[:, CLICK], expected_U + prob_UB[:, CLICK]
            features_UX = leave_features(request, k, did_UB, watch_s_UK[:, : k + 1], surplus_U, prob_UB, habits_U3)
            here_U = here_U & (uniform_CU[LEAVE] >= sigmoid(linear(features_UX, self.numbers.leave_X)))
        return self._end(state, slates_UK, habits_U3, key_U, behaviours_UKB, watch_s_UK, examined_UK)

    def probabilities(self, request: Request, k: int, surplus_U: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated probability of each behaviour at position k, [U, B], given the clicks before it."""
        context_UX = np.concatenate([request.context_UKX[:, k], surplus_U[:, None]], axis=1)
        weight_BX = self.numbers.response_BX
        logit_UB = weight_BX[:, 0] * request.logit_UKB[:, k] + weight_BX[:, -1]
        logit_UB += np.vecdot(context_UX[:, None], weight_BX[:, 1:-1])
        return np.clip(sigmoid(logit_UB), 1e-6, 1 - 1e-6)

    def _behave(self, prob_UB: NDArray[np.float64], uniform_UB: NDArray[np.float64]) -> BoolArray:
        """Draws the click, then the others given it: P(b | click) = P(b) P(click | b) / P(click)."""
        did_UB = np.zeros(prob_UB.shape, bool)
        click_U = uniform_UB[:, CLICK] < prob_UB[:, CLICK]
        clicked_B = self.numbers.clicked_B
        with_UB = prob_UB * clicked_B / prob_UB[:, [CLICK]]
        without_UB = prob_UB * (1 - clicked_B) / (1 - prob_UB[:, [CLICK]])
        did_UB[:] = uniform_UB < np.where(click_U[:, None], with_UB, without_UB)
        did_UB[:, CLICK] = click_U
        return did_UB

    def _watch(self, request: Request, k: int, did_UB: BoolArray, uniform_U: NDArray[np.float64]) -> FloatArray:
        """Seconds watched: a quantile of the log's exposures with similar outcome, duration and prediction."""
        numbers = self.numbers
        duration_s_U = request.duration_s_UK[:, k]
        bin_U = np.searchsorted(numbers.duration_edges_s, duration_s_U, side="right")
        part_U = (request.fraction_UK[:, k, None] > numbers.fraction_edges[bin_U]).sum(axis=1)
        long_U = did_UB[:, LONG_VIEW]
        cell_UQ = numbers.watch_22DFQ[did_UB[:, CLICK].astype(int), long_U.astype(int), bin_U, part_U]
        watch_s_U = (quantile(cell_UQ, uniform_U) * duration_s_U).astype(np.float32)
        if numbers.long_view_s[0] > 0:
            least_s_U = np.minimum(numbers.long_view_s[0], duration_s_U).astype(np.float32)
            below_s_U = np.nextafter(least_s_U, np.float32(0))
            watch_s_U = np.where(long_U, np.maximum(watch_s_U, least_s_U), np.minimum(watch_s_U, below_s_U))
        return watch_s_U

    def _end(
        self,
        state: LearnedState,
        slates_UK: IntArray,
        habits_U3: NDArray[np.float64],
        key_U: NDArray[np.uint64],
        behaviours_UKB: NDArray[np.uint8],
        watch_s_UK: FloatArray,
        examined_UK: BoolArray,
    ) -> tuple[Response, LearnedState]:
        """Logout: churn or the gap to the next visit; the history grows by the examined items."""
        numbers = self.numbers
        gap_U, churn_U = luck.draw(key_U, luck.VISIT, np.array([[GAP], [CHURN]])).astype(np.float64)
        elapsed_s_U = watch_s_UK.sum(axis=1, dtype=np.float64)
        logout_s_U = state.time_s_U + elapsed_s_U
        features_UX = visit_features(behaviours_UKB, watch_s_UK, examined_UK, logout_s_U, habits_U3)
        residual_U = quantile(numbers.gap_HQ[hour_bin(logout_s_U)], gap_U)
        log_gap_U = np.clip(linear(features_UX, numbers.gap_X) + residual_U, 0, np.log(numbers.gap_max_s[0]))
        response = Response(
            behaviours_UKB=behaviours_UKB,
            watch_s_UK=watch_s_UK,
            examined_UK=examined_UK,
            elapsed_s_U=elapsed_s_U.astype(np.float32),
            left_U=np.asarray(~examined_UK.all(axis=1)),
            return_gap_s_U=np.maximum(np.exp(log_gap_U), MIN_GAP_S).astype(np.float32),
            churned_U=churn_U < sigmoid(linear(features_UX, numbers.churn_X)),
        )
        history = state.history().after(state.time_s_U, slates_UK, response, self.catalog.duration_s_I)
        passed_s_U = response.elapsed_s_U.astype(np.float64) + response.return_gap_s_U
        return response, replace(
            state, **vars(history), visit_U=state.visit_U + 1, time_s_U=state.time_s_U + passed_s_U
        )

    def save(self, folder: Path | str) -> None:
        """Write the simulator: ``simulator.json``, its numbers, its catalogue and the ranker.

        Raises:
            ValueError: the ranker cannot be saved.
        """
        folder = Path(folder)
        if not hasattr(self.ranker, "save_pretrained"):
            raise ValueError(f"{type(self.ranker).__name__} has no save_pretrained(); give a model that can be saved.")
        self.ranker.save_pretrained(folder / RANKER)
        write_catalog(self.catalog, folder / "catalog.parquet")
        tensors = {f"numbers.{name}": column for name, column in vars(self.numbers).items()}
        tensors |= {f"donors.{name}": column for name, column in vars(self.donors).items()}
        tensors["exposures_I"] = self.exposures_I
        with replacing(folder / NUMBERS) as temporary:
            save_file({name: np.ascontiguousarray(column) for name, column in tensors.items()}, temporary)
        kind = type(self.ranker)
        facts = {
            "ranker": f"{kind.__module__}:{kind.__qualname__}",
            "profile_names": self.profile_names,
            "profile_sizes": self.profile_sizes,
        }
        with replacing(folder / FILE) as temporary:  # last: a folder with it is complete
            temporary.write_text(json.dumps(facts, indent=1))

    @classmethod
    def load(cls, folder: Path | str, *, ranker: Any = None, trust: bool = False) -> Self:
        """Read a simulator back.

        Args:
            folder: folder that :meth:`save` wrote.
            ranker: the class of its ranker; the one named in the folder if None.
            trust: import the named class even if it is not feedgym's (:mod:`feedgym.trust`).

        Raises:
            ValueError: the folder holds none, or a damaged one, or names a class that is not trusted.
        """
        folder = Path(folder)
        check_product(folder)
        folder = product_of(folder)
        try:
            facts = json.loads((folder / FILE).read_text())
            ranker = ranker or _ranker_class(facts["ranker"], folder / FILE, trust)
            tensors = load_file(folder / NUMBERS)
            return cls(
                ranker.load(folder / RANKER),
                read_catalog(folder / "catalog.parquet"),
                tuple(facts["profile_names"]),
                tuple(facts["profile_sizes"]),
                FittedNumbers(**{f.name: tensors[f"numbers.{f.name}"] for f in fields(FittedNumbers)}),
                LearnedState(**{f.name: tensors[f"donors.{f.name}"] for f in fields(LearnedState)}),
                tensors["exposures_I"],
            )
        except (OSError, KeyError, json.JSONDecodeError, SafetensorError) as error:
            raise ValueError(
                f"{folder} holds no learned simulator ({error}); fit one with feedgym run learned-simulator."
            ) from error


def ranker_named(folder: Path) -> str | None:
    """The import path of the ranker that a simulator's folder names; None if it holds no simulator."""
    try:
        return str(json.loads((folder / FILE).read_text())["ranker"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ranker_class(path: str, source: Path, trust: bool) -> Any:
    """The class of a ranker that a file names.

    Raises:
        ValueError: it is not trusted, or is not a ranker.
    """
    check_named("ranker", path, source, trust=trust)
    kind = load(path)
    if not (isinstance(kind, type) and all(callable(getattr(kind, name, None)) for name in ("load", "predict"))):
        raise ValueError(f"{source} names {path!r} as its ranker, which is not a class with load() and predict().")
    return kind

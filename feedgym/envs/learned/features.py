"""Inputs of the models of :class:`feedgym.envs.learned.LearnedSimulator`, for fitting and for responses.

A request is a slate with the ranker's predictions for it. There are also features of the slate, of the visit so far and
of the user's habits. They are the same to the bit whichever other users are in the batch.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` the ranker's tasks, ``X`` features of a regression, ``Q``
evenly spaced quantiles, ``k`` the positions up to k.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, BoolArray, Catalog, FloatArray, IntArray

CLICK, LONG_VIEW = BEHAVIOUR_IDX["click"], BEHAVIOUR_IDX["long_view"]
BLOCK_USERS = 64
"""Users per call of the ranker, including the artificial one."""
VISIT_GAP_S = 1800.0
"""A longer pause in a history ends a visit."""
HOUR_BINS = 8
"""Number of parts of the day with separate return gaps."""
TYPICAL_GAP = float(np.log(12 * 3600.0))
"""Log seconds of the return gap of an unknown user; the regressions shift it."""


class Prediction(Protocol):
    """Predictions of a ranker: ``prob_UKM`` [U, K, M] for the M tasks, ``watch_fraction_UK`` [U, K] or None."""

    @property
    def prob_UKM(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def watch_fraction_UK(self) -> torch.Tensor | None: ...  # noqa: D102


class ResponseModel(Protocol):
    """Interface of a ranker for the simulator: ``config.tasks`` names the behaviours it predicts."""

    config: Any

    def predict(self, histories: EventBatch, item_ids_UK: torch.Tensor, mask_UK: Any = None) -> Prediction:
        """Predictions for K candidates, all at the request and independent of each other."""
        ...


@dataclass(frozen=True, eq=False)
class ItemColumns:
    """Columns of the catalogue that the features use."""

    direction_IE: FloatArray
    topic_I: IntArray
    duration_s_I: FloatArray

    @classmethod
    def of(cls, catalog: Catalog) -> ItemColumns:
        """Make the columns of a catalogue, with contents as unit vectors."""
        norm_I1 = np.linalg.norm(catalog.content_IE, axis=1, keepdims=True)
        direction_IE = catalog.content_IE / np.maximum(norm_I1, np.float32(1e-12))
        return cls(direction_IE, catalog.topic_I, catalog.duration_s_I)


@dataclass(frozen=True, eq=False)
class Request:
    """A slate with everything known before the user responds.

    Attributes:
        logit_UKB: the ranker's logits; 0 for behaviours it does not predict.
        fraction_UK: the predicted watch fraction; 0 without such a prediction.
        context_UKX: see :func:`context`.
        duration_s_UK: durations of the items.
        hour_U: hours of the day at the request.
    """

    logit_UKB: NDArray[np.float64]
    fraction_UK: NDArray[np.float64]
    context_UKX: NDArray[np.float64]
    duration_s_UK: NDArray[np.float64]
    hour_U: NDArray[np.float64]

    @classmethod
    def of(cls, ranker: ResponseModel, items: ItemColumns, histories: EventBatch, slates_UK: IntArray) -> Request:
        """Run the ranker once for all positions."""
        prob_UKM, fraction_UK = _predicted(ranker, histories, slates_UK)
        logit_UKB = np.zeros((*slates_UK.shape, len(BEHAVIOURS)))
        for m, name in enumerate(ranker.config.tasks):
            prob_UK = np.clip(prob_UKM[:, :, m], 1e-6, 1 - 1e-6)
            logit_UKB[:, :, BEHAVIOUR_IDX[name]] = np.log(prob_UK) - np.log1p(-prob_UK)
        return cls(
            logit_UKB=logit_UKB,
            fraction_UK=fraction_UK,
            context_UKX=context(items, histories, slates_UK),
            duration_s_UK=items.duration_s_I[slates_UK].astype(np.float64),
            hour_U=histories.time_of_day_U.double().numpy(),
        )

    def rows(self, idx: NDArray) -> Request:
        """Some of the users."""
        return Request(**{f.name: getattr(self, f.name)[idx] for f in fields(self)})


def _predicted(
    ranker: ResponseModel, histories: EventBatch, slates_UK: IntArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ranker's probabilities [U, K, M] and watch fractions [U, K] (0 where it predicts none), in even blocks.

    Every block holds an artificial user with a full history, so that a ranker that trims its input trims all equally.
    """
    items_UK = torch.from_numpy(np.ascontiguousarray(slates_UK, np.int64))
    made_up = {name: torch.zeros_like(column[:1]) for name, column in vars(histories).items() if column is not None}
    filler = EventBatch(**made_up | {"mask_UT": torch.ones_like(histories.mask_UT[:1])})
    prob, fraction = [], []
    for low in range(0, len(items_UK), BLOCK_USERS - 1):
        users = slice(low, low + BLOCK_USERS - 1)
        more = torch.zeros(BLOCK_USERS - len(items_UK[users]), dtype=torch.int64)
        block = EventBatch.cat([histories.rows(users), filler.rows(more)])
        predicted = ranker.predict(
            block, torch.cat([items_UK[users], torch.zeros(len(more), items_UK.shape[1]).long()])
        )
        kept = slice(len(items_UK[users]))
        prob.append(predicted.prob_UKM[kept].double().cpu().numpy())
        watch_UK = predicted.watch_fraction_UK
        fraction.append(np.zeros(items_UK[users].shape) if watch_UK is None else watch_UK[kept].double().cpu().numpy())
    return np.concatenate(prob), np.concatenate(fraction)


def context(items: ItemColumns, histories: EventBatch, slates_UK: IntArray) -> NDArray[np.float64]:
    """Context of each item in a slate, [U, K, 5]; a user who reaches an item has examined all before it.

    It consists of the place (log1p) and of how much the item is like those before it. That is the number of earlier
    items with its topic, and the cosine of its content with the sum of those items' contents. A flag marks items that
    the history or the slate showed before. The last feature is the log duration over 32 s.
    """
    length = slates_UK.shape[1]
    earlier_KK = np.tri(length, k=-1, dtype=bool)
    topic_UK = items.topic_I[slates_UK]
    same_UKK = (topic_UK[:, :, None] == topic_UK[:, None]) & (topic_UK >= 0)[:, :, None] & earlier_KK
    direction_UKE = items.direction_IE[slates_UK]
    before_UKE = np.cumsum(direction_UKE, axis=1) - direction_UKE
    norm_UK = np.sqrt(np.vecdot(before_UKE, before_UKE))
    cosine_UK = np.vecdot(direction_UKE, before_UKE) / np.maximum(norm_UK, 1e-6)
    cosine_UK[:, 0] = 0
    shown_UT = np.where(histories.mask_UT.numpy(), histories.item_ids_UT.numpy(), -1)
    seen_UK = (slates_UK[:, :, None] == shown_UT[:, None]).any(axis=2)
    seen_UK |= ((slates_UK[:, :, None] == slates_UK[:, None]) & earlier_KK).any(axis=2)
    place_UK = np.broadcast_to(np.log1p(np.arange(length)), slates_UK.shape)
    duration_UK = np.log(items.duration_s_I[slates_UK].astype(np.float64) / 32)
    return np.stack([place_UK, same_UKK.sum(axis=2), cosine_UK, seen_UK, duration_UK], axis=2).astype(np.float64)


def surplus(clicks: NDArray[np.float64], expected: NDArray[np.float64], k: int | NDArray) -> NDArray[np.float64]:
    """The user's mood: clicks before position k beyond the expected ones, over their standard deviation by chance."""
    return (clicks - expected) / np.sqrt(k + 1.0)


def habits(histories: EventBatch) -> NDArray[np.float64]:
    """Users' habits in their history, [U, 3]: log items per visit, mean log gap, log1p of visits seen.

    A pause of more than half an hour ends a visit; both means are shrunk towards a typical user's by one visit.
    """
    gap_s_UT = histories.gap_s_UT.double().numpy()
    ends_UT = histories.mask_UT.numpy() & (gap_s_UT > VISIT_GAP_S)
    visits_U = ends_UT.sum(axis=1)
    log_gap_U = np.where(ends_UT, np.log(np.maximum(gap_s_UT, 1)), 0).sum(axis=1)
    events_U = histories.mask_UT.numpy().sum(axis=1)
    return np.stack(
        [np.log((events_U + 5) / (visits_U + 1)), (log_gap_U + TYPICAL_GAP) / (visits_U + 1), np.log1p(visits_U)],
        axis=1,
    )


def leave_features(
    request: Request,
    k: int,
    did_UB: NDArray,
    watch_s_Uk: FloatArray,
    surplus_U: NDArray[np.float64],
    prob_UB: NDArray[np.float64],
    habits_U3: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Features for leaving after position k, [U, X]; ``watch_s_Uk`` runs up to and including it."""
    spent_s_U = watch_s_Uk.sum(axis=1, dtype=np.float64)
    logit_U = np.log(prob_UB[:, CLICK]) - np.log1p(-prob_UB[:, CLICK])
    columns = [
        np.full(len(did_UB), np.log1p(k)),
        np.log1p(spent_s_U),
        spent_s_U / 300,
        np.log1p(watch_s_Uk[:, -1].astype(np.float64)),
        did_UB[:, CLICK],
        did_UB[:, LONG_VIEW],
        did_UB[:, CLICK] * logit_U,
        logit_U,
        surplus_U,
        request.context_UKX[:, k, 1],
        request.context_UKX[:, k, 3],
        *_around_the_clock(request.hour_U),
    ]
    return np.concatenate([np.stack(columns, axis=1).astype(np.float64), habits_U3], axis=1)


def visit_features(
    behaviours_UKB: NDArray[np.uint8],
    watch_s_UK: FloatArray,
    examined_UK: BoolArray,
    logout_s_U: NDArray[np.float64],
    habits_U3: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Features for the user's return and churn, [U, X]."""
    items_U = np.maximum(examined_UK.sum(axis=1), 1)
    seconds_U = watch_s_UK.sum(axis=1, dtype=np.float64)
    clicks_U, long_U = (behaviours_UKB[:, :, b].sum(axis=1, dtype=np.float64) for b in (CLICK, LONG_VIEW))
    liked_U = behaviours_UKB[:, :, 2:-1].max(axis=2).sum(axis=1, dtype=np.float64)
    hated_U = behaviours_UKB[:, :, -1].sum(axis=1, dtype=np.float64)
    columns = [
        np.log1p(seconds_U),
        np.log(items_U),
        clicks_U / items_U,
        long_U / items_U,
        liked_U,
        hated_U,
        *_around_the_clock(np.mod(logout_s_U, 86_400.0) / 3600),
    ]
    return np.concatenate([np.stack(columns, axis=1), habits_U3], axis=1)


def _around_the_clock(hour_U: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    angle_U = hour_U * (2 * np.pi / 24)
    return [np.sin(angle_U), np.cos(angle_U)]


def hour_bin(time_s_U: NDArray[np.float64]) -> NDArray[np.int64]:
    """Part of the day of a time, 0..HOUR_BINS-1."""
    return np.minimum(np.mod(time_s_U, 86_400.0) * (HOUR_BINS / 86_400.0), HOUR_BINS - 1).astype(np.int64)


def quantile(quantiles_UQ: NDArray[np.float64], uniform_U: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draws from distributions given by evenly spaced quantiles, linear in between."""
    place_U = uniform_U * (quantiles_UQ.shape[1] - 1)
    low_U = place_U.astype(np.int64)
    low = np.take_along_axis(quantiles_UQ, low_U[:, None], axis=1)[:, 0]
    high = np.take_along_axis(quantiles_UQ, np.minimum(low_U + 1, quantiles_UQ.shape[1] - 1)[:, None], axis=1)[:, 0]
    return low + (high - low) * (place_U - low_U)


def linear(features_UX: NDArray[np.float64], weight_X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted sums of features, with the bias last; the same to the bit in every batch."""
    return np.vecdot(features_UX, weight_X[:-1]) + weight_X[-1]


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function."""
    return 1 / (1 + np.exp(-x))

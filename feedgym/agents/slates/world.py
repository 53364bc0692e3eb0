"""The items and lengths that slate networks are built for, and the observations they read, as dictionaries or flat.

Axes beyond the legend of :mod:`feedgym.data.events`: ``X`` numbers of a flat observation. ``F`` counts item features in
``features_IF``, else profile fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from feedgym.data.batches import DatedEventBatch, EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog, FloatArray
from feedgym.envs.features import item_points

PER_EVENT = ("history_items", "history_watch_fraction", "history_gap_s", "history_mask")
MAX_TOPICS = 128
"""Most topic tags for which they become one-hot features of the items."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlateWorld:
    """Items and lengths that the networks are built for.

    Attributes:
        features_IF: float32, features of the items, each column a flag or with mean 0 and deviation 1.
        points_IE: float32, the items' points for :class:`ProtoPolicy`.
        profile_sizes: cardinalities of the profile fields.
        session_length: K.
        history_length: T.
        upload_s_I: float64, upload time of each item, if items come and go and observations hold the time; else None.
        withdraw_s_I: float64, withdrawal time of each item, infinite where it stays; None in the same cases.
    """

    features_IF: FloatArray
    points_IE: FloatArray
    profile_sizes: tuple[int, ...]
    session_length: int
    history_length: int
    upload_s_I: NDArray[np.float64] | None = None
    withdraw_s_I: NDArray[np.float64] | None = None

    @classmethod
    def of(
        cls,
        catalog: Catalog,
        profile_sizes: tuple[int, ...],
        session_length: int,
        history_length: int,
        axes: int = 20,
        *,
        dated: bool = False,
    ) -> SlateWorld:
        """Make the world of a catalogue; points have ``axes`` principal components, or as many as exist.

        If it is ``dated``, only items that exist at a request by the catalogue's times are served.
        """
        if session_length > catalog.num_items:
            raise ValueError(
                f"Sessions of {session_length} different items need more than the catalogue's {catalog.num_items}; "
                "lower session_length."
            )
        return cls(
            features_IF=item_features(catalog),
            points_IE=item_points(catalog, proto_axes(catalog, axes)).astype(np.float32),
            profile_sizes=tuple(int(size) for size in profile_sizes),
            session_length=session_length,
            history_length=history_length,
            upload_s_I=catalog.upload_s_I if dated else None,
            withdraw_s_I=_withdrawals(catalog) if dated else None,
        )

    @property
    def dated(self) -> bool:
        """True if items come and go and observations hold the time."""
        return self.upload_s_I is not None

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.features_IF)


def _withdrawals(catalog: Catalog) -> NDArray[np.float64]:
    return np.full(catalog.num_items, np.inf) if catalog.withdraw_s_I is None else catalog.withdraw_s_I


def proto_axes(catalog: Catalog, most: int) -> int:
    """Number of principal components of the content in points, at most ``most``.

    Components without variation do not count: scaled up, their rounding errors would separate items.
    """
    content_IE = catalog.content_IE - catalog.content_IE.mean(axis=0, dtype=np.float64)
    return max(1, min(most, int(np.linalg.matrix_rank(content_IE))))


def item_features(catalog: Catalog) -> FloatArray:
    """Content, log duration and, if there are few topics, the topic tag of every item: float32 [I, F]."""
    numbers = np.column_stack([catalog.content_IE, np.log(catalog.duration_s_I)])
    spread_F = numbers.std(axis=0)
    numbers = (numbers - numbers.mean(axis=0)) / np.where(spread_F > 1e-6, spread_F, 1)
    if 1 < catalog.num_topics <= MAX_TOPICS:
        flags = catalog.topic_I[:, None] == np.arange(catalog.num_topics)
        numbers = np.column_stack([numbers, flags])
    return numbers.astype(np.float32)


# ---------------------------------------------------------------- observations


def flat_observation(observation: Mapping[str, NDArray]) -> FloatArray:
    """Observations of U users as one vector each, float32 [U, 11 T + F + 1]; ids below 2^24 stay exact.

    If they hold the time, it follows as the sum of two float32, exact to a microsecond for 300 years. A single one
    would be a second off after 200 days. The K places of a session under construction
    (:class:`feedgym.envs.wrappers.ItemByItem`) are at the end.
    """
    columns = [observation[name] for name in PER_EVENT]
    columns += [observation["history_behaviours"].reshape(len(columns[0]), -1), observation["profile"]]
    columns.append(observation["time_of_day"])
    columns += [split_times(observation["time_s"][:, 0])] if "time_s" in observation else []
    columns += [observation["slate"]] if "slate" in observation else []
    return np.concatenate(columns, axis=1).astype(np.float32)


def split_times(time_s_U: NDArray[np.float64]) -> FloatArray:
    """Splits each time into two float32 that sum to it, [U, 2]."""
    high_U = time_s_U.astype(np.float32)
    return np.stack([high_U, (time_s_U - high_U).astype(np.float32)], axis=1)


def read_histories(
    observation: Tensor | Mapping[str, Tensor], history_length: int, *, dated: bool = False
) -> EventBatch:
    """Turns batched observations, flat or as the environment gives them, into histories.

    Args:
        observation: of U users.
        history_length: T.
        dated: flat observations hold the time; for others it is detected.
    """
    if isinstance(observation, Tensor):
        observation = _unflat(observation, history_length, dated)
    histories = EventBatch(
        item_ids_UT=observation["history_items"].long(),
        behaviours_UTB=observation["history_behaviours"].float(),
        watch_fraction_UT=observation["history_watch_fraction"].float(),
        gap_s_UT=observation["history_gap_s"].float(),
        mask_UT=observation["history_mask"] > 0.5,
        profile_UF=observation["profile"].long(),
        time_of_day_U=observation["time_of_day"].float()[:, 0],
    )
    if "time_s" not in observation:
        return histories
    return DatedEventBatch(**vars(histories), time_s_U=observation["time_s"].double().reshape(-1))


def _unflat(flat_UX: Tensor, length: int, dated: bool) -> dict[str, Tensor]:
    per_event, after = (len(PER_EVENT) + len(BEHAVIOURS)) * length, [1, 2] if dated else [1]
    num_fields = flat_UX.shape[1] - per_event - sum(after)
    sizes = [length] * len(PER_EVENT) + [len(BEHAVIOURS) * length, num_fields, *after]
    names = (*PER_EVENT, "history_behaviours", "profile", "time_of_day", "time_s")[: len(sizes)]
    parts = dict(zip(names, flat_UX.split(sizes, dim=1), strict=True))
    parts["history_behaviours"] = parts["history_behaviours"].reshape(len(flat_UX), length, len(BEHAVIOURS))
    if dated:
        parts["time_s"] = parts["time_s"].double().sum(dim=1)
    return parts

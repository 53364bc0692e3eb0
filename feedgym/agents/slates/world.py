"""What slate networks are built for, and the observations that they read: whole, or flat as buffers keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog, FloatArray
from feedgym.envs.features import item_points

PER_EVENT = ("history_items", "history_watch_fraction", "history_gap_s", "history_mask")
MAX_TOPICS = 128
"""Topic tags become one-hot features of the items up to so many."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlateWorld:
    """What the networks are built for.

    Attributes:
        features_IF: float32, what is known of the items, each column of mean 0 and deviation 1 or a flag.
        points_IE: float32, where the items lie for :class:`ProtoPolicy`.
        profile_sizes: cardinalities of the profile fields.
        session_length: K.
        history_length: T.
    """

    features_IF: FloatArray
    points_IE: FloatArray
    profile_sizes: tuple[int, ...]
    session_length: int
    history_length: int

    @classmethod
    def of(
        cls, catalog: Catalog, profile_sizes: tuple[int, ...], session_length: int, history_length: int, axes: int = 20
    ) -> SlateWorld:
        """The world of a catalogue; points have ``axes`` principal components, or as many as there are."""
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
        )

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.features_IF)


def proto_axes(catalog: Catalog, most: int) -> int:
    """Principal components of the content that points have, at most so many.

    Those along which nothing varies are none: scaled up, their rounding errors would tell items apart.
    """
    content_IE = catalog.content_IE - catalog.content_IE.mean(axis=0, dtype=np.float64)
    return max(1, min(most, int(np.linalg.matrix_rank(content_IE))))


def item_features(catalog: Catalog) -> FloatArray:
    """Content, log duration and, where topics are few, the topic tag of every item: float32 [I, F]."""
    numbers = np.column_stack([catalog.content_IE, np.log(catalog.duration_s_I)])
    spread_F = numbers.std(axis=0)
    numbers = (numbers - numbers.mean(axis=0)) / np.where(spread_F > 1e-6, spread_F, 1)
    if 1 < catalog.num_topics <= MAX_TOPICS:
        flags = catalog.topic_I[:, None] == np.arange(catalog.num_topics)
        numbers = np.column_stack([numbers, flags])
    return numbers.astype(np.float32)


# ---------------------------------------------------------------- observations


def flat_observation(observation: Mapping[str, NDArray]) -> FloatArray:
    """Observations of U users as one vector each, float32 [U, 11 T + F + 1]; ids below 2^24 keep their value.

    The K places of a session under construction (:class:`feedgym.envs.wrappers.ItemByItem`) are at the end.
    """
    columns = [observation[name] for name in PER_EVENT]
    columns += [observation["history_behaviours"].reshape(len(columns[0]), -1), observation["profile"]]
    columns.append(observation["time_of_day"])
    columns += [observation["slate"]] if "slate" in observation else []
    return np.concatenate(columns, axis=1).astype(np.float32)


def read_histories(observation: Tensor | Mapping[str, Tensor], history_length: int) -> EventBatch:
    """Batched observations, as the environment gives them or flat, as histories."""
    if isinstance(observation, Tensor):
        observation = _unflat(observation, history_length)
    return EventBatch(
        item_ids_UT=observation["history_items"].long(),
        behaviours_UTB=observation["history_behaviours"].float(),
        watch_fraction_UT=observation["history_watch_fraction"].float(),
        gap_s_UT=observation["history_gap_s"].float(),
        mask_UT=observation["history_mask"] > 0.5,
        profile_UF=observation["profile"].long(),
        time_of_day_U=observation["time_of_day"].float()[:, 0],
    )


def _unflat(flat_UX: Tensor, length: int) -> dict[str, Tensor]:
    per_event = (len(PER_EVENT) + len(BEHAVIOURS)) * length
    sizes = [length] * len(PER_EVENT) + [len(BEHAVIOURS) * length, flat_UX.shape[1] - per_event - 1, 1]
    names = (*PER_EVENT, "history_behaviours", "profile", "time_of_day")
    parts = dict(zip(names, flat_UX.split(sizes, dim=1), strict=True))
    parts["history_behaviours"] = parts["history_behaviours"].reshape(len(flat_UX), length, len(BEHAVIOURS))
    return parts

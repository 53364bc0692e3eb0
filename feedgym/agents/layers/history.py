"""Turns a batch of histories into the token vectors that a sequence model reads."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedgym.data.batches import PER_EVENT, EventBatch

LOG_SECONDS_SCALE = 0.1
"""Scale of log1p(seconds), which is about 18 for two years, so that time features stay within a few units."""


def ages_s(histories: EventBatch) -> Tensor:
    """Seconds from each event to the request, [U, T]: the gaps summed from the end; 0 where padded."""
    gaps_UT = histories.gap_s_UT.masked_fill(~histories.mask_UT, 0.0)
    return gaps_UT.flip(1).cumsum(1).flip(1).masked_fill(~histories.mask_UT, 0.0)


def newest_events(histories: EventBatch, keep_UT: Tensor, limit: int) -> EventBatch:
    """The newest ``limit`` events among those to keep, as histories; gaps run from one kept event to the next.

    Args:
        histories: U users.
        keep_UT: bool, false where padded.
        limit: most events of a user.
    """
    keep_UT = keep_UT & (keep_UT.flip(1).cumsum(1).flip(1) <= limit)
    num = max(1, int(keep_UT.sum(1).max()))
    order_UT = (~keep_UT).int().argsort(dim=1, stable=True)[:, :num]
    mask_UT = keep_UT.gather(1, order_UT)

    def moved(column: Tensor) -> Tensor:
        index = order_UT.view(*order_UT.shape, *[1] * (column.ndim - 2)).expand(-1, -1, *column.shape[2:])
        return column.gather(1, index).masked_fill(~mask_UT.view(*index.shape[:2], *[1] * (column.ndim - 2)), 0)

    age_s_UT = moved(ages_s(histories))
    return replace(
        histories,
        **{name: moved(getattr(histories, name)) for name in PER_EVENT if name not in ("mask_UT", "gap_s_UT")},
        gap_s_UT=age_s_UT - F.pad(age_s_UT[:, 1:], (0, 1)),
        mask_UT=mask_UT,
    )


class EventFeatures(nn.Module):
    """Embeds everything about an event except the item, as a vector that is added to the item's tokens.

    Behaviours, the fraction watched, log gap and log age pass through a small network. The event's recency rank (0 is
    the newest) has a learned embedding. Neither depends on padding.

    Args:
        d_model: D.
        num_behaviours: B.
        history_length: the longest history, T.
    """

    def __init__(self, d_model: int, num_behaviours: int, history_length: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(num_behaviours + 3, d_model), nn.SiLU(), nn.Linear(d_model, d_model))
        self.recency = nn.Embedding(history_length, d_model)

    def forward(self, histories: EventBatch) -> Tensor:
        """Vectors [U, T, D]; finite and independent of the content of padding."""
        mask_UT = histories.mask_UT
        limit = self.recency.num_embeddings
        if mask_UT.shape[1] > limit:
            raise ValueError(
                f"Histories of {mask_UT.shape[1]} events exceed the model's history_length={limit}; "
                "keep the newest events or build the model with a larger history_length."
            )
        gap_age_UT2 = torch.stack([histories.gap_s_UT.masked_fill(~mask_UT, 0.0), ages_s(histories)], dim=-1)
        columns = [histories.behaviours_UTB, histories.watch_fraction_UT[..., None]]
        columns.append(gap_age_UT2.clamp_min(0.0).log1p() * LOG_SECONDS_SCALE)
        features = torch.cat(columns, dim=-1).masked_fill(~mask_UT[..., None], 0.0)
        rank_UT = (mask_UT.long().flip(1).cumsum(1).flip(1) - 1).clamp_min(0)
        return self.features(features.to(self.recency.weight.dtype)) + self.recency(rank_UT)


class RequestTokens(nn.Module):
    """One token per profile field and one for the time of day; they are always present, even before the first event.

    Args:
        d_model: D.
        profile_sizes: cardinalities of the F profile fields.
    """

    def __init__(self, d_model: int, profile_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(size, d_model) for size in profile_sizes)
        self.time_of_day = nn.Linear(4, d_model)

    def forward(self, histories: EventBatch) -> Tensor:
        """Tokens [U, F + 1, D]."""
        angle_U = histories.time_of_day_U * (2 * math.pi / 24)
        waves = torch.stack([f(h * angle_U) for h in (1, 2) for f in (torch.sin, torch.cos)], dim=-1)
        tokens = [field(histories.profile_UF[:, f]) for f, field in enumerate(self.fields)]
        return torch.stack([*tokens, self.time_of_day(waves.to(self.time_of_day.weight.dtype))], dim=1)

"""Parts of slate networks: the encoder of histories, scores of items, and the wide part.

Axes beyond the legend of :mod:`feedgym.data.events`: ``H`` weighted means of the history, ``X`` numbers of an input or
features of items. ``S`` is the width of the state here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedgym.agents.layers.history import LOG_SECONDS_SCALE, ages_s
from feedgym.agents.slates.world import SlateWorld
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS
from feedgym.ranges import Few, Ranged, Width

EVENT_NUMBERS = len(BEHAVIOURS) + 4
"""Number of values from :func:`event_numbers`."""


@dataclass(frozen=True, kw_only=True)
class SlateNetConfig(Ranged):
    """Size of the networks."""

    width: Width = 32
    """Width of item and query vectors."""
    heads: Few = 4
    """Number of weighted means of the history."""
    hidden: Width = 64
    """Width of the hidden layers."""


class Wide(nn.Module):
    """Weights of the items' features from the profile and from the features of recent items; initially 0.

    They are a sum of two parts: a vector for each profile value, and the features of each event's item. The latter are
    weighted by a number that depends on the user's response and its time.

    Args:
        values_IX: values of the items' features.
        profile_sizes: cardinalities of the F fields.
        hidden: width of the layer between an event and its number.
    """

    values_IX: Tensor
    first_F: Tensor

    def __init__(self, values_IX: Tensor, profile_sizes: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        first_F = torch.tensor([0, *profile_sizes], dtype=torch.int64).cumsum(0)[:-1]
        self.register_buffer("values_IX", values_IX, persistent=False)
        self.register_buffer("first_F", first_F, persistent=False)
        self.profile = nn.Embedding(sum(profile_sizes), values_IX.shape[1])
        self.event = nn.Sequential(nn.Linear(EVENT_NUMBERS, hidden), nn.SiLU(), nn.Linear(hidden, 1))
        for parameter in (self.profile.weight, *self.event[2].parameters()):
            nn.init.zeros_(parameter)

    def forward(self, histories: EventBatch) -> Tensor:
        """Weights of the features [U, X]."""
        mask_UT = histories.mask_UT.float()
        weight_UT = self.event(event_numbers(histories))[..., 0] * mask_UT
        weight_UT = weight_UT / (1 + mask_UT.sum(1, keepdim=True)).sqrt()
        met_UTX = self.values_IX[histories.item_ids_UT.masked_fill(~histories.mask_UT, 0)]
        met_UX = (weight_UT[:, None] @ met_UTX)[:, 0]
        return self.profile(histories.profile_UF + self.first_F).sum(dim=1) + met_UX


def event_numbers(histories: EventBatch) -> Tensor:
    """Users' responses to the items they met, and their times, [U, T, X]; 0 where padded."""
    mask_UT = histories.mask_UT.float()
    rank_UT = mask_UT.flip(1).cumsum(1).flip(1) - 1  # 0 is the newest event
    times_UT2 = torch.stack([histories.gap_s_UT.clamp_min(0), ages_s(histories)], dim=-1).log1p()
    columns = [histories.behaviours_UTB, histories.watch_fraction_UT[..., None], times_UT2 * LOG_SECONDS_SCALE]
    columns.append(rank_UT.clamp_min(0).log1p()[..., None])
    return torch.cat(columns, dim=-1) * mask_UT[..., None]


class HistoryEncoder(nn.Module):
    """Encodes histories as states: means of the items' vectors, weighted by the user's responses and their times.

    The weights may be negative, for items that the user disliked or is tired of. Padding changes nothing.

    Args:
        world: items and lengths.
        config: sizes.

    Attributes:
        width: S, width of the state.
    """

    features_IF: Tensor

    def __init__(self, world: SlateWorld, config: SlateNetConfig) -> None:
        super().__init__()
        self.register_buffer("features_IF", torch.from_numpy(world.features_IF), persistent=False)
        self.heads = config.heads
        self.weights = nn.Sequential(
            nn.Linear(EVENT_NUMBERS, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.heads)
        )
        self.item = nn.Linear(world.features_IF.shape[1], config.width)
        self.profile = nn.ModuleList(nn.Embedding(size, 8) for size in world.profile_sizes)
        mixed_width = config.heads * config.width + EVENT_NUMBERS + 8 * len(world.profile_sizes) + 2
        self.mix = nn.Sequential(nn.Linear(mixed_width, config.hidden), nn.SiLU(), nn.LayerNorm(config.hidden))
        self.width = config.hidden + config.heads * config.width

    def forward(self, histories: EventBatch) -> Tensor:
        """States [U, S]."""
        mask_UT = histories.mask_UT.float()
        event_UTX = event_numbers(histories)
        weight_UTH = self.weights(event_UTX) * mask_UT[..., None]
        ids_UT = histories.item_ids_UT.masked_fill(~histories.mask_UT, 0)
        item_UTD = F.embedding(ids_UT, self.item(self.features_IF))  # its gradient is far cheaper than that of indexing
        pooled_UHD = weight_UTH.transpose(1, 2) @ item_UTD / (1 + weight_UTH.abs().sum(1)[..., None])
        pooled_UX = pooled_UHD.flatten(1)
        mean_UX = event_UTX.sum(1) / (1 + mask_UT.sum(1, keepdim=True))
        angle_U = histories.time_of_day_U * (2 * math.pi / 24)
        profile = [field(histories.profile_UF[:, f]) for f, field in enumerate(self.profile)]
        mixed = [pooled_UX, mean_UX, *profile, angle_U.sin()[:, None], angle_U.cos()[:, None]]
        return torch.cat([self.mix(torch.cat(mixed, dim=1)), pooled_UX], dim=1)


class ItemScores(nn.Module):
    """Scores of all items from a state, in two steps, so that RLlib stores little per step.

    The first step gives a query, the weights of the items' features, and the ids of the history. The second gives the
    scores: the query times item vectors, the weights times the features, an item's bias, and a penalty for repetition.

    Args:
        world: items and lengths.
        config: sizes.
        state_width: S.
    """

    features_IF: Tensor
    unit_IF: Tensor

    def __init__(self, world: SlateWorld, config: SlateNetConfig, state_width: int) -> None:
        super().__init__()
        self.register_buffer("features_IF", torch.from_numpy(world.features_IF), persistent=False)
        self.register_buffer("unit_IF", F.normalize(self.features_IF, dim=1), persistent=False)
        self.wide = Wide(self.unit_IF, world.profile_sizes, config.hidden)
        self.query = nn.Linear(state_width, config.width)
        self.item = nn.Linear(world.features_IF.shape[1], config.width)
        self.bias_I = nn.Parameter(torch.zeros(world.num_items))
        self.repeat = nn.Parameter(torch.zeros(()))
        self.scale = config.width**-0.5
        nn.init.normal_(self.query.weight, std=0.1 * state_width**-0.5)
        nn.init.zeros_(self.query.bias)

    def inputs(self, state_US: Tensor, histories: EventBatch) -> Tensor:
        """The query, the features' weights, and the history's ids (-1 where padded): float [U, D + F + T]."""
        ids_UT = histories.item_ids_UT.masked_fill(~histories.mask_UT, -1)
        return torch.cat([self.query(state_US), self.wide(histories), ids_UT.to(state_US.dtype)], dim=1)

    def forward(self, inputs_UX: Tensor) -> Tensor:
        """Scores [U, I] from the result of :meth:`inputs`."""
        deep, wide = self.query.out_features, self.unit_IF.shape[1]
        query_UD, wide_UF, ids_UT = inputs_UX.split([deep, wide, inputs_UX.shape[1] - deep - wide], dim=1)
        score_UI = query_UD @ self.item(self.features_IF).T * self.scale + wide_UF @ self.unit_IF.T + self.bias_I
        real_UT = (ids_UT >= 0).to(score_UI.dtype)
        return score_UI.scatter_add(1, ids_UT.clamp_min(0).long(), self.repeat * real_UT)

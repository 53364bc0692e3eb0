"""Actors and critics for continuous control: actions are points in content space, served as the nearest items.

Axes beyond the legend of :mod:`feedgym.data.events`: ``J`` points of an action, ``X`` numbers of an input.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from feedgym.agents.plackett_luce import NOWHERE
from feedgym.agents.slates.layers import HistoryEncoder, SlateNetConfig, Wide
from feedgym.agents.slates.policy import SlateNetwork
from feedgym.agents.slates.world import SlateWorld
from feedgym.data.batches import EventBatch
from feedgym.data.events import FloatArray
from feedgym.envs.features import nearest_items


class ProtoPolicy(SlateNetwork):
    """A squashed Gaussian over points in content space; the nearest items are served.

    Args:
        world: items and lengths.
        config: sizes.
        points: 1 to serve the K items nearest to one point, or K to serve the item nearest to each point.
        fresh: skip items in the history.
    """

    points_IE: Tensor

    def __init__(
        self,
        world: SlateWorld,
        config: SlateNetConfig,
        points: int = 1,
        fresh: bool = True,
    ) -> None:
        super().__init__(world, config, points=points, fresh=fresh)
        assert points in (1, world.session_length)
        self.register_buffer("points_IE", torch.from_numpy(world.points_IE), persistent=False)
        self.points, self.fresh = points, fresh
        self.head = ProtoHead(self.encoder.width, self.action_width)
        self.wide = Wide(self.points_IE, world.profile_sizes, config.hidden)

    @property
    def action_width(self) -> int:
        """Numbers in an action."""
        return self.points * int(self.points_IE.shape[1])

    def state(self, histories: EventBatch) -> Tensor:
        """Input [U, S + A] of :attr:`head`, which gives a Gaussian."""
        return torch.cat([self.encoder(histories), self.wide(histories).repeat(1, self.points)], dim=1)

    def proto(self, slates_NK: NDArray[np.integer]) -> FloatArray:
        """Actions [N, A] for given sessions: their items' points, or the mean of these."""
        points_NKE = self.points_IE.numpy()[slates_NK]
        return points_NKE.reshape(len(slates_NK), -1) if self.points > 1 else points_NKE.mean(axis=1)

    def items(self, action_UA: Tensor, length: int, histories: EventBatch) -> Tensor:
        """Sessions [U, length] of actions within [-1, 1].

        If few items exist, only the newest events of the history count: half of the items that a session leaves.
        """
        proto_UJE = action_UA.reshape(len(action_UA), self.points, -1).detach().numpy()
        proto_UKE = proto_UJE[:, np.minimum(np.arange(length), self.points - 1)]
        barred_UI = self._barred(histories, length)
        allowed = None if barred_UI is None else lambda users: ~barred_UI[users].numpy()
        return torch.from_numpy(nearest_items(self.points_IE.numpy(), proto_UKE, allowed))

    def served(self, action_UA: Tensor, histories: EventBatch) -> Tensor:
        """The actions of the served sessions, :meth:`proto` of :meth:`items`, [U, A].

        Users respond only to served items, so critics look at these instead of points between items. This step function
        has no gradient. It is replaced, straight through, by that of the items' points weighted by the softmax of their
        nearness (Jang et al., arXiv:1611.01144, section 2.2).
        """
        slates_UK = self.items(action_UA, self.length, histories)
        hard_UA = torch.from_numpy(self.proto(slates_UK.numpy())).to(action_UA.dtype)
        if not (torch.is_grad_enabled() and action_UA.requires_grad):
            return hard_UA
        proto_UJE = action_UA.reshape(len(action_UA), self.points, -1)
        near_UJI = 2 * proto_UJE @ self.points_IE.T - (self.points_IE**2).sum(dim=1)
        barred_UI = self._barred(histories, self.length)
        if barred_UI is not None:
            near_UJI = near_UJI.masked_fill(barred_UI[:, None], NOWHERE)
        soft_UA = (near_UJI.softmax(dim=-1) @ self.points_IE).flatten(1)
        return hard_UA + soft_UA - soft_UA.detach()

    def _barred(self, histories: EventBatch, length: int) -> Tensor | None:
        """Items that are skipped, bool [U, I]: those of the history, and those that do not exist."""
        exists_UI = self.exists(self.times(histories))
        if not self.fresh:
            return None if exists_UI is None else ~exists_UI
        left_U1 = self.num_items if exists_UI is None else exists_UI.sum(1, keepdim=True)
        rank_UT = histories.mask_UT.long().flip(1).cumsum(1).flip(1) - 1
        row, place = torch.nonzero(histories.mask_UT & (rank_UT < (left_U1 - length) // 2), as_tuple=True)
        taken_UI = torch.zeros((len(histories), self.num_items), dtype=torch.bool)
        taken_UI[row, histories.item_ids_UT[row, place]] = True
        return taken_UI if exists_UI is None else taken_UI | ~exists_UI

    def choose(self, histories: EventBatch, length: int, n: int, generator: torch.Generator | None):
        """Choose as in :meth:`SlateNetwork.choose`; sessions from points have no log-probability, NaN."""
        mean_UA, log_std_UA = self.head(self.state(histories)).chunk(2, dim=1)
        mean_USA = mean_UA[:, None].expand(-1, n, -1)
        if generator is not None:
            noise = torch.randn(mean_USA.shape, generator=generator)
            mean_USA = mean_USA + noise * log_std_UA[:, None].clamp(-20, 2).exp()
        rows = histories.rows(torch.arange(len(histories)).repeat_interleave(n))
        items_USK = self.items(mean_USA.flatten(0, 1).tanh(), length, rows).reshape(*mean_USA.shape[:2], length)
        return items_USK, torch.full(items_USK.shape[:2], torch.nan)


class ProtoHead(nn.Module):
    """Mean and log deviation [U, 2 A] from :meth:`ProtoPolicy.state`: a linear part plus the wide part."""

    def __init__(self, state_width: int, action_width: int) -> None:
        super().__init__()
        self.deep, self.action_width = nn.Linear(state_width, 2 * action_width), action_width
        nn.init.normal_(self.deep.weight, std=0.1 * state_width**-0.5)
        nn.init.zeros_(self.deep.bias)

    def forward(self, state_UX: Tensor) -> Tensor:
        """The Gaussians before they are squashed."""
        state_US, wide_UA = state_UX[:, : -self.action_width], state_UX[:, -self.action_width :]
        return self.deep(state_US) + F.pad(wide_UA, (0, self.action_width))


class ProtoCritic(nn.Module):
    """Inputs of Q(s, a) for points: the state from its own encoder, the action, and the wide part.

    Args:
        world: items and lengths.
        config: sizes.
        action_width: numbers in an action.
    """

    def __init__(self, world: SlateWorld, config: SlateNetConfig, action_width: int) -> None:
        super().__init__()
        self.encoder = HistoryEncoder(world, config)
        self.wide = Wide(torch.from_numpy(world.points_IE), world.profile_sizes, config.hidden)
        self.width = self.encoder.width + action_width

    def forward(self, histories: EventBatch, action_UA: Tensor) -> Tensor:
        """Inputs of :class:`CriticHead`: state, action, and the wide part's weights times the action."""
        weight_UE = self.wide(histories)
        points = action_UA.shape[1] // weight_UE.shape[1]
        wide_U1 = (weight_UE.repeat(1, points) * action_UA).sum(dim=1, keepdim=True)
        return torch.cat([self.encoder(histories), action_UA, wide_U1], dim=1)


class CriticHead(nn.Module):
    """Values [U, 1] from the result of :class:`ProtoCritic`."""

    def __init__(self, joined_width: int, hidden: int) -> None:
        super().__init__()
        self.deep = nn.Sequential(
            nn.Linear(joined_width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )

    def forward(self, joined_UX: Tensor) -> Tensor:
        """The deep part's value plus the last column, which is the wide part's value."""
        return self.deep(joined_UX[:, :-1]) + joined_UX[:, -1:]

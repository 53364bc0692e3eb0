"""Common part of slate networks, and a Plackett-Luce policy.

Axes beyond the legend of :mod:`feedgym.data.events`: ``X`` numbers of an input. ``S`` is the width of the state in
``state_US``, else samples per user.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from feedgym.agents.plackett_luce import NOWHERE, PlackettLuce
from feedgym.agents.requests import require_items
from feedgym.agents.slates.layers import HistoryEncoder, ItemScores, SlateNetConfig
from feedgym.agents.slates.world import SlateWorld, read_histories
from feedgym.data.batches import DatedEventBatch, EventBatch


class SlateNetwork(nn.Module):
    """Common part of the networks: chooses sessions for histories, of existing items if the world is dated.

    Args:
        world: items and lengths.
        config: sizes.
        **more: further arguments of a kind of network.
    """

    upload_s_I: Tensor
    withdraw_s_I: Tensor

    def __init__(self, world: SlateWorld, config: SlateNetConfig, **more: Any) -> None:
        super().__init__()
        self.world, self.sizes, self.more = world, config, more
        self.length, self.history_length, self.num_items = world.session_length, world.history_length, world.num_items
        self.encoder = HistoryEncoder(world, config)
        if world.upload_s_I is not None and world.withdraw_s_I is not None:
            self.register_buffer("upload_s_I", torch.from_numpy(world.upload_s_I), persistent=False)
            self.register_buffer("withdraw_s_I", torch.from_numpy(world.withdraw_s_I), persistent=False)

    def read(self, observation: Any) -> EventBatch:
        """The histories in an environment's batched observation, flat or not."""
        return read_histories(observation, self.history_length, dated=self.world.dated)

    def times(self, histories: EventBatch) -> Tensor:
        """Times of the requests for :meth:`exists`: nothing, [U, 0], if items do not come and go.

        Otherwise the two parts of :func:`~feedgym.agents.slates.world.split_times`, [U, 2]; NaN if unknown.
        """
        if not self.world.dated:
            return histories.time_of_day_U.new_empty(len(histories), 0)
        if not isinstance(histories, DatedEventBatch):
            return histories.time_of_day_U.new_full((len(histories), 2), torch.nan)
        high_U = histories.time_s_U.float()
        return torch.stack([high_U, (histories.time_s_U - high_U.double()).float()], dim=1)

    def exists(self, times_UX: Tensor) -> Tensor | None:
        """Items that can be served at the times from :meth:`times`, bool [U, I]; None if items do not come and go.

        All items are allowed if fewer than K exist. In training this happens only after the user's last visit, or the
        feed raises an error.
        """
        exists_UI = self._exists(times_UX)
        return None if exists_UI is None else exists_UI | (exists_UI.sum(1, keepdim=True) < self.length)

    def _exists(self, times_UX: Tensor) -> Tensor | None:
        if not self.world.dated:
            return None
        time_s_U1 = times_UX.double().sum(dim=1, keepdim=True)
        # Comparisons with NaN are false, so that everything exists at an unknown time.
        return ~((self.upload_s_I > time_s_U1) | (self.withdraw_s_I <= time_s_U1))

    def require_supply(self, histories: EventBatch) -> None:
        """Require that enough items for a session exist at each request.

        Raises:
            ValueError: fewer exist at some request.
        """
        if (exists_UI := self._exists(self.times(histories))) is not None:
            require_items(exists_UI, self.length)

    def without_times(self, inputs_UX: Tensor) -> tuple[Tensor, Tensor]:
        """Splits numbers that end in :meth:`times` into the rest and those."""
        width = inputs_UX.shape[1] - (2 if self.world.dated else 0)
        return inputs_UX[:, :width], inputs_UX[:, width:]

    def of_existing(self, score_UI: Tensor, times_UX: Tensor, absent: float = NOWHERE) -> Tensor:
        """Scores [U, I] with ``absent`` for items that do not exist at the time."""
        exists_UI = self.exists(times_UX)
        return score_UI if exists_UI is None else score_UI.masked_fill(~exists_UI, absent)

    def choose(self, histories: EventBatch, length: int, n: int, generator: torch.Generator | None):
        """Sessions int64 [U, n, length] and their log-probabilities [U, n].

        Args:
            histories: of U users.
            length: items per session.
            n: sessions per user.
            generator: draws them; None for the one session that the agent would serve.
        """
        distribution = PlackettLuce(self.logits(histories), length)
        items_USK = distribution.mode()[:, None] if generator is None else distribution.sample(n, generator)
        logp_SU = [distribution.log_prob(items_UK) for items_UK in items_USK.unbind(1)]
        return items_USK, torch.stack(logp_SU, dim=1)

    def logits(self, histories: EventBatch) -> Tensor:
        """One score per item, [U, I]; the items with the greatest scores are served."""
        raise NotImplementedError


class SlatePolicy(SlateNetwork):
    """A Plackett-Luce policy with a value head."""

    def __init__(self, world: SlateWorld, config: SlateNetConfig) -> None:
        super().__init__(world, config)
        self.scores = ItemScores(world, config, self.encoder.width)
        self.value = nn.Sequential(nn.Linear(self.encoder.width, config.hidden), nn.SiLU(), nn.Linear(config.hidden, 1))

    def forward(self, histories: EventBatch) -> tuple[Tensor, Tensor]:
        """Inputs [U, X] of :meth:`of_inputs`, and the states [U, S] for :attr:`value`."""
        state_US = self.encoder(histories)
        return torch.cat([self.scores.inputs(state_US, histories), self.times(histories)], dim=1), state_US

    def of_inputs(self, inputs_UX: Tensor) -> Tensor:
        """The policy's logits [U, I]."""
        inputs_UX, times_UX = self.without_times(inputs_UX)
        return self.of_existing(self.scores(inputs_UX), times_UX)

    def logits(self, histories: EventBatch) -> Tensor:
        """The policy's logits [U, I]."""
        return self.of_inputs(self(histories)[0])

"""What slate networks share, and a Plackett-Luce policy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from feedgym.agents.plackett_luce import PlackettLuce
from feedgym.agents.slates.layers import HistoryEncoder, ItemScores, SlateNetConfig
from feedgym.agents.slates.world import SlateWorld, read_histories
from feedgym.data.batches import EventBatch


class SlateNetwork(nn.Module):
    """What the networks share: choosing sessions for histories.

    Args:
        world: items and lengths.
        config: sizes.
        **more: what else a kind of network is told.
    """

    def __init__(self, world: SlateWorld, config: SlateNetConfig, **more: Any) -> None:
        super().__init__()
        self.world, self.sizes, self.more = world, config, more
        self.length, self.history_length, self.num_items = world.session_length, world.history_length, world.num_items
        self.encoder = HistoryEncoder(world, config)

    def read(self, observation: Any) -> EventBatch:
        """The histories in an environment's batched observation, flat or not."""
        return read_histories(observation, self.history_length)

    def choose(self, histories: EventBatch, length: int, n: int, generator: torch.Generator | None):
        """Sessions int64 [U, n, length] and their log-probabilities [U, n].

        Args:
            histories: of U users.
            length: items a session.
            n: sessions a user.
            generator: what they are drawn with; None for the one session that the agent would serve.
        """
        distribution = PlackettLuce(self.logits(histories), length)
        items_USK = distribution.mode()[:, None] if generator is None else distribution.sample(n, generator)
        logp_SU = [distribution.log_prob(items_UK) for items_UK in items_USK.unbind(1)]
        return items_USK, torch.stack(logp_SU, dim=1)

    def logits(self, histories: EventBatch) -> Tensor:
        """One score an item, [U, I]; those of greatest score are served."""
        raise NotImplementedError


class SlatePolicy(SlateNetwork):
    """A Plackett-Luce policy with a value head."""

    def __init__(self, world: SlateWorld, config: SlateNetConfig) -> None:
        super().__init__(world, config)
        self.scores = ItemScores(world, config, self.encoder.width)
        self.value = nn.Sequential(nn.Linear(self.encoder.width, config.hidden), nn.SiLU(), nn.Linear(config.hidden, 1))

    def forward(self, histories: EventBatch) -> tuple[Tensor, Tensor]:
        """What :class:`ItemScores` makes scores of, [U, D + F + T], and the states [U, S] for :attr:`value`."""
        state_US = self.encoder(histories)
        return self.scores.inputs(state_US, histories), state_US

    def logits(self, histories: EventBatch) -> Tensor:
        """The policy's logits [U, I]."""
        return self.scores(self(histories)[0])

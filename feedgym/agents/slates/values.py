"""Value networks: of slates from their items' values (SlateQ), and of the next item of a slate (DQN).

Deviations of :class:`SlateQ` from Ie et al. (arXiv:1905.12767). Several items of a session may be consumed here, so the
choice model is fitted to the share of each item among the clicked ones. The decomposed value is regressed on the value
of the whole slate, because the reward of a single item is not observed. Values are relative to that of choosing
nothing, which is not 0 in a feed that rewards the return. The top-K rule (their eq. 21) uses the difference.

Axes beyond the legend of :mod:`feedgym.data.events`: ``X`` numbers of an input; in ``choose``, rows, with each user's
samples one after another. ``S`` is the width of the state in ``state_US`` and ``state_XS``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from feedgym.agents.plackett_luce import NOWHERE
from feedgym.agents.slates.layers import ItemScores, SlateNetConfig
from feedgym.agents.slates.policy import SlateNetwork
from feedgym.agents.slates.world import SlateWorld
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOUR_IDX


class SlateQ(SlateNetwork):
    """Item-wise values, a choice model, and the value of slates from both; see the module's docstring."""

    def __init__(self, world: SlateWorld, config: SlateNetConfig) -> None:
        super().__init__(world, config)
        self.advantage = ItemScores(world, config, self.encoder.width)
        self.choice = ItemScores(world, config, self.encoder.width)
        self.nothing = nn.Linear(self.encoder.width, 1)

    def forward(self, histories: EventBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Each item's value relative to choosing nothing [U, I], its choice logit [U, I], and the value of nothing [U].

        Choosing nothing has the choice logit 0.
        """
        state_US = self.encoder(histories)
        advantage_UI = self.advantage(self.advantage.inputs(state_US, histories))
        choice_UI = self.choice(self.choice.inputs(state_US, histories))
        return advantage_UI, choice_UI, self.nothing(state_US)[:, 0]

    def logits(self, histories: EventBatch) -> Tensor:
        """v(s, i) * (Q(s, i) - Q(s, nothing)), [U, I]."""
        advantage_UI, choice_UI, _ = self(histories)
        return self.of_existing(choice_UI.clamp_max(20.0).exp() * advantage_UI, self.times(histories))


def slate_value(advantage_UK: Tensor, choice_UK: Tensor, nothing_U: Tensor) -> Tensor:
    """Q(s, A) = sum_i P(i | s, A) Q(s, i), including choosing nothing (Ie et al., eq. 13), [U]."""
    prob_UK = _with_nothing(choice_UK).softmax(dim=1)[:, :-1]
    return nothing_U + (prob_UK * advantage_UK).sum(dim=1)


def choice_loss(choice_UK: Tensor, clicked_UK: Tensor, examined_UK: Tensor) -> Tensor:
    """Cross-entropy [U] between the choice model over the seen items and each one's share of the clicks."""
    none_U1 = (clicked_UK.sum(1, keepdim=True) == 0).to(clicked_UK.dtype)
    target = torch.cat([clicked_UK, none_U1], dim=1)
    target = target / target.sum(dim=1, keepdim=True)
    logits = _with_nothing(choice_UK.masked_fill(~examined_UK, NOWHERE))
    return -(target * logits.log_softmax(dim=1)).sum(dim=1)


def _with_nothing(choice_UK: Tensor) -> Tensor:
    return torch.cat([choice_UK, torch.zeros_like(choice_UK[:, :1])], dim=1)


def outcomes(slates_UK: Tensor, after: EventBatch) -> tuple[Tensor, Tensor]:
    """Seen items of a session, bool [U, K], and clicked ones, float [U, K], taken from the next history.

    The items seen are a prefix of the session and the newest events of the next request's history.
    """
    length_U, slots = after.mask_UT.sum(1), slates_UK.shape[1]
    num_seen_U = torch.zeros_like(length_U)
    place_K = torch.arange(slots, device=slates_UK.device)
    for seen in range(1, min(slots, after.mask_UT.shape[1]) + 1):
        at_UK = (length_U[:, None] - seen + place_K[:seen]).clamp_min(0)
        same_U = (after.item_ids_UT.gather(1, at_UK) == slates_UK[:, :seen]).all(1) & (length_U >= seen)
        num_seen_U = torch.where(same_U, seen, num_seen_U)
    examined_UK = place_K < num_seen_U[:, None]
    at_UK = (length_U[:, None] - num_seen_U[:, None] + place_K).clamp(0, after.mask_UT.shape[1] - 1)
    click_UT = after.behaviours_UTB[..., BEHAVIOUR_IDX["click"]]
    return examined_UK, click_UT.gather(1, at_UK) * examined_UK


class ItemQ(SlateNetwork):
    """Values of the next item of a session under construction, given the items placed so far."""

    def __init__(self, world: SlateWorld, config: SlateNetConfig) -> None:
        super().__init__(world, config)
        self.placed = nn.Linear(world.features_IF.shape[1] + 1, config.hidden)
        self.join = nn.Sequential(nn.Linear(self.encoder.width + config.hidden, config.hidden), nn.SiLU())
        self.scores = ItemScores(world, config, self.encoder.width + config.hidden)
        self.state_value = nn.Linear(config.hidden, 1)

    def read(self, observation: Any) -> EventBatch:
        """The histories in an environment's batched observation."""
        return super().read(observation[:, : -self.length] if isinstance(observation, Tensor) else observation)

    def read_slate(self, observation: Any) -> Tensor:
        """The items placed so far in an observation, int64 [U, K], -1 for empty places."""
        slate_UK = observation[:, -self.length :] if isinstance(observation, Tensor) else observation["slate"]
        return slate_UK.long()

    def forward(self, state_US: Tensor, histories: EventBatch, slate_UK: Tensor) -> Tensor:
        """Inputs [U, X] of :meth:`values`: the state's value, the places, the inputs of the scores, and the time.

        Args:
            state_US: states from the encoder.
            histories: the histories of these states.
            slate_UK: item ids placed so far, -1 for empty places.
        """
        real_UK1 = (slate_UK >= 0).to(state_US.dtype)[..., None]
        features_UKF = self.encoder.features_IF[slate_UK.clamp_min(0)]
        placed_UX = torch.cat([features_UKF, torch.ones_like(real_UK1)], dim=-1).mul(real_UK1).mean(1)
        joined = torch.cat([state_US, self.placed(placed_UX)], dim=1)
        value_U1 = self.state_value(self.join(joined))
        inputs_UX = self.scores.inputs(joined, histories)
        return torch.cat([value_U1, slate_UK.to(joined.dtype), inputs_UX, self.times(histories)], dim=1)

    def values(self, inputs_UX: Tensor) -> Tensor:
        """Q [U, I], minus infinity for items that are already placed or do not exist."""
        slots, (inputs_UX, times_UX) = self.length, self.without_times(inputs_UX)
        value_U1, slate_UK, rest = inputs_UX[:, :1], inputs_UX[:, 1 : 1 + slots], inputs_UX[:, 1 + slots :]
        q_UI = self.of_existing(value_U1 + self.scores(rest), times_UX, -torch.inf)
        taken_UI = torch.zeros_like(q_UI).scatter_add(1, slate_UK.clamp_min(0).long(), (slate_UK >= 0).to(q_UI.dtype))
        return q_UI.masked_fill(taken_UI > 0, -torch.inf)

    def choose(self, histories: EventBatch, length: int, n: int, generator: torch.Generator | None):
        """Choose as in :meth:`SlateNetwork.choose`, by the softmax of the values, place by place."""
        rows = histories.rows(torch.arange(len(histories)).repeat_interleave(n))
        state_XS = self.encoder(rows)
        slate_XK = torch.full((len(rows), max(length, self.length)), -1)
        logp_X = torch.zeros(len(rows))
        for k in range(length):
            visible = slate_XK[:, : self.length]
            q_XI = self.values(self(state_XS, rows, visible)).scatter(1, slate_XK[:, :k], -torch.inf)
            logp_XI = q_XI.log_softmax(dim=1)
            item_X = (
                logp_XI.argmax(1)
                if generator is None
                else torch.multinomial(logp_XI.exp(), 1, generator=generator)[:, 0]
            )
            logp_X = logp_X + logp_XI.gather(1, item_X[:, None])[:, 0]
            slate_XK[:, k] = item_X
        return slate_XK[:, :length].reshape(len(histories), n, length), logp_X.reshape(len(histories), n)

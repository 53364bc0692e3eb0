"""Policies to judge: agents that draw slates with known probabilities, item after item.

A target is bound to the visits that judge it. It gives the probability of each item of a slate given those above it,
and draws slates. Deterministic agents cannot be targets: their weights are 0 or huge; judge them sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feedgym.agents.generation import (
    GenerativeRecommender,
    SamplingConfig,
    SeveralSamplings,
    item_log_probs,
    sample_sessions,
)
from feedgym.agents.plackett_luce import NOWHERE, PlackettLuce
from feedgym.agents.requests import existing_items, shown_mask
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOUR_IDX, Catalog, Event, EventLog
from feedgym.data.sessions import POSITIVE
from feedgym.envs import luck
from feedgym.experiments.ope.estimators import Float, log_or_never
from feedgym.experiments.ope.opinion import Opinion
from feedgym.experiments.ope.visits import JudgingVisits

SEEN_LOGIT = -100.0
"""Added to the logit of a seen item, so that it is served only if nothing else is left."""
CELLS = 2**22
"""Slates times items to process at a time."""
SERVED = 0x736572766564
"""Salt of the random numbers with which the logging policy would serve the same visits again."""


class Target(Protocol):
    """A policy of slates at N visits."""

    def log_probs(self, slates_NSK: NDArray[np.int64]) -> Float:
        """Log-probability [N, S, K] of each item of S slates per visit, given those above it; -inf if impossible."""
        ...

    def sample(self, n: int, seed: int) -> NDArray[np.int64]:
        """Slates [N, n, K] drawn from the policy."""
        ...


@dataclass(frozen=True, eq=False)
class LoggingTarget:
    """The policy that made the log."""

    visits: JudgingVisits

    def log_probs(self, slates_NSK: NDArray[np.int64]) -> Float:
        """See :class:`Target`."""
        return log_or_never(self.visits.chances(slates_NSK))

    def sample(self, n: int, seed: int) -> NDArray[np.int64]:
        """See :class:`Target`."""
        policy, state, taste_NE = self.visits.policy, self.visits.state, self.visits.taste_NE
        seed_SN = luck.derive(luck.derive(state.seed_U, SERVED + seed), np.arange(n)[:, None])
        slates = [policy.serve(replace(state, seed_U=seed_N), taste_NE)[0] for seed_N in seed_SN]
        return np.stack(slates, axis=1)


class AgentFamily:
    """A generative agent that draws its slates in several ways, such as temperatures; it reads each history once.

    Args:
        visits: the visits that judge it.
        agent: the agent.
        ways: how to draw slates; all ways block the same items and have the same number of candidates.
    """

    def __init__(self, visits: JudgingVisits, agent: GenerativeRecommender, ways: Sequence[SamplingConfig]) -> None:
        self.visits, self.agent, self.ways = visits, agent, tuple(ways)
        self._scored: tuple[Any, Float] | None = None
        self._drawn: tuple[Any, NDArray[np.int64]] | None = None

    def log_probs(self, slates_NSK: NDArray[np.int64], way: int) -> Float:
        """See :class:`Target`; computed for all ways at once, and kept until other slates are given."""
        if self._scored is None or self._scored[0] is not slates_NSK:
            num, sampling = slates_NSK.shape[1], self._sampling(slates_NSK.shape[1])
            slates = torch.from_numpy(slates_NSK).repeat(1, len(self.ways), 1)
            logp = item_log_probs(*self._asked(), slates, sampling).double().numpy()
            self._scored = (slates_NSK, logp.reshape(len(logp), len(self.ways), num, -1))
        return self._scored[1][:, way]

    def sample(self, n: int, seed: int, way: int) -> NDArray[np.int64]:
        """See :class:`Target`."""
        if self._drawn is None or self._drawn[0] != (n, seed):
            generator, num_rows = torch.Generator().manual_seed(seed), n * len(self.ways)
            length, sampling = self.agent.session_length, self._sampling(n)
            slates = sample_sessions(*self._asked(), num_rows, length, generator, sampling).item_ids_USK.numpy()
            self._drawn = ((n, seed), slates.reshape(len(slates), len(self.ways), n, -1))
        return self._drawn[1][:, way]

    def _asked(self) -> tuple[Any, Any, Any]:
        return self.agent.model, self.agent.trie, self.visits.histories

    def _sampling(self, each: int) -> SeveralSamplings:
        first = self.ways[0]
        return SeveralSamplings(ways=self.ways, each=each, block_seen=first.block_seen, candidates=first.candidates)


@dataclass(frozen=True, eq=False)
class AgentTarget:
    """A generative agent that draws its slates in one of its family's ways."""

    family: AgentFamily
    way: int

    def log_probs(self, slates_NSK: NDArray[np.int64]) -> Float:
        """See :class:`Target`."""
        return self.family.log_probs(slates_NSK, self.way)

    def sample(self, n: int, seed: int) -> NDArray[np.int64]:
        """See :class:`Target`."""
        return self.family.sample(n, seed, self.way)


@dataclass(frozen=True, eq=False)
class ScoreTarget:
    """Scores of the items as a Plackett-Luce policy: place after place in proportion to exp(score / temperature)."""

    logit_NI: Tensor
    temperature: float
    length: int

    def log_probs(self, slates_NSK: NDArray[np.int64]) -> Float:
        """See :class:`Target`."""
        num_slates, parts = slates_NSK.shape[1], []
        for rows in self._blocks(num_slates):
            policy = self._policy(rows, num_slates)
            parts.append(policy.item_log_probs(torch.from_numpy(slates_NSK[rows]).flatten(0, 1)))
        return torch.cat(parts).view(slates_NSK.shape).numpy()

    def sample(self, n: int, seed: int) -> NDArray[np.int64]:
        """See :class:`Target`."""
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([self._policy(rows).sample(n, generator) for rows in self._blocks(n)]).numpy()

    def _policy(self, rows: slice, copies: int = 1) -> PlackettLuce:
        logit_NI = (self.logit_NI[rows].double() / self.temperature).clamp_min(NOWHERE)
        return PlackettLuce(logit_NI.repeat_interleave(copies, dim=0), self.length)

    def _blocks(self, num_slates: int) -> list[slice]:
        size = max(1, CELLS // (num_slates * self.logit_NI.shape[1]))
        return [slice(low, low + size) for low in range(0, len(self.logit_NI), size)]


# ---------------------------------------------------------------- scores


def popularity_logits(visits: JudgingVisits, known: EventLog, catalog: Catalog, block_seen: bool) -> Tensor:
    """Logarithms of an earlier log's clicks per item, [N, I]."""
    clicked = (known.event == Event.IMPRESSION) & (known.behaviours[:, BEHAVIOUR_IDX["click"]] > 0)
    count_I = np.bincount(known.item_id[clicked], minlength=catalog.num_items) + 1.0
    logit_NI = torch.from_numpy(np.log(count_I)).float().repeat(len(visits), 1)
    return served_alone(logit_NI, visits, catalog, block_seen)


def random_logits(visits: JudgingVisits, catalog: Catalog) -> Tensor:
    """Equal logits for all items, seen or not, [N, I]."""
    return served_alone(torch.zeros(len(visits), catalog.num_items), visits, catalog, block_seen=False)


def content_logits(visits: JudgingVisits, catalog: Catalog, block_seen: bool) -> Tensor:
    """Cosines [N, I] of the items' contents with the mean content of liked items in the history."""
    return served_alone(content_cosines(visits.histories, catalog), visits, catalog, block_seen)


def content_cosines(histories: EventBatch, catalog: Catalog, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cosines [N, I] of the items' contents with the mean content of liked items in N histories."""
    unit_IE = torch.nn.functional.normalize(torch.from_numpy(catalog.content_IE).to(dtype), dim=1)
    pleased_NT = histories.behaviours_UTB[..., [BEHAVIOUR_IDX[name] for name in POSITIVE]].amax(2) * histories.mask_UT
    taste_NE = torch.einsum("nt,nte->ne", pleased_NT.to(dtype), unit_IE[histories.item_ids_UT])
    return torch.nn.functional.normalize(taste_NE, dim=1) @ unit_IE.T


def ranker_logits(visits: JudgingVisits, popular_NI: Tensor, opinion: Opinion, num_items: int) -> Tensor:
    """The reward model's predictions [N, I] for the most popular items, each by itself; no others are served."""
    top_NC = popular_NI.topk(min(num_items, popular_NI.shape[1]), dim=1).indices
    value_NC = torch.from_numpy(opinion.values(visits.histories, top_NC[..., None].numpy())).float()
    return torch.full_like(popular_NI, NOWHERE).scatter(1, top_NC, value_NC)


def served_alone(logit_NI: Tensor, visits: JudgingVisits, catalog: Catalog, block_seen: bool) -> Tensor:
    """Mask logits of items that do not exist and, if asked for, lower those of items that the user has seen."""
    histories = visits.histories
    if block_seen:
        logit_NI = logit_NI + SEEN_LOGIT * shown_mask(histories, catalog.num_items)
    exists_NI = existing_items(histories, catalog, visits.policy.session_length)
    return logit_NI if exists_NI is None else logit_NI.masked_fill(~exists_NI, NOWHERE)

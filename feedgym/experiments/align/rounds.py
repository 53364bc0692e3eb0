"""What happens inside a round of alignment before the update: sampling and scoring sessions, and measuring them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedgym.agents.generation import GenerativeRecommender, SamplingConfig, sample_sessions, score_sessions
from feedgym.data.batches import EventBatch, ScoredSessions, TensorRows
from feedgym.experiments.align.presets import RoundsConfig
from feedgym.experiments.align.world import Pool, World
from feedgym.experiments.progress import progress
from feedgym.experiments.rollouts import Rollouts, generator_of
from feedgym.experiments.statistics import within_user_correlation
from feedgym.protocols import SessionReward

DRIFT = 0x6472696674
"""Salt of the draws on which entropy and divergence are measured: a round's sessions are the same without them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledRound(TensorRows):
    """One round's sessions, what the reward thinks of them, and what they are truly worth where that is known.

    Attributes:
        row_U: int64 rows of the users' logged sessions in the pool.
        item_ids_USK: int64 sampled sessions.
        logp_US, logp_legal_US, logp_allowed_US, logp_drawn_US: float32, see :class:`feedgym.data.batches.SessionBatch`.
        logp_UB: float32, log-probability of B other sessions that the agent drew at temperature 1 (:func:`drift`).
        base_logp_UB: float32, log-probability of the same sessions under the base agent.
        score_US: float32, the reward's scores.
        truth_US: float32, the simulator's true values; None on a recorded log.
    """

    row_U: torch.Tensor
    item_ids_USK: torch.Tensor
    logp_US: torch.Tensor
    logp_legal_US: torch.Tensor
    logp_allowed_US: torch.Tensor
    logp_drawn_US: torch.Tensor
    logp_UB: torch.Tensor
    base_logp_UB: torch.Tensor
    score_US: torch.Tensor
    truth_US: torch.Tensor | None = None

    def for_method(self) -> ScoredSessions:
        """What a method of alignment may know: all but the truth."""
        return ScoredSessions(
            item_ids_USK=self.item_ids_USK, score_US=self.score_US, logp_US=self.logp_US,
            logp_allowed_US=self.logp_allowed_US, logp_drawn_US=self.logp_drawn_US,
        )  # fmt: skip


def sample_round(
    config: RoundsConfig, pool: Pool, world: World, rollouts: Rollouts, agent: GenerativeRecommender, t: int,
    work: Path | None = None, *, base: GenerativeRecommender, reward: SessionReward, seed: int,
) -> SampledRound:  # fmt: skip
    """Round t's users (Algorithm 2, line 4), 128 sessions for each from the snapshot, scored, and their true values.

    Args:
        config: how many users and sessions.
        pool: where users and their histories come from.
        world: knows the truth, or does not.
        rollouts: does the work.
        agent: the snapshot.
        t: the round's number.
        work: the stage's folder, not needed.
        base: the agent before the first round.
        reward: scores the sessions.
        seed: with the round's number it decides the users and their sessions.
    """
    row_U = torch.from_numpy(pool.draw_users(config.user_share, np.random.default_rng((seed, t))))
    histories = pool.imitate.histories.rows(row_U)
    with progress(f"Round {t}: sampling, scoring") as step:
        sessions, score_US = rollouts(agent, reward, histories, config.num_samples, (seed, t), step)
    with progress(f"Round {t}: true values") as step:
        truth_US = world.true_value(pool, row_U.numpy(), sessions.item_ids_USK.numpy(), step)
    logp_UB, base_logp_UB = drift(agent, base, histories, config.kl_samples, (seed, t))
    return SampledRound(
        row_U=row_U,
        item_ids_USK=sessions.item_ids_USK,
        logp_US=sessions.logp_US,
        logp_legal_US=sessions.logp_legal_US,  # type: ignore[arg-type]
        logp_allowed_US=sessions.logp_allowed_US,  # type: ignore[arg-type]
        logp_drawn_US=sessions.logp_drawn_US,  # type: ignore[arg-type]
        logp_UB=logp_UB,
        base_logp_UB=base_logp_UB,
        score_US=score_US,
        truth_US=None if truth_US is None else torch.from_numpy(truth_US),
    )


def drift(
    agent: GenerativeRecommender, base: GenerativeRecommender, histories: EventBatch, n: int, seed: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of sessions that the agent draws at temperature 1, under itself and under the base, [U, n].

    However a round's sessions were made, by temperature, top-k, top-p or beams, these are drawn from the model as it
    is, and from random numbers of their own. Both models are restricted to what can be served: items of the
    catalogue, none twice in a session, and none of the history where the agent blocks those.

    Args:
        agent: draws the sessions.
        base: judges them too.
        histories: of U users.
        n: sessions a user.
        seed: decides the draws.
    """
    generator, block_seen = generator_of((*seed, DRIFT)), agent.sampling.block_seen
    histories, plain = histories.to(agent.device), SamplingConfig(block_seen=block_seen)
    drawn = sample_sessions(agent.model, agent.trie, histories, n, agent.session_length, generator, plain)
    of_base = score_sessions(base.model, base.trie, histories, drawn.item_ids_USK, block_seen)
    # Divided by what may be served, both are distributions over the same sessions, and so comparable.
    own_UB, base_UB = (scored.logp_US - scored.logp_allowed_US for scored in (drawn, of_base))  # type: ignore[operator]
    return own_UB.cpu(), base_UB.cpu()


def round_metrics(sampled: SampledRound, pool: Pool) -> dict[str, float]:
    """What a round's sessions say of the agent that drew them.

    Means are over users and sessions, maxima over a user's sessions and then means over users. ``entropy`` and
    ``kl_to_base`` are of the model at temperature 1, in nats per session, estimated on the draws of :func:`drift`.
    """
    metrics = {
        "model_mean": sampled.score_US.mean().item(),
        "model_max": sampled.score_US.amax(dim=1).mean().item(),
        "legality": sampled.logp_legal_US.exp().mean().item(),
        "diversity": pool.diversity(sampled.item_ids_USK.numpy()).mean().item(),
        "entropy": -sampled.logp_UB.mean().item(),
        "kl_to_base": (sampled.logp_UB - sampled.base_logp_UB).mean().item(),
    }
    if sampled.truth_US is not None:
        score_US, truth_US = sampled.score_US.numpy(), sampled.truth_US.numpy()
        metrics |= {
            "true_mean": truth_US.mean().item(),
            "true_max": truth_US.max(axis=1).mean().item(),
            "true_of_best": truth_US[np.arange(len(truth_US)), score_US.argmax(axis=1)].mean().item(),
            "rank_correlation": within_user_correlation(score_US, truth_US, ranks=True),
        }
    return metrics


def cloud(sampled: SampledRound, t: int, points: int = 1500) -> dict[str, Any]:
    """Some of a round's sessions as points: the reward's score against the truth; empty without a truth."""
    if sampled.truth_US is None:
        return {}
    total = sampled.score_US.numel()
    some = np.linspace(0, total - 1, min(points, total)).astype(int)
    return {
        "round": t,
        "model": sampled.score_US.flatten()[some].tolist(),
        "true": sampled.truth_US.flatten()[some].tolist(),
    }

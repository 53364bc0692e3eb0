"""What happens inside a round of alignment: sampling and scoring sessions, measuring them, and choosing the pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedgym.agents.generation import GenerativeRecommender, score_sessions
from feedgym.data.batches import Preferences, TensorRows
from feedgym.experiments.presets import AlignConfig
from feedgym.experiments.progress import progress
from feedgym.experiments.rollouts import Rollouts
from feedgym.experiments.statistics import within_user_correlation
from feedgym.experiments.worlds import Pool, World
from feedgym.protocols import SessionReward


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled(TensorRows):
    """One round's sessions, what the reward thinks of them, and what they are truly worth where that is known.

    Attributes:
        row_U: int64 rows of the users' logged sessions in the pool.
        item_ids_USK: int64 sampled sessions.
        logp_US: float32, see :class:`feedgym.data.batches.SessionBatch`.
        logp_legal_US: float32, likewise.
        logp_allowed_US: float32, likewise.
        base_logp_UB: float32, log-probability of the first B sessions to be drawn from the base agent.
        score_US: float32, the reward's scores.
        truth_US: float32, the simulator's true values; None on a recorded log.
    """

    row_U: torch.Tensor
    item_ids_USK: torch.Tensor
    logp_US: torch.Tensor
    logp_legal_US: torch.Tensor
    logp_allowed_US: torch.Tensor
    base_logp_UB: torch.Tensor
    score_US: torch.Tensor
    truth_US: torch.Tensor | None = None


def sample_round(
    config: AlignConfig, pool: Pool, world: World, rollouts: Rollouts, agent: GenerativeRecommender,
    base: GenerativeRecommender, reward: SessionReward, t: int, work: Path | None = None,
) -> Sampled:  # fmt: skip
    """Round t's users (Algorithm 2, line 4), 128 sessions for each from the snapshot, scored, and their true values.

    Args:
        config: the experiment.
        pool: where users and their histories come from.
        world: knows the truth, or does not.
        rollouts: does the work.
        agent: the snapshot.
        base: the agent before the first round.
        reward: scores the sessions.
        t: the round's number, part of its seed.
        work: the stage's folder, not needed.
    """
    row_U = torch.from_numpy(pool.draw_users(config.ipa.user_share, np.random.default_rng((config.seed, t))))
    histories = pool.imitate.histories.rows(row_U)
    with progress(f"Round {t}: sampling, scoring") as step:
        sessions, score_US = rollouts(agent, reward, histories, config.ipa.num_samples, (config.seed, t), step)
    with progress(f"Round {t}: true values") as step:
        truth_US = world.true_value(pool, row_U.numpy(), sessions.item_ids_USK.numpy(), step)
    few_USK = sessions.item_ids_USK[:, : config.ipa.kl_samples]
    of_base = score_sessions(base.model, base.trie, histories, few_USK, config.sampling.block_seen)
    return Sampled(
        row_U=row_U,
        item_ids_USK=sessions.item_ids_USK,
        logp_US=sessions.logp_US,
        logp_legal_US=sessions.logp_legal_US,  # type: ignore[arg-type]
        logp_allowed_US=sessions.logp_allowed_US,  # type: ignore[arg-type]
        base_logp_UB=of_base.logp_US - of_base.logp_allowed_US,  # type: ignore[operator]
        score_US=score_US,
        truth_US=None if truth_US is None else torch.from_numpy(truth_US),
    )


def round_metrics(sampled: Sampled, pool: Pool) -> dict[str, float]:
    """What a round's sessions say of the agent that drew them.

    Means are over users and sessions, maxima over a user's sessions and then means over users. ``entropy`` and
    ``kl_to_base`` are of the distribution that sessions are drawn from at temperature 1, in nats a session.
    """
    drawn_US = sampled.logp_US - sampled.logp_allowed_US
    metrics = {
        "model_mean": sampled.score_US.mean().item(),
        "model_max": sampled.score_US.amax(dim=1).mean().item(),
        "legality": sampled.logp_legal_US.exp().mean().item(),
        "diversity": pool.diversity(sampled.item_ids_USK.numpy()).mean().item(),
        "entropy": -drawn_US.mean().item(),
        "kl_to_base": (drawn_US[:, : sampled.base_logp_UB.shape[1]] - sampled.base_logp_UB).mean().item(),
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


def choose_pairs(sampled: Sampled, logged_UK: torch.Tensor, margin: float) -> Preferences:
    """Best against worst of each user's sessions by the reward (Algorithm 2, lines 7-9).

    Args:
        sampled: S sessions a user, scored.
        logged_UK: what the log showed these users.
        margin: pairs whose scores differ by less are left out, as are those that do not differ.

    Returns:
        At most one pair a user.
    """
    user = torch.arange(len(sampled.row_U))
    best, worst = sampled.score_US.argmax(dim=1), sampled.score_US.argmin(dim=1)
    pairs = Preferences(
        user_idx_P=sampled.row_U,
        chosen_PK=sampled.item_ids_USK[user, best],
        rejected_PK=sampled.item_ids_USK[user, worst],
        logged_PK=logged_UK,
        score_chosen_P=sampled.score_US[user, best],
        score_rejected_P=sampled.score_US[user, worst],
    )
    gap_P = pairs.score_chosen_P - pairs.score_rejected_P
    return pairs.rows((gap_P > 0) & (gap_P >= margin))


def cloud(sampled: Sampled, t: int, points: int = 1500) -> dict[str, Any]:
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

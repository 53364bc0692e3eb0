"""Samples and scores the sessions of a round of alignment, before the update, and probes the agent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedgym.agents.generation import GenerativeRecommender, SamplingConfig, sample_sessions, score_sessions
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.parquet import write_batch
from feedgym.experiments.align.pool import Pool, World
from feedgym.experiments.align.presets import RoundsConfig
from feedgym.experiments.align.probe import Probe, probe_metrics
from feedgym.experiments.align.shards import SampledRound, Shard
from feedgym.experiments.progress import progress
from feedgym.experiments.rollouts import Rollouts, generator_of
from feedgym.protocols import SessionReward

PROBE = 0x6472696674
"""Salt for the draws of a probe, which are the same after every round and leave the rounds' own sessions unchanged."""
PROBE_BLOCK = 16
"""Users of a probe between two steps of the progress bar."""


def sample_round(
    config: RoundsConfig, pool: Pool, world: World, workers: Rollouts, agent: GenerativeRecommender, t: int,
    work: Path, *, base: GenerativeRecommender, reward: SessionReward, seed: int,
) -> SampledRound:  # fmt: skip
    """Draw round t's users (Algorithm 2, line 4) and 128 sessions each from the snapshot, with scores and true values.

    Users come in shards, so memory does not grow with their number, except for that of their row numbers. A finished
    shard is kept in ``work``: a killed run continues from there.

    Args:
        config: numbers of users and sessions.
        pool: source of the users and their histories.
        world: source of the true values, if it knows them.
        workers: run the work.
        agent: the snapshot.
        t: the round's number.
        work: the stage's folder.
        base: the agent before the first round.
        reward: scores the sessions.
        seed: together with the round's number, the seed of the users and their sessions.
    """
    rng = np.random.default_rng((seed, t))
    row_U = torch.from_numpy(pool.draw_users(config.user_share, rng, config.served_share))
    drawing = agent if config.on_policy else base
    size = workers.config.users_per_task * workers.config.tasks_per_shard
    paths = []
    for low in range(0, len(row_U), size):
        rows = row_U[low : low + size]
        path = work / f"users-{low}-{low + len(rows)}.safetensors"  # a run may go on with shards of another size
        if not path.exists():
            of = f"Round {t}" if len(row_U) <= size else f"Round {t}, users from {low:,} of {len(row_U):,}"
            write_batch(_sampled(config, pool, world, workers, drawing, rows, low, of, reward, (seed, t)), path)
        paths.append(path)
    return SampledRound(paths)


def _sampled(
    config: RoundsConfig, pool: Pool, world: World, workers: Rollouts, agent: GenerativeRecommender,
    row_U: torch.Tensor, low: int, of: str, reward: SessionReward, seed: tuple[int, ...],
) -> Shard:  # fmt: skip
    """A shard of :func:`sample_round`: the users from number ``low`` of the round."""
    histories = pool.imitate.histories.rows(row_U)
    with progress(f"{of}: sampling, scoring") as step:
        sessions, score_US = workers(agent, reward, histories, config.num_samples, seed, step, first_user=low)
    with progress(f"{of}: true values") as step:
        truth_US = world.true_value(pool, row_U.numpy(), sessions.item_ids_USK.numpy(), step)
    truth = None if truth_US is None else torch.from_numpy(truth_US)
    # Methods learn by the model's probabilities over all items, which sampling among candidates does not know.
    unknown_US = torch.full_like(sessions.logp_US, torch.nan) if agent.sampling.candidates else None
    return Shard(
        row_U=row_U,
        item_ids_USK=sessions.item_ids_USK,
        logp_US=sessions.logp_US if unknown_US is None else unknown_US,
        logp_legal_US=sessions.logp_legal_US,  # type: ignore[arg-type]
        logp_allowed_US=sessions.logp_allowed_US if unknown_US is None else unknown_US,  # type: ignore[arg-type]
        logp_drawn_US=sessions.logp_drawn_US,  # type: ignore[arg-type]
        score_US=truth if config.scores == "truth" and truth is not None else score_US,
        truth_US=truth,
    )


def look(
    agent: GenerativeRecommender, base: GenerativeRecommender, reward: SessionReward, watchers: Sequence[SessionReward],
    pool: Pool, world: World, workers: Rollouts, num_users: int, num_samples: int, replicas: int, seed: int,
    work: Path | None = None,
) -> Probe:  # fmt: skip
    """Draw sessions for the probed users at temperature 1, with all their scores and true values.

    A round's sessions may be shaped by temperature, top-k, top-p or beams; these are drawn from the model as it is. The
    log-probabilities of both agents are under the models restricted to legal items. Those are items of the catalogue,
    none twice in a session, and none of the history if the agent blocks those. If the agent writes among candidates,
    only its own candidates are legal, for both agents.

    Args:
        agent: draws the sessions.
        base: the agent before the first round.
        reward: scores them.
        watchers: reward models that are not optimised.
        pool: source of the users.
        world: source of the true values, if it knows them.
        workers: run the work.
        num_users: number of users, or all held-out ones if there are fewer.
        num_samples: S.
        replicas: simulated responses per session, averaged for its true value.
        seed: seed of the draws.
        work: the stage's folder, not needed.
    """
    histories = pool.probed(num_users).histories
    blocks = [
        (histories.rows(slice(low, low + PROBE_BLOCK)), (seed, PROBE, low))
        for low in range(0, len(histories), PROBE_BLOCK)
    ]
    with progress("Probing the held-out users") as step:
        shared = (agent, base, [reward, *watchers], num_samples)
        parts = workers.map(_looked_at, shared, blocks, step)
    items_USK, logp_US, base_logp_US, score_USW = (torch.cat(columns) for columns in zip(*parts, strict=True))
    with progress("True values of their sessions") as step:
        half_US2 = world.probed_values(pool, num_users, items_USK.numpy(), replicas, step)
    return Probe(
        item_ids_USK=items_USK,
        logp_US=logp_US,
        base_logp_US=base_logp_US,
        score_US=score_USW[..., 0],
        watch_USW=score_USW[..., 1:] if watchers else None,
        truth_half_US2=None if half_US2 is None else torch.from_numpy(half_US2),
    )


@torch.inference_mode()
def _looked_at(
    agent: GenerativeRecommender, base: GenerativeRecommender, rewards: Sequence[SessionReward], num_samples: int,
    histories: EventBatch, seed: tuple[int, ...],
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Items, log-probabilities by the agent and the base, and scores of some users' sessions."""
    block_seen = agent.sampling.block_seen
    moved = histories.to(agent.device)
    plain, candidates = SamplingConfig(block_seen=block_seen), agent.candidates(moved)
    drawn = sample_sessions(
        agent.model, agent.trie, moved, num_samples, agent.session_length, generator_of(seed), plain, candidates
    )
    of_base = score_sessions(base.model, base.trie, moved, drawn.item_ids_USK, block_seen, candidates)
    # Divided by the probability of the legal items, both are distributions over the same sessions, and so comparable.
    logps = [(scored.logp_US - scored.logp_allowed_US).cpu() for scored in (drawn, of_base)]  # type: ignore[operator]
    sessions = SessionBatch(item_ids_USK=drawn.item_ids_USK.cpu(), logp_US=drawn.logp_US.cpu())
    return sessions.item_ids_USK, *logps, torch.stack([reward(histories, sessions) for reward in rewards], dim=2)


def round_metrics(probe: Probe, pool: Pool, sampled: Iterable[Shard] | None = None) -> dict[str, float]:
    """Figures of the agent after a round.

    Args:
        probe: probe of the held-out users, who are the same after every round: means, entropy, divergence and
            diversity.
        pool: source of the catalogue.
        sampled: the sessions of the next round by shards, if there is one. From them come the maxima over a user's
            sessions, the truth of the best by the score, and legality.
    """
    metrics = probe_metrics(probe) | {"diversity": pool.diversity(probe.item_ids_USK.numpy()).mean().item()}
    if sampled is None:
        return metrics
    told = [shard.figures_by_user() for shard in sampled]
    return metrics | {name: torch.cat([figures[name] for figures in told]).mean().item() for name in told[0]}


def cloud(probe: Probe, t: int, points: int = 1500) -> dict[str, Any]:
    """Some of a probe's sessions as points of the reward's score against the truth; empty if the truth is unknown."""
    if probe.truth_US is None:
        return {}
    total = probe.score_US.numel()
    some = np.linspace(0, total - 1, min(points, total)).astype(int)
    return {
        "round": t,
        "model": probe.score_US.flatten()[some].tolist(),
        "true": probe.truth_US.flatten()[some].tolist(),
    }

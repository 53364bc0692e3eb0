"""Runs the stages of an alignment; :mod:`feedgym.experiments.align.experiment` has them in order."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedgym.agents.check import same_weights
from feedgym.agents.generation import GenerativeRecommender
from feedgym.agents.pretrain import SessionDataset, pretrain
from feedgym.data.requests import LogAndItems, Requests
from feedgym.data.sessions import exposures_as_sessions, user_of_rows
from feedgym.data.splits import random_exposures
from feedgym.experiments.align.agents import new_model
from feedgym.experiments.align.pool import Pool, World
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.align.probe import Probe
from feedgym.experiments.align.rounds import look
from feedgym.experiments.align.shards import SampledRound
from feedgym.experiments.exposure import FEW, times_seen
from feedgym.experiments.progress import progress, say
from feedgym.experiments.rollouts import Rollouts
from feedgym.plugins import built, title_of, with_seed
from feedgym.protocols import AlignmentMethod
from feedgym.rewards.config import RewardModelConfig
from feedgym.rewards.ensemble import RewardEnsemble
from feedgym.rewards.measures import auc_per_tower
from feedgym.rewards.model import RewardModel
from feedgym.rewards.training import fit_reward_model
from feedgym.tokenizers.codes import CodeTokenizer

WATCHERS = 0x77617463
"""Salt for the resamples of users that watchers are fitted to."""


def pretrained(config: AlignConfig, pool: Pool, tokenizer: CodeTokenizer, workers: Rollouts, work: Path) -> Any:
    """Pretrain the agent by next-token prediction on the training users' good sessions.

    The workers of the rounds start meanwhile: that takes them about 15 seconds of a core.
    """
    workers.start(look)
    torch.manual_seed(config.seed)
    model: Any = new_model(config, tokenizer, pool.log.profile_sizes)
    dataset = SessionDataset(histories=pool.imitate.histories, item_ids_NK=pool.imitate.targets_NK)
    with progress(f"Pretraining {title_of('model', config.model)}") as step:
        return pretrain(model, dataset, config.seeded(config.pretrain), work, step)


def fitted_reward(config: AlignConfig, pool: Pool, work: Path) -> RewardModel | RewardEnsemble:
    """Fit the session reward model to the training users' sessions, logged or served, good or bad."""
    rate = pool.rate
    if config.reward_share < 1:
        users = np.unique(rate.sessions.user_idx_N)
        some = np.random.default_rng(config.seed).permutation(users)[: max(1, round(config.reward_share * len(users)))]
        rate = rate.rows(np.isin(rate.sessions.user_idx_N, some))
    with progress("Training the reward model") as step:
        return _fitted(config.reward_model, pool, rate, config.seed, work, step)


def fitted_watchers(config: AlignConfig, pool: Pool, work: Path) -> list[RewardModel | RewardEnsemble]:
    """Fit reward models that are not optimised, each to a resample of the training users and with its own seed.

    They are single models, even if the optimised one is an ensemble.
    """
    watchers, users = [], np.unique(pool.rate.sessions.user_idx_N)
    one = replace(config.reward_model, members=1, resample=True, shared_start=0.0)
    for number in range(config.probe.watchers):
        drawn = np.random.default_rng((config.seed, WATCHERS, number)).choice(users, len(users))
        times_U = np.bincount(drawn, minlength=users.max() + 1)
        row_N = np.repeat(np.arange(len(pool.rate)), times_U[pool.rate.sessions.user_idx_N])
        with progress(f"Training watcher {number + 1} of {config.probe.watchers}") as step:
            place = work / str(number)
            watchers.append(_fitted(one, pool, pool.rate.rows(row_N), config.seed + 1 + number, place, step))
    return watchers


def _fitted(
    config: RewardModelConfig, pool: Pool, rate: Requests, seed: int, work: Path, step: Any
) -> RewardModel | RewardEnsemble:
    """Fit a reward model to some sessions; ``seed`` is added to its own."""
    settings = replace(config, seed=config.seed + seed)
    return fit_reward_model(pool.catalog, rate.histories, rate.sessions, settings, work, progress=step)


def reward_check(reward: RewardModel | RewardEnsemble, pool: Pool) -> dict[str, float]:
    """AUC of the towers on users the model never saw, over all items, and over those it hardly saw ("click, cold").

    If the log marks exposures that were drawn at random, as KuaiRand's does, there are also figures on only those
    ("click, random"). They do not depend on the preferences of the old system.
    """
    seen, unseen = pool.rate.sessions, pool.unseen
    known_I = times_seen(seen, pool.catalog.num_items)
    cold = auc_per_tower(reward, unseen.histories, unseen.sessions, only_I=known_I < FEW)
    everything = auc_per_tower(reward, unseen.histories, unseen.sessions)
    random = {} if (drawn := drawn_at_random(pool)) is None else auc_per_tower(reward, drawn.histories, drawn.sessions)
    named = {"cold": cold, "random": random}
    return everything | {f"{tower}, {kind}": auc for kind, aucs in named.items() for tower, auc in aucs.items()}


def drawn_at_random(pool: Pool) -> Requests | None:
    """The held-out exposures drawn at random, each as a session of one item; None if the log does not mark any."""
    log, held_out = pool.log, pool.unseen.sessions
    row_N = np.flatnonzero(random_exposures(log) & (log.timestamp_s >= held_out.start_s_N.min()))
    row_N = row_N[np.isin(user_of_rows(log)[row_N], held_out.user_idx_N)]
    if not len(row_N):
        return None
    return Requests.of((log, pool.catalog), exposures_as_sessions(log, row_N), pool.unseen.histories.length)


def diversity_of(probes: Sequence[Probe], pool: Pool) -> Any:
    """Mean distance between the contents of a session's items, per probe and user [N, U]."""
    return np.stack([pool.diversity(probe.item_ids_USK.numpy()).mean(axis=1) for probe in probes])


def serving(world: World, agent: GenerativeRecommender, t: int, work: Path) -> LogAndItems:
    """Serve the snapshot's sessions to new users before round t."""
    with progress(f"Round {t}: serving new users") as step:
        return world.serve(agent, t, step)


def updated(
    config: AlignConfig, pool: Pool, snapshot: Any, base: Any, sampled: SampledRound, t: int, work: Path
) -> tuple[Any, dict[str, float]]:
    """Update the last snapshot by the method, which sees the scores and never the truth."""
    method: AlignmentMethod = built("method", config.method, with_seed(config.method_options, config.seed + t))
    model = copy.deepcopy(snapshot)
    histories, logged_UK = pool.imitate.histories.at(sampled.row_U), pool.imitate.targets_NK[sampled.row_U]
    torch.manual_seed(config.seed + t)  # a method may leave dropout to torch's own generator
    other = {"reference": base} if config.rounds.reference == "base" else {}
    with progress(f"Round {t}: {title_of('method', config.method)}") as step:
        metrics = method.update(model, histories, sampled.for_method(), logged_UK, work, step, **other)
    if same_weights(snapshot, model):
        say(f"[yellow]Round {t}: no sessions differ enough to learn from; the snapshot stays unchanged.[/]")
    return model, metrics

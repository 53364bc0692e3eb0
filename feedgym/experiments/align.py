"""Iterative preference alignment, in reading order (OneRec, arXiv:2502.18965, §3 and Algorithm 2).

    log -> tokenizer -> base (next-token prediction) -> reward model -> rounds of {sample, score, choose, DPO} -> judge

The world (:mod:`feedgym.experiments.worlds`) is where the log comes from and who judges the agents in the end:
simulated users, who know the truth, or a recorded log, which does not. Everything between is the same code for both,
and the same for every agent that writes sessions: OneRec, TIGER and HSTU (:mod:`feedgym.experiments.agents_of`).

Deviations from the paper: the 128 sessions of a pair come from sampling by default (the paper searches with beams;
``IPAConfig.beams`` does too); NTP during alignment is on the logged sessions of the sampled users, in the same batches
as their pairs, and not on the rest of the stream; a snapshot is kept a round (the paper: an epoch).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedgym.agents.dpo import dpo_round
from feedgym.agents.generation import GenerativeRecommender
from feedgym.agents.pretrain import SessionDataset, pretrain
from feedgym.data.parquet import read_batch, write_batch
from feedgym.experiments.agents_of import TOKENIZERS, build_model, load_model, recommender_of, score_of
from feedgym.experiments.exposure import FEW
from feedgym.experiments.presets import AlignConfig
from feedgym.experiments.progress import progress, say
from feedgym.experiments.report import write_report
from feedgym.experiments.rollouts import Rollouts
from feedgym.experiments.rounds import Sampled, choose_pairs, cloud, round_metrics, sample_round
from feedgym.experiments.run import JSON, Codec, Run, Stage
from feedgym.experiments.worlds import LOG, Pool, world_of
from feedgym.protocols import Recommender, load
from feedgym.rewards.model import RewardModel, auc_per_tower, fit_reward_model
from feedgym.tokenizers.codes import CodeTokenizer
from feedgym.tokenizers.quality import quality_report


def align(config: AlignConfig, run: Run) -> dict[str, Any]:
    """Pretrain, align and judge an agent.

    Args:
        config: the whole experiment.
        run: the folder that keeps it; stages found there are not done again.

    Returns:
        The summary, as written to ``summary.json``.
    """
    if config.score is not None:
        load(config.score)  # a mistake in it is told now, and not after the pretraining
    world = world_of(config, run.trust)
    rollouts = Rollouts(config.rollouts, config.ray)

    log = run.stage("log", world.collect, LOG, config=world.key)
    pool = Pool.of(log.value, world, config)

    codes, kind = config.tokenizer_for(pool.catalog), TOKENIZERS[config.tokenizer]
    tokenizer = run.stage(
        "tokenizer",
        lambda _: kind(codes).fit(pool.catalog.content_IE),
        Codec(lambda value, folder: value.save(folder), kind.load),
        config=codes,
        parents=[log],
    )
    agents: Codec[Any] = Codec(
        lambda model, folder: model.save_pretrained(folder), lambda f: load_model(config, f, tokenizer.value)
    )

    data_choices = [config.history_length, config.split, config.split_seed, config.seed]
    base = run.stage(
        "base",
        lambda work: pretrained(config, pool, tokenizer.value, work),
        agents,
        config=[config.model, config.pretrain, config.sessions, *data_choices],
        parents=[tokenizer],
    )
    reward = run.stage(
        "reward",
        lambda work: fitted_reward(config, pool, work),
        Codec(lambda model, folder: model.save_pretrained(folder), RewardModel.load),
        config=[config.reward, *data_choices],
        parents=[log],
    )
    reward_figures = run.stage(
        "reward-check",
        lambda _: reward_check(reward.value, pool),
        JSON,
        parents=[reward],
    )
    score = score_of(config, pool.known, pool.catalog, reward.value)

    def agent(model: Any, beams: int = 0) -> GenerativeRecommender:
        return recommender_of(config, model, tokenizer.value, beams)

    rounds: list[dict[str, float]] = []
    snapshot, clouds = base, []
    with rollouts:
        for t in range(config.ipa.rounds + 1):  # the last one only looks at where the alignment has arrived
            sampled = run.stage(
                f"sampled-{t}",
                partial(
                    sample_round, config, pool, world, rollouts, agent(snapshot.value), agent(base.value), score, t
                ),
                Codec(lambda v, folder: write_batch(v, folder / "sampled.safetensors"), read_sampled),
                config=[replace(config.ipa, rounds=0, margin=0.0),  # these two decide nothing here
                        config.sampling, config.rollouts.users_per_task, config.weights, config.score, config.seed],
                parents=[snapshot, reward],
            )  # fmt: skip
            rounds.append(round_metrics(sampled.value, pool))
            clouds.append(cloud(sampled.value, t))
            if t < config.ipa.rounds:
                aligned = run.stage(
                    f"aligned-{t + 1}",
                    partial(dpo_snapshot, config, pool, snapshot.value, sampled.value, t),
                    with_metrics(agents),
                    config=[config.dpo, config.ipa.margin],
                    parents=[sampled],
                )
                snapshot = Stage(aligned.name, aligned.key, aligned.value[0], aligned.seconds)
                rounds[-1] |= aligned.value[1]
            run.log({f"round/{name}": value for name, value in rounds[-1].items()}, step=t)

    compared: dict[str, Recommender] = {"base": agent(base.value), "aligned": agent(snapshot.value)}
    if beams := config.judge.beams:
        compared |= {"base_searched": agent(base.value, beams), "aligned_searched": agent(snapshot.value, beams)}
    judged = run.stage(
        "judged",
        lambda _: world.judge(compared, score, pool),
        JSON,
        config=[config.judge, config.sampling, config.weights, config.score],
        parents=[base, snapshot, reward],
    )
    summary = {
        "title": world.title,
        "note": world.note,
        **judged.value,
        "rounds": rounds,
        "scatter": clouds if clouds[0] else [],
        "reward_model": reward_figures.value,
        "tokenizer": quality_report(tokenizer.value, pool.catalog.content_IE, pool.catalog.topic_I),
        "seed": config.seed,
        **run.facts(),
    }
    run.finish(summary)
    write_report(summary, run.folder)
    run.publish(summary, artifacts={"tokenizer": tokenizer.name, "aligned-agent": snapshot.name})
    return summary


def stage_names(config: AlignConfig) -> list[str]:
    """The stages of an experiment, in order."""
    rounds = [name for t in range(config.ipa.rounds) for name in (f"sampled-{t}", f"aligned-{t + 1}")]
    return ["log", "tokenizer", "base", "reward", "reward-check", *rounds, f"sampled-{config.ipa.rounds}", "judged"]


def pretrained(config: AlignConfig, pool: Pool, tokenizer: CodeTokenizer, work: Path) -> Any:
    """The agent after next-token prediction on the training users' good sessions."""
    torch.manual_seed(config.seed)
    model = build_model(config, pool, tokenizer)
    dataset = SessionDataset(histories=pool.imitate.histories, item_ids_NK=pool.imitate.targets_NK)
    with progress(f"Pretraining {config.model.name}") as step:
        return pretrain(model, dataset, config.seeded(config.pretrain), work, step)


def fitted_reward(config: AlignConfig, pool: Pool, work: Path) -> RewardModel:
    """The session reward model after training on the training users' logged sessions, good or bad."""
    with progress("Training the reward model") as step:
        return fit_reward_model(
            pool.catalog, pool.rate.histories, pool.rate.sessions, config.seeded(config.reward), work, progress=step
        )


def reward_check(reward: RewardModel, pool: Pool) -> dict[str, float]:
    """The towers' AUC on users the model never saw: over all items, and over those it hardly saw ("click, cold")."""
    seen, unseen = pool.rate.sessions, pool.unseen
    known_I = np.bincount(seen.item_ids_NK[seen.examined_NK], minlength=pool.catalog.num_items)
    cold = auc_per_tower(reward, unseen.histories, unseen.sessions, only_I=known_I < FEW)
    everything = auc_per_tower(reward, unseen.histories, unseen.sessions)
    return everything | {f"{name}, cold": value for name, value in cold.items()}


def dpo_snapshot(
    config: AlignConfig, pool: Pool, snapshot: Any, sampled: Sampled, t: int, work: Path
) -> tuple[Any, dict[str, float]]:
    """The next snapshot: DPO against the last one on the round's pairs, plus NTP on the logged sessions."""
    pairs = choose_pairs(sampled, pool.imitate.targets_NK[sampled.row_U], config.ipa.margin)
    model = copy.deepcopy(snapshot)
    if not len(pairs):
        say(f"[yellow]Round {t}: no pair reaches the margin {config.ipa.margin}; the snapshot stays as it is.[/]")
        return model, {"pairs": 0}
    with progress(f"Round {t}: DPO") as step:
        settings = replace(config.dpo, seed=config.dpo.seed + config.seed + t)
        histories = pool.imitate.histories.rows(pairs.user_idx_P)
        metrics = dpo_round(model, histories, pairs, settings, work, progress=step)
    return model, {"pairs": len(pairs), **metrics}


def read_sampled(folder: Path) -> Sampled:
    """A round's sessions from its stage folder."""
    return read_batch(Sampled, folder / "sampled.safetensors")


def with_metrics(agents: Codec[Any]) -> Codec[tuple[Any, dict[str, float]]]:
    """An agent and the metrics of the round that made it."""

    def save(product: tuple[Any, dict[str, float]], folder: Path) -> None:
        agents.save(product[0], folder)
        JSON.save(product[1], folder)

    return Codec(save, lambda folder: (agents.load(folder), JSON.load(folder)))


experiment = align
"""The name by which the command line finds the experiment of a kind of configuration."""

"""Iterative preference alignment, in reading order (OneRec, arXiv:2502.18965, §3 and Algorithm 2).

    log -> tokenizer -> base (next-token prediction) -> reward model -> rounds of {sample, score, choose, DPO} -> judge

The world (:mod:`feedgym.experiments.align.world`) is where the log comes from and who judges the agents in the end:
simulated users, who know the truth, or a recorded log, which does not. Everything between is the same code for both,
and the same for every agent that writes sessions: OneRec, TIGER and HSTU (:mod:`feedgym.experiments.align.agents`).

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

from feedgym.agents.alignment.dpo import dpo_round
from feedgym.agents.generation import GenerativeRecommender
from feedgym.agents.pretrain import SessionDataset, pretrain
from feedgym.data.events import Catalog
from feedgym.data.parquet import read_batch, write_batch
from feedgym.experiments.align.agents import (
    TOKENIZERS,
    build_model,
    load_model,
    new_tokenizer,
    recommender_of,
    score_of,
)
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.align.rounds import Sampled, choose_pairs, cloud, round_metrics, sample_round
from feedgym.experiments.align.world import Pool, plan_world, world_of
from feedgym.experiments.evaluate import JUDGED
from feedgym.experiments.exposure import FEW
from feedgym.experiments.logs import LOG
from feedgym.experiments.progress import progress, say
from feedgym.experiments.report import write_report
from feedgym.experiments.rollouts import Rollouts
from feedgym.experiments.run import Codec, Number, Plan, Run, Stage, json_of, with_record
from feedgym.protocols import Recommender, load
from feedgym.rewards.model import RewardModel, auc_per_tower, fit_reward_model
from feedgym.tokenizers.codes import CodeTokenizer
from feedgym.tokenizers.quality import quality_report
from feedgym.tokenizers.rqvae import fit_in

FIGURES = json_of(dict[str, Number])
"""Codec of figures by name."""


def plan(config: AlignConfig) -> Plan:
    """The stages in order, with what decides each."""
    plan = Plan()
    plan.leave_out("ray", "rollouts.num_actors", because="who draws a block of sessions changes none of them")
    if not config.ipa.rounds:
        plan.leave_out("dpo", "ipa.margin", because="without rounds nothing is aligned")
    log = plan_world(plan, config)
    codes = [config.tokenizer, config.num_codes, config.kmeans, config.rqvae, config.seed]
    tokenizer = plan.stage("tokenizer", codes, (log,))
    cut = [config.session_length, config.history_length, config.split, config.split_seed, config.seed]
    base = plan.stage("base", [config.model, config.pretrain, config.sessions, *cut], (tokenizer,))
    reward = plan.stage("reward", [config.reward, *cut], (log,))
    plan.stage("reward-check", parents=(reward,))
    scored = [config.sampling, config.weights, config.score]
    drawn = [replace(config.ipa, rounds=0, margin=0.0), config.rollouts.users_per_task, *scored, config.seed]
    snapshot = base
    for t in range(config.ipa.rounds + 1):
        sampled = plan.stage(f"sampled-{t}", drawn, (snapshot, reward))
        if t < config.ipa.rounds:
            snapshot = plan.stage(f"aligned-{t + 1}", [config.dpo, config.ipa.margin], (sampled,))
    plan.stage("judged", [config.judge, *scored, config.ipa.beams], (base, snapshot, reward))
    return plan


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

    log = run.stage("log", world.collect, LOG)
    pool = Pool.of(log.value, world, config)

    tokenizer = run.stage(
        "tokenizer",
        lambda work: fitted_tokenizer(config, pool.catalog, work),
        Codec(lambda value, folder: value.save(folder), TOKENIZERS[config.tokenizer].load),
    )
    agents: Codec[Any] = Codec(
        lambda model, folder: model.save_pretrained(folder), lambda f: load_model(config, f, tokenizer.value)
    )
    base = run.stage("base", lambda work: pretrained(config, pool, tokenizer.value, work), agents)
    reward = run.stage(
        "reward",
        lambda work: fitted_reward(config, pool, work),
        Codec(lambda model, folder: model.save_pretrained(folder), RewardModel.load),
    )
    reward_figures = run.stage("reward-check", lambda _: reward_check(reward.value, pool), FIGURES)
    score = score_of(config, pool.known, pool.catalog, reward.value)

    def agent(model: Any, beams: int = 0) -> GenerativeRecommender:
        return recommender_of(config, model, tokenizer.value, pool.catalog, beams)

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
            )
            rounds.append(round_metrics(sampled.value, pool))
            clouds.append(cloud(sampled.value, t))
            if t < config.ipa.rounds:
                aligned = run.stage(
                    f"aligned-{t + 1}",
                    partial(dpo_snapshot, config, pool, snapshot.value, sampled.value, t),
                    with_record(agents, FIGURES),
                )
                snapshot = Stage(aligned.name, aligned.value[0])
                rounds[-1] |= aligned.value[1]
            run.log({f"round/{name}": value for name, value in rounds[-1].items()}, step=t)

    compared: dict[str, Recommender] = {"base": agent(base.value), "aligned": agent(snapshot.value)}
    if beams := config.judge.beams:
        compared |= {"base_searched": agent(base.value, beams), "aligned_searched": agent(snapshot.value, beams)}
    judged = run.stage("judged", lambda _: world.judge(compared, score, pool), JUDGED)
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


def fitted_tokenizer(config: AlignConfig, catalog: Catalog, work: Path) -> CodeTokenizer:
    """The fitted tokenizer; the training of an RQ-VAE goes on from its checkpoints in ``work``."""
    return fit_in(new_tokenizer(config, catalog), catalog.content_IE, work)


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


experiment = align
"""The name by which the command line finds the experiment of a kind of configuration."""

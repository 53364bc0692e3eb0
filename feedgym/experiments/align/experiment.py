"""Iterative preference alignment, in reading order (OneRec, arXiv:2502.18965, §3 and Algorithm 2).

    log -> tokenizer -> base (next-token prediction) -> reward model -> rounds of {sample, score, choose, DPO} -> judge

The world (:mod:`feedgym.experiments.align.world`) is where the log comes from and who judges the agents in the end:
simulated users, who know the truth, or a recorded log, which does not. Everything between is the same code for both,
and the same for every agent that writes sessions: OneRec, TIGER and HSTU (:mod:`feedgym.experiments.align.agents`).

Deviations from the paper: the 128 sessions of a pair come from sampling by default (the paper searches with beams;
``RoundsConfig.beams`` does too); NTP during alignment is on the logged sessions of the sampled users, in the same
batches as their pairs, and not on the rest of the stream; a snapshot is kept a round (the paper: an epoch).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedgym.agents.check import same_weights
from feedgym.agents.generation import GenerativeRecommender
from feedgym.agents.pretrain import SessionDataset, pretrain
from feedgym.data.parquet import read_batch, write_batch
from feedgym.data.requests import last_requests
from feedgym.experiments.against import rivals, rivals_key
from feedgym.experiments.align.agents import (
    model_codec,
    new_model,
    new_tokenizer,
    recommender_of,
    reward_of,
    tokenizer_codec,
)
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.align.rounds import SampledRound, cloud, round_metrics, sample_round
from feedgym.experiments.align.world import Pool, plan_world, world_of
from feedgym.experiments.configs import CostConfig
from feedgym.experiments.controls import references, with_controls
from feedgym.experiments.cost import COSTS, MEASURED_HERE, costs, with_costs
from feedgym.experiments.evaluate import JUDGED
from feedgym.experiments.exposure import FEW
from feedgym.experiments.logs import LOG
from feedgym.experiments.progress import progress, say
from feedgym.experiments.report import conclude
from feedgym.experiments.rollouts import Rollouts
from feedgym.experiments.run import Codec, FinishedStage, NumberOrNone, Plan, Run, json_of, with_record
from feedgym.plugins import built, key_of, title_of, with_seed
from feedgym.protocols import AlignmentMethod, Recommender
from feedgym.rewards.model import RewardModel, RewardModelConfig, auc_per_tower, fit_reward_model
from feedgym.tokenizers.codes import CodeTokenizer
from feedgym.tokenizers.own import fit_codes
from feedgym.tokenizers.quality import quality_report

FIGURES = json_of(dict[str, NumberOrNone])
"""Codec of figures by name."""


def plan(config: AlignConfig) -> Plan:
    """The stages in order, with what decides each."""
    plan = Plan()
    plan.leave_out("ray", "rollouts.num_actors", because="who draws a block of sessions changes none of them")
    if not config.rounds.num:
        plan.leave_out("method", "method_options", because="without rounds nothing is aligned")
    log = plan_world(plan, config)
    codes = [key_of("tokenizer", config.tokenizer), config.tokenizer_options, config.seed]
    tokenizer = plan.stage("tokenizer", codes, (log,))
    cut = [config.session_length, config.history_length, config.split, config.split_seed, config.seed]
    learned = [key_of("model", config.model), config.model_options, config.pretrain, config.sessions]
    base = plan.stage("base", learned + cut, (tokenizer,))
    reward = plan.stage("reward", [config.reward_model, *cut], (log,))
    plan.stage("reward-check", parents=(reward,))
    scored = [config.sampling, config.memory, config.weights, key_of("reward", config.reward), config.reward_options]
    drawn = [replace(config.rounds, num=0), config.rollouts.users_per_task, *scored, config.seed]
    snapshot = base
    for t in range(config.rounds.num + 1):
        sampled = plan.stage(f"sampled-{t}", drawn, (snapshot, reward))
        if t < config.rounds.num:
            snapshot = plan.stage(
                f"aligned-{t + 1}", [key_of("method", config.method), config.method_options], (sampled,)
            )
    judges = [replace(config.judge, cost=CostConfig()), rivals_key(config.judge.against)]
    judged = plan.stage("judged", [*judges, *scored, config.rounds.beams], (base, snapshot, reward))
    plan.stage("cost", config.judge.cost, (judged,), MEASURED_HERE)
    return plan


def align(config: AlignConfig, run: Run) -> dict[str, Any]:
    """Pretrain, align and judge an agent.

    Args:
        config: the whole experiment.
        run: the folder that keeps it; stages found there are not done again.

    Returns:
        The summary, as written to ``summary.json``.
    """
    world = world_of(config, run.trust)
    rollouts = Rollouts(config.rollouts, config.ray)

    log = run.stage("log", world.collect, LOG)
    pool = Pool.of(log.value, world, config)

    tokenizer = run.stage(
        "tokenizer",
        lambda work: fit_codes(new_tokenizer(config), pool.catalog.content_IE, work),
        tokenizer_codec(config),
    )
    agents = model_codec(config, tokenizer.value)
    base = run.stage("base", lambda work: pretrained(config, pool, tokenizer.value, work), agents)
    reward = run.stage(
        "reward",
        lambda work: fitted_reward(config.seeded(config.reward_model), pool, work),
        Codec(lambda model, folder: model.save_pretrained(folder), RewardModel.load),
    )
    reward_figures = run.stage("reward-check", lambda _: reward_check(reward.value, pool), FIGURES)
    score = reward_of(config, pool.known, pool.catalog, reward.value)

    def agent(model: Any) -> GenerativeRecommender:
        return recommender_of(config, model, tokenizer.value, pool.catalog)

    sample = partial(
        sample_round, config.rounds, pool, world, rollouts, base=agent(base.value), reward=score, seed=config.seed
    )
    rounds: list[dict[str, float]] = []
    snapshot, clouds = base, []
    with rollouts:
        for t in range(config.rounds.num + 1):  # the last one only looks at where the alignment has arrived
            sampled = run.stage(
                f"sampled-{t}",
                partial(sample, agent(snapshot.value), t),
                Codec(lambda v, folder: write_batch(v, folder / "sampled.safetensors"), read_sampled),
            )
            rounds.append(round_metrics(sampled.value, pool))
            clouds.append(cloud(sampled.value, t))
            if t < config.rounds.num:
                aligned = run.stage(
                    f"aligned-{t + 1}",
                    partial(updated, config, pool, snapshot.value, sampled.value, t),
                    with_record(agents, FIGURES),
                )
                snapshot = FinishedStage(aligned.name, aligned.value[0])
                rounds[-1] |= aligned.value[1]
            run.log({f"round/{name}": value for name, value in rounds[-1].items()}, step=t)

    ours: dict[str, Recommender] = {"base": agent(base.value), "aligned": agent(snapshot.value)}
    everyone = references(pool.known, pool.catalog, config) | with_controls(ours, score, config.judge)
    everyone |= rivals(config, pool.catalog, trust=run.trust)
    judged = run.stage("judged", lambda _: world.judge(everyone, score, pool), JUDGED)
    asked = last_requests(pool.rate).histories
    cost = run.stage("cost", lambda _: costs(everyone, asked, config.judge.cost), COSTS)
    summary = {
        "title": world.title,
        "note": world.note,
        **with_costs(judged.value, cost.value),
        "rounds": rounds,
        "scatter": clouds if clouds[0] else [],
        "reward_model": reward_figures.value,
        "tokenizer": quality_report(tokenizer.value, pool.catalog.content_IE, pool.catalog.topic_I),
        "seed": config.seed,
        **run.facts(),
    }
    return conclude(run, summary, artifacts={"tokenizer": tokenizer.name, "aligned-agent": snapshot.name})


def pretrained(config: AlignConfig, pool: Pool, tokenizer: CodeTokenizer, work: Path) -> Any:
    """The agent after next-token prediction on the training users' good sessions."""
    torch.manual_seed(config.seed)
    model: Any = new_model(config, tokenizer, pool.log.profile_sizes)
    dataset = SessionDataset(histories=pool.imitate.histories, item_ids_NK=pool.imitate.targets_NK)
    with progress(f"Pretraining {title_of('model', config.model)}") as step:
        return pretrain(model, dataset, config.seeded(config.pretrain), work, step)


def fitted_reward(config: RewardModelConfig, pool: Pool, work: Path) -> RewardModel:
    """The session reward model after training on the training users' logged sessions, good or bad."""
    with progress("Training the reward model") as step:
        return fit_reward_model(pool.catalog, pool.rate.histories, pool.rate.sessions, config, work, progress=step)


def reward_check(reward: RewardModel, pool: Pool) -> dict[str, float]:
    """The towers' AUC on users the model never saw: over all items, and over those it hardly saw ("click, cold")."""
    seen, unseen = pool.rate.sessions, pool.unseen
    known_I = np.bincount(seen.item_ids_NK[seen.examined_NK], minlength=pool.catalog.num_items)
    cold = auc_per_tower(reward, unseen.histories, unseen.sessions, only_I=known_I < FEW)
    everything = auc_per_tower(reward, unseen.histories, unseen.sessions)
    return everything | {f"{name}, cold": value for name, value in cold.items()}


def updated(
    config: AlignConfig, pool: Pool, snapshot: Any, sampled: SampledRound, t: int, work: Path
) -> tuple[Any, dict[str, float]]:
    """The next snapshot: the last one after the method's update, which sees the scores and never the truth."""
    method: AlignmentMethod = built("method", config.method, with_seed(config.method_options, config.seed + t))
    model = copy.deepcopy(snapshot)
    histories, logged_UK = pool.imitate.histories.rows(sampled.row_U), pool.imitate.targets_NK[sampled.row_U]
    torch.manual_seed(config.seed + t)  # a method may leave dropout to torch's own generator
    with progress(f"Round {t}: {title_of('method', config.method)}") as step:
        metrics = method.update(model, histories, sampled.for_method(), logged_UK, work, step)
    if same_weights(snapshot, model):
        say(f"[yellow]Round {t}: no sessions differ enough to learn from; the snapshot stays as it is.[/]")
    return model, metrics


def read_sampled(folder: Path) -> SampledRound:
    """A round's sessions from its stage folder."""
    return read_batch(SampledRound, folder / "sampled.safetensors")


experiment = align
"""The name by which the command line finds the experiment of a kind of configuration."""

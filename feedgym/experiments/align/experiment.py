"""Iterative preference alignment, in reading order (OneRec, arXiv:2502.18965, §3 and Algorithm 2).

    log -> tokenizer -> base (next-token prediction) -> reward model -> rounds of {sample, score, choose, DPO} -> judge

The world (:mod:`feedgym.experiments.align.world`) supplies the log and judges the agents in the end. It is either
simulated users, with a known truth, or a recorded log, without one. The code in between is the same for both, and for
every agent that writes sessions: OneRec, TIGER and HSTU (:mod:`feedgym.experiments.align.agents`).

Deviations from the paper: the 128 sessions of a pair are sampled by default (the paper uses beam search;
``RoundsConfig.search`` can, too). NTP during alignment uses the logged sessions of the sampled users, in the same
batches as their pairs, and not the rest of the stream. A snapshot is kept per round (the paper: per epoch).
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from feedgym.agents.generation import GenerativeRecommender
from feedgym.data.requests import last_requests
from feedgym.experiments.against import rivals
from feedgym.experiments.align.agents import (
    CHOSEN,
    model_codec,
    new_tokenizer,
    recommender_of,
    reward_of,
    tokenizer_codec,
)
from feedgym.experiments.align.ahead import Ahead, Sampling
from feedgym.experiments.align.analysis import told_of
from feedgym.experiments.align.pool import Pool
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.align.probe import Probe, signals_of
from feedgym.experiments.align.rounds import cloud, look, round_metrics, sample_round
from feedgym.experiments.align.stages import FIGURES, PROBE, REWARD, REWARDS, SAMPLED
from feedgym.experiments.align.stages import plan as plan
from feedgym.experiments.align.steps import (
    diversity_of,
    fitted_reward,
    fitted_watchers,
    pretrained,
    reward_check,
    serving,
    updated,
)
from feedgym.experiments.align.stopping import StopRule
from feedgym.experiments.align.world import served_group, world_of
from feedgym.experiments.controls import references, with_controls
from feedgym.experiments.cost import COSTS, costs, with_costs
from feedgym.experiments.evaluate import JUDGED
from feedgym.experiments.logs import LOG
from feedgym.experiments.progress import say
from feedgym.experiments.records import RECORDS
from feedgym.experiments.report import conclude
from feedgym.experiments.rollouts import Rollouts
from feedgym.experiments.run import FinishedStage, Run, with_record
from feedgym.plugins import built
from feedgym.tokenizers.own import fit_codes
from feedgym.tokenizers.quality import quality_report


def align(config: AlignConfig, run: Run) -> dict[str, Any]:
    """Pretrain, align and judge an agent.

    Args:
        config: the whole experiment.
        run: the run's folder; stages found there are not repeated.

    Returns:
        The summary, as written to ``summary.json``.
    """
    with Rollouts(config.rollouts, config.ray) as workers, Ahead(config, workers) as ahead:
        return _align(config, run, workers, ahead)


def _align(config: AlignConfig, run: Run, workers: Rollouts, ahead: Ahead) -> dict[str, Any]:
    """Run :func:`align` with the workers it started."""
    world = world_of(config, run.trust, workers)

    log = run.stage("log", world.collect, LOG)
    pool = Pool.of(log.value, world, config)

    tokenizer = run.stage(
        "tokenizer",
        lambda work: fit_codes(new_tokenizer(config), pool.catalog, work),
        tokenizer_codec(config),
    )
    agents = model_codec(config, tokenizer.value)
    base = run.stage("base", partial(pretrained, config, pool, tokenizer.value, workers), agents)
    reward = run.stage("reward", partial(fitted_reward, config, pool), REWARD)
    reward_figures = run.stage("reward-check", lambda _: reward_check(reward.value, pool), FIGURES)
    score = reward_of(config, pool.known, pool.catalog, reward.value)
    watchers = run.stage("watchers", partial(fitted_watchers, config, pool), REWARDS)

    def agent(model: Any) -> GenerativeRecommender:
        return recommender_of(config, model, tokenizer.value, pool.catalog)

    def looked(name: str, model: Any, num_samples: int, replicas: int) -> Probe:
        others = [watcher.with_weights(config.weights) for watcher in watchers.value]
        those = (agent(model), agent(base.value), score, others, pool, world, workers, config.probe.users)
        return run.stage(name, partial(look, *those, num_samples, replicas, config.seed), PROBE).value

    def sampling(t: int) -> Sampling:
        """Prepare the sampling of round t, from the snapshot of ``max_staleness`` rounds before."""
        model = snapshots[max(0, t - config.rollouts.max_staleness)].value
        if config.rollouts.max_staleness:
            model = copy.deepcopy(model)  # an update that runs meanwhile prepares the base as its reference
        those = (config.rounds, pool, world, workers, agent(model), t)
        sample = partial(sample_round, *those, base=agent(base.value), reward=score, seed=config.seed)
        return partial(run.stage, f"sampled-{t}", sample, SAMPLED)

    rule: StopRule = built("stop", config.stop, config.stop_options)
    snapshots, probes, reason = [base], [], None
    rounds: list[dict[str, float]] = []
    idle: list[dict[str, float]] = []
    workers.idle.read()  # the rounds begin here
    for t in range(config.rounds.num + 1):
        snapshot = snapshots[-1]
        probes.append(looked(f"probe-{t}", snapshot.value, config.probe.samples, config.rounds.truth_replicas))
        spent = {"requests_spent": pool.num_served_visits}
        reason = rule.stopped(signals_of(probes, diversity_of(probes, pool))) if t else None
        if reason or t == config.rounds.num:
            rounds.append(round_metrics(probes[-1], pool) | spent)
            run.log(named("round", rounds[-1]), step=t)
            break
        if config.rounds.serve:
            served = run.stage(f"served-{t}", partial(serving, world, agent(snapshot.value), t), LOG)
            pool = pool.with_served(served.value[0], served_group(t), world)
            reward = run.stage(f"reward-{t}", partial(fitted_reward, config, pool), REWARD)
            score = reward_of(config, pool.known, pool.catalog, reward.value)
        sampled = ahead(t, sampling)
        is_new = not run.is_made(f"aligned-{t + 1}")
        aligned = run.stage(
            f"aligned-{t + 1}",
            partial(updated, config, pool, snapshot.value, base.value, sampled.value, t),
            with_record(agents, FIGURES),
        )
        snapshots.append(FinishedStage(aligned.name, aligned.value[0]))
        rounds.append(round_metrics(probes[-1], pool, sampled.value) | spent | aligned.value[1])
        idle.append(workers.idle.read() if is_new else {})
        run.log(named("round", rounds[-1]) | named("idle", idle[-1]), step=t)
    ahead.stop()

    signals = signals_of(probes, diversity_of(probes, pool))
    last, best = len(probes) - 1, rule.best(signals)
    chosen = {"round": best, "last": last, "reason": reason}
    if config.rounds.num:
        run.stage("chosen", lambda _: chosen, CHOSEN)
    if reason:
        say(f"[yellow]Stopped after round {last}:[/] {reason}. The agent of round {best} is kept.")
    snapshot = snapshots[best]
    pools = {
        name: looked(f"pool-{name}", model, config.rounds.num_samples, config.probe.replicas)
        for name, model in (("base", base.value), ("aligned", snapshot.value))
    }

    # A stage apart, so that a comparison of methods judges only once the agents that alignment does not change.
    beside = references(pool.known, pool.catalog, config)
    beside |= with_controls({"base": agent(base.value)}, score, config.judge)
    beside |= rivals(config, pool.catalog, trust=run.trust)
    everyone = beside | with_controls({"aligned": agent(snapshot.value)}, score, config.judge)
    known = run.stage("judged-beside", lambda _: world.served(beside, score, pool), RECORDS)
    judged = run.stage("judged", lambda _: world.judge(everyone, score, pool, known.value), JUDGED)
    asked = last_requests(pool.rate).histories
    cost = run.stage("cost", lambda _: costs(everyone, asked, config.judge.cost), COSTS)
    summary = {
        "title": world.title,
        "note": world.note,
        **with_costs(judged.value, cost.value),
        "rounds": rounds,
        "idle": idle,
        "chosen": chosen,
        **told_of(probes, signals, pools, world.oracle_values(pool, config.probe.users), config.seed),
        "scatter": [cloud(probe, t) for t, probe in enumerate(probes)] if probes[0].truth_US is not None else [],
        "reward_model": reward_figures.value,
        "tokenizer": quality_report(tokenizer.value, pool.catalog.content_IE, pool.catalog.topic_I),
        "seed": config.seed,
        **run.facts(),
    }
    artifacts = {"log": log.name, "tokenizer": tokenizer.name, "base-agent": base.name}
    artifacts |= {"reward-model": reward.name, "aligned-agent": snapshot.name}
    return conclude(run, summary, artifacts=artifacts)


def named(kind: str, figures: dict[str, float]) -> dict[str, float]:
    """A round's figures by the names used in the record."""
    return {f"{kind}/{name.replace(' ', '_')}": value for name, value in figures.items()}


experiment = align
"""The name under which the command line finds the experiment of a kind of configuration."""

"""Deployment cycles, in reading order.

    log -> tokenizer -> base -> reward model -> rounds of alignment -> cycles of {serve, learn, judge} -> report

In every cycle each learner's agent serves users, the log grows by their responses, and the learner learns from it. The
resulting agent is judged by the same fresh users as all others. The report compares the true reward with the requests
that real users spent for it. The learners are independent: each serves users with the same seeds, and learns from its
own sessions.

The items' codes stay fixed: tokenizers are fitted to the items' contents, which no cycle changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from feedgym.experiments.against import rivals
from feedgym.experiments.align.agents import model_codec, new_tokenizer, tokenizer_codec
from feedgym.experiments.align.pool import Pool
from feedgym.experiments.align.stages import REWARD
from feedgym.experiments.align.steps import fitted_reward, pretrained
from feedgym.experiments.align.world import Simulated
from feedgym.experiments.controls import references, with_controls
from feedgym.experiments.cycles.effects import effects_of
from feedgym.experiments.cycles.learners import LEARNERS, Learner, Models, Setting, aligned_once
from feedgym.experiments.cycles.populations import requests_in
from feedgym.experiments.cycles.presets import CyclesConfig
from feedgym.experiments.cycles.report import terminal_table as terminal_table
from feedgym.experiments.cycles.stages import OFFLINE
from feedgym.experiments.cycles.stages import plan as plan
from feedgym.experiments.evaluate import told_online
from feedgym.experiments.logs import LOG
from feedgym.experiments.records import RECORDS
from feedgym.experiments.report import conclude
from feedgym.experiments.rollouts import Rollouts
from feedgym.experiments.run import Run
from feedgym.experiments.serve import ServingRecord
from feedgym.experiments.statistics import gain, interval, resampling_counts
from feedgym.protocols import Recommender
from feedgym.tokenizers.own import fit_codes


def experiment(config: CyclesConfig, run: Run) -> dict[str, Any]:
    """Make an agent from the log, and take all learners through the cycles.

    Args:
        config: the whole experiment.
        run: the run's folder; stages found there are not repeated.

    Returns:
        The summary, as written to ``summary.json``. It is that of a judgement after the last cycle, in which
        ``aligned`` is the agent of the cycles; and ``cycles`` and ``effects`` have, by learner, a row per cycle.
    """
    with Rollouts(config.rollouts, config.ray) as workers:
        return _deployed(config, run, workers)


def _deployed(config: CyclesConfig, run: Run, workers: Rollouts) -> dict[str, Any]:
    """Run :func:`experiment` with the workers it started."""
    world = Simulated(config, run.trust, workers)
    log = run.stage("log", world.collect, LOG)
    start = Pool.of(log.value, world, config)
    codes = partial(fit_codes, new_tokenizer(config), start.catalog)
    tokenizer = run.stage("tokenizer", codes, tokenizer_codec(config)).value
    base = run.stage("base", partial(pretrained, config, start, tokenizer), model_codec(config, tokenizer)).value
    reward = run.stage("reward", partial(fitted_reward, config, start), REWARD).value
    first = Models(model=base, base=base, reward=reward, served={}, pool=start)

    of = Setting(config=config, run=run, world=world, start=start, tokenizer=tokenizer, rollouts=workers)
    aligned = first
    for t in range(config.rounds.num):
        aligned = aligned_once(of, aligned, config.rounds, t, (f"sampled-{t}", f"aligned-{t + 1}"))
    begins = {"aligned": aligned, OFFLINE: aligned}
    learners = [LEARNERS[name](name, of, begins.get(name, first)) for name in config.cycles.learners]
    ways = {learner.name: through_cycles(learner, of) for learner in learners}

    last = {name: way.judged[-1] for name, way in ways.items()}
    others = run.stage("judged-others", partial(judged_others, of, learners, base), RECORDS).value
    summary = {
        "title": f"{world.title}, deployed for {config.cycles.num} cycles",
        "note": world.note,
        **told_online({**last, **others}, world.simulator, start.log, config),
        "cycles": in_cycles(ways, config.seed),
        "effects": {name: way.effects for name, way in ways.items() if way.effects},
        "rivals": {name: spent_by(Path(folder)) for folder in config.judge.against for name in [Path(folder).name]},
        "seed": config.seed,
        **run.facts(),
    }
    return conclude(
        run, summary, artifacts={"log": "log", "tokenizer": "tokenizer", "base-agent": "base", "reward-model": "reward"}
    )


class Way(NamedTuple):
    """Results of a learner.

    Attributes:
        judged: records of the judges under its agent, before the first cycle and after each.
        requests: requests spent by then.
        effects: slow effects on its users, cycle by cycle.
    """

    judged: list[ServingRecord]
    requests: list[int]
    effects: list[dict[str, Any]]


def through_cycles(learner: Learner, of: Setting) -> Way:
    """Let a learner serve and learn, cycle by cycle."""
    cycles, catalog = of.config.cycles, of.start.catalog
    first_codes_I = of.tokenizer.encode(torch.arange(catalog.num_items))[:, 0].numpy()
    way = Way([learner.judged(0)], [0], [])
    for cycle in range(1, cycles.num + 1):
        came = learner.serve(cycle)
        learner.learn(cycle)
        way.judged.append(learner.judged(cycle))
        way.requests.append(way.requests[-1] + requests_in(came, cycle, cycles.visits))
        if came:
            told = (came, cycle, cycles.visits, catalog, first_codes_I, of.start.log, of.config.seed)
            way.effects.append(effects_of(*told))
    return way


def judged_others(of: Setting, learners: Sequence[Learner], base: Any, work: Path) -> dict[str, ServingRecord]:
    """Serve the judges with all others: references, agents of the last cycle by search, and other runs' agents."""
    config, by_name = of.config, {learner.name: learner for learner in learners}
    models = by_name["aligned"].models
    ours: dict[str, Recommender] = {"base": of.agent(base)} | {one.name: one.agent() for one in learners}
    score = of.score(models.reward, models.pool)
    everyone = references(of.start.known, of.start.catalog, config) | with_controls(ours, score, config.judge)
    everyone |= rivals(config, of.start.catalog, trust=of.run.trust)
    others = {name: agent for name, agent in everyone.items() if name not in by_name}
    return of.world.served(others, score, models.pool)


def in_cycles(ways: Mapping[str, Way], seed: int) -> dict[str, list[dict[str, Any]]]:
    """By learner a row per cycle, the first row before all cycles.

    Returns:
        ``requests`` spent so far, and ``true_reward`` and ``model_reward`` per visit of the judges. ``over_first`` is
        the difference in true reward to the aligned agent before all cycles, ``over_offline`` that to the offline
        learner after as many cycles. All have intervals, and differences are paired over users.
    """
    counts_RU = resampling_counts(ways["aligned"].judged[0].num_users, seed)
    first = ways["aligned"].judged[0].ratio("true_reward")

    def row(name: str, cycle: int) -> dict[str, Any]:
        record = ways[name].judged[cycle]
        told = {metric: interval(record.ratio(metric), counts_RU) for metric in ("true_reward", "model_reward")}
        told["over_first"] = gain(record.ratio("true_reward"), first, counts_RU)
        if OFFLINE in ways:
            offline = ways[OFFLINE].judged[cycle].ratio("true_reward")
            told["over_offline"] = gain(record.ratio("true_reward"), offline, counts_RU)
        return {"cycle": cycle, "requests": ways[name].requests[cycle], **told}

    return {name: [row(name, cycle) for cycle in range(len(way.judged))] for name, way in ways.items()}


def spent_by(folder: Path) -> int | None:
    """Requests of real users that another run spent before its agent was ready; None if its summary has no figure."""
    try:
        told = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    if told.get("learning"):
        return max((int(curve[-1].get("requests", 0)) for curve in told["learning"] if curve), default=None)
    return int(told["rounds"][-1].get("requests_spent", 0)) if told.get("rounds") else None

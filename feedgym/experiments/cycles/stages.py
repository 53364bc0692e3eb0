"""The stages of deployment cycles, with their names and the settings that decide each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from feedgym.experiments.against import rivals_key
from feedgym.experiments.align.stages import Decisions, check_together
from feedgym.experiments.align.world import plan_world
from feedgym.experiments.configs import CostConfig
from feedgym.experiments.cycles.presets import CyclesConfig
from feedgym.experiments.run import Plan

OFFLINE = "offline"
"""The learner that serves nobody."""


class StageNames(NamedTuple):
    """Stages of a learner's models and data at one moment.

    Attributes:
        agent: the agent that it serves.
        base: the reference of its alignment.
        reward: its reward model.
        data: the sessions served last, or the log.
    """

    agent: str
    base: str
    reward: str
    data: str


def name_of(learner: str, cycle: int, what: str) -> str:
    """Name of a learner's stage in a cycle."""
    return f"{learner}-{cycle}-{what}"


def plan(config: CyclesConfig) -> Plan:
    """Plan the stages in order, with the settings that decide each.

    Raises:
        ValueError: the method does not fit the other settings.
    """
    check_together(config)
    plan, rounds = Plan(), config.rounds
    spread = ("ray", "rollouts.num_actors", "rollouts.tasks_per_shard", "rollouts.gpus_per_actor")
    plan.leave_out(*spread, because="the process that draws a block, and the time, do not change its sessions")
    plan.leave_out("stop", "stop_options", "probe", because="cycles are not probed")
    plan.leave_out("rounds.serve", "rounds.serve_visits", "rounds.served_share", because="the cycles serve instead")
    plan.leave_out("judge.best_of", "judge.study", because="cycles do not judge the best of N")
    plan.leave_out("judge.cost", because="cycles do not time requests")
    log, of = plan_world(plan, config), Decisions.of(config)
    tokenizer = plan.stage("tokenizer", of.codes, (log,))
    base = plan.stage("base", of.base, (tokenizer,))
    reward = plan.stage("reward", of.reward, (log,))
    aligned = base
    for t in range(rounds.num):
        sampled = plan.stage(f"sampled-{t}", of.drawn, (aligned, base, reward))
        aligned = plan.stage(f"aligned-{t + 1}", of.method, (sampled, aligned, base))
    agents = {"aligned": aligned, OFFLINE: aligned, "base": base, "popular": log}
    last = [
        _plan_learner(plan, config, of, learner, StageNames(agents[learner], base, reward, log))
        for learner in config.cycles.learners
    ]
    others = [config.judge.beams, rivals_key(config.judge.against), *judging_of(config, of)]
    plan.stage("judged-others", others, tuple(dict.fromkeys(name for models in last for name in models)))
    return plan


def judging_of(config: CyclesConfig, of: Decisions) -> list[Any]:
    """The settings that decide the judges' visits under one agent, besides the agent."""
    return [replace(config.judge, beams=0, cost=CostConfig(), against=()), config.sampling, *of.scored]


def _plan_learner(plan: Plan, config: CyclesConfig, of: Decisions, learner: str, first: StageNames) -> StageNames:
    """Plan a learner's stages through the cycles; returns the stages of its final models and data."""
    cycles, models, judges = config.cycles, first, judging_of(config, of)
    whom = [cycles.users, cycles.visits, cycles.stay, cycles.explore, config.sampling, *of.scored]
    learned = [cycles.window, cycles.further_epochs, cycles.further_lr]
    plan.stage(name_of(learner, 0, "judged"), judges, models)
    for cycle in range(1, cycles.num + 1):
        name = partial(name_of, learner, cycle)
        if learner != OFFLINE:
            data = plan.stage(name("served"), [learned, *whom], (models.agent, models.data))
            models = models._replace(data=data)
        if learner == "popular":
            models = models._replace(agent=data)
        if learner in ("aligned", "base") and cycles.base != "keep":
            base = plan.stage(name("base"), [cycles.base, learned, *of.base], (models.agent, data))
            models = models._replace(agent=base, base=base)
        if learner == "aligned" and cycles.reward != "keep":
            told = [cycles.reward, learned, *of.reward]
            models = models._replace(reward=plan.stage(name("reward"), told, (models.reward, data)))
        for r in range(cycles.rounds if learner in ("aligned", OFFLINE) else 0):
            drawn = [cycles.fresh_share, learned, *of.drawn]
            sampled = plan.stage(name(f"sampled-{r}"), drawn, models)
            agent = plan.stage(name(f"aligned-{r + 1}"), of.method, (sampled, models.agent, models.base))
            models = models._replace(agent=agent)
        plan.stage(name("judged"), judges, models)
    return models

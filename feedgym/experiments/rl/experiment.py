"""Reinforcement learning in the same world as alignment: train with RLlib, and judge together with all other agents.

    log of the production system -> agents of several seeds (online, or only from the log) -> judge

Training users come from small seeds and judging users from hashed ones, so they never coincide. Several trainings
appear in the table as one agent; each user's outcome is its mean over them. ``over_seeds`` gives the differences
between trainings, by Student's t over their means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from feedgym.agents.rl_recommender import RLlibRecommender
from feedgym.agents.rl_settings import CLONES, OFFLINE
from feedgym.data.batches import EventBatch
from feedgym.data.events import Catalog, EventLog
from feedgym.envs.history import has_arrivals
from feedgym.envs.logging import collect_log
from feedgym.envs.recorder import transitions
from feedgym.envs.truth import RewardWeights
from feedgym.experiments.against import rivals, rivals_key
from feedgym.experiments.align.agents import FinishedRun, agents_of, key_of
from feedgym.experiments.by_visit import told_by_visit
from feedgym.experiments.configs import CostConfig, JudgeConfig
from feedgym.experiments.controls import references, with_controls
from feedgym.experiments.cost import COSTS, MEASURED_HERE, asked, costs, told, with_costs
from feedgym.experiments.evaluate import JUDGED, judged_by
from feedgym.experiments.logs import LOG
from feedgym.experiments.progress import progress
from feedgym.experiments.report import conclude
from feedgym.experiments.rl.presets import RLConfig
from feedgym.experiments.rollouts import one_thread, ray_running
from feedgym.experiments.run import Codec, FinishedStage, Plan, Run, with_curve
from feedgym.experiments.serve import ServingRecord, judges_of, samples, serve_all
from feedgym.experiments.statistics import Ratio, interval, lift, over_runs, resampling_counts
from feedgym.plugins import is_folder
from feedgym.protocols import Recommender, SessionReward

if TYPE_CHECKING:
    from feedgym.agents.rllib.task import Task

VISITS_METRIC = "reward_a_user"
"""True reward summed over all visits of a user, which is less if they leave early; the metric of reinforcement
learning."""

OVER = ("popular", "random")
"""Agents that the learned agent is compared with in pairs; with ``against`` also the agents of that run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Arena:
    """World in which agents are trained and judged; it has the names that the judge reads from a configuration.

    Attributes:
        task: the environment and its users.
        seed: for the judging users.
        judge: the number of judging users and of their visits.
        weights: reward weights of their visits.
        log: the production system's log, for popularity.
        catalog: its items.
        others: agents of another run.
        reward: that run's reward model.
        memory: number of earlier items that agents receive, as in that run.
    """

    task: Task
    seed: int
    judge: JudgeConfig
    weights: RewardWeights
    log: EventLog
    catalog: Catalog
    others: Mapping[str, Recommender]
    reward: SessionReward | None
    memory: int

    @property
    def session_length(self) -> int:
        """K."""
        return self.task.world.session_length

    @property
    def history_length(self) -> int:
        """T."""
        return self.task.world.history_length


def plan(config: RLConfig) -> Plan:
    """The stages in order, with the settings that decide each."""
    plan = Plan()
    world = [config.env, config.options(), config.against and key_of(config.against), config.seed]
    is_told = config.env.startswith("feedgym/") and not is_folder("simulator", str(config.options().get("simulator")))
    own = None if is_told else f"No key identifies {config.env} with these options"
    log = plan.stage("log", [world, config.log], own=own)
    parents = (log,) if config.train.algorithm in OFFLINE else ()
    trained = [
        plan.stage(f"trained-{n}", [world, config.train, config.sizes, n], parents, own)
        for n in range(config.num_seeds)
    ]
    judges = [replace(config.judge, cost=CostConfig()), rivals_key(config.judge.against)]
    judged = plan.stage("judged", [world, *judges], (log, *trained))
    plan.stage("cost", config.judge.cost, (judged,), MEASURED_HERE)
    return plan


def experiment(config: RLConfig, run: Run) -> dict[str, Any]:
    """Train agents and judge them.

    Args:
        config: the whole experiment.
        run: the folder that keeps it; stages found there are not done again.

    Returns:
        The summary, as written to ``summary.json``.
    """
    finished = agents_of(config.against, trust=run.trust) if config.against else None
    with ray_running():
        task = task_of(config, finished, run.trust)
        log = run.stage("log", partial(production_log, config, task, finished), LOG)
        codec = with_curve(Codec(lambda agent, folder: agent.save(folder), RLlibRecommender.load))
        trained = [
            run.stage(f"trained-{n}", partial(train_one, config, task, log.value, n, run), codec)
            for n in range(config.num_seeds)
        ]
    arena = arena_of(config, task, log, finished)
    others = {**arena.others, **rivals(arena, arena.catalog, trust=run.trust)}
    arena = replace(arena, others=others)
    agents = {f"{config.train.algorithm}-{n}": stage.value[0] for n, stage in enumerate(trained)}
    judged = run.stage("judged", lambda _: judge(config.train.algorithm, agents, arena), JUDGED)
    cost = run.stage(
        "cost", lambda _: costs(*asked_of(arena, config.train.algorithm, agents), config.judge.cost), COSTS
    )
    summary = {
        "title": f"{config.train.algorithm.upper()} on {config.env}",
        "note": f"{config.num_seeds} training(s) of {config.train.iterations} iterations; judged only by the truth. "
        f"{told(cost.value)}",
        **with_costs(judged.value, cost.value),
        "learning": [stage.value[1] for stage in trained],
        "seed": config.seed,
        **run.facts(),
    }
    return conclude(run, summary, artifacts={"rl-agent": trained[0].name})


# ---------------------------------------------------------------- the world


def task_of(config: RLConfig, finished: FinishedRun | None, trust: bool = False) -> Task:
    """The training task: the environment, or the world of a finished run.

    Args:
        config: the whole experiment.
        finished: the run that ``config.against`` names.
        trust: as in :func:`feedgym.envs.feed.make_simulator`.
    """
    from feedgym.agents.rllib.task import Task

    options = config.options() | {"trust": trust}
    if finished is not None:
        align = finished.config
        if align.data is not None:
            raise ValueError(f"{config.against} learned from a recorded log and has no users to learn from by serving.")
        options |= {"simulator": finished.world.simulator, "reward": align.weights}  # type: ignore[attr-defined]
        options |= {"session_length": align.session_length, "history_length": align.history_length}
    return Task.of(config.env, options, config.sizes, config.train.proto_axes)


def production_log(config: RLConfig, task: Task, finished: FinishedRun | None, work: Path) -> tuple[EventLog, Catalog]:
    """The log of the other run, or a new one of this environment's users under the production system."""
    if finished is not None:
        return finished.log, finished.catalog
    with progress("Logging simulated users") as step:
        log = collect_log(
            task.simulator,
            num_users=config.log.users,
            num_visits=config.log.visits,
            session_length=task.world.session_length,
            seed=config.seed,
            until_s=config.log.until_s,
            progress=step,
        )
    return log, task.simulator.catalog


def arena_of(config: RLConfig, task: Task, log: FinishedStage, finished: FinishedRun | None) -> Arena:
    """The judging users, and the other agents to judge."""
    others: dict[str, Recommender] = {}
    if finished is not None:
        others |= with_controls(finished.agents, finished.reward, config.judge)
    worthless = not any(vars(task.reward).values())  # only the return is rewarded, and not through the weights
    return Arena(
        task=task,
        seed=config.seed if finished is None else finished.config.seed,
        judge=config.judge,
        weights=RewardWeights() if worthless else task.reward,
        log=log.value[0],
        catalog=log.value[1],
        others=others,
        reward=None if finished is None else finished.reward,
        memory=0 if finished is None else finished.config.memory,
    )


# ---------------------------------------------------------------- training

AgentAndCurve = tuple[RLlibRecommender, list[dict[str, float]]]


def train_one(
    config: RLConfig, task: Task, data: tuple[EventLog, Catalog], n: int, run: Run, work: Path
) -> AgentAndCurve:
    """One training, and its metrics per iteration."""
    from feedgym.agents.rllib.feeds import write_rows
    from feedgym.agents.rllib.training import train

    rows = None
    if config.train.algorithm in OFFLINE:
        world = task.world
        lengths = world.history_length, world.session_length
        rows_of_log = transitions(*data, *lengths, task.reward, dated=world.dated)
        rows = write_rows(rows_of_log, task, config.train, work / "rows.parquet")

    def record(metrics: dict[str, float], iteration: int) -> None:
        run.log({f"train-{n}/{name.replace(' ', '_')}": value for name, value in metrics.items()})

    torch.manual_seed(training_seed(config, n))
    title = f"Training {config.train.algorithm}, {n + 1} of {config.num_seeds}"
    with one_thread(), progress(title) as step:  # batches are small, so two threads would wait for each other
        network, curve = train(task, config.train, training_seed(config, n), work, rows, step, record)
    return RLlibRecommender(network, draws=config.train.algorithm in CLONES), curve


def training_seed(config: RLConfig, n: int) -> int:
    """A seed far from those of other trainings, because RLlib's users have the seeds after it."""
    return int(np.random.SeedSequence((config.seed, n)).generate_state(1)[0] >> 2)


# ---------------------------------------------------------------- judgement


def judge(algorithm: str, agents: Mapping[str, RLlibRecommender], arena: Arena) -> dict[str, Any]:
    """Serve all agents to the same fresh users.

    Args:
        algorithm: name of the learned agent in the table.
        agents: one per training.
        arena: users, references and other agents.

    Returns:
        ``agents``, ``lift`` (of the learned agent, over popular), ``lifts``, ``over_seeds``, ``by_visit``,
        ``samples`` and ``judged_by`` of the summary.
    """
    seeds_U = judges_of(arena)
    everyone = references(arena.log, arena.catalog, arena) | dict(arena.others) | dict(agents)
    served = serve_all(arena.task.simulator, everyone, arena.reward, seeds_U, arena)
    first = {algorithm: served[next(iter(agents))]} | {name: served[name] for name in (*arena.others, "popular")}
    trained = [served.pop(name) for name in agents]
    served[algorithm] = mean_of(trained)
    ratios = {name: _ratios(result) for name, result in served.items()}
    learned = [_ratios(result) for result in trained]
    counts_RU = resampling_counts(len(seeds_U), arena.seed)
    lifts = {}
    for other in (*OVER, *arena.others):
        gains = {metric: lift(ratios[algorithm][metric], ratios[other][metric], counts_RU) for metric in learned[0]}
        lifts[f"{algorithm} over {other}"] = {metric: value for metric, value in gains.items() if value is not None}
    return {
        "agents": {
            name: {metric: interval(ratio, counts_RU) for metric, ratio in metrics.items()}
            for name, metrics in ratios.items()
        },
        "lift": lifts[f"{algorithm} over {OVER[0]}"],
        "lift_names": [algorithm, OVER[0]],
        "lifts": lifts,
        "over_seeds": seeds_compared(algorithm, learned, {name: ratios[name] for name in (*OVER, *arena.others)}),
        "by_visit": told_by_visit(served, [(algorithm, other) for other in (*OVER, *arena.others)], counts_RU),
        "samples": samples(first, arena.catalog),
        "judged_by": judged_by(len(seeds_U), arena),
    }


def _ratios(served: ServingRecord) -> dict[str, Ratio]:
    total_U = served.sums["true_reward"]
    return served.ratios() | {VISITS_METRIC: Ratio(total_U, np.ones_like(total_U))}


def asked_of(
    arena: Arena, algorithm: str, agents: Mapping[str, RLlibRecommender]
) -> tuple[dict[str, Recommender], EventBatch]:
    """The agents whose cost is measured (of several trainings, the first), and the requests for it."""
    everyone = references(arena.log, arena.catalog, arena) | dict(arena.others)
    dated = has_arrivals(arena.task.simulator)
    histories = asked((arena.log, arena.catalog), arena, arena.judge.cost.requests, dated=dated)
    return everyone | {algorithm: next(iter(agents.values()))}, histories


def mean_of(records: Sequence[ServingRecord]) -> ServingRecord:
    """Merges the same users under several agents into one record; counts are means over the agents."""
    return ServingRecord(
        {name: np.mean([one.by_visit[name] for one in records], axis=0) for name in records[0].by_visit},
        np.mean([one.concentration_V for one in records], axis=0),
    )


def seeds_compared(
    algorithm: str, learned: Sequence[Mapping[str, Ratio]], others: Mapping[str, Mapping[str, Ratio]]
) -> dict[str, Any]:
    """True reward of each training, per visit and per user, and its lifts, with intervals over the trainings."""
    table = {}
    for metric in ("true_reward", VISITS_METRIC):
        mean_N = np.array([one[metric].mean() for one in learned])
        table[f"{metric} of {algorithm}"] = over_runs(mean_N)
        for name, other in others.items():
            if (base := other[metric].mean()) > 0:
                table[f"{metric} of {algorithm} over {name}"] = over_runs(mean_N / base - 1)
    return table

"""Off-policy evaluation, in reading order: logs of another policy, estimates of agents never served, and the truth.

    agents of a finished run -> {log of fresh users -> estimates and truth of every agent} x logs -> table

The value of an agent is the reward of serving it for one visit at each of a log's requests. Only this can be estimated
from a log of another policy, which does not show how users would have developed under the agent. The truth has the same
definition: copies of the users, as they were before each visit, respond to the agent's own slates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from feedgym.data.events import EventLog
from feedgym.data.requests import LogAndItems
from feedgym.experiments.align.agents import FinishedRun, agents_of, key_of, read_config
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.cascade.experiment import aligning, trained
from feedgym.experiments.logs import LOG
from feedgym.experiments.ope.agents import mixtures_of, targets_of
from feedgym.experiments.ope.judging import ESTIMATORS, Judge, all_slates, judged_agents
from feedgym.experiments.ope.opinion import Opinion
from feedgym.experiments.ope.presets import OPERun
from feedgym.experiments.ope.report import terminal_table, write_report
from feedgym.experiments.ope.table import over_logs, supports, table_of, told_of_log
from feedgym.experiments.ope.visits import judging_log, judging_visits, log_seed
from feedgym.experiments.options import pairs_of, with_options
from feedgym.experiments.progress import progress
from feedgym.experiments.report import conclude
from feedgym.experiments.run import Codec, Plan, Run, json_of

__all__ = ["experiment", "plan", "terminal_table"]

TOLD: Codec[Any] = json_of(dict[str, Any])
"""Codec of the results for a log."""


def plan(config: OPERun) -> Plan:
    """Plan the stages in order, with the settings that decide each."""
    plan = Plan()
    plan.leave_out("ray", because="the process that draws a block of sessions does not change them")
    if config.against is None:
        own = "The agents have a run folder of their own; name a finished run by --against to share the rest"
        before: tuple[str, ...] = (plan.stage("end-to-end", replace(training(config), ray="off"), own=own),)
        source: Any = None
    else:
        plan.leave_out("end_to_end", "options", because="the agents come from a finished run")
        check_simulated(read_config(Path(config.against)), config.against)
        before, source = (), key_of(config.against)
    served = [config.users, config.visits, config.random_share, config.popularity_share, config.num_candidates]
    agents: list[Any] = [config.agent_temperatures, config.popularity_temperatures, config.content_temperatures]
    agents += [config.ranker_temperatures, config.ranker_items, config.mixtures]
    judged: list[Any] = [config.replicas, config.samples, config.enumerated]
    judged += [config.min_rows, config.min_rows_share, config.min_served]
    for number in range(config.logs):
        log = plan.stage(f"log-{number}", [source, served, config.temperature, log_seed(config, number)], before)
        plan.stage(f"told-{number}", [agents, judged, config.seed], (log,))
    return plan


def training(config: OPERun) -> AlignConfig:
    """The experiment that trains the agents.

    Raises:
        ValueError: the preset does not align an agent, or an option does not fit.
    """
    aligned = with_options(aligning(config.end_to_end), pairs_of(config.options, "set"))
    return replace(aligned, seed=config.seed, ray=config.ray)


def check_simulated(align: Any, folder: str) -> None:
    """Refuse a run without simulated users.

    Raises:
        ValueError: it learned from a recorded log.
    """
    if isinstance(align, AlignConfig) and align.data is not None:
        raise ValueError(f"{folder} learned from a recorded log, whose users cannot be served by a known policy.")


def experiment(config: OPERun, run: Run) -> dict[str, Any]:
    """Judge agents by logs, and the estimators by the truth.

    Args:
        config: the whole evaluation.
        run: the run's folder; stages found there are not repeated.

    Returns:
        The summary, as written to ``summary.json``.
    """
    if config.against is None:
        finished = trained(training(config), run).value
    else:
        finished = agents_of(config.against, trust=run.trust)
    logs = []
    for number in range(config.logs):
        log = run.stage(f"log-{number}", partial(_logged, config, finished, number), LOG)
        logs.append(run.stage(f"told-{number}", partial(told, config, finished, log.value[0], number), TOLD).value)
    summary = summarised(config, finished, logs) | {"seed": config.seed, **run.facts()}
    return conclude(run, summary, {}, write_report)


def _logged(config: OPERun, finished: FinishedRun, number: int, work: Path) -> LogAndItems:
    length = finished.config.session_length
    return judging_log(config, simulator_of(finished), length, number), finished.catalog


def simulator_of(finished: FinishedRun) -> Any:
    """The users of a finished run; :func:`check_simulated` has refused all others."""
    return finished.world.simulator  # type: ignore[attr-defined]


def told(config: OPERun, finished: FinishedRun, log: EventLog, number: int, work: Path) -> dict[str, Any]:
    """Estimate every agent from a log, and compute the truth; see :func:`feedgym.experiments.ope.table.told_of_log`."""
    visits = judging_visits(config, finished.config, simulator_of(finished), log, finished.catalog, number)
    opinion = Opinion(finished.reward) if hasattr(finished.reward, "with_weights") else None
    histories = visits.histories
    model_NK = None if opinion is None else opinion.by_place(histories, visits.slates_NK)
    slates = all_slates(config, visits, finished.catalog.num_items)
    targets = targets_of(config, finished, visits, opinion)
    seed = log_seed(config, number)
    with progress(f"Log {number}: agents") as step:
        found = judged_agents(config, targets, mixtures_of(config), visits, opinion, slates, seed, step)
    return told_of_log(Judge(config, visits, slates, model_NK), found, seed)


def summarised(config: OPERun, finished: FinishedRun, logs: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Make the parts of summary.json.

    Returns:
        ``estimators``: :func:`feedgym.experiments.ope.table.table_of`; ``agents``: by agent, means over the logs of the
        truth and of every estimate; ``supports``; ``logs``: the results for each log, without resamples.
    """
    table, agents = table_of(logs), over_logs(logs)
    kept = [{name: log[name] for name in ("visits", "users", "agents")} for log in logs]
    simulator = type(simulator_of(finished)).__name__
    return {
        "title": f"Off-policy evaluation of {len(agents)} agents on {simulator}, simulated users",
        "judged_by": f"{len(logs)} logs of {config.users:,} users with {config.random_share:.0%} random visits",
        "names": ESTIMATORS,
        "estimators": table,
        "agents": agents,
        "supports": supports(logs),
        "logs": kept,
    }

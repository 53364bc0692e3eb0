"""Compares many alignments: every condition with every seed, from one store, in one table and one report.

    cells (conditions x seeds, each a whole alignment in a run folder) -> figures over the seeds -> table and report

Products that several cells share are made only once: log, tokenizer, base and reward model, per seed. A finished cell
is a stage of the comparison, and its product is the summary of its alignment. So a comparison that was stopped reads
the finished cells and continues the others where they stopped.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from feedgym.experiments.align.experiment import plan as plan_of_cell
from feedgym.experiments.methods.cells import Cell, cells_of, value_of
from feedgym.experiments.methods.figures import figures_of, gains_of, visits_of
from feedgym.experiments.methods.presets import CENTRE, NONE, CellsRun
from feedgym.experiments.methods.report import terminal_table, write_report
from feedgym.experiments.methods.runs import outcomes
from feedgym.experiments.methods.table import bold, choosers_of, compared, on_the_way, rows_of, table_of
from feedgym.experiments.place import Place
from feedgym.experiments.progress import say
from feedgym.experiments.report import conclude
from feedgym.experiments.run import Codec, Plan, Run, json_of
from feedgym.plugins import BUILT_IN, title_of

__all__ = ["experiment", "plan", "terminal_table"]

SUMMARY: Codec[Any] = json_of(dict[str, Any])
"""Codec of a cell's summary."""
BULKY = ("scatter", "samples", "tokenizer")
"""Parts of a summary that its own report shows and a comparison does not need."""
CELLS = "cells"
"""Folder of the cells' runs in that of a comparison."""
CONTROLS = ("base", "ipa", "plain", CENTRE)
"""Rows that all conditions are compared with, if they exist."""


def plan(config: CellsRun) -> Plan:
    """Plan a stage per cell.

    Raises:
        ValueError: an alignment is not possible.
    """
    plan = Plan()
    plan.leave_out("ray", "workers", because="the process that runs a cell does not change its figures")
    for cell in cells_of(config):
        plan_of_cell(cell.config)  # reports options that do not fit together
        part = replace(cell.config, rollouts=replace(cell.config.rollouts, num_actors=1))
        plan.stage(cell.name, part, own="A cell's figures, some of them measured here, are in its run folder")
    return plan


def experiment(config: CellsRun, run: Run) -> dict[str, Any]:
    """Run all cells that are not finished, and compare them.

    Args:
        config: the comparison.
        run: the folder of the comparison.

    Returns:
        The summary, as written to ``summary.json``; ``failed`` has the cells that failed, with reasons.
    """
    cells = cells_of(config)
    summaries, failed = finished(config, cells, run)
    summary = summarised(config, [cell for cell in cells if cell.name in summaries], summaries, run.folder)
    summary |= {"failed": failed, **run.facts()}
    return conclude(run, summary, {}, write_report)


def finished(config: CellsRun, cells: list[Cell], run: Run) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Get the summaries of all cells by name, running unfinished cells, and the reasons of those that failed."""
    place = Place.inside(run, CELLS)
    if run.redo is not None:
        shutil.rmtree(place.folder / run.redo, ignore_errors=True)
    there = [cell for cell in cells if run.is_made(cell.name)]
    if there:
        say(f"[green]Finished before and read:[/] {len(there)} of {len(cells)} cells.")
    summaries = {cell.name: run.stage(cell.name, _made_before, SUMMARY).value for cell in there}
    failed = {}
    for cell, outcome in outcomes([cell for cell in cells if cell not in there], place, config.ray, config.workers):
        if outcome.summary is None:
            failed[cell.name] = str(outcome.failure)
            say(f"[red]failed[/] {cell.name}: {escape(failed[cell.name])}")
        else:
            kept = {name: part for name, part in outcome.summary.items() if name not in BULKY}
            summaries[cell.name] = run.stage(cell.name, partial(_kept, kept), SUMMARY).value
    return summaries, failed


def _made_before(work: Path) -> Any:
    raise AssertionError("a finished cell is read")


def _kept(summary: dict[str, Any], work: Path) -> dict[str, Any]:
    return summary


def summarised(
    config: CellsRun, cells: list[Cell], summaries: Mapping[str, Mapping[str, Any]], folder: Path
) -> dict[str, Any]:
    """The part of summary.json about the finished cells.

    Args:
        config: the comparison.
        cells: the finished cells.
        summaries: their summaries, by name.
        folder: the folder of the comparison.

    Returns:
        ``agents``: figures over the seeds by row, which is a condition or another agent. ``conditions``: their titles.
        ``centre``: for an ablation, the preset's own values of the varied options. ``choosers``: as ``agents``, for
        those agents of the best condition that choose among sessions. ``over``: by control, the differences to it in
        true reward. ``way``: shares of the gap between base and oracle. ``bold``: by figure, the conditions that none
        beats. ``cells``: every cell by itself. ``command`` and ``resume``: the commands that repeat it and that
        continue it.
    """
    told = {cell.name: _told(cell, summaries[cell.name]) for cell in cells}
    figures = [(cell["condition"], cell["seed"], cell["agents"]) for cell in told.values()]
    rows = rows_of(figures)
    agents = table_of(rows)
    conditions = list(dict.fromkeys(cell.condition for cell in cells))
    controls = [name for name in CONTROLS if name in rows]
    best = max(conditions, key=lambda name: agents[name]["true_reward"]["mean"], default="")
    (centre, *_) = cells_of(config)
    return {
        "title": f"{config.said}, from the preset {config.preset}",
        "judged_by": next((summary["judged_by"] for summary in summaries.values()), "nobody"),
        "conditions": {name: title_of_condition(name) for name in conditions},
        "centre": {axis: value_of(centre.config, option) for axis, (option, _) in config.axes().items()},
        "seeds": list(config.seeds),
        "agents": agents,
        "choosers": table_of(choosers_of(figures, best)),
        "over": {control: compared(rows, conditions, control) for control in controls},
        "way": on_the_way(rows),
        "bold": bold(rows, conditions),
        "cells": told,
        "work_s": _work_s(told.values()),
        "command": command_of(config),
        "resume": shlex.join(["feedgym", "compare", config.called, "--resume", str(folder)]),
    }


def _told(cell: Cell, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a cell's summary for tables and pictures."""
    return {
        "condition": cell.condition,
        "seed": cell.config.seed,
        "agents": figures_of(summary),
        "by_visit": visits_of(summary),
        "gains": gains_of(summary),
        "gap": summary.get("gap"),
        "seconds": {name: stage["seconds"] for name, stage in summary["stages"].items()},
        "folder": f"{CELLS}/{cell.name}",
    }


def _work_s(cells: Iterable[Mapping[str, Any]]) -> float:
    """Seconds of all stages; a stage that several cells share was made once, and has the same seconds in each."""
    made = {(cell["seed"], name, seconds) for cell in cells for name, seconds in cell["seconds"].items()}
    return sum(seconds for _, _, seconds in made)


def title_of_condition(name: str) -> str:
    """A condition's name for people; for a method, its title."""
    if name == NONE:
        return "no alignment"
    is_method = name in BUILT_IN["method"] or ":" in name
    return title_of("method", name) if is_method else name.replace("_", " ")


def command_of(config: CellsRun) -> str:
    """The command that runs a comparison."""
    usual, words = type(config)(), ["feedgym", "compare", config.called]
    for field in fields(config):
        if (value := getattr(config, field.name)) != getattr(usual, field.name):
            name = "set" if field.name == "options" else field.name.replace("_", "-")
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)

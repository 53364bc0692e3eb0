"""A sweep of an experiment's options, from the space to the best configuration.

    draws from the space (x seeds) -> trials under ASHA, from one store -> the best draw, as a command

The trials are the only stage of a sweep. Each has its own run folder, and their stages are in the store, so a sweep
that was stopped repeats nothing that was finished.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from feedgym.experiments.place import Place
from feedgym.experiments.report import conclude
from feedgym.experiments.results import command_of, options_of
from feedgym.experiments.rollouts import ray_running
from feedgym.experiments.run import Codec, Plan, Run, json_of
from feedgym.experiments.sweep.presets import SweepRun
from feedgym.experiments.sweep.report import terminal_table, write_report
from feedgym.experiments.sweep.trials import check, judge_of

__all__ = ["experiment", "plan", "terminal_table"]

ROWS: Codec[list[dict[str, Any]]] = json_of(list[dict[str, Any]])
"""Codec of the table of trials."""
TRIALS = "trials"
"""Folder of the trials' runs in that of a sweep."""


def plan(config: SweepRun) -> Plan:
    """Plan the one stage.

    Raises:
        ValueError: the space does not fit the experiment, or changes what trials are judged by.
    """
    plan = Plan()
    plan.leave_out("ray", "workers", because="the process that runs a trial does not change its figures")
    check(config)
    drawn = [config.space, config.num_samples, config.seeds, config.seed]
    judged = [config.grace, config.reduction, getattr(config, "objective", None)]
    plan.stage("trials", [config.base(), *drawn, *judged], own="A table of trials names their run folders")
    return plan


def experiment(config: SweepRun, run: Run) -> dict[str, Any]:
    """Run all trials that are not finished, and choose the best draw.

    Args:
        config: the sweep.
        run: the folder of the sweep.

    Returns:
        The summary, as written to ``summary.json``.

    Raises:
        ValueError: all trials failed; the message has the reason of the first.
    """
    place = Place.inside(run, TRIALS)
    rows = run.stage(TRIALS, partial(_tuned, config, place), ROWS).value
    summary = summarised(config, rows, place) | run.facts()
    return conclude(run, summary, {}, write_report)


def _tuned(config: SweepRun, place: Place, work: Path) -> list[dict[str, Any]]:
    place = replace(place, folder=place.folder.resolve())  # workers have other folders
    with ray_running(config.ray):
        from feedgym.experiments.sweep.tuning import tuned  # imports ray, which must be set up first

        rows = tuned(config, place, work)
    if all(row["failure"] for row in rows):
        raise ValueError(f"All {len(rows)} trials failed; the first said: {rows[0]['failure']}")
    return rows


def summarised(config: SweepRun, rows: Sequence[Mapping[str, Any]], place: Place) -> dict[str, Any]:
    """The part of summary.json about the trials.

    Args:
        config: the sweep.
        rows: its trials.
        place: their folders.

    Returns:
        ``trials``: the rows. ``draws``: each drawn configuration with its mean over seeds, best first. ``best``: its
        ``options``, ``objective`` and the ``command`` that runs it and judges its agent.
    """
    draws = draws_of(rows)
    best = draws[0] if draws and draws[0]["objective"] is not None else None
    return {
        "title": f"Sweep of {config.preset}: {', '.join(config.domains())}",
        "note": (
            f"Judged by {config.judged_by}. The best of many trials looks better than it is, because noise helped to "
            "choose it. Its command judges it by users or items that no trial has seen."
        ),
        "judged_by": config.judged_by,
        "clock": judge_of(config).clock,
        "agents": {},
        "trials": list(rows),
        "draws": draws,
        "best": best and {**best, "command": command_for(config, best["options"], config.seeds[0], place.store)},
        "stopped": sum(not row["ended"] and not row["failure"] for row in rows),
        "command": command_of(config),
        "resume": shlex.join(["feedgym", "sweep", config.preset, "--resume", str(place.folder.parent)]),
    }


def draws_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Puts the seeds of each drawn configuration together, the best first.

    Only trials that ran to their end count. A configuration with more of them comes before one with fewer, because ASHA
    stops a weak configuration on some seeds.
    """
    of: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        of.setdefault(json.dumps(row["options"]), []).append(row)
    draws = []
    for mine in of.values():
        ended = [row["objective"] for row in mine if row["ended"]]
        draws.append(
            {
                "trials": [row["name"] for row in mine],
                "options": mine[0]["options"],
                "ended": len(ended),
                "objective": fmean(ended) if ended else None,
            }
        )
    return sorted(draws, key=lambda draw: (-draw["ended"], -(draw["objective"] or 0.0)))


def command_for(config: SweepRun, options: Mapping[str, Any], seed: int, store: Path) -> str:
    """The command that runs a draw and judges its agent; what trials have made is read from the store."""
    usual, drawn = config.presets[config.preset](), config.drawn({**options, "seed": seed})
    words = [f"feedgym run {config.preset}", *options_of(usual, drawn)]
    return " ".join([*words, "--store", shlex.quote(str(store))])

"""Runs an experiment from its configuration: finds its module, opens its folder, and cleans up after a refusal."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

from feedgym.experiments.memory import check_memory
from feedgym.experiments.progress import say
from feedgym.experiments.run import Run
from feedgym.plugins import completed, untold

EXPERIMENTS = {
    "AlignConfig": "feedgym.experiments.align.experiment",
    "CyclesConfig": "feedgym.experiments.cycles.experiment",
    "RLConfig": "feedgym.experiments.rl.experiment",
    "SASRecRun": "feedgym.experiments.retrieval.experiment",
    "HSTURun": "feedgym.experiments.retrieval.experiment",
    "TigerRun": "feedgym.experiments.retrieval.experiment",
    "HSTURankRun": "feedgym.experiments.rank.experiment",
    "GenRankRun": "feedgym.experiments.rank.experiment",
    "MTGRRun": "feedgym.experiments.rank.experiment",
    "CascadeRun": "feedgym.experiments.cascade.experiment",
    "MethodsRun": "feedgym.experiments.methods.experiment",
    "AblationsRun": "feedgym.experiments.methods.experiment",
    "OPERun": "feedgym.experiments.ope.experiment",
    "OPEItemsRun": "feedgym.experiments.ope.items",
    "RewardsRun": "feedgym.experiments.rewards.experiment",
    "LearnedRun": "feedgym.experiments.simulator.experiment",
    "AlignSweep": "feedgym.experiments.sweep.experiment",
    "RetrievalSweep": "feedgym.experiments.sweep.experiment",
}
"""Modules by kind of configuration; each has ``experiment(config, run)`` and ``plan(config)``, its stages. Some have a
``write_report(summary, folder)`` and a ``terminal_table(summary)`` of their own."""


def kind_of(config: Any) -> Any:
    """Import the module of a configuration's kind of experiment."""
    return module_of(type(config).__name__)


def module_of(kind: str) -> Any:
    """Import the module of a kind of experiment, by the name of its configuration.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in EXPERIMENTS:
        raise ValueError(f"There is no kind of experiment {kind!r}; another version of feedgym made the run.")
    return importlib.import_module(EXPERIMENTS[kind])


def launch(config: Any, folder: Path, *, resume: bool = False, **run_options: Any) -> dict[str, Any]:
    """Run an experiment in a new folder, or continue it in an old one.

    Args:
        config: the whole experiment.
        folder: folder for all files.
        resume: continue the run in the folder.
        run_options: further arguments of :class:`feedgym.experiments.run.Run`.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        ValueError: the configuration cannot be run; a new folder is then left unchanged.
    """
    config = completed(config)
    if kinds := untold(config):
        say(f"[yellow]This run cannot be resumed: its {' and '.join(kinds)} cannot be identified later.[/]")
    check_memory(config)
    is_new = not folder.exists() or not any(folder.iterdir())
    kind = kind_of(config)
    run = Run(folder, config, kind.plan(config), resume=resume, **run_options)
    try:
        return kind.experiment(config, run)
    except ValueError:
        if is_new and set(run.seconds) <= {"log"}:  # refused before any training: leave nothing behind
            run.close()
            shutil.rmtree(folder)
        raise
    finally:
        run.close()

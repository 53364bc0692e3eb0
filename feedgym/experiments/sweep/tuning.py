"""Runs the trials of a sweep by Ray Tune: random draws, ASHA, and what is left of a sweep that was stopped.

This file imports ray when it is imported; import it only while Ray runs (``rollouts.ray_running``). ASHA is that of Li
et al., "A System for Massively Parallel Hyperparameter Tuning" (arXiv:1810.05934).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import BasicVariantGenerator
from rich.markup import escape

from feedgym.experiments.place import Place
from feedgym.experiments.progress import say
from feedgym.experiments.sweep.presets import SweepRun
from feedgym.experiments.sweep.trials import run_trial

TUNE = "tune"
"""Folder of Tune's own records, inside of a sweep's work folder."""
SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # options may name files of the folder that the sweep was started in
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would return as if a sweep that was interrupted had ended
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run's folder and its tracker have these records
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "RAY_AIR_NEW_OUTPUT": "0",  # else a box is printed even if Tune is to say nothing
}
"""Tune reads these from the environment."""
FAR = 10**9
"""More rounds than any trial has: trials end by themselves."""


def tuned(sweep: SweepRun, place: Place, work: Path) -> list[dict[str, Any]]:
    """Run all trials, or those that are left.

    With trust, Tune continues from its own records in ``work``. They are pickles, which can run code. So without trust
    Tune starts again with the same draws, and the trials read what is finished.

    Args:
        sweep: the configuration of the sweep.
        place: folders and settings of the trials.
        work: folder for Tune's records.

    Returns:
        A row per trial, in the order of their start: ``name``, ``options``, ``seed``, ``ended``, ``at``, ``objective``,
        ``figures``, ``seconds`` and ``failure``.
    """
    os.environ.update(SETTINGS)
    records = work.resolve() / TUNE
    share = min(1.0, ray.cluster_resources().get("CPU", 1.0) / sweep.workers)
    trial = tune.with_parameters(_trial, sweep=sweep, place=place, cwd=os.getcwd())
    trial = tune.with_resources(trial, {"cpu": share})
    if place.trust and tune.Tuner.can_restore(str(records)):
        say("[green]Continued from Ray Tune's own records.[/]")
        tuner = tune.Tuner.restore(str(records), trial, resume_errored=True)
    else:
        tuner = _new_tuner(sweep, trial, records)
    rows = [_row(result) for result in tuner.fit()]
    return sorted(rows, key=lambda row: row["name"])


def _new_tuner(sweep: SweepRun, trial: Any, records: Path) -> Any:
    space: dict[str, Any] = {
        name: tune.choice(list(domain.arguments)) if domain.kind == "choice"
        else getattr(tune, domain.kind)(*domain.arguments)
        for name, domain in sweep.domains().items()
    }  # fmt: skip
    return tune.Tuner(
        trial,
        param_space=space | {"seed": tune.grid_search(list(sweep.seeds))},
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max",
            reuse_actors=True,  # importing takes longer than a small trial
            trial_dirname_creator=_id_of,
            num_samples=sweep.num_samples,
            search_alg=BasicVariantGenerator(
                constant_grid_search=True, random_state=sweep.seed, max_concurrent=sweep.workers
            ),
            scheduler=AsyncHyperBandScheduler(
                time_attr="at", max_t=FAR, grace_period=sweep.grace, reduction_factor=sweep.reduction
            ),
        ),
        run_config=tune.RunConfig(
            name=records.name,
            storage_path=str(records.parent),
            failure_config=tune.FailureConfig(max_failures=1),  # a worker killed, say for lack of memory, goes on
            callbacks=[Teller()],
            verbose=0,
        ),
    )


def _trial(config: dict[str, Any], sweep: SweepRun, place: Place, cwd: str) -> None:
    """Run a trial inside of Tune's actor."""
    if os.path.isdir(cwd):
        os.chdir(cwd)
    run_trial(sweep, place, _name_of(tune.get_context().get_trial_id()), _plain(config), tune.report)


def _id_of(trial: Any) -> str:
    return trial.trial_id


def _name_of(trial_id: str) -> str:
    """Name of a trial: its number in the order of the draws."""
    return trial_id.rpartition("_")[2]


def _plain(draw: Mapping[str, Any]) -> dict[str, Any]:
    """A draw without NumPy's numbers."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in draw.items()}


def _row(result: Any) -> dict[str, Any]:
    """A trial as the table has it."""
    told, options = result.metrics or {}, _plain(result.config)
    failure = None
    if result.error is not None:
        lines = [line for line in str(result.error).splitlines() if line.strip()]
        failure = lines[-1].strip() if lines else type(result.error).__name__
    return {
        "name": _name_of(Path(result.path).name),
        "seed": options.pop("seed"),
        "options": options,
        "ended": bool(told.get("ended")) and failure is None,
        "at": told.get("at", 0),
        "objective": told.get("objective"),
        "figures": told.get("figures", []),
        "seconds": told.get("time_total_s", 0.0),
        "failure": failure,
    }


class Teller(tune.Callback):  # type: ignore[misc]  # ray has no types
    """Says in one line how each trial ended."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say its figure, and whether ASHA stopped it."""
        told = trial.last_result or {}
        how = "ended" if told.get("ended") else f"stopped after {told.get('at')}"
        drawn = ", ".join(f"{name}={value}" for name, value in _plain(trial.config).items())
        say(f"[green]{how}[/] trial {_name_of(trial.trial_id)} {told.get('objective', float('nan')):.4g} "
            f"[dim]{escape(drawn)}[/]")  # fmt: skip

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that it failed; the table has the reason."""
        say(f"[red]failed[/] trial {_name_of(trial.trial_id)}")

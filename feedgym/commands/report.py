"""``feedgym report``: writes a finished run's report again, or a page with several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feedgym.experiments.launch import module_of
from feedgym.experiments.run import read_about, write_text

SIDE_BY_SIDE = Path("report-side-by-side.html")
"""The page of several runs, if no other is named."""


def reported(runs: Sequence[Path], out: Path | None) -> Path:
    """Write the page of a run or of several.

    Args:
        runs: folders of finished runs.
        out: file for the page of several runs.

    Returns:
        The page.

    Raises:
        ValueError: a folder holds no finished run of this version, or ``out`` is given for one run.
    """
    if len(set(runs)) < len(runs):
        raise ValueError("A run is named twice; name each once.")
    if len(runs) == 1 and out is not None:
        raise ValueError(f"The report of one run is its report.html; leave out --out {out}, or name several runs.")
    found = [(read_about(run), _summary_of(run)) for run in runs]
    try:
        return _again(runs[0], *found[0]) if len(runs) == 1 else _beside(runs, found, out or SIDE_BY_SIDE)
    except KeyError as missing:
        raise ValueError(
            f"A summary.json lacks {missing}, so another version of feedgym wrote it; resume the run with --resume."
        ) from missing


def _again(run: Path, about: dict[str, Any], summary: dict[str, Any]) -> Path:
    """Write the report of one run, which is that of its kind of experiment."""
    from feedgym.experiments.report import write_report

    write = getattr(module_of(about["kind"]), "write_report", write_report)
    return write(summary, run)


def _beside(runs: Sequence[Path], found: Sequence[tuple[dict[str, Any], dict[str, Any]]], out: Path) -> Path:
    """Write the page of several runs, which go by their folders' names if these differ."""
    from feedgym.experiments.side_by_side import side_by_side

    short = {run.resolve().name for run in runs}
    names = [run.resolve().name if len(short) == len(runs) else str(run) for run in runs]
    told = {
        name: ({"kind": about["kind"], **about["config"]}, summary)
        for name, (about, summary) in zip(names, found, strict=True)
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, side_by_side(told))
    return out


def _summary_of(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    if not path.exists():
        raise ValueError(f"{run} has no summary.json; finish the run with --resume {run} first.")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); resume the run with --resume {run} to write it again."
        ) from error

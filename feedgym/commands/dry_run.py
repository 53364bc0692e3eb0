"""``--dry-run``: prints what an experiment would do, and does nothing.

Times come from an earlier run of the same kind in the same parent folder. Without one, no times are guessed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from feedgym.experiments.launch import kind_of
from feedgym.experiments.memory import check_memory, needs
from feedgym.experiments.run import Plan, made_stages, read_about
from feedgym.plugins import completed


def dry_run(config: Any, folder: Path, store: Path | None = None) -> tuple[Table, list[str]]:
    """Lists the stages of an experiment, which of them exist, and what the others would take.

    Args:
        config: the whole experiment.
        folder: of the run. It need not exist, and is not changed.
        store: folder of the run's store, if it has one.

    Returns:
        A table with a row per stage, and lines to print below it.

    Raises:
        ValueError: the configuration cannot be run.
    """
    config = completed(config)
    check_memory(config)
    plan: Plan = kind_of(config).plan(config)
    kind = type(config).__name__
    made = made_stages(folder, plan, kind, store)
    earlier, seconds = _earlier(folder.parent, kind)
    table = Table(title=f"{kind} in {folder}")
    for column in ("stage", "is there", f"seconds in {earlier}" if earlier else "seconds"):
        table.add_column(column, justify="right" if column.startswith("seconds") else "left")
    for name in plan:
        table.add_row(name, made.get(name, "no"), f"{seconds[name]:,.0f}" if name in seconds else "?")
    left = [name for name in plan if name not in made]
    lines = [f"{len(left)} of {len(plan)} stages would be made."]
    if known := [seconds[name] for name in left if name in seconds]:
        missing = len(left) - len(known)
        lines.append(
            f"Those took {sum(known) / 60:,.1f} minutes there" + (f", {missing} not counted." if missing else ".")
        )
    if largest := max(needs(config), key=lambda need: need.num_bytes, default=None):
        lines.append(f"Memory: {largest.num_bytes / 2**30:,.2f} GiB or more for {largest.what}, besides the libraries.")
    return table, lines


def _earlier(beside: Path, kind: str) -> tuple[str, dict[str, float]]:
    """Returns the newest finished run of a kind in a folder: its name and its stages' seconds; both empty if none."""
    finished = beside.glob("*/summary.json") if beside.is_dir() else []
    for path in sorted(finished, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            about, summary = read_about(path.parent), json.loads(path.read_text())
        except ValueError:
            continue  # written by another version
        if about["kind"] == kind and (stages := summary.get("stages")):
            return path.parent.name, {name: stage["seconds"] for name, stage in stages.items()}
    return "", {}

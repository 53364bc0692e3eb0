"""Saves a benchmark's figures in the form that docs/speed.md shows: a row per thing, the pace of each side, ratios."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine(*packages: str) -> dict[str, Any]:
    """What figures depend on: processor, cores, load, and the versions of packages."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return {
        "processor": model[0] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def commit_of(checkout: Path) -> str:
    """The commit of a checkout, which says more to others than its path."""
    asked = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def save(
    path: Path, command: str, unit: str, ours: str, paces: Mapping[str, Mapping[str, float]], about: Mapping[str, Any]
) -> None:
    """Write the file.

    Args:
        path: the file.
        command: what repeats the figures.
        unit: unit of a pace; more is faster.
        ours: the side that is compared with the others.
        paces: of each thing, the pace of each side.
        about: the machine.
    """
    rows = [
        {
            "what": what,
            "pace": dict(of_side),
            "ratio": {side: of_side[ours] / pace for side, pace in of_side.items() if side != ours},
        }
        for what, of_side in paces.items()
    ]
    found = {"command": command, "unit": unit, "ours": ours, "machine": dict(about), "rows": rows}
    path.write_text(json.dumps(found, indent=1) + "\n")

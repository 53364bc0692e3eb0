"""Peak memory of a benchmark's own process."""

from __future__ import annotations

import resource
import sys


def peak_mb() -> float:
    """Peak resident memory of this process so far, MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def peak_gb() -> float:
    """The same in GB."""
    return peak_mb() / 1e3

"""Memory and time of logs in parts: simulated, read whole, read for a twentieth of the users, cut into batches.

``python benchmarks/bench_logs.py [USERS]``, by default 32,000 users of 14 visits, about 5 million rows. Each phase runs
in a process of its own, whose peak is told with what the libraries alone take. The last phase builds batches of 64
histories of 256 events, from the log and out of a tensor of all of them, in turn; medians of 20.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

VISITS, BATCH, HISTORY, ROUNDS = 14, 64, 256, 20


def peak_mb() -> float:
    """Peak resident memory of this process, MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def told(phase: str, rows: int, before_mb: float, begin: float) -> None:
    """Print a phase's figures."""
    seconds, peak = time.process_time() - begin, peak_mb()
    print(
        f"{phase:<10}{rows:>12,} rows {seconds:8.1f} CPU s  peak {peak:7.0f} MB, {before_mb:.0f} MB of them libraries"
    )


def simulate(folder: Path, users: int) -> None:
    """Write the log."""
    from feedgym.api import simulate_parts

    before, begin = peak_mb(), time.process_time()
    rows = simulate_parts(out=folder, num_users=users, visits=VISITS)["rows"]
    size = sum(file.stat().st_size for file in (folder / "events").rglob("*.parquet"))
    told("simulate", rows, before, begin)
    print(f"{'':<10}{size / rows:.1f} bytes a row on the disk")


def read(folder: Path, share: float) -> None:
    """Read the log, or that of some users."""
    import pyarrow.dataset  # noqa: F401

    from feedgym.data.readers import find_data
    from feedgym.data.sources import ReadOptions

    before, begin = peak_mb(), time.process_time()
    log, _ = find_data(folder).read(ReadOptions(users=share))
    told(f"read {share:.0%}", log.num_events, before, begin)


def batches(folder: Path) -> None:
    """Build batches of histories both ways."""
    import torch

    from feedgym.data.events import Event
    from feedgym.data.readers import find_data
    from feedgym.data.sessions import LoggedHistories, user_of_rows
    from feedgym.data.sources import ReadOptions

    log, catalog = find_data(folder).read(ReadOptions(users=0.05))
    row_N = np.flatnonzero((log.event == Event.IMPRESSION) & log.examined)[:50_000]
    lazy = LoggedHistories(log, catalog, user_of_rows(log)[row_N], row_N, log.timestamp_s[row_N], HISTORY)
    whole, rng, times = lazy.rows(slice(None)), np.random.default_rng(0), []
    for _ in range(ROUNDS):
        idx = torch.from_numpy(rng.integers(len(row_N), size=BATCH))
        for side in (whole, lazy):
            begin = time.perf_counter()
            side.rows(idx)
            times.append(time.perf_counter() - begin)
    held = sum(column.nbytes for column in vars(whole).values() if column is not None) / len(row_N)
    own = sum(column.nbytes for column in (lazy.user_idx_N, lazy.end_N, lazy.now_s_N)) / len(row_N)
    fast, slow = np.median(np.reshape(times, (ROUNDS, 2)), axis=0) * 1000
    print(f"batches   {BATCH} x {HISTORY}: {fast:.2f} ms out of tensors of {held:,.0f} bytes a row, ", end="")
    print(f"{slow:.2f} ms out of the log with {own:.0f} bytes a row")


def main() -> None:
    """Run all phases, each in its own process."""
    if len(sys.argv) > 2:
        phase, folder, number = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
        {"simulate": lambda: simulate(folder, int(number)), "read": lambda: read(folder, number),
         "batches": lambda: batches(folder)}[phase]()  # fmt: skip
        return
    users = sys.argv[1] if len(sys.argv) > 1 else "32000"
    with tempfile.TemporaryDirectory() as folder:
        for phase, number in (("simulate", users), ("read", "1"), ("read", "0.05"), ("batches", "0")):
            subprocess.run([sys.executable, __file__, phase, folder + "/log", number], check=True, env=os.environ)


if __name__ == "__main__":
    main()

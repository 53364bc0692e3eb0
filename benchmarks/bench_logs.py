"""Memory and time of logs in parts: simulated, read whole or for a twentieth of the users, cut into batches, learned.

``python benchmarks/bench_logs.py [USERS]``, by default 32,000 users of 14 visits, about 5 million rows; 305,000 users
make 50 million. Each phase runs in a process of its own, whose peak is told with what the libraries alone take. One
phase builds batches of 64 histories of 256 events, from the log and out of a tensor of all of them, in turn; medians of
20. The last one reads the whole log, splits it and trains SASRec for some steps of 128 users, with histories built from
the log and out of tensors of 4,096 users, in turn; medians of 3.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from memory import peak_mb

VISITS, BATCH, HISTORY, ROUNDS = 14, 64, 256, 20
TENSOR_USERS, STEPS, TURNS = 4096, 20, 3


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


def train(folder: Path) -> None:
    """Train SASRec from the log and out of tensors."""
    import torch

    from feedgym.agents.pretrain import pretrain
    from feedgym.agents.sasrec import SASRec
    from feedgym.agents.sequences import SequenceDataset
    from feedgym.data.readers import find_data
    from feedgym.data.sources import ReadOptions
    from feedgym.experiments.retrieval.data import RetrievalData
    from feedgym.experiments.retrieval.presets import sasrec

    torch.set_num_threads(1)
    torch.manual_seed(0)
    before, begin, config = peak_mb(), time.process_time(), sasrec()
    log, catalog = find_data(folder).read(ReadOptions())
    told("read", log.num_events, before, begin)
    world = RetrievalData.of(config, (log, catalog))
    lengths = {"history_length": config.history_length, "session_length": config.session_length}
    histories = world.training_histories(sum(lengths.values()))
    told("split", log.num_events, before, begin)
    known = {"num_items": catalog.num_items, "positives": config.behaviours, "profile_sizes": log.profile_sizes}
    model = SASRec.for_log(config.model, has_time=log.has_time, **known, **lengths)
    sides = {"the log": histories, "tensors": histories.rows(slice(TENSOR_USERS))}
    options = replace(config.fit.pretrain(1, 0), steps=STEPS)

    def pace(side: Any) -> float:
        """Users per CPU second, after the first step."""
        ends: list[float] = []
        with tempfile.TemporaryDirectory() as work:
            pretrain(model, SequenceDataset(histories=side), options, work, lambda *_: ends.append(time.process_time()))
        return (STEPS - 1) * options.batch_size / (ends[-1] - ends[0])

    paces = [[pace(side) for side in sides.values()] for _ in range(TURNS)]
    told("train", log.num_events, before, begin)
    for name, found in zip(sides, np.median(paces, axis=0), strict=True):
        print(f"{'':<10}{found:.0f} users per CPU s from {name}")


def main() -> None:
    """Run all phases, each in its own process."""
    if len(sys.argv) > 2:
        phase, folder, number = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
        {"simulate": lambda: simulate(folder, int(number)), "read": lambda: read(folder, number),
         "batches": lambda: batches(folder), "train": lambda: train(folder)}[phase]()  # fmt: skip
        return
    users = sys.argv[1] if len(sys.argv) > 1 else "32000"
    with tempfile.TemporaryDirectory() as folder:
        for phase, number in (("simulate", users), ("read", "1"), ("read", "0.05"), ("batches", "0"), ("train", "0")):
            subprocess.run([sys.executable, __file__, phase, folder + "/log", number], check=True, env=os.environ)


if __name__ == "__main__":
    main()

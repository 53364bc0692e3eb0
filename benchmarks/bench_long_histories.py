"""Memory and time of HSTU's training step on long histories: all attention weights kept, or computed again by blocks.

    python benchmarks/bench_long_histories.py [--lengths 512 2048] [--users 8] [--repeats 2]

Every cell is a process of its own, because the peak of a process's memory never falls; the two ways take turns. Times
are CPU seconds of one thread. Memory is the peak above the one before the step, when model and batch exist.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from memory import peak_mb
from rich.console import Console
from rich.table import Table

from feedgym.agents.hstu import HSTU, HSTUConfig
from feedgym.agents.layers import hstu
from feedgym.data.batches import EventBatch

NUM_ITEMS = 2_000
KEPT, AGAIN = "kept", "again"


def histories(num_users: int, length: int) -> EventBatch:
    """Full histories of random events."""
    generator = torch.Generator().manual_seed(0)
    return EventBatch(
        item_ids_UT=torch.randint(NUM_ITEMS, (num_users, length), generator=generator),
        behaviours_UTB=torch.rand(num_users, length, 7, generator=generator).round(),
        watch_fraction_UT=torch.rand(num_users, length, generator=generator),
        gap_s_UT=torch.rand(num_users, length, generator=generator) * 1e4,
        mask_UT=torch.ones(num_users, length, dtype=torch.bool),
        profile_UF=torch.zeros(num_users, 1, dtype=torch.long),
        time_of_day_U=torch.zeros(num_users),
    )


def step(way: str, num_users: int, length: int) -> dict[str, float]:
    """One training step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if way == KEPT:
        hstu.LONG = 10**9
    sizes = dict(d_model=64, num_layers=4, num_heads=4, d_qk=16, d_v=16, dropout=0.0, only_positives=False)
    model = HSTU(HSTUConfig(**sizes, num_items=NUM_ITEMS, history_length=length, session_length=10)).train()
    batch, before, began = model.sequence_batch(histories(num_users, length)), peak_mb(), time.process_time()
    loss = model(**batch).loss
    loss.backward()
    grad = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    return {
        "cpu_s": time.process_time() - began,
        "mb": peak_mb() - before,
        "whole_mb": peak_mb(),
        "loss": loss.item(),
        "grad_norm": grad**0.5,
    }


def main() -> None:
    """Print a table of all cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(step(options.cell[0], options.users, int(options.cell[1]))))
        return
    table = Table("events", "weights", "CPU s", "peak of the step, MB", "peak in all, MB", "loss", "gradient's norm")
    for length in options.lengths:
        found: dict[str, list[dict[str, float]]] = {KEPT: [], AGAIN: []}
        for _ in range(options.repeats):
            for way, told in found.items():
                command = [sys.executable, __file__, "--users", str(options.users), "--cell", way, str(length)]
                told.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        for way, told in found.items():
            medians = {name: statistics.median(row[name] for row in told) for name in told[0]}
            cells = [f"{medians['cpu_s']:.1f}", f"{medians['mb']:.0f}", f"{medians['whole_mb']:.0f}"]
            table.add_row(str(length), way, *cells, f"{medians['loss']:.6f}", f"{medians['grad_norm']:.6f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

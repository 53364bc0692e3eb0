"""How cost grows with users, catalogue, history, items per session and sessions per user, one of them at a time.

``python benchmarks/bench_growth.py [--save FILE.json] [--picture FILE.png]``

OneRec and HSTU of the demo's sizes draw sessions, and ShortVideo's users answer one session each. All else stays at 8
users, 10,000 items, 40 events, 5 items and 32 sessions per user (the answering users: 1,024). One thread; seconds are
the processor's, medians over the repeats. HSTU scores all items at each step, so it stops at 100,000.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from bench_sampling import histories_of, tokenizer_of
from rich.console import Console
from rich.table import Table
from saved import machine

from feedgym.agents.generation import sample_sessions
from feedgym.agents.hstu import HSTU, HSTUConfig
from feedgym.agents.onerec import OneRec, OneRecConfig
from feedgym.envs.luck import user_seeds
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.tokenizers.codes import codes_for
from feedgym.tokenizers.item_id import ItemId

USUAL = {"users": 8, "items": 10_000, "events": 40, "length": 5, "samples": 32}
SIZES: dict[str, tuple[int, ...]] = {
    "users": (2, 4, 8, 16, 32, 64),
    "items": (1_000, 10_000, 100_000, 1_000_000),
    "events": (10, 20, 40, 80, 160, 320),
    "length": (2, 5, 10, 20),
    "samples": (8, 16, 32, 64, 128, 256),
}
NAMES = {
    "users": "users (answering: 128 times as many)",
    "items": "items in the catalogue",
    "events": "events of history",
    "length": "items per session",
    "samples": "sessions per user",
}
HSTU_ITEMS = 100_000
"""Most items for which HSTU, which scores all of them at each step, is timed."""
ANSWERING = 128
"""Answering users per user of the agents: their answers are that much cheaper."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    repeats: int = 3
    """Times that each size is measured; medians count."""
    save: Path | None = None
    """File for the figures, as JSON."""
    picture: Path | None = None
    """File for the picture."""


def drawing(kind: type, users: int, items: int, events: int, length: int, samples: int) -> Callable[[], Any]:
    """An agent that draws sessions."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"session_length": length, "history_length": events, "d_model": 64}
    tokenizer: Any
    if kind is HSTU:
        tokenizer = ItemId().freeze(torch.arange(items)[:, None], (items,))
        widths: dict[str, Any] = {"num_heads": 2, "d_qk": 32, "d_v": 32, "loss": "ce"}
        model: Any = HSTU(HSTUConfig(**sizes, **widths, num_items=items, profile_sizes=(2, 2)))
    else:
        tokenizer = tokenizer_of(codes_for(items), items)
        model = OneRec.from_tokenizer(tokenizer, OneRecConfig(**sizes, profile_sizes=(2, 2)))
    model.eval()
    trie, histories = tokenizer.trie(), histories_of(users, events, items, full=True)
    return lambda: sample_sessions(model, trie, histories, samples, length, torch.Generator().manual_seed(1))


def answering(users: int, items: int, events: int, length: int, samples: int) -> Callable[[], Any]:
    """Users that answer one session each; they read no events and get no further sessions."""
    simulator = ShortVideo(ShortVideoConfig(num_items=items))
    state = simulator.reset(user_seeds(users * ANSWERING, 0, "bench"))
    slates_UK = np.random.default_rng(0).integers(items, size=(users * ANSWERING, length))
    return lambda: simulator.respond(state, slates_UK)


def sides(axis: str, size: int) -> dict[str, Callable[[], Any]]:
    """What is timed at a size, by name."""
    at = {**USUAL, axis: size}
    found: dict[str, Callable[[], Any]] = {"OneRec draws": drawing(OneRec, **at)}
    if at["items"] <= HSTU_ITEMS:
        found["HSTU draws"] = drawing(HSTU, **at)
    if axis not in ("events", "samples"):
        found["users answer"] = answering(**at)
    return found


def seconds(do: Callable[[], Any], repeats: int) -> float:
    """Median CPU seconds, after a first time that does not count."""
    do()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        do()
        times.append(time.process_time() - begin)
    return median(times)


def draw(curves: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Write the picture: a panel per axis, both scales logarithmic, with proportional growth dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 5.4), layout="constrained")
    panels = figure.subplots(2, 3).flat
    for axis, panel in zip(curves, panels, strict=False):
        for name, of_size in curves[axis].items():
            panel.loglog([int(size) for size in of_size], list(of_size.values()), "o-", label=name, markersize=3)
        panel.set_ylim(panel.get_ylim())  # of the curves alone
        sizes = np.array([SIZES[axis][0], SIZES[axis][-1]], float)
        low = min(next(iter(of_size.values())) for of_size in curves[axis].values())
        panel.loglog(sizes, low * sizes / sizes[0], ":", color="grey", label="proportional")
        panel.set_xticks(SIZES[axis], [f"{size:,}" if size < 10_000 else f"{size:.0e}" for size in SIZES[axis]])
        panel.minorticks_off()
        panel.set(xlabel=NAMES[axis], ylabel="CPU seconds")
        panel.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].axis("off")  # five panels; the legend takes the sixth's place
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.axes[-1].legend(handles, labels, frameon=False, loc="center")
    figure.savefig(path, dpi=150)


def main(options: Options) -> None:
    """Print a table per axis, and save figures and picture if asked to."""
    torch.set_num_threads(1)
    curves: dict[str, dict[str, dict[str, float]]] = {}
    for axis, sizes in SIZES.items():
        curves[axis] = {}
        for size in sizes:
            for name, do in sides(axis, size).items():
                curves[axis].setdefault(name, {})[str(size)] = seconds(do, options.repeats)
        table = Table(NAMES[axis], *(f"{size:,}" for size in sizes), title="CPU seconds")
        for name, of_size in curves[axis].items():
            table.add_row(name, *(f"{of_size[str(size)]:.3g}" if str(size) in of_size else "" for size in sizes))
        Console(width=110).print(table)
    if options.save is not None:
        command = f"python benchmarks/bench_growth.py --repeats {options.repeats}"
        about = {"command": command, "unit": "CPU seconds", "usual": USUAL, "machine": machine("torch", "numba")}
        options.save.write_text(json.dumps({**about, "curves": curves}, indent=1) + "\n")
    if options.picture is not None:
        draw(curves, options.picture)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

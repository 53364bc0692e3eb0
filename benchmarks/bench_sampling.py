"""Sampled sessions per CPU second: feedgym's agents, transformers' ``generate``, and an earlier revision of feedgym.

``python benchmarks/bench_sampling.py [--before FOLDER] [--save FILE]``. Each shape samples 128 sessions per user on one
thread. All sides take turns in one run, each in a process of its own; a ratio compares medians, and depends much less
on the machine than sessions per second do.

    - TIGER and OneRec: 8 users, 30 events, 7 items of 4 codes, width 128, 4 + 4 layers; 10,000 items.
    - the demo's OneRec: 16 users, up to 40 events, 5 items of 2 codes, width 64, 1 + 2 layers; 2,000 items.
    - T5: transformers' ``generate`` of the first shape. It draws any tokens, not items, and forbids nothing.
    - torch: feedgym without its compiled loops.

``--before`` names a checkout of an earlier revision, for instance made by ``git worktree add``. ``--trie`` times the
trie alone: the children of 1,024 rows' nodes in catalogues of up to a million items.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from saved import commit_of, machine, save

SHAPES = ("TIGER", "OneRec", "demo")
SAMPLES = 128


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    before: Path | None = None
    """Checkout of an earlier revision, which is timed too."""
    rounds: int = 3
    """Times that each side samples."""
    shapes: tuple[str, ...] = SHAPES
    """Which shapes: TIGER, OneRec, demo."""
    generate: bool = True
    """Time transformers' ``generate`` too."""
    trie: bool = False
    """Time the trie instead."""
    save: Path | None = None
    """File for the figures, as JSON."""
    side: str = ""
    """Used by the benchmark itself: the side and shape that this process times, a run per line of its input."""


def tokenizer_of(num_codes: tuple[int, ...], num_items: int) -> Any:
    """Random different codes."""
    import torch

    from feedgym.tokenizers import ResidualKMeans, ResidualKMeansConfig

    every = torch.cartesian_prod(*[torch.arange(n) for n in num_codes])
    codes_IL = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:num_items]]
    return ResidualKMeans(ResidualKMeansConfig(num_codes=num_codes)).freeze(codes_IL, num_codes)


def histories_of(num_users: int, length: int, num_items: int, full: bool) -> Any:
    """Random histories; those that are not full have any length."""
    import torch

    from feedgym.data.batches import EventBatch

    rng = torch.Generator().manual_seed(0)
    length_U = torch.full((num_users,), length) if full else torch.randint(1, length + 1, (num_users,), generator=rng)
    mask_UT = torch.arange(length) < length_U[:, None]
    return EventBatch(
        item_ids_UT=torch.randint(num_items, mask_UT.shape, generator=rng) * mask_UT,
        behaviours_UTB=torch.rand(*mask_UT.shape, 7, generator=rng).round() * mask_UT[..., None],
        watch_fraction_UT=torch.rand(mask_UT.shape, generator=rng) * mask_UT,
        gap_s_UT=torch.rand(mask_UT.shape, generator=rng) * 1e5 * mask_UT,
        mask_UT=mask_UT,
        profile_UF=torch.randint(2, (num_users, 2), generator=rng),
        time_of_day_U=torch.rand(num_users, generator=rng) * 24,
    )


def sampler(shape: str) -> tuple[Callable[[], Any], int]:
    """What samples once, and how many sessions."""
    import torch

    from feedgym.agents.generation import sample_sessions
    from feedgym.agents.onerec import OneRec, OneRecConfig
    from feedgym.agents.tiger import Tiger, TigerConfig

    torch.manual_seed(0)
    big = shape != "demo"
    num_users, length, num_items = (8, 30, 10_000) if big else (16, 40, 2000)
    tokenizer = tokenizer_of((32,) * 4 if big else (32, 128), num_items)
    sizes: dict[str, Any] = {"session_length": 7 if big else 5, "history_length": length}
    if big:
        sizes |= {"d_model": 128, "num_heads": 4, "encoder_layers": 4, "decoder_layers": 4}
    model: Any
    if shape == "TIGER":
        config = TigerConfig(**sizes, head_width=32, d_ff=512, only_positives=False)
        model = Tiger.from_tokenizer(tokenizer, config)
    else:
        config = OneRecConfig(**sizes, d_ff=256 if big else 128, profile_sizes=(2, 2))
        model = OneRec.from_tokenizer(tokenizer, config)
    model.eval()
    trie, histories = tokenizer.trie(), histories_of(num_users, length, num_items, full=big)

    def sample() -> Any:
        generator = torch.Generator().manual_seed(1)
        return sample_sessions(model, trie, histories, SAMPLES, sizes["session_length"], generator)

    return sample, num_users * SAMPLES


def generator_of_t5() -> tuple[Callable[[], Any], int]:
    """Transformers' T5 of TIGER's shape: 120 tokens of history, 28 codes and 7 BOS."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 512, "num_layers": 4}
    model = T5ForConditionalGeneration(
        T5Config(**sizes, num_decoder_layers=4, vocab_size=130, decoder_start_token_id=1)
    )
    model.eval()
    ids = torch.randint(2, 130, (8, 121))

    def sample() -> Any:
        torch.manual_seed(1)
        with torch.inference_mode():
            return model.generate(
                ids, do_sample=True, num_return_sequences=SAMPLES, max_new_tokens=34, min_new_tokens=34, top_k=0
            )

    return sample, 8 * SAMPLES


def serve(side: str) -> None:
    """Time a run per line of input."""
    import torch

    torch.set_num_threads(1)
    name, shape = side.split("/")
    sample, num = generator_of_t5() if name == "transformers" else sampler(shape)
    if name == "torch":
        from feedgym.agents.layers import compiled

        compiled.HAS_NUMBA = False
    sample()
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.process_time()
        sample()
        print(num / (time.process_time() - begin), flush=True)


class Side:
    """A process that times one side."""

    def __init__(self, name: str, shape: str, package: Path) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(package), "HF_HUB_OFFLINE": "1"}
        self.name, self.paces = name, []  # type: tuple[str, list[float]]
        command = [sys.executable, __file__, "--side", f"{name}/{shape}"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, cwd="/", **pipes)
        self.answer()

    def answer(self) -> str:
        """The next line of output."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{self.name} stopped; run {' '.join(map(str, self.process.args))} to see why.")
        return line

    def run(self) -> None:
        """Sample once."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.paces.append(float(self.answer()))

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def time_shape(shape: str, options: Options) -> dict[str, float]:
    """Median sessions per CPU second of each side."""
    here = Path(__file__).resolve().parents[1]
    packages = {"feedgym": here, "torch": here}
    if options.before is not None:
        packages["before"] = options.before.resolve()
    if options.generate and shape != "demo":
        packages["transformers"] = here
    sides = [Side(name, shape, package) for name, package in packages.items()]
    for _ in range(options.rounds):
        for side in sides:
            side.run()
    for side in sides:
        side.close()
    return {side.name: median(side.paces) for side in sides}


def time_trie(options: Options) -> dict[str, dict[str, float]]:
    """Median ms of the children of 1,024 rows per level, by the number of items."""
    import numpy as np
    import torch

    from feedgym.tokenizers import Trie

    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for num_items in (10**4, 10**5, 10**6):
        rng = np.random.default_rng(0)
        flat = rng.choice(512**3, num_items, replace=False)
        codes_IL = torch.from_numpy(np.stack([flat // 512**2, flat // 512 % 512, flat % 512], axis=1))
        trie, items_R = Trie.from_codes(codes_IL, (512,) * 3), torch.from_numpy(rng.integers(num_items, size=1024))
        written_RK = torch.from_numpy(rng.integers(num_items, size=(1024, 5)))
        blocked_UJ = torch.from_numpy(rng.integers(num_items, size=(8, 40)))  # 8 users, 128 sessions each
        found[f"{num_items:,} items"] = {}
        for level in range(3):
            nodes_R, times = trie.path_IL[items_R, level], []
            for _ in range(10 * options.rounds):
                begin = time.process_time()
                trie.children(nodes_R, level, written_RK, None, blocked_UJ)
                times.append((time.process_time() - begin) * 1e3)
            found[f"{num_items:,} items"][f"level {level + 1}, ms"] = median(times)
    return found


def main(options: Options) -> None:
    """Print a table, and save it if asked to."""
    from rich.console import Console
    from rich.table import Table

    if options.side:
        serve(options.side)
        return
    if options.trie and options.save is not None:
        raise SystemExit("--save is for sessions per second; leave it out with --trie.")
    if options.trie:
        found = time_trie(options)
        table = Table("", *next(iter(found.values())), title="Children of 1,024 rows")
    else:
        found = {shape: time_shape(shape, options) for shape in options.shapes}
        table = Table("", "feedgym", "torch", "before", "transformers", "ratios", title="Sessions per CPU second")
    for name, row in found.items():
        if options.trie:
            table.add_row(name, *(f"{value:.2f}" for value in row.values()))
            continue
        cells = [f"{row[side]:,.0f}" if side in row else "" for side in ("feedgym", "torch", "before", "transformers")]
        ratios = [f"{row['feedgym'] / pace:.2f}" for side, pace in row.items() if side != "feedgym"]
        table.add_row(name, *cells, " ".join(ratios))
    Console(width=100).print(table)
    if options.save is not None:
        before = f" --before {commit_of(options.before)}" if options.before else ""
        command = f"python benchmarks/bench_sampling.py --rounds {options.rounds}{before}"
        save(options.save, command, "sessions per CPU second", "feedgym", found, machine("torch", "transformers"))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options, description=__doc__))

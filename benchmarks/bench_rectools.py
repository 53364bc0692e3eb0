"""Training steps per CPU second of HSTU and SASRec: feedgym's and RecTools', in turn and in one run.

``python benchmarks/bench_rectools.py --rectools VENV [--save FILE]``. VENV is a virtual environment for RecTools, made
if it is not there; each side runs in a process of its own, on one thread.

The shape is that of MovieLens-1M: 128 users with 18 to 201 events, half of them below 100; at most 3,416 items, width
50, two blocks, one head, sampled softmax with 128 negatives, HSTU with positions and times. A step is forward, backward
and Adam on one batch. RecTools pads all users to 200 events; feedgym computes users of like length together. Times
within a history are a minute apart. What RecTools adds around its steps (Lightning) is not timed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
RECTOOLS = ("torch==2.13.0", "rectools[torch]==0.19.0")
MODELS = ("HSTU", "SASRec")
USERS, ITEMS, LONGEST, WIDTH, BLOCKS, NEGATIVES = 128, 3416, 201, 50, 2, 128


def lengths() -> list[int]:
    """Events of each user."""
    import numpy as np

    length_U = np.exp(np.random.default_rng(0).normal(np.log(96), 1.0, USERS))
    return np.clip(length_U, 18, LONGEST).astype(int).tolist()  # type: ignore[no-any-return]


def of_feedgym(name: str) -> Callable[[], Any]:
    """A step of feedgym's model."""
    import torch

    from feedgym.agents.hstu import HSTU, HSTUConfig
    from feedgym.agents.sasrec import SASRec, SASRecConfig
    from feedgym.data.batches import EventBatch
    from feedgym.data.events import BEHAVIOURS

    torch.manual_seed(0)
    mask_UT = torch.arange(LONGEST) < torch.tensor(lengths())[:, None]
    events = EventBatch(
        item_ids_UT=torch.randint(ITEMS, mask_UT.shape),
        behaviours_UTB=torch.ones(*mask_UT.shape, len(BEHAVIOURS)),
        watch_fraction_UT=torch.ones(mask_UT.shape),
        gap_s_UT=60 * torch.ones(mask_UT.shape),
        mask_UT=mask_UT,
        profile_UF=torch.zeros(USERS, 0, dtype=torch.long),
        time_of_day_U=torch.zeros(USERS),
    )
    sizes: dict[str, Any] = {"num_items": ITEMS, "d_model": WIDTH, "history_length": LONGEST, "num_layers": BLOCKS}
    sizes |= {"num_negatives": NEGATIVES, "num_heads": 1, "loss": "sampled_softmax"}
    model: Any = HSTU(HSTUConfig(**sizes)) if name == "HSTU" else SASRec(SASRecConfig(**sizes))
    batch, optimizer = model.sequence_batch(events), torch.optim.Adam(model.parameters(), lr=1e-3)
    return step_of(lambda: model(**batch).loss, model.train(), optimizer)


def of_rectools(name: str) -> Callable[[], Any]:
    """A step of RecTools' model."""
    import numpy as np
    import pandas as pd
    import torch
    from rectools.dataset import Dataset
    from rectools.models import HSTUModel, SASRecModel

    torch.manual_seed(0)
    length_U = lengths()
    rows = pd.DataFrame({"user_id": np.repeat(np.arange(USERS), length_U), "weight": 1.0})
    rows["item_id"] = np.random.default_rng(1).integers(ITEMS, size=len(rows))
    rows["datetime"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(60 * rows.groupby("user_id").cumcount(), unit="s")
    dataset = Dataset.construct(rows)
    sizes: dict[str, Any] = {"n_blocks": BLOCKS, "n_heads": 1, "n_factors": WIDTH, "session_max_len": LONGEST - 1}
    sizes |= {"loss": "sampled_softmax", "n_negatives": NEGATIVES, "batch_size": USERS}
    trained: Any = (HSTUModel if name == "HSTU" else SASRecModel)(**sizes)
    trained._build_model_from_dataset(dataset)
    module = trained.lightning_model.train()
    module.log = lambda *_, **__: None  # no trainer is attached
    batch = next(iter(trained.data_preparator.get_dataloader_train()))
    assert len(batch["x"]) == USERS
    return step_of(lambda: module.training_step(batch, 0), module, module.configure_optimizers())


def step_of(loss: Callable[[], Any], model: Any, optimizer: Any) -> Callable[[], Any]:
    """Forward, backward and the optimiser's step."""

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def serve(side: str, name: str) -> None:
    """Time a step per line of input."""
    import torch

    torch.set_num_threads(1)
    step = of_rectools(name) if side == "RecTools" else of_feedgym(name)
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.process_time()
        step()
        print(1 / (time.process_time() - begin), flush=True)


def rectools_python(folder: Path) -> Path:
    """The interpreter of an environment with RecTools, made if needed."""
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for package in RECTOOLS:
            subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
        done.touch()
    return python


def paces(pythons: dict[str, Path], name: str, rounds: int) -> dict[str, float]:
    """Median steps per CPU second of each side."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
    sides = {
        side: subprocess.Popen([str(python), __file__, "--side", side, "--model", name], **pipes)
        for side, python in pythons.items()
    }
    found: dict[str, list[float]] = {side: [] for side in sides}
    for process in sides.values():
        while (line := process.stdout.readline()) != "ready\n":  # type: ignore[union-attr]
            if not line:
                raise SystemExit("A side stopped; see its message above.")
    for _ in range(rounds):
        for side, process in sides.items():
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            found[side].append(float(process.stdout.readline()))  # type: ignore[union-attr]
    for process in sides.values():
        process.communicate()
    return {side: median(values) for side, values in found.items()}


def main() -> None:
    """Print each model's paces and ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rectools", type=Path, help="a virtual environment for RecTools, made if it is not there")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each side")
    parser.add_argument("--save", type=Path, help="a JSON file for the figures")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        serve(given.side, given.model)
        return
    from saved import machine, save

    pythons = {"feedgym": Path(sys.executable)}
    if given.rectools:
        pythons["RecTools"] = rectools_python(given.rectools.resolve())
    found = {f"{name}, training step": paces(pythons, name, given.rounds) for name in MODELS}
    for what, of_side in found.items():
        print(what, " ".join(f"{side} {pace:.2f}/s" for side, pace in of_side.items()))
    if given.save:
        command = f"python benchmarks/bench_rectools.py --rounds {given.rounds} --rectools VENV"
        about = machine("torch") | {"rectools": RECTOOLS[1].rpartition("=")[2]}
        save(given.save, command, "training steps per CPU second", "feedgym", found, about)


if __name__ == "__main__":
    main()

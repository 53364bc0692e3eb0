"""Speed of training and scoring of HSTU and SASRec, and the gain of two optimisations; all sides take turns in one run.

``python benchmarks/bench_next_item.py --help``. Three parts, in seconds of the process's own:
    - the products of a sampled softmax with its gradients: of only the wanted items (as in the models), of all items
      and then gathered, and with the wanted items' vectors gathered first;
    - a training step: a batch's sequences in groups of similar length (as in the models), or all as long as the
      longest;
    - scores of all items: the same.

Histories are as long as those of MovieLens-1M: half of them below 100 events, a quarter above 200.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from feedgym.agents import sequences
from feedgym.agents.hstu import HSTU, HSTUConfig
from feedgym.agents.sasrec import SASRec, SASRecConfig
from feedgym.agents.sequences import ChosenProducts, SequenceModel
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS

MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "HSTU": (HSTU, HSTUConfig, {"use_time": False}),
    "SASRec": (SASRec, SASRecConfig, {}),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the timing; the sizes are those of `feedgym run hstu --data ml-1m`."""

    users: int = 128
    """Histories of a batch."""
    items: int = 3416
    """Items of the catalogue."""
    positions: int = 14_000
    """Positions of the first part."""
    negatives: int = 128
    """Items drawn per position."""
    d_model: int = 50
    """D."""
    history_length: int = 200
    """T."""
    rounds: int = 5
    """Timed repetitions of each side, in turn."""


def in_turn(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of each side, one figure per round; the first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            begin = time.process_time()
            side()
            if turn:
                found[name].append(time.process_time() - begin)
    return found


def products(options: Options) -> dict[str, Callable[[], Any]]:
    """Three ways to the same products and gradients."""
    g = torch.Generator().manual_seed(0)
    queries_ND = torch.randn(options.positions, options.d_model, generator=g).requires_grad_()
    items_ID = torch.randn(options.items, options.d_model, generator=g).requires_grad_()
    idx_NS = torch.randint(options.items, (options.positions, 1 + options.negatives), generator=g)

    def learning(logits: Callable[[], torch.Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(logits().log_softmax(1)[:, 0].sum(), (queries_ND, items_ID))

    return {
        "wanted items alone": learning(lambda: ChosenProducts.apply(queries_ND, items_ID, idx_NS)),
        "all items": learning(lambda: (queries_ND @ items_ID.T).gather(1, idx_NS)),
        "gathered vectors": learning(lambda: (items_ID[idx_NS] @ queries_ND[..., None]).squeeze(-1)),
    }


def histories(options: Options) -> EventBatch:
    """Random histories with the lengths of MovieLens-1M."""
    rng, g = np.random.default_rng(0), torch.Generator().manual_seed(0)
    length_U = np.clip(np.exp(rng.normal(np.log(96), 1.0, options.users)), 18, options.history_length + 10)
    mask_UT = torch.arange(int(length_U.max())) < torch.from_numpy(length_U)[:, None]
    return EventBatch(
        item_ids_UT=torch.randint(options.items, mask_UT.shape, generator=g),
        behaviours_UTB=torch.ones(*mask_UT.shape, len(BEHAVIOURS)),
        watch_fraction_UT=torch.ones(mask_UT.shape),
        gap_s_UT=60 * torch.ones(mask_UT.shape),
        mask_UT=mask_UT,
        profile_UF=torch.zeros(options.users, 0, dtype=torch.long),
        time_of_day_U=torch.zeros(options.users),
    )


def at_once(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same with all users in one group, as long as the longest of them."""

    def whole() -> Any:
        groups, sequences.ROWS_ALIKE = sequences.ROWS_ALIKE, 10**9
        try:
            return work()
        finally:
            sequences.ROWS_ALIKE = groups

    return whole


def steps(model: SequenceModel, events: EventBatch) -> dict[str, Callable[[], Any]]:
    """A training step in groups, and at once."""
    optimizer, batch = torch.optim.AdamW(model.parameters(), lr=1e-4), model.sequence_batch(events)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return {"like lengths together": step, "all at once": at_once(step)}


def main(options: Options) -> None:
    """Print every side's seconds with its ratio to the first."""
    table = Table(title=f"Seconds of processor time, {torch.get_num_threads()} thread(s)")
    for header in ("", "", "seconds", "ratio"):
        table.add_column(header, justify="left" if not header else "right")
    events, parts = histories(options), {"products, with gradients": products(options)}
    for name, (kind, config, switches) in MODELS.items():
        torch.manual_seed(0)
        sizes = {"num_items": options.items, "d_model": options.d_model, "history_length": options.history_length}
        model = kind(config(**sizes, num_negatives=options.negatives, **switches)).train()
        score: Callable[[], Any] = lambda model=model: model.scores(events)  # type: ignore[misc]  # noqa: E731
        parts[f"{name}, training step"] = steps(model, events)
        parts[f"{name}, scores of all items"] = {"like lengths together": score, "all at once": at_once(score)}
    for part, sides in parts.items():
        found = in_turn(sides, options.rounds)
        base = np.array(next(iter(found.values())))
        for row, (side, seconds) in enumerate(found.items()):
            ratio = float(np.median(np.array(seconds) / base))
            table.add_row(part if row == 0 else "", side, f"{np.median(seconds):.3f}", f"{ratio:.2f}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

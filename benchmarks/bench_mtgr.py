"""One sample per user against one per candidate: compares MTGR's training and scoring of 64 candidates per user.

``python benchmarks/bench_mtgr.py [SECONDS]``, seconds per row and side. Candidates per second are those whose loss (or
score) was computed; a training step is forward, backward and Adam. The second group of rows has windows whose
candidates see the feedback to earlier ones. There the samples of one candidate get their real-time events for free, as
a slice of the aggregated sample's embedded tokens, so the true ratio is higher. Exits with 1 if training is less than
10 times as fast, or if scores disagree.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from feedgym.agents.layers.mtgr import Domain
from feedgym.agents.mtgr import MTGR, MTGRConfig, SampleTokens
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS
from feedgym.data.ranking import PER_CANDIDATE, RankingBatch

USERS, HISTORY, CANDIDATES, ITEMS = 4, 200, 64, 10_000
TARGET = 10.0
TOLERANCE = 1e-4


def random_rows(num_users: int, requests: int, seed: int = 0) -> RankingBatch:
    """Users with whole histories and CANDIDATES candidates, spread over requests an hour apart."""
    g = torch.Generator().manual_seed(seed)
    past, shown = (num_users, HISTORY), (num_users, CANDIDATES)

    def feedback(*shape: int) -> Tensor:
        return (torch.rand(*shape, len(BEHAVIOURS), generator=g) < 0.2).float()

    histories = EventBatch(
        item_ids_UT=torch.randint(ITEMS, past, generator=g),
        behaviours_UTB=feedback(*past),
        watch_fraction_UT=torch.rand(past, generator=g),
        gap_s_UT=3600 * torch.rand(past, generator=g),
        mask_UT=torch.ones(past, dtype=torch.bool),
        profile_UF=torch.zeros(num_users, 3, dtype=torch.long),
        time_of_day_U=24 * torch.rand(num_users, generator=g),
    )
    place_NK = torch.arange(CANDIDATES).expand(shown)
    request_NK = place_NK * requests // CANDIDATES
    within_s_NK = 10 * place_NK if requests > 1 else 0 * place_NK
    return RankingBatch(
        histories=histories,
        item_ids_NK=torch.randint(ITEMS, shown, generator=g),
        mask_NK=torch.ones(shown, dtype=torch.bool),
        behaviours_NKB=feedback(*shown),
        watch_fraction_NK=torch.rand(shown, generator=g),
        time_s_NK=(3600 * request_NK + within_s_NK).double(),
        request_NK=request_NK,
    )


def apart(rows: RankingBatch) -> RankingBatch:
    """One row per candidate of requests, each with the whole history."""
    num_users = len(rows)
    user_N = torch.arange(num_users).repeat_interleave(CANDIDATES)
    flat = {name: getattr(rows, name).flatten(0, 1)[:, None] for name in PER_CANDIDATE}
    return RankingBatch(histories=rows.histories.rows(user_N), **flat)


def sample_apart(sample: SampleTokens, k: Tensor) -> SampleTokens:
    """The sample with only candidate k of each user, and without the events it does not see."""
    time_NK, candidates_NKD = sample.time_NK[:, k], sample.candidates_NKD[:, k]
    user_N = torch.arange(len(time_NK)).repeat_interleave(len(k))
    time_N1 = time_NK.reshape(-1, 1)
    static_NZ = sample.domain_NZ[user_N] != Domain.REAL_TIME
    known_NZ = sample.mask_NZ[user_N] & (static_NZ | (sample.time_NZ[user_N] < time_N1))
    width = int(known_NZ.any(0).nonzero().max()) + 1
    return replace(
        sample,
        context_NZD=sample.context_NZD[user_N, :width],
        candidates_NKD=candidates_NKD.reshape(-1, 1, candidates_NKD.shape[-1]),
        domain_NZ=sample.domain_NZ[user_N, :width],
        mask_NZ=known_NZ[:, :width],
        time_NZ=sample.time_NZ[user_N, :width],
        time_NK=time_N1,
        num_tokens_N=known_NZ.sum(1) + 1,
    )


def pace(step: Callable[[], None], candidates: int, seconds: float) -> float:
    """Candidates per second over about ``seconds``, after a step that does not count."""
    step()
    begin, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < seconds or steps == 0:
        step()
        steps += 1
    return steps * candidates / passed


class Sides:
    """Both ways of computing the same logits [N, K] of the first task.

    Args:
        model: the ranker.
        rows: users.
    """

    def __init__(self, model: MTGR, rows: RankingBatch) -> None:
        self.model, self.rows = model, rows
        self.single = apart(rows) if int(rows.request_NK.max()) == 0 else None

    def aggregated(self) -> Tensor:
        """One sample per user."""
        return self.model.logits_NKM(self.rows)[..., 0]

    def separate(self) -> Tensor:
        """One sample per candidate."""
        if self.single is not None:
            return self.model.logits_NKM(self.single)[..., 0].view(len(self.rows), -1)
        sample = self.model.embed(self.rows)
        return self.model.scores_NKM(sample_apart(sample, torch.arange(CANDIDATES)))[..., 0].view(len(self.rows), -1)

    def training(self, logits: Callable[[], Tensor]) -> Callable[[], None]:
        """A training step on the logits."""
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(logits(), self.rows.behaviours_NKB[..., 0]).backward()
            optimizer.step()

        return step

    def scoring(self, logits: Callable[[], Tensor]) -> Callable[[], None]:
        """A step without training."""

        def step() -> None:
            with torch.no_grad():
                logits()

        return step


def main() -> int:
    """Prints a row for each kind of sample and of work; returns 1 on failure."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    torch.manual_seed(0)
    config = MTGRConfig(
        num_items=ITEMS, profile_sizes=(6, 2, 3), tasks=("click",), d_model=64, num_heads=2, dropout=0.0
    )
    table = Table(
        title=f"Candidates per second: {CANDIDATES} per user, history of {HISTORY}, {torch.get_num_threads()} threads"
    )
    for header in ("candidates of", "work", "one sample per user", "one per candidate", "ratio", "largest difference"):
        table.add_column(header, justify="right")
    kept = True
    for requests in (1, 4):
        sides = Sides(MTGR(config), random_rows(USERS, requests))
        with torch.no_grad():
            difference = float((sides.aggregated() - sides.separate()).abs().max())
        for work, step in (("training", sides.training), ("scoring", sides.scoring)):
            many, few = (pace(step(way), USERS * CANDIDATES, seconds) for way in (sides.aggregated, sides.separate))
            kind = "one request" if requests == 1 else f"a window of {requests} requests"
            table.add_row(kind, work, f"{many:,.0f}", f"{few:,.0f}", f"{many / few:.1f}", f"{difference:.1e}")
            kept &= difference < TOLERANCE and (work == "scoring" or many / few >= TARGET)
    Console().print(table)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())

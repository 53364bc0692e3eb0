"""GenRank against HSTU's interleaved timeline at equal history, width and depth, in one run (arXiv:2505.04180).

``python benchmarks/bench_genrank.py --help``. Three parts:
    - speed: training events per second of both, and of GenRank's tokens with HSTU's learned bias, in turn; an event is
      one of the history or a candidate, and seconds are the process's own, so that other processes matter little;
    - arithmetic: multiplications of attention and of the projections around it, counted by torch as it runs;
    - quality: all are trained on the earliest requests of one log and judged by its latest fifth, with GenRank's
      published ablations. Differences are paired over users; their intervals are bootstraps over users and do not
      include the spread over seeds, which the single seeds' figures show.

Without ``--data`` the log is from ShortVideo users. ``--users 0`` skips quality. Published, on private data: training
1.95 times as fast, AUC +.0006; a loss on history too costs more than .0100, a fully visible history over .0015.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from paired import check_only, paired_table, samples_of_users
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from feedgym.agents.fit import Curve, FitConfig, fit
from feedgym.agents.genrank import GenRank, GenRankConfig
from feedgym.agents.hstu_rank import HSTURanker, HSTURankerConfig
from feedgym.agents.pretrain import Schedule
from feedgym.agents.ranker import Ranker, RankingDataset
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Catalog, EventLog
from feedgym.data.ranking import RankingBatch, RankingRows, ranking_requests, ranking_windows
from feedgym.data.readers import load_data
from feedgym.data.splits import split_time
from feedgym.envs.logging import collect_log
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.experiments.rank.metrics import AUC, grouped_auc

BASE = "HSTU interleaved"
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    BASE: (HSTURanker, HSTURankerConfig, {"actions": "interleaved"}),
    "HSTU interleaved, loss on history": (
        HSTURanker,
        HSTURankerConfig,
        {"actions": "interleaved", "loss_on_history": True},
    ),
    "HSTU, actions added": (HSTURanker, HSTURankerConfig, {"actions": "added"}),
    "GenRank": (GenRank, GenRankConfig, {}),
    "GenRank, learned bias": (GenRank, GenRankConfig, {"bias": "learned"}),
    "GenRank, decay": (GenRank, GenRankConfig, {"attention": "decay"}),
    "GenRank, softmax": (GenRank, GenRankConfig, {"attention": "softmax"}),
    "GenRank, loss on history": (GenRank, GenRankConfig, {"loss_on_history": True}),
    "GenRank, history seen whole": (GenRank, GenRankConfig, {"history_mask": "full"}),
}
FAST = (BASE, "GenRank", "GenRank, learned bias")
"""The timed variants."""
CANDIDATES, BATCH, ITEMS = 10, 32, 2000
"""Sizes of the timed batches."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the comparison."""

    data: str | None = None
    """A real log that `feedgym data inspect` reads."""
    users: int = 1500
    """Simulated users; 0 measures only speed."""
    visits: int = 12
    """Visits per simulated user."""
    window_s: float = 0.0
    """Length in seconds of the exposures in a row, for logs that show one item per request; 0: one row per request."""
    most: int = 0
    """Training rows, drawn at random, and a third as many that choose the epoch; 0 takes all."""
    judged: int = 0
    """Rows for the judgement, drawn at random; 0 takes all."""
    seed: int = 0
    """Seed of the first training of each variant; the log is the same for all."""
    seeds: int = 1
    """Trainings of each variant."""
    epochs: int = 3
    """Most passes; the best by validation is judged."""
    patience: int = 1
    """Passes without improvement after which a training ends."""
    history_length: int = 50
    """T in training."""
    timed_history: int = 100
    """T in timing."""
    d_model: int = 32
    """D in training; timing uses 64."""
    num_layers: int = 2
    """Layers in training; timing uses 3."""
    lr: float = 2e-3
    """AdamW's learning rate."""
    schedule: Schedule = "constant_with_warmup"
    """Its schedule: constant_with_warmup stays, linear and cosine fall to 0 at the last of ``epochs``."""
    task: str = "click"
    """The behaviour to predict."""
    rounds: int = 5
    """Timed steps of each, in turn."""
    only: tuple[str, ...] = ()
    """Train only these variants."""


# ---------------------------------------------------------------- speed and arithmetic


def random_rows(history: int, num: int = BATCH, seed: int = 0) -> RankingBatch:
    """Rows of whole histories, an event every hour, and CANDIDATES candidates of one request."""
    g = torch.Generator().manual_seed(seed)
    past, shown = (num, history), (num, CANDIDATES)
    done = (torch.rand(num, history, len(BEHAVIOURS), generator=g) < 0.2).float()
    histories = EventBatch(
        item_ids_UT=torch.randint(ITEMS, past, generator=g),
        behaviours_UTB=done,
        watch_fraction_UT=torch.rand(past, generator=g),
        gap_s_UT=7200 * torch.rand(past, generator=g),
        mask_UT=torch.ones(past, dtype=torch.bool),
        profile_UF=torch.zeros(num, 3, dtype=torch.long),
        time_of_day_U=24 * torch.rand(num, generator=g),
    )
    return RankingBatch.unlabelled(histories, torch.randint(ITEMS, shown, generator=g))


def timed_model(name: str, history: int) -> Ranker:
    """A model of the timed size."""
    kind, config, switches = KINDS[name]
    sizes = {"d_model": 64, "num_layers": 3, "num_heads": 2, "d_qk": 32, "d_v": 32, "dropout": 0.0}
    torch.manual_seed(0)
    return kind(config(num_items=ITEMS, profile_sizes=(6, 2, 3), history_length=history, **sizes, **switches))


def events_a_second(options: Options) -> dict[str, list[float]]:
    """Training events per second of processor time, one figure per round; the models take turns on the same machine."""
    columns = random_rows(options.timed_history).columns()
    events = BATCH * (options.timed_history + CANDIDATES)
    models = {name: timed_model(name, options.timed_history) for name in FAST}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}
    found: dict[str, list[float]] = {name: [] for name in FAST}
    for turn in range(options.rounds + 1):
        for name, model in models.items():
            begin = time.process_time()
            optimizers[name].zero_grad()
            model(**columns).loss.backward()
            optimizers[name].step()
            if turn:  # the first step does not count
                found[name].append(events / (time.process_time() - begin))
    return found


def arithmetic(history: int) -> dict[str, tuple[int, int]]:
    """FLOPs of attention and of all other matrix products in one batch's forward pass."""
    columns, found = random_rows(history).columns(), {}
    for name in FAST:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            timed_model(name, history)(**columns)
        by_kind = {str(kind): count for kind, count in counter.get_flop_counts()["Global"].items()}
        attention = by_kind.get("aten.bmm", 0)  # products of queries with keys, and of weights with values
        found[name] = attention, sum(by_kind.values()) - attention
    return found


def speed_table(options: Options) -> Table:
    """Speed and arithmetic, each with its ratio to the interleaved timeline."""
    table = Table(title=f"History of {options.timed_history}, width 64, 3 layers, {torch.get_num_threads()} thread(s)")
    for header in ("", "training events a CPU second", "ratio", "attention MFLOP", "ratio", "other MFLOP", "ratio"):
        table.add_column(header, justify="right")
    pace, flops = events_a_second(options), arithmetic(options.timed_history)
    for name in FAST:
        ratio = float(np.median(np.array(pace[name]) / np.array(pace[BASE])))
        cells = [f"{np.median(pace[name]):,.0f}", f"{ratio:.2f}"]
        for own, base in zip(flops[name], flops[BASE], strict=True):
            cells += [f"{own / 1e6:,.1f}", f"{own / base:.2f}"]
        table.add_row(name, *cells)
    return table


# ---------------------------------------------------------------- quality


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """Requests for the judgement of one task."""

    rows: RankingRows
    task: str

    def figures(self, score_NK: torch.Tensor) -> tuple[AUC, Any]:
        """AUC and GAUC."""
        batch = self.rows.batch
        users, user_N = np.unique(self.rows.user_idx_N, return_inverse=True)
        score_N = score_NK[batch.mask_NK].double().numpy()
        label_N = batch.behaviours_NKB[..., BEHAVIOUR_IDX[self.task]][batch.mask_NK].numpy() > 0
        user_N = np.repeat(user_N, batch.mask_NK.sum(1).numpy())
        given = (label_N, score_N, user_N, len(users))
        return AUC(*given), grouped_auc(*given)

    def minus_loss(self, model: Ranker) -> float:
        """Figure for choosing the epoch."""
        return -model.mean_loss(self.rows.batch)


def trained(
    options: Options,
    name: str,
    known: Mapping[str, Any],
    content_IE: torch.Tensor,
    train: RankingBatch,
    judge: Judge,
    seed: int,
) -> tuple[Ranker, Curve]:
    """A model with the weights of its best epoch, and the record of validation."""
    kind, config, switches = KINDS[name]
    torch.manual_seed(seed)
    width = options.d_model // 2
    model = kind(
        config(d_model=options.d_model, num_layers=options.num_layers, num_heads=2, d_qk=width, d_v=width,
               history_length=options.history_length, tasks=(options.task,), watch=False, **known, **switches),
        content_IE,
    )  # fmt: skip
    settings = FitConfig(batch_size=64, lr=options.lr, schedule=options.schedule, adam_beta2=0.999, max_grad_norm=1.0,
                         patience=options.patience, group_by_length=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return fit(model, RankingDataset(rows=train), settings, options.epochs, seed, judge.minus_loss, Path(folder))


def simulated(options: Options) -> tuple[EventLog, Catalog]:
    """A log of ShortVideo users."""
    simulator = ShortVideo(ShortVideoConfig(num_items=500))
    log = collect_log(simulator, num_users=options.users, num_visits=options.visits, session_length=10, seed=0)
    return log, simulator.catalog


def item_rates(train: RankingBatch, label: int, num_items: int) -> torch.Tensor:
    """Rate of the behaviour for each item [I], with 20 exposures of the mean added."""
    item_N, done_N = train.item_ids_NK[train.mask_NK], train.behaviours_NKB[..., label][train.mask_NK]
    shown_I, done_I = torch.bincount(item_N, minlength=num_items), torch.bincount(item_N, done_N, num_items)
    return (done_I + 20 * done_N.mean()) / (shown_I + 20)


def drawn(part_N: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of a part's rows, drawn once; all if it is 0."""
    idx = np.flatnonzero(part_N)
    return np.sort(np.random.default_rng(0).choice(idx, most, replace=False)) if 0 < most < len(idx) else idx


def quality(options: Options, console: Console) -> Table:
    """Train all variants and judge them by the log's latest requests."""
    log, catalog = simulated(options) if options.data is None else load_data(options.data)
    if options.window_s:
        rows = ranking_windows(log, catalog, options.history_length, 32, options.window_s)
    else:
        rows = ranking_requests(log, catalog, options.history_length)
    split = split_time(rows, validation=0.1, held_out=0.2)
    train = rows.rows(drawn(split.train_N, options.most)).batch
    choosing = Judge(rows=rows.rows(drawn(split.validation_N, options.most // 3)), task=options.task)
    test = Judge(rows=rows.rows(drawn(split.held_out_N, options.judged)), task=options.task)
    real_NK, label = test.rows.batch.mask_NK, BEHAVIOUR_IDX[options.task]
    console.print(
        f"{len(train):,} rows of {int(train.mask_NK.sum()):,} exposures train; {int(real_NK.sum()):,} exposures of "
        f"{len(test.rows):,} rows judge, {float(test.rows.batch.behaviours_NKB[..., label][real_NK].mean()):.3f} "
        f"of them with {options.task}."
    )
    rates = test.figures(item_rates(train, label, catalog.num_items)[test.rows.batch.item_ids_NK])
    console.print(f"Items' rates in training alone: AUC {rates[0].mean():.4f}, GAUC {rates[1].mean():.4f}")
    counts_RU = samples_of_users(len(np.unique(test.rows.user_idx_N)))
    content_IE = torch.from_numpy(catalog.content_IE)
    known = {"num_items": catalog.num_items, "profile_sizes": log.profile_sizes}
    known |= {"content_width": content_IE.shape[1]}
    found: dict[str, list[np.ndarray]] = {name: [] for name in options.only or KINDS}
    for seed in range(options.seed, options.seed + options.seeds):
        for name, runs in found.items():
            begin = time.perf_counter()
            model, curve = trained(options, name, known, content_IE, train, choosing, seed)
            best = max(curve, key=lambda row: row["validation"])["epoch"]
            score_NK = model.scores_UKM(test.rows.batch)[..., 0]
            runs.append(np.stack([figure.resampled(counts_RU) for figure in test.figures(score_NK)]))
            auc, gauc = runs[-1][:, 0]
            spent_s = time.perf_counter() - begin
            console.print(
                f"seed {seed}, {name}: AUC {auc:.4f}, GAUC {gauc:.4f}, epoch {best:g} of {len(curve)}, {spent_s:.0f} s"
            )
    return paired_table(found, "GenRank", "GenRank's lead")


def main(options: Options) -> None:
    """Prints both tables."""
    check_only(options.only, KINDS)
    console = Console(width=140)
    console.print(options)
    if options.rounds:
        console.print(speed_table(options))
    if options.users:
        console.print(quality(options, console))


if __name__ == "__main__":
    main(tyro.cli(Options))

"""Ablations of MTGR: the model, and the model without each of its parts, on one log (arXiv:2505.18654, table 5).

``python benchmarks/mtgr_ablation.py --help``. Without ``--data`` the log is from ShortVideo users who come several
times a day in strong moods that fade within hours. In the small catalogue they meet items repeatedly. So clicks are
predicted by feedback within a day's window, and by earlier meetings with the same or similar items.

Rows are users' windows. The earliest 80% train, the next 10% choose the epoch, the last 10% are judged as in serving:
each request separately, with the feedback of the window's earlier requests and of no later one. Differences to the full
model are paired over users and averaged over seeds. Their intervals are bootstraps over users and do not include the
spread over seeds, which the single seeds' figures show.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from paired import check_only, paired_table, samples_of_users
from rich.console import Console

from feedgym.agents.cross_features import item_kinds
from feedgym.agents.fit import FitConfig, fit
from feedgym.agents.mtgr import MTGR, MTGRConfig
from feedgym.agents.token_batches import TokenBatches
from feedgym.data.events import BEHAVIOUR_IDX, Catalog, EventLog
from feedgym.data.ranking import RankingBatch, RankingRows, ranking_windows
from feedgym.data.readers import load_data
from feedgym.data.splits import take_users
from feedgym.envs.logging import collect_log
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.experiments.rank.metrics import AUC, grouped_auc

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "mask by place": {"mask": "causal"},
    "mask that leaks": {"mask": "full"},
    "no group layer norm": {"group_layer_norm": False},
    "no cross features": {"cross_features": False},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the comparison."""

    data: str | None = None
    """A real log that `feedgym data inspect` reads."""
    users: int = 800
    """Simulated users; for a real log, users drawn at random, where 0 takes all."""
    visits: int = 24
    """Visits per simulated user."""
    seeds: int = 2
    """Trainings of each variant."""
    epochs: int = 4
    """Most passes; the best by validation is judged."""
    window_hours: float = 24.0
    """Length of a window."""
    history_length: int = 40
    """T."""
    max_candidates: int = 48
    """K."""
    d_model: int = 48
    """D."""
    num_layers: int = 2
    """Layers."""
    lr: float = 2e-3
    """AdamW's learning rate."""
    max_tokens: int = 1500
    """Most tokens of a batch."""
    task: str = "click"
    """The behaviour to predict."""
    only: tuple[str, ...] = ()
    """Train only these variants."""


def simulated(options: Options) -> tuple[EventLog, Catalog]:
    """The log of moody users, as described above."""
    config = ShortVideoConfig(
        num_items=400, mood_weight=5.0, mood_rate=0.35, mood_hours=6.0, gap_hours=4.0, drift_rate=0.0,
        seen_penalty=3.0, click_logit=-2.0,
    )  # fmt: skip
    simulator = ShortVideo(config)
    log = collect_log(simulator, num_users=options.users, num_visits=options.visits, session_length=10, seed=0)
    return log, simulator.catalog


def recorded(data: str, num_users: int) -> tuple[EventLog, Catalog]:
    """A real log, with some of its users."""
    log, catalog = load_data(data)
    if 0 < num_users < log.num_users:
        chosen = np.random.default_rng(0).choice(log.num_users, num_users, replace=False)
        log = take_users(log, np.sort(chosen))
    return log, catalog


def as_served(windows: RankingRows) -> tuple[RankingRows, torch.Tensor]:
    """A row for each request of each window, without later requests; and a mask of its own candidates."""
    batch = windows.batch
    last_N = batch.request_NK.masked_fill(~batch.mask_NK, -1).amax(1)
    request_NQ = torch.arange(int(last_N.max()) + 1)
    has_NQ = ((batch.request_NK[..., None] == request_NQ) & batch.mask_NK[..., None]).any(1)
    row_R, request_R = has_NQ.nonzero().unbind(1)
    rows = windows.rows(row_R.numpy())
    request_NK, mask_NK = rows.batch.request_NK, rows.batch.mask_NK & (rows.batch.request_NK <= request_R[:, None])
    return replace(rows, batch=replace(rows.batch, mask_NK=mask_NK)), mask_NK & (request_NK == request_R[:, None])


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """Requests with their labels and users."""

    rows: RankingBatch
    own_NK: torch.Tensor
    label_N: NDArray[np.bool_]
    user_N: NDArray[np.int64]
    num_users: int

    @classmethod
    def of(cls, windows: RankingRows, task: str, most: int = 0) -> Judge:
        """The judge for some windows; with at most ``most`` requests if that is above 0."""
        rows, own_NK = as_served(windows)
        if 0 < most < len(rows):
            chosen = np.random.default_rng(0).choice(len(rows), most, replace=False)
            rows, own_NK = rows.rows(chosen), own_NK[torch.from_numpy(chosen)]
        users, user_N = np.unique(rows.user_idx_N, return_inverse=True)
        label_NK = rows.batch.behaviours_NKB[..., BEHAVIOUR_IDX[task]] > 0
        user_NK = torch.from_numpy(user_N)[:, None].expand_as(own_NK)
        return cls(
            rows=rows.batch,
            own_NK=own_NK,
            label_N=label_NK[own_NK].numpy(),
            user_N=user_NK[own_NK].numpy(),
            num_users=len(users),
        )

    def figures(self, model: MTGR) -> tuple[AUC, Any]:
        """AUC and GAUC."""
        score_N = model.scores_UKM(self.rows)[..., 0][self.own_NK].double().numpy()
        given = (self.label_N, score_N, self.user_N, self.num_users)
        return AUC(*given), grouped_auc(*given)

    def gauc(self, model: MTGR) -> float:
        """GAUC."""
        return self.figures(model)[1].mean()


def trained(options: Options, train: RankingBatch, judge: Judge, config: MTGRConfig, kinds: Any, seed: int) -> MTGR:
    """A model with the weights of its best epoch."""
    torch.manual_seed(seed)
    model = MTGR(config, kinds)
    batches = TokenBatches(rows=train, max_tokens=options.max_tokens, seed=seed)
    fit_config = FitConfig(
        batch_size=1, lr=options.lr, warmup_steps=50, weight_decay=0.01, max_grad_norm=1.0, patience=2
    )
    with tempfile.TemporaryDirectory() as folder:
        return fit(model, batches, fit_config, options.epochs, seed, judge.gauc, Path(folder))[0]


def main(options: Options) -> None:
    """Prints a row for each training, and a table after each seed."""
    check_only(options.only, VARIANTS)
    log, catalog = simulated(options) if options.data is None else recorded(options.data, options.users)
    windows = ranking_windows(log, catalog, options.history_length, options.max_candidates, 3600 * options.window_hours)
    low, high = np.quantile(windows.start_s_N, [0.8, 0.9])
    train = windows.rows(np.flatnonzero(windows.start_s_N < low)).batch
    validation = windows.rows(np.flatnonzero((windows.start_s_N >= low) & (windows.start_s_N < high)))
    test = Judge.of(windows.rows(np.flatnonzero(windows.start_s_N >= high)), options.task)
    choosing = Judge.of(validation, options.task, most=1500)
    console, kinds = Console(), item_kinds(catalog)
    console.print(
        f"{options}\n{len(train):,} windows of {int(train.mask_NK.sum()):,} exposures train; {len(test.rows):,} "
        f"requests of {len(test.label_N):,} exposures and {test.num_users:,} users judge, {test.label_N.mean():.3f} of "
        "them positive."
    )
    counts_RU = samples_of_users(test.num_users)
    found: dict[str, list[np.ndarray]] = {name: [] for name in options.only or VARIANTS}
    for seed in range(options.seeds):
        for name, runs in found.items():
            config = MTGRConfig(
                num_items=catalog.num_items, profile_sizes=log.profile_sizes, tasks=(options.task,), watch=False,
                d_model=options.d_model, num_layers=options.num_layers, dropout=0.0, decided="request",
                history_length=options.history_length, **VARIANTS[name],
            )  # fmt: skip
            model = trained(options, train, choosing, config, kinds, seed)
            runs.append(np.stack([figure.resampled(counts_RU) for figure in test.figures(model)]))
            auc, gauc = runs[-1][:, 0]
            console.print(f"seed {seed}, {name}: AUC {auc:.4f}, GAUC {gauc:.4f}")
        console.print(paired_table(found, "full", "lost"))


if __name__ == "__main__":
    main(tyro.cli(Options))

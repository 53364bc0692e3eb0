"""Experiments with rankers as functions: each returns the whole configuration of a run.

``hstu-rank``, ``genrank`` and ``mtgr`` have sizes that train on a laptop in minutes to hours; every size is an option.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from feedgym.agents.fit import FitConfig
from feedgym.agents.genrank import GenRankSizes
from feedgym.agents.hstu_rank import HSTURankerSizes
from feedgym.agents.mtgr import MTGRSizes
from feedgym.agents.pretrain import Examples
from feedgym.agents.ranker import RankingDataset
from feedgym.agents.token_batches import TokenBatches
from feedgym.data.events import DAY_S, Catalog, EventLog
from feedgym.data.ranking import RankingBatch, RankingRows, ranking_requests, ranking_windows
from feedgym.data.splits import random_exposures, until
from feedgym.envs.short_video import ShortVideoConfig
from feedgym.experiments.configs import DataConfig, LogConfig
from feedgym.ranges import Count, Length, Passes, SomeSeconds, SplitShare

Only = NDArray[np.bool_] | None
"""Mask of a log's rows that may be candidates; None allows all."""


@dataclass(frozen=True, kw_only=True)
class RankRun(DataConfig):
    """A ranker, trained on a log's exposures and judged by later ones, together with simple baselines.

    A subclass names its model, and defines its training rows if these are not the log's requests.
    """

    name: ClassVar[str]
    """Name of the ranker, in tables and in :mod:`feedgym.plugins`."""

    model: Any
    """Sizes of the ranker; a subclass sets the type."""
    history_length: Length = 100
    """T, how many of the newest events of a history are read."""
    tasks: tuple[str, ...] = ()
    """Behaviours to predict; if left out, those that happen, and fail to, at least 50 times in training."""
    watch: bool = True
    """Predict the watched fraction too."""
    max_candidates: Count = 32
    """K, candidates per row; requests (or windows) with more become several rows."""
    validation: SplitShare = 0.1
    """Share of the rows, by time, that choose the epoch: those just before the judged ones."""
    held_out: SplitShare = 0.1
    """Share of the rows, the last ones, for the judgement."""
    epochs: Passes = 10
    """Most passes over the rows; the best epoch by validation is kept."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(lr=2e-3, batch_size=128, weight_decay=0.01, patience=2,
                                                             max_grad_norm=1.0, group_by_length=True))  # fmt: skip
    """Optimiser, validation and patience."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation + self.held_out >= 1:
            raise ValueError(
                f"validation={self.validation} and held_out={self.held_out} must sum to less than 1; lower either."
            )

    @property
    def label(self) -> str:
        """The model with the options that matter most for its figures, for titles."""
        return self.name

    def rows(self, log: EventLog, catalog: Catalog, only: Only = None) -> RankingRows:
        """The exposures for validation and judgement, by request."""
        return ranking_requests(log, catalog, self.history_length, self.max_candidates, only)

    def training_rows(self, early: RankingRows, log: EventLog, catalog: Catalog, end_s: float) -> RankingRows:
        """The training exposures of a log with times.

        Args:
            early: the rows before those of validation, which are used unless a subclass overrides this.
            log: the whole log.
            catalog: its items.
            end_s: start of validation, seconds.
        """
        return early

    def examples(self, rows: RankingBatch) -> tuple[Examples, int]:
        """The training data, and the number of its elements per batch."""
        return RankingDataset(rows=rows), self.fit.batch_size


@dataclass(frozen=True, kw_only=True)
class HSTURankRun(RankRun):
    """HSTU as a ranker: all candidates of a request in one pass over the history, judged on a later part of the log."""

    name: ClassVar[str] = "hstu-rank"
    model: HSTURankerSizes = field(default_factory=HSTURankerSizes)
    """The model."""

    @property
    def label(self) -> str:
        """The form of actions, and the training data."""
        learned = ", loss on history" * self.model.loss_on_history
        return f"HSTU ranking (actions {self.model.actions}, bias {self.model.bias}{learned})"


@dataclass(frozen=True, kw_only=True)
class GenRankRun(RankRun):
    """GenRank: items are positions and actions are generated; judged on a later part of the log."""

    name: ClassVar[str] = "genrank"
    model: GenRankSizes = field(default_factory=GenRankSizes)
    """The model."""

    @property
    def label(self) -> str:
        """Its bias and ablations."""
        ablations = ", loss on history" * self.model.loss_on_history + ", history seen whole" * (
            self.model.history_mask == "full"
        )
        attention = f", {self.model.attention}" * (self.model.attention != "silu")
        return f"GenRank (bias {self.model.bias}{attention}{ablations})"


@dataclass(frozen=True, kw_only=True)
class MTGRRun(RankRun):
    """MTGR: a sample is a user's window with all its candidates; judged by the requests of a later part of the log."""

    name: ClassVar[str] = "mtgr"
    model: MTGRSizes = field(default_factory=lambda: served_mtgr())
    """The model."""
    window_s: SomeSeconds = DAY_S
    """Length of a user's window in seconds; its candidates share a sample."""
    max_tokens: Count = 8192
    """Tokens of a training batch, instead of --fit.batch-size samples: dynamic batches, with losses weighted by their
    candidates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.mask == "full" and self.model.decided == "exposure":
            raise ValueError(
                "mask='full' with decided='exposure' would show judged candidates their own feedback; use "
                "decided='request'."
            )

    @property
    def label(self) -> str:
        """Its ablations."""
        ablations = f", {self.model.mask} mask" * (self.model.mask != "dynamic")
        ablations += ", one norm" * (not self.model.group_layer_norm)
        ablations += ", no cross features" * (not self.model.cross_features)
        return f"MTGR (windows of {self.window_s / 3600:g} h, {self.model.decided} decides{ablations})"

    def rows(self, log: EventLog, catalog: Catalog, only: Only = None) -> RankingRows:
        """By request; on a log without times by window, which then holds everything."""
        if log.has_time:
            return super().rows(log, catalog, only)
        if self.model.mask == "full":
            raise ValueError("mask='full' would judge by the future on a log without times; use another mask.")
        return self.windows(log, catalog, only)

    def training_rows(self, early: RankingRows, log: EventLog, catalog: Catalog, end_s: float) -> RankingRows:
        """By window: training uses windows that end before validation, and judgement requests, as in serving."""
        past = until(log, end_s)
        return self.windows(past, catalog, ~random_exposures(past))

    def windows(self, log: EventLog, catalog: Catalog, only: Only = None) -> RankingRows:
        """The exposures by user and window."""
        return ranking_windows(log, catalog, self.history_length, self.max_candidates, self.window_s, only)

    def examples(self, rows: RankingBatch) -> tuple[Examples, int]:
        """Dynamic batches, each of which is an element."""
        return TokenBatches(rows=rows, max_tokens=self.max_tokens, seed=self.seed), 1


def served_mtgr(**sizes: Any) -> MTGRSizes:
    """Sizes of an MTGR for serving: it decides on all of a request's items when the request comes.

    The history's last day replaces the earlier part of the window.
    """
    return MTGRSizes(decided="request", real_time_s=DAY_S, **sizes)


def hstu_rank() -> HSTURankRun:
    """HSTU ranking, actions added to their items, on 2 cores in an hour or less."""
    return HSTURankRun()


def hstu_rank_interleaved() -> HSTURankRun:
    """HSTU ranking on the timeline of alternating items and actions: twice the tokens."""
    return HSTURankRun(model=HSTURankerSizes(actions="interleaved"))


def genrank() -> GenRankRun:
    """GenRank with HSTU ranking's sizes: half the tokens of the interleaved timeline."""
    return GenRankRun()


def mtgr() -> MTGRRun:
    """MTGR on windows of a day, on 2 cores in an hour or less."""
    # Dynamic batches already group rows of similar length.
    fit = FitConfig(lr=2e-3, weight_decay=0.01, patience=2, max_grad_norm=1.0)
    return MTGRRun(max_candidates=64, fit=fit)


def mtgr_small() -> MTGRRun:
    """MTGR for minutes on 2 cores: 2 layers of width 32 over 40 events."""
    sizes, run = served_mtgr(d_model=32, num_layers=2, dropout=0.0), mtgr()
    return replace(run, model=sizes, history_length=40, max_candidates=32, epochs=4, fit=replace(run.fit, lr=3e-3),
                   max_tokens=2048)  # fmt: skip


def mtgr_paper() -> MTGRRun:
    """MTGR-small with its published sizes: 3 layers of width 512 over 1,000 events; needs a GPU."""
    return _paper(served_mtgr(d_model=512), lr=3e-4)


def mtgr_paper_medium() -> MTGRRun:
    """MTGR-medium with its published sizes: 5 layers of width 768; needs GPUs."""
    return _paper(served_mtgr(d_model=768, num_layers=5, num_heads=3), lr=3e-4)


def mtgr_paper_large() -> MTGRRun:
    """MTGR-large with its published sizes: 15 layers of width 768; needs GPUs."""
    return _paper(served_mtgr(d_model=768, num_layers=15, num_heads=3), lr=1e-4)


def _paper(sizes: MTGRSizes, lr: float) -> MTGRRun:
    fit = FitConfig(lr=lr, bf16=True)
    return MTGRRun(model=sizes, history_length=1000, max_candidates=100, fit=fit, max_tokens=65_536)


def _smoke(run: Any, **sizes: Any) -> Any:
    return replace(
        run,
        simulator_options=ShortVideoConfig(num_items=80),
        log=LogConfig(users=60, visits=4),
        model=replace(run.model, d_model=8, num_layers=1, **sizes),
        history_length=8,
        epochs=1,
        fit=replace(run.fit, batch_size=16),
    )


def hstu_rank_small() -> HSTURankRun:
    """HSTU ranking for minutes on 2 cores: 2 layers over histories of 50, fewer epochs."""
    return _small(hstu_rank())


def genrank_small() -> GenRankRun:
    """GenRank for minutes on 2 cores: 2 layers over histories of 50, fewer epochs."""
    return _small(genrank())


def _small(run: Any) -> Any:
    return replace(run, model=replace(run.model, num_layers=2), history_length=50, epochs=4)


def hstu_rank_smoke() -> HSTURankRun:
    """HSTU ranking in seconds, on a small simulated log; its figures mean nothing."""
    return _smoke(hstu_rank_interleaved(), d_qk=4, d_v=4)


def genrank_smoke() -> GenRankRun:
    """GenRank in seconds, on a small simulated log; its figures mean nothing."""
    return _smoke(genrank(), d_qk=4, d_v=4)


def mtgr_smoke() -> MTGRRun:
    """MTGR in seconds, on a small simulated log; its figures mean nothing."""
    return replace(_smoke(mtgr()), max_tokens=512)


RANK_PRESETS: dict[str, Callable[[], RankRun]] = {
    "hstu-rank": hstu_rank,
    "hstu-rank-interleaved": hstu_rank_interleaved,
    "hstu-rank-small": hstu_rank_small,
    "hstu-rank-smoke": hstu_rank_smoke,
    "genrank": genrank,
    "genrank-small": genrank_small,
    "genrank-smoke": genrank_smoke,
    "mtgr": mtgr,
    "mtgr-small": mtgr_small,
    "mtgr-paper": mtgr_paper,
    "mtgr-paper-medium": mtgr_paper_medium,
    "mtgr-paper-large": mtgr_paper_large,
    "mtgr-smoke": mtgr_smoke,
}
"""Presets of rankers in `feedgym run`."""

RANK_CONFIGS: tuple[type[RankRun], ...] = (HSTURankRun, GenRankRun, MTGRRun)
"""Their configuration classes."""

"""Experiments with rankers as functions: each returns the whole configuration of a run.

``hstu-rank``, ``genrank`` and ``mtgr`` have sizes that a laptop trains in minutes to hours; every size is an option.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from feedgym.agents.fit import FitConfig
from feedgym.envs.short_video import ShortVideoConfig
from feedgym.experiments.configs import DataConfig, LogConfig
from feedgym.ranges import (
    BelowOne,
    Count,
    Few,
    Length,
    Passes,
    Ranged,
    Seconds,
    SomeSeconds,
    SplitShare,
    Width,
    check_divides,
)

RANKERS = {
    "genrank": "feedgym.agents.genrank:GenRank",
    "hstu-rank": "feedgym.agents.hstu_rank:HSTURanker",
    "mtgr": "feedgym.agents.mtgr:MTGR",
}
"""Import paths of the rankers by name."""


@dataclass(frozen=True, kw_only=True)
class RankRun(DataConfig):
    """A ranker, trained on a log's exposures and judged by those of a later time, beside simple baselines.

    A subclass names its kind of model (``model``); :mod:`feedgym.experiments.rank.agents` says how it is made.
    """

    name: ClassVar[str]
    """Of the ranker, in tables."""
    tasks: tuple[str, ...] = ()
    """Behaviours to foretell; left out, those which happen, and fail to, at least 50 times in training."""
    watch: bool = True
    """Foretell the watched fraction too."""
    max_candidates: Count = 32
    """K, candidates of a row; requests (or windows) with more become several rows."""
    validation: SplitShare = 0.1
    """Share of the rows, by time, that choose the epoch: those before the judged ones."""
    held_out: SplitShare = 0.1
    """Share of the rows, the last ones, that judge."""
    epochs: Passes = 10
    """Passes over the rows, at most; the best epoch by validation is kept."""
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
        """The model with what decides its figures most, for titles."""
        return self.name


@dataclass(frozen=True, kw_only=True)
class SequenceRankerSizes(Ranged):
    """Sizes that HSTU ranking and GenRank share."""

    d_model: Width = 64
    """D, width."""
    num_layers: Few = 3
    """Layers."""
    num_heads: Few = 2
    """Attention heads."""
    d_qk: Width = 32
    """Width of a head's queries and keys."""
    d_v: Width = 32
    """Width of a head's values and gate."""
    dropout: BelowOne = 0.1
    """Dropout."""
    history_length: Length = 100
    """T, the newest events of a history that are read."""
    contents: bool = True
    """Read the items' contents beside their ids."""
    loss_on_history: bool = False
    """Learn from the history's events too: HSTU's published training, an ablation of GenRank."""


@dataclass(frozen=True, kw_only=True)
class HSTURankerSizes(SequenceRankerSizes):
    """Sizes and layout of HSTU ranking."""

    actions: Literal["added", "interleaved"] = "added"
    """added to their items' tokens, or interleaved as tokens of their own."""
    bias: Literal["learned", "alibi", "none"] = "learned"
    """Of attention by distance and time."""


@dataclass(frozen=True, kw_only=True)
class HSTURankRun(RankRun):
    """HSTU as a ranker: all candidates of a request in one pass over the history, judged on a later part of the log."""

    name: ClassVar[str] = "hstu-rank"
    model: HSTURankerSizes = field(default_factory=HSTURankerSizes)
    """The model."""

    @property
    def label(self) -> str:
        """How actions are read, and what is learned from."""
        learned = ", loss on history" * self.model.loss_on_history
        return f"HSTU ranking (actions {self.model.actions}, bias {self.model.bias}{learned})"


@dataclass(frozen=True, kw_only=True)
class GenRankSizes(SequenceRankerSizes):
    """Sizes and ablations of GenRank."""

    bias: Literal["alibi", "learned", "none"] = "alibi"
    """Of attention by distance and time; alibi has no parameters."""
    attention: Literal["silu", "decay", "softmax"] = "silu"
    """What products of queries and keys and the bias become: silu (the SiLU of their sum, in which a falling bias is no
    decay), decay (the SiLU of the products times e to the bias, which must be alibi) or softmax (of their sum)."""
    request_gap_s: Seconds = 600.0
    """Events at most so many seconds after the one before belong to the same request."""
    history_mask: Literal["causal", "full"] = "causal"
    """causal, or full as an ablation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention == "decay" and self.bias != "alibi":
            raise ValueError(
                f"attention='decay' decays by bias='alibi' and not by {self.bias!r}; choose alibi or silu."
            )


@dataclass(frozen=True, kw_only=True)
class GenRankRun(RankRun):
    """GenRank: items are positions, actions are generated; judged on a later part of the log."""

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
class MTGRSizes(Ranged):
    """Sizes and ablations of MTGR."""

    d_model: Width = 64
    """D, width; 512 in the paper's small model, 768 in its medium and large ones."""
    num_layers: Few = 3
    """Layers; 3, 5 and 15 in the paper's small, medium and large models."""
    num_heads: Few = 2
    """Attention heads; 2, 3 and 3 in the paper."""
    dropout: BelowOne = 0.1
    """Dropout."""
    history_length: Length = 100
    """T, events of the static history; 1,000 in the paper."""
    decided: Literal["exposure", "request"] = "request"
    """When a candidate's real-time events end: at its exposure (the paper), or at the request it was exposed by, which
    is all that may be known where a request's items are ranked at once; the other rankers know no more."""
    real_time_s: Seconds = 86_400.0
    """Events of the history younger than so many seconds are real-time and not static: when a request is served they
    stand for the window before it."""
    mask: Literal["dynamic", "causal", "full"] = "dynamic"
    """dynamic; ablations: causal (by place instead of time) or full (real-time events are seen whenever they were)."""
    group_layer_norm: bool = True
    """A norm for each domain; otherwise, as an ablation, one for all."""
    cross_features: bool = True
    """Give candidates their cross features; otherwise, as an ablation, their items alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divides(self, "num_heads", "d_model")
        if self.mask == "full" and self.decided == "exposure":
            raise ValueError(
                "mask='full' with decided='exposure' would show judged candidates their own feedback; use "
                "decided='request'."
            )


@dataclass(frozen=True, kw_only=True)
class MTGRRun(RankRun):
    """MTGR: a sample is a user's window with all its candidates; judged by the requests of a later part of the log."""

    name: ClassVar[str] = "mtgr"
    model: MTGRSizes = field(default_factory=MTGRSizes)
    """The model."""
    window_s: SomeSeconds = 86_400.0
    """Seconds of a user's window, whose candidates share a sample."""
    max_tokens: Count = 8192
    """Tokens of a training batch, in place of --fit.batch-size samples: dynamic batches, whose losses weigh by their
    candidates."""

    @property
    def label(self) -> str:
        """Its ablations."""
        ablations = f", {self.model.mask} mask" * (self.model.mask != "dynamic")
        ablations += ", one norm" * (not self.model.group_layer_norm)
        ablations += ", no cross features" * (not self.model.cross_features)
        return f"MTGR (windows of {self.window_s / 3600:g} h, {self.model.decided} decides{ablations})"


def hstu_rank() -> HSTURankRun:
    """HSTU ranking, actions added to their items, on 2 cores in an hour or less."""
    return HSTURankRun()


def hstu_rank_interleaved() -> HSTURankRun:
    """HSTU ranking on the timeline of items and actions in turn: twice the tokens."""
    return HSTURankRun(model=HSTURankerSizes(actions="interleaved"))


def genrank() -> GenRankRun:
    """GenRank with HSTU ranking's sizes: half the tokens of the interleaved timeline."""
    return GenRankRun()


def mtgr() -> MTGRRun:
    """MTGR on windows of a day, on 2 cores in an hour or less."""
    # Rows of like length meet in dynamic batches already.
    fit = FitConfig(lr=2e-3, weight_decay=0.01, patience=2, max_grad_norm=1.0)
    return MTGRRun(max_candidates=64, fit=fit)


def mtgr_small() -> MTGRRun:
    """MTGR for minutes on 2 cores: 2 layers of width 32 over 40 events."""
    sizes = MTGRSizes(d_model=32, num_layers=2, dropout=0.0, history_length=40)
    run = mtgr()
    return replace(run, model=sizes, max_candidates=32, epochs=4, fit=replace(run.fit, lr=3e-3), max_tokens=2048)


def mtgr_paper() -> MTGRRun:
    """MTGR-small with its published sizes: 3 layers of width 512 over 1,000 events; wants a GPU."""
    return _paper(MTGRSizes(d_model=512, history_length=1000), lr=3e-4)


def mtgr_paper_medium() -> MTGRRun:
    """MTGR-medium with its published sizes: 5 layers of width 768; wants GPUs."""
    return _paper(MTGRSizes(d_model=768, num_layers=5, num_heads=3, history_length=1000), lr=3e-4)


def mtgr_paper_large() -> MTGRRun:
    """MTGR-large with its published sizes: 15 layers of width 768; wants GPUs."""
    return _paper(MTGRSizes(d_model=768, num_layers=15, num_heads=3, history_length=1000), lr=1e-4)


def _paper(sizes: MTGRSizes, lr: float) -> MTGRRun:
    return MTGRRun(model=sizes, max_candidates=100, fit=FitConfig(lr=lr, bf16=True), max_tokens=65_536)


def _smoke(run: Any, **sizes: Any) -> Any:
    return replace(
        run,
        short_video=ShortVideoConfig(num_items=80),
        log=LogConfig(users=60, visits=4),
        model=replace(run.model, d_model=8, num_layers=1, history_length=8, **sizes),
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
    return replace(run, model=replace(run.model, num_layers=2, history_length=50), epochs=4)


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
"""What `feedgym run` offers of rankers."""

RANK_CONFIGS: tuple[type[RankRun], ...] = (HSTURankRun, GenRankRun, MTGRRun)
"""Their kinds."""

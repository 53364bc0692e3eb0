"""Experiments with next-item models as functions: each returns the whole configuration of a run.

``sasrec`` and ``hstu`` have the published sizes for MovieLens-1M, which train on one core in half an hour. ``-small``
takes minutes (TIGER: an hour), ``-large`` needs a GPU, and ``-smoke`` tests in seconds that everything works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import tyro

from feedgym.agents.fit import FitConfig
from feedgym.agents.hstu import HSTUSizes
from feedgym.agents.sasrec import SASRecSizes
from feedgym.agents.tiger import TigerSizes
from feedgym.data.sources import ReadOptions
from feedgym.envs.short_video import ShortVideoConfig
from feedgym.experiments.configs import DataConfig, LogConfig
from feedgym.experiments.retrieval.metrics import RankingConfig
from feedgym.ranges import Count, CountOrZero, Length, Passes
from feedgym.tokenizers.residual_kmeans import ResidualKMeansConfig
from feedgym.tokenizers.rqvae import RQVAEConfig

META: dict[str, Any] = {"epochs": 101, "fit": FitConfig(patience=20)}
"""Length of Meta's trainings on MovieLens-1M; a patience of 10 would end some of them while validation still
improves."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(DataConfig):
    """A model that predicts the next item, trained on a log and judged offline together with simple baselines.

    A subclass names its model; :mod:`feedgym.experiments.retrieval.agents` makes and trains it.
    """

    name: ClassVar[str]
    """Name of the model, in tables and in :mod:`feedgym.plugins`."""

    model: Any
    """Sizes of the model; a subclass sets the type."""
    history_length: Length = 200
    """T, how many of the newest events of a history are read."""
    session_length: Length = 10
    """K, most items of a session."""
    behaviours: tuple[str, ...] = ("click",)
    """An examined exposure with any of these is an item taken; only these are predicted."""
    min_items: Count = 3
    """Users with fewer items taken are used for training but not judged."""
    epochs: Passes = 100
    """Most passes over the users; the best epoch by validation is kept."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Optimiser, validation and patience."""
    validation_targets: CountOrZero = 0
    """Validation targets used after an epoch, drawn once; 0 uses all."""
    ranking: RankingConfig = field(default_factory=lambda: RankingConfig(at=(5, 10, 50, 200)))
    """Options of the final figures."""
    knn_recent: tuple[CountOrZero, ...] = (0, 1, 3, 10, 30)
    """Choices for the number of last events that ItemKNN uses, where 0 is all; validation chooses."""
    sasrec_ce: bool = True
    """Also train SASRec with cross-entropy over all items as a baseline, unless it is the model itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.knn_recent:
            raise ValueError("knn_recent is empty and must name at least one number, 0 (all) or more.")

    @property
    def label(self) -> str:
        """The model with the options that matter most for its figures, for titles."""
        return self.name

    def is_sasrec_ce(self) -> bool:
        """True if the model is the baseline SASRec-CE itself."""
        return False


@dataclass(frozen=True, kw_only=True)
class SASRecRun(RetrievalConfig):
    """SASRec, trained on a log and judged offline together with popularity, ItemKNN and SASRec with cross-entropy."""

    name: ClassVar[str] = "sasrec"
    model: SASRecSizes = field(default_factory=SASRecSizes)
    """The model."""

    @property
    def label(self) -> str:
        """Block and loss, which matter most for its figures."""
        return f"SASRec ({self.model.block} block, loss {self.model.loss}, {self.model.similarity})"

    def is_sasrec_ce(self) -> bool:
        """True if its loss is cross-entropy."""
        return self.model.loss == "ce"


@dataclass(frozen=True, kw_only=True)
class HSTURun(RetrievalConfig):
    """HSTU, trained on a log and judged offline together with popularity, ItemKNN and SASRec with cross-entropy."""

    name: ClassVar[str] = "hstu"
    model: HSTUSizes = field(default_factory=HSTUSizes)
    """The model."""

    @property
    def label(self) -> str:
        """Stream and loss, which matter most for its figures."""
        return f"HSTU ({self.model.stream} stream, loss {self.model.loss}, {self.model.similarity})"


@dataclass(frozen=True, kw_only=True)
class TigerRun(RetrievalConfig):
    """TIGER over semantic ids, trained on a log and judged offline by beam search; data need texts (--read.text)."""

    PLUGINS: ClassVar = (*RetrievalConfig.PLUGINS, "tokenizer")
    name: ClassVar[str] = "tiger"
    read: ReadOptions = field(default_factory=ReadOptions)
    """Options for reading the data; semantic ids are made from the items' texts."""
    model: TigerSizes = field(default_factory=TigerSizes)
    """The model."""
    history_length: Length = 20
    """T, how many of the newest items of a history are read."""
    session_length: Length = 1
    """K, most items of a session; 1 in the paper."""
    sliding_window: bool = True
    """Learn every item taken from the items before it; otherwise only each user's last one."""
    tokenizer: str = "rqvae"
    """Tokenizer of the codes: rqvae, residual_kmeans (balanced), lsh (random hyperplanes) or random (codes that ignore
    content). index takes published codes from a NAME.index.json. Or the import path of your own."""
    tokenizer_options: Annotated[Any, tyro.conf.arg(name="tokenizer")] = None
    """Options of the tokenizer; its seed is added to the run's."""

    @property
    def label(self) -> str:
        """The codes and the augmentation."""
        codes = "x".join(map(str, getattr(self.tokenizer_options, "num_codes", None) or ()))
        windows = "all windows" if self.sliding_window else "last items"
        return f"TIGER ({' '.join(filter(None, (self.tokenizer, codes)))}, {windows})"


def tiger_retrieval() -> TigerRun:
    """TIGER with its published sizes: T5 with 4 + 4 layers over 3 x 256 codes; needs a GPU."""
    fit = FitConfig(batch_size=256, schedule="inverse_sqrt", adam_beta2=0.999, max_grad_norm=1.0)
    return TigerRun(fit=fit, tokenizer_options=RQVAEConfig(num_codes=(256, 256, 256), steps=20_000))


def tiger_retrieval_small() -> TigerRun:
    """TIGER for two hours on one core, or one hour with --fit.bf16 if the processor supports it: 2 + 2 layers.

    Two codes per item, from balanced k-means without collisions, take half the tokens of three and a counter.
    """
    sizes = TigerSizes(num_heads=4, head_width=32, encoder_layers=2, decoder_layers=2, d_ff=512)
    fit = FitConfig(batch_size=256, lr=1e-3, warmup_steps=500, schedule="cosine", weight_decay=0.01, adam_beta2=0.999,
                    max_grad_norm=1.0, group_by_length=True, patience=5)  # fmt: skip
    return replace(tiger_retrieval(), model=sizes, fit=fit, epochs=40, validation_targets=2000,
                   ranking=RankingConfig(at=(5, 10, 50)), tokenizer="residual_kmeans",
                   tokenizer_options=ResidualKMeansConfig(num_codes=(256, 256)))  # fmt: skip


def tiger_retrieval_smoke() -> TigerRun:
    """TIGER in seconds, on a small simulated log; its figures mean nothing."""
    sizes = TigerSizes(d_model=16, num_heads=2, head_width=8, encoder_layers=1, decoder_layers=1, d_ff=32)
    return replace(
        tiger_retrieval(), model=sizes, tokenizer_options=RQVAEConfig(num_codes=(8, 16), steps=20),
        simulator_options=ShortVideoConfig(num_items=80), log=LogConfig(users=60, visits=3), epochs=1,
        fit=FitConfig(batch_size=64), ranking=RankingConfig(at=(5, 10)), sasrec_ce=False,
    )  # fmt: skip


def sasrec() -> SASRecRun:
    """SASRec as in Meta's generative-recommenders for MovieLens-1M: 2 blocks of width 50, sampled softmax."""
    return SASRecRun(**META)


def sasrec_original() -> SASRecRun:
    """SASRec as its authors published it: their block, dot product, BCE with one negative."""
    sizes = SASRecSizes(block="original", loss="bce", num_negatives=1, similarity="dot", temperature=1.0)
    return SASRecRun(model=sizes)


def sasrec_small() -> SASRecRun:
    """SASRec for minutes on 2 cores: 50 items of history, fewer epochs."""
    return _small(sasrec())


def sasrec_smoke() -> SASRecRun:
    """SASRec in seconds, on a small simulated log; its figures mean nothing."""
    return _smoke(sasrec(), d_ff=8)


def hstu_retrieval() -> HSTURun:
    """HSTU as in Meta's generative-recommenders for MovieLens-1M: 2 layers of width 50, sampled softmax."""
    return HSTURun(**META)


def hstu_retrieval_large() -> HSTURun:
    """HSTU-large for MovieLens-1M: 8 layers, 2 heads of 25; needs a GPU."""
    return replace(hstu_retrieval(), model=HSTUSizes(num_layers=8, num_heads=2, d_qk=25, d_v=25))


def hstu_retrieval_events() -> HSTURun:
    """HSTU on the paper's timeline: profile, items and the user's actions, including skipped items."""
    return HSTURun(model=HSTUSizes(stream="events", only_positives=False))


def hstu_retrieval_small() -> HSTURun:
    """HSTU for minutes on 2 cores: 50 items of history, fewer epochs."""
    return _small(hstu_retrieval())


def hstu_retrieval_smoke() -> HSTURun:
    """HSTU on the timeline of events, with stochastic length, in seconds; its figures mean nothing."""
    return _smoke(hstu_retrieval_events(), d_qk=8, d_v=8, stochastic_alpha=1.7)


def _small(run: Any) -> Any:
    return replace(
        run,
        history_length=50,
        epochs=20,
        fit=replace(run.fit, patience=3),
        validation_targets=1000,
    )


def _smoke(run: Any, **sizes: Any) -> Any:
    return replace(
        run,
        simulator_options=ShortVideoConfig(num_items=80),
        log=LogConfig(users=60, visits=3),
        model=replace(run.model, d_model=8, **sizes),
        history_length=8,
        session_length=3,
        epochs=2,
        fit=replace(run.fit, batch_size=16),
        ranking=RankingConfig(at=(5, 10)),
    )


RETRIEVAL_PRESETS: dict[str, Callable[[], RetrievalConfig]] = {
    "sasrec": sasrec,
    "sasrec-original": sasrec_original,
    "sasrec-small": sasrec_small,
    "sasrec-smoke": sasrec_smoke,
    "hstu": hstu_retrieval,
    "hstu-large": hstu_retrieval_large,
    "hstu-events": hstu_retrieval_events,
    "hstu-small": hstu_retrieval_small,
    "hstu-smoke": hstu_retrieval_smoke,
    "tiger": tiger_retrieval,
    "tiger-small": tiger_retrieval_small,
    "tiger-smoke": tiger_retrieval_smoke,
}
"""Presets of retrieval in `feedgym run`."""

RETRIEVAL_CONFIGS: tuple[type[RetrievalConfig], ...] = (SASRecRun, HSTURun, TigerRun)
"""Their configuration classes."""

"""Experiments with next-item models as functions: each returns the whole configuration of a run.

``sasrec`` and ``hstu`` have the sizes of the publications for MovieLens-1M, which one core trains in half an hour;
``-small`` is for minutes (TIGER: an hour), ``-large`` wants a GPU, and ``-smoke`` proves in seconds that everything
works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from feedgym.agents.next_item import FitConfig
from feedgym.agents.sequences import Loss, Similarity
from feedgym.data.public.interactions import ReadOptions
from feedgym.envs.short_video import ShortVideoConfig
from feedgym.experiments.configs import DataConfig, LogConfig
from feedgym.experiments.retrieval.metrics import RankingConfig
from feedgym.ranges import (
    BelowOne,
    Count,
    CountOrZero,
    Few,
    Length,
    Passes,
    Positive,
    Ranged,
    Share,
    Width,
    check_divides,
    check_used,
)
from feedgym.tokenizers.residual_kmeans import KMeansOptions
from feedgym.tokenizers.rqvae import RQVAEOptions

META: dict[str, Any] = {"epochs": 101, "fit": FitConfig(patience=20)}
"""Length of Meta's trainings on MovieLens-1M; a patience of 10 ends some of them while validation still rises."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(DataConfig):
    """A model that foretells the next item, trained on a log and ranked offline beside simple baselines.

    A subclass names its kind of model (``model``) and says in ``agent_of`` of
    :mod:`feedgym.experiments.retrieval.agents` how it is made and trained.
    """

    name: ClassVar[str]
    """Of the agent, in tables."""

    behaviours: tuple[str, ...] = ("click",)
    """An examined exposure with any of these is an item taken: such are foretold."""
    min_items: Count = 3
    """Users with fewer items taken are trained on but not judged."""
    epochs: Passes = 100
    """Passes over the users, at most; the best epoch by validation is kept."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Optimiser, validation and patience."""
    validation_targets: CountOrZero = 0
    """Validation targets looked at after an epoch, drawn once; 0 looks at all."""
    ranking: RankingConfig = field(default_factory=lambda: RankingConfig(at=(5, 10, 50, 200)))
    """How the final figures are taken."""
    knn_recent: tuple[CountOrZero, ...] = (0, 1, 3, 10, 30)
    """How many of the last events ItemKNN may look at, 0 being all; validation chooses."""
    sasrec_ce: bool = True
    """Train SASRec with cross-entropy over all items as a baseline too, unless it is the model itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.knn_recent:
            raise ValueError("knn_recent is empty and must name at least one number, 0 (all) or more.")

    @property
    def label(self) -> str:
        """The model with what decides its figures most, for titles."""
        return self.name

    def is_sasrec_ce(self) -> bool:
        """Whether the model is the baseline SASRec-CE itself."""
        return False


@dataclass(frozen=True, kw_only=True)
class SequenceSizes(Ranged):
    """Sizes and loss that SASRec and HSTU share."""

    d_model: Width = 50
    """D, width."""
    num_layers: Few = 2
    """Blocks."""
    num_heads: Few = 1
    """Attention heads."""
    dropout: BelowOne = 0.2
    """Dropout."""
    history_length: Length = 200
    """T, the newest events of a history that are read."""
    session_length: Length = 10
    """K, the most items of a session."""
    loss: Loss = "sampled_softmax"
    """bce, ce (over all items) or sampled_softmax."""
    num_negatives: Count = 128
    """Items drawn a position for bce and sampled_softmax; SASRec's original draws 1."""
    similarity: Similarity = "cosine"
    """cosine, over the temperature, or dot."""
    temperature: Positive = 0.05
    """Divides the similarity; 1 with dot is SASRec's original."""
    only_positives: bool = True
    """Read only events that are items taken; otherwise all that were examined."""


@dataclass(frozen=True, kw_only=True)
class SASRecSizes(SequenceSizes):
    """Sizes and loss of SASRec."""

    d_ff: Width = 50
    """Width inside a feed-forward layer."""
    block: Literal["meta", "original"] = "meta"
    """meta (of generative-recommenders) or original (the authors')."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divides(self, "num_heads", "d_model")


@dataclass(frozen=True, kw_only=True)
class SASRecRun(RetrievalConfig):
    """SASRec, trained on a log and ranked offline beside popularity, ItemKNN and SASRec with cross-entropy."""

    name: ClassVar[str] = "sasrec"
    model: SASRecSizes = field(default_factory=SASRecSizes)
    """The model."""

    @property
    def label(self) -> str:
        """Block and loss, which decide its figures most."""
        return f"SASRec ({self.model.block} block, loss {self.model.loss}, {self.model.similarity})"

    def is_sasrec_ce(self) -> bool:
        """Its loss decides."""
        return self.model.loss == "ce"


@dataclass(frozen=True, kw_only=True)
class HSTUSizes(SequenceSizes):
    """Sizes, stream and loss of HSTU."""

    d_qk: Width = 50
    """Width of a head's queries and keys."""
    d_v: Width = 50
    """Width of a head's values and gate."""
    concat_ua: bool = False
    """Give the output matrix [u, a, u * a] instead of u * a."""
    stream: Literal["items", "events"] = "items"
    """items, or events: profile, items and actions on one timeline."""
    use_time: bool = True
    """Bias attention by the time between an event and the request; off by itself where the data have no times."""
    hide_actions: Share = 0.1
    """Events stream: share of actions that training replaces by "unknown", so that sessions can be written."""
    stochastic_alpha: Annotated[float, Interval(ge=0, le=2)] = 0.0
    """alpha of the stochastic length, in (1, 2]; 0 trains on whole sequences."""


@dataclass(frozen=True, kw_only=True)
class HSTURun(RetrievalConfig):
    """HSTU, trained on a log and ranked offline beside popularity, ItemKNN and SASRec with cross-entropy."""

    name: ClassVar[str] = "hstu"
    model: HSTUSizes = field(default_factory=HSTUSizes)
    """The model."""

    @property
    def label(self) -> str:
        """Stream and loss, which decide its figures most."""
        return f"HSTU ({self.model.stream} stream, loss {self.model.loss}, {self.model.similarity})"


@dataclass(frozen=True, kw_only=True)
class TigerSizes(Ranged):
    """Sizes of TIGER and of the RQ-VAE before it; the defaults are the paper's."""

    d_model: Width = 128
    """D, width."""
    num_heads: Few = 6
    """Attention heads."""
    head_width: Width = 64
    """Width of a head."""
    encoder_layers: Few = 4
    """Layers reading the history."""
    decoder_layers: Few = 4
    """Layers writing the codes."""
    d_ff: Width = 1024
    """Width inside a feed-forward layer."""
    dropout: BelowOne = 0.1
    """Dropout."""
    history_length: Length = 20
    """T, the newest items of a history that are read."""
    num_user_tokens: Count = 1
    """Tokens to which users are hashed by their profile; 1 is the same for all."""
    tokenizer: Literal["rqvae", "residual_kmeans", "lsh", "random"] = "rqvae"
    """What makes the codes: RQ-VAE, balanced residual k-means, random hyperplanes, or a draw that knows no content."""
    num_codes: tuple[Width, ...] = (256, 256, 256)
    """Codes of each level; with rqvae and lsh a level that counts colliding items comes after them."""
    kmeans: KMeansOptions = field(default_factory=KMeansOptions)
    """Residual k-means, where tokenizer is residual_kmeans."""
    rqvae: RQVAEOptions = field(default_factory=lambda: RQVAEOptions(steps=20_000))
    """The RQ-VAE, where tokenizer is rqvae."""
    semantic_init: bool = False
    """Let code embeddings start at the tokenizer's centroids, where it has some (rqvae, residual_kmeans), instead of at
    random, as in the paper."""
    sliding_window: bool = True
    """Learn every item taken from the items before it; otherwise each user's last one alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_used(self, chosen="tokenizer", parts={"residual_kmeans": "kmeans", "rqvae": "rqvae"})


@dataclass(frozen=True, kw_only=True)
class TigerRun(RetrievalConfig):
    """TIGER over semantic ids, trained on a log and ranked offline by beam search; data need texts (--read.text)."""

    name: ClassVar[str] = "tiger"
    read: ReadOptions = field(default_factory=ReadOptions)
    """How the data are read; semantic ids are made from the items' texts."""
    model: TigerSizes = field(default_factory=TigerSizes)
    """The model."""

    @property
    def label(self) -> str:
        """The codes and the augmentation."""
        windows = "all windows" if self.model.sliding_window else "last items"
        return f"TIGER ({self.model.tokenizer} {'x'.join(map(str, self.model.num_codes))}, {windows})"


def tiger() -> TigerRun:
    """TIGER with its published sizes: T5 of 4 + 4 layers over 3 x 256 codes; wants a GPU."""
    return TigerRun(fit=FitConfig(batch_size=256, schedule="inverse_sqrt", adam_beta2=0.999, max_grad_norm=1.0))


def tiger_small() -> TigerRun:
    """TIGER for two hours of one core, or one with --fit.bf16 where the processor multiplies it: 2 + 2 layers.

    Two codes an item, from balanced k-means without collisions, are half the tokens of three and a counter.
    """
    sizes = TigerSizes(num_heads=4, head_width=32, encoder_layers=2, decoder_layers=2, d_ff=512,
                       tokenizer="residual_kmeans", num_codes=(256, 256))  # fmt: skip
    fit = FitConfig(batch_size=256, lr=1e-3, warmup_steps=500, schedule="cosine", weight_decay=0.01, adam_beta2=0.999,
                    max_grad_norm=1.0, group_by_length=True, patience=5)  # fmt: skip
    return replace(tiger(), model=sizes, fit=fit, epochs=40, validation_targets=2000,
                   ranking=RankingConfig(at=(5, 10, 50)))  # fmt: skip


def tiger_smoke() -> TigerRun:
    """TIGER in seconds, on a small simulated log; its figures mean nothing."""
    sizes = TigerSizes(d_model=16, num_heads=2, head_width=8, encoder_layers=1, decoder_layers=1, d_ff=32,
                       num_codes=(8, 16), rqvae=RQVAEOptions(steps=20))  # fmt: skip
    return replace(
        tiger(), model=sizes, short_video=ShortVideoConfig(num_items=80), log=LogConfig(users=60, visits=3), epochs=1,
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


def hstu() -> HSTURun:
    """HSTU as in Meta's generative-recommenders for MovieLens-1M: 2 layers of width 50, sampled softmax."""
    return HSTURun(**META)


def hstu_large() -> HSTURun:
    """HSTU-large for MovieLens-1M: 8 layers, 2 heads of 25; wants a GPU."""
    return replace(hstu(), model=HSTUSizes(num_layers=8, num_heads=2, d_qk=25, d_v=25))


def hstu_events() -> HSTURun:
    """HSTU on the paper's timeline: profile, items and what the user did with them, skipped items too."""
    return HSTURun(model=HSTUSizes(stream="events", only_positives=False))


def hstu_small() -> HSTURun:
    """HSTU for minutes on 2 cores: 50 items of history, fewer epochs."""
    return _small(hstu())


def hstu_smoke() -> HSTURun:
    """HSTU on the timeline of events, of stochastic length, in seconds; its figures mean nothing."""
    return _smoke(hstu_events(), d_qk=8, d_v=8, stochastic_alpha=1.7)


def _small(run: Any) -> Any:
    return replace(
        run,
        model=replace(run.model, history_length=50),
        epochs=20,
        fit=replace(run.fit, patience=3),
        validation_targets=1000,
    )


def _smoke(run: Any, **sizes: Any) -> Any:
    return replace(
        run,
        short_video=ShortVideoConfig(num_items=80),
        log=LogConfig(users=60, visits=3),
        model=replace(run.model, d_model=8, history_length=8, session_length=3, **sizes),
        epochs=2,
        fit=replace(run.fit, batch_size=16),
        ranking=RankingConfig(at=(5, 10)),
    )


RETRIEVAL_PRESETS: dict[str, Callable[[], RetrievalConfig]] = {
    "sasrec": sasrec,
    "sasrec-original": sasrec_original,
    "sasrec-small": sasrec_small,
    "sasrec-smoke": sasrec_smoke,
    "hstu": hstu,
    "hstu-large": hstu_large,
    "hstu-events": hstu_events,
    "hstu-small": hstu_small,
    "hstu-smoke": hstu_smoke,
    "tiger": tiger,
    "tiger-small": tiger_small,
    "tiger-smoke": tiger_smoke,
}
"""What `feedgym run` offers of retrieval."""

RETRIEVAL_CONFIGS: tuple[type[RetrievalConfig], ...] = (SASRecRun, HSTURun, TigerRun)
"""Their kinds."""

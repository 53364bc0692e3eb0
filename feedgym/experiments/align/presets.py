"""Experiments as functions: each returns the whole configuration of a run, to be changed field by field.

``smoke`` runs in seconds and proves that everything works; ``small`` is the laptop's experiment and the demo; ``paper``
wants a GPU and has the sizes of the publications.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args

from annotated_types import Interval

from feedgym.agents.alignment.dpo import DPORoundConfig
from feedgym.agents.generation import SamplingConfig
from feedgym.agents.pretrain import PretrainConfig
from feedgym.data.sessions import SessionFilter
from feedgym.envs.short_video import ShortVideoConfig
from feedgym.envs.truth import RewardWeights
from feedgym.experiments.cascade.presets import COMPARISONS as COMPARISONS  # found here as well
from feedgym.experiments.configs import JudgeConfig, LogConfig, Recording
from feedgym.experiments.rollouts import RolloutConfig
from feedgym.ranges import (
    BelowOne,
    Count,
    Few,
    Length,
    NonNegative,
    Positive,
    Ranged,
    Seed,
    SomeShare,
    Width,
    check_divides,
    check_used,
)
from feedgym.rewards.model import RewardModelConfig
from feedgym.tokenizers.residual_kmeans import KMeansOptions
from feedgym.tokenizers.rqvae import RQVAEOptions

if TYPE_CHECKING:
    pass

ConfigT = TypeVar("ConfigT")


STRICT: Any = {"extra": "forbid"}
"""A run's config.json says by the names of the sizes which model it is of."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Ranged):
    """Size of OneRec."""

    name: ClassVar[str] = "OneRec"
    __pydantic_config__: ClassVar[Any] = STRICT

    d_model: Width = 64
    """Width."""
    num_heads: Few = 4
    """Attention heads."""
    encoder_layers: Few = 1
    """Layers reading the history."""
    decoder_layers: Few = 2
    """Layers writing the session."""
    d_ff: Width = 128
    """Width inside a feed-forward layer and inside an expert."""
    num_experts: Few = 4
    """Experts of a decoder layer."""
    num_experts_per_tok: Few = 2
    """Experts that a token is sent to."""
    gate_renormalise: bool = False
    """Divide the gates of those experts by their sum; the paper does not."""
    router_aux_loss_coef: NonNegative = 0.01
    """Weight of the loss that balances the load of the experts."""
    dropout: BelowOne = 0.0
    """Dropout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divides(self, "num_heads", "d_model")
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} is above num_experts={self.num_experts}; lower it."
            )


@dataclass(frozen=True, kw_only=True)
class TigerSize(Ranged):
    """Size of TIGER, and what it reads; see :class:`feedgym.agents.tiger.TigerConfig`."""

    name: ClassVar[str] = "TIGER"
    __pydantic_config__: ClassVar[Any] = STRICT

    d_model: Width = 64
    """Width."""
    num_heads: Few = 4
    """Attention heads."""
    head_width: Width = 16
    """Width of a head."""
    encoder_layers: Few = 1
    """Layers reading the history."""
    decoder_layers: Few = 2
    """Layers writing the session."""
    d_ff: Width = 128
    """Width inside a feed-forward layer."""
    dropout: BelowOne = 0.0
    """Dropout."""
    num_user_tokens: Count = 1
    """Tokens to which users are hashed by their profile; 1 is the same for all."""
    only_positives: bool = False
    """Read positive events alone, as the paper does; otherwise all that were examined."""
    event_features: bool = True
    """Read behaviours and times of events, profile and time of day, too; the paper reads items alone."""
    semantic_init: bool = True
    """Let code embeddings start at the tokenizer's codewords."""


@dataclass(frozen=True, kw_only=True)
class HSTUSize(Ranged):
    """Size of HSTU, and what it reads; see :class:`feedgym.agents.hstu.HSTUConfig`.

    In alignment it learns sessions by cross-entropy over the whole catalogue, for sampling and DPO go by probabilities
    of sessions; the losses with drawn negatives are for retrieval (``feedgym run hstu``).
    """

    name: ClassVar[str] = "HSTU"
    __pydantic_config__: ClassVar[Any] = STRICT

    d_model: Width = 64
    """Width."""
    num_layers: Few = 2
    """Blocks."""
    num_heads: Few = 2
    """Attention heads."""
    d_qk: Width = 32
    """Width of a head's queries and keys."""
    d_v: Width = 32
    """Width of a head's values and gate."""
    dropout: BelowOne = 0.0
    """Dropout."""
    only_positives: bool = True
    """Read positive events alone; otherwise all that were examined."""
    use_time: bool = True
    """Bias attention by time."""
    temperature: Positive = 0.05
    """Divides the cosine of user and item; the lower, the sharper the choice."""


Splitting = Literal["users", "time"]
Tokenizing = Literal["residual_kmeans", "rqvae", "item_id"]


@dataclass(frozen=True, kw_only=True)
class IPAConfig(Ranged):
    """Iterative preference alignment."""

    rounds: Annotated[int, Interval(ge=0, le=10_000)] = 6
    """Rounds of sampling, scoring and DPO; each starts from the snapshot the last one left."""
    user_share: SomeShare = 0.1
    """r_DPO: share of the training users sampled for in a round, one of their logged sessions each."""
    num_samples: Annotated[int, Interval(ge=2, le=10**6)] = 128
    """Sessions sampled a user; the best and the worst of them by the reward model become a pair."""
    margin: NonNegative = 0.0
    """Pairs whose scores differ by less are skipped."""
    beams: bool = False
    """Take the 128 sessions from a beam search, as the paper does, instead of sampling them."""
    kl_samples: Count = 4
    """Sessions per user, drawn at temperature 1, on which entropy and divergence from the base agent are measured."""
    truth_replicas: Count = 8
    """Answers a session from which its true value is averaged; only watched, never learned from."""


@dataclass(frozen=True, kw_only=True)
class AlignConfig(Recording):
    """An alignment experiment from the log to the report."""

    seed: Seed = 0
    """Decides everything: catalogue, users, weights, samples."""
    simulator: str | None = None
    """Import path of your own user simulator, e.g. my_lab.users:Teen; the flagship ShortVideo if left out."""
    short_video: ShortVideoConfig = field(default_factory=lambda: ShortVideoConfig(num_items=2000))
    """The flagship simulator."""
    log: LogConfig = field(default_factory=LogConfig)
    """How much it logs."""
    session_length: Length = 5
    """K, items in a session."""
    history_length: Length = 40
    """T, events of the history that agents and reward model see."""
    split: Splitting = "users"
    """Of a recorded log, what judges: a tenth of the users, or (time) all users' last sessions, a tenth of all by time,
    while models are trained on what came before that moment."""
    split_seed: Seed = 0
    """Which users are held out from training to check the reward model."""
    tokenizer: Tokenizing = "residual_kmeans"
    """What gives items their codes: residual_kmeans (OneRec's), rqvae (TIGER's) or item_id (HSTU's: one an item)."""
    num_codes: tuple[Width, ...] | None = None
    """Codes of each level of the tokenizer; chosen by the size of the catalogue if left out. item_id has no use for
    it."""
    kmeans: KMeansOptions = field(default_factory=KMeansOptions)
    """Residual k-means, where tokenizer is residual_kmeans."""
    rqvae: RQVAEOptions = field(default_factory=lambda: RQVAEOptions(steps=2000))
    """The RQ-VAE, where tokenizer is rqvae."""
    sessions: SessionFilter = field(
        default_factory=lambda: SessionFilter(min_watched=1, min_watch_s=0.0, min_interactions=0, top_share=0.6)
    )
    """Which logged sessions the agent learns to imitate."""
    model: ModelConfig | TigerSize | HSTUSize = field(default_factory=ModelConfig)
    """The agent's kind and size; a preset chooses the kind."""
    pretrain: PretrainConfig = field(default_factory=lambda: PretrainConfig(epochs=2.5))
    """Next-token prediction."""
    reward: RewardModelConfig = field(default_factory=RewardModelConfig)
    """The session reward model."""
    score: str | None = None
    """Import path of what chooses the pairs instead of the reward model: a SessionReward, or a function of any of
    catalog, log and reward_model that makes one, e.g. feedgym.rewards.compose:clicks."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the sessions of a round are drawn."""
    ipa: IPAConfig = field(default_factory=IPAConfig)
    """The rounds."""
    dpo: DPORoundConfig = field(default_factory=DPORoundConfig)
    """The update of a round."""
    weights: RewardWeights = field(default_factory=RewardWeights)
    """What a session's reward is made of, the true one and the reward model's opinion of it alike."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Who judges."""
    ray: str = "local"
    """Where sessions are sampled and scored: local (actors on this machine), off (in this process), or the address of a
    Ray cluster ("auto", "host:6379"). It changes no figure."""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    """How that work is spread."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer not in get_args(Tokenizing):
            raise ValueError(
                f"tokenizer={self.tokenizer!r} is unknown; choose one of {', '.join(get_args(Tokenizing))}."
            )
        if self.split == "time" and self.data is None:
            raise ValueError("split='time' cuts a recorded log; give one with --data, or leave it 'users'.")
        if isinstance(self.model, HSTUSize) and self.tokenizer != "item_id":
            raise ValueError(f"HSTU writes item ids and not the codes of tokenizer={self.tokenizer!r}; choose item_id.")
        check_used(self, chosen="tokenizer", parts={"residual_kmeans": "kmeans", "rqvae": "rqvae"})
        if self.tokenizer == "item_id" and self.num_codes is not None:
            raise ValueError(f"num_codes={self.num_codes} does nothing to tokenizer='item_id'; leave it out.")
        if self.ipa.beams and vars(self.sampling) != vars(SamplingConfig(block_seen=self.sampling.block_seen)):
            raise ValueError(
                "sampling.temperature, top_k and top_p do nothing where ipa.beams searches; leave out one of the two."
            )

    def code(self) -> list[tuple[str, str | None]]:
        """What it names besides data; see :mod:`feedgym.trust`."""
        return [("simulator", self.simulator), ("score", self.score), ("ray", self.ray)]

    def seeded(self, part: ConfigT) -> ConfigT:
        """A part of the configuration with this experiment's seed added to its own."""
        return replace(part, seed=part.seed + self.seed)  # type: ignore[type-var, attr-defined]


def small() -> AlignConfig:
    """The demo: 2,000 items, 4,000 users, 6 rounds; about 5 minutes on 2 cores."""
    return AlignConfig()


def smoke() -> AlignConfig:
    """Everything once, in seconds: for tests and continuous integration; its figures mean nothing."""
    return AlignConfig(
        short_video=ShortVideoConfig(num_items=120),
        log=LogConfig(users=80, visits=4),
        history_length=12,
        model=ModelConfig(d_model=16, num_heads=2, encoder_layers=1, decoder_layers=1, d_ff=32),
        pretrain=PretrainConfig(steps=12, batch_size=32, checkpoint_steps=4, warmup_steps=2),
        reward=RewardModelConfig(epochs=1),
        ipa=IPAConfig(rounds=2, user_share=0.3, num_samples=12, truth_replicas=2),
        dpo=DPORoundConfig(epochs=1, batch_size=8),
        judge=JudgeConfig(users=24, visits=2),
    )


def tiger(config: AlignConfig, **sizes: Any) -> AlignConfig:
    """An experiment with TIGER over the codes of an RQ-VAE in place of OneRec."""
    return replace(config, model=TigerSize(**sizes), tokenizer="rqvae")


def hstu(config: AlignConfig, **sizes: Any) -> AlignConfig:
    """An experiment with HSTU over item ids in place of OneRec."""
    return replace(config, model=HSTUSize(**sizes), tokenizer="item_id")


def tiger_small() -> AlignConfig:
    """The demo with TIGER: RQ-VAE codes with a counter of collisions, an encoder-decoder as wide as the demo's."""
    return tiger(small())


def tiger_smoke() -> AlignConfig:
    """Everything once with TIGER, in seconds; its figures mean nothing."""
    sizes: dict[str, Any] = {"d_model": 16, "num_heads": 2, "head_width": 8, "decoder_layers": 1, "d_ff": 32}
    return replace(tiger(smoke(), **sizes), rqvae=RQVAEOptions(steps=30))


def tiger_paper() -> AlignConfig:
    """TIGER's published sizes on the larger experiment; for one GPU or more."""
    sizes: dict[str, Any] = {"d_model": 128, "num_heads": 6, "head_width": 64, "encoder_layers": 4}
    sizes |= {"decoder_layers": 4, "d_ff": 1024, "dropout": 0.1, "semantic_init": False}
    return replace(tiger(paper(), **sizes), num_codes=(256, 256, 256), rqvae=RQVAEOptions(steps=20_000))


def hstu_small() -> AlignConfig:
    """The demo with HSTU, which writes item ids."""
    return hstu(small())


def hstu_smoke() -> AlignConfig:
    """Everything once with HSTU, in seconds; its figures mean nothing."""
    return hstu(smoke(), d_model=16, num_layers=1, d_qk=8, d_v=8)


def paper() -> AlignConfig:
    """The paper's sizes as far as simulated users can fill them; for one GPU or more.

    The paper's: its filter of sessions, histories of 256 events, 24 experts of which two are active, 128 sessions from
    a beam search for 1% of the users, one pass over their pairs, the learning rate 2e-4, and answers from 128 beams.

    Its differences from the paper, besides those that :mod:`feedgym.agents.onerec` and
    :mod:`feedgym.experiments.align.experiment` list:
        - Sessions of 10 items; the paper has 5. The filter wants 5 of them truly watched and a like, follow, comment or
          forward. Of simulated sessions of 5, .7% pass it, some 10,000 of this log; of those of 10, 6.2%.
        - Three passes over them before alignment; the paper sees each session of an endless stream once.
        - Three levels of 64 codes for 10,000 items; the paper has 8,192 a level for all of Kuaishou's.
        - Width, layers and batch are our choice, as are beta and the weight of the preference loss, which the paper
          does not publish. So are six rounds: it keeps a snapshot an epoch and does not say how many.
    """
    return AlignConfig(
        short_video=ShortVideoConfig(num_items=10_000),
        log=LogConfig(users=50_000, visits=30),
        session_length=10,
        history_length=256,
        num_codes=(64, 64, 64),
        sessions=SessionFilter(),
        model=ModelConfig(d_model=512, num_heads=8, encoder_layers=4, decoder_layers=4, d_ff=1024, num_experts=24),
        reward=RewardModelConfig(width=128, batch_size=1024),
        pretrain=PretrainConfig(epochs=3, batch_size=128, lr=2e-4, warmup_steps=200, bf16=True),
        ipa=IPAConfig(user_share=0.01, beams=True),
        dpo=DPORoundConfig(learning_rate=2e-4, epochs=1, batch_size=64, bf16=True),
        judge=JudgeConfig(users=5000, visits=14, beams=128),
    )


ALIGN_PRESETS: dict[str, Callable[[], AlignConfig]] = {
    "onerec-ipa": small,
    "onerec-ipa-smoke": smoke,
    "onerec-ipa-paper": paper,
    "tiger-ipa": tiger_small,
    "tiger-ipa-smoke": tiger_smoke,
    "tiger-ipa-paper": tiger_paper,
    "hstu-ipa": hstu_small,
    "hstu-ipa-smoke": hstu_smoke,
}
"""What `feedgym run` offers of it."""

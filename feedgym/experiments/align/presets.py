"""Experiments as functions: each returns the whole configuration of a run, to be changed field by field.

``smoke`` runs in seconds and proves that everything works; ``small`` is the laptop's experiment and the demo; ``paper``
wants a GPU and has the sizes of the publications.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro
from annotated_types import Interval

from feedgym.agents.alignment.dpo import IPAConfig
from feedgym.agents.generation import SamplingConfig
from feedgym.agents.hstu import HSTUSizes
from feedgym.agents.onerec import OneRecSizes
from feedgym.agents.pretrain import PretrainConfig
from feedgym.agents.tiger import TigerSizes
from feedgym.data.sessions import SessionFilter
from feedgym.envs.short_video import ShortVideoConfig
from feedgym.envs.truth import RewardWeights
from feedgym.experiments.configs import CostConfig, JudgeConfig, LogConfig, UsersConfig
from feedgym.experiments.rollouts import RolloutConfig
from feedgym.plugins import is_built_in, resolve
from feedgym.ranges import (
    Count,
    CountOrZero,
    Length,
    Ranged,
    Seed,
    Share,
    SomeShare,
    Visits,
    check_choices,
)
from feedgym.rewards.config import RewardModelConfig
from feedgym.tokenizers.residual_kmeans import ResidualKMeansConfig
from feedgym.tokenizers.rqvae import RQVAEConfig

ConfigT = TypeVar("ConfigT")


Splitting = Literal["users", "time"]
Search = Literal["sample", "beam", "mixed"]
Reference = Literal["last", "base"]
Scores = Literal["reward", "truth"]


@dataclass(frozen=True, kw_only=True)
class RoundsConfig(Ranged):
    """The rounds of an alignment: whom it samples sessions for, how many, and how."""

    num: Annotated[int, Interval(ge=0, le=10_000)] = 6
    """Rounds of sampling, scoring and updating; each starts from the snapshot the last one left."""
    user_share: SomeShare = 0.1
    """r_DPO: share of the training users sampled for in a round, one of their logged sessions each."""
    num_samples: Annotated[int, Interval(ge=2, le=10**6)] = 128
    """Sessions sampled per user, which the reward scores and the method learns from."""
    search: Search = "sample"
    """Where a user's sessions come from: sample (drawn from the agent), beam (a beam search, as in OneRec's paper), or
    mixed (half and half)."""
    on_policy: bool = True
    """Sample from the latest snapshot. Without it all rounds sample from the base, as if the sessions had been drawn
    and scored once, before the alignment."""
    reference: Reference = "last"
    """The model that methods with a reference must not leave too far: last (the snapshot, which moves with the rounds)
    or base."""
    serve: CountOrZero = 0
    """New users whom the snapshot serves before each round. The reward model is then fitted anew to the log and all
    that was served, and a part of the round's requests comes from there. It spends real users' requests. 0: none."""
    serve_visits: Visits = 14
    """Visits per served user, unless they churn earlier."""
    served_share: Share = 0.5
    """Share of a round's requests that come from what was served just before it; the others are the log's."""
    scores: Scores = "reward"
    """What scores the sessions that methods learn from: reward, or truth (FOR STUDY ONLY: the simulator's own values,
    which no platform has; they say what a perfect reward model would be worth)."""
    truth_replicas: Annotated[int, Interval(ge=2, le=10**9)] = 8
    """Answers per session from which its true value is averaged; watched, and learned from with scores=truth alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, search=Search, reference=Reference, scores=Scores)
        for name in ("serve_visits", "served_share"):
            if not self.serve and getattr(self, name) != getattr(RoundsConfig, name):
                raise ValueError(f"{name}={getattr(self, name)} does nothing where nobody is served; set serve too.")
        if not self.on_policy and self.serve and self.served_share:
            raise ValueError(
                "on_policy=False samples from the base alone, so requests from the snapshot's serving do not fit; set "
                "served_share to 0."
            )


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Ranged):
    """What is looked at after every round: the same held-out users at one logged request each."""

    users: Count = 120
    """Held-out users."""
    samples: Annotated[int, Interval(ge=2, le=10**6)] = 8
    """Sessions per user, drawn at temperature 1 whatever the rounds' sampling."""
    replicas: Annotated[int, Interval(ge=2, le=10**9)] = 32
    """Answers per session of the larger pools, of num_samples sessions per user, among which the best by the truth is
    looked for: with few answers noise decides which that is, and it seems worth less than it is."""
    watchers: Annotated[int, Interval(ge=0, le=100)] = 0
    """Further reward models that nothing optimises, each fitted to a resample of the training users. They are what some
    stop rules look at; each costs as much as the reward model."""


@dataclass(frozen=True, kw_only=True)
class AlignConfig(UsersConfig):
    """An alignment experiment from the log to the report."""

    PLUGINS: ClassVar[tuple[str, ...]] = ("simulator", "tokenizer", "model", "reward", "method", "stop")

    seed: Seed = 0
    """Decides everything: catalogue, users, weights, samples."""
    session_length: Length = 5
    """K, items in a session."""
    history_length: Length = 40
    """T, events of the history that agents and reward model see."""
    memory: CountOrZero = 0
    """Items seen before those T events that the platform remembers: agents leave them out, as they do those of the
    history, though no model reads them. Users forget later than agents, so without it late visits repeat much."""
    split: Splitting = "users"
    """Of a recorded log, what judges: a tenth of the users, or (time) all users' last sessions, a tenth of all by time,
    while models are trained on what came before that moment."""
    split_seed: Seed = 0
    """Which users are held out from training to check the reward model."""
    tokenizer: str = "residual_kmeans"
    """What gives items their codes: residual_kmeans (OneRec's), rqvae (TIGER's), item_id (HSTU's: one an item), lsh,
    random, or the import path of your own."""
    tokenizer_options: Annotated[Any, tyro.conf.arg(name="tokenizer")] = None
    """Options of the tokenizer; the experiment's seed is added to its own."""
    sessions: SessionFilter = field(
        default_factory=lambda: SessionFilter(min_watched=1, min_watch_s=0.0, min_interactions=0, top_share=0.6)
    )
    """Which logged sessions the agent learns to imitate."""
    model: str = "onerec"
    """The agent: onerec, tiger, hstu, or the import path of your own."""
    model_options: Annotated[Any, tyro.conf.arg(name="model")] = None
    """Sizes of the agent."""
    pretrain: PretrainConfig = field(default_factory=lambda: PretrainConfig(epochs=2.5))
    """Next-token prediction."""
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    """The session reward model, fitted to the log."""
    reward_share: SomeShare = 1.0
    """Share of the training users whose sessions the reward model learns from."""
    reward: str = "reward_model"
    """What scores the sessions of a round: reward_model; of an ensemble (--reward-model.members) cautious or
    worst_case; mixed, clicks, diverse, diversity; or the import path of your own: a SessionReward, or what makes one
    out of any of catalog, log and reward_model."""
    reward_options: Annotated[Any, tyro.conf.arg(name="reward")] = None
    """Options of the reward, where it has some."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the sessions of a round are drawn."""
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    """The rounds."""
    method: str = "ipa"
    """How a round's scored sessions become an update of the agent. From pairs: ipa (OneRec's iterated DPO), dpo, ipo,
    cdpo, rdpo, apo, sppo, and without a reference cpo, simpo, orpo. From one against several: s_dpo. From good and bad
    ones: kto. From whole groups: grpo, dr_grpo, rloo, ecpo, gbpo. By imitation: rsft, exp_rsft. Or the import path of
    your own."""
    method_options: Annotated[Any, tyro.conf.arg(name="method")] = None
    """Options of the method; the experiment's seed and the round's number are added to its own."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """What is looked at after every round."""
    stop: str = "never"
    """When to stop before the last round, by a rule that sees no truth: never, kl, diversity, disagreement, held_out or
    correlation (these three need --probe.watchers), or the import path of your own."""
    stop_options: Annotated[Any, tyro.conf.arg(name="stop")] = None
    """Options of the rule."""
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
        if self.split == "time" and self.data is None:
            raise ValueError("split='time' cuts a recorded log; give one with --data, or leave it 'users'.")
        if self.memory and not self.sampling.block_seen:
            raise ValueError("memory does nothing where sampling.block_seen leaves no item out; leave it 0.")
        if self.judge.study and self.data is not None:
            raise ValueError("judge.study asks for the truth, which no recorded log holds; leave it out.")
        if self.judge.against and self.data is not None:
            raise ValueError("judge.against needs simulated users: others may know those held out; leave it out.")
        if self.model == "hstu" and self.tokenizer != "item_id":
            raise ValueError(f"HSTU writes item ids and not the codes of tokenizer={self.tokenizer!r}; choose item_id.")
        if self.model == "hstu" and self.model_options.loss != "ce":
            raise ValueError(f"HSTU learns sessions by loss='ce', not {self.model_options.loss!r}; choose ce.")
        if self.rounds.search == "beam" and self.sampling != SamplingConfig(block_seen=self.sampling.block_seen):
            raise ValueError(
                "sampling.temperature, top_k and top_p do nothing where rounds.search='beam'; leave one of them out."
            )
        if self.rounds.serve and self.data is not None:
            raise ValueError(f"rounds.serve={self.rounds.serve} asks for simulated users; leave it 0 with --data.")
        if self.rounds.scores == "truth" and self.data is not None:
            raise ValueError("rounds.scores='truth' asks for simulated users; leave it 'reward' with --data.")

        if self.rounds.reference == "base" and is_built_in("method", self.method):
            self.check_reference()
        if is_built_in("reward", self.reward):
            self.check_reward()

    def check_reward(self) -> None:
        """Refuse a reward that looks at the members of an ensemble where there is none; this imports the reward."""
        if getattr(resolve("reward", self.reward), "of_members", False) and not self.reward_model.is_ensemble:
            raise ValueError(
                f"reward={self.reward!r} looks at how far the members of an ensemble are apart; set "
                "--reward-model.members 5 (and no shared_start), or choose reward_model."
            )
        if self.reward == "clicks" and self.reward_model.p_score:
            raise ValueError(
                "reward='clicks' asks the reward model for clicks alone, and p_score has one score for everything; "
                "choose one of the two."
            )

    def check_reference(self) -> None:
        """Refuse the base as the reference of a method that has none; this imports the method."""
        if "reference" not in signature(resolve("method", self.method).update).parameters:
            raise ValueError(
                f"rounds.reference='base' does nothing to method={self.method!r}, which has none; leave it 'last'."
            )

    def code(self) -> list[tuple[str, str | None]]:
        """What it names besides data; see :mod:`feedgym.trust`."""
        return [*super().code(), ("ray", self.ray)]

    def seeded(self, part: ConfigT) -> ConfigT:
        """A part of the configuration with this experiment's seed added to its own."""
        return replace(part, seed=part.seed + self.seed)  # type: ignore[type-var, attr-defined]


def small() -> AlignConfig:
    """The demo: 2,000 items, 4,000 users, 6 rounds; about 8 minutes on 2 cores.

    Agents have the platform's memory of what a user saw: without it more than half of what they show at the 30th visit
    has been seen before, and nothing is left of what alignment gained.
    """
    return AlignConfig(memory=200)


def smoke() -> AlignConfig:
    """Everything once, in seconds: for tests and continuous integration; its figures mean nothing."""
    return AlignConfig(
        simulator_options=ShortVideoConfig(num_items=120),
        log=LogConfig(users=80, visits=4),
        history_length=12,
        model_options=OneRecSizes(d_model=16, num_heads=2, encoder_layers=1, decoder_layers=1, d_ff=32),
        pretrain=PretrainConfig(steps=12, batch_size=32, checkpoint_steps=4, warmup_steps=2),
        reward_model=RewardModelConfig(epochs=1),
        rounds=RoundsConfig(num=2, user_share=0.3, num_samples=12, truth_replicas=2),
        method_options=IPAConfig(epochs=1, batch_size=8),
        probe=ProbeConfig(users=6, samples=3, replicas=4),
        judge=JudgeConfig(users=24, visits=2, cost=CostConfig(requests=8, repeats=1)),
    )


def tiger(config: AlignConfig, *, steps: int = 2000, **sizes: Any) -> AlignConfig:
    """An experiment with TIGER over the codes of an RQ-VAE in place of OneRec; by itself as wide as the demo's OneRec.

    Unlike the paper's it reads all that a user saw and did, and starts at the tokenizer's codewords.
    """
    usual: dict[str, Any] = {"d_model": 64, "num_heads": 4, "head_width": 16, "encoder_layers": 1, "decoder_layers": 2}
    usual |= {"d_ff": 128, "dropout": 0.0, "only_positives": False, "event_features": True, "semantic_init": True}
    return replace(
        config, model="tiger", model_options=TigerSizes(**usual | sizes), tokenizer="rqvae",
        tokenizer_options=RQVAEConfig(steps=steps),
    )  # fmt: skip


def hstu(config: AlignConfig, **sizes: Any) -> AlignConfig:
    """An experiment with HSTU over item ids in place of OneRec."""
    usual: dict[str, Any] = {"d_model": 64, "num_heads": 2, "d_qk": 32, "d_v": 32, "dropout": 0.0, "loss": "ce"}
    return replace(
        config, model="hstu", model_options=HSTUSizes(**usual | sizes), tokenizer="item_id", tokenizer_options=None
    )


def tiger_small() -> AlignConfig:
    """The demo with TIGER: RQ-VAE codes with a counter of collisions, an encoder-decoder as wide as the demo's."""
    return tiger(small())


def tiger_smoke() -> AlignConfig:
    """Everything once with TIGER, in seconds; its figures mean nothing."""
    return tiger(smoke(), steps=30, d_model=16, num_heads=2, head_width=8, decoder_layers=1, d_ff=32)


def tiger_paper() -> AlignConfig:
    """TIGER's published sizes on the larger experiment; for one GPU or more."""
    config = replace(tiger(paper()), model_options=TigerSizes(only_positives=False, event_features=True))
    return replace(config, tokenizer_options=RQVAEConfig(num_codes=(256, 256, 256), steps=20_000))


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
        simulator_options=ShortVideoConfig(num_items=10_000),
        log=LogConfig(users=50_000, visits=30),
        session_length=10,
        history_length=256,
        tokenizer_options=ResidualKMeansConfig(num_codes=(64, 64, 64)),
        sessions=SessionFilter(),
        model_options=OneRecSizes(
            d_model=512, num_heads=8, encoder_layers=4, decoder_layers=4, d_ff=1024, num_experts=24
        ),
        reward_model=RewardModelConfig(width=128, batch_size=1024),
        pretrain=PretrainConfig(epochs=3, batch_size=128, lr=2e-4, warmup_steps=200, bf16=True),
        rounds=RoundsConfig(user_share=0.01, search="beam"),
        method_options=IPAConfig(learning_rate=2e-4, epochs=1, batch_size=64, bf16=True),
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

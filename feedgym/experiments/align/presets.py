"""Experiments as functions: each returns the whole configuration of a run, to be changed field by field.

``smoke`` runs in seconds and proves that everything works. ``small`` is the demo, an experiment for a laptop. ``paper``
needs a GPU and has the sizes of the publications.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro
from annotated_types import Interval

from feedgym.agents.alignment.dpo import IPAConfig
from feedgym.agents.candidates import check_enough
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
    """Options of the rounds of an alignment: how many users to sample sessions for, how many sessions, and how."""

    num: Annotated[int, Interval(ge=0, le=10_000)] = 6
    """Rounds of sampling, scoring and updating; each starts from the last round's snapshot."""
    user_share: SomeShare = 0.1
    """r_DPO: share of the training users to sample for in a round, one of their logged sessions each."""
    num_samples: Annotated[int, Interval(ge=2, le=10**6)] = 128
    """Sessions sampled per user, which the reward scores and the method learns from."""
    search: Search = "sample"
    """Source of a user's sessions: sample (drawn from the agent), beam (a beam search, as in OneRec's paper), or mixed
    (half of each)."""
    on_policy: bool = True
    """Sample from the latest snapshot. Otherwise all rounds sample from the base, as if all sessions had been drawn and
    scored once, before the alignment."""
    reference: Reference = "last"
    """The model that methods with a reference must stay close to: last (the snapshot, which moves with the rounds) or
    base."""
    serve: CountOrZero = 0
    """New users to serve with the snapshot before each round; 0: none. The reward model is then fitted anew to the log
    and all served sessions, and a part of the round's requests comes from there. This spends requests of real users."""
    serve_visits: Visits = 14
    """Visits per served user, unless they churn earlier."""
    served_share: Share = 0.5
    """Share of a round's requests that come from the sessions served just before it; the others come from the log."""
    scores: Scores = "reward"
    """Scores that methods learn from: reward, or truth. The truth is FOR STUDY ONLY: the simulator's own values, which
    no platform has, show what a perfect reward model would be worth."""
    truth_replicas: Annotated[int, Interval(ge=2, le=10**9)] = 8
    """Simulated responses per session to average for its true value. Methods learn from it only with scores=truth;
    otherwise it is only reported."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, search=Search, reference=Reference, scores=Scores)
        for name in ("serve_visits", "served_share"):
            if not self.serve and getattr(self, name) != getattr(RoundsConfig, name):
                raise ValueError(f"{name}={getattr(self, name)} does nothing if nobody is served; set serve too.")
        if not self.on_policy and self.serve and self.served_share:
            raise ValueError(
                "on_policy=False samples only from the base, so it cannot use requests from the snapshot's serving; "
                "set served_share to 0."
            )


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Ranged):
    """Options of the probe after every round: the same held-out users at one logged request each."""

    users: Count = 120
    """Number of held-out users."""
    samples: Annotated[int, Interval(ge=2, le=10**6)] = 8
    """Sessions per user, drawn at temperature 1 even if the rounds sample differently."""
    replicas: Annotated[int, Interval(ge=2, le=10**9)] = 32
    """Simulated responses per session in the larger pools of num_samples sessions per user, where the best session by
    the truth is sought. With few responses noise decides which that is, and its value is underestimated."""
    watchers: Annotated[int, Interval(ge=0, le=100)] = 0
    """Further reward models that are not optimised, each fitted to a resample of the training users. Some stop rules
    use them; each costs as much as the reward model."""
    apart: bool = False
    """With a recorded log: judge by held-out users who are not probed. Otherwise a choice by the probes, such as a stop
    rule's or a sweep's, is judged by users whom it has seen."""


@dataclass(frozen=True, kw_only=True)
class AlignConfig(UsersConfig):
    """An alignment experiment from the log to the report."""

    PLUGINS: ClassVar[tuple[str, ...]] = ("simulator", "tokenizer", "model", "reward", "method", "stop")

    seed: Seed = 0
    """Seed for everything: catalogue, users, weights, samples."""
    session_length: Length = 5
    """K, items in a session."""
    history_length: Length = 40
    """T, events of the history that agents and the reward model see."""
    memory: CountOrZero = 0
    """Items seen before those T events that the platform remembers. Agents leave them out, as they do items of the
    history, but no model reads them. Users remember longer than agents, so without it late visits repeat many items."""
    split: Splitting = "users"
    """Part of a recorded log that judges: a tenth of the users, or (time) the last tenth of all sessions. With time,
    models are trained only on the events before that moment."""
    split_seed: Seed = 0
    """Seed that decides which users are held out from training to check the reward model."""
    tokenizer: str = "residual_kmeans"
    """Tokenizer that gives items their codes: residual_kmeans (OneRec's), rqvae (TIGER's), item_id (HSTU's: one per
    item), lsh or random. index takes published codes from a NAME.index.json. Or the import path of your own."""
    tokenizer_options: Annotated[Any, tyro.conf.arg(name="tokenizer")] = None
    """Options of the tokenizer; the experiment's seed is added to its own."""
    sessions: SessionFilter = field(
        default_factory=lambda: SessionFilter(min_watched=1, min_watch_s=0.0, min_interactions=0, top_share=0.6)
    )
    """Filter of the logged sessions that the agent learns to imitate."""
    model: str = "onerec"
    """The agent: onerec, tiger, hstu, or the import path of your own."""
    model_options: Annotated[Any, tyro.conf.arg(name="model")] = None
    """Sizes of the agent."""
    pretrain: PretrainConfig = field(default_factory=lambda: PretrainConfig(epochs=2.5, group_by_length=True))
    """Next-token prediction."""
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    """The session reward model, fitted to the log."""
    reward_share: SomeShare = 1.0
    """Share of the training users whose sessions the reward model learns from."""
    reward: str = "reward_model"
    """Reward that scores the sessions of a round: reward_model, mixed, clicks, diverse or diversity. With an ensemble
    (--reward-model.members) also cautious or worst_case. Or the import path of your own. That is a SessionReward, or a
    function or class that makes one from any of catalog, log and reward_model."""
    reward_options: Annotated[Any, tyro.conf.arg(name="reward")] = None
    """Options of the reward, if it has any."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Options for drawing the sessions of a round."""
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    """Options of the rounds."""
    method: str = "ipa"
    """Method that updates the agent from a round's scored sessions. With pairs: ipa (OneRec's iterated DPO), dpo, ipo,
    cdpo, rdpo, apo, sppo; without a reference cpo, simpo, orpo. With one good session against several: s_dpo. With good
    and bad sessions: kto. With whole groups: grpo, dr_grpo, rloo, ecpo, gbpo. By imitation: rsft, exp_rsft. Or the
    import path of your own."""
    method_options: Annotated[Any, tyro.conf.arg(name="method")] = None
    """Options of the method; the experiment's seed and the round's number are added to its own."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """Options of the probe after every round."""
    stop: str = "never"
    """Rule that stops before the last round, without access to the truth: never, kl, diversity, disagreement, held_out
    or correlation. The last three need --probe.watchers. Or the import path of your own."""
    stop_options: Annotated[Any, tyro.conf.arg(name="stop")] = None
    """Options of the stop rule."""
    weights: RewardWeights = field(default_factory=RewardWeights)
    """Weights of the parts of a session's reward, both the true one and the reward model's prediction."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Options of the judging users."""
    ray: str = "local"
    """Place to sample and score sessions: local (actors on this machine), off (in this process), or the address of a
    Ray cluster ("auto", "host:6379"). It does not change any figure."""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    """Options for spreading that work."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split == "time" and self.data is None:
            raise ValueError("split='time' cuts a recorded log; give one with --data, or leave it 'users'.")
        if self.memory and not self.sampling.block_seen:
            raise ValueError("memory does nothing if sampling.block_seen is off: no item is left out then; leave it 0.")
        if self.probe.apart and self.data is None:
            raise ValueError("probe.apart does nothing without --data: simulated judges are in no log; drop it.")
        if self.judge.study and self.data is not None:
            raise ValueError("judge.study asks for the truth, which a recorded log does not hold; leave it out.")
        if self.judge.against and self.data is not None:
            raise ValueError("judge.against needs simulated users: others may know those held out; leave it out.")
        if self.model == "hstu" and self.tokenizer != "item_id":
            raise ValueError(f"HSTU writes item ids, not the codes of tokenizer={self.tokenizer!r}; choose item_id.")
        if self.model == "hstu" and self.model_options.loss != "ce":
            self.check_loss(self.model_options.loss)
        if self.sampling.candidates:
            self.check_candidates()
        plain = SamplingConfig(block_seen=self.sampling.block_seen, candidates=self.sampling.candidates)
        if self.rounds.search == "beam" and self.sampling != plain:
            raise ValueError(
                "sampling.temperature, top_k and top_p do nothing where rounds.search='beam'; leave one of them out."
            )
        if self.rounds.serve and self.data is not None:
            raise ValueError(f"rounds.serve={self.rounds.serve} needs simulated users; leave it 0 with --data.")
        if self.rounds.scores == "truth" and self.data is not None:
            raise ValueError("rounds.scores='truth' needs simulated users; leave it 'reward' with --data.")
        if self.rollouts.max_staleness:
            self._check_staleness(self.rollouts.max_staleness)
        if self.rounds.reference == "base" and is_built_in("method", self.method):
            self.check_reference()
        if is_built_in("reward", self.reward):
            self.check_reward()

    def check_loss(self, loss: str) -> None:
        """Refuse losses with drawn negatives for HSTU, except a sampled softmax where it writes among candidates."""
        if loss == "sampled_softmax" and not self.sampling.candidates:
            raise ValueError(
                "HSTU over all items is trained with loss='ce', not 'sampled_softmax'; choose ce, or set "
                "sampling.candidates."
            )
        if loss != "sampled_softmax":
            raise ValueError(f"HSTU is trained with loss='ce', not {loss!r}; choose ce.")

    def check_candidates(self) -> None:
        """Refuse candidates for a model that writes codes, too few of them, or where all items' probabilities count."""
        num = self.sampling.candidates
        if is_built_in("model", self.model) and self.model != "hstu":
            raise ValueError(
                f"sampling.candidates={num} needs a model that scores items, hstu, but {self.model} writes codes; "
                "leave it 0."
            )
        check_enough(num, self.session_length)
        if getattr(self.method_options, "behaviour", "model") == "drawn":
            raise ValueError(
                "method.behaviour='drawn' needs the model's probabilities over all items, which sampling.candidates "
                "leaves out; choose one of the two."
            )

    def check_reward(self) -> None:
        """Refuse a reward that needs the members of an ensemble if there is none; this imports the reward."""
        if getattr(resolve("reward", self.reward), "of_members", False) and not self.reward_model.is_ensemble:
            raise ValueError(
                f"reward={self.reward!r} uses the spread of an ensemble's members; set "
                "--reward-model.members 5 (and no shared_start), or choose reward_model."
            )
        if self.reward == "clicks" and self.reward_model.p_score:
            raise ValueError(
                "reward='clicks' needs the reward model's predictions of clicks, and p_score has one score for "
                "everything; choose one of the two."
            )

    def _check_staleness(self, staleness: int) -> None:
        """Refuse rounds that cannot be sampled ahead, or in which this does nothing."""
        given = f"rollouts.max_staleness={staleness}"
        if self.rounds.serve:
            raise ValueError(
                f"{given} samples ahead of the snapshot that rounds.serve={self.rounds.serve} serves users with, and a "
                "round learns from them; leave one of them 0."
            )
        if not self.rounds.on_policy:
            raise ValueError(
                f"{given} does nothing with rounds.on_policy=False, which samples only from the base; leave it 0."
            )
        if staleness >= self.rounds.num:
            raise ValueError(
                f"{given} does no more than {max(0, self.rounds.num - 1)}, because the last of rounds.num="
                f"{self.rounds.num} rounds comes after so many updates; lower it."
            )

    def check_reference(self) -> None:
        """Refuse the base as the reference of a method that has none; this imports the method."""
        if "reference" not in signature(resolve("method", self.method).update).parameters:
            raise ValueError(
                f"rounds.reference='base' does nothing for method={self.method!r}, which has no reference; leave it "
                "'last'."
            )

    def code(self) -> list[tuple[str, str | None]]:
        """The code that it names, apart from data; see :mod:`feedgym.trust`."""
        return [*super().code(), ("ray", self.ray)]

    def seeded(self, part: ConfigT) -> ConfigT:
        """Add this experiment's seed to a part's own."""
        return replace(part, seed=part.seed + self.seed)  # type: ignore[type-var, attr-defined]


def small() -> AlignConfig:
    """The demo's experiment: 2,000 items, 4,000 users, 6 rounds; about 4 minutes on 2 cores.

    Agents have the platform's memory of the items that a user saw. Without it, users have already seen more than half
    of the items shown at the 30th visit, and all gains of alignment are lost.
    """
    return AlignConfig(memory=200)


def demo() -> AlignConfig:
    """The demo itself: also serves the best of 16 sessions, the control that needs no alignment."""
    return replace(small(), judge=JudgeConfig(best_of=(16,)))


def smoke() -> AlignConfig:
    """Every stage once, in seconds: for tests and continuous integration; its figures mean nothing."""
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
    """An experiment with TIGER over the codes of an RQ-VAE instead of OneRec; by default as wide as the demo's OneRec.

    Unlike the paper's TIGER it reads everything that a user saw and did, and starts from the tokenizer's codewords.
    """
    usual: dict[str, Any] = {"d_model": 64, "num_heads": 4, "head_width": 16, "encoder_layers": 1, "decoder_layers": 2}
    usual |= {"d_ff": 128, "dropout": 0.0, "only_positives": False, "event_features": True, "semantic_init": True}
    return replace(
        config, model="tiger", model_options=TigerSizes(**usual | sizes), tokenizer="rqvae",
        tokenizer_options=RQVAEConfig(steps=steps),
    )  # fmt: skip


def hstu(config: AlignConfig, **sizes: Any) -> AlignConfig:
    """An experiment with HSTU over item ids instead of OneRec."""
    usual: dict[str, Any] = {"d_model": 64, "num_heads": 2, "d_qk": 32, "d_v": 32, "dropout": 0.0, "loss": "ce"}
    return replace(
        config, model="hstu", model_options=HSTUSizes(**usual | sizes), tokenizer="item_id", tokenizer_options=None
    )


def tiger_small() -> AlignConfig:
    """The demo with TIGER: RQ-VAE codes with a counter for collisions, and an encoder-decoder as wide as the demo's."""
    return tiger(small())


def tiger_smoke() -> AlignConfig:
    """Every stage once with TIGER, in seconds; its figures mean nothing."""
    return tiger(smoke(), steps=30, d_model=16, num_heads=2, head_width=8, decoder_layers=1, d_ff=32)


def tiger_paper() -> AlignConfig:
    """TIGER's published sizes on the larger experiment; for one GPU or more."""
    config = replace(tiger(paper()), model_options=TigerSizes(only_positives=False, event_features=True))
    return replace(config, tokenizer_options=RQVAEConfig(num_codes=(256, 256, 256), steps=20_000))


def hstu_small() -> AlignConfig:
    """The demo with HSTU, which writes item ids."""
    return hstu(small())


def hstu_smoke() -> AlignConfig:
    """Every stage once with HSTU, in seconds; its figures mean nothing."""
    return hstu(smoke(), d_model=16, num_layers=1, d_qk=8, d_v=8)


def paper() -> AlignConfig:
    """The paper's sizes as far as simulated users can fill them; for one GPU or more.

    From the paper come its filter of sessions, histories of 256 events, and 24 experts of which two are active. A round
    searches 128 sessions with beams for 1% of the users and makes one pass over their pairs. The learning rate is 2e-4,
    and serving uses 128 beams.

    Differences from the paper, besides those listed in :mod:`feedgym.agents.onerec` and
    :mod:`feedgym.experiments.align.experiment`:
        - Sessions of 10 items; the paper has 5. The filter requires 5 watched items and a like, follow, comment or
          forward. Of simulated sessions of 5 items, 0.7% pass it, some 10,000 of this log; of those of 10 items, 6.2%.
        - Three passes over the sessions before alignment; the paper sees each session of an endless stream once.
        - Three levels of 64 codes for 10,000 items; the paper has 8,192 per level for all items of Kuaishou.
        - Width, layers and batch are our choice, and so are beta and the weight of the preference loss, which the paper
          does not publish. So are six rounds: the paper keeps a snapshot per epoch and does not say how many.
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
"""The alignment experiments in `feedgym run`."""

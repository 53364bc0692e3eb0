"""``feedgym check``: finds out which protocol a plug-in follows and runs that protocol's conformance checks.

Registered environments have checks of their own (:mod:`feedgym.envs.check_environment`).
"""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from feedgym.agents.alignment.check import check_method
from feedgym.agents.baselines import ItemKNNRecommender, PopularRecommender, RandomRecommender
from feedgym.agents.cascade import Cascade, CascadeConfig, Voted
from feedgym.agents.check import check_recommender
from feedgym.agents.check_model import check_model
from feedgym.agents.generation import SamplingConfig
from feedgym.agents.genrank import GenRank, GenRankConfig
from feedgym.agents.hstu import HSTU, HSTUConfig, HSTURecommender
from feedgym.agents.onerec import OneRec, OneRecSizes
from feedgym.agents.sasrec import SASRec, SASRecConfig
from feedgym.agents.sequences import ScoreRecommender
from feedgym.agents.session_model import SessionRecommender
from feedgym.agents.tiger import Tiger, TigerSizes
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import BEHAVIOURS, Catalog, EventLog
from feedgym.data.sessions import histories as logged_histories
from feedgym.data.sessions import logged_sessions
from feedgym.envs.check import check_simulator
from feedgym.envs.check_environment import check_environment
from feedgym.envs.feed import make_simulator
from feedgym.envs.learned.fit import LearnedConfig, fit_simulator
from feedgym.envs.logging import collect_log
from feedgym.envs.registration import ENVIRONMENTS
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.plugins import BUILT_IN as NAMES
from feedgym.plugins import checked_config
from feedgym.protocols import ItemTokenizer, Recommender, SessionReward, UserSimulator, is_reward, load, make
from feedgym.rewards.answers import Answers
from feedgym.rewards.check import check_reward
from feedgym.rewards.config import RewardModelConfig
from feedgym.rewards.engagement import ItemAverage
from feedgym.rewards.ensemble import RewardEnsemble
from feedgym.rewards.model import RewardModel
from feedgym.rewards.network import Sizes
from feedgym.rewards.training import untrained
from feedgym.tokenizers.check import check_tokenizer
from feedgym.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from feedgym.tokenizers.rqvae import RQVAE, RQVAEConfig

NUM_ITEMS, LENGTH, HISTORY = 300, 4, 9

BUILT_IN = (
    "feedgym.envs.short_video:ShortVideo",
    "feedgym.envs.short_video:ShortVideoCalibrated",
    "feedgym.envs.recsim:InterestEvolution",
    "feedgym.envs.recsim:InterestExploration",
    "feedgym.envs.recsim:LongTermSatisfaction",
    "feedgym.experiments.conformance:learned_users",
    "feedgym.tokenizers:ResidualKMeans",
    "feedgym.experiments.conformance:plain_kmeans",
    "feedgym.experiments.conformance:rqvae",
    "feedgym.tokenizers:LSH",
    "feedgym.tokenizers:RandomCodes",
    "feedgym.tokenizers:ItemId",
    "feedgym.agents.onerec:OneRec",
    "feedgym.agents.tiger:Tiger",
    "feedgym.agents.hstu:HSTU",
    *NAMES["method"].values(),
    "feedgym.experiments.conformance:random_agent",
    "feedgym.experiments.conformance:popular_agent",
    "feedgym.experiments.conformance:item_knn",
    "feedgym.experiments.conformance:onerec",
    "feedgym.experiments.conformance:tiger",
    "feedgym.experiments.conformance:sasrec",
    "feedgym.experiments.conformance:hstu",
    "feedgym.experiments.conformance:hstu_events",
    "feedgym.experiments.conformance:cascade",
    "feedgym.experiments.conformance:cascade_of_drawn",
    "feedgym.rewards.compose:Diversity",
    "feedgym.experiments.conformance:item_average",
    "feedgym.experiments.conformance:reward_model",
    "feedgym.experiments.conformance:ensemble",
    "feedgym.rewards.compose:WorstCase",
    "feedgym.rewards.compose:Cautious",
)
"""The plug-ins of ``feedgym check --all``. Models are small and untrained: the rules do not depend on training."""


def everything() -> list[str]:
    """All built-in plug-ins and ids that ``feedgym check --all`` checks."""
    return [*BUILT_IN, *ENVIRONMENTS]


def check_path(path: str, *, trust: bool = False) -> str:
    """Check the plug-in that an import path names, or the environment of an id.

    Args:
        path: the import path of an object, or of a class or function that makes one. Parameters named ``catalog``,
            ``log`` and ``reward_model`` get those of a small simulated feed; a function of ``histories`` and
            ``sessions`` is itself a reward. A registered name (``onerec``) means its import path. A folder is a
            simulator fitted to a log. Any other name with a slash, or a registered one without a colon, is an
            environment's id.
        trust: whether to trust a simulator's folder; as for :func:`feedgym.envs.feed.make_simulator`.

    Returns:
        The protocol that it follows, or "environment".

    Raises:
        ValueError: it cannot be made, follows no protocol, or breaks a rule of its protocol.
    """
    if Path(path).is_dir():
        check_simulator(make_simulator(path, trust=trust))
        return "UserSimulator"
    if "/" in path or path in gym.registry:
        check_environment(path)
        return "environment"
    target = load(_import_path(path))
    if callable(getattr(target, "respond", None)):
        check_simulator(_made(target))
        return "UserSimulator"
    catalog, log = _feed()
    kind = target if inspect.isclass(target) else type(target)
    if hasattr(kind, "build") and hasattr(kind, "step"):
        check_model(kind, _histories(), catalog.content_IE, log.profile_sizes)
        return "GenerativeAgent"
    if hasattr(kind, "update") and (kind is target or hasattr(kind, "Config")):
        check_method(kind, _histories(), catalog.content_IE, log.profile_sizes)
        return "AlignmentMethod"
    plugin = _made(target)
    if callable(getattr(plugin, "respond", None)):  # of a function
        check_simulator(plugin)
        return "UserSimulator"
    if hasattr(plugin, "encode") or hasattr(plugin, "decode"):
        check_tokenizer(plugin, catalog.content_IE)
        return "ItemTokenizer"
    if hasattr(plugin, "sample") or hasattr(plugin, "recommend"):
        check_recommender(plugin, _histories(), catalog.num_items)
        return "Recommender"
    if callable(plugin):
        check_reward(plugin, _histories().rows(slice(4)), _some_sessions(4))
        return "SessionReward"
    raise ValueError(
        f"{path} is a {type(plugin).__name__} that follows none of the protocols of feedgym.protocols: it has neither "
        "respond(), nor build() and step(), nor update(), nor sample() and recommend(), nor encode() and decode(), and "
        "it cannot be called."
    )


CHECKED = ("simulator", "tokenizer", "model", "reward", "method")
"""Kinds of plug-ins whose registered names may be given."""


def _import_path(path: str) -> str:
    """The import path of a registered name; other texts unchanged."""
    return next((NAMES[kind][path] for kind in CHECKED if path in NAMES[kind]), path)


def _made(target: Any) -> Any:
    """Make the plug-in as experiments make it: with its options and the arguments that it names."""
    options = checked_config(target) if callable(target) and hasattr(target, "Config") else None
    if callable(getattr(target, "respond", None)):
        return make_simulator(target if options is None else target(options))
    if hasattr(target, "encode") or hasattr(target, "decode"):
        return make(target) if options is None else target(options)
    if is_reward(target):
        return target
    asks = inspect.isfunction(target) or inspect.isclass(target)
    names = inspect.signature(target).parameters if asks else ()
    catalog, log = _feed()
    given: dict[str, Any] = {"catalog": catalog, "log": log}
    if "reward_model" in names:
        given["reward_model"] = (ensemble if getattr(target, "of_members", False) else reward_model)(catalog, log)
    if options is not None:
        given["config"] = options
    return make(target, **given)


@cache
def _feed() -> tuple[Catalog, EventLog]:
    simulator = ShortVideo(ShortVideoConfig(num_items=NUM_ITEMS))
    return simulator.catalog, collect_log(simulator, num_users=40, num_visits=4, session_length=LENGTH, seed=0)


@cache
def _histories() -> EventBatch:
    """Histories of several lengths."""
    catalog, log = _feed()
    sessions = logged_sessions(log, LENGTH)
    sessions = sessions.rows(np.linspace(0, len(sessions) - 1, 9).astype(int))
    return logged_histories(log, catalog, sessions.user_idx_N, sessions.row_N, sessions.start_s_N, HISTORY)


def _some_sessions(users: int) -> SessionBatch:
    return RandomRecommender(NUM_ITEMS, LENGTH).sample(
        _histories().rows(slice(users)), 3, torch.Generator().manual_seed(0)
    )


# ---------------------------------------------------------------- built-ins that need arguments


def learned_users(catalog: Catalog, log: EventLog) -> UserSimulator:
    """A simulator fitted to the log, around a small GenRank."""
    sizes: dict[str, Any] = {"d_model": 16, "num_layers": 1, "d_qk": 8, "d_v": 8, "history_length": HISTORY}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ranker = GenRank(GenRankConfig(num_items=catalog.num_items, profile_sizes=log.profile_sizes, **sizes))
    return fit_simulator(
        log, catalog, ranker, unseen_U=np.arange(log.num_users) % 2 == 0, config=LearnedConfig(session_length=LENGTH)
    )


def random_agent(catalog: Catalog) -> Recommender:
    """The random reference."""
    return RandomRecommender(catalog.num_items, LENGTH)


def popular_agent(catalog: Catalog, log: EventLog) -> Recommender:
    """The popularity reference."""
    shown = log.item_id[log.item_id >= 0]
    return PopularRecommender(torch.from_numpy(np.bincount(shown, minlength=catalog.num_items)), LENGTH)


def item_knn(catalog: Catalog, log: EventLog) -> Recommender:
    """Neighbours of items that the user took."""
    return ItemKNNRecommender.fit(log, catalog.num_items, LENGTH, neighbours=20)


def onerec(catalog: Catalog, log: EventLog) -> Recommender:
    """A small OneRec."""
    tokenizer = ResidualKMeans(ResidualKMeansConfig(num_codes=(16, 32))).fit(catalog.content_IE)
    sizes = OneRecSizes(d_model=16, num_heads=2, encoder_layers=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OneRec.build(
            sizes, tokenizer, session_length=LENGTH, history_length=HISTORY, profile_sizes=log.profile_sizes
        )
    return SessionRecommender(model, tokenizer, sampling=SamplingConfig(temperature=1.1, top_k=20, top_p=0.95))


def tiger(catalog: Catalog, log: EventLog) -> Recommender:
    """A small TIGER, whose tokenizer counts colliding items."""
    tokenizer = rqvae().fit(catalog.content_IE)
    sizes = TigerSizes(d_model=16, num_heads=2, head_width=12, encoder_layers=1, decoder_layers=2, d_ff=32,
                       num_user_tokens=50)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tiger.build(sizes, tokenizer, session_length=LENGTH, history_length=20, profile_sizes=log.profile_sizes)
    return SessionRecommender(model, tokenizer, sampling=SamplingConfig(temperature=1.1, top_k=20, top_p=0.95))


NEXT_ITEM: dict[str, Any] = {
    "num_items": NUM_ITEMS,
    "d_model": 16,
    "history_length": HISTORY,
    "session_length": LENGTH,
}
"""Sizes of the small next-item models."""
TWO_HEADS: dict[str, Any] = {"num_heads": 2, "d_qk": 8, "d_v": 8}


def sasrec() -> Recommender:
    """A small SASRec."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes: dict[str, Any] = {**NEXT_ITEM, "d_ff": 16}
        return ScoreRecommender(SASRec(SASRecConfig(**sizes)))


def hstu() -> Recommender:
    """A small HSTU that reads items."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HSTURecommender(HSTU(HSTUConfig(**NEXT_ITEM, **TWO_HEADS)))


def hstu_events(log: EventLog) -> Recommender:
    """A small HSTU that reads profiles, items and actions."""
    events: dict[str, Any] = {"stream": "events", "only_positives": False, "profile_sizes": log.profile_sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HSTU(HSTUConfig(**NEXT_ITEM, **events))
    return HSTURecommender(model, sampling=SamplingConfig(temperature=1.2, top_k=50, top_p=0.95))


def cascade(catalog: Catalog, log: EventLog) -> Recommender:
    """A small HSTU retrieves candidates, a small GenRank scores them, and MMR orders them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        retriever = HSTU(HSTUConfig(**NEXT_ITEM, **TWO_HEADS))
    return Cascade(retriever, _genrank(log), catalog, LENGTH, CascadeConfig(candidates=40, diversity=0.2))


def cascade_of_drawn(catalog: Catalog, log: EventLog) -> Recommender:
    """Drawn sessions of a small OneRec give the candidates, and a determinantal point process orders them."""
    retriever = Voted(onerec(catalog, log), catalog.num_items, num_samples=12)
    config = CascadeConfig(candidates=40, rule="dpp", diversity=0.2)
    return Cascade(retriever, _genrank(log), catalog, LENGTH, config)


def _genrank(log: EventLog) -> GenRank:
    sizes: dict[str, Any] = {"d_model": 16, "num_layers": 1, "d_qk": 8, "d_v": 8, "history_length": HISTORY}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GenRank(
            GenRankConfig(num_items=NUM_ITEMS, profile_sizes=log.profile_sizes, tasks=BEHAVIOURS, **sizes)
        ).eval()


def plain_kmeans() -> ItemTokenizer:
    """Residual k-means with clusters of any size."""
    return ResidualKMeans(ResidualKMeansConfig(num_codes=(16, 32), assignment="nearest", collisions="counter"))


def rqvae() -> RQVAE:
    """A small RQ-VAE."""
    return RQVAE(RQVAEConfig(num_codes=(16, 16), latent_width=8, steps=20, batch_size=64, revive_steps=5))


def item_average(catalog: Catalog, log: EventLog) -> SessionReward:
    """Minutes watched per item, the same for all users."""
    return ItemAverage.watch_minutes(log, catalog)


def reward_model(catalog: Catalog, log: EventLog) -> RewardModel:
    """A small session reward model."""
    config = RewardModelConfig(width=16, heads=2)
    model = untrained(config, Sizes.of(catalog, _histories(), LENGTH), seed=0)
    model.prepare(catalog, Answers.of(logged_sessions(log, LENGTH), config.watch_cap_s))
    return model.eval()


def ensemble(catalog: Catalog, log: EventLog) -> RewardEnsemble:
    """Two small reward models, the second slightly different from the first."""
    members = [reward_model(catalog, log) for _ in range(2)]
    with torch.no_grad():
        for weights in members[1].parameters():
            weights.mul_(1.5)
    return RewardEnsemble.of(members).eval()

"""Estimates the least memory of an experiment, so that one that cannot fit is refused before any work.

The estimates are rough and low: they count what must be held at one time and leave out the needs of libraries.
They are for typing mistakes (a billion users), not for planning a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Any

from feedgym.envs.short_video import ShortVideoConfig
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.cascade.presets import CascadeRun
from feedgym.experiments.configs import LogConfig
from feedgym.experiments.limits import EVENT, Need, log_bytes, refuse
from feedgym.experiments.methods.cells import cells_of
from feedgym.experiments.methods.presets import CellsRun
from feedgym.experiments.ope.presets import OPEItemsRun, OPERun
from feedgym.experiments.rank.presets import RankRun
from feedgym.experiments.retrieval.presets import RetrievalConfig
from feedgym.experiments.rl.presets import RLConfig
from feedgym.experiments.simulator.presets import LearnedRun
from feedgym.experiments.sweep.presets import SweepRun
from feedgym.tokenizers.codes import codes_for
from feedgym.tokenizers.rqvae import RQVAEConfig

WEIGHT = 16
"""Bytes per weight in training: itself, its gradient and the two moments of Adam."""
PROCESS = 200 * 2**20
"""Bytes of a process with torch."""


def check_memory(config: Any) -> None:
    """Refuse an experiment that cannot fit into this machine's memory.

    Args:
        config: the whole experiment, of any kind.

    Raises:
        ValueError: names the thing that is too large, its options, and both sizes.
    """
    for part in parts_of(config):
        refuse(part, needs(part))


def parts_of(config: Any) -> list[Any]:
    """The experiments of a configuration: itself, its cells for one seed, or examples of a sweep's draws.

    Other seeds need the same.
    """
    if isinstance(config, SweepRun):
        return list(config.examples())
    if isinstance(config, CellsRun):
        return [cell.config for cell in cells_of(config) if cell.config.seed == config.seeds[0]]
    return [config]


def needs(config: Any) -> Iterator[Need]:
    """All needs of an experiment, by its kind."""
    if isinstance(config, CellsRun | SweepRun):
        for part in parts_of(config):
            yield from needs(part)
    elif isinstance(config, AlignConfig):
        yield from _alignment(config)
    elif isinstance(config, RLConfig):
        yield from _rl(config)
    elif isinstance(config, RetrievalConfig):
        yield from _retrieval(config)
    elif isinstance(config, RankRun):
        yield from _ranking(config)
    elif isinstance(config, CascadeRun):
        yield _model("retriever.model", config.retriever.model, 0)
        yield _model("ranker.model", config.ranker.model, 0)
        yield _judge(config)
    elif isinstance(config, OPERun):
        cells = config.users * config.visits * config.samples * EVENT
        yield Need("a log and the slates of an agent", ("users", "visits", "samples"), cells)
    elif isinstance(config, OPEItemsRun):
        yield _log(config.log, config.session_length)
    elif isinstance(config, LearnedRun):
        yield _log(config.log, config.session_length)
        yield _model("", config, 0)


def _alignment(config: AlignConfig) -> Iterator[Need]:
    length, model, codes = config.session_length, config.model_options, config.tokenizer_options
    items = 0
    if config.data is None:
        yield Need("the log", ("log.users", "log.visits", "session_length"), _log(config.log, length).num_bytes)
        if isinstance(config.simulator_options, ShortVideoConfig):
            items = config.simulator_options.num_items
            yield from _catalog("simulator_options.", config.simulator_options)
    num_codes = getattr(codes, "num_codes", None) or codes_for(items)
    levels = 1 if config.tokenizer == "item_id" else len(num_codes)
    vocabulary = items if config.tokenizer == "item_id" else sum(num_codes)
    if isinstance(codes, RQVAEConfig):
        widths = (*(codes.hidden_widths or ()), codes.latent_width)
        yield Need(
            "the RQ-VAE", ("tokenizer_options.hidden_widths", "tokenizer_options.latent_width"), _chain(widths) * WEIGHT
        )
    if hasattr(model, "d_model"):  # only authors of other models know their sizes
        yield from _agent(config, model, vocabulary, levels)
    users = min(config.rollouts.users_per_task, _known_users(config))
    shard = min(config.rollouts.users_per_task * config.rollouts.tasks_per_shard, _known_users(config))
    sampled = shard * config.rounds.num_samples * length * 8
    remembered = _known_users(config) * config.memory * 8
    yield Need("the memory of users' seen items", ("log.users", "memory"), remembered)
    decided = ("rollouts.users_per_task", "rollouts.tasks_per_shard", "rounds.num_samples", "session_length")
    yield Need("a shard's samples", decided, sampled)
    answers = users * length * config.rounds.truth_replicas * EVENT
    yield Need("a session's responses", ("rollouts.users_per_task", "rounds.truth_replicas", "session_length"), answers)
    served = config.rounds.num * log_bytes(config.rounds.serve, config.rounds.serve_visits, length)
    yield Need(
        "the sessions that rounds serve",
        ("rounds.num", "rounds.serve", "rounds.serve_visits", "session_length"),
        served,
    )
    looked = config.probe.users * max(config.probe.samples, config.rounds.num_samples) * length * 8
    yield Need("a probe", ("probe.users", "probe.samples", "rounds.num_samples", "session_length"), looked)
    reward = config.reward_model
    weights = reward.members * (reward.layers + reward.backbone_layers) * 12 * reward.width**2 * WEIGHT
    decided = ("reward_model.width", "reward_model.layers", "reward_model.backbone_layers", "reward_model.members")
    yield Need("training the reward model", decided, weights)
    yield Need("the actors", ("rollouts.num_actors",), config.rollouts.num_actors * PROCESS * (config.ray == "local"))
    yield _judge(config)


def _agent(config: AlignConfig, model: Any, vocabulary: int, levels: int) -> Iterator[Need]:
    """Needs of the model, in training and while it writes sessions."""
    length, users = config.session_length, min(config.rollouts.users_per_task, _known_users(config))
    yield _model("model_options", model, vocabulary)
    positions = config.history_length + length * (levels + 1)
    yield Need(
        "the weights of one sequence's attention",
        ("history_length", "session_length", "model_options.num_heads"),
        positions**2 * model.num_heads * 4,
    )
    state = length * (levels + 1) * model.d_model * 4
    for name, number in {"rounds.num_samples": config.rounds.num_samples, "probe.samples": config.probe.samples,
                         "judge.beams": config.judge.beams}.items():  # fmt: skip
        options = ("rollouts.users_per_task", name, "session_length", "model_options.d_model")
        yield Need("the sessions sampled at a time", options, users * number * state)


def _rl(config: RLConfig) -> Iterator[Need]:
    length, history = config.session_length or 1, config.history_length or 1
    row = (length + history) * EVENT
    train = config.train
    yield _log(config.log, length)
    yield _judge(config)
    yield Need("the users served in parallel", ("train.num_envs", "history_length"), train.num_envs * row)
    yield Need("an iteration's requests", ("train.steps", "history_length"), train.steps * row)
    yield Need("the replay buffer", ("train.buffer", "history_length"), train.buffer * row)
    yield Need("an update's batch", ("train.batch_size", "history_length"), train.batch_size * row)
    sizes = config.sizes
    yield Need("the networks", ("sizes.width", "sizes.hidden"), (sizes.width + sizes.hidden) ** 2 * WEIGHT)


def _retrieval(config: RetrievalConfig) -> Iterator[Need]:
    model = config.model
    yield from _data(config)
    items = _items(config)
    codes = getattr(config, "tokenizer_options", None)
    yield _model("model", model, sum(getattr(codes, "num_codes", None) or codes_for(items)) if codes else items)
    yield _attention(config)
    if getattr(model, "loss", "ce") != "ce":
        rows = min(config.fit.batch_size, config.log.users if config.data is None else 1)
        options = ("fit.batch_size", "model.num_negatives", "model.d_model")
        yield Need("a batch's negatives", options, rows * model.num_negatives * model.d_model * 4)


def _ranking(config: RankRun) -> Iterator[Need]:
    yield from _data(config)
    yield _model("model", config.model, _items(config))
    yield _attention(config)


def _attention(config: Any) -> Need:
    num_bytes = config.history_length**2 * config.model.num_heads * 4
    return Need("the weights of one sequence's attention", ("history_length", "model.num_heads"), num_bytes)


def _data(config: Any) -> Iterator[Need]:
    if config.data is None:
        yield _log(config.log, 10)
        if isinstance(config.simulator_options, ShortVideoConfig):
            yield from _catalog("simulator_options.", config.simulator_options)


def _items(config: Any) -> int:
    """Items of the simulator, as far as the configuration shows."""
    return 0 if config.data is not None else getattr(config.simulator_options, "num_items", 0)


def _log(log: LogConfig, session_length: int) -> Need:
    return Need("the log", ("log.users", "log.visits"), log_bytes(log.users, log.visits, session_length))


def _catalog(path: str, c: ShortVideoConfig) -> Iterator[Need]:
    """Needs of the catalogue, and of a block of users."""
    names = ("num_items", "content_dim", "latent_dim", "num_topics")
    widths = c.content_dim + c.latent_dim + c.num_topics
    yield Need("the catalogue", tuple(path + name for name in names), c.num_items * widths * 4)
    topics = ("latent_dim", "num_topics")
    yield Need("the topics", tuple(path + name for name in topics), c.latent_dim * c.num_topics * 4)
    yield Need("the memory of 512 users", (path + "memory_items",), 512 * c.memory_items * 4)


def _judge(config: Any) -> Need:
    length = getattr(config, "session_length", None) or 1
    judge = config.judge
    return Need("the judging users' visits", ("judge.users", "judge.visits"), judge.users * judge.visits * length * 8)


def _model(path: str, sizes: Any, vocabulary: int) -> Need:
    """Need for training the model: embeddings, and layers of attention, feed-forward and experts."""
    has = {name: getattr(sizes, name) for name in SIZES if hasattr(sizes, name)}
    width = has["d_model"]
    heads = has.get("num_heads", 1) * max(has.get(name, 1) for name in ("head_width", "d_qk", "d_v"))
    layers = sum(has.get(name, 0) for name in ("num_layers", "encoder_layers", "decoder_layers"))
    inside = 2 * has.get("d_ff", 0) * has.get("num_experts", 1)
    weights = (
        width * vocabulary + width * has.get("history_length", 0) + layers * width * (4 * max(heads, width) + inside)
    )
    options = tuple(f"{path}.{name}".strip(".") for name in has)
    return Need("training the model", options, weights * WEIGHT)


SIZES = ("d_model", "num_heads", "head_width", "d_qk", "d_v", "num_layers", "encoder_layers", "decoder_layers", "d_ff",
         "num_experts", "history_length")  # fmt: skip
"""Fields that decide how many weights a model has."""


def _chain(widths: tuple[int, ...]) -> float:
    """Weights of a network with layers of the given widths."""
    return sum(prod(pair) for pair in pairwise(widths)) or widths[0]


def _known_users(config: AlignConfig) -> int:
    """Users of the log, as far as the configuration shows."""
    return config.log.users if config.data is None else config.rollouts.users_per_task

"""The agents of a finished run, in the world they were made for: for watching them, or for a contest with others."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError

from feedgym.agents.generation import GenerativeRecommender
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import Catalog, EventLog
from feedgym.data.whole import Mark, read_mark, unreadable
from feedgym.experiments.align.pool import Pool, World
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.align.world import world_of
from feedgym.experiments.configs import JudgeConfig
from feedgym.experiments.logs import LOG, simulator_key
from feedgym.experiments.presets import CONFIGS
from feedgym.experiments.rollouts import RolloutConfig
from feedgym.experiments.run import CONFIG, Codec, differences, json_of, plain, read_about, read_product
from feedgym.plugins import built, is_folder, resolve, with_seed
from feedgym.protocols import GenerativeAgent, Recommender, SessionReward, is_reward, make
from feedgym.rewards.ensemble import RewardEnsemble, load_reward_model
from feedgym.rewards.model import RewardModel
from feedgym.tokenizers.codes import CodeTokenizer
from feedgym.tokenizers.own import codes_type
from feedgym.trust import trusted

CHOSEN = json_of(dict[str, int | str | None])
"""Codec of which round's agent is kept, how many rounds there were, and why no more."""


class FinishedRun(NamedTuple):
    """What a finished run leaves.

    Attributes:
        config: the whole experiment.
        world: where its log came from; ``world.simulator`` are its users, unless the log was a recorded one.
        agents: "base", as pretrained, and "aligned", after the last round; they serve as in the run's judgement.
        reward: what chose the pairs: the reward model, or the run's own score.
        log: the event log they learned from.
        catalog: its items.
    """

    config: AlignConfig
    world: World
    agents: dict[str, Recommender]
    reward: SessionReward
    log: EventLog
    catalog: Catalog


def agents_of(folder: Path | str, *, trust: bool = False, named: Collection[str] = ()) -> FinishedRun:
    """Read a finished run's agents and reward back.

    Args:
        folder: the run's folder.
        trust: import what the folder names, though it is none of feedgym's (:mod:`feedgym.trust`).
        named: names that may be imported, because the user's own program has them.

    Raises:
        ValueError: the folder holds no run, one of another version, or a stage in it is missing or damaged; or it names
            code that nobody trusts.
    """
    folder = Path(folder)
    config = _align_config(folder)
    config = trusted(config, folder / CONFIG, trust=trust, named=named)
    stages = {name: finished_stage(folder, stage) for name, stage in _needed(config, folder).items()}
    log, catalog = read_product(stages["log"], LOG.load)
    tokenizer = read_product(stages["tokenizer"], tokenizer_codec(config).load)
    models = {name: read_product(stages[name], model_codec(config, tokenizer).load) for name in ("base", "aligned")}
    reward_model = read_product(stages["reward"], load_reward_model)
    world = world_of(config, trust)
    # A score may count the log: that of the run did so in what was trained on.
    known = Pool.of((log, catalog), world, config).known if config.reward != "reward_model" and config.data else log
    return FinishedRun(
        config=config,
        world=world,
        agents={name: recommender_of(config, model, tokenizer, catalog) for name, model in models.items()},
        reward=reward_of(config, known, catalog, reward_model),
        log=log,
        catalog=catalog,
    )


def read_config(folder: Path) -> Any:
    """The configuration a run folder was begun with, of whatever kind of experiment; nothing it names is imported.

    Use what it names only after :func:`feedgym.trust.check_config`.

    Raises:
        ValueError: the folder holds no run, or one of another version.
    """
    about = read_about(folder)
    path, remedy = folder / CONFIG, "start a new run with --run, or go on with the feedgym that began it"
    if (kind := CONFIGS.get(about["kind"])) is None:
        raise ValueError(f"{path} is of a kind of experiment that is not known here, {about['kind']!r}; {remedy}.")
    try:
        config = TypeAdapter(kind).validate_python(about["config"])
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ValueError(f"{path} is of another version of feedgym ({what}); {remedy}.") from error
    if unlike := differences(about["config"], plain(config)):  # a field that was filled in, or passed over
        raise ValueError(f"{path} is of another version of feedgym ({unlike[0]}); {remedy}.")
    return config


def key_of(folder: Path | str) -> Any:
    """What the agents of a finished run, and their world, are decided by: configuration and content of their stages.

    A stage that is missing is for :func:`agents_of` to tell.

    Raises:
        ValueError: the folder holds no run with agents, one of another version, or a damaged one.
    """
    folder = Path(folder)
    config = _align_config(folder)
    # Who judged there and how the work was spread decides nothing elsewhere.
    config = replace(config, judge=JudgeConfig(), rollouts=RolloutConfig(), ray="off")
    fitted = [simulator_key(config.simulator)] if is_folder("simulator", config.simulator) else []
    return [config, {name: _mark(folder / "stages" / name) for name in _needed(config, folder).values()}, *fitted]


def _align_config(folder: Path) -> AlignConfig:
    """The configuration of a run that has agents to read."""
    config = read_config(folder)
    if type(config) is not AlignConfig:  # cycles are an alignment too, but leave other stages
        raise ValueError(f"{folder} has no base and aligned agents; give a run of a preset that ends in -ipa.")
    return config


def _needed(config: AlignConfig, folder: Path) -> dict[str, str]:
    """The stages that agents are read from, by what they hold."""
    stages = {"log": "log", "tokenizer": "tokenizer", "reward": "reward", "base": "base", "aligned": "base"}
    # A run that was brought up to its last round alone has not chosen yet, and would choose that one.
    chosen = {"round": config.rounds.num, "last": config.rounds.num}
    if _mark(folder / "stages" / "chosen") is not None:
        chosen = read_product(folder / "stages" / "chosen", CHOSEN.load)
    if chosen["round"]:
        stages["aligned"] = f"aligned-{chosen['round']}"
    if config.rounds.serve and chosen["last"]:
        stages["reward"] = f"reward-{chosen['last'] - 1}"
    return stages


def new_tokenizer(config: AlignConfig) -> Any:
    """The experiment's tokenizer, not yet fitted."""
    return built("tokenizer", config.tokenizer, with_seed(config.tokenizer_options, config.seed))


def new_model(config: AlignConfig, tokenizer: CodeTokenizer, profile_sizes: tuple[int, ...]) -> GenerativeAgent:
    """The experiment's model, untrained."""
    return resolve("model", config.model).build(
        config.model_options,
        tokenizer,
        session_length=config.session_length,
        history_length=config.history_length,
        profile_sizes=profile_sizes,
    )


def model_codec(config: AlignConfig, tokenizer: CodeTokenizer) -> Codec[GenerativeAgent]:
    """How the experiment's models are kept."""
    kind = resolve("model", config.model)
    return Codec(lambda model, folder: model.save_pretrained(folder), lambda folder: kind.load(folder, tokenizer))


def tokenizer_codec(config: AlignConfig) -> Codec[CodeTokenizer]:
    """How the experiment's fitted tokenizer is kept."""
    kind = codes_type(resolve("tokenizer", config.tokenizer))
    return Codec(lambda tokenizer, folder: tokenizer.save(folder), kind.load)


def recommender_of(
    config: AlignConfig, model: Any, tokenizer: CodeTokenizer, catalog: Catalog
) -> GenerativeRecommender:
    """A run's model as the agent that its rounds sample from and its judge serves: it serves drawn sessions.

    Args:
        config: the experiment.
        model: base or a snapshot.
        tokenizer: the run's.
        catalog: the run's; where items come and go, those that do not exist at a request are not served.
    """
    kind = {"sample": GenerativeRecommender, "beam": Searching, "mixed": HalfSearching}[config.rounds.search]
    options: dict[str, Any] = {"num_beams": 0, "catalog": catalog}
    # Its sessions are sampled in actors that have no GPU, also after a training on one.
    return kind(model, tokenizer.trie(), config.session_length, config.sampling, **options, device="cpu")


def reward_of(
    config: AlignConfig, log: EventLog, catalog: Catalog, model: RewardModel | RewardEnsemble
) -> SessionReward:
    """What scores the sessions: the experiment's reward, with the weights of the reward where the model is asked.

    A function of histories and sessions is a reward itself; other functions and classes make one.
    """
    given = {"catalog": catalog, "log": log, "reward_model": model.with_weights(config.weights)}
    given |= {} if config.reward_options is None else {"config": config.reward_options}
    target = resolve("reward", config.reward)
    return target if is_reward(target) else make(target, **given)


class Searching(GenerativeRecommender):
    """An agent whose "samples" are the sessions of a beam search, as in the paper."""

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """The ``n`` best sessions per user; the generator is not needed."""
        return self.beams(histories, n)


class HalfSearching(GenerativeRecommender):
    """An agent of whose "samples" the first half are the sessions of a beam search and the others are drawn."""

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sessions per user; a session that the search found may be drawn as well."""
        found = self.beams(histories, n // 2)
        drawn = super().sample(histories, n - found.item_ids_USK.shape[1], generator)
        columns = {f.name: (getattr(found, f.name), getattr(drawn, f.name)) for f in fields(SessionBatch)}
        return SessionBatch(**{name: torch.cat(parts, dim=1) for name, parts in columns.items()})


def finished_stage(folder: Path, name: str) -> Path:
    """The folder of a run's stage that is finished.

    Raises:
        ValueError: it is not, or its mark is damaged.
    """
    stage = folder / "stages" / name
    if _mark(stage) is None:
        raise ValueError(
            f"The run {folder} has not finished its stage {name}; finish it with `feedgym demo --resume {folder}`."
        )
    return stage


def _mark(stage: Path) -> Mark | None:
    """What a stage's folder says of its product, if it has one."""
    try:
        return read_mark(stage)
    except ValueError as error:
        raise unreadable(stage, error) from error

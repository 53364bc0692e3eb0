"""Loads the agents of a finished run with the world they were made for, to watch them or to compare them."""

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
"""Codec of the round whose agent is kept, the number of rounds, and the reason why there were no more."""


class FinishedRun(NamedTuple):
    """Contents of a finished run.

    Attributes:
        config: the whole experiment.
        world: source of the log; ``world.simulator`` has its users, unless the log was a recorded one.
        agents: "base", as pretrained, and "aligned", after the round that was kept; they serve as in the run's
            judgement.
        reward: what chose the pairs: the reward model, or the run's own score.
        log: the event log that they learned from.
        catalog: the items of the log.
    """

    config: AlignConfig
    world: World
    agents: dict[str, Recommender]
    reward: SessionReward
    log: EventLog
    catalog: Catalog


def agents_of(folder: Path | str, *, trust: bool = False, named: Collection[str] = ()) -> FinishedRun:
    """Read the agents and the reward of a finished run.

    Args:
        folder: the run's folder.
        trust: import the code that the folder names even if it is not part of feedgym (:mod:`feedgym.trust`).
        named: names that may be imported because the user's own program named them.

    Raises:
        ValueError: the folder holds no run, or one of another version. Or a stage is missing or damaged, or the folder
            names code that is not trusted.
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
    # A score may count the log. The run's own score counted the part that models were trained on.
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
    """Read the configuration of a run folder, of any kind of experiment, without importing what it names.

    Use the names in it only after :func:`feedgym.trust.check_config`.

    Raises:
        ValueError: the folder holds no run, or one of another version.
    """
    about = read_about(folder)
    path, remedy = folder / CONFIG, "start a new run with --run, or continue with the feedgym that began it"
    if (kind := CONFIGS.get(about["kind"])) is None:
        raise ValueError(f"{path} is of an unknown kind of experiment, {about['kind']!r}; {remedy}.")
    try:
        config = TypeAdapter(kind).validate_python(about["config"])
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ValueError(f"{path} is of another version of feedgym ({what}); {remedy}.") from error
    if unlike := differences(about["config"], plain(config)):  # a field that was filled in, or ignored
        raise ValueError(f"{path} is of another version of feedgym ({unlike[0]}); {remedy}.")
    return config


def key_of(folder: Path | str) -> Any:
    """Key of a finished run's agents and their world: configuration and content of their stages.

    Missing stages are reported by :func:`agents_of`.

    Raises:
        ValueError: the folder holds no run with agents, one of another version, or a damaged one.
    """
    folder = Path(folder)
    config = _align_config(folder)
    # Neither the judging users there nor the spread of the work decide anything elsewhere.
    config = replace(config, judge=JudgeConfig(), rollouts=RolloutConfig(), ray="off")
    fitted = [simulator_key(config.simulator)] if is_folder("simulator", config.simulator) else []
    return [config, {name: _mark(folder / "stages" / name) for name in _needed(config, folder).values()}, *fitted]


def _align_config(folder: Path) -> AlignConfig:
    """Read the configuration of a run that has agents."""
    config = read_config(folder)
    if type(config) is not AlignConfig:  # cycles are an alignment too, but have other stages
        raise ValueError(f"{folder} has no base and aligned agents; give a run of a preset that ends in -ipa.")
    return config


def _needed(config: AlignConfig, folder: Path) -> dict[str, str]:
    """Names of the stages to read, by what they hold."""
    stages = {"log": "log", "tokenizer": "tokenizer", "reward": "reward", "base": "base", "aligned": "base"}
    # A run that was continued only up to its last round has not chosen yet; it would choose that round.
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
    """Codec of the experiment's models."""
    kind = resolve("model", config.model)
    return Codec(lambda model, folder: model.save_pretrained(folder), lambda folder: kind.load(folder, tokenizer))


def tokenizer_codec(config: AlignConfig) -> Codec[CodeTokenizer]:
    """Codec of the experiment's fitted tokenizer."""
    kind = codes_type(resolve("tokenizer", config.tokenizer))
    return Codec(lambda tokenizer, folder: tokenizer.save(folder), kind.load)


def recommender_of(
    config: AlignConfig, model: Any, tokenizer: CodeTokenizer, catalog: Catalog
) -> GenerativeRecommender:
    """Make the agent of a run's model that the rounds sample from and the judge serves; it serves drawn sessions.

    Args:
        config: the experiment.
        model: base or a snapshot.
        tokenizer: the run's tokenizer.
        catalog: the run's catalogue; if items come and go, those that do not exist at a request are not served.
    """
    kind = {"sample": GenerativeRecommender, "beam": Searching, "mixed": HalfSearching}[config.rounds.search]
    options: dict[str, Any] = {"num_beams": 0, "catalog": catalog}
    # Its sessions are sampled in actors without a GPU, even if it was trained on one.
    return kind(model, tokenizer.trie(), config.session_length, config.sampling, **options, device="cpu")


def reward_of(
    config: AlignConfig, log: EventLog, catalog: Catalog, model: RewardModel | RewardEnsemble
) -> SessionReward:
    """Make the score of sessions: the experiment's reward, which asks the reward model with the reward's weights.

    A function of histories and sessions is itself a reward; other functions and classes make one.
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
    """An agent whose "samples" are half the sessions of a beam search and half drawn ones."""

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sessions per user; the drawn ones may repeat a session of the search."""
        found = self.beams(histories, n // 2)
        drawn = super().sample(histories, n - found.item_ids_USK.shape[1], generator)
        columns = {f.name: (getattr(found, f.name), getattr(drawn, f.name)) for f in fields(SessionBatch)}
        return SessionBatch(**{name: torch.cat(parts, dim=1) for name, parts in columns.items()})


def finished_stage(folder: Path, name: str) -> Path:
    """Folder of a finished stage of a run.

    Raises:
        ValueError: the stage is not finished, or its mark is damaged.
    """
    stage = folder / "stages" / name
    if _mark(stage) is None:
        raise ValueError(
            f"The run {folder} has not finished its stage {name}; finish it with `feedgym demo --resume {folder}`."
        )
    return stage


def _mark(stage: Path) -> Mark | None:
    """Mark of the stage's product; None if it has none."""
    try:
        return read_mark(stage)
    except ValueError as error:
        raise unreadable(stage, error) from error

"""The agents of a finished run, in the world they were made for: for watching them, or for a contest with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from feedgym.agents.onerec import OneRec
from feedgym.agents.session_model import SessionRecommender
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import Catalog, EventLog
from feedgym.experiments.presets import CONFIGS, AlignConfig
from feedgym.experiments.worlds import LOG, World, world_of
from feedgym.protocols import Recommender, SessionReward, make
from feedgym.rewards.model import RewardModel
from feedgym.tokenizers.residual_kmeans import ResidualKMeans


class Finished(NamedTuple):
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


def agents_of(folder: Path | str) -> Finished:
    """Read a finished run's agents and reward back.

    Args:
        folder: the run's folder.

    Raises:
        ValueError: the folder holds no run, one of another version, or a stage in it is missing or damaged.
    """
    folder = Path(folder)
    config = read_config(folder)
    if not isinstance(config, AlignConfig):
        raise ValueError(f"{folder} is a run of RLlib and has no base and aligned agents; give one of onerec-ipa.")
    last = f"aligned-{config.ipa.rounds}" if config.ipa.rounds else "base"
    for name in ("log", "tokenizer", "base", "reward", last):
        _check_complete(folder, name)
    stages = folder / "stages"
    try:
        log, catalog = LOG.load(stages / "log")
        tokenizer = ResidualKMeans.load(stages / "tokenizer")
        models = {"base": OneRec.load(stages / "base", tokenizer), "aligned": OneRec.load(stages / last, tokenizer)}
        reward_model = RewardModel.load(stages / "reward")
    except (KeyError, OSError, SafetensorError) as error:
        raise ValueError(f"A stage of {folder} cannot be read: {error}; {_remedy(folder)}.") from error
    return Finished(
        config=config,
        world=world_of(config),
        agents={name: recommender_of(config, model, tokenizer) for name, model in models.items()},
        reward=score_of(config, log, catalog, reward_model),
        log=log,
        catalog=catalog,
    )


def read_config(folder: Path) -> Any:
    """The configuration a run folder was begun with, of whatever kind of experiment.

    Raises:
        ValueError: the folder holds no run, or one of another version.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no run (no config.json in it); give the folder of one.")
    try:
        kept = json.loads(path.read_text())
        kind = CONFIGS[kept.get("kind", AlignConfig.__name__)]
        return TypeAdapter(kind).validate_python(kept["config"])
    except (json.JSONDecodeError, KeyError, ValidationError) as error:
        detail = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read ({detail}); start a new run with --run.") from error


def recommender_of(config: AlignConfig, model: OneRec, tokenizer: ResidualKMeans, beams: int = 0) -> SessionRecommender:
    """A run's model as the agent that its rounds sample from and its judge serves.

    Args:
        config: the experiment.
        model: base or a snapshot.
        tokenizer: the run's.
        beams: width of the search by which it serves; 0 serves sessions drawn as in a round.
    """
    kind = Searching if config.ipa.beams else SessionRecommender
    return kind(model, tokenizer, config.session_length, config.sampling, num_beams=beams)


def score_of(config: AlignConfig, log: EventLog, catalog: Catalog, model: RewardModel) -> SessionReward:
    """What chooses the pairs: the reward model with the weights of the reward, or a reward of the user's own."""
    model = model.with_weights(config.weights)
    if config.score is None:
        return model
    return make(config.score, catalog=catalog, log=log, reward_model=model)


class Searching(SessionRecommender):
    """A OneRec whose "samples" are the sessions of a beam search, as in the paper."""

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """The ``n`` best sessions a user; the generator is not needed."""
        return self.beams(histories, n)


def _check_complete(folder: Path, name: str) -> None:
    mark = folder / "stages" / name / "stage.json"
    try:
        complete = json.loads(mark.read_text())["complete"]
    except (OSError, json.JSONDecodeError, KeyError):
        complete = False
    if not complete:
        raise ValueError(f"The run {folder} has not finished its stage {name}; {_remedy(folder)}.")


def _remedy(folder: Path) -> str:
    return f"finish it with `feedgym demo --resume {folder}`"

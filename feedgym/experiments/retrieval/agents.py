"""Makes, trains, saves and loads the agents of next-item retrieval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from feedgym import plugins
from feedgym.agents.fit import Curve, fit
from feedgym.agents.sasrec import SASRec, SASRecSizes
from feedgym.agents.sequences import SequenceDataset, SequenceModel
from feedgym.agents.session_model import SessionModel, SessionRecommender
from feedgym.data.events import Catalog
from feedgym.experiments.progress import progress
from feedgym.experiments.retrieval.data import SESSION, RetrievalData
from feedgym.experiments.retrieval.presets import RetrievalConfig, TigerRun
from feedgym.experiments.run import Codec, with_curve
from feedgym.tokenizers.codes import CodeTokenizer
from feedgym.tokenizers.own import codes_type, fit_codes

Tell = Callable[[dict[str, float]], Any]
"""Called with each row of a learning curve as soon as it is there."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AgentStage:
    """A stage that trains one agent.

    Attributes:
        train: returns the agent and its learning curve, given the data, the stage's work folder and the agent's name.
            Its last argument is called with each row of the curve.
        agent: how the agent is stored.
        key: settings that decide it besides data, split and training.
    """

    train: Callable[[RetrievalData, Path, str, Tell], tuple[Any, Curve]]
    agent: Codec[Any]
    key: Any

    @property
    def codec(self) -> Codec[tuple[Any, Curve]]:
        """Codec of the agent and its learning curve."""
        return with_curve(self.agent)


def stages_of(config: RetrievalConfig) -> dict[str, AgentStage]:
    """The baseline SASRec-CE, if it is enabled and is not the model itself, and the model."""
    wanted = config.sasrec_ce and not config.is_sasrec_ce()
    return ({"sasrec-ce": sasrec_ce_stage(config)} if wanted else {}) | {config.name: model_stage(config)}


def model_stage(config: Any) -> AgentStage:
    """The model of a run: one over a tokenizer's codes, or one over item ids."""
    kind = plugins.resolve("retriever", config.name)
    if writes_codes(config):
        return codes_stage(kind, config)
    return sequence_stage(kind, config.model, config.session_length, config)


def writes_codes(config: RetrievalConfig) -> bool:
    """True if the model of a run needs a tokenizer."""
    return hasattr(config, "tokenizer")


# ---------------------------------------------------------------- over item ids


def sasrec_ce_stage(config: RetrievalConfig) -> AgentStage:
    """SASRec with cross-entropy, with the model's width and lengths."""
    width = config.model.d_model
    sizes = SASRecSizes(block="original", loss="ce", similarity="dot", temperature=1.0, d_model=width, d_ff=width)
    # Its training sequences have the length of a history plus a session; a model over codes learns one item per
    # history.
    return sequence_stage(SASRec, sizes, SESSION if writes_codes(config) else config.session_length, config)


def sequence_stage(kind: type[SequenceModel], sizes: Any, session_length: int, config: RetrievalConfig) -> AgentStage:
    """A next-item model, trained on whole sequences."""
    lengths = {"history_length": config.history_length, "session_length": session_length}

    def train(world: RetrievalData, work: Path, name: str, tell: Tell) -> tuple[SequenceModel, Curve]:
        torch.manual_seed(config.seed)
        model = kind.for_log(
            sizes,
            profile_sizes=world.log.profile_sizes,
            has_time=world.log.has_time,
            num_items=world.catalog.num_items,
            positives=config.behaviours,
            **lengths,
        )
        examples = SequenceDataset(histories=world.training_histories(sum(lengths.values())))
        with progress(f"Training {name}") as step:
            return fit(model, examples, config.fit, config.epochs, config.seed, world.validation, work, step, tell)

    return AgentStage(train=train, agent=Codec(kind.save_pretrained, kind.load), key=[sizes, lengths])


# ---------------------------------------------------------------- over a tokenizer's codes


def codes_stage(kind: type[SessionModel], config: TigerRun) -> AgentStage:
    """A tokenizer, and a model that writes the codes of the next item."""
    sizes = replace(config.model, positives=config.behaviours)
    lengths = {"history_length": config.history_length, "session_length": config.session_length}

    def train(world: RetrievalData, work: Path, name: str, tell: Tell) -> tuple[SessionRecommender, Curve]:
        tokenizer = fitted_tokenizer(config, world.catalog, work / "tokenizer")
        torch.manual_seed(config.seed)
        model = kind.build(sizes, tokenizer, profile_sizes=world.log.profile_sizes, **lengths)
        examples = world.windows(config.history_length, config.sliding_window)

        def validate(model: SessionModel) -> float:
            return world.validation(SessionRecommender(model, tokenizer))

        with progress(f"Training {name}") as step:
            model, curve = fit(model, examples, config.fit, config.epochs, config.seed, validate, work, step, tell)
        return SessionRecommender(model, tokenizer), curve

    told = plugins.options_key(config.tokenizer_options)
    codes = [plugins.key_of("tokenizer", config.tokenizer), told, config.sliding_window]
    kept = Codec(_save_recommender, partial(load_recommender, kind, config))
    return AgentStage(train=train, agent=kept, key=[sizes, lengths, codes])


def fitted_tokenizer(config: TigerRun, catalog: Catalog, work: Path) -> CodeTokenizer:
    """Fit the configured tokenizer; its training resumes in ``work``."""
    options = plugins.with_seed(config.tokenizer_options, config.seed)
    return fit_codes(plugins.built("tokenizer", config.tokenizer, options), catalog, work)


def _save_recommender(agent: SessionRecommender, folder: Path) -> None:
    agent.model.save_pretrained(folder)
    agent.tokenizer.save(folder / "tokenizer")


def load_recommender(kind: type[SessionModel], config: TigerRun, folder: Path) -> SessionRecommender:
    """Load the trained agent from a stage's folder."""
    tokenizer = codes_type(plugins.resolve("tokenizer", config.tokenizer)).load(folder / "tokenizer")
    return SessionRecommender(kind.load(folder, tokenizer), tokenizer)

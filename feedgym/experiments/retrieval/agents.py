"""How the agents of next-item retrieval are made, saved and read back; each kind of configuration registers its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, singledispatch
from pathlib import Path
from typing import Any

import torch

from feedgym.agents.hstu import HSTU, HSTUConfig
from feedgym.agents.next_item import fit
from feedgym.agents.sasrec import SASRec, SASRecConfig
from feedgym.agents.sequences import SequenceDataset, SequenceModel
from feedgym.agents.session_model import SessionRecommender
from feedgym.agents.tiger import Tiger, TigerConfig
from feedgym.experiments.progress import progress
from feedgym.experiments.retrieval.data import Retrieval
from feedgym.experiments.retrieval.presets import HSTURun, RetrievalConfig, SASRecRun, SASRecSizes, TigerRun
from feedgym.experiments.run import Codec, with_curve
from feedgym.tokenizers.codes import CodeTokenizer
from feedgym.tokenizers.item_id import RandomCodes
from feedgym.tokenizers.lsh import LSH
from feedgym.tokenizers.residual_kmeans import ResidualKMeans
from feedgym.tokenizers.rqvae import RQVAE, fit_in

TIGER_TOKENIZERS: dict[str, type[CodeTokenizer]] = {
    "rqvae": RQVAE,
    "residual_kmeans": ResidualKMeans,
    "lsh": LSH,
    "random": RandomCodes,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A stage that trains one agent.

    Attributes:
        make: the agent and how its training went, from the data and the stage's work folder.
        save: writes the agent to a folder.
        load: reads it back.
        key: what decides it besides data and split.
    """

    make: Callable[[Retrieval, Path, str], tuple[Any, list[dict[str, float]]]]
    save: Callable[[Any, Path], Any]
    load: Callable[[Path], Any]
    key: Any

    @property
    def codec(self) -> Codec[tuple[Any, list[dict[str, float]]]]:
        """Of the agent and its learning curve."""
        return with_curve(Codec(self.save, self.load))


def agents_to_train(config: RetrievalConfig) -> dict[str, Trained]:
    """The baseline SASRec-CE, where it is asked for and is not the model itself, and the model."""
    ce = SASRecSizes(block="original", loss="ce", similarity="dot", temperature=1.0)
    baseline = replace(ce, **_shared_lengths(config))
    wanted = config.sasrec_ce and not config.is_sasrec_ce()
    return ({"sasrec-ce": sasrec_of(baseline, config)} if wanted else {}) | {config.name: agent_of(config)}


@singledispatch
def agent_of(config: Any) -> Trained:
    """How the model of a kind of configuration is made; each kind registers its own."""
    raise TypeError(f"{type(config).__name__} has no agent_of().")


@agent_of.register
def _(config: SASRecRun) -> Trained:
    return sasrec_of(config.model, config)


def sasrec_of(sizes: SASRecSizes, config: RetrievalConfig) -> Trained:
    """A SASRec of some sizes."""

    def make(world: Retrieval, work: Path, name: str) -> tuple[Any, list[dict[str, float]]]:
        torch.manual_seed(config.seed)
        known: dict[str, Any] = {"num_items": world.catalog.num_items, "positives": config.behaviours}
        return fit_sequences(SASRec(SASRecConfig(**vars(sizes), **known)), world, work, name)

    return sequence_model(make, SASRec, sizes)


@agent_of.register
def _(config: HSTURun) -> Trained:
    def make(world: Retrieval, work: Path, name: str) -> tuple[Any, list[dict[str, float]]]:
        torch.manual_seed(config.seed)
        known: dict[str, Any] = {
            "num_items": world.catalog.num_items,
            "positives": config.behaviours,
            "profile_sizes": world.log.profile_sizes,
            "use_time": config.model.use_time and world.log.has_time,
        }
        return fit_sequences(HSTU(HSTUConfig(**vars(config.model) | known)), world, work, name)

    return sequence_model(make, HSTU, config.model)


@agent_of.register
def _(config: TigerRun) -> Trained:
    sizes = config.model

    def make(world: Retrieval, work: Path, name: str) -> tuple[Any, list[dict[str, float]]]:
        tokenizer = tiger_tokenizer(config, world.catalog.content_IE, work / "tokenizer")
        torch.manual_seed(config.seed)
        shared = {key: value for key, value in vars(sizes).items() if key in TigerConfig.__dataclass_fields__}
        shared |= {"profile_sizes": world.log.profile_sizes, "positives": config.behaviours}
        model = Tiger.from_tokenizer(tokenizer, TigerConfig(**shared | {"num_codes": tokenizer.num_codes}))
        examples = world.windows(sizes.history_length, sizes.sliding_window)

        def validate(model: Tiger) -> float:
            return world.validation(SessionRecommender(model, tokenizer))

        with progress(f"Training {name}") as step:
            model, curve = fit(model, examples, config.fit, config.epochs, config.seed, validate, work, step)
        return SessionRecommender(model, tokenizer), curve

    return Trained(make=make, save=_save_tiger, load=partial(_load_tiger, TIGER_TOKENIZERS[sizes.tokenizer]), key=sizes)


def tiger_tokenizer(config: TigerRun, content_IE: Any, work: Path) -> CodeTokenizer:
    """The fitted tokenizer that is asked for; a training of it goes on in ``work``."""
    sizes = config.model
    kind: Any = TIGER_TOKENIZERS[sizes.tokenizer]
    options = {"rqvae": vars(sizes.rqvae), "residual_kmeans": vars(sizes.kmeans)}.get(sizes.tokenizer, {})
    return fit_in(kind(kind.config_type(**options, num_codes=sizes.num_codes, seed=config.seed)), content_IE, work)


def _save_tiger(agent: SessionRecommender, folder: Path) -> None:
    agent.model.save_pretrained(folder)
    agent.tokenizer.save(folder / "tokenizer")


def _load_tiger(kind: type[CodeTokenizer], folder: Path) -> SessionRecommender:
    tokenizer = kind.load(folder / "tokenizer")
    return SessionRecommender(Tiger.load(folder, tokenizer), tokenizer)


def sequence_model(make: Any, kind: type[SequenceModel], key: Any) -> Trained:
    """A next-item model as a stage."""
    return Trained(make=make, save=lambda model, folder: model.save_pretrained(folder), load=kind.load, key=key)


def fit_sequences(model: SequenceModel, world: Retrieval, work: Path, name: str) -> tuple[Any, list[dict[str, float]]]:
    """Train a next-item model on whole sequences; what it has after its best epoch, and the epochs."""
    sizes, config = model.config, world.config
    examples = SequenceDataset(histories=world.training_histories(sizes.history_length + sizes.session_length))
    with progress(f"Training {name}") as step:
        return fit(model, examples, config.fit, config.epochs, config.seed, world.validation, work, step)


def _shared_lengths(config: Any) -> dict[str, Any]:
    """The lengths of the model, if it has some, and its width, for the baseline beside it."""
    names = ("d_model", "history_length", "session_length")
    sizes = {name: getattr(config.model, name) for name in names if hasattr(config.model, name)}
    return sizes | ({"d_ff": sizes["d_model"]} if "d_model" in sizes else {})

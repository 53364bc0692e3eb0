"""How rankers are made and what rows they learn from; each kind of configuration registers its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from feedgym.agents.cross_features import item_kinds
from feedgym.agents.pretrain import Examples
from feedgym.agents.ranker import Ranker, RankingDataset
from feedgym.agents.token_batches import TokenBatches
from feedgym.data.events import Catalog, EventLog
from feedgym.data.ranking import RankingBatch, RankingRows, ranking_requests, ranking_windows
from feedgym.experiments.rank.presets import RANKERS, MTGRRun, RankRun
from feedgym.protocols import load

KINDS: dict[str, type[Ranker]] = {name: load(path) for name, path in RANKERS.items()}
"""The class of each experiment's ranker."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the data decide of a ranker.

    Attributes:
        num_items: I.
        profile_sizes: of the profile's fields.
        tasks: behaviours to foretell.
        watch: whether the watched fraction is foretold too.
    """

    num_items: int
    profile_sizes: tuple[int, ...]
    tasks: tuple[str, ...]
    watch: bool


def rows_of(config: Any, log: EventLog, catalog: Catalog, only: NDArray[np.bool_] | None = None) -> RankingRows:
    """The log's exposures by request; by window for MTGR on a log without times, of which a window holds all.

    ``only`` some rows of the log may be candidates.
    """
    if isinstance(config, MTGRRun) and not log.has_time:
        if config.model.mask == "full":
            raise ValueError("mask='full' would judge by the future on a log without times; use another mask.")
        return windows_of(config, log, catalog, only)
    return ranking_requests(log, catalog, config.model.history_length, config.max_candidates, only)


def windows_of(config: MTGRRun, log: EventLog, catalog: Catalog, only: NDArray[np.bool_] | None = None) -> RankingRows:
    """The exposures that MTGR trains on, by user window."""
    return ranking_windows(log, catalog, config.model.history_length, config.max_candidates, config.window_s, only)


def examples_of(config: RankRun, rows: RankingBatch) -> tuple[Examples, int]:
    """What it learns from, and how many of its elements make a batch."""
    if isinstance(config, MTGRRun):
        return TokenBatches(rows=rows, max_tokens=config.max_tokens, seed=config.seed), 1
    return RankingDataset(rows=rows), config.fit.batch_size


def ranker_of(config: Any, known: Known, catalog: Catalog) -> Ranker:
    """The untrained ranker of an experiment; the global generator of torch decides its weights."""
    return untrained(config.name, catalog, **{**vars(config.model), **vars(known)})


def untrained(name: str, catalog: Catalog, *, contents: bool = False, **given: Any) -> Ranker:
    """A ranker of a kind with what it is to know of the items.

    Args:
        name: one of ``KINDS``.
        catalog: the items.
        contents: let HSTU ranking and GenRank read the items' contents beside their ids.
        **given: fields of its configuration.
    """
    kind: Any = KINDS[name]
    config = kind.config_class(**given | ({"content_width": catalog.content_IE.shape[1]} if contents else {}))
    if name == "mtgr":
        return kind(config, item_kinds(catalog) if config.cross_features else None)
    return kind(config, torch.from_numpy(catalog.content_IE) if contents else None)

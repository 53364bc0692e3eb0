"""How rankers are made and what rows they learn from; each kind of configuration registers its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch

from feedgym.agents.cross_features import item_kinds
from feedgym.agents.genrank import GenRank, GenRankConfig
from feedgym.agents.hstu_rank import HSTURanker, HSTURankerConfig
from feedgym.agents.mtgr import MTGR, MTGRConfig
from feedgym.agents.pretrain import Examples
from feedgym.agents.ranker import Ranker, RankingDataset
from feedgym.agents.token_batches import TokenBatches
from feedgym.data.events import Catalog, EventLog
from feedgym.data.ranking import RankingBatch, RankingRows, ranking_requests, ranking_windows
from feedgym.experiments.rank_presets import GenRankRun, HSTURankRun, MTGRRun, RankRun

KINDS: dict[str, type[Ranker]] = {"hstu-rank": HSTURanker, "genrank": GenRank, "mtgr": MTGR}
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


def rows_of(config: Any, log: EventLog, catalog: Catalog) -> RankingRows:
    """The log's exposures by request; by window for MTGR on a log without times, of which a window holds all."""
    if isinstance(config, MTGRRun) and not log.has_time:
        if config.model.mask == "full":
            raise ValueError("mask='full' would judge by the future on a log without times; use another mask.")
        return windows_of(config, log, catalog)
    return ranking_requests(log, catalog, config.model.history_length, config.max_candidates)


def windows_of(config: MTGRRun, log: EventLog, catalog: Catalog) -> RankingRows:
    """The exposures that MTGR trains on, by user window."""
    return ranking_windows(log, catalog, config.model.history_length, config.max_candidates, config.window_s)


def examples_of(config: RankRun, rows: RankingBatch) -> tuple[Examples, int]:
    """What it learns from, and how many of its elements make a batch."""
    if isinstance(config, MTGRRun):
        return TokenBatches(rows=rows, max_tokens=config.max_tokens, seed=config.seed), 1
    return RankingDataset(rows=rows), config.fit.batch_size


@singledispatch
def ranker_of(config: Any, known: Known, catalog: Catalog) -> Ranker:
    """An untrained ranker; the global generator of torch decides its weights."""
    raise TypeError(f"{type(config).__name__} has no ranker_of().")


@ranker_of.register
def _(config: HSTURankRun, known: Known, catalog: Catalog) -> Ranker:
    return _sequence_ranker(HSTURanker, HSTURankerConfig, config.model, known, catalog)


@ranker_of.register
def _(config: GenRankRun, known: Known, catalog: Catalog) -> Ranker:
    return _sequence_ranker(GenRank, GenRankConfig, config.model, known, catalog)


def _sequence_ranker(kind: Any, config_of: Any, sizes: Any, known: Known, catalog: Catalog) -> Ranker:
    """One that reads the items' contents beside their ids, where it is asked to."""
    given = {**vars(sizes), **vars(known)}
    content_IE = torch.from_numpy(catalog.content_IE) if given.pop("contents") else None
    return kind(config_of(**given, content_width=0 if content_IE is None else content_IE.shape[1]), content_IE)


@ranker_of.register
def _(config: MTGRRun, known: Known, catalog: Catalog) -> Ranker:
    kinds = torch.as_tensor(item_kinds(catalog)) if config.model.cross_features else None
    return MTGR(MTGRConfig(**vars(config.model), **vars(known)), kinds)

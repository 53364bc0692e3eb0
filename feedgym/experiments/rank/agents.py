"""Makes the rankers of experiments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from feedgym import plugins
from feedgym.agents.ranker import Ranker
from feedgym.data.events import Catalog


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Facts about the data that a ranker depends on.

    Attributes:
        num_items: I.
        profile_sizes: cardinalities of the profile's fields.
        tasks: behaviours to predict.
        watch: predict the watched fraction too.
    """

    num_items: int
    profile_sizes: tuple[int, ...]
    tasks: tuple[str, ...]
    watch: bool


def new_ranker(name: str, sizes: Any, catalog: Catalog, facts: DataFacts, history_length: int) -> Ranker:
    """An untrained ranker, with weights from torch's global generator.

    Args:
        name: name of a ranker in :mod:`feedgym.plugins`.
        sizes: its ``Config``.
        catalog: the items.
        facts: other facts about the data.
        history_length: T.
    """
    kind: type[Ranker] = plugins.resolve("ranker", name)
    return kind.for_catalog(sizes, catalog, history_length=history_length, **vars(facts))

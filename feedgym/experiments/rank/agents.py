"""How the rankers of experiments are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from feedgym import plugins
from feedgym.agents.ranker import Ranker
from feedgym.data.events import Catalog


@dataclass(frozen=True, kw_only=True)
class DataFacts:
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


def new_ranker(name: str, sizes: Any, catalog: Catalog, facts: DataFacts, history_length: int) -> Ranker:
    """An untrained ranker; the global generator of torch decides its weights.

    Args:
        name: among the rankers of :mod:`feedgym.plugins`.
        sizes: its ``Config``.
        catalog: the items.
        facts: what else the data decide.
        history_length: T.
    """
    kind: type[Ranker] = plugins.resolve("ranker", name)
    return kind.for_catalog(sizes, catalog, history_length=history_length, **vars(facts))

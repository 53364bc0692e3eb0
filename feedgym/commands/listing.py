"""``feedgym list``: presets, environments, models and other parts by name, with a line on each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

Row = tuple[str, str]
"""A name and its description."""


def rows_of(kind: str) -> list[Row]:
    """Lists everything of a kind.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"There is no list of {kind!r}; the lists are {', '.join(KINDS)}.")
    return list(KINDS[kind]())


def _presets() -> Iterator[Row]:
    from feedgym.experiments.presets import PRESETS

    yield from ((name, _line(preset)) for name, preset in PRESETS.items())


def _comparisons() -> Iterator[Row]:
    from feedgym.experiments.presets import COMPARISONS

    yield from ((name, _line(preset)) for name, preset in COMPARISONS.items())


def _environments() -> Iterator[Row]:
    from feedgym.envs.registration import ENVIRONMENTS, LEVELS
    from feedgym.protocols import load

    for name, (level, users, _) in ENVIRONMENTS.items():
        yield name, f"{users.rpartition(':')[2]}. {_line(load(f'{LEVELS[level][0]}Env'))}"


def _plugins(kind: str) -> Callable[[], Iterator[Row]]:
    def listed() -> Iterator[Row]:
        from feedgym.plugins import BUILT_IN, resolve

        yield from ((name, _line(resolve(kind, name))) for name in BUILT_IN[kind])

    return listed


def _models() -> Iterator[Row]:
    from feedgym.plugins import BUILT_IN, resolve

    for kind in ("model", "retriever", "ranker"):
        for name in BUILT_IN[kind]:  # the docstring of a model's module names its paper
            yield f"{name} ({kind})", _line(importlib.import_module(resolve(kind, name).__module__))


def _data() -> Iterator[Row]:
    from feedgym.data import public
    from feedgym.data.public.finders import FINDERS

    yield "feedgym", "A folder with events.parquet and catalog.parquet, as `feedgym simulate` writes them."
    for find in FINDERS:
        name = find.__name__.removeprefix("find_")
        yield name, _line(importlib.import_module(f"{public.__name__}.{find.__module__.rpartition('.')[2]}"))
    yield "table", "Any CSV, JSON lines or parquet file with a row per event; --columns says which column is what."


def _line(thing: Any) -> str:
    """The first sentence of a docstring."""
    return (thing.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


KINDS: dict[str, Callable[[], Iterator[Row]]] = {
    "presets": _presets,
    "comparisons": _comparisons,
    "envs": _environments,
    "simulators": _plugins("simulator"),
    "models": _models,
    "tokenizers": _plugins("tokenizer"),
    "rewards": _plugins("reward"),
    "methods": _plugins("method"),
    "stops": _plugins("stop"),
    "data": _data,
}
"""The lists."""

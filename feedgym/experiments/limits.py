"""Refuses what cannot fit into this machine's memory: a simulated log, or whatever else says what it needs.

The estimates are rough and low; :mod:`feedgym.experiments.memory` makes those of whole experiments. This part imports
none of them, so that commands which only simulate start at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil

EVENT = 40
"""Bytes of a row of a log: ids, time, watch time, behaviours."""


class Need(NamedTuple):
    """One thing that must be held in memory.

    Attributes:
        what: its name for people.
        options: the dotted fields that decide its size.
        num_bytes: its size, bytes.
    """

    what: str
    options: tuple[str, ...]
    num_bytes: float


def check_simulated(*, users: int, visits: int, session_length: int) -> None:
    """Refuse a simulated log that cannot fit into this machine's memory.

    Args:
        users: how many.
        visits: of each.
        session_length: K.

    Raises:
        ValueError: as for :func:`refuse`.
    """
    num_bytes = log_bytes(users, visits, session_length)
    given = SimpleNamespace(users=users, visits=visits, session_length=session_length)
    refuse(given, [Need("the log", ("users", "visits", "session_length"), num_bytes)])


def refuse(config: Any, needs: Iterable[Need]) -> None:
    """Refuse what needs more memory than there is.

    Args:
        config: has the options, by their dotted names.
        needs: what must be held at one time; only the largest counts.

    Raises:
        ValueError: names what is too large, the options that make it so with their values, and both sizes.
    """
    memory = psutil.virtual_memory().total + psutil.swap_memory().total
    need = max(needs, key=lambda need: need.num_bytes, default=None)
    if need is not None and need.num_bytes > memory:
        values = ", ".join(f"{name}={reduce(getattr, name.split('.'), config)}" for name in need.options)
        raise ValueError(
            f"{values}: {need.what} would take {need.num_bytes / 2**30:,.1f} GiB or more, and this machine has "
            f"{memory / 2**30:,.1f} GiB; lower {'it' if len(need.options) == 1 else 'one of them'}."
        )


def log_bytes(users: int, visits: int, session_length: int) -> float:
    """Bytes of a log in which half of each session is looked at."""
    return users * visits * (1 + session_length / 2) * EVENT

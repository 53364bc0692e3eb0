"""Refuses work that cannot fit into this machine's memory: a simulated log, or anything else with an estimate.

The estimates are rough and low; :mod:`feedgym.experiments.memory` makes those of whole experiments. This module imports
no experiments, so that commands which only simulate start at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil

EVENT = 40
"""Bytes of a row of a log: ids, time, watch time, behaviours."""
ON_DISK = 10
"""Bytes of such a row in a file."""


class Need(NamedTuple):
    """One thing that must fit into memory.

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
        users: number of users.
        visits: visits per user.
        session_length: K.

    Raises:
        ValueError: as for :func:`refuse`.
    """
    num_bytes = log_bytes(users, visits, session_length)
    given = SimpleNamespace(users=users, visits=visits, session_length=session_length)
    refuse(given, [Need("the log", ("users", "visits", "session_length"), num_bytes)])


def check_simulated_parts(out: Path, *, users: int, visits: int, session_length: int, part_users: int) -> None:
    """Refuse a simulated log in parts whose parts do not fit into memory, or whose files do not fit onto the disk.

    Args:
        out: folder to write.
        users: number of users.
        visits: visits per user.
        session_length: K.
        part_users: users of a part.

    Raises:
        ValueError: as for :func:`refuse`; or there is too little room on the disk.
    """
    given = SimpleNamespace(users=users, visits=visits, session_length=session_length)
    part = 3 * log_bytes(min(users, part_users), visits, session_length)
    refuse(
        given, [Need("a part of the log", ("visits", "session_length"), part), Need("the users", ("users",), users * 8)]
    )
    disk = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    need, free = log_bytes(users, visits, session_length) / EVENT * ON_DISK, shutil.disk_usage(disk).free
    if need > free:
        raise ValueError(
            f"users={users}, visits={visits}, session_length={session_length}: the log would take {need / 2**30:,.1f} "
            f"GiB or more, and the disk of {out} has {free / 2**30:,.1f} GiB left; lower one of them."
        )


def refuse(config: Any, needs: Iterable[Need]) -> None:
    """Refuse a need above the available memory.

    Args:
        config: has the options, by their dotted names.
        needs: things that must fit into memory at one time; only the largest counts.

    Raises:
        ValueError: names the thing that is too large, its options with their values, and both sizes.
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
    """Bytes of a log in which users see half of each session."""
    return users * visits * (1 + session_length / 2) * EVENT

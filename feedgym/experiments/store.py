"""A store keeps the stages of many runs, each once, under a key of the settings that decide it.

Layout of a store::

    NAME-KEY/        a stage's product with its mark, and its work while it is made: as in a run folder
    NAME-KEY.lock    the process that makes it

For such a stage, the folder of a run that uses the store has only a sealed record with the name of its product.
:func:`feedgym.data.whole.product_of` follows it. A complete product is never changed. One process makes it; others that
need it wait, and if the maker is killed, the next one continues its work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from feedgym.data.whole import MARK, STORED, read_sealed, write_sealed
from feedgym.experiments.lock import Held, wait_for
from feedgym.experiments.progress import say


@contextmanager
def making(place: Path) -> Iterator[None]:
    """Hold the right to make a stage of a store; while another process has it, wait and report this."""

    def tell(held: Held) -> None:
        say(f"[yellow]Waiting:[/] {escape(str(held).partition(';')[0])}; it makes a stage that is needed here too.")

    lock = wait_for(place, place.with_name(f"{place.name}.lock"), tell)
    try:
        yield
    finally:
        lock.release()


def is_recorded(stage: Path, place: Path) -> bool:
    """Whether a stage's folder records that its product is the one in ``place``."""
    try:
        return read_sealed(stage / STORED) == {"folder": place.name}
    except (OSError, ValueError):
        return False


def record(stage: Path, place: Path) -> None:
    """Record that the product in ``place``, of the run's store, is that of a stage."""
    write_sealed(stage / STORED, {"folder": place.name})


def maker_of(place: Path) -> str:
    """The revision of feedgym that made a stored product; "unknown" if its mark is damaged, which reading reports."""
    try:
        return str(read_sealed(place / MARK).get("git_revision", "unknown"))
    except (OSError, ValueError):
        return "unknown"

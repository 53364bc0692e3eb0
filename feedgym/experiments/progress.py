"""Progress bars in one style, with time left, for everything that takes longer than two seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import current_thread, main_thread

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
"""Console for progress and messages; results go to standard output."""

Step = Callable[..., None]
"""``step(done, total, metrics)``: called by long work as it advances; metrics is an optional mapping to show."""


@contextmanager
def progress(title: str) -> Iterator[Step]:
    """Show a bar titled ``title``; yields the :data:`Step` to call. Without a terminal it prints only a last line.

    Only the main thread has bars, since there is room for one at a time.
    """
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    hidden = not console.is_terminal or current_thread() is not main_thread()
    with Progress(*columns, console=console, disable=hidden) as bar:
        task = bar.add_task(title, total=None, note="")

        def step(done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
            note = "  ".join(f"{name} {value:.3g}" for name, value in (metrics or {}).items())
            bar.update(task, completed=done, total=total, note=note)

        yield step


def say(message: str) -> None:
    """Print one line for the person watching."""
    console.print(message)

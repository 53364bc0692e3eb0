"""Runs the cells of a comparison: each a whole alignment in its own run folder, all with one store.

They run one after the other, or several in parallel as tasks of Ray. Each computes on one thread, wherever it runs, so
that its figures are the same. A cell that fails does not stop the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from feedgym.experiments.methods.cells import Cell
from feedgym.experiments.place import Place
from feedgym.experiments.progress import progress, say
from feedgym.experiments.rollouts import ray_running


@dataclass(frozen=True)
class Outcome:
    """Outcome of a cell.

    Attributes:
        summary: summary of its alignment; None if it failed.
        failure: the reason in one line.
    """

    summary: dict[str, Any] | None = None
    failure: str | None = None


def run_cell(place: Place, cell: Cell) -> Outcome:
    """Run a cell, or continue it where it stopped."""
    try:
        return Outcome(place.launch(cell.config, cell.name))
    except Exception as error:  # a method, even the user's own code, may raise anything: the other cells continue
        return Outcome(failure=reason_of(error))


def reason_of(error: Exception) -> str:
    """Reason why a cell failed, in one line."""
    said = " ".join(str(error).split())
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"


def outcomes(cells: Sequence[Cell], place: Place, ray: str, workers: int) -> Iterator[tuple[Cell, Outcome]]:
    """Run cells; yield each as it ends.

    Args:
        cells: in the order in which they start.
        place: their folders and settings.
        ray: "off", "local", or the address of a cluster.
        workers: number of cells to run in parallel.
    """
    if ray == "off" or len(cells) == 1:
        for number, cell in enumerate(cells, start=1):
            say(f"[bold]{cell.name}[/] ({number} of {len(cells)})")
            yield cell, run_cell(place, cell)
    elif cells:
        yield from _side_by_side(cells, place, ray, workers)


def _side_by_side(cells: Sequence[Cell], place: Place, address: str, workers: int) -> Iterator[tuple[Cell, Outcome]]:
    with ray_running(address) as ray, progress("Aligning") as step:
        share = min(1.0, ray.cluster_resources().get("CPU", 1.0) / workers)
        # If a worker is killed, for example by the system for lack of memory, its cell continues where it stopped.
        task = ray.remote(num_cpus=share, max_retries=1)(run_cell)
        waiting, ended = list(cells)[::-1], 0
        running: dict[Any, Cell] = {}
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop()
                running[task.remote(place, cell)] = cell
            (done,), _ = ray.wait(list(running), num_returns=1)
            cell, ended = running.pop(done), ended + 1
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayError as error:
                outcome = Outcome(failure=reason_of(error))
            step(ended, len(cells))
            yield cell, outcome

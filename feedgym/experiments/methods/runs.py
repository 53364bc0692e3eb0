"""Runs the cells of a comparison: each a whole alignment in a run folder of its own, all with one store.

They run one after the other, or several at a time as tasks of Ray. Each computes on one thread, wherever it runs, so
that its figures are the same. A cell that fails does not stop the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedgym.experiments.launch import launch
from feedgym.experiments.methods.cells import Cell
from feedgym.experiments.progress import progress, say
from feedgym.experiments.rollouts import one_thread, ray_running


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        summary: of its alignment; None if it failed.
        failure: the reason, one line.
    """

    summary: dict[str, Any] | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Place:
    """Where cells are run.

    Attributes:
        folder: of the cells' run folders.
        store: keeps their stages.
        trust: what folders name may be imported.
    """

    folder: Path
    store: Path
    trust: bool

    def run(self, cell: Cell) -> Outcome:
        """Run a cell, or go on with it where it was."""
        options: dict[str, Any] = {"store": self.store, "trust": self.trust, "tracker": False}
        try:
            with one_thread():
                return Outcome(launch(cell.config, self.folder / cell.name, resume=True, **options))
        except Exception as error:  # whatever a method, own code among them, may raise: the other cells go on
            return Outcome(failure=reason_of(error))


def reason_of(error: Exception) -> str:
    """Why a cell failed, in one line."""
    said = " ".join(str(error).split())
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"


def outcomes(cells: Sequence[Cell], place: Place, ray: str, workers: int) -> Iterator[tuple[Cell, Outcome]]:
    """Run cells; yields each as it ends.

    Args:
        cells: in the order in which they are begun.
        place: where.
        ray: "off", "local", or the address of a cluster.
        workers: cells that run at a time.
    """
    if ray == "off" or len(cells) == 1:
        for number, cell in enumerate(cells, start=1):
            say(f"[bold]{cell.name}[/] ({number} of {len(cells)})")
            yield cell, place.run(cell)
    elif cells:
        yield from _side_by_side(cells, place, ray, workers)


def _side_by_side(cells: Sequence[Cell], place: Place, address: str, workers: int) -> Iterator[tuple[Cell, Outcome]]:
    with ray_running(address) as ray, progress("Aligning") as step:
        share = min(1.0, ray.cluster_resources().get("CPU", 1.0) / workers)
        # A worker that is killed, by the system for memory say, leaves a cell that goes on where it was.
        task = ray.remote(num_cpus=share, max_retries=1)(Place.run)
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

"""Folders and settings of the many runs inside of one: the cells of a comparison, the trials of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from feedgym.experiments.launch import launch
from feedgym.experiments.rollouts import one_thread
from feedgym.experiments.run import Run
from feedgym.experiments.tracking import TrackerName

STORE = "store"
"""Folder of the inner runs' stages, if no other store is named."""


@dataclass(frozen=True)
class Place:
    """Folders and settings for runs inside of another.

    Attributes:
        folder: the parent of their folders.
        store: store of their stages.
        trust: whether code named by folders may be imported.
        tracker: keeps a record of each.
    """

    folder: Path
    store: Path
    trust: bool
    tracker: TrackerName = "none"

    @classmethod
    def inside(cls, run: Run, name: str) -> Self:
        """The place in the folder ``name`` of a run, with the run's own settings."""
        return cls(run.folder / name, run.store or (run.folder / STORE).resolve(), run.trust, run.tracker_name)

    def launch(self, config: Any, name: str, **options: Any) -> dict[str, Any]:
        """Start a run, or continue it where it stopped, on one thread; ``options`` are those of ``launch``."""
        settings: dict[str, Any] = {"store": self.store, "trust": self.trust, "tracker": self.tracker}
        with one_thread():
            return launch(config, self.folder / name, resume=True, **settings, **options)

"""Trackers: they record a run's figures for Weights & Biases, TensorBoard, or nothing.

metrics.jsonl, summary.json and report.html are always written; a tracker adds the record that its users expect. All its
files are in the run's folder. W&B is offline, and needs no account, unless ``WANDB_MODE=online`` is set.

This is the only file that imports wandb or tensorboardX.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

TrackerName = Literal["wandb", "tensorboard", "none"]
"""The trackers by name."""

CURVES = {"true": "round/true_mean", "predicted": "round/model_mean"}
"""Metrics of the two curves in one chart: the true reward by round, and the reward model's prediction of it."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """A stage's product as an artefact.

    Attributes:
        kind: one of dataset, tokenizer, model, reward-model and report.
        path: its file or folder.
        parents: the artefacts that it was made from.
        key: the key of its stage, a hash of the settings that decide it.
    """

    kind: str
    path: Path
    parents: Sequence[str] = ()
    key: str = ""


class Tracker(Protocol):
    """A record of a run."""

    def log(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Record figures, of a round or of the whole run."""

    def publish(
        self, rounds: Sequence[Mapping[str, Any]], samples: Mapping[str, Any] | None, products: Mapping[str, Product]
    ) -> None:
        """Record a finished run: curves by round, sessions to read (``columns``, ``rows``), and products."""

    def finish(self) -> None:
        """Write the rest."""


def tracker_of(name: TrackerName, folder: Path, config: Any, kind: str) -> Tracker:
    """Makes a run's tracker; a resumed run continues its record.

    Args:
        name: of the tracker.
        folder: the run's.
        config: the configuration, as JSON.
        kind: the kind of experiment.

    Raises:
        ValueError: there is no such tracker.
    """
    made: dict[str, type[Wandb] | type[TensorBoard] | type[NoTracker]] = {
        "wandb": Wandb,
        "tensorboard": TensorBoard,
        "none": NoTracker,
    }
    if name not in made:
        raise ValueError(f"There is no tracker {name!r}; the trackers are {', '.join(made)}.")
    return made[name](folder, config, kind)


class NoTracker:
    """Records nothing."""

    def __init__(self, folder: Path, config: Any, kind: str) -> None:
        pass

    def log(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Nothing."""

    def publish(
        self, rounds: Sequence[Mapping[str, Any]], samples: Mapping[str, Any] | None, products: Mapping[str, Product]
    ) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class TensorBoard:
    """Event files in the run's folder ``tensorboard``: ``tensorboard --logdir runs``."""

    def __init__(self, folder: Path, config: Any, kind: str) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in flat(config).items()))
        self._writer.add_custom_scalars({"reward": {"true and predicted": ["Multiline", list(CURVES.values())]}})

    def log(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Scalars."""
        for name, value in metrics.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def publish(
        self, rounds: Sequence[Mapping[str, Any]], samples: Mapping[str, Any] | None, products: Mapping[str, Product]
    ) -> None:
        """The sessions as a table; products stay in the run's folder."""
        if samples:
            rows = [samples["columns"], ["---"] * len(samples["columns"]), *samples["rows"]]
            self._writer.add_text("sample_sessions", "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows))

    def finish(self) -> None:
        """Close the files."""
        self._writer.close()


class Wandb:
    """A W&B run: its group holds the runs that differ only in the seed, or the cells of a comparison.

    The metadata of an artefact say where it comes from: ``parents`` and the ``key`` of its stage.
    """

    def __init__(self, folder: Path, config: Any, kind: str) -> None:
        # Everything W&B writes stays inside the run folder; offline needs no account (WANDB_MODE=online just works).
        # W&B reads only the user's own settings: those in a folder could name another server, and the user's key would
        # be sent there.
        for variable, place in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
            os.environ.setdefault(variable, str((folder / "wandb" / place).resolve()))
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        group, job_type = group_of(folder, config, kind)
        self._run = wandb.init(
            project="feedgym",
            name=folder.name,
            id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12],
            group=group,
            job_type=job_type,
            resume="allow",
            reinit="create_new",  # a comparison's cells run in its own process without Ray, and have their own records
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            config=flat(config),
            settings=wandb.Settings(disable_git=True),  # git would run commands from a repository's own settings
        )

    def log(self, metrics: Mapping[str, float], step: int | None) -> None:
        """A row of the history."""
        self._run.log(dict(metrics), step=step)

    def publish(
        self, rounds: Sequence[Mapping[str, Any]], samples: Mapping[str, Any] | None, products: Mapping[str, Product]
    ) -> None:
        """True and predicted reward in one chart, the sessions as a table, and the products as artefacts."""
        import wandb

        curves = {name: [row.get(of.removeprefix("round/")) for row in rounds] for name, of in CURVES.items()}
        if known := {name: values for name, values in curves.items() if values and None not in values}:
            chart = wandb.plot.line_series(
                xs=list(range(len(rounds))), ys=list(known.values()), keys=list(known),
                title="Reward per session, true and predicted", xname="round",
            )  # fmt: skip
            self._run.log({"reward_by_round": chart})
        if samples:
            self._run.log({"sample_sessions": wandb.Table(columns=samples["columns"], data=samples["rows"])})
        for name, product in products.items():
            told = {"parents": list(product.parents), "key": product.key}
            artifact = wandb.Artifact(name, type=product.kind, metadata=told)
            add = artifact.add_dir if product.path.is_dir() else artifact.add_file
            add(str(product.path))
            self._run.log_artifact(artifact)

    def finish(self) -> None:
        """Write the rest of the record."""
        self._run.finish()


def flat(config: Any, before: str = "") -> dict[str, Any]:
    """Returns a configuration with dotted names, as on the command line: ``rounds.num``."""
    if not isinstance(config, dict):
        return {before: config}
    return {
        name: value
        for key, part in config.items()
        for name, value in flat(part, f"{before}.{key}" if before else key).items()
    }


def group_of(folder: Path, config: Any, kind: str) -> tuple[str, str]:
    """Returns the group and the job type of a run.

    A cell of a comparison, RUN/cells/METHOD-SEED, is in the comparison's group, and its job type is the method. The
    trials of a sweep, SWEEP/trials/NUMBER, are in the sweep's group. Any other run is in one group with the runs that
    differ from it only in the seed. Its job type is the kind of experiment.
    """
    if folder.parent.name == "trials":
        return folder.parent.parent.name, "trial"
    if folder.parent.name == "cells":
        return folder.parent.parent.name, folder.name.rpartition("-")[0]
    same = {name: value for name, value in flat(config).items() if name != "seed"}
    key = hashlib.sha256(json.dumps(same, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{kind}-{key}", kind

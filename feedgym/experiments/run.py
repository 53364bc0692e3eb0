"""A run folder: configuration, cached stages, metrics and the Weights & Biases record (the only file importing wandb).

Layout of a run folder::

    config.json            the whole configuration, the seed, the git revision: enough to repeat the run
    stages/NAME/           one folder a stage: its product, and stage.json once it is complete
    metrics.jsonl          every metric, one JSON object a line
    summary.json           the result, for programs          report.html   the result, for people
    wandb/                 W&B's files (offline unless WANDB_MODE says otherwise)

A stage is skipped when its folder holds a product made under the same key: a hash of the stage's own configuration and
of its parents' keys. A stage that was killed finds its own half-done work again in ``work/``, because a trainer's
checkpoints lie there; a stage whose key changed starts from nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
from safetensors import SafetensorError

from feedgym.data.parquet import replacing
from feedgym.experiments.progress import say

T = TypeVar("T")


class StageReached(Exception):
    """Raised after the stage that a run was asked to stop at."""


@dataclasses.dataclass(frozen=True)
class Codec(Generic[T]):
    """How a stage's product is written to a folder and read back."""

    save: Callable[[T, Path], Any]
    load: Callable[[Path], T]


@dataclasses.dataclass(frozen=True)
class Stage(Generic[T]):
    """A finished stage: its product and the key its children depend on."""

    name: str
    key: str
    value: T
    seconds: float


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; what is not a finite number becomes null."""
    value = json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)
    write_text(path, json.dumps(value, indent=1, allow_nan=False))


JSON: Codec[Any] = Codec(
    lambda value, folder: write_json(folder / "value.json", value),
    lambda folder: json.loads((folder / "value.json").read_text()),
)
"""Codec of plain values."""


def with_curve(model: Codec[T]) -> Codec[tuple[T, list[dict[str, float]]]]:
    """Codec of a trained model with the record of its validations, from that of the model alone."""

    def save(product: tuple[T, list[dict[str, float]]], folder: Path) -> None:
        model.save(product[0], folder)
        JSON.save(product[1], folder)

    return Codec(save, lambda folder: (model.load(folder), JSON.load(folder)))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else str(value)


class Run:
    """One experiment in one folder.

    Args:
        folder: the run folder; created if missing.
        config: a dataclass; written to config.json.
        resume: continue what the folder holds. Without it the folder must be new or empty.
        stop_after: raise :class:`StageReached` once the stage of this name is complete.
        redo: a stage to run again though its product is there.
        tracker: keep a W&B record.
        trust: what folders that the experiment reads name may be imported (:mod:`feedgym.trust`).

    Raises:
        ValueError: the folder holds another run and ``resume`` is false.
    """

    def __init__(
        self,
        folder: Path | str,
        config: Any,
        *,
        resume: bool = False,
        stop_after: str | None = None,
        redo: str | None = None,
        tracker: bool = True,
        trust: bool = False,
    ) -> None:
        self.folder, self.trust = Path(folder), trust
        if (self.folder / "config.json").exists() and not resume:
            raise ValueError(f"{self.folder} already holds a run; give --resume {self.folder} or another --run folder.")
        (self.folder / "stages").mkdir(parents=True, exist_ok=True)
        self.stop_after, self.redo = stop_after, redo
        self.seconds: dict[str, float] = {}
        self.memory = PeakMemory()
        about = {"kind": type(config).__name__, "config": config, "git_revision": git_revision()}
        write_json(self.folder / "config.json", about)
        self._wandb = self._start_wandb(config) if tracker else None

    def stage(
        self,
        name: str,
        make: Callable[[Path], T],
        codec: Codec[T],
        *,
        config: Any = None,
        parents: Iterable[Stage] = (),
    ) -> Stage[T]:
        """Make a stage's product, or read it back if it was made under the same configuration and parents.

        Args:
            name: folder name of the stage.
            make: called with the stage's work folder (checkpoints go there), returns the product.
            codec: how the product is kept.
            config: whatever decides the product besides the parents; hashed.
            parents: the stages whose products ``make`` uses.
        """
        key = _key(name, config, [parent.key for parent in parents])
        folder = self.folder / "stages" / name
        mark = folder / "stage.json"
        done = json.loads(mark.read_text()) if mark.exists() else {}
        if name == self.redo or done.get("key") != key:
            shutil.rmtree(folder, ignore_errors=True)
            done = {}
        work = folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        if done.get("complete"):
            try:
                value, seconds = codec.load(folder), done["seconds"]
            except (ValueError, KeyError, OSError, SafetensorError) as error:
                again = f"to make it again: feedgym stage {name} --run {self.folder} --redo"
                raise ValueError(f"Stage {name} cannot be read: {error} ({again})") from error
        else:
            write_json(mark, {"key": key, "complete": False})
            began = time.perf_counter()
            made = make(work)
            codec.save(made, folder)
            value = codec.load(folder)  # what children see is what a resumed run would read
            seconds = time.perf_counter() - began
            shutil.rmtree(work, ignore_errors=True)
            write_json(mark, {"key": key, "complete": True, "seconds": seconds})
            say(f"[green]done[/] {name} [dim]{seconds:.1f} s[/]")
        self.seconds[name] = seconds
        if name == self.stop_after:
            raise StageReached(name)
        return Stage(name, key, value, seconds)

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics in metrics.jsonl and W&B."""
        row = {"time": time.time(), **({} if step is None else {"step": step}), **metrics}
        with open(self.folder / "metrics.jsonl", "a") as lines:
            lines.write(json.dumps(row, default=_plain) + "\n")
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def facts(self) -> dict[str, Any]:
        """How the run went: seconds a stage, memory, revision."""
        return {
            "stages": {name: {"seconds": seconds} for name, seconds in self.seconds.items()},
            "peak_memory_mb": self.memory.peak_mb,
            "git_revision": git_revision(),
        }

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Keep the result for programs."""
        write_json(self.folder / "summary.json", summary)

    def publish(self, summary: Mapping[str, Any], artifacts: Mapping[str, str]) -> None:
        """Put the result into the W&B record.

        Args:
            summary: what summary.json holds; its ``agents`` and ``samples`` are taken.
            artifacts: names of artefacts and the stages whose products they are; the report is added.
        """
        for agent, metrics in summary["agents"].items():
            self.log({f"{agent}/{name}": value["mean"] for name, value in metrics.items()})
        if self._wandb is None:
            return
        import wandb

        if samples := summary.get("samples"):
            self._wandb.log({"sample_sessions": wandb.Table(columns=samples["columns"], data=samples["rows"])})
        paths = {name: self.folder / "stages" / stage for name, stage in artifacts.items()}
        for name, path in {**paths, "report": self.folder / "report.html"}.items():
            artifact = wandb.Artifact(name, type="report" if path.is_file() else "model")
            artifact.add_dir(str(path)) if path.is_dir() else artifact.add_file(str(path))
            self._wandb.log_artifact(artifact)

    def close(self) -> None:
        """Finish the W&B record and stop watching memory."""
        self.memory.stop()
        if self._wandb is not None:
            self._wandb.finish()

    def _start_wandb(self, config: Any) -> Any:
        # Everything W&B writes stays inside the run folder; offline needs no account (WANDB_MODE=online just works).
        # Its settings are the user's own: those in a folder could name another server to send the user's key to.
        for variable, place in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
            os.environ.setdefault(variable, str((self.folder / "wandb" / place).resolve()))
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        return wandb.init(
            project="feedgym",
            name=self.folder.name,
            id=hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:12],
            resume="allow",
            dir=str(self.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            config=json.loads(json.dumps(config, default=_plain)),
            settings=wandb.Settings(disable_git=True),  # git runs what a repository's own settings say
        )


class PeakMemory:
    """Highest resident memory of this process and its descendants, looked at twice a second."""

    def __init__(self, every_s: float = 0.5) -> None:
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(every_s,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def _watch(self, every_s: float) -> None:
        process = psutil.Process()
        while not self._stop.is_set():
            total = 0
            for member in [process, *process.children(recursive=True)]:
                try:
                    total += member.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_mb = max(self.peak_mb, total / 2**20)
            self._stop.wait(every_s)


def git_revision() -> str:
    """The commit feedgym runs from, with "+changes" if the tree differs; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def _key(name: str, config: Any, parents: list[str]) -> str:
    text = json.dumps([name, config, parents], default=_plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

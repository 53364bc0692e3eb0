"""A run folder: configuration, cached stages, metrics and the tracker's record.

Layout of a run folder::

    config.json            the whole configuration, the seed, the git revision: enough to repeat the run
    config-1.json, ...     configurations it had before, oldest first
    run.lock               the process that works in it
    stages/NAME/           one folder per stage: its product, and stage.json with the hashes of its files; or
                           stored.json, which names the product in the store (feedgym/experiments/store.py)
    metrics.jsonl          all metrics, one JSON object per line
    summary.json           the result, for programs          report.html   the result, for people
    wandb/, tensorboard/   the tracker's files (:mod:`feedgym.experiments.tracking`)

A stage is skipped when its folder holds a product made under the same key. The key is a hash of the stage's own
configuration and of its parents' keys (:class:`Plan`). A stage that was killed finds its own half-done work again in
``work/``, which holds a trainer's checkpoints. A stage whose key changed starts from scratch. Its old product, and the
old config.json, stay until the new product is ready, so a change that is refused or given up loses nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
from pydantic import TypeAdapter
from rich.markup import escape
from safetensors import SafetensorError

from feedgym.data.parquet import replacing
from feedgym.data.whole import (
    CONFIG,
    MARK,
    STORED,
    WORK,
    check_product,
    digests_of,
    product_of,
    read_mark,
    read_sealed,
    store_of,
    stored_in,
    unreadable,
    write_sealed,
)
from feedgym.experiments.lock import Lock
from feedgym.experiments.progress import say
from feedgym.experiments.store import is_recorded, maker_of, making, record
from feedgym.experiments.tracking import Product, TrackerName, tracker_of
from feedgym.plugins import OBJECT

T = TypeVar("T")

BEGUN = "begun.json"
"""File in a stage's work folder with the key of the work."""

VERSION = 5
"""Version of run folders. Raise it when the same configuration would make another product than before. Older folders
are then refused, because no version could repeat a run that mixes products of both."""

KIND_OF_STAGE = {"log": "dataset", "tokenizer": "tokenizer", "reward": "reward-model"}
"""Kinds of artefacts by the first word of the stage's name; artefacts of all other stages are models."""

MOST_TOLD = 8
"""Most differences, or stages, that a message lists."""


class StageReached(Exception):
    """Raised after the stage that a run was asked to stop at."""


@dataclasses.dataclass(frozen=True)
class Codec(Generic[T]):
    """Writes a stage's product to a folder and reads it back."""

    save: Callable[[T, Path], Any]
    load: Callable[[Path], T]


@dataclasses.dataclass(frozen=True)
class FinishedStage(Generic[T]):
    """A finished stage and its product."""

    name: str
    value: T


class Plan(dict[str, str]):
    """The stages of an experiment in order, each with its key.

    Attributes:
        inert: fields of the configuration that decide no product, by dotted name, with the reason. All others must
            change some stage's key; a test checks them one by one.
        shared: keys that are unique over all runs, while the plan's own keys need only be unique within a run. They
            also contain the class names of the configuration's parts.
        own: stages that no other run may take from a store, with the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inert: dict[str, str] = {}
        self.shared: dict[str, str] = {}
        self.own: dict[str, str] = {}
        self.parents: dict[str, tuple[str, ...]] = {}

    def stage(self, name: str, config: Any = None, parents: tuple[str, ...] = (), own: str | None = None) -> str:
        """Add a stage.

        Args:
            name: name of its folder.
            config: everything that decides the product besides the parents; hashed.
            parents: the stages whose products it uses.
            own: reason why the product belongs only to this run, even if another run has the same configuration.
                Products made from it belong to this run too. The same holds for products of the user's own code,
                because no key shows whether that has changed.

        Returns:
            The name.
        """
        settings, self.parents[name] = plain(config), parents
        self[name] = key_of_stage([name, settings, [self[parent] for parent in parents]])
        kinds = json.loads(json.dumps(config, default=_with_kind))
        self.shared[name] = key_of_stage([name, kinds, [self.shared[parent] for parent in parents]])
        code = next(_own_code(settings), None)
        reasons = [own, code and f"{code} is code of your own", *(self.own.get(parent) for parent in parents)]
        if reason := next(filter(None, reasons), None):
            self.own[name] = reason
        return name

    def nearest(self, name: str, among: Collection[str]) -> list[str]:
        """Returns the stages in ``among`` that a stage was made from, each the nearest on its path."""
        found: list[str] = []
        for parent in self.parents[name]:
            found += [parent] if parent in among else self.nearest(parent, among)
        return list(dict.fromkeys(found))

    def leave_out(self, *fields: str, because: str) -> None:
        """Declare that fields, or whole parts of the configuration, decide no product."""
        self.inert |= dict.fromkeys(fields, because)


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write JSON completely or not at all; numbers that are not finite become null."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False))


def plain(value: Any) -> Any:
    """Convert a value to JSON types: dicts, lists and scalars; numbers that are not finite become None."""
    return json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)


def json_of(kind: Any) -> Codec[Any]:
    """Codec of plain values of a type, which is checked on reading."""
    adapter = TypeAdapter(kind)
    return Codec(
        lambda value, folder: write_json(folder / "value.json", value),
        lambda folder: adapter.validate_python(json.loads((folder / "value.json").read_text())),
    )


NumberOrNone = int | float | None
"""A number in JSON; None if it is not finite."""
CURVE = json_of(list[dict[str, NumberOrNone]])
"""Codec of the record of a training, with a row per validation or iteration."""


def with_record(model: Codec[T], record: Codec[Any]) -> Codec[tuple[T, Any]]:
    """Codec of a trained model with the record of its training, made from the codecs of both."""

    def save(product: tuple[T, Any], folder: Path) -> None:
        model.save(product[0], folder)
        record.save(product[1], folder)

    return Codec(save, lambda folder: (model.load(folder), record.load(folder)))


def with_curve(model: Codec[T]) -> Codec[tuple[T, list[dict[str, float]]]]:
    """Codec of a trained model with the record of its validations, made from the model's codec."""
    return with_record(model, CURVE)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else str(value)


def key_of_stage(decides: Any) -> str:
    """Hash of the settings that decide a stage, given as JSON types."""
    return hashlib.sha256(json.dumps(_whole_numbers(decides), sort_keys=True).encode()).hexdigest()[:16]


def _with_kind(value: Any) -> Any:
    """As :func:`_plain`, but with the name of a dataclass: two with the same fields may mean two models."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"": type(value).__name__, **{f.name: getattr(value, f.name) for f in dataclasses.fields(value)}}
    return _plain(value)


OWN_PATH = r"(?!feedgym\.)[A-Za-z_][\w.]*:[\w./-]+"
"""An import path, or an environment's id after its module, that is not feedgym's."""


def _own_code(value: Any) -> Iterator[str]:
    """Import paths in a value of JSON types that are not feedgym's."""
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _own_code(part)
    elif isinstance(value, str) and (value.startswith(OBJECT) or re.fullmatch(OWN_PATH, value)):
        yield value


def _whole_numbers(value: Any) -> Any:
    """Replace 1.0 by 1: a configuration that was read back has floats where the original had whole numbers."""
    if isinstance(value, dict):
        return {key: _whole_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Run:
    """One experiment in one folder; no other process can work in it until :meth:`close`.

    Args:
        folder: the run folder; created if missing.
        config: a dataclass; written to config.json.
        plan: the experiment's stages.
        resume: continue the run in the folder. Otherwise the folder must be new or empty.
        stop_after: raise :class:`StageReached` once the stage of this name is complete.
        redo: a stage to run again even if its product exists.
        tracker: keeps an additional record in the folder: wandb, tensorboard or none.
        trust: whether code named by the folders that the experiment reads may be imported (:mod:`feedgym.trust`).
        store: the folder of the store that keeps the stages. A resumed run knows its store; give it only if the store
            was moved. Without one a new run keeps the stages itself.
        heard: called with every row of metrics, and its step, as it is logged.

    Raises:
        ValueError: the folder holds another run and ``resume`` is false. Or it holds a run of another kind or version,
            or another process works in it. Or the named stage does not exist, or the run's store is gone.
    """

    def __init__(
        self,
        folder: Path | str,
        config: Any,
        plan: Plan,
        *,
        resume: bool = False,
        stop_after: str | None = None,
        redo: str | None = None,
        tracker: TrackerName = "wandb",
        trust: bool = False,
        store: Path | str | None = None,
        heard: Callable[[Mapping[str, float], int | None], Any] = lambda metrics, step: None,
    ) -> None:
        self.folder, self.plan, self.trust, self.heard = Path(folder), plan, trust, heard
        self.store = None if store is None else Path(store).resolve()
        for name in (stop_after, redo):
            if name is not None and name not in plan:
                raise ValueError(f"The run has no stage {name!r}; its stages are {', '.join(plan)}.")
        self.stop_after, self.redo = stop_after, redo
        self.seconds: dict[str, float] = {}
        self._about = plain(
            {"version": VERSION, "kind": type(config).__name__, "config": config, "git_revision": git_revision()}
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._accepting = threading.Lock()
        self._lock = Lock(self.folder)
        try:
            self._begin(resume)
            self.tracker_name = tracker
            self.tracker = tracker_of(tracker, self.folder, self._about["config"], self._about["kind"])
        except BaseException:
            self._lock.release()
            raise
        self.memory = PeakMemory()

    def _begin(self, resume: bool) -> None:
        """Write a new run's configuration, or report the effects of a changed one on the folder."""
        self._replaced: list[str] = []  # stages whose products another configuration made
        if not (self.folder / CONFIG).exists():
            self._use_store()
            write_sealed(self.folder / CONFIG, self._about)
            return
        if not resume:
            raise ValueError(f"{self.folder} already holds a run; give --resume {self.folder} or another --run folder.")
        kept = read_about(self.folder)
        if kept["kind"] != self._about["kind"]:
            raise ValueError(
                f"{self.folder} is a run of {kept['kind']}, not of {self._about['kind']}; give another folder."
            )
        self._reuse_store(kept)
        if not (changes := differences(kept["config"], self._about["config"])):
            return
        there = [name for name in self.plan if any((self._home(name) / file).exists() for file in (MARK, STORED))]
        made = [name for name in there if self._is_kept(name)]
        self._replaced = [name for name in there if name not in made]
        told, again, stay = _few(changes), ", ".join(self._replaced), ", ".join(made)
        say(f"[yellow]The configuration differs from {escape(str(self.folder / CONFIG))}:[/] {escape(told)}")
        say(f"[yellow]Made again:[/] {again or 'nothing'}. Kept: {stay or 'nothing'}.")

    def _use_store(self) -> None:
        """Use the store, if there is one, and report the stages that it will not keep."""
        if self.store is None:
            return
        self.store.mkdir(parents=True, exist_ok=True)
        self._about["store"] = str(self.store)
        for reason in dict.fromkeys(self.plan.own.values()):
            names = _few([name for name, why in self.plan.own.items() if why == reason])
            say(f"[yellow]Kept in the run's folder and not in the store:[/] {names}. {escape(reason)}.")

    def _reuse_store(self, kept: dict[str, Any]) -> None:
        """Find the store that a run was begun with, or record its new place."""
        if "store" not in kept:
            if self.store is not None:
                raise ValueError(f"{self.folder} keeps its stages itself; --store is for a new run, so give --run too.")
            return
        self.store = self.store or store_of(self.folder)
        self._use_store()
        if kept["store"] != self._about["store"]:
            write_sealed(self.folder / CONFIG, kept | {"store": self._about["store"]})

    def _home(self, name: str) -> Path:
        """Folder of a stage in the run's folder."""
        return _home_of(self.folder, name)

    def _place(self, name: str) -> Path:
        """Place for a stage's product: in the store, or in the run's folder."""
        return _place_of(self.folder, self.plan, self._about["kind"], self.store, name)

    def _is_kept(self, name: str) -> bool:
        """Whether the product that the run's folder holds, or names, belongs to the present configuration."""
        home, place = self._home(name), self._place(name)
        return self._is_made(name) if place == home else is_recorded(home, place)

    def is_made(self, name: str) -> bool:
        """Whether a stage would be read instead of made; damage is reported when it is read."""
        return name != self.redo and self._is_made(name)

    def _is_made(self, name: str) -> bool:
        """Whether a stage's product was made under its present key; damage is reported when it is read."""
        place = self._place(name)
        if place == self._home(name) and (place / STORED).exists():
            return False  # a stored product of another configuration
        try:
            mark = read_mark(place)
        except ValueError:
            return True
        return mark is not None and mark["key"] == self.plan[name]

    def _accept(self) -> None:
        """Make the present configuration the folder's; one whose products are replaced is kept as config-N.json."""
        with self._accepting:  # rounds may be sampled in another thread
            kept = read_about(self.folder)
            if self._replaced and kept["config"] != self._about["config"]:
                number = 1 + len(list(self.folder.glob("config-*.json")))
                write_sealed(self.folder / f"config-{number}.json", kept)
            if kept != self._about:
                write_sealed(self.folder / CONFIG, self._about)

    def stage(self, name: str, make: Callable[[Path], T], codec: Codec[T]) -> FinishedStage[T]:
        """Make a stage's product, or read it back if it was made under the same configuration and parents.

        Args:
            name: a stage of the plan.
            make: called with the stage's work folder (for checkpoints), returns the product.
            codec: writes and reads the product.

        Raises:
            ValueError: the product is damaged, or it is complete, in a store, and was to be made again.
            StageReached: this is the stage to stop after.
        """
        if self.is_made(name):
            value = self._read(name, codec)
        elif (place := self._place(name)) == self._home(name):
            value = self._made(name, make, codec)
        else:
            with making(place):
                value = self._made_for_all(name, make, codec)
        if name == self.stop_after:
            raise StageReached(name)
        return FinishedStage(name, value)

    def _read(self, name: str, codec: Codec[T]) -> T:
        """Read the product back."""
        home, place = self._home(name), self._place(name)
        if place != home and not is_recorded(home, place):
            self._record(home, place)  # also for a damaged one: the command that repairs it needs this record
            other = "" if (maker := maker_of(place)) == git_revision() else f", made by feedgym {maker}"
            say(f"[green]from the store[/] {name} [dim]{escape(f'{place}{other}')}[/]")
        value = read_product(home, codec.load)
        self.seconds[name] = read_mark(home)["seconds"]  # type: ignore[index]  # read_product has read it
        return value

    def _record(self, home: Path, place: Path) -> None:
        """Use a stored product for the stage."""
        self._accept()
        home.mkdir(parents=True, exist_ok=True)
        _clear(home)
        record(home, place)

    def _made_for_all(self, name: str, make: Callable[[Path], T], codec: Codec[T]) -> T:
        """Make the product in the store, unless another process has just made it."""
        if not self._is_made(name):
            return self._made(name, make, codec)
        if name != self.redo:
            return self._read(name, codec)
        if self._is_readable(name, codec):
            raise ValueError(
                f"Stage {name} is complete in the store, where other runs may use it, and would come out the same; "
                f"to make it again anyway, remove {self._place(name)} and resume {self.folder}."
            )
        say(f"[yellow]Made again in the store, for all runs that use it:[/] {name}")
        return self._made(name, make, codec)

    def _is_readable(self, name: str, codec: Codec[Any]) -> bool:
        try:
            self._read(name, codec)
        except ValueError:
            return False
        return True

    def _made(self, name: str, make: Callable[[Path], T], codec: Codec[T]) -> T:
        """Make the product; an earlier one stays until then."""
        home, folder = self._home(name), self._place(name)
        work, key = folder / WORK, self.plan[name]
        if name == self.redo or not _is_for(work, key):
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        write_sealed(work / BEGUN, {"key": key})
        began = time.perf_counter()
        made = make(work)
        self._accept()
        _clear(folder)
        codec.save(made, folder)
        value = codec.load(folder)  # later stages see exactly what a resumed run would read
        self.seconds[name] = time.perf_counter() - began
        files = digests_of(folder, (MARK, WORK))
        mark = {"key": key, "seconds": self.seconds[name], "files": files}
        if folder != home:
            mark["git_revision"] = git_revision()  # the maker's; the run's own is in config.json
        write_sealed(folder / MARK, mark)
        if folder != home and not is_recorded(home, folder):
            self._record(home, folder)
        shutil.rmtree(work, ignore_errors=True)
        say(f"[green]done[/] {name} [dim]{self.seconds[name]:.1f} s[/]")
        return value

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics in metrics.jsonl and W&B."""
        row = {"time": time.time(), **({} if step is None else {"step": step}), **metrics}
        with open(self.folder / "metrics.jsonl", "a") as lines:
            lines.write(json.dumps(row, default=_plain) + "\n")
        self.tracker.log(metrics, step)
        self.heard(metrics, step)

    def facts(self) -> dict[str, Any]:
        """Facts about the run: seconds per stage, memory, revision."""
        return {
            "stages": {name: {"seconds": self.seconds[name]} for name in self.plan if name in self.seconds},
            "peak_memory_mb": self.memory.peak_mb,
            "git_revision": git_revision(),
        }

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the result for programs."""
        self._accept()
        write_json(self.folder / "summary.json", summary)

    def publish(self, summary: Mapping[str, Any], artifacts: Mapping[str, str]) -> None:
        """Give the result to the tracker.

        Args:
            summary: the content of summary.json; its ``agents``, ``rounds`` and ``samples`` are used.
            artifacts: names of artefacts, with the stages that hold them; the report is added.
        """
        for agent, metrics in summary["agents"].items():
            self.log({f"{agent}/{name}": value["mean"] for name, value in metrics.items()})
        of = {stage: name for name, stage in artifacts.items()}
        products = {
            name: Product(
                kind=KIND_OF_STAGE.get(stage.partition("-")[0], "model"),
                path=product_of(self._home(stage)),
                parents=[of[parent] for parent in self.plan.nearest(stage, of)],
                key=self.plan[stage],
            )
            for name, stage in artifacts.items()
        }
        products["report"] = Product(kind="report", path=self.folder / "report.html", parents=list(artifacts))
        self.tracker.publish(summary.get("rounds") or [], summary.get("samples"), products)

    def close(self) -> None:
        """Finish the W&B record, stop watching memory and release the folder."""
        self.memory.stop()
        self.tracker.finish()
        self._lock.release()


class PeakMemory:
    """Highest memory of this process and its descendants, looked at twice a second.

    Pages that processes share, such as torch's libraries, count once where the system tells (Linux: PSS). Reading that
    is slow. So it is read only at a new high of resident memory, in which such pages count once per process.
    """

    def __init__(self, every_s: float = 0.5) -> None:
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(every_s,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop measuring."""
        self._stop.set()
        self._thread.join()

    def _watch(self, every_s: float) -> None:
        process, highest = psutil.Process(), 0
        while not self._stop.is_set():
            members = [process, *process.children(recursive=True)]
            if (resident := _total(members, lambda member: member.memory_info().rss)) > highest:
                highest = resident
                self.peak_mb = max(self.peak_mb, _total(members, _share_of_memory) / 2**20)
            self._stop.wait(every_s)


def _share_of_memory(process: psutil.Process) -> int:
    """A process's memory, bytes, with its share of the pages that others use too."""
    told = process.memory_full_info()
    return getattr(told, "pss", told.rss)


def _total(processes: Sequence[psutil.Process], figure: Callable[[psutil.Process], int]) -> int:
    """Sum of a figure over the processes that still run and can be read."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += figure(process)
    return total


def git_revision() -> str:
    """The commit feedgym runs from, with "+changes" if the tree differs; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


# ---------------------------------------------------------------- contents of a folder


def read_about(folder: Path) -> dict[str, Any]:
    """Read config.json: ``version``, ``kind``, ``config`` and ``git_revision``.

    Raises:
        ValueError: it is missing, damaged, or of another version.
    """
    path = folder / CONFIG
    if not path.exists():
        raise ValueError(f"{folder} holds no run (it has no {CONFIG}); give the folder of a run.")
    try:
        about = read_sealed(path)
    except ValueError as error:
        if (version := _version(path)) is not None and version != VERSION:
            raise _other_version(path, version) from error
        raise ValueError(f"{error}; restore it from a copy, or start a new run with --run.") from error
    if about.get("version") != VERSION or not {"kind", "config"} <= set(about):
        raise _other_version(path, about.get("version"))
    return about


def _version(path: Path) -> Any:
    """The version of a configuration without a hash: version 1 had neither."""
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict) and "config" in record and "sha256" not in record:
            return record.get("version", 1)
    return None


def _other_version(path: Path, version: Any) -> ValueError:
    return ValueError(
        f"{path} is of version {version} of run folders; this feedgym reads {VERSION} and would make other products "
        "from it; start a new run with --run, or continue with the feedgym that began it (see git_revision in it)."
    )


def made_stages(folder: Path, plan: Plan, kind: str, store: Path | None = None) -> dict[str, str]:
    """Finds the stages of a plan whose product exists under its present key: "yes" if in the folder, or "in the store".

    Args:
        folder: of the run; it need not exist.
        plan: its stages.
        kind: the name of its kind of configuration.
        store: the store of a new run; a run that was begun knows its own.
    """
    if (folder / CONFIG).exists():
        store = store_of(folder) if "store" in read_about(folder) else None
    found = {}
    for name in plan:
        place = _place_of(folder, plan, kind, store, name)
        with contextlib.suppress(ValueError):  # a damaged product is made again
            if (mark := read_mark(place)) is not None and mark["key"] == plan[name]:
                found[name] = "yes" if place == _home_of(folder, name) else "in the store"
    return found


def _home_of(folder: Path, name: str) -> Path:
    """A stage's folder in a run's."""
    return folder / "stages" / name


def _place_of(folder: Path, plan: Plan, kind: str, store: Path | None, name: str) -> Path:
    """The place of a stage's product: in the store, or in the run's folder."""
    if store is None or name in plan.own:
        return _home_of(folder, name)
    return stored_in(store, f"{name}-{key_of_stage([VERSION, kind, plan.shared[name]])}")


def read_product(folder: Path, load: Callable[[Path], T]) -> T:
    """Read a stage's product from its folder, if its files are those that the stage wrote.

    Raises:
        ValueError: they are not, or cannot be read; the message has the command that makes the stage again.
    """
    check_product(folder)
    try:
        return load(product_of(folder))
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise unreadable(folder, error) from error


def differences(before: Any, after: Any, name: str = "") -> list[str]:
    """Differences of two configurations in JSON types: "judge.users 1000 -> 30", in order of the fields."""
    if isinstance(before, dict) and isinstance(after, dict):
        inside = f"{name}." if name else ""
        return [
            difference
            for key in {**after, **before}
            for difference in differences(before.get(key, "nothing"), after.get(key, "nothing"), f"{inside}{key}")
        ]
    alike = before == after and isinstance(before, bool) == isinstance(after, bool)  # 1 is 1.0, but is not True
    return [] if alike else [f"{name} {before} -> {after}"]


def _few(names: list[str]) -> str:
    """Join names for a message, only the first ones if there are many."""
    return ", ".join(names[:MOST_TOLD]) + ", ..." * (len(names) > MOST_TOLD)


def _is_for(work: Path, key: str) -> bool:
    """Whether half-done work belongs to a key."""
    try:
        return read_sealed(work / BEGUN) == {"key": key}
    except (OSError, ValueError):
        return False


def _clear(folder: Path) -> None:
    """Remove a product, its mark first, so that a kill leaves no half product that looks complete."""
    (folder / MARK).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name != WORK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

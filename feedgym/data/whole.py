"""What lies on disk, proved to be what was written: JSON with its own hash, and folders with a hash of every file.

A kill leaves a folder without its seal, for the seal is written last; a damaged disk leaves one whose files have other
hashes. Neither is read: a checkpoint is passed over for the one before, and a stage's product is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from feedgym.data.parquet import replacing

SEAL, MARK, WORK = "whole.json", "stage.json", "work"
"""Of a checkpoint's folder; of a stage's folder; and where a stage keeps its half-done work."""
CONFIG, STORED = "config.json", "stored.json"
"""Of a run's folder, with the place of its store if it has one; and of a stage whose product lies in that store."""


class Mark(TypedDict):
    """What ``stage.json`` says of a finished stage."""

    key: str
    seconds: float
    files: dict[str, str]


def digest_of(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_of(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """The hashes of all files below a folder, by relative path; ``leave_out`` names files and folders in it."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    relative = {path.relative_to(folder): path for path in paths}
    return {name.as_posix(): digest_of(path) for name, path in relative.items() if name.parts[0] not in leave_out}


# ---------------------------------------------------------------- JSON


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its own hash, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**value, "sha256": _hash_of(value)}, indent=1, allow_nan=False))


def read_sealed(path: Path) -> dict[str, Any]:
    """The object that :func:`write_sealed` wrote.

    Raises:
        ValueError: it is damaged, or was changed by hand; the caller knows the remedy.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        intact = isinstance(value, dict) and value.pop("sha256", None) == _hash_of(value)
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise ValueError(f"{path} is damaged or was changed by hand")
    return value


def _hash_of(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- stages


def product_of(folder: Path) -> Path:
    """The folder that a stage's product lies in: the stage's own, or one in the store that its run names.

    Args:
        folder: RUN/stages/NAME; any folder that is no stage's is its own.

    Raises:
        ValueError: the store is gone, or the record of the stage is damaged or leads out of the store.
    """
    record, run = folder / STORED, folder.parent.parent
    if not record.exists():
        return folder
    mend = f"mend it: feedgym demo --resume {run}"
    try:
        name = read_sealed(record).get("folder")
    except ValueError as error:
        raise ValueError(f"{error}; {mend}") from error
    if not (isinstance(name, str) and re.fullmatch(r"[\w-]+", name)):
        raise ValueError(f"{record} names {name!r}, which is no stage of a store; {mend}")
    return stored_in(store_of(run), name)


def store_of(run: Path) -> Path:
    """The store that a run's folder names.

    Raises:
        ValueError: it names none, or the store is gone.
    """
    store = read_sealed(run / CONFIG).get("store") if (run / CONFIG).exists() else None
    if not isinstance(store, str):
        raise ValueError(f"{run} names no store; start a new run with --run.")
    if not Path(store).is_dir():
        raise ValueError(
            f"The store {store} of {run} is gone; bring it back, or say where it is now (what an empty folder lacks is "
            f"made again): feedgym demo --resume {run} --store DIR"
        )
    return Path(store)


def stored_in(store: Path, name: str) -> Path:
    """A stage's folder in a store, there or not.

    Raises:
        ValueError: it is a link, which may lead anywhere.
    """
    if (place := store / name).is_symlink():
        raise ValueError(f"{place} is a link, and products lie in the store itself; remove it.")
    return place


def read_mark(folder: Path) -> Mark | None:
    """What ``stage.json`` says of a stage's product, wherever that lies; None where there is none.

    Raises:
        ValueError: it is damaged, or its store is gone.
    """
    path = product_of(folder) / MARK
    if not path.exists():
        return None
    try:
        return TypeAdapter(Mark).validate_python(read_sealed(path))
    except ValidationError as error:
        raise ValueError(f"{path} is of another version of feedgym") from error


def check_product(folder: Path) -> None:
    """Refuse a stage's product whose files are not those that the stage wrote; other folders are let through.

    Raises:
        ValueError: a file is damaged, missing, or was added, with the command that makes the stage again; or its store
            is gone.
    """
    product = product_of(folder)
    try:
        if (mark := read_mark(folder)) is None:
            return
        present, wanted = digests_of(product, (MARK, WORK)), mark["files"]
        for name in sorted({*present, *wanted}):
            if present.get(name) != wanted.get(name):
                what = "is missing" if name not in present else "was added" if name not in wanted else "is damaged"
                raise ValueError(f"{name} {what}")
    except ValueError as error:
        raise unreadable(folder, error) from error


def unreadable(folder: Path, error: Exception) -> ValueError:
    """What is said of a stage's folder that cannot be read: one line with the remedy."""
    name, run = folder.name, folder.parent.parent
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"Stage {name} cannot be read: {reason}; make it again: feedgym stage {name} --run {run} --redo")


# ---------------------------------------------------------------- checkpoints


def seal(folder: Path) -> None:
    """Say of a checkpoint that all its files are written."""
    write_sealed(folder / SEAL, {"files": digests_of(folder, (SEAL,))})


def is_whole(folder: Path) -> bool:
    """Whether a folder was sealed and its files are those that were."""
    try:
        return read_sealed(folder / SEAL) == {"files": digests_of(folder, (SEAL,))}
    except (OSError, ValueError):
        return False


@contextmanager
def new_checkpoint(folder: Path, step: int) -> Iterator[Path]:
    """A new folder for a checkpoint, by the name that transformers.Trainer would give it.

    It is sealed when the block succeeds; then all older ones but the last go.
    """
    path = folder / f"checkpoint-{step}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    yield path
    seal(path)
    for old in sorted(_steps(folder))[:-2]:
        shutil.rmtree(folder / f"checkpoint-{old}")


def _steps(folder: Path) -> list[int]:
    """The steps of the checkpoints below a folder, whole or not."""
    matches = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*"))
    return [int(match[1]) for match in matches if match]


def drop_checkpoints(folder: Path) -> None:
    """Remove all checkpoints below a folder: what they belong to is gone."""
    for step in _steps(folder):
        shutil.rmtree(folder / f"checkpoint-{step}")


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint below a folder; newer ones that are not whole are removed."""
    for step in sorted(_steps(folder), reverse=True):
        path = folder / f"checkpoint-{step}"
        if is_whole(path):
            return path
        shutil.rmtree(path)
    return None

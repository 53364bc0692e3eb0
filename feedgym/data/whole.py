"""Checks that files are as they were written: JSON with its own hash, and folders with a hash of every file.

A killed process leaves a folder without its seal, because the seal is written last. A damaged disk leaves files with
other hashes. Neither is read: for a checkpoint the one before is used, and a stage's product is refused.
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

from typing_extensions import TypedDict

from feedgym.data.parquet import replacing

SEAL, MARK, WORK = "whole.json", "stage.json", "work"
"""Files that seal a checkpoint's and a stage's folder, and the folder for a stage's unfinished work."""
CONFIG, STORED = "config.json", "stored.json"
"""Config of a run's folder, with the path of its store if it has one; and the record of a product in that store."""


class Mark(TypedDict):
    """Content of ``stage.json`` of a finished stage."""

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
    """Write a JSON object with its own hash, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**value, "sha256": _hash_of(value)}, indent=1, allow_nan=False))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read the object that :func:`write_sealed` wrote.

    Raises:
        ValueError: it is damaged, or was changed by hand; the caller adds the remedy.
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
    """The folder of a stage's product: the stage's own, or one in the store that its run names.

    Args:
        folder: RUN/stages/NAME; any other folder is returned as it is.

    Raises:
        ValueError: the store is gone, or the record of the stage is damaged or points outside the store.
    """
    record, run = folder / STORED, folder.parent.parent
    if not record.exists():
        return folder
    mend = f"repair it: feedgym demo --resume {run}"
    try:
        name = read_sealed(record).get("folder")
    except ValueError as error:
        raise ValueError(f"{error}; {mend}") from error
    if not (isinstance(name, str) and re.fullmatch(r"[\w-]+", name)):
        raise ValueError(f"{record} names {name!r}, which is not a stage of a store; {mend}")
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
            f"The store {store} of {run} is gone; bring it back, or give its new place (in an empty folder, all is "
            f"made again): feedgym demo --resume {run} --store DIR"
        )
    return Path(store)


def stored_in(store: Path, name: str) -> Path:
    """Path of a stage's folder in a store, whether it exists or not.

    Raises:
        ValueError: it is a link, which may point anywhere.
    """
    if (place := store / name).is_symlink():
        raise ValueError(f"{place} is a link, and products lie in the store itself; remove it.")
    return place


def read_mark(folder: Path) -> Mark | None:
    """Read ``stage.json`` of a stage's product, in the run or in the store; None if there is none.

    Raises:
        ValueError: it is damaged, or its store is gone.
    """
    path = product_of(folder) / MARK
    if not path.exists():
        return None
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Mark).validate_python(read_sealed(path))
    except ValidationError as error:
        raise ValueError(f"{path} is from another version of feedgym") from error


def check_product(folder: Path) -> None:
    """Refuse a stage's product if its files are not those that the stage wrote; accept other folders.

    Raises:
        ValueError: a file is damaged, missing, or was added (the message gives the command that makes the stage again);
            or its store is gone.
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
    """The error for a stage's folder that cannot be read: one line with the remedy."""
    name, run = folder.name, folder.parent.parent
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"Stage {name} cannot be read: {reason}; make it again: feedgym stage {name} --run {run} --redo")


# ---------------------------------------------------------------- checkpoints


def seal(folder: Path) -> None:
    """Mark a checkpoint as complete: all its files are written."""
    write_sealed(folder / SEAL, {"files": digests_of(folder, (SEAL,))})


def is_whole(folder: Path) -> bool:
    """True if a folder was sealed and its files are unchanged since."""
    try:
        return read_sealed(folder / SEAL) == {"files": digests_of(folder, (SEAL,))}
    except (OSError, ValueError):
        return False


@contextmanager
def new_checkpoint(folder: Path, step: int) -> Iterator[Path]:
    """Make a new folder for a checkpoint, with the name that transformers.Trainer would give it.

    It is sealed when the block succeeds; then all older ones except the last are removed.
    """
    path = folder / f"checkpoint-{step}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    yield path
    seal(path)
    for old in sorted(_steps(folder))[:-2]:
        shutil.rmtree(folder / f"checkpoint-{old}")


def _steps(folder: Path) -> list[int]:
    """The steps of the checkpoints below a folder, complete or not."""
    matches = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*"))
    return [int(match[1]) for match in matches if match]


def drop_checkpoints(folder: Path) -> None:
    """Remove all checkpoints below a folder, once they are no longer needed."""
    for step in _steps(folder):
        shutil.rmtree(folder / f"checkpoint-{step}")


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint below a folder; newer incomplete ones are removed."""
    for step in sorted(_steps(folder), reverse=True):
        path = folder / f"checkpoint-{step}"
        if is_whole(path):
            return path
        shutil.rmtree(path)
    return None

"""One process at a time in a run folder, and at the making of a stage that many runs share.

The lock is the kernel's (``flock`` on ``run.lock``), so it ends with its holder, however that ends, and two takers
cannot both get it. The file says who the holder is, for the message to the second one. Machines that share a file
system keep each other out where it passes locks on (NFS, unless it is mounted with nolock or local_lock; Lustre with
flock; GPFS; CephFS). Where a file system knows no locks at all, the record alone counts: a holder on this machine whose
process lives keeps others out, but two that start in the same moment do not see each other.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

LOCK = "run.lock"
POLL_S = 0.2
"""Seconds between two looks whether a lock that is waited for is free."""


class Held(ValueError):
    """Another process holds a lock."""


class Lock:
    """The lock of a folder, held until :meth:`release` or the end of this process.

    Args:
        folder: what is locked.
        file: the lock's file; ``run.lock`` in the folder if None.

    Raises:
        Held: another process holds it; the line says which.
        OSError: the file is a link, which may lead to a file that is none of ours to write.
    """

    def __init__(self, folder: Path, file: Path | None = None) -> None:
        self.folder = folder
        self._file = open(file or folder / LOCK, "a+", opener=_no_link)  # noqa: SIM115 (it is the lock, and stays open)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._held() from error
        except OSError as error:  # no locks here
            if _lives(self._holder()):
                raise self._held() from error
        self._write({"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()})

    def release(self) -> None:
        """Let others in."""
        if not self._file.closed:
            self._write(None)
            self._file.close()

    def _write(self, holder: dict[str, Any] | None) -> None:
        self._file.truncate(0)
        if holder is not None:
            self._file.write(json.dumps(holder))
        self._file.flush()

    def _holder(self) -> dict[str, Any]:
        try:
            self._file.seek(0)
            holder = json.loads(self._file.read())
            return holder if isinstance(holder, dict) else {}
        except ValueError:
            return {}

    def _held(self) -> Held:
        holder = self._holder()
        self._file.close()
        who = "another process"  # it has the lock and has not said yet who it is
        if holder:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("started", 0)))
            who = f"process {holder.get('pid')} on {holder.get('host')}, which began {since}"
        return Held(f"{self.folder} is in use by {who}; wait for it to end, or end it.")


def wait_for(folder: Path, file: Path, tell: Callable[[Held], Any]) -> Lock:
    """The lock of a folder as soon as nobody else holds it.

    Args:
        folder: what is locked.
        file: the lock's file.
        tell: called once if somebody holds it.
    """
    told = False
    while True:
        try:
            return Lock(folder, file)
        except Held as held:
            if not told:
                tell(held)
            told = True
        time.sleep(POLL_S)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that runs still; a pid that was given anew is another process."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(holder["pid"]).create_time() - holder["started"]) < 1
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False

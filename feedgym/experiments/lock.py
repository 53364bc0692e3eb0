"""Lets only one process at a time work in a run folder, or make a stage that many runs share.

The lock is the kernel's (``flock`` on ``run.lock``), so it ends with its holder, however that ends, and two processes
cannot both get it. The file records the holder, for the message to the second process. Machines that share a file
system exclude each other if it passes locks on. These are NFS (unless it is mounted with nolock or local_lock), Lustre
with flock, GPFS and CephFS. If a file system has no locks at all, only the record counts. Then a living process of this
machine excludes others, but two that start at the same moment do not see each other.
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
"""Seconds between two checks whether a lock is free."""


class Held(ValueError):
    """Another process holds a lock."""


class Lock:
    """The lock of a folder, held until :meth:`release` or the end of this process.

    Args:
        folder: the folder to lock.
        file: the lock's file; ``run.lock`` in the folder if None.

    Raises:
        Held: another process holds it; the message names the process.
        OSError: the file is a link, which may lead to a file that is not ours to write.
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
        """Release the lock."""
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
        who = "another process"  # it has the lock but has not recorded its name yet
        if holder:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("started", 0)))
            who = f"process {holder.get('pid')} on {holder.get('host')}, which began {since}"
        return Held(f"{self.folder} is in use by {who}; wait for it to end, or end it.")


def wait_for(folder: Path, file: Path, tell: Callable[[Held], Any]) -> Lock:
    """Wait for the lock of a folder until nobody else holds it.

    Args:
        folder: the folder to lock.
        file: the lock's file.
        tell: called once if another process holds it.
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
    """Whether the holder is a process of this machine that still runs; a reused pid is another process."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(holder["pid"]).create_time() - holder["started"]) < 1
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False

"""One process at a time in a run folder, and none for ever."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from feedgym.experiments.lock import LOCK, Lock

HOLDER = """
import sys, time
from pathlib import Path
from feedgym.experiments.lock import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_holds_the_lock_and_a_killed_ones_is_taken_over(holder, tmp_path):
    with pytest.raises(ValueError, match=rf"in use by process {holder.pid} on {socket.gethostname()}, which began 2"):
        Lock(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    lock = Lock(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()
    Lock(tmp_path).release()


def test_the_same_process_cannot_take_it_twice(tmp_path):
    lock = Lock(tmp_path)
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        Lock(tmp_path)
    lock.release()


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize(
    ("changes", "is_held"),
    [({}, True), ({"started": 1.0}, False), ({"pid": 2**22 + 1}, False), ({"host": "elsewhere"}, False)],
    ids=["a living holder", "a pid given anew", "a dead holder", "a holder elsewhere"],
)
def test_without_locks_of_the_file_system_a_living_holder_of_this_machine_counts(
    tmp_path, monkeypatch, changes, is_held
):
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}
    (tmp_path / LOCK).write_text(json.dumps(mine | changes))
    monkeypatch.setattr(fcntl, "flock", no_locks)
    if is_held:
        with pytest.raises(ValueError, match="in use by process"):
            Lock(tmp_path)
    else:
        Lock(tmp_path).release()

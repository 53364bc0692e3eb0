"""Runs feedgym under ``torchrun`` or ``accelerate launch``: the first process leads, the others train with it.

The first process does everything that one process would do, and it alone writes, prints and tracks. The others wait.
When it comes to a training, it sends them the training's function and arguments (:func:`together`). All processes then
train as one (:mod:`feedgym.agents.sharing`), and the others wait again. So nothing else needs to know how many
processes there are. Sampling and judging go to Ray's actors, which the first process starts.

The launcher's variables are hidden except while all train. Otherwise a library could take the leader's own work for the
work of all. Processes on several machines need one file system, where checkpoints are.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""The launcher's variables by which libraries recognise a process of several."""
WAIT = timedelta(days=30)
"""Longest wait for another process; the launcher ends all of them when one fails."""
FAREWELL = timedelta(seconds=30)
"""Longest wait of the leader until the others know that it has ended."""
TRAIN, END = b"train", b"end"


@dataclass
class Team:
    """The processes of a launcher.

    Attributes:
        store: where they leave each other notes.
        rank: number of this process.
        size: number of processes.
        variables: the launcher's variables, which are hidden.
        num_notes: notes that the leader has left so far.
    """

    store: Any
    rank: int
    size: int
    variables: dict[str, str] = field(default_factory=dict)
    num_notes: int = 0

    @classmethod
    def of_launcher(cls) -> Team:
        """Meet the other processes, and hide the launcher's variables."""
        store, rank, size = next(iter(dist.rendezvous("env://", timeout=WAIT)))
        store.set_timeout(WAIT)
        hidden = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
        return cls(dist.PrefixStore("feedgym", store), rank, size, hidden)

    def tell(self, note: bytes) -> None:
        """Leave the next note for the others."""
        self.num_notes += 1
        self.store.set(f"note-{self.num_notes}", note)

    def wait(self) -> bytes:
        """Wait for the leader's next note."""
        self.num_notes += 1
        self.store.wait([f"note-{self.num_notes}"])
        return self.store.get(f"note-{self.num_notes}")

    @contextmanager
    def assembled(self) -> Iterator[None]:
        """Connect all processes, as libraries expect it, for as long as the context lasts."""
        from accelerate.state import AcceleratorState

        on_gpus = torch.cuda.is_available()
        os.environ.update(self.variables)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
            store=dist.PrefixStore(f"group-{self.num_notes}", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=WAIT,
        )
        try:
            yield
        finally:
            dist.destroy_process_group()
            for name in self.variables:
                os.environ.pop(name, None)
            AcceleratorState._reset_state(reset_partial_state=True)  # one process, for what comes next


_led: Team | None = None


def run_by_all(command: Callable[[], Any]) -> None:
    """Run a command in the first process of a launcher; the others help in its trainings and return when it ends."""
    team = Team.of_launcher()
    if team.rank:
        follow(team)
        return
    with leading(team):
        command()


@contextmanager
def leading(team: Team) -> Iterator[None]:
    """Let :func:`together` call the others; at the end they are dismissed."""
    global _led
    _led = team
    try:
        yield
    finally:
        if _led is not None:  # else the others are in the middle of a training, and the launcher ends them
            team.tell(END)
            with suppress(RuntimeError):
                team.store.wait([f"ended-{rank}" for rank in range(1, team.size)], FAREWELL)
        _led = None


def follow(team: Team) -> None:
    """Wait for the leader's calls and answer them, until it ends."""
    warnings.simplefilter("ignore")  # the leader has the same ones
    while team.wait() == TRAIN:
        with team.assembled():
            sent: list[Any] = [None]
            dist.broadcast_object_list(sent, src=0)
            do, arguments = cloudpickle.loads(sent[0])
            try:
                do(*arguments)
            except BaseException as error:
                print(f"feedgym: process {team.rank} failed: {error}", file=sys.stderr)
                if not isinstance(error, ValueError):  # of those the leader tells
                    traceback.print_exc()
                os._exit(1)  # without waiting for anybody: the launcher ends the others
            dist.barrier()
    team.store.set(f"ended-{team.rank}", b"")


@contextmanager
def together(do: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Let the other processes call ``do(*arguments)`` while this one does the same inside the context.

    Without a launcher, and in the other processes, it does nothing.
    """
    global _led
    team = _led
    if team is None:
        yield
        return
    team.tell(TRAIN)
    _led = None
    with team.assembled():
        dist.broadcast_object_list([cloudpickle.dumps((do, arguments))], src=0)
        yield
        dist.barrier()
    _led = team

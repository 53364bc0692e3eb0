"""Spreads work over Ray actors: sampling, scoring, true values, judging.

Only this file, sweep/tuning.py and agents/rllib/ import ray. Work is cut into independent tasks: a block of users, or
an agent to judge. A task's random numbers come from its own seed, and every worker computes on one thread. So the
result depends neither on the number or order of actors, nor on whether Ray is used at all.

An actor that is lost, alone or with its machine, loses no result. Its task is done again by another, which is said. A
new actor takes its place as soon as the cluster has room for one; until then the others go on without it. An actor may
have loaded the parts that all tasks share, or not. So each task names their version, and an actor that holds another
one loads them.

Threads may share the actors. They take turns: the actors do the tasks of one call before those of the next.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, chdir, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Event, Lock, get_ident
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.experiments import ray_watch
from feedgym.experiments.idle import IdleTime
from feedgym.experiments.progress import Step, say
from feedgym.protocols import Recommender, SessionReward
from feedgym.ranges import Count, CountOrZero, Few, Ranged, Share

T = TypeVar("T")

DRIVER = "driver"
"""Name of the process that trains, among those that may idle."""
MOST_LOST = 5
"""Most actors that may be lost over one task, or per actor before they work; more are no accident."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(Ranged):
    """Options for spreading sampling and scoring."""

    num_actors: Few = 2
    """Number of Ray actors, one core each. It does not change the result."""
    users_per_task: Count = 16
    """Users in one block; memory grows with it. It changes the result, because users in a block share a generator."""
    tasks_per_shard: Count = 32
    """Number of blocks in a shard, which is kept as a whole. A killed run continues from its last finished shard. It
    does not change the result."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device for sampling and scoring in the rounds. Both devices use the CPU's random numbers, but a GPU rounds
    differently."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the matrix products of sampling and scoring. bfloat16 is faster on GPUs and on processors that have
    it. Log-probabilities are float32 either way, but rounding moves them, by hundredths or more."""
    max_staleness: CountOrZero = 0
    """Age of the snapshot that a round is sampled from, in updates. 0: a round is sampled once the last one has been
    learned from. 1: it is sampled meanwhile, from the snapshot that the last round began with. This saves time if the
    actors have cores of their own. It changes the result, with actors or without."""
    gpus_per_actor: Share = 0.0
    """With cuda, the share of a GPU that Ray reserves for each actor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus_per_actor and self.device != "cuda":
            raise ValueError(
                f"rollouts.gpus_per_actor={self.gpus_per_actor:g} does nothing with device={self.device}; give cuda."
            )

    def precision(self) -> torch.autocast:
        """Context in which models compute with :attr:`dtype`."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16")


class AbandonedError(Exception):
    """Raised in a thread whose work is not needed any more."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one torch thread, as an actor with one core does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def generator_of(seed: tuple[int, ...]) -> torch.Generator:
    """Make a random generator from a tuple of whole numbers."""
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1)
    return torch.Generator().manual_seed(int(state))


def sample_and_score(
    agent: Recommender, reward: SessionReward, n: int, histories: EventBatch, seed: tuple[int, ...]
) -> tuple[SessionBatch, Tensor]:
    """Sample ``n`` sessions per user for one block, with their scores [U, n]."""
    with torch.inference_mode():
        sessions = agent.sample(histories, n, generator_of(seed))
        return sessions, reward(histories, sessions).float()


class Rollouts:
    """A pool of workers. Use as a context manager; Ray starts with the first call, or :meth:`start`, and ends with it.

    Args:
        config: actors and blocks.
        ray: "local" (actors on this machine), "off" (in this process), or the address of a Ray cluster.

    Raises:
        ValueError: nothing answers at the address.

    Attributes:
        idle: how long each actor had no task, and how long the driver waited for actors; empty without Ray. The driver
            is the thread that made the pool.
    """

    def __init__(self, config: RolloutConfig, ray: str = "local") -> None:
        _require_cluster(ray)
        if config.device == "cuda":
            if ray in ("off", "local") and not torch.cuda.is_available():
                raise ValueError("rollouts.device=cuda, but torch finds no GPU on this machine; use cpu.")
            if ray != "off" and not config.gpus_per_actor:
                raise ValueError(
                    "rollouts.device=cuda gives Ray's actors no GPU; set rollouts.gpus_per_actor, say 0.5."
                )
        self.config, self.ray = config, ray
        self._actors: list[Any] = []
        self._open = ExitStack()
        self._version = 0
        self._turn, self._abandoned, self._driver = Lock(), Event(), get_ident()
        self._names = [f"worker {number}" for number in range(1, config.num_actors + 1)]
        self.idle = IdleTime() if ray == "off" else IdleTime(idle=self._names, busy=[DRIVER])

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, *exc: object) -> None:
        self._actors = []
        self._open.close()

    def __call__(
        self,
        agent: Recommender,
        reward: SessionReward,
        histories: EventBatch,
        n: int,
        seed: tuple[int, ...],
        step: Step | None = None,
        *,
        first_user: int = 0,
    ) -> tuple[SessionBatch, Tensor]:
        """Sample ``n`` sessions for each user, and score them.

        Args:
            agent: samples the sessions.
            reward: scores them.
            histories: histories of U users.
            n: sessions per user.
            seed: seed of the random numbers, together with the block's number.
            step: progress callback, called with (blocks done, blocks).
            first_user: number of the first user, if these users are a part of more; only whole blocks come before.

        Returns:
            The sessions [U, n, K] and the scores, float32 [U, n].
        """
        size = self.config.users_per_task
        lows = range(0, len(histories), size)
        blocks = [(histories.rows(slice(low, low + size)), (*seed, (first_user + low) // size)) for low in lows]
        done = self.map(sample_and_score, (agent, reward, n), blocks, step)
        return SessionBatch.cat([sessions for sessions, _ in done]), torch.cat([scores for _, scores in done])

    def map(
        self, do: Callable[..., T], shared: tuple[Any, ...], tasks: Sequence[Any], step: Step | None = None
    ) -> list[T]:
        """Compute ``do(*shared, *task)`` for all tasks; results are in the order of the tasks.

        Args:
            do: a function of a module; it computes on one thread.
            shared: arguments that all tasks share; they are sent to each actor once.
            tasks: the other arguments, a tuple per task.
            step: progress callback, called with (tasks done, tasks).
        """
        answers: dict[int, T] = {}
        with ExitStack() as stack:
            run = self._in_process
            if self.ray != "off":
                stack.enter_context(self.waited_for())
                stack.enter_context(self._turn)
                run = self._on_actors
            for number, answer in run(do, shared, tasks):
                answers[number] = answer
                if step is not None:
                    step(len(answers), len(tasks))
        return [answers[number] for number in range(len(tasks))]

    def waited_for(self) -> AbstractContextManager[None]:
        """Count the time of a context as idle time of the driver, if this is its thread."""
        return self.idle.during(DRIVER) if get_ident() == self._driver else nullcontext()

    @contextmanager
    def abandoned(self) -> Iterator[None]:
        """Make calls in other threads end soon, by an :class:`AbandonedError`, for as long as the context lasts."""
        self._abandoned.set()
        try:
            yield
        finally:
            self._abandoned.clear()

    def _in_process(
        self, do: Callable[..., T], shared: tuple[Any, ...], tasks: Sequence[Any]
    ) -> Iterator[tuple[int, T]]:
        shared = on_device(shared, self.config.device)
        for number, task in enumerate(tasks):
            with one_thread(), self.config.precision():
                answer = do(*shared, *task)
            yield number, answer

    def _on_actors(
        self, do: Callable[..., T], shared: tuple[Any, ...], tasks: Sequence[Any]
    ) -> Iterator[tuple[int, T]]:
        self._start()
        import ray

        self._version += 1
        sent = ray.put((do, shared))
        waiting, left = list(range(len(tasks)))[::-1], len(tasks)
        idle: list[Any] = []
        lost: Counter[int | None] = Counter()
        # What each actor does: a task, or None until it says that it is there. An actor for which the cluster has no
        # room says nothing, and must not get a task.
        running: dict[Any, tuple[Any, int | None]] = {actor.ready.remote(): (actor, None) for actor in self._actors}
        while left:  # a window of one task per actor: nothing is queued, nothing is pulled early
            if self._abandoned.is_set():
                raise AbandonedError
            while waiting and idle:
                number, actor = waiting.pop(), idle.pop()
                running[actor.run.remote(self._version, [sent], tasks[number])] = (actor, number)
                self.idle.ends(self._name(actor))
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, doing = running.pop(done)
            self.idle.begins(self._name(actor))
            try:
                answer = ray.get(done)
            except ray.exceptions.RayTaskError:  # an error of the task itself
                raise
            except ray.exceptions.RayError as error:
                lost[doing] += 1
                self._check_lost(lost[doing], doing, error)
                new = self._replaced(actor)
                running[new.ready.remote()] = (new, None)
                if doing is not None:
                    say(f"[yellow]A worker was lost.[/] Done again by another: task {doing + 1} of {len(tasks)}.")
                    waiting.append(doing)
                continue
            idle.append(actor)
            if doing is not None:
                left -= 1
                yield doing, answer

    def start(self, do: Callable[..., Any]) -> None:
        """Start Ray and the actors ahead of the first call, unless they run; the actors are not waited for.

        Ray starts only in the main thread, because this process changes its folder for the time being.

        Args:
            do: the function of the first call. Meanwhile the actors import all that its module imports.
        """
        if self.ray != "off" and not self._actors:
            self._start()
            for actor in self._actors:
                actor.ready.remote(do)

    def _start(self) -> None:
        """Start Ray and the actors, unless they run."""
        if not self._actors:
            self._open.enter_context(ray_running(self.ray))
            self._actors = [self._new_actor() for _ in range(self.config.num_actors)]

    def _name(self, actor: Any) -> str:
        return self._names[self._actors.index(actor)]

    def _new_actor(self) -> Any:
        import ray

        # Ray itself restarts nothing: it would wait with the task until there is room for the actor.
        actor = ray.remote(num_cpus=1, num_gpus=self.config.gpus_per_actor, max_restarts=0)(Worker)
        return actor.remote(self.config)

    def _replaced(self, actor: Any) -> Any:
        """Forget an actor, and ask for another in its place."""
        import ray

        ray.kill(actor)  # if it lives and is only out of reach, it must not keep its core
        self._actors[self._actors.index(actor)] = new = self._new_actor()
        return new

    def _check_lost(self, times: int, doing: int | None, error: Exception) -> None:
        """Refuse to go on if actors are lost repeatedly."""
        if times <= MOST_LOST * (1 if doing is not None else self.config.num_actors):
            return
        said = " ".join(str(error).split())[:300]
        if doing is None:
            raise ValueError(f"{times} workers were lost before they did anything, the last of them thus: {said}")
        raise ValueError(
            f"Task {doing + 1} has cost {times} workers, perhaps for lack of memory; lower rollouts.users_per_task or "
            f"rollouts.num_actors. The last of them was lost thus: {said}"
        )


class Worker:
    """Works inside a Ray actor."""

    def __init__(self, config: RolloutConfig) -> None:
        torch.set_num_threads(1)
        self._config = config
        self._version: int | None = None
        self._shared: Any = None

    def ready(self, do: Callable[..., Any] | None = None) -> None:
        """Say that this actor is there, with the module of ``do`` imported."""

    def run(self, version: int, sent: list[Any], task: tuple[Any, ...]) -> Any:
        """Run one task; ``sent`` is a list, so that Ray passes the reference in it and not its content."""
        if version != self._version:
            import ray

            do, shared = ray.get(sent[0])
            self._shared, self._version = (do, on_device(shared, self._config.device)), version
        do, shared = self._shared
        with self._config.precision():
            return do(*shared, *task)


def on_device(shared: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """Move the shared agents and rewards to a device if they can be moved; results come back on the CPU."""
    return tuple(one.to(device) if device != "cpu" and hasattr(one, "to") else one for one in shared)


@contextmanager
def ray_running(address: str = "local") -> Iterator[Any]:
    """Run Ray, quietly, for as long as the context lasts; a Ray that was running before stays unchanged.

    A cluster of our own ("local") listens only on the loopback address, requires a token that only its own processes
    know, and has no dashboard. It ends with this process, even if that is killed. Any other cluster keeps its settings.

    Args:
        address: "local" or the address of a cluster.
    """
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_AUTO_CONNECT", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")  # the second: never start another cluster without our knowledge
    if address == "local":
        if "ray" not in sys.modules:  # it reads the mode when it is imported
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    with ExitStack() as stack:
        if address == "local":
            _start_local(ray, stack, **quiet)
        else:
            ray.init(address=address, **quiet)
        stack.callback(ray.shutdown)
        yield ray


def _start_local(ray: Any, stack: ExitStack, **options: Any) -> None:
    """Start a cluster of our own; its leftovers are killed when the stack is closed or this process is gone."""
    watch = subprocess.Popen(
        [sys.executable, "-P", ray_watch.__file__, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that Ctrl-C and a closed terminal do not reach it
    )
    stack.callback(watch.communicate)  # closes its input and waits for its end
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # loopback, as Ray has it on macOS and Windows
    # Ray puts the current folder first on its workers' path: allow this only if it is on ours.
    with nullcontext() if {"", os.getcwd()} & set(sys.path) else chdir(sys.prefix):
        ray.init(address="local", include_dashboard=False, **options)


def _require_cluster(address: str) -> None:
    """Report a closed port at once; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto": Ray finds the cluster of this machine, or says at once that there is none
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ValueError(
            f"No Ray cluster answers at {address!r} ({error}); use --ray local, or run `ray start --head`."
        ) from error

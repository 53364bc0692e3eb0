"""Sampling and scoring sessions, spread over Ray actors (the only file besides agents/rllib/ that imports ray).

Users are cut into blocks of fixed size; a block's luck is a generator seeded by (seed, block number), and every worker
computes on one thread. So the answer depends neither on the number of actors, nor on their order, nor on whether Ray is
used at all. An actor that dies is restarted by Ray and its block is done again; what it had loaded is gone with it, so
every task names the agent's version and the actor loads it anew when it holds another.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.experiments import ray_watch
from feedgym.experiments.progress import Step
from feedgym.protocols import Recommender, SessionReward
from feedgym.ranges import Count, Few, Ranged


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(Ranged):
    """How sampling and scoring are spread."""

    num_actors: Few = 2
    """Ray actors, one core each. The answer does not depend on it."""
    users_per_task: Count = 16
    """Users in one block; memory grows with it. The answer depends on it, as it decides who shares a generator."""


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
    """Random numbers that a tuple of whole numbers decides."""
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1)
    return torch.Generator().manual_seed(int(state))


def sample_and_score(
    agent: Recommender, reward: SessionReward, histories: EventBatch, n: int, seed: tuple[int, ...]
) -> tuple[SessionBatch, Tensor]:
    """One block: ``n`` sessions a user and their scores [U, n]."""
    with torch.inference_mode():
        sessions = agent.sample(histories, n, generator_of(seed))
        return sessions, reward(histories, sessions)


class Rollouts:
    """A pool that samples and scores. Use as a context manager; Ray starts with the first call and ends with it.

    Args:
        config: actors and blocks.
        ray: "local" (actors on this machine), "off" (in this process), or the address of a Ray cluster.

    Raises:
        ValueError: nothing answers at the address.
    """

    def __init__(self, config: RolloutConfig, ray: str = "local") -> None:
        _require_cluster(ray)
        self.config, self.ray = config, ray
        self._actors: list[Any] = []
        self._open = ExitStack()
        self._version = 0

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
    ) -> tuple[SessionBatch, Tensor]:
        """``n`` sampled sessions for each user and their scores.

        Args:
            agent: samples the sessions.
            reward: scores them.
            histories: of U users.
            n: sessions a user.
            seed: decides the luck, with the block's number.
            step: progress callback, called with (blocks done, blocks).

        Returns:
            The sessions [U, n, K] and the scores, float32 [U, n].
        """
        size = self.config.users_per_task
        blocks = [histories.rows(slice(low, low + size)) for low in range(0, len(histories), size)]
        run = self._in_process if self.ray == "off" else self._on_actors
        results: dict[int, tuple[SessionBatch, Tensor]] = {}
        for number, result in run(agent, reward, blocks, n, seed):
            results[number] = result
            if step is not None:
                step(len(results), len(blocks))
        ordered = [results[number] for number in range(len(blocks))]
        return SessionBatch.cat([sessions for sessions, _ in ordered]), torch.cat([scores for _, scores in ordered])

    def _in_process(self, agent, reward, blocks, n, seed):
        with one_thread():
            for number, block in enumerate(blocks):
                yield number, sample_and_score(agent, reward, block, n, (*seed, number))

    def _on_actors(self, agent, reward, blocks, n, seed):
        import ray

        actors = self._start()
        self._version += 1
        models = ray.put((agent, reward))
        waiting = list(enumerate(blocks))[::-1]
        idle = list(actors)
        running: dict[Any, tuple[int, Any]] = {}
        while waiting or running:  # a window of one task an actor: nothing is queued, nothing is pulled early
            while waiting and idle:
                number, block = waiting.pop()
                actor = idle.pop()
                task = actor.run.remote(self._version, [models], block, n, (*seed, number))
                running[task] = (number, actor)
            (task,), _ = ray.wait(list(running), num_returns=1)
            number, actor = running.pop(task)
            idle.append(actor)
            yield number, ray.get(task)

    def _start(self) -> list[Any]:
        if not self._actors:
            ray = self._open.enter_context(ray_running(self.ray))
            actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=5)(Worker)
            self._actors = [actor.remote() for _ in range(self.config.num_actors)]
        return self._actors


class Worker:
    """What runs inside a Ray actor."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._version: int | None = None
        self._models: Any = None

    def run(
        self, version: int, models: list[Any], histories: EventBatch, n: int, seed: tuple[int, ...]
    ) -> tuple[SessionBatch, Tensor]:
        """One block; ``models`` is a list, so that Ray hands over the reference in it and not its content."""
        if version != self._version:
            import ray

            self._models, self._version = ray.get(models[0]), version
        agent, reward = self._models
        return sample_and_score(agent, reward, histories, n, seed)

    def pid(self) -> int:
        """The actor's process id."""
        return os.getpid()


@contextmanager
def ray_running(address: str = "local") -> Iterator[Any]:
    """Ray, quiet, for as long as the context lasts; if it was running before, it stays as it is.

    A cluster of our own ("local") listens on the loopback address alone, asks for a token that only its own processes
    know, has no dashboard, and ends with this process, even if that is killed. Any other cluster keeps its settings.

    Args:
        address: "local" or the address of a cluster.
    """
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_AUTO_CONNECT", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")  # the second: never start another cluster behind our back
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
    """A cluster of our own; what is left of it when the stack is closed or this process is gone is killed."""
    watch = subprocess.Popen(
        [sys.executable, "-P", ray_watch.__file__, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C and a closed terminal are not for it
    )
    stack.callback(watch.communicate)  # closes its input and waits for its end
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # loopback, as Ray has it on macOS and Windows
    # Ray puts the current folder first on its workers' path: only where it is on ours.
    with nullcontext() if {"", os.getcwd()} & set(sys.path) else chdir(sys.prefix):
        ray.init(address="local", include_dashboard=False, **options)


def _require_cluster(address: str) -> None:
    """Ray itself tries for minutes; a closed port is told at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto": Ray finds the cluster of this machine, or says at once that there is none
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ValueError(
            f"No Ray cluster answers at {address!r} ({error}); use --ray local, or run `ray start --head`."
        ) from error

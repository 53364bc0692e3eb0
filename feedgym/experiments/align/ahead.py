"""Samples rounds ahead of the one that is trained on, from snapshots that are some updates old.

Round t is sampled from the snapshot that entered round t - S, where S is ``--rollouts.max-staleness``; the first rounds
are sampled from the base. That snapshot exists before the update of round t - S begins. So Ray's actors sample the next
S rounds while this process trains. Which snapshot that is depends only on t and S, never on the time that anything
takes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.progress import progress
from feedgym.experiments.rollouts import Rollouts, sample_and_score

Sampling = Callable[[], Any]
"""Samples one round. It may run in another thread."""


class Ahead:
    """Gives the sessions of one round after the other, while later ones are sampled. Use as a context manager.

    Args:
        config: the experiment. Without staleness or actors, a round is sampled when it is asked for.
        workers: sample the sessions.
    """

    def __init__(self, config: AlignConfig, workers: Rollouts) -> None:
        self._staleness, self._num_rounds = config.rollouts.max_staleness, config.rounds.num
        self._in_turn = not self._staleness or config.ray == "off"
        self._workers = workers
        self._thread = ThreadPoolExecutor(1)  # it starts with the first round that is sampled ahead
        self._begun: list[Future[Any]] = []

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __call__(self, t: int, sampling: Callable[[int], Sampling]) -> Any:
        """Round t's sessions; ask for the rounds in order.

        Args:
            t: the round's number.
            sampling: prepares the sampling of a round by its number. It is called in this thread, for the rounds up to
                t + S that have not begun.
        """
        if self._in_turn:
            return sampling(t)()
        self._workers.start(sample_and_score)
        for later in range(len(self._begun), min(t + self._staleness + 1, self._num_rounds)):
            self._begun.append(self._thread.submit(sampling(later)))
        with progress(f"Round {t}: waiting for its sessions"), self._workers.waited_for():
            return self._begun[t].result()

    def stop(self) -> None:
        """Give up the rounds that are being sampled; the stage of each keeps its finished shards."""
        with self._workers.abandoned():
            self._thread.shutdown(cancel_futures=True)

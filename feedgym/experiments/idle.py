"""Measures how long workers idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class IdleTime:
    """Measures the share of the time in which each of some workers had nothing to do. Threads may share it.

    Args:
        idle: names of workers that have nothing to do at first.
        busy: names of workers that work at first.
        clock: tells the time in seconds.
    """

    def __init__(
        self, idle: Iterable[str] = (), busy: Iterable[str] = (), clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._began_s = clock()
        self._since_s = dict.fromkeys(idle, self._began_s)
        """Since when each worker has had nothing to do; only of those that have nothing to do now."""
        self._idle_s = dict.fromkeys((*busy, *self._since_s), 0.0)

    def begins(self, name: str) -> None:
        """Note that a worker has nothing to do from now on."""
        with self._lock:
            self._since_s.setdefault(name, self._clock())

    def ends(self, name: str) -> None:
        """Note that a worker has something to do from now on."""
        with self._lock:
            if name in self._since_s:
                self._idle_s[name] += self._clock() - self._since_s.pop(name)

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Note that a worker has nothing to do for as long as the context lasts."""
        self.begins(name)
        try:
            yield
        finally:
            self.ends(name)

    def read(self) -> dict[str, float]:
        """Tell the ``seconds`` since the last reading, and the share of them that each worker idled.

        It is empty if there are no workers.
        """
        with self._lock:
            now_s = self._clock()
            for name, since_s in self._since_s.items():
                self._idle_s[name] += now_s - since_s
            seconds = now_s - self._began_s
            shares = {name: min(1.0, idle_s / seconds) if seconds else 0.0 for name, idle_s in self._idle_s.items()}
            self._began_s = now_s
            self._since_s = dict.fromkeys(self._since_s, now_s)
            self._idle_s = dict.fromkeys(self._idle_s, 0.0)
        return {"seconds": seconds, **shares} if shares else {}

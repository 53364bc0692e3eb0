"""Logged sessions as requests, each with the history that was known when it was requested.

Histories are built from the log as they are asked for. A history takes some 30 bytes until then, and 45 bytes an event
after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from feedgym.data.batches import EventBatch, Histories
from feedgym.data.events import Catalog, EventLog, LoggedSessions
from feedgym.data.sessions import LoggedHistories

LogAndItems = tuple[EventLog, Catalog]
"""A log and its items."""


class LazyHistories:
    """Histories of N requests to one or several logs, built as they are asked for.

    Args:
        logs: histories of the requests to each log, of equal length.
        idx_N: the N requests, rows of all of them in turn; all in their order if left out.
    """

    def __init__(self, logs: Sequence[LoggedHistories], idx_N: NDArray[np.int64] | None = None) -> None:
        self.logs = tuple(logs)
        self._first = np.cumsum([0, *map(len, logs)])
        self.idx_N = np.arange(self._first[-1]) if idx_N is None else idx_N

    def __len__(self) -> int:
        return len(self.idx_N)

    @property
    def length(self) -> int:
        """T."""
        return self.logs[0].length

    @property
    def lengths_N(self) -> torch.Tensor:
        """Events of each history."""
        return torch.cat([log.lengths_N for log in self.logs])[torch.from_numpy(self.idx_N)]

    @property
    def profile_UF(self) -> torch.Tensor:
        """The users' profile fields."""
        profiles = [histories.log.profile_UF[histories.user_idx_N] for histories in self.logs]
        return torch.from_numpy(np.concatenate(profiles)[self.idx_N].astype(np.int64))

    def at(self, idx: Any) -> LazyHistories:
        """The histories at ``idx`` (slice, index or boolean array or tensor), still to be built."""
        return LazyHistories(self.logs, self.idx_N[idx if isinstance(idx, slice) else np.asarray(idx)])

    def rows(self, idx: Any) -> EventBatch:
        """The histories at ``idx``, built."""
        some = self.at(idx).idx_N
        if len(self.logs) == 1:
            return self.logs[0].rows(some)
        log_N = np.searchsorted(self._first, some, side="right") - 1
        places = [np.flatnonzero(log_N == number) for number in range(len(self.logs))]
        built = [log.rows(some[at] - low) for log, at, low in zip(self.logs, places, self._first, strict=False)]
        return type(built[0]).cat(built).rows(torch.from_numpy(np.concatenate(places).argsort()))

    def followed_by(self, others: LazyHistories) -> LazyHistories:
        """These histories and then the others."""
        return LazyHistories((*self.logs, *others.logs), np.concatenate([self.idx_N, self._first[-1] + others.idx_N]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Requests:
    """Logged sessions with what was known when they were requested, row by row.

    Attributes:
        sessions: N sessions.
        histories: N histories; those of :meth:`of` are built as they are asked for.
        targets_NK: int64 items the user examined, -1 after the last one.
    """

    sessions: LoggedSessions
    histories: Histories
    targets_NK: torch.Tensor

    @classmethod
    def of(
        cls, data: LogAndItems, sessions: LoggedSessions, length: int, *, dated: bool = False, memory: int = 0
    ) -> Requests:
        """The requests that led to logged sessions, with histories of ``length`` events.

        On demand they are dated and know ``memory`` earlier items (:func:`feedgym.data.sessions.histories`).
        """
        log, catalog = data
        whose = sessions.user_idx_N, sessions.row_N, sessions.start_s_N
        lazy = LazyHistories([LoggedHistories(log, catalog, *whose, length, dated=dated, memory=memory)])
        targets_NK = np.where(sessions.examined_NK, sessions.item_ids_NK, -1).astype(np.int64)
        return cls(sessions=sessions, histories=lazy, targets_NK=torch.from_numpy(targets_NK))

    def rows(self, idx: NDArray) -> Requests:
        """The requests at ``idx``, an index or a boolean array."""
        rows = torch.from_numpy(np.arange(len(self))[idx])
        return Requests(
            sessions=self.sessions.rows(idx), histories=self.histories.at(rows), targets_NK=self.targets_NK[rows]
        )

    def followed_by(self, others: Requests) -> Requests:
        """These requests followed by those of other users, whose numbers continue after this one's last user."""
        first = int(self.sessions.user_idx_N.max(initial=-1)) + 1
        later = replace(others.sessions, user_idx_N=others.sessions.user_idx_N + first)
        columns = {f.name: [getattr(part, f.name) for part in (self.sessions, later)] for f in fields(LoggedSessions)}
        return Requests(
            sessions=LoggedSessions(**{name: np.concatenate(parts) for name, parts in columns.items()}),
            histories=self.histories.followed_by(others.histories),  # type: ignore[attr-defined]  # both are lazy
            targets_NK=torch.cat([self.targets_NK, others.targets_NK]),
        )

    def __len__(self) -> int:
        return len(self.targets_NK)


def last_requests(requests: Requests) -> Requests:
    """Each user's last session (requests are sorted by user and time)."""
    user = requests.sessions.user_idx_N
    return requests.rows(np.append(user[1:] != user[:-1], True))

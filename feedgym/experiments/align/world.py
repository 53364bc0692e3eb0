"""Where an experiment's log comes from and who judges its agents: simulated users, or a recorded log.

A world answers four questions: ``collect`` (the log), ``requests`` (which logged sessions to imitate and which to
rate), ``true_value`` (what sessions are worth to their users, if anyone knows) and ``judge`` (the final comparison).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from feedgym.data.content import default_cutoff_s
from feedgym.data.events import BEHAVIOUR_IDX, Catalog, EventLog
from feedgym.data.requests import LogAndItems, Requests, last_requests
from feedgym.data.sessions import (
    POSITIVE,
    logged_sessions,
    positive_sessions,
    quality_filter,
    user_of_rows,
)
from feedgym.data.splits import keep_events, split_time, split_users, until
from feedgym.envs.history import has_arrivals
from feedgym.envs.luck import user_seeds
from feedgym.envs.replay import states_at
from feedgym.envs.truth import true_value
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.evaluate import judge_offline, judge_online
from feedgym.experiments.logs import data_path, plan_log, recorded_log, simulated_log, simulator_of, users_key
from feedgym.experiments.progress import Step
from feedgym.experiments.run import Plan
from feedgym.experiments.serve import session_diversity
from feedgym.plugins import title_of
from feedgym.protocols import Recommender, SessionReward, take_users

HELD_OUT = 0.1
"""Share of the users, or of the sessions by time, that no model is trained on."""

TRUTH_USERS = 25
"""Users whose sessions are valued between two steps of the progress bar."""


def plan_world(plan: Plan, config: AlignConfig) -> str:
    """The stage of an alignment's log."""
    simulated = [users_key(config, config.seed), config.log, config.session_length, config.seed]
    return plan_log(plan, config, simulated, "simulator", "simulator_options")


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
    """

    log: EventLog
    known: EventLog
    catalog: Catalog
    imitate: Requests
    rate: Requests
    unseen: Requests
    unseen_good: Requests

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

    def draw_users(self, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
        """Rows of ``imitate``: one session each of a share of its users, in random order."""
        shuffled = rng.permutation(len(self.imitate))
        _, first = np.unique(self.imitate.sessions.user_idx_N[shuffled], return_index=True)
        wanted = max(1, round(share * len(first)))
        return shuffled[rng.permutation(first)[:wanted]]

    @property
    def profile_sizes(self) -> tuple[int, ...]:
        """Cardinalities of the users' profile fields."""
        return self.log.profile_sizes

    def diversity(self, item_ids_XK: NDArray) -> NDArray[np.float64]:
        """Mean cosine distance between the contents of a session's items, [...] for sessions [..., K]."""
        return session_diversity(self.catalog, item_ids_XK)


def _cut_s(log: EventLog, good: Requests) -> float:
    """The moment behind which the last tenth of the sessions begin; embeddings learned from nothing after it."""
    if not log.has_time:
        raise ValueError("The log knows the order of events only, so no moment cuts it; choose --split users.")
    late = split_time(good.sessions, validation=0.0, held_out=HELD_OUT).held_out_N
    if not late.any():
        raise ValueError("No logged session is left to judge agents with; give a longer log or choose --split users.")
    return max(float(good.sessions.start_s_N[late].min()), default_cutoff_s(log))


def _what(config: AlignConfig) -> str:
    """The agent and how it is aligned, in two words."""
    return f"{title_of('model', config.model)} + {title_of('method', config.method)}"


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

    def true_value(self, pool: Pool, row_U: NDArray, sessions_USK: NDArray, step: Step) -> NDArray | None:
        """What sessions are truly worth to the users of rows of ``pool.imitate`` [U, S]; None if nobody knows."""
        ...

    def judge(self, agents: dict[str, Recommender], reward: SessionReward, pool: Pool) -> dict[str, Any]:
        """The final comparison: parts of ``summary.json``."""
        ...


class Simulated:
    """Simulated users leave the log, know what sessions are worth, and fresh ones judge."""

    note = "The truth is what simulated users really did; the reward model saw the log alone."

    def __init__(self, config: AlignConfig, trust: bool = False) -> None:
        self.config = config
        self.simulator = simulator_of(config, config.seed, trust)
        self.title = f"{_what(config)} on {type(self.simulator).__name__}, simulated users"

    def collect(self, work: Path) -> LogAndItems:
        """The users' visits under the production system."""
        config = self.config
        return simulated_log(self.simulator, config.log, config.session_length, config.seed)

    def requests(self, data: LogAndItems) -> tuple[Requests, Requests]:
        """All visits for the reward model, and those that pass the filter to imitate; dated where items come and go."""
        sessions = logged_sessions(data[0], self.config.session_length)
        told = {"dated": has_arrivals(self.simulator), "memory": self.config.memory}
        every = Requests.of(data, sessions, self.config.history_length, **told)
        return every.rows(quality_filter(every.sessions, self.config.sessions)), every

    def true_value(self, pool: Pool, row_U: NDArray, sessions_USK: NDArray, step: Step) -> NDArray[np.float32]:
        """Asks copies of the users, brought by a replay of the log to the moment of the request."""
        config = self.config
        state = states_at(self.simulator, pool.log, pool.imitate.sessions.rows(row_U), config.seed)
        values = []
        for low in range(0, len(row_U), TRUTH_USERS):
            users = take_users(state, np.arange(low, min(low + TRUTH_USERS, len(row_U))))
            values.append(
                true_value(
                    self.simulator,
                    users,
                    sessions_USK[low : low + TRUTH_USERS],
                    weights=config.weights,
                    replicas=config.rounds.truth_replicas,
                )
            )
            step(min(low + TRUTH_USERS, len(row_U)), len(row_U))
        return np.concatenate(values)

    def judge(self, agents: dict[str, Recommender], reward: SessionReward, pool: Pool) -> dict[str, Any]:
        """Serves fresh users, the same for every agent and with the same luck."""
        config = self.config
        seeds_U = user_seeds(config.judge.users, config.seed + config.judge.seed, "judge")
        return judge_online(self.simulator, agents, reward, pool.log, seeds_U, config)


class Recorded:
    """A real log: what its users really wanted is not known, so the judge is what they did next."""

    note = (
        "A recorded log holds no simulator truth: the reward model's scores below are its opinion, and the offline "
        "figures say only how well an agent foretells what users of the old system did."
    )

    def __init__(self, config: AlignConfig) -> None:
        self.config = config
        self.title = f"{_what(config)} on the log {data_path(config).name}"

    def collect(self, work: Path) -> LogAndItems:
        """Reads the data; the run folder keeps its own copy."""
        return recorded_log(self.config)

    def requests(self, data: LogAndItems) -> tuple[Requests, Requests]:
        """Windows of positive exposures to imitate; windows of whatever was seen for the reward model.

        A click is no sign of liking where the log has a stronger one; where it has not, clicks are what there is.
        """
        length, history = self.config.session_length, self.config.history_length
        log = data[0]
        signs = tuple(name for name in POSITIVE if log.behaviours[log.examined, BEHAVIOUR_IDX[name]].any())
        positive = positive_sessions(log, length, behaviours=signs or ("click",), min_items=min(2, length))
        parts = (positive, logged_sessions(data[0], length))
        imitate, rate = (Requests.of(data, part, history, memory=self.config.memory) for part in parts)
        return imitate, rate

    def true_value(self, pool: Pool, row_U: NDArray, sessions_USK: NDArray, step: Step) -> None:
        """Nobody knows."""
        return

    def judge(self, agents: dict[str, Recommender], reward: SessionReward, pool: Pool) -> dict[str, Any]:
        """Held-out last sessions: who foretells them, and what the reward model thinks."""
        requests = last_requests(pool.unseen_good)
        users, when = f"{len(requests):,} held-out users", "next"
        if self.config.split == "time":
            users, when = f"{len(requests):,} users", "after the moment at which training ends"
        judged_by = f"what {users} watched {when}"
        return judge_offline(agents, reward, pool.catalog, requests, self.config, judged_by)


def world_of(config: AlignConfig, trust: bool = False) -> World:
    """The world an experiment lives in; ``trust`` as for :func:`feedgym.envs.feed.make_simulator`."""
    return Recorded(config) if config.data is not None else Simulated(config, trust)

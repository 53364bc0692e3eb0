"""Chooses the users to serve in a cycle, and the sessions to learn from.

The users who begin in a cycle are one population, the same for every learner. Users who return are first served their
whole past once more, with the same responses, and then continue. So a population's record always begins with its first
visit, and a later record replaces the earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from feedgym.agents.baselines import RandomRecommender
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import Catalog, EventLog
from feedgym.data.requests import Requests
from feedgym.envs.luck import user_seeds
from feedgym.envs.replay import served_visits
from feedgym.experiments.align.pool import Pool, Source, World
from feedgym.experiments.cycles.presets import CyclesConfig
from feedgym.experiments.progress import Step
from feedgym.experiments.records import RECORDS
from feedgym.experiments.run import Codec
from feedgym.experiments.serve import ServingRecord, serve, told_agents
from feedgym.protocols import Recommender, UserSimulator

EXPLORING = 0x6578706C
"""Salt for choosing the visits that are served at random."""

Served = Mapping[int, ServingRecord]
"""The records of the populations, by the cycle in which they began."""


def group_of(cycle: int) -> str:
    """Name of the population that begins in a cycle."""
    return f"cycle-{cycle}"


def serve_cycle(
    config: CyclesConfig, simulator: UserSimulator, agent: Recommender, before: Served, cycle: int, step: Step
) -> dict[int, ServingRecord]:
    """Serve the users of a cycle: the new ones, and those of earlier cycles who still come.

    Args:
        config: the experiment.
        simulator: the users.
        agent: serves them; some visits get random sessions instead, if the configuration asks for it.
        before: records that earlier agents of the same learner served.
        cycle: the number of the cycle, 1 or more.
        step: progress callback, over the populations' visits.

    Returns:
        Records of all populations served, from their first visits on.
    """
    cycles = config.cycles
    begun = range(max(1, cycle - cycles.stay + 1), cycle + 1)
    served = {}
    for number, first in enumerate(begun):
        past_VUK = slates_of(before[first]) if first < cycle else None
        choose = _Exploring(config, simulator.catalog, agent, (config.seed, EXPLORING, cycle, first))
        served[first] = serve(
            simulator,
            choose,
            None,
            user_seeds(cycles.users, config.seed, group_of(first)),
            **told_agents(config),
            visits=(cycle - first + 1) * cycles.visits,
            past_VUK=past_VUK,
            step=lambda done, total, n=number: step(n * total + done, len(begun) * total),  # type: ignore[misc]
        )
    return served


class _Exploring:
    """Serves an agent's sessions, or random ones at some visits."""

    def __init__(self, config: CyclesConfig, catalog: Catalog, agent: Recommender, seed: tuple[int, ...]) -> None:
        self.agent, self.share, self.rng = agent, config.cycles.explore, np.random.default_rng(seed)
        self.random = RandomRecommender(catalog.num_items, config.session_length, seed=config.seed, catalog=catalog)

    def __call__(self, histories: EventBatch, state: Any) -> SessionBatch:
        sessions = self.agent.recommend(histories)
        if not self.share:
            return sessions
        at_random_U = torch.from_numpy(self.rng.random(len(histories)) < self.share)
        others_USK = self.random.recommend(histories).item_ids_USK
        return replace(
            sessions, item_ids_USK=torch.where(at_random_U[:, None, None], others_USK, sessions.item_ids_USK)
        )


def slates_of(record: ServingRecord) -> NDArray[np.int64]:
    """Slates served to a population, [V, U, K]; -1 if a user had left."""
    assert record.log is not None
    visits, first_U1 = served_visits(record.log)
    visit_N = np.arange(len(visits)) - first_U1[visits.user_idx_N]
    slates_VUK = np.full((*record.by_visit["visits"].shape, visits.item_ids_NK.shape[1]), -1)
    slates_VUK[visit_N, visits.user_idx_N] = visits.item_ids_NK
    return slates_VUK


def cycle_of_rows(log: EventLog, row_N: NDArray, first: int, visits: int) -> NDArray[np.int64]:
    """The cycle in which the visits at rows of a population's log took place."""
    return first + log.session_id[row_N] // visits


def requests_in(served: Served, cycle: int, visits: int) -> int:
    """Requests that the users of a cycle made in it."""
    return sum(int(record.by_visit["visits"][(cycle - first) * visits :].sum()) for first, record in served.items())


# ---------------------------------------------------------------- sessions to learn from


def learned_from(config: CyclesConfig, start: Pool, served: Served, cycle: int, world: World) -> Pool:
    """Make a learner's pool after a cycle: the sessions served in its window, and the log if the window includes it.

    Args:
        config: the experiment.
        start: the log's pool, whose held-out users stay held out.
        served: the learner's latest record of every population.
        cycle: the number of the cycle, 1 or more.
        world: selects the sessions worth imitating.
    """
    window = config.cycles.window
    oldest = cycle - window + 1 if window else 0
    none = slice(0) if oldest > 0 else slice(None)
    pool = replace(start, imitate=start.imitate.rows(none), rate=start.rate.rows(none))  # type: ignore[arg-type]
    parts = {first: _cut(config, record, first, start.catalog, world) for first, record in served.items()}
    sources = []
    for low, high in ((max(oldest, 1), cycle - 1), (cycle, cycle)):
        begins = len(pool.imitate)
        for first, (log, *requests) in parts.items():
            good, every = (part.rows((low <= when_N) & (when_N <= high)) for part, when_N in requests)
            sources.append(Source(log, group_of(first), len(pool.imitate)))
            pool = replace(pool, imitate=pool.imitate.followed_by(good), rate=pool.rate.followed_by(every))
    return replace(pool, served=tuple(sources), earlier=slice(begins), fresh=slice(begins, None))


def _cut(config: CyclesConfig, record: ServingRecord, first: int, catalog: Catalog, world: World) -> Any:
    """A population's log, its sessions worth imitating, and all its sessions; both with the cycles of the sessions."""
    log = record.log
    assert log is not None
    both: tuple[Requests, Requests] = world.requests((log, catalog))
    return log, *((part, cycle_of_rows(log, part.sessions.row_N, first, config.cycles.visits)) for part in both)


SERVED: Codec[Served] = Codec(
    lambda served, folder: RECORDS.save({str(first): record for first, record in served.items()}, folder),
    lambda folder: {int(first): record for first, record in RECORDS.load(folder).items()},
)
"""Codec of populations' records."""

"""Measures the cost of a request: milliseconds, and the arithmetic of matrix products counted by torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import TypedDict

from feedgym.data.batches import EventBatch, Histories
from feedgym.data.requests import LogAndItems, Requests, last_requests
from feedgym.data.sessions import logged_sessions
from feedgym.experiments.configs import CostConfig
from feedgym.experiments.progress import progress
from feedgym.experiments.run import Codec, NumberOrNone, json_of
from feedgym.experiments.serve import JudgedConfig
from feedgym.protocols import Recommender

MS, MFLOP = "cost_ms", "cost_mflop"
"""The figures' names in tables."""

MEASURED_HERE = "The cost of a request is measured on this machine"
"""Reason why no other run may take the stage of the costs from a store."""


class Costs(TypedDict):
    """Product of the stage of the costs, as :func:`costs` makes it."""

    agents: dict[str, dict[str, dict[str, NumberOrNone]]]
    requests: int
    threads: int
    repeats: int


COSTS: Codec[Any] = json_of(Costs)
"""Codec of the costs."""


def costs(agents: Mapping[str, Recommender], histories: Histories, config: CostConfig) -> dict[str, Any]:
    """Measure the cost of a request for each agent, all at the same batch.

    Args:
        agents: agents that need only histories; agents that know the truth have no meaningful cost.
        histories: requests, of which the first ``config.requests`` are the batch.
        config: options for measuring.
    """
    batch = histories.rows(slice(config.requests))
    cost_by_agent = {}
    with progress("Timing requests") as step:
        for done, (name, agent) in enumerate(agents.items()):
            cost_by_agent[name] = cost_of(agent, batch, config.repeats)
            step(done + 1, len(agents))
    threads = torch.get_num_threads()
    return {"agents": cost_by_agent, "requests": len(batch), "threads": threads, "repeats": config.repeats}


def asked(data: LogAndItems, config: JudgedConfig, users: int, *, dated: bool) -> EventBatch:
    """The last requests of a log's first users, to measure costs with."""
    sessions = logged_sessions(data[0], config.session_length)
    first = sessions.rows(sessions.user_idx_N < users)
    every = Requests.of(data, first, config.history_length, dated=dated, memory=config.memory)
    return last_requests(every).histories.rows(slice(None))


def with_costs(judged: Mapping[str, Any], cost: Mapping[str, Any]) -> dict[str, Any]:
    """Add the costs to the agents' figures in a judgement, with the settings of the measurement."""
    agents = {name: metrics | cost["agents"].get(name, {}) for name, metrics in judged["agents"].items()}
    return {**judged, "agents": agents, "cost": cost}


def told(cost: Mapping[str, Any]) -> str:
    """Describe the measurement of the costs in words."""
    return (
        f"Cost per request: batches of {cost['requests']}, {cost['threads']} thread(s), median of {cost['repeats']} "
        "with fastest and slowest; MFLOP count only matrix products."
    )


@torch.inference_mode()
def cost_of(agent: Recommender, histories: EventBatch, repeats: int) -> dict[str, dict[str, float | None]]:
    """Let an agent serve the same batch several times.

    Args:
        agent: the agent; all work of its ``recommend`` is measured.
        histories: the batch; the cost is per row.
        repeats: timed repeats, after a first one that does not count.

    Returns:
        ``cost_ms``: the median over the repeats, with the fastest and the slowest as its ends. ``cost_mflop``: millions
        of floating-point operations in matrix products, which do not depend on the machine. Sorting, exponentials and
        look-ups are not counted, so an agent without a network has 0.
    """
    with FlopCounterMode(display=False) as counter:
        agent.recommend(histories)
    ms = []
    for _ in range(repeats):
        begin = time.perf_counter()
        agent.recommend(histories)
        ms.append(1e3 * (time.perf_counter() - begin) / len(histories))
    flops = counter.get_total_flops() / len(histories)
    return {
        MS: {"mean": statistics.median(ms), "low": min(ms), "high": max(ms)},
        MFLOP: {"mean": flops / 1e6, "low": None, "high": None},
    }

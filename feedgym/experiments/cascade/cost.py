"""What a request costs an agent: measured milliseconds, and the arithmetic of its products counted by torch."""

from __future__ import annotations

import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from feedgym.data.batches import EventBatch
from feedgym.protocols import Recommender

MS, MFLOP = "cost_ms", "cost_mflop"
"""The figures' names in tables."""


@torch.inference_mode()
def cost_of(agent: Recommender, histories: EventBatch, repeats: int) -> dict[str, dict[str, float | None]]:
    """Let an agent serve the same batch again and again.

    Args:
        agent: whose ``recommend`` is measured, with all that it does inside.
        histories: the batch; the cost is a row's.
        repeats: times the clock is taken, after a first time that does not count.

    Returns:
        ``cost_ms``: the median over the repeats, with the fastest and the slowest as its ends. ``cost_mflop``: millions
        of floating-point operations in products of matrices, which do not depend on the machine; sorting, exponentials
        and look-ups are not counted, so an agent without a network has 0.
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

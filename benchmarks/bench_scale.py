"""Memory and speed of one vector environment at full size: 65,536 users at once, 100,000 items.

``python benchmarks/bench_scale.py [ID]``, by default the whole visits of ``feedgym/ShortVideo-v1``. The peak is that of
the process: interpreter, libraries, catalogue, users, observations, infos and actions. Every user is served random
sessions; a user-step is one user's response to one of them. Exits with 1 if the peak is over 4 GB (of 10**9 bytes).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from memory import peak_gb
from rich.console import Console
from rich.table import Table

import feedgym  # noqa: F401  (registers the ids)

USERS, ITEMS, HISTORY = 65_536, 100_000, 50
STEPS = 5
LIMIT_GB = 4.0


def main() -> int:
    """Prints one row per phase; returns 1 if the peak is over the limit."""
    env_id = sys.argv[1] if len(sys.argv) > 1 else "feedgym/ShortVideo-v1"
    table = Table(title=f"{env_id}: {USERS:,} users, {ITEMS:,} items, history of {HISTORY}")
    for header in ("phase", "seconds", "user-steps per second", "peak GB"):
        table.add_column(header, justify="right")

    def timed(phase: str, work: Callable[[], Any], user_steps: int = 0) -> Any:
        begin = time.perf_counter()
        result = work()
        passed = time.perf_counter() - begin
        pace = f"{user_steps / passed:,.0f}" if user_steps else ""
        table.add_row(phase, f"{passed:.1f}", pace, f"{peak_gb():.2f}")
        return result

    env = timed(
        "make",
        lambda: gym.make_vec(
            env_id, USERS, vectorization_mode="vector_entry_point", num_items=ITEMS, history_length=HISTORY
        ),
    )
    timed("reset", lambda: env.reset(seed=0))
    assert env.single_action_space.shape is not None
    rng = np.random.default_rng(0)
    slates = rng.integers(ITEMS, size=(STEPS + 1, USERS, *env.single_action_space.shape))
    timed("first step", lambda: env.step(slates[0]), USERS)

    def more_steps() -> Any:
        for slate in slates[1:]:
            observation, *_ = env.step(slate)
        return observation

    observation = timed(f"{STEPS} steps", more_steps, STEPS * USERS)
    timed("sample the spaces", lambda: (env.action_space.sample(), env.observation_space.sample()))
    console, peak = Console(width=100), peak_gb()
    console.print(table)
    size = sum(column.nbytes for column in observation.values()) / 1e6
    console.print(f"An observation holds {size:.0f} MB. Peak {peak:.2f} GB of {LIMIT_GB:.0f} GB.")
    return int(peak > LIMIT_GB)


if __name__ == "__main__":
    sys.exit(main())

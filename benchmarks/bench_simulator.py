"""Steps per second of the vector environment and of Gymnasium's SyncVectorEnv of single environments in one run.

``python benchmarks/bench_simulator.py [SECONDS]``, seconds per row and side. A step is one user's visit. The ratio
shows the gain from serving all users at once, and unlike the steps it depends little on the machine.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from gymnasium.vector import SyncVectorEnv, VectorEnv
from rich.console import Console
from rich.table import Table

from feedgym.envs.feed import FeedEnv, FeedVectorEnv
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig

NUM_USERS = (1, 16, 128, 1024, 4096)
MAX_SINGLE = 128
"""Most single environments; more take long and are not faster per step."""
SESSION_LENGTH = 10


def steps_per_second(env: VectorEnv, seconds: float) -> float:
    """Visits per second, over about ``seconds`` seconds."""
    env.action_space.seed(0)
    slates_UK = env.action_space.sample()
    env.reset(seed=0)
    env.step(slates_UK)
    begin, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < seconds or steps == 0:
        env.step(slates_UK)
        steps += 1
    return steps * env.num_envs / passed


def main() -> None:
    """Prints a row for each number of users."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.5
    simulator = ShortVideo(ShortVideoConfig())
    kwargs: dict[str, Any] = {"simulator": simulator, "session_length": SESSION_LENGTH}
    table = Table(title=f"Visits of {SESSION_LENGTH} items a second, {simulator.catalog.num_items:,} items")
    for header in ("users", "FeedVectorEnv", "SyncVectorEnv", "ratio"):
        table.add_column(header, justify="right")
    single = 0.0
    for num_users in NUM_USERS:
        many = steps_per_second(FeedVectorEnv(num_users, **kwargs), seconds)
        measured = num_users <= MAX_SINGLE
        if measured:
            single = steps_per_second(SyncVectorEnv([lambda: FeedEnv(**kwargs)] * num_users), seconds)
        shown = f"{single:,.0f}" if measured else f"({single:,.0f})"
        table.add_row(f"{num_users:,}", f"{many:,.0f}", shown, f"{many / single:,.1f}")
    console = Console()
    console.print(table)
    console.print(f"In brackets: as at {MAX_SINGLE} users.")


if __name__ == "__main__":
    main()

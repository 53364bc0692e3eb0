"""Compares the speed of the calibrated users of ShortVideo with that of the plain ones, alternating in one run.

``python benchmarks/bench_calibrated.py [REPEATS]``. A repeat serves the same sessions to both, in the order that the
repeat's number decides. Reported are medians, and the median over repeats of the plain time over the calibrated one.
Times are processor times, so that other programs on the machine matter less.
``respond`` is only the simulator, with users of a short past. ``step`` is a vector environment of the registered ids,
which resets the users who left: the calibrated ones leave a random feed more often.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

import feedgym  # noqa: F401  (registers the ids)
from feedgym.envs.luck import user_seeds
from feedgym.envs.short_video import ShortVideo, ShortVideoCalibrated

NUM_USERS = (64, 1024, 4096)
SESSION_LENGTH, PAST = 10, 3
IDS = ("feedgym/ShortVideo-v1", "feedgym/ShortVideoCalibrated-v1")


def main() -> None:
    """Print a row for each number of users and each way to ask them."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 41
    simulators = (ShortVideo(), ShortVideoCalibrated())
    table = Table(title=f"Visits of {SESSION_LENGTH} items per second, medians of {repeats}")
    for header in ("", "users", "plain", "calibrated", "ratio"):
        table.add_column(header, justify="right" if header else "left")
    for num_users in NUM_USERS:
        rng = np.random.default_rng(0)
        slates_PUK = rng.integers(simulators[0].catalog.num_items, size=(PAST, num_users, SESSION_LENGTH))
        for what, ask in {
            "respond": [_answers(simulator, slates_PUK) for simulator in simulators],
            "step": [_steps(env_id, slates_PUK[-1]) for env_id in IDS],
        }.items():
            seconds_2R = alternating(ask, repeats)
            plain, calibrated = num_users / np.median(seconds_2R, axis=1)
            ratio = np.median(seconds_2R[0] / seconds_2R[1])
            table.add_row(what, f"{num_users:,}", f"{plain:,.0f}", f"{calibrated:,.0f}", f"{ratio:.3f}")
    Console().print(table)


def alternating(ask: list[Callable[[], Any]], repeats: int) -> np.ndarray:
    """Seconds of two sides [2, repeats]; every other repeat begins with the second side."""
    seconds_2R = np.zeros((2, repeats))
    for repeat in range(-2, repeats):  # two to warm up
        for side in (0, 1) if repeat % 2 else (1, 0):
            begin = time.process_time()
            ask[side]()
            seconds_2R[side, repeat] = time.process_time() - begin
    return seconds_2R


def _answers(simulator: ShortVideo, slates_PUK: np.ndarray) -> Callable[[], Any]:
    state = simulator.reset(user_seeds(slates_PUK.shape[1], 0, "bench"))
    for slates_UK in slates_PUK:
        _, state = simulator.respond(state, slates_UK)
    return lambda: simulator.respond(state, slates_PUK[-1])


def _steps(env_id: str, slates_UK: np.ndarray) -> Callable[[], Any]:
    env = gym.make_vec(env_id, len(slates_UK), vectorization_mode="vector_entry_point", horizon=10**6)
    env.reset(seed=0)
    return lambda: env.step(slates_UK)


if __name__ == "__main__":
    main()

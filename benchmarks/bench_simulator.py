"""How many steps a second the simulated users take: compiled, in NumPy, and as another checkout has them.

``python benchmarks/bench_simulator.py [--repeats 5] [--before CHECKOUT] [--recsim VENV] [--out FILE.json]``

All sides run in one process and in turn, each with its own copy of the package: this checkout with numba, without it,
and CHECKOUT if one is given. Seconds are the processor's; figures are medians over the repeats. A step is a visit of
one user, at the request level a request, at the session level a page. Environments count the steps in which a slot gets
its next user, as Gymnasium does. ``--recsim`` adds the steps per second of RecSim's own interest evolution with as many
items, in its own environment (see ``recsim_parity.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from rich.console import Console
from rich.table import Table
from saved import commit_of, machine, save

HERE = Path(__file__).resolve().parent
ITEMS, USERS, SESSION_LENGTH = 10_000, 1024, 10
Step = Callable[[], Any]


class Side:
    """A copy of the package, imported from a checkout with some environment variables."""

    def __init__(self, checkout: Path, **variables: str) -> None:
        self._checkout, self._modules = checkout, {}
        os.environ.update(variables)
        with self.active():
            import feedgym.envs.levels
            import feedgym.envs.short_video  # noqa: F401
        for name in variables:
            del os.environ[name]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes ``feedgym`` mean this copy."""
        others = _taken_out()
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self._checkout))
        try:
            yield
        finally:
            sys.path.pop(0)
            self._modules = _taken_out()
            sys.modules.update(others)


def _taken_out() -> dict[str, Any]:
    names = [name for name in sys.modules if name.split(".")[0] == "feedgym"]
    return {name: sys.modules.pop(name) for name in names}


# ---------------------------------------------------------------- what is measured


def respond(name: str) -> Step:
    """Visits of users with a short past, without an environment."""
    from feedgym.envs import short_video
    from feedgym.envs.luck import user_seeds

    simulator = getattr(short_video, name)()
    state = simulator.reset(user_seeds(USERS, 0, "bench"))
    slates_UK = np.random.default_rng(0).integers(ITEMS, size=(USERS, SESSION_LENGTH))
    for _ in range(3):
        _, state = simulator.respond(state, slates_UK)
    return lambda: simulator.respond(state, slates_UK)


def fresh() -> Step:
    """Fresh users."""
    from feedgym.envs.luck import user_seeds
    from feedgym.envs.short_video import ShortVideo

    simulator, seeds = ShortVideo(), user_seeds(USERS, 0, "bench")
    return lambda: simulator.reset(seeds)


def vector(level: str, num_envs: int = USERS) -> Step:
    """Steps of a vector environment, with users who leave and others who come."""
    from feedgym.envs import feed, levels

    env = getattr(feed if level == "Feed" else levels, f"{level}VectorEnv")(num_envs)
    env.action_space.seed(0)
    slates_UK = env.action_space.sample()
    env.reset(seed=0)
    return lambda: env.step(slates_UK)


def single() -> Step:
    """Steps of one single environment, with its resets."""
    from feedgym.envs.feed import FeedEnv

    env = FeedEnv()
    env.action_space.seed(0)
    slate_K = env.action_space.sample()
    env.reset(seed=0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(slate_K)
        if terminated or truncated:
            env.reset()

    return step


ROWS: dict[str, tuple[Callable[[], Step], int, int]] = {
    "ShortVideo.respond, 1,024 users": (lambda: respond("ShortVideo"), USERS, 3),
    "ShortVideoCalibrated.respond, 1,024 users": (lambda: respond("ShortVideoCalibrated"), USERS, 3),
    "ShortVideo.reset, 1,024 users": (fresh, USERS, 3),
    "vector environment, 1,024 users": (lambda: vector("Feed"), USERS, 10),
    "one single environment": (single, 1, 60),
    "request level, 1,024 users": (lambda: vector("Request"), USERS, 2),
    "session level, 1,024 users": (lambda: vector("Session"), USERS, 3),
    "request level, 64 users": (lambda: vector("Request", 64), 64, 4),
    "session level, 64 users": (lambda: vector("Session", 64), 64, 8),
}
"""What makes a step, the users in it, and the steps of a repeat."""


def rates(sides: dict[str, Side], make: Callable[[], Step], users: int, steps: int, repeats: int) -> np.ndarray:
    """Steps a second [sides, repeats], in turn; the order of the sides is reversed in every other repeat."""
    step_of = {}
    for name, side in sides.items():
        with side.active():
            step_of[name] = make()
            step_of[name]()  # compiles
    seconds = np.zeros((len(sides), repeats))
    for repeat in range(repeats):
        for place in list(range(len(sides)))[:: 1 if repeat % 2 else -1]:
            name = list(sides)[place]
            with sides[name].active():
                begin = time.process_time()
                for _ in range(steps):
                    step_of[name]()
                seconds[place, repeat] = time.process_time() - begin
    return users * steps / seconds


def recsim_rate(venv: Path) -> float:
    """Steps a second of RecSim's interest evolution."""
    sys.path.insert(0, str(HERE))
    from recsim_parity import Job, play_original, recsim_python

    job = Job(family="interest_evolution", policy="speed", horizon=0, num_items=ITEMS, slate_size=3)
    return float(play_original(recsim_python(venv.resolve(), Console(stderr=True)), job)["steps_per_second"])


def command(given: argparse.Namespace) -> str:
    """The command, with the commit of the other checkout instead of its path."""
    words = ["python benchmarks/bench_simulator.py", f"--repeats {given.repeats}"]
    if given.before:
        words.append(f"--before {commit_of(given.before)}")
    return " ".join(words + ["--recsim"] * bool(given.recsim))


def main() -> None:
    """Prints a row for each thing measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--recsim", type=Path, help="a virtual environment for RecSim, made if it is not there")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    given = parser.parse_args()
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # every copy of the package registers the same ids
    sides = {"NumPy": Side(HERE.parent, NUMBA_DISABLE_JIT="1"), "compiled": Side(HERE.parent)}
    if given.before:
        sides = {"before": Side(given.before.resolve()), **sides}
    paces: dict[str, dict[str, float]] = {}
    table = Table(title=f"Steps per CPU second, {ITEMS:,} items, sessions of {SESSION_LENGTH}")
    for header in ("", *sides, *(f"compiled / {name}" for name in sides if name != "compiled")):
        table.add_column(header, justify="right" if header else "left", no_wrap=True)
    for what, (make, users, steps) in ROWS.items():
        rate_SR = rates(sides, make, users, steps, given.repeats)
        pace = paces[what] = dict(zip(sides, np.median(rate_SR, axis=1).tolist(), strict=True))
        ratios = [pace["compiled"] / pace[name] for name in sides if name != "compiled"]
        table.add_row(what, *(f"{rate:,.0f}" for rate in pace.values()), *(f"{ratio:.1f}" for ratio in ratios))
    console = Console(width=140)
    console.print(table)
    if given.recsim:
        paces["vector environment, 1,024 users"]["RecSim"] = recsim = recsim_rate(given.recsim)
        console.print(f"RecSim's own interest evolution: {recsim:,.0f} steps per second")
    about = machine("numpy", "numba")
    console.print(about)
    if given.out:
        save(given.out, command(given), "steps per CPU second", "compiled", paces, about)


if __name__ == "__main__":
    main()

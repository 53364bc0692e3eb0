"""Tests that feedgym's RecSim families equal RecSim: both play the same policies, and distributions are compared.

``python benchmarks/recsim_parity.py [--catalogues 200] [--users 5] [--venv .venv-recsim]`` makes a virtual environment
with the ``recsim`` package and the old pins it needs (Python 3.11 or 3.12, about 200 MB), runs RecSim itself there
(``recsim_original.py``) and the batched simulators here, and exits 1 if a statistic is outside the sampling error.

RecSim runs with ``resample_documents=False``: its candidates are then a fixed catalogue, like ours. Users of one
catalogue are correlated, so the unit of analysis is the catalogue: a side's standard error is the standard deviation of
its catalogues' means over the root of their number, and z compares the two means. In addition to the mean, the shares
of users below each decile of both sides' pooled values are compared in the same way. The table shows the largest of
these z, a Kolmogorov-Smirnov statistic that accounts for catalogues.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from feedgym.envs.feed import FeedVectorEnv
from feedgym.envs.luck import user_seeds
from feedgym.envs.recsim import (
    INTEREST_EVOLUTION_REWARD,
    INTEREST_EXPLORATION_REWARD,
    LONG_TERM_SATISFACTION_REWARD,
    InterestEvolution,
    InterestEvolutionConfig,
    InterestExploration,
    InterestExplorationConfig,
    LongTermSatisfaction,
    LongTermSatisfactionConfig,
)
from feedgym.envs.truth import session_reward

HERE = Path(__file__).parent
PINS = ("numpy==1.26.4", "scipy==1.15.3", "gym==0.26.2", "gin-config==0.5.0", "absl-py==2.5.1", "six==1.17.0")
RECSIM = "recsim==0.2.4"

STATES = {
    "interest_evolution": ("budget, minutes", "mean interest", "mean |interest|"),
    "interest_exploration": ("affinity to topic 0", "affinity to topic 1"),
    "long_term_satisfaction": ("net exposure", "satisfaction"),
}
REWARDS = {
    "interest_evolution": INTEREST_EVOLUTION_REWARD,
    "interest_exploration": INTEREST_EXPLORATION_REWARD,
    "long_term_satisfaction": LONG_TERM_SATISFACTION_REWARD,
}

Played = dict[str, NDArray]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Task of both sides: ``users`` users on each of ``catalogues`` catalogues, up to ``horizon`` steps."""

    family: str
    policy: str
    horizon: int
    sensitivity: float | None = None
    catalogues: int = 200
    users: int = 5
    num_items: int = 20
    slate_size: int = 3
    seed: int = 0
    seconds: float = 3.0


JOBS = [
    Job(family=family, policy=policy, horizon=horizon, sensitivity=sensitivity)
    for family, horizon, sensitivity in (
        ("interest_evolution", 400, None),
        ("interest_exploration", 40, None),
        ("long_term_satisfaction", 60, None),
        ("long_term_satisfaction", 60, 0.3),  # RecSim's own 0.01 hardly lets satisfaction move
    )
    for policy in ("random", "greedy")
]


# ---------------------------------------------------------------- RecSim's side


def recsim_python(folder: Path, console: Console) -> Path:
    """The interpreter of an environment with RecSim, made if needed."""
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists():
        console.print(f"Installing {RECSIM} into {folder} ...")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PINS], check=True)
        subprocess.run([*pip, "--no-deps", RECSIM], check=True)  # without TensorFlow and Dopamine, for agents only
        done.touch()
    return python


def play_original(python: Path, job: Job) -> Played:
    """RecSim's own episodes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "played.npz"
        command = [python, HERE / "recsim_original.py", json.dumps(asdict(job)), out]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"RecSim failed:\n{done.stderr}")
        with np.load(out) as arrays:
            return dict(arrays)


# ---------------------------------------------------------------- our side


def make_simulator(job: Job, catalog_seed: int) -> Any:
    """Our simulator with one catalogue."""
    given: dict[str, Any] = {"num_items": job.num_items, "catalog_seed": catalog_seed}
    if job.family == "interest_evolution":
        return InterestEvolution(InterestEvolutionConfig(**given))
    if job.family == "interest_exploration":
        return InterestExploration(InterestExplorationConfig(**given))
    if job.sensitivity is not None:
        given["sensitivity"] = job.sensitivity
    return LongTermSatisfaction(LongTermSatisfactionConfig(**given))


def greedy_scores(job: Job, simulator: Any, state: Any) -> NDArray:
    """Scores by which the greedy policy ranks the items, [U, I]."""
    if job.family == "interest_evolution":
        return state.interest_UM[:, simulator.catalog.topic_I]
    score_I = simulator.quality_I if job.family == "interest_exploration" else simulator.clickbait_I
    return np.tile(score_I, (job.users, 1))


def state_of(job: Job, simulator: Any, state: Any) -> NDArray:
    """The numbers of ``STATES``, [U, X]."""
    if job.family == "interest_evolution":
        interest_UM = state.interest_UM
        return np.column_stack([state.budget_minutes_U, interest_UM.mean(axis=1), np.abs(interest_UM).mean(axis=1)])
    if job.family == "interest_exploration":
        return state.affinity_UM
    return np.column_stack([state.exposure_U, simulator.satisfaction(state.exposure_U)])


def play_ours(job: Job) -> Played:
    """Our episodes, arrays [catalogues, users, horizon, ...] as from RecSim's side."""
    shape = (job.catalogues, job.users, job.horizon)
    played = {
        "reward": np.zeros(shape),
        "click": np.zeros(shape, bool),
        "topic": np.full(shape, -1),
        "alive": np.zeros(shape, bool),
        "state": np.zeros((*shape, len(STATES[job.family]))),
    }
    for c in range(job.catalogues):
        simulator = make_simulator(job, job.seed + c)
        state = simulator.reset(user_seeds(job.users, job.seed + c, "parity"))
        rng = np.random.default_rng([job.seed + c, 3])
        alive_U = np.ones(job.users, bool)
        for t in range(job.horizon):
            if job.policy == "random":
                slates_UK = rng.permuted(np.tile(np.arange(job.num_items), (job.users, 1)), axis=1)
            else:
                slates_UK = np.argsort(-greedy_scores(job, simulator, state), axis=1, kind="stable")
            slates_UK = slates_UK[:, : job.slate_size]
            response, after = simulator.respond(state, slates_UK)
            click_UK = response.behaviours_UKB[:, :, 0].astype(bool) & alive_U[:, None]
            topic_UK = simulator.catalog.topic_I[slates_UK]
            played["alive"][c, :, t] = alive_U
            played["reward"][c, :, t] = alive_U * session_reward(response, REWARDS[job.family])
            played["click"][c, :, t] = click_UK.any(axis=1)
            played["topic"][c, :, t] = np.where(click_UK, topic_UK, -1).max(axis=1)
            # Written to the end: a user who leaves keeps their last state.
            played["state"][c, alive_U, t:] = state_of(job, simulator, after)[alive_U, None]
            alive_U &= ~response.churned_U
            if not alive_U.any():
                break
            state = after
    return played


# ---------------------------------------------------------------- comparison


def measures(job: Job, played: Played) -> dict[str, NDArray]:
    """Numbers per user, [catalogues, users] each; a user without a value has NaN."""
    reward, click, alive, topic = (played[name] for name in ("reward", "click", "alive", "topic"))
    steps = alive.sum(axis=2)
    found = {
        "reward an episode": reward.sum(axis=2),
        "reward a step": reward.sum(axis=2) / steps,
        "steps an episode": steps.astype(float),
        "share of slates left alone": 1 - click.sum(axis=2) / steps,
        "reward of the first step": reward[:, :, 0],
    }
    for first in (0, 10, 30):
        window = slice(first, first + 10)
        lived = alive[:, :, window].sum(axis=2)
        total = np.where(lived == 10, reward[:, :, window].sum(axis=2), np.nan)
        found[f"reward of steps {first + 1}-{first + 10}"] = total
    for x, name in enumerate(STATES[job.family]):
        for t in [0] if job.family == "interest_exploration" else [0, 9, 39]:
            found[f"{name} after step {t + 1}"] = played["state"][:, :, t, x]
    if job.family == "interest_evolution":
        for t in (40, 100):
            found[f"still there after {t} steps"] = (steps > t).astype(float)
    if job.family == "interest_exploration":
        num_clicks = click.sum(axis=2)
        found["share of clicks on topic 0"] = (topic == 0).sum(axis=2) / np.where(num_clicks > 0, num_clicks, np.nan)
    if job.family == "long_term_satisfaction":
        log_reward = np.log(np.where(reward > 0, reward, 1))
        found["mean of log-engagement"] = log_reward.mean(axis=2)
        found["sd of log-engagement"] = log_reward.std(axis=2)
    return found


def mean_and_error(value_CU: NDArray) -> tuple[float, float]:
    """Mean over catalogues of the mean over users, and its standard error."""
    known_CU = ~np.isnan(value_CU)
    kept_C = known_CU.any(axis=1)
    mean_C = np.nanmean(value_CU[kept_C], axis=1)
    return float(mean_C.mean()), float(mean_C.std(ddof=1) / np.sqrt(len(mean_C)))


def z_score(ours: tuple[float, float], theirs: tuple[float, float]) -> float:
    """Difference of two means in standard errors; 0 if both sides are the same constant."""
    difference, error = ours[0] - theirs[0], np.hypot(ours[1], theirs[1])
    if abs(difference) <= 1e-9 * max(1.0, abs(theirs[0])):
        return 0.0
    return difference / error if error > 0 else float(np.copysign(np.inf, difference))


def decile_z(ours_CU: NDArray, theirs_CU: NDArray) -> float:
    """The largest z, in size, of the shares of users below the deciles of both sides' values."""
    pooled = np.concatenate([ours_CU.ravel(), theirs_CU.ravel()])
    z = [
        z_score(*(mean_and_error(np.where(np.isnan(side), np.nan, side <= cut)) for side in (ours_CU, theirs_CU)))
        # Both sides' sums round differently: a cut must not fall into the rounding of values that are the same.
        for cut in np.unique(np.nanquantile(pooled, np.arange(0.1, 1, 0.1))) + 1e-5
    ]
    return max(z, key=abs)


def compare(job: Job, ours: Played, theirs: Played, console: Console) -> float:
    """Prints one row per measure, and returns the largest absolute statistic."""
    title = f"{job.family}, {job.policy} slates" + (f", sensitivity {job.sensitivity}" if job.sensitivity else "")
    table = Table(title=title)
    for header in ("measure", "RecSim", "feedgym", "z of the mean", "z, worst decile"):
        table.add_column(header, justify="left" if header == "measure" else "right", no_wrap=True)
    mine, original = measures(job, ours), measures(job, theirs)
    worst = 0.0
    for name, ours_CU in mine.items():
        here, there = mean_and_error(ours_CU), mean_and_error(original[name])
        z, z_decile = z_score(here, there), decile_z(ours_CU, original[name])
        worst = max(worst, abs(z), abs(z_decile))
        shown = [f"{mean:.4f} ± {error:.4f}" for mean, error in (there, here)]
        table.add_row(name, *shown, f"{z:+.2f}", f"{z_decile:+.2f}")
    console.print(table)
    return worst


# ---------------------------------------------------------------- speed


def our_speed(job: Job, num_users: int) -> tuple[float, float]:
    """Steps per second of only the simulator, and of the vector environment with its observations."""
    simulator = make_simulator(job, job.seed)
    rng = np.random.default_rng(0)
    slates_UK = rng.permuted(np.tile(np.arange(job.num_items), (num_users, 1)), axis=1)[:, : job.slate_size]
    state = simulator.reset(user_seeds(num_users, 0, "speed"))
    env = FeedVectorEnv(num_users, simulator, session_length=job.slate_size, horizon=200)
    env.reset(seed=0)
    speeds = []
    for step in (lambda: simulator.respond(state, slates_UK), lambda: env.step(slates_UK)):
        step()
        begin, steps = time.process_time(), 0
        while (passed := time.process_time() - begin) < job.seconds:
            step()
            steps += num_users
        speeds.append(steps / passed)
    return speeds[0], speeds[1]


def compare_speed(python: Path, num_users: int, console: Console) -> None:
    """Prints steps per second of both sides."""
    table = Table(title=f"Steps a second, slates of 3; ours serve {num_users:,} users at once")
    for header in ("family", "items", "RecSim", "simulator", "ratio", "vector environment", "ratio"):
        table.add_column(header, justify="left" if header == "family" else "right", no_wrap=True)
    for family in STATES:
        for num_items in (20, 1000):
            job = Job(family=family, policy="speed", horizon=0, num_items=num_items)
            original = float(play_original(python, job)["steps_per_second"])
            alone, env = our_speed(job, num_users)
            figures = num_items, original, alone, alone / original, env, env / original
            table.add_row(family, *(f"{figure:,.0f}" for figure in figures))
    console.print(table)


def main() -> int:
    """Compares everything; returns 1 if a statistic is outside the sampling error."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--venv", type=Path, default=HERE.parent / ".venv-recsim", help="where RecSim is installed")
    parser.add_argument("--catalogues", type=int, default=200, help="catalogues a side; 2 or more")
    parser.add_argument("--users", type=int, default=5, help="users a catalogue")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=4.0, help="largest z, in size, that passes")
    parser.add_argument("--no-speed", action="store_true", help="leave out the steps a second")
    given = parser.parse_args()
    if given.catalogues < 2 or given.users < 1:
        parser.error(f"--catalogues {given.catalogues} --users {given.users}: give 2 catalogues and 1 user or more.")
    console = Console(width=120)
    python = recsim_python(given.venv.resolve(), console)
    worst = 0.0
    for job in JOBS:
        job = replace(job, catalogues=given.catalogues, users=given.users, seed=given.seed)
        worst = max(worst, compare(job, play_ours(job), play_original(python, job), console))
    if not given.no_speed:
        compare_speed(python, 1024, console)
    passed = worst <= given.limit
    console.print(f"Largest statistic {worst:.2f}; the limit is {given.limit:g}: {'passed' if passed else 'FAILED'}.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

"""Long-term effects on the users of ShortVideo, plain and calibrated, of feeds from random to the oracle's.

``python benchmarks/bad_feeds.py [USERS]``: fresh users of one seed are served 60 visits of 10 items by a single rule.
The columns are the click rate, the shares of visits after which a user left for ever or was back within a day, and the
users left after 30 visits. Then follow the mean true reward of the first 8 visits, and of the last 8 of those 30. The
last column is the mean cosine between the interests of users left after 60 visits and those they came with. "One
topic" has random items of the topic that a user loved most.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from feedgym.data.events import DAY_S
from feedgym.envs.logging_policy import LoggingConfig, LoggingPolicy
from feedgym.envs.luck import user_seeds
from feedgym.envs.short_video import ShortVideo, ShortVideoCalibrated
from feedgym.envs.truth import RewardWeights, session_reward
from feedgym.protocols import take_users

LENGTH, VISITS, LONG = 10, 30, 60
Choose = Callable[[Any], NDArray[np.int64]]


def main() -> None:
    """Print a row for each simulator and feed."""
    users = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    table = Table("users", "feed", "click", "churn", "24 h", f"left at {VISITS}", "reward", "later", "cosine")
    for simulator in (ShortVideo(), ShortVideoCalibrated()):
        for name, choose in feeds(simulator).items():
            told = served(simulator, choose, user_seeds(users, 0, "bad feeds"))
            table.add_row(type(simulator).__name__, name, *[f"{value:.3f}" for value in told])
    Console().print(table)


def feeds(simulator: ShortVideo) -> dict[str, Choose]:
    """The rules of the logging policy, a feed of one topic and the oracle."""
    truth, rng = simulator.latents, np.random.default_rng(0)
    about = [np.flatnonzero(truth.topic_I2[:, 0] == m) for m in range(simulator.config.num_topics)]

    def rule(**shares: float) -> Choose:
        policy = LoggingPolicy(simulator, LENGTH, LoggingConfig(**{"popularity_share": 0, "random_share": 0} | shares))
        return lambda state: policy.serve(state, policy.no_taste(len(state.seed_U)))[0]

    def of_one_topic(state: Any) -> NDArray[np.int64]:
        loved_U = (state.core_UD @ truth.topic_MD.T).argmax(axis=1)
        return np.stack([rng.choice(about[m], LENGTH, replace=False) for m in loved_U])

    return {
        "random": rule(random_share=1.0),
        "popular": rule(popularity_share=1.0),
        "one topic": of_one_topic,
        "production": rule(),
        "oracle": lambda state: simulator.oracle(state, LENGTH),
    }


def served(simulator: ShortVideo, choose: Choose, seeds_U: NDArray[np.uint64]) -> tuple[float, ...]:
    """The figures of the module's docstring, in order."""
    state, num_users, left = simulator.reset(seeds_U), len(seeds_U), 0
    visits = clicks = seen = churned = back = 0
    reward_V = []
    for visit in range(LONG):
        response, state = simulator.respond(state, choose(state))
        stays_U = ~response.churned_U
        if visit < VISITS:
            visits += len(stays_U)
            clicks += int(response.behaviours_UKB[:, :, 0].sum())
            seen += int(response.examined_UK.sum())
            churned += int((~stays_U).sum())
            back += int((stays_U & (response.return_gap_s_U <= DAY_S)).sum())
            reward_V.append(float(session_reward(response, RewardWeights()).mean()))
            left = int(stays_U.sum())
        state = take_users(state, np.flatnonzero(stays_U))
    cosine_U = np.vecdot(state.interest_UD, state.core_UD)
    ends = float(np.mean(reward_V[:8])), float(np.mean(reward_V[-8:]))
    return clicks / seen, churned / visits, back / visits, left / num_users, *ends, float(cosine_U.mean())


if __name__ == "__main__":
    main()

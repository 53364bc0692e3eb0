"""Worlds of an alignment: simulated users, or a recorded log; see :class:`feedgym.experiments.align.pool.World`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOUR_IDX
from feedgym.data.requests import LogAndItems, Requests, last_requests
from feedgym.data.sessions import POSITIVE, logged_sessions, positive_sessions, quality_filter
from feedgym.envs.history import has_arrivals
from feedgym.envs.luck import user_seeds
from feedgym.envs.replay import states_at
from feedgym.envs.truth import RewardWeights, true_value
from feedgym.experiments.align.pool import Pool, World
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.evaluate import judge_offline, judge_online
from feedgym.experiments.logs import data_path, plan_log, recorded_log, simulated_log, simulator_of, users_key
from feedgym.experiments.progress import Step
from feedgym.experiments.rollouts import RolloutConfig, Rollouts
from feedgym.experiments.run import Plan
from feedgym.experiments.serve import ServingRecord, judges_of, serve, serve_all
from feedgym.plugins import title_of
from feedgym.protocols import Recommender, SessionReward, UserSimulator, cat_users, take_users

TRUTH_USERS = 25
"""Users whose sessions are valued between two steps of the progress bar."""


def plan_world(plan: Plan, config: AlignConfig) -> str:
    """Plan the stage of an alignment's log."""
    simulated = [users_key(config, config.seed), config.log, config.session_length, config.seed]
    return plan_log(plan, config, simulated, "simulator", "simulator_options")


def _what(config: AlignConfig) -> str:
    """Name the agent and its alignment in two words, and say if it learns from the truth, which no platform has."""
    study = " by the truth itself (study only)" if config.rounds.scores == "truth" else ""
    return f"{title_of('model', config.model)} + {title_of('method', config.method)}{study}"


class Simulated:
    """Simulated users, who leave the log and know the true value of sessions; fresh ones judge."""

    note = "The truth is what simulated users really did; the reward model saw only the log."

    def __init__(self, config: AlignConfig, trust: bool = False, workers: Rollouts | None = None) -> None:
        self.config = config
        self.workers = workers or Rollouts(RolloutConfig(), "off")
        self.simulator = simulator_of(config, config.seed, trust)
        self.title = f"{_what(config)} on {type(self.simulator).__name__}, simulated users"

    def collect(self, work: Path) -> LogAndItems:
        """Log the users' visits under the production system."""
        config = self.config
        return simulated_log(self.simulator, config.log, config.session_length, config.seed)

    def requests(self, data: LogAndItems) -> tuple[Requests, Requests]:
        """All visits for the reward model, and those to imitate, which pass the filter; dated if items come and go."""
        sessions = logged_sessions(data[0], self.config.session_length)
        told: dict[str, Any] = {"dated": has_arrivals(self.simulator), "memory": self.config.memory}
        every = Requests.of(data, sessions, self.config.history_length, **told)
        return every.rows(quality_filter(every.sessions, self.config.sessions)), every

    def serve(self, agent: Recommender, t: int, step: Step) -> LogAndItems:
        """Serve users of round t's own population, which neither the log nor the judge contains."""
        config = self.config
        served = serve(
            self.simulator,
            lambda histories, _: agent.recommend(histories),
            None,
            user_seeds(config.rounds.serve, config.seed, served_group(t)),
            visits=config.rounds.serve_visits,
            session_length=config.session_length,
            history_length=config.history_length,
            weights=config.weights,
            memory=config.memory,
            step=step,
        )
        assert served.log is not None
        return served.log, self.simulator.catalog

    def true_value(self, pool: Pool, row_U: NDArray, sessions_USK: NDArray, step: Step) -> NDArray[np.float32]:
        """Ask copies of the users, replayed along their log to the moment of the request."""
        config = self.config
        parts = list(pool.sources(row_U))
        states = [
            states_at(self.simulator, source.log, pool.imitate.sessions.rows(row_U[places]), config.seed, source.group)
            for source, places in parts
        ]
        state = take_users(cat_users(states), np.argsort(np.concatenate([places for _, places in parts])))
        return self._valued(state, sessions_USK, step, config.rounds.truth_replicas)

    def probed_values(
        self, pool: Pool, num_users: int, sessions_USK: NDArray, replicas: int, step: Step
    ) -> NDArray[np.float32]:
        """As :meth:`true_value`, with separate responses for each half."""
        state, half = self._probed_state(pool, num_users), replicas // 2
        return np.stack([self._valued(state, sessions_USK, step, half, seed) for seed in range(2)], axis=2)

    def oracle_values(self, pool: Pool, num_users: int) -> NDArray[np.float32] | None:
        """True values of the sessions that the simulator itself would choose."""
        if not hasattr(self.simulator, "oracle"):
            return None
        state = self._probed_state(pool, num_users)
        sessions_U1K = self.simulator.oracle(state, self.config.session_length)[:, None]
        return self._valued(state, sessions_U1K, lambda *_: None, self.config.probe.replicas)[:, 0]

    def _probed_state(self, pool: Pool, num_users: int) -> Any:
        return states_at(self.simulator, pool.log, pool.probed(num_users).sessions, self.config.seed)

    def _valued(
        self, state: Any, sessions_USK: NDArray, step: Step, replicas: int, seed: int = 0
    ) -> NDArray[np.float32]:
        """True values of sessions to users [U, S], computed for some users at a time."""
        blocks = [slice(low, low + TRUTH_USERS) for low in range(0, len(sessions_USK), TRUTH_USERS)]
        rows_U = np.arange(len(sessions_USK))
        tasks = [(take_users(state, rows_U[block]), sessions_USK[block]) for block in blocks]
        shared = (self.simulator, self.config.weights, replicas, seed)
        return np.concatenate(self.workers.map(_values_of_block, shared, tasks, step))

    def served(self, agents: Mapping[str, Recommender], reward: SessionReward, pool: Pool) -> dict[str, ServingRecord]:
        """Serve fresh users, the same for every agent and with the same random numbers."""
        return serve_all(self.simulator, agents, reward, judges_of(self.config), self.config, workers=self.workers)

    def judge(
        self, agents: dict[str, Recommender], reward: SessionReward, pool: Pool, known: Mapping[str, ServingRecord]
    ) -> dict[str, Any]:
        """Serve the same users with the agents that have no record yet, and compare all."""
        return judge_online(
            self.simulator, agents, reward, pool.log, judges_of(self.config), self.config, known, self.workers
        )


class Recorded:
    """A real log: the true wishes of its users are unknown, so the judge is what they did next."""

    note = (
        "A recorded log holds no simulator truth: the reward model's scores below are its predictions, and the offline "
        "figures only measure how well an agent predicts what users of the old system did."
    )

    def __init__(self, config: AlignConfig) -> None:
        self.config = config
        self.title = f"{_what(config)} on the log {data_path(config).name}"

    def collect(self, work: Path) -> LogAndItems:
        """Read the data; the run folder keeps its own copy."""
        return recorded_log(self.config)

    def requests(self, data: LogAndItems) -> tuple[Requests, Requests]:
        """Windows of positive exposures to imitate, and windows of everything seen for the reward model.

        A click does not count as positive if the log has a stronger sign; otherwise clicks are used.
        """
        length, history = self.config.session_length, self.config.history_length
        log = data[0]
        signs = tuple(name for name in POSITIVE if log.behaviours[log.examined, BEHAVIOUR_IDX[name]].any())
        positive = positive_sessions(log, length, behaviours=signs or ("click",), min_items=min(2, length))
        parts = (positive, logged_sessions(data[0], length))
        imitate, rate = (Requests.of(data, part, history, memory=self.config.memory) for part in parts)
        return imitate, rate

    def serve(self, agent: Recommender, t: int, step: Step) -> LogAndItems:
        """Refuse: there are no users to serve; the configuration refuses this earlier."""
        raise ValueError("A recorded log has no users to be served; set rounds.serve to 0.")

    def true_value(self, pool: Pool, row_U: NDArray, sessions_USK: NDArray, step: Step) -> None:
        """None: the truth is unknown."""
        return

    def probed_values(self, pool: Pool, num_users: int, sessions_USK: NDArray, replicas: int, step: Step) -> None:
        """None: the truth is unknown."""
        return

    def oracle_values(self, pool: Pool, num_users: int) -> None:
        """None: there is no oracle."""
        return

    def served(self, agents: Mapping[str, Recommender], reward: SessionReward, pool: Pool) -> dict[str, ServingRecord]:
        """Empty: nobody can be served."""
        return {}

    def judge(
        self, agents: dict[str, Recommender], reward: SessionReward, pool: Pool, known: Mapping[str, ServingRecord]
    ) -> dict[str, Any]:
        """Judge by held-out last sessions: how well agents predict them, and the reward model's scores."""
        requests = last_requests(pool.unseen_good)
        if self.config.probe.apart:
            requests = requests.rows(np.arange(len(pool.probed(self.config.probe.users)), len(requests)))
            if not len(requests):
                raise ValueError(
                    f"probe.users={self.config.probe.users} leaves no held-out user to judge with, because "
                    "probe.apart keeps those that are probed apart; lower it."
                )
        users, when = f"{len(requests):,} held-out users", "next"
        if self.config.split == "time":
            users, when = f"{len(requests):,} users", "after the moment at which training ends"
        judged_by = f"what {users} watched {when}"
        return judge_offline(agents, reward, pool.catalog, requests, self.config, judged_by)


def served_group(t: int) -> str:
    """Name of the population that is served before round t."""
    return f"served-{t}"


def _values_of_block(
    simulator: UserSimulator, weights: RewardWeights, replicas: int, seed: int, state: Any, sessions_USK: NDArray
) -> NDArray[np.float32]:
    """True values of the sessions of a block of users."""
    return true_value(simulator, state, sessions_USK, weights=weights, replicas=replicas, seed=seed)


def world_of(config: AlignConfig, trust: bool = False, workers: Rollouts | None = None) -> World:
    """Make the world of an experiment.

    Args:
        config: the experiment.
        trust: as for :func:`feedgym.envs.feed.make_simulator`.
        workers: measure true values and judge; if left out, this process does.
    """
    return Recorded(config) if config.data is not None else Simulated(config, trust, workers)

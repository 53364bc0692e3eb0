"""Serves the same simulated users, with the same random numbers, by one agent or several.

Every agent serves the SAME users (common random numbers), so that differences between agents are paired. For each agent
it keeps counts per user and visit, which make every metric a ratio of sums, and everything served as an event log.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from feedgym.agents.best_of import best, drawn
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import BEHAVIOURS, DAY_S, Catalog, EventLog
from feedgym.envs.feed import FeedVectorEnv, event_batch, judging
from feedgym.envs.logging import event_log
from feedgym.envs.luck import user_seeds
from feedgym.envs.replay import served_visits
from feedgym.envs.truth import RewardWeights, true_value
from feedgym.envs.visits import Visits
from feedgym.experiments.configs import JudgeConfig
from feedgym.experiments.progress import Step, progress
from feedgym.experiments.repeats import concentration, favourites_of, first_times, used_up
from feedgym.experiments.rollouts import Rollouts, one_thread
from feedgym.experiments.statistics import Ratio, Series
from feedgym.protocols import Recommender, SessionReward, UserSimulator, take_users

Choose = Callable[[EventBatch, Any], SessionBatch]
"""Chooses one session per user (S = 1), given their histories and, only for the oracle, their true state."""


class JudgedConfig(Protocol):
    """The fields of an experiment's configuration that judging needs."""

    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def session_length(self) -> int: ...  # noqa: D102
    @property
    def history_length(self) -> int: ...  # noqa: D102
    @property
    def memory(self) -> int: ...  # noqa: D102
    @property
    def weights(self) -> RewardWeights: ...  # noqa: D102
    @property
    def judge(self) -> JudgeConfig: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """The same fields without an experiment."""

    seed: int
    session_length: int
    history_length: int
    memory: int = 0
    weights: RewardWeights
    judge: JudgeConfig


@dataclass(frozen=True, eq=False)
class ServingRecord:
    """Record of U users under one agent.

    Attributes:
        by_visit: per user and visit, float64 [V, U] each; 0 if a user had left for good before the visit.
        concentration_V: share of the items served at a visit that the visit's most served items hold.
        log: everything served, as an event log; None if users of several agents are combined.
    """

    by_visit: dict[str, NDArray[np.float64]]
    concentration_V: NDArray[np.float64]
    log: EventLog | None = None

    @property
    def num_users(self) -> int:
        """U."""
        return self.by_visit["visits"].shape[1]

    @property
    def sums(self) -> dict[str, NDArray[np.float64]]:
        """Sums per user over all visits, [U] each."""
        return {name: count_VU.sum(axis=0) for name, count_VU in self.by_visit.items()}

    def ratio(self, metric: str, first: int | None = None) -> Ratio:
        """A metric as numerator over denominator, over all visits or the ``first`` of them."""
        series = self.series(metric)
        numerator_U = series.numerator_UV[:, :first].sum(axis=1)
        lost = metric == "churn_rate"  # a user is lost once, however many visits they made
        return Ratio(numerator_U, np.ones_like(numerator_U) if lost else series.denominator_UV[:, :first].sum(axis=1))

    def ratios(self) -> dict[str, Ratio]:
        """All measured metrics over all visits; for the true reward also the mean of the first visits."""
        told = {metric: self.ratio(metric) for metric in METRICS if metric in self.by_visit}
        if len(self.concentration_V) > FIRST_VISITS:
            told[FIRST_REWARD] = self.ratio("true_reward", FIRST_VISITS)
        return told

    def series(self, metric: str) -> Series:
        """A metric at each visit, over the users who are there."""
        over = "seen" if metric == "repeats" or (metric.endswith("_rate") and metric != "churn_rate") else "visits"
        return Series(self.by_visit[metric].T, self.by_visit[over].T)


METRICS = (
    *("true_reward", "model_reward", "watch_s", "session_items", "return_24h", "churn_rate", "satisfaction"),
    *("diversity", "repeats"),
    *(f"{name}_rate" for name in BEHAVIOURS),
)
"""Metrics of every agent: means per visit, shares of users lost, repeats and behaviours per item seen."""

FIRST_VISITS = 8
FIRST_REWARD = f"true_reward_first_{FIRST_VISITS}"
"""Name of the mean true reward of the first visits, reported with that of all: older figures used 8 visits."""

STUDIED = {"base", "aligned"}
"""Agents that also serve the best of N draws by the truth in studies."""

TRUTH_REPLICAS = 8
"""Simulated responses to average for the true value of a drawn session."""

READ_USERS = 3
"""Number of users whose sessions the report lists for reading."""
TIMELINES = 2
"""Number of agents, the first ones, whose visits of these users the report draws."""


def serve(
    simulator: UserSimulator,
    choose: Choose,
    reward: SessionReward | None,
    seeds_U: NDArray[np.uint64],
    *,
    visits: int,
    session_length: int,
    history_length: int,
    memory: int = 0,
    weights: RewardWeights,
    past_VUK: NDArray[np.int64] | None = None,
    step: Step | None = None,
) -> ServingRecord:
    """Serve users until they churn or have visited often enough.

    Args:
        simulator: the users.
        choose: the agent.
        reward: the reward model, to predict the value of the served sessions; None if there is none.
        seeds_U: seeds of the users.
        visits: most visits per user.
        session_length: K.
        history_length: T.
        memory: number of earlier items that agents get in addition.
        weights: weights of the true reward.
        past_VUK: slates that the same users were served at their first visits, if they have been here before. They are
            served these once more, and respond as they did.
        step: progress callback.
    """
    num_past = 0 if past_VUK is None else len(past_VUK)
    env = FeedVectorEnv(
        len(seeds_U),
        simulator,
        session_length=session_length,
        history_length=history_length,
        memory=memory,
        horizon=visits,
        reward=weights,
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )
    observation, _ = env.reset(seed=[int(seed) for seed in seeds_U])
    by_visit: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros((visits, len(seeds_U))))
    items_VUK = np.full((visits, len(seeds_U), session_length), -1, np.int64)
    examined_VUK = np.zeros(items_VUK.shape, bool)
    favourites_UN = favourites_of(simulator, env.state)
    paid: list[dict[str, NDArray]] = []
    profile_UF = env.state.profile_UF
    alive_U = np.ones(len(seeds_U), bool)
    for visit in range(visits):
        # Ask agents only about users who are still there: a lost user's slot continues with a fresh user, whose visits
        # belong to nobody.
        slates_UK, opinion_U = np.zeros((len(alive_U), session_length), np.int64), None
        if visit < num_past:
            slates_UK[alive_U] = past_VUK[visit, alive_U]  # type: ignore[index]
        else:
            histories = event_batch(observation).rows(torch.from_numpy(alive_U))
            with torch.inference_mode():
                sessions = choose(histories, take_users(env.state, alive_U))
                opinion_U = None if reward is None else reward(histories, sessions)[:, 0].numpy()
            slates_UK[alive_U] = sessions.item_ids_USK[:, 0].numpy()
        login_s_U = env.state.time_s_U  # before the step moves the clock to the next visit
        observation, reward_U, churned_U, late_U, info = env.step(slates_UK)
        paid.append(_paid(visit, login_s_U, slates_UK, info, alive_U))
        items_VUK[visit, alive_U], examined_VUK[visit, alive_U] = slates_UK[alive_U], info["examined"][alive_U]
        for name, count_U in _counted(slates_UK, reward_U, info, simulator.catalog).items():
            by_visit[name][visit] = count_U * alive_U
        if (satisfaction_U := getattr(env.state, "satisfaction_U", None)) is not None:
            by_visit["satisfaction"][visit] = satisfaction_U * alive_U
        if opinion_U is not None:
            by_visit["model_reward"][visit, alive_U] = opinion_U
        alive_U &= ~(churned_U | late_U)
        if step is not None:
            step(visit + 1, visits)
        if not alive_U.any():
            break
    first_VUK = first_times(items_VUK, examined_VUK)
    by_visit["repeats"] = (examined_VUK & ~first_VUK).sum(axis=2, dtype=np.float64)
    if favourites_UN is not None:
        used_VU = used_up(items_VUK, first_VUK, favourites_UN)
        by_visit["favourites_used"] = used_VU * by_visit["visits"]
    return ServingRecord(dict(by_visit), concentration(items_VUK), _log(simulator, profile_UF, paid))


def _paid(
    visit: int, login_s_U: NDArray, slates_UK: NDArray, info: dict[str, Any], alive_U: NDArray
) -> dict[str, NDArray]:
    """One visit of the users who are still there, with the names of :class:`feedgym.envs.logging.Visits`."""
    columns = {
        "user_N": np.arange(len(alive_U)),
        "visit_N": np.full(len(alive_U), visit),
        "login_s_N": login_s_U,
        "logout_s_N": login_s_U + info["elapsed_s"],
        "slates_NK": slates_UK,
        "propensity_NK": np.full(slates_UK.shape, np.nan, np.float32),
        "watch_s_NK": info["watch_s"],
        "examined_NK": info["examined"],
        "behaviours_NKB": info["behaviours"],
    }
    return {name: column[alive_U] for name, column in columns.items()}


def _log(simulator: UserSimulator, profile_UF: NDArray, paid: list[dict[str, NDArray]]) -> EventLog:
    columns = {name: np.concatenate([visit[name] for visit in paid]) for name in paid[0]}
    # Visits were gathered visit by visit; a log is sorted by user.
    order = np.lexsort((columns["visit_N"], columns["user_N"]))
    visits = Visits(profile_UF=profile_UF, **{name: column[order] for name, column in columns.items()})
    return event_log(simulator, profile_UF, visits)


def _counted(slates_UK: NDArray, reward_U: NDArray, info: dict[str, Any], catalog: Catalog) -> dict[str, NDArray]:
    """Counts of one visit, [U] each; later users of a slot are not separated here."""
    parts = info["reward_components"]
    return {
        "visits": np.ones(len(slates_UK)),
        "seen": info["examined"].sum(axis=1),
        "true_reward": reward_U,
        "watch_s": info["watch_s"].sum(axis=1),
        "session_items": info["examined"].sum(axis=1),
        "return_24h": parts["return_24h"],
        "churn_rate": info["churned"],
        "diversity": session_diversity(catalog, slates_UK),
        **{f"{name}_rate": parts[name] for name in BEHAVIOURS},
    }


def session_diversity(catalog: Catalog, item_ids_XK: NDArray) -> NDArray[np.float64]:
    """Mean cosine distance between the contents of the items of sessions [..., K]; 0 for sessions of one item."""
    length = item_ids_XK.shape[-1]
    if length == 1:
        return np.zeros(item_ids_XK.shape[:-1])
    norm_I1 = np.linalg.norm(catalog.content_IE, axis=1, keepdims=True)
    direction_IE = catalog.content_IE / np.maximum(norm_I1, 1e-12)
    # |sum|^2 = K + 2 * sum of the pairs' cosines. Only the sum is held, place by place, and not the K x K cosines or
    # the contents of all places at once. This matters at 128 sessions per user.
    sum_XE = np.zeros((*item_ids_XK.shape[:-1], direction_IE.shape[1]), np.float32)
    for k in range(length):
        sum_XE += direction_IE[item_ids_XK[..., k]]
    return 1 - ((sum_XE.astype(np.float64) ** 2).sum(axis=-1) - length) / (length * (length - 1))


def serve_all(
    simulator: UserSimulator,
    agents: Mapping[str, Recommender],
    reward: SessionReward | None,
    seeds_U: NDArray[np.uint64],
    config: JudgedConfig,
    known: Mapping[str, ServingRecord] | None = None,
    workers: Rollouts | None = None,
) -> dict[str, ServingRecord]:
    """Serve every agent to the same users with the same random numbers, and the agents that need the truth.

    Those are the oracle, if the simulator has one, and in studies the best of N draws of base and aligned.

    Args:
        simulator: the users.
        agents: the agents by name.
        reward: the reward model; None if there is none.
        seeds_U: seeds of the users.
        config: visits, lengths, weights.
        known: records of these users under some of the agents, which are not served again.
        workers: serve one agent each; if left out, this process serves one agent after the other.
    """
    choices = {name: serving(agent) for name, agent in agents.items()}
    simulator = of_judges(simulator, config.judge)
    if hasattr(simulator, "oracle"):
        choices["oracle"] = _oracle(simulator, config.session_length)
    for n in config.judge.best_of if config.judge.study else ():
        for name in STUDIED & agents.keys():
            choices[f"{best_of_name(name, n)}_by_truth"] = _best_by_truth(agents[name], simulator, n, config.weights)
    served = dict(known or {})
    missing = [name for name in choices if name not in served]
    told = told_agents(config) | {"visits": config.judge.visits}
    if workers is not None and workers.ray != "off":
        with progress(f"Judging {len(missing)} agents") as step:
            shared = (simulator, reward, seeds_U, told)
            # Searches, the best of N and the oracle come last. They take longest, and one begun late is waited for.
            slowest_first = missing[::-1]
            answers = workers.map(_serve_one, shared, [(choices[name],) for name in slowest_first], step)
            records = dict(zip(slowest_first, answers, strict=True))
            return served | {name: records[name] for name in missing}
    for name in missing:
        with progress(f"Judging {name}") as step, nullcontext() if workers is None else one_thread():
            served[name] = serve(simulator, choices[name], reward, seeds_U, **told, step=step)
    return served


def _serve_one(
    simulator: UserSimulator, reward: SessionReward | None, seeds_U: NDArray[np.uint64], told: dict[str, Any],
    choose: Choose,
) -> ServingRecord:  # fmt: skip
    """An agent's share of :func:`serve_all`."""
    return serve(simulator, choose, reward, seeds_U, **told)


def judges_of(config: JudgedConfig) -> NDArray[np.uint64]:
    """Seeds of the fresh users who judge."""
    return user_seeds(config.judge.users, config.seed + config.judge.seed, "judge")


def told_agents(config: JudgedConfig) -> dict[str, Any]:
    """Arguments of :func:`serve` for sessions, histories and reward."""
    return {
        "session_length": config.session_length,
        "history_length": config.history_length,
        "memory": config.memory,
        "weights": config.weights,
    }


def of_judges(simulator: UserSimulator, judge: JudgeConfig) -> UserSimulator:
    """The simulator whose users judge: not the ones it trains with, and beginning on the judge's first day.

    Raises:
        ValueError: they cannot begin later (:func:`starting`).
    """
    simulator = judging(simulator)
    return starting(simulator, judge.first_day) if judge.first_day else simulator


def starting(simulator: Any, first_day: float) -> UserSimulator:
    """Make a simulator whose fresh users make their first visits on another day of its clock.

    Raises:
        ValueError: the simulator has no method ``starting``.
    """
    if not hasattr(simulator, "starting"):
        raise ValueError(
            f"judge.first_day={first_day:g} asks {type(simulator).__name__} for users who begin later; give it a "
            "method starting(first_day) -> simulator, or leave the day at 0."
        )
    return simulator.starting(first_day)


def samples(served: Mapping[str, ServingRecord], catalog: Catalog) -> dict[str, Any]:
    """List a few users' last visits under each agent, side by side, for people to read, and all their visits in short.

    Returns:
        ``columns`` and ``rows`` of the last visits, one row per item; ``timelines`` of :func:`timelines`.
    """
    columns = ["user", "agent", "visit", "place", "item", "topic", "duration s", "watched s", "behaviours"]
    columns += [] if catalog.text_I is None else ["title"]
    rows = [row for name, result in served.items() for row in readable(result, name, catalog)]
    told = [line for name in list(served)[:TIMELINES] for line in timelines(served[name], name, catalog)]
    return {"columns": columns, "rows": sorted(rows, key=lambda row: (row[0], row[2])), "timelines": told}


def serving(agent: Recommender) -> Choose:
    """Make an agent a function that chooses sessions without the true state."""
    return lambda histories, _: agent.recommend(histories)


def _oracle(simulator: Any, session_length: int) -> Choose:
    def choose(histories: EventBatch, state: Any) -> SessionBatch:
        return SessionBatch.of_items(torch.from_numpy(simulator.oracle(state, session_length))[:, None])

    return choose


def best_of_name(agent: str, n: int) -> str:
    """Name of an agent that serves the best of N drawn sessions."""
    return f"{agent}_best_of_{n}"


def _best_by_truth(agent: Recommender, simulator: UserSimulator, n: int, weights: RewardWeights) -> Choose:
    def choose(histories: EventBatch, state: Any) -> SessionBatch:
        sessions = drawn(agent, histories, n)
        # The truth is an expectation: the random numbers of its replicas are unrelated to those that the user will
        # meet.
        items_USK = sessions.item_ids_USK.numpy()
        value_US = true_value(simulator, state, items_USK, weights=weights, replicas=TRUTH_REPLICAS)
        return best(sessions, torch.from_numpy(value_US))

    return choose


def readable(served: ServingRecord, agent: str, catalog: Catalog) -> list[list[Any]]:
    """The last visit of each of the first users, item by item."""
    assert served.log is not None
    visits, first_U1 = served_visits(served.log)
    rows = []
    for user, last in enumerate(first_U1[1 : READ_USERS + 1] - 1):
        for k, item in enumerate(visits.item_ids_NK[last].tolist()):
            did = [name for name, flag in zip(BEHAVIOURS, visits.behaviours_NKB[last, k], strict=True) if flag]
            seen = visits.examined_NK[last, k]
            rows.append(
                [
                    f"user {user + 1}",
                    agent,
                    int(last - first_U1[user]) + 1,
                    k + 1,
                    str(catalog.raw_ids_I[item]),
                    int(catalog.topic_I[item]),
                    round(float(catalog.duration_s_I[item]), 1),
                    round(float(visits.watch_s_NK[last, k]), 1) if seen else None,
                    ", ".join(did) or "-" if seen else "not reached",
                    *([] if catalog.text_I is None else [str(catalog.text_I[item])]),
                ]
            )
    return rows


def timelines(served: ServingRecord, agent: str, catalog: Catalog) -> list[dict[str, Any]]:
    """All visits of the first users in short.

    Returns:
        One per user: ``user``, ``agent``, whether the user ``left`` for good, and ``visits``, each with its ``day``,
        the ``topics`` of its items, and the ``watched`` share of their durations, None if an item was not reached.
    """
    assert served.log is not None
    visits, first_U1 = served_visits(served.log)
    lost_U = np.nanmax(served.by_visit["churn_rate"], axis=0) > 0  # nan once a user has left
    share_NK = np.round(visits.watch_s_NK / catalog.duration_s_I[visits.item_ids_NK], 2)
    told = []
    for user in range(min(READ_USERS, len(first_U1) - 1)):
        days = [
            {
                "day": round(float(visits.start_s_N[n]) / DAY_S, 2),
                "topics": catalog.topic_I[visits.item_ids_NK[n]].tolist(),
                "watched": [
                    float(share) if seen else None
                    for share, seen in zip(share_NK[n], visits.examined_NK[n], strict=True)
                ],
            }
            for n in range(first_U1[user], first_U1[user + 1])
        ]
        told.append({"user": f"user {user + 1}", "agent": agent, "left": bool(lost_U[user]), "visits": days})
    return told

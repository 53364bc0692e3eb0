"""The final comparison of agents: served to fresh simulated users, or tested against what held-out users did next.

Online, every agent serves the SAME users with the same luck (common random numbers), so that differences are paired.
Every metric is a ratio of sums over users; intervals resample users (:mod:`feedgym.experiments.statistics`).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from typing_extensions import TypedDict

from feedgym.agents.baselines import PopularRecommender, RandomRecommender
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import BEHAVIOURS, Catalog, Event, EventLog
from feedgym.data.requests import Requests
from feedgym.envs.feed import FeedVectorEnv, event_batch, judging
from feedgym.envs.history import has_arrivals
from feedgym.envs.logging import event_log
from feedgym.envs.truth import RewardWeights
from feedgym.envs.visits import Visits
from feedgym.experiments.configs import JudgeConfig
from feedgym.experiments.exposure import exposure_figures, shown_items, spread_figures
from feedgym.experiments.progress import Step, progress
from feedgym.experiments.run import Codec, NumberOrNone, json_of
from feedgym.experiments.statistics import Figure, Ratio, interval, lift, resampling_counts
from feedgym.protocols import Recommender, SessionReward, UserSimulator, take_users

Choose = Callable[[EventBatch, Any], SessionBatch]
"""Chooses one session a user (S = 1), given their histories and, for the oracle alone, their true state."""

NEXT_ITEMS = 10
"""Items an agent may name as the next one offline."""

OFFLINE_BLOCK = 256
"""Held-out users answered at a time."""


class JudgedConfig(Protocol):
    """What the judge asks of an experiment's configuration."""

    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def session_length(self) -> int: ...  # noqa: D102
    @property
    def history_length(self) -> int: ...  # noqa: D102
    @property
    def weights(self) -> RewardWeights: ...  # noqa: D102
    @property
    def judge(self) -> JudgeConfig: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Just that, where no experiment is configured."""

    seed: int
    session_length: int
    history_length: int
    weights: RewardWeights
    judge: JudgeConfig


@dataclass(frozen=True, eq=False)
class ServingRecord:
    """What happened to U users under one agent.

    Attributes:
        sums: per-user sums over visits, float64 [U] each.
        visits: the first users' visits as they happened, for people to read.
        log: everything that was served, as an event log; None where several agents' users are taken together.
    """

    sums: dict[str, NDArray[np.float64]]
    visits: list[dict[str, Any]]
    log: EventLog | None = None

    def ratio(self, metric: str) -> Ratio:
        """A metric as numerator over denominator."""
        over = "seen" if metric.endswith("_rate") and metric != "churn_rate" else "visits"
        numerator = self.sums[metric]
        return Ratio(numerator, np.ones_like(numerator) if metric == "churn_rate" else self.sums[over])

    def ratios(self) -> dict[str, Ratio]:
        """All metrics that were measured."""
        return {metric: self.ratio(metric) for metric in METRICS if metric in self.sums}


Table = dict[str, dict[str, NumberOrNone]]
"""Figures by name, each a mean with the ends of its interval, where it has one."""


class Judgement(TypedDict):
    """What every judgement of agents says; each adds its own."""

    __pydantic_config__ = {"extra": "allow"}  # type: ignore[misc]  # noqa: RUF012 (pydantic reads it)

    agents: dict[str, Table]
    judged_by: str


class Comparison(Judgement):
    """A judgement that compares agents."""

    lift: Table


JUDGED: Codec[Any] = json_of(Comparison)
"""How a judgement is kept."""

METRICS = (
    *("true_reward", "model_reward", "watch_s", "session_items", "return_24h", "churn_rate", "diversity"),
    *(f"{name}_rate" for name in BEHAVIOURS),
)
"""What is told of every agent: means a visit, shares of users lost, and behaviours an item seen."""

READ_USERS = 3
"""Users whose sessions people can read in the report."""


def serve(
    simulator: UserSimulator,
    choose: Choose,
    reward: SessionReward | None,
    seeds_U: NDArray[np.uint64],
    *,
    visits: int,
    session_length: int,
    history_length: int,
    weights: RewardWeights,
    step: Step | None = None,
) -> ServingRecord:
    """Serve users until they churn or have visited often enough.

    Args:
        simulator: the users.
        choose: the agent.
        reward: the reward model, asked for its opinion of what is served; None where there is none.
        seeds_U: the users.
        visits: visits a user, at most.
        session_length: K.
        history_length: T.
        weights: what the true reward is made of.
        step: progress callback.
    """
    env = FeedVectorEnv(
        len(seeds_U),
        simulator,
        session_length=session_length,
        history_length=history_length,
        horizon=visits,
        reward=weights,
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )
    observation, _ = env.reset(seed=[int(seed) for seed in seeds_U])
    sums: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(seeds_U)))
    read: list[dict[str, Any]] = []
    paid: list[dict[str, NDArray]] = []
    profile_UF = env.state.profile_UF
    alive_U = np.ones(len(seeds_U), bool)
    for visit in range(visits):
        # Agents are asked for the users who are still there alone: a lost user's slot goes on with a fresh one, whose
        # visits would be nobody's.
        histories = event_batch(observation).rows(torch.from_numpy(alive_U))
        with torch.inference_mode():
            sessions = choose(histories, take_users(env.state, alive_U))
            opinion_U = None if reward is None else reward(histories, sessions)[:, 0].numpy()
        slates_UK = np.zeros((len(alive_U), session_length), np.int64)
        slates_UK[alive_U] = sessions.item_ids_USK[:, 0].numpy()
        login_s_U = env.state.time_s_U  # before the step moves it on to the next visit
        observation, reward_U, churned_U, late_U, info = env.step(slates_UK)
        paid.append(_paid(visit, login_s_U, slates_UK, info, alive_U))
        _add(sums, alive_U, slates_UK, reward_U, opinion_U, info, simulator.catalog)
        read.append({"slates_UK": slates_UK[:READ_USERS], "alive_U": alive_U[:READ_USERS].copy(), **_first_users(info)})
        alive_U &= ~(churned_U | late_U)
        if step is not None:
            step(visit + 1, visits)
        if not alive_U.any():
            break
    return ServingRecord(dict(sums), read, _log(simulator, profile_UF, paid))


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
    # Visits were gathered visit by visit; a log has them user by user.
    order = np.lexsort((columns["visit_N"], columns["user_N"]))
    visits = Visits(profile_UF=profile_UF, **{name: column[order] for name, column in columns.items()})
    return event_log(simulator, profile_UF, visits)


def _add(
    sums: dict[str, NDArray],
    alive_U: NDArray,
    slates_UK: NDArray,
    reward_U: NDArray,
    opinion_U: NDArray | None,
    info: dict[str, Any],
    catalog: Catalog,
) -> None:
    """Count one visit of the users who are still there; later users of a slot do not count."""
    parts = info["reward_components"]
    counts = {
        "visits": np.ones(len(alive_U)),
        "seen": info["examined"].sum(axis=1),
        "true_reward": reward_U,
        "watch_s": info["watch_s"].sum(axis=1),
        "session_items": info["examined"].sum(axis=1),
        "return_24h": parts["return_24h"],
        "churn_rate": info["churned"],
        "diversity": session_diversity(catalog, slates_UK),
        **{f"{name}_rate": parts[name] for name in BEHAVIOURS},
    }
    for name, count_U in counts.items():
        sums[name] += count_U * alive_U
    if opinion_U is not None:
        sums["model_reward"][alive_U] += opinion_U


def _first_users(info: dict[str, Any]) -> dict[str, NDArray]:
    return {name: info[name][:READ_USERS] for name in ("examined", "watch_s", "behaviours")}


def session_diversity(catalog: Catalog, item_ids_XK: NDArray) -> NDArray[np.float64]:
    """Mean cosine distance between the contents of the items of sessions [..., K]; 0 for sessions of one item."""
    length = item_ids_XK.shape[-1]
    if length == 1:
        return np.zeros(item_ids_XK.shape[:-1])
    norm_I1 = np.linalg.norm(catalog.content_IE, axis=1, keepdims=True)
    direction_IE = catalog.content_IE / np.maximum(norm_I1, 1e-12)
    # |sum|^2 = K + 2 * sum of the pairs' cosines. The sum, place by place, is all that is held: neither the K x K
    # cosines nor the contents of all places at once, which matters at 128 sessions a user.
    sum_XE = np.zeros((*item_ids_XK.shape[:-1], direction_IE.shape[1]), np.float32)
    for k in range(length):
        sum_XE += direction_IE[item_ids_XK[..., k]]
    return 1 - ((sum_XE.astype(np.float64) ** 2).sum(axis=-1) - length) / (length * (length - 1))


def judge_online(
    simulator: UserSimulator,
    agents: dict[str, Recommender],
    reward: SessionReward,
    log: EventLog,
    seeds_U: NDArray[np.uint64],
    config: JudgedConfig,
) -> dict[str, Any]:
    """Serve all agents and the references to the same users.

    Args:
        simulator: the users.
        agents: the agents to compare, "base" and "aligned" among them.
        reward: the reward model.
        log: what the popularity reference counts.
        seeds_U: the users, whom nothing has been trained on.
        config: visits, lengths, weights, seed.

    Returns:
        ``agents``, ``lift``, ``lift_searched``, ``samples`` and ``judged_by`` of the summary.
    """
    served = serve_all(simulator, references(log, simulator.catalog, config) | agents, reward, seeds_U, config)
    figures = {
        name: {**result.ratios(), **exposure_of(result, simulator, log, config)} for name, result in served.items()
    }
    return {
        **compared(figures, config.seed),
        "samples": samples({name: served[name] for name in agents}, simulator.catalog),
        "judged_by": judged_by(len(seeds_U), config),
    }


def exposure_of(
    served: ServingRecord, simulator: UserSimulator, log: EventLog, config: JudgedConfig
) -> dict[str, Figure]:
    """Who got seen under an agent, what new items got and what exploring cost; the log is what was known before."""
    assert served.log is not None
    return exposure_figures(
        served.log, simulator.catalog, earlier=log, weights=config.weights, arrivals=has_arrivals(simulator)
    )


def serve_all(
    simulator: UserSimulator,
    agents: Mapping[str, Recommender],
    reward: SessionReward | None,
    seeds_U: NDArray[np.uint64],
    config: JudgedConfig,
) -> dict[str, ServingRecord]:
    """Serve every agent, and the oracle where the simulator has one, to the same users with the same luck."""
    choices = {name: _serving(agent) for name, agent in agents.items()}
    simulator = judging(simulator)
    if config.judge.first_day:
        simulator = starting(simulator, config.judge.first_day)
    if hasattr(simulator, "oracle"):
        choices["oracle"] = _oracle(simulator, config.session_length)
    served = {}
    for name, choose in choices.items():
        with progress(f"Judging {name}") as step:
            served[name] = serve(
                simulator,
                choose,
                reward,
                seeds_U,
                visits=config.judge.visits,
                session_length=config.session_length,
                history_length=config.history_length,
                weights=config.weights,
                step=step,
            )
    return served


def starting(simulator: Any, first_day: float) -> UserSimulator:
    """The simulator, its fresh users paying their first visits on another day of its clock.

    Raises:
        ValueError: it cannot: it has no method ``starting``.
    """
    if not hasattr(simulator, "starting"):
        raise ValueError(
            f"judge.first_day={first_day:g} asks {type(simulator).__name__} for users who begin later; give it a "
            "method starting(first_day) -> simulator, or leave the day at 0."
        )
    return simulator.starting(first_day)


def samples(served: Mapping[str, ServingRecord], catalog: Catalog) -> dict[str, Any]:
    """A few users' last visits under each agent, side by side, for people to read."""
    columns = ["user", "agent", "visit", "place", "item", "topic", "duration s", "watched s", "behaviours"]
    rows = [row for name, result in served.items() for row in readable(result, name, catalog)]
    return {"columns": columns, "rows": sorted(rows, key=lambda row: (row[0], row[2]))}


def judged_by(users: int, config: JudgedConfig) -> str:
    """Who judged, in words."""
    return f"{users:,} fresh users, served {config.judge.visits} visits each unless they left for good"


def compared(ratios: Mapping[str, Mapping[str, Figure]], seed: int) -> dict[str, Any]:
    """Every agent's metrics with intervals, and the lifts of the aligned agents over their bases with paired ones."""
    # One set of resamples for all agents and metrics: the users are the same, so that lifts are paired.
    first = next(iter(next(iter(ratios.values())).values()))
    counts_RU = resampling_counts(first.num_users, seed)
    agents = {
        name: {metric: interval(ratio, counts_RU) for metric, ratio in metrics.items()}
        for name, metrics in ratios.items()
    }
    lifts = {}
    for suffix in ("", "_searched"):
        if f"base{suffix}" in ratios:
            aligned, base = ratios[f"aligned{suffix}"], ratios[f"base{suffix}"]
            # A figure of which one of the two has no case, such as clicks on cold items, has no lift.
            shared = [metric for metric in base if metric in aligned]
            gains = {metric: lift(aligned[metric], base[metric], counts_RU) for metric in shared}
            lifts[f"lift{suffix}"] = {metric: value for metric, value in gains.items() if value is not None}
    return {"agents": agents, **lifts}


def references(log: EventLog, catalog: Catalog, config: JudgedConfig) -> dict[str, Recommender]:
    """The agents that know nothing: random, and the most popular of what a user has not seen; both of what exists."""
    seen = (log.event == Event.IMPRESSION) & log.examined
    count_I = np.bincount(log.item_id[seen], minlength=catalog.num_items)
    return {
        "random": RandomRecommender(catalog.num_items, config.session_length, seed=config.seed, catalog=catalog),
        "popular": PopularRecommender(torch.from_numpy(count_I), config.session_length, catalog=catalog),
    }


def _serving(agent: Recommender) -> Choose:
    return lambda histories, _: agent.recommend(histories)


def _oracle(simulator: Any, session_length: int) -> Choose:
    def choose(histories: EventBatch, state: Any) -> SessionBatch:
        items_U1K = torch.from_numpy(simulator.oracle(state, session_length))[:, None]
        return SessionBatch(item_ids_USK=items_U1K, logp_US=torch.full(items_U1K.shape[:2], torch.nan))

    return choose


def readable(served: ServingRecord, agent: str, catalog: Catalog) -> list[list[Any]]:
    """The last visit that the first users paid, item by item."""
    rows = []
    for user in range(len(served.visits[0]["alive_U"])):
        visit = max(v for v, seen in enumerate(served.visits) if seen["alive_U"][user])
        happened = served.visits[visit]
        for k, item in enumerate(happened["slates_UK"][user].tolist()):
            did = [name for name, flag in zip(BEHAVIOURS, happened["behaviours"][user, k], strict=True) if flag]
            seen = happened["examined"][user, k]
            rows.append(
                [
                    f"user {user + 1}",
                    agent,
                    visit + 1,
                    k + 1,
                    str(catalog.raw_ids_I[item]),
                    int(catalog.topic_I[item]),
                    round(float(catalog.duration_s_I[item]), 1),
                    round(float(happened["watch_s"][user, k]), 1) if seen else None,
                    ", ".join(did) or "-" if seen else "not reached",
                ]
            )
    return rows


def judge_offline(
    agents: dict[str, Recommender],
    reward: SessionReward,
    log: EventLog,
    catalog: Catalog,
    requests: Requests,
    config: JudgedConfig,
    judged_by: str,
) -> dict[str, Any]:
    """Who foretells what held-out users watched next, and what the reward model thinks of what each would serve.

    Recall and NDCG of the served session's K items against the items of the held-out session, all of them relevant, and
    of the ten likeliest next items against the first item of that session; how the served items are spread over the
    catalogue and its creators.

    Args:
        agents: the agents to compare, "base" and "aligned" among them.
        reward: the reward model.
        log: what the popularity reference counts: what agents may learn from, and nothing that is held out.
        catalog: the items.
        requests: one held-out request a user.
        config: lengths and seed.
        judged_by: who they are, in words.
    """
    ratios = {}
    for name, agent in (references(log, catalog, config) | agents).items():
        with progress(f"Testing {name}") as step:
            ratios[name] = _offline_ratios(agent, reward, catalog, requests, step)
    return {**compared(ratios, config.seed), "judged_by": judged_by}


def _offline_ratios(
    agent: Recommender, reward: SessionReward, catalog: Catalog, requests: Requests, step: Step
) -> dict[str, Figure]:
    """The offline metrics of one agent, one row a held-out user."""
    served, opinions, next_items = [], [], []
    for low in range(0, len(requests), OFFLINE_BLOCK):
        histories = requests.histories.rows(slice(low, low + OFFLINE_BLOCK))
        with torch.inference_mode():
            sessions = agent.recommend(histories)
            opinions.append(reward(histories, sessions)[:, 0])
            next_items.append(top_items(agent, histories, min(NEXT_ITEMS, catalog.num_items)))
        served.append(sessions.item_ids_USK[:, 0])
        step(min(low + OFFLINE_BLOCK, len(requests)), len(requests))
    items_UK = torch.cat(served).numpy()
    targets_UK = requests.targets_NK.numpy()
    metrics = {
        "model_reward": torch.cat(opinions).double().numpy(),
        "diversity": session_diversity(catalog, items_UK),
        **recall_ndcg(items_UK, targets_UK, "session"),
        **recall_ndcg(torch.cat(next_items).numpy(), targets_UK[:, :1], "next item"),
    }
    # The served items stand in for exposures: nobody has looked at them, so all of them count.
    user_UK = np.broadcast_to(np.arange(len(items_UK))[:, None], items_UK.shape)
    items_UI = shown_items(user_UK.ravel(), items_UK.ravel(), (len(items_UK), catalog.num_items))
    ratios = {name: Ratio(value_U, np.ones(len(value_U))) for name, value_U in metrics.items()}
    return {**ratios, **spread_figures(items_UI, catalog)}


def top_items(agent: Any, histories: EventBatch, n: int) -> torch.Tensor:
    """The ``n`` items [U, n] an agent holds likeliest to come next, best first, -1 where a search finds no more.

    A generative agent's are the ``n`` best sessions of one item, another's the session of ``n`` items it would serve.
    """
    agent = copy.copy(agent)  # the caller's goes on with sessions of its own length
    if hasattr(agent, "beams"):
        agent.session_length = 1
        items_US = agent.beams(histories, n).item_ids_USK[:, :, 0]
        return F.pad(items_US, (0, n - items_US.shape[1]), value=-1)
    agent.session_length = n
    return agent.recommend(histories).item_ids_USK[:, 0]


def recall_ndcg(served_UK: NDArray[np.int64], targets_UM: NDArray[np.int64], of: str) -> dict[str, NDArray[np.float64]]:
    """Recall and NDCG of ranked items against those that really followed, all of them relevant.

    Args:
        served_UK: the agent's items, best first, -1 where it has no more.
        targets_UM: the items that followed, -1 after the last one; each user has at least one.
        of: what is foretold, for the metrics' names.

    Returns:
        float64 [U]: ``recall@K of ...`` and ``ndcg@K of ...``; 1 where all that could be foretold was.
    """
    length = served_UK.shape[1]
    hit_UK = ((served_UK[:, :, None] == targets_UM[:, None, :]) & (targets_UM >= 0)[:, None, :]).any(axis=2)
    discount_K = 1 / np.log2(np.arange(length) + 2)
    # Users took fewer items than K, or more: both figures are divided by the best that could be had, so 1 is in reach.
    possible_U = np.minimum((targets_UM >= 0).sum(axis=1), length)
    return {
        f"recall@{length} of {of}": hit_UK.sum(axis=1) / possible_U,
        f"ndcg@{length} of {of}": (hit_UK * discount_K).sum(axis=1) / np.cumsum(discount_K)[possible_U - 1],
    }

"""Fits a user simulator to a log, and measures how far its users are from those of the log.

    log -> users in three parts -> ranker (most of them) -> simulator (calibrated on others) -> judged by held-out ones

There are two judgements. First, how well is the next response of held-out users predicted from their real history (area
under the ROC curve, log loss, calibration)? Second, how far from the log are their responses when they visit again
inside the simulator, with the same sessions (:mod:`feedgym.data.realism`)? The distance between two halves of the log
shows what chance alone gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import TypedDict

from feedgym.agents.fit import Curve, fit
from feedgym.agents.ranker import Ranker, RankingDataset
from feedgym.data.events import BEHAVIOURS, Catalog, Event, EventLog
from feedgym.data.ranking import RankingRows, ranking_requests
from feedgym.data.realism import compare
from feedgym.data.requests import LogAndItems
from feedgym.data.sessions import logged_sessions, user_of_rows
from feedgym.data.splits import split_users, take_users
from feedgym.envs.learned import LearnedSimulator
from feedgym.envs.learned.fit import LearnedConfig, fit_figures, fit_simulator
from feedgym.envs.learned.users import replay_users
from feedgym.experiments.evaluate import Table
from feedgym.experiments.logs import LOG, plan_log, recorded_log, simulated_log, simulator_of, users_key
from feedgym.experiments.progress import progress
from feedgym.experiments.report import conclude
from feedgym.experiments.run import Codec, Plan, Run, json_of, with_curve
from feedgym.experiments.simulator.presets import LearnedRun
from feedgym.experiments.simulator.realism import write_realism
from feedgym.experiments.statistics import Ratio, interval, resampling_counts
from feedgym.plugins import is_folder, key_of, resolve, title_of


class SimulatorJudgement(TypedDict):
    """The stage of the judgement, as :func:`judged` makes it."""

    offline: dict[str, Any]
    agents: dict[str, Table]
    distances: list[dict[str, Any]]


JUDGEMENT: Codec[Any] = json_of(SimulatorJudgement)


def plan(config: LearnedRun) -> Plan:
    """The stages in order, with the settings that decide each."""
    plan = Plan()
    simulated = [users_key(config, config.seed), config.log, config.session_length, config.seed]
    log = plan_log(plan, config, simulated, "simulator", "simulator_options")
    requests = [config.session_length, config.history_length, config.calibration, config.held_out, config.seed]
    fitted = [key_of("ranker", config.ranker), config.d_model, config.min_events, config.epochs, config.fit]
    ranker = plan.stage("ranker", fitted + requests, (log,))
    simulator = plan.stage("simulator", [config.session_length, config.known_visits], (ranker,))
    plan.stage("judged", config.seed, (simulator,), own="Its plots are in the run's folder")
    return plan


def experiment(config: LearnedRun, run: Run) -> dict[str, Any]:
    """Fit a simulator and judge it.

    Args:
        config: the whole experiment.
        run: the folder that keeps it; stages found there are not done again.

    Returns:
        The summary, as written to ``summary.json``.
    """
    log = run.stage("log", lambda _: _read_log(config, run.trust), LOG)
    parts = LogSplit.of(config, log.value)
    kind = resolve("ranker", config.ranker)
    ranker = run.stage(
        "ranker",
        lambda work: _train(config, kind, parts, work),
        with_curve(Codec(kind.save_pretrained, kind.load)),
    )
    simulator = run.stage(
        "simulator",
        lambda _: parts.simulator(config, ranker.value[0]),
        Codec(lambda made, folder: made.save(folder), partial(LearnedSimulator.load, ranker=kind)),
    )
    judgement = run.stage(
        "judged",
        lambda _: judged(simulator.value, parts.held_out, config.session_length, config.seed, run.folder),
        JUDGEMENT,
    )
    summary = {
        "title": f"A simulator fitted to {_source(config)}",
        "note": "The log's held-out users and the same users in the simulator, served the same sessions.",
        "judged_by": f"{parts.held_out[0].num_users:,} held-out users",
        "lift": {},
        "learning": [
            [{"iteration": row["step"], "loss of unseen users": -row["validation"]} for row in ranker.value[1]]
        ],
        **judgement.value,
        "seed": config.seed,
        **run.facts(),
    }
    return conclude(run, summary, artifacts={"learned-simulator": "simulator"})


def _source(config: LearnedRun) -> str:
    """Short name of the log's source."""
    if config.data is not None or is_folder("simulator", config.simulator):
        return Path(config.data or config.simulator).name
    return title_of("simulator", config.simulator)


def _read_log(config: LearnedRun, trust: bool) -> LogAndItems:
    if config.data is not None:
        return recorded_log(config)
    simulator = simulator_of(config, config.seed, trust)
    return simulated_log(simulator, config.log, config.session_length, config.seed)


class LogSplit:
    """A log's users in three parts: ``train`` and ``calibration`` in one log, ``held_out`` in another.

    Attributes:
        log: training and calibration users.
        catalog: the items.
        unseen_U: true for its calibration users.
        held_out: the other users' log, with its items.
    """

    def __init__(self, log: EventLog, catalog: Catalog, unseen_U: NDArray[np.bool_], held_out: EventLog) -> None:
        self.log, self.catalog, self.unseen_U, self.held_out = log, catalog, unseen_U, (held_out, catalog)

    @classmethod
    def of(cls, config: LearnedRun, data: LogAndItems) -> LogSplit:
        """Split a log.

        Raises:
            ValueError: too few users.
        """
        log, catalog = data
        split = split_users(log.user_ids_U, validation=config.calibration, held_out=config.held_out, seed=config.seed)
        sizes = {name: len(getattr(split, f"{name}_idx")) for name in ("train", "validation", "held_out")}
        if min(sizes.values()) == 0:
            raise ValueError(f"{log.num_users} users leave a part empty ({sizes}); give a longer log or another seed.")
        kept = np.sort(np.concatenate([split.train_idx, split.validation_idx]))
        unseen_U = np.isin(kept, split.validation_idx)
        return cls(take_users(log, kept), catalog, unseen_U, take_users(log, split.held_out_idx))

    def requests(self, config: LearnedRun) -> tuple[RankingRows, RankingRows]:
        """The requests of the training and of the calibration users; events before their first login are history."""
        rows = ranking_requests(self.log, self.catalog, config.history_length, config.session_length)
        login = np.flatnonzero(self.log.event == Event.LOGIN)
        first_s_U = np.full(self.log.num_users, np.inf)
        np.minimum.at(first_s_U, user_of_rows(self.log)[login], self.log.timestamp_s[login])
        rows = rows.rows(np.flatnonzero(rows.start_s_N >= first_s_U[rows.user_idx_N]))
        unseen_N = self.unseen_U[rows.user_idx_N]
        return rows.rows(np.flatnonzero(~unseen_N)), rows.rows(np.flatnonzero(unseen_N))

    def simulator(self, config: LearnedRun, ranker: Ranker) -> LearnedSimulator:
        """The simulator with a trained ranker."""
        lengths = LearnedConfig(session_length=config.session_length, known_visits=config.known_visits)
        return fit_simulator(self.log, self.catalog, ranker, unseen_U=self.unseen_U, config=lengths)


def _train(config: LearnedRun, kind: type[Ranker], parts: LogSplit, work: Path) -> tuple[Ranker, Curve]:
    """The ranker with the weights of the epoch that predicted the calibration users best."""
    train, unseen = parts.requests(config)
    real_NK = train.batch.mask_NK
    count_B = train.batch.behaviours_NKB[real_NK].sum(0).tolist()
    tasks = tuple(name for name, count in zip(BEHAVIOURS, count_B, strict=True) if count >= config.min_events)
    torch.manual_seed(config.seed)
    settings: Any = kind.config_class
    model = kind(
        settings(
            num_items=parts.catalog.num_items,
            profile_sizes=parts.log.profile_sizes,
            d_model=config.d_model,
            history_length=config.history_length,
            tasks=tasks or ("click",),
            watch=bool(parts.log.watch_s.any()),
        )
    )
    with progress("Training the ranker") as step:
        return fit(
            model,
            RankingDataset(rows=train.batch),
            config.fit,
            config.epochs,
            config.seed,
            lambda model: -model.mean_loss(unseen.batch),
            work,
            step,
        )


# ---------------------------------------------------------------- judgement


def judged(
    simulator: LearnedSimulator, data: LogAndItems, session_length: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Compares the held-out users' log with the same users in the simulator; writes ``realism.html`` to ``folder``.

    Returns:
        Parts of the summary: ``offline`` (how well each response is predicted), ``agents`` (the figures of the log and
        of the simulation) and ``distances``.
    """
    log, catalog = data
    with progress("Replaying held-out users") as step:
        replayed = replay_users(simulator, log, session_length=session_length, seed=seed)
        step(1, 1)
    of_log, of_replay, distances = compare(data, (replayed, catalog), seed=seed)
    names = ("held-out users", "the same, simulated")
    write_realism({"names": names, "aspects": (of_log, of_replay), "distances": distances}, folder)
    return {
        "offline": fit_figures(simulator, log, session_length),
        "agents": {"log": figures_of(log, seed), "simulated": figures_of(replayed, seed)},
        "distances": [vars(distance) for distance in distances],
    }


def figures_of(log: EventLog, seed: int) -> Mapping[str, dict[str, float]]:
    """Means of a log's users with intervals, by the names of the agents' metrics."""
    seen = (log.event == Event.IMPRESSION) & log.examined
    user = user_of_rows(log)[seen]

    def per_user(values: NDArray) -> NDArray[np.float64]:
        return np.asarray(np.bincount(user, values, log.num_users), np.float64)

    seen_U = per_user(np.ones(len(user)))
    sessions = logged_sessions(log, int(log.position.max()) + 1)
    visits_U = np.bincount(sessions.user_idx_N, minlength=log.num_users).astype(np.float64)
    gap_s_N = sessions.return_gap_s_N
    back_N = ~np.isnan(gap_s_N)
    returns_U = np.bincount(sessions.user_idx_N[back_N], minlength=log.num_users).astype(np.float64)
    within_U = np.bincount(sessions.user_idx_N[back_N], gap_s_N[back_N] <= 86_400, log.num_users)
    figures = {
        "watch_s": Ratio(per_user(log.watch_s[seen]), visits_U),
        "session_items": Ratio(seen_U, visits_U),
        "return_24h": Ratio(within_U, returns_U),
        **{f"{name}_rate": Ratio(per_user(log.behaviours[seen, b]), seen_U) for b, name in enumerate(BEHAVIOURS)},
    }
    counts_RU = resampling_counts(log.num_users, seed)
    return {name: interval(ratio, counts_RU) for name, ratio in figures.items()}

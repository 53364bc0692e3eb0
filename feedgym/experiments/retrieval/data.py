"""Data of next-item retrieval: a log, of simulated users or of a data set, split by leave-one-out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedgym.agents.pretrain import SessionDataset
from feedgym.data.events import BEHAVIOUR_IDX, Catalog, Event, EventLog
from feedgym.data.requests import LazyHistories
from feedgym.data.sessions import LoggedHistories
from feedgym.data.splits import ItemSplit, NextItems, leave_one_out
from feedgym.experiments.configs import DataConfig
from feedgym.experiments.logs import plan_log, recorded_log, simulated_log, simulator_of, users_key
from feedgym.experiments.retrieval.metrics import RankedTargets, RankingConfig, evaluate_ranking
from feedgym.experiments.retrieval.presets import RetrievalConfig
from feedgym.experiments.run import Plan

CHOSEN_BY = "NDCG@10"
"""Validation figure for choosing epochs and baselines."""
SESSION = 10
"""Items per session of the baselines; only their scores are used here."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RetrievalData:
    """The log cut in time: training data of retrieval agents, and targets for judgement.

    Attributes:
        config: the whole experiment.
        log: the whole log.
        catalog: its items.
        split: the training events, and the targets.
    """

    config: RetrievalConfig
    log: EventLog
    catalog: Catalog
    split: ItemSplit

    @classmethod
    def of(cls, config: RetrievalConfig, data: tuple[EventLog, Catalog]) -> RetrievalData:
        """Split the log."""
        split = leave_one_out(data[0], behaviours=config.behaviours, min_items=config.min_items)
        return cls(config=config, log=data[0], catalog=data[1], split=split)

    def training_histories(self, length: int) -> LazyHistories:
        """The newest ``length`` training events of every user who has at least one."""
        log, end_U = self.log, self.split.end_U
        now_s_U = log.timestamp_s[np.maximum(end_U - 1, 0)] if log.num_events else np.zeros(len(end_U))
        every = LoggedHistories(log, self.catalog, np.arange(log.num_users), end_U, now_s_U, length)
        return LazyHistories([every], np.flatnonzero(every.lengths_N.numpy()))

    def windows(self, length: int, every: bool) -> SessionDataset:
        """Items taken in training with their histories: every item, or only each user's last one."""
        log = self.log
        chosen = [BEHAVIOUR_IDX[name] for name in self.config.behaviours]
        taken = self.split.is_train & (log.event == Event.IMPRESSION) & log.examined
        row_N = np.flatnonzero(taken & log.behaviours[:, chosen].any(axis=1))
        user_N = np.searchsorted(log.offsets_U1, row_N, side="right") - 1
        if not every:
            last_N = np.append(user_N[1:] != user_N[:-1], True)
            row_N, user_N = row_N[last_N], user_N[last_N]
        before = LoggedHistories(log, self.catalog, user_N, row_N, log.timestamp_s[row_N], length)
        return SessionDataset(
            histories=before, item_ids_NK=torch.from_numpy(log.item_id[row_N].astype(np.int64))[:, None]
        )

    def validation(self, agent: Any) -> float:
        """Validation figure of an agent, or of an epoch of it."""
        return self.rank(agent, RankingConfig(at=(10,), leave_out_seen=self.config.ranking.leave_out_seen,
                                              history_length=self.config.ranking.history_length),
                         self.validation_targets()).mean(CHOSEN_BY)  # fmt: skip

    def validation_targets(self) -> NextItems:
        """All validation targets, or a drawn part."""
        targets, wanted = self.split.validation, self.config.validation_targets
        if not 0 < wanted < len(targets):
            return targets
        drawn = np.random.default_rng(0).choice(len(targets), wanted, replace=False)
        return targets.rows(np.sort(drawn))

    def rank(
        self, agent: Any, config: RankingConfig, targets: NextItems | None = None, step: Any = None
    ) -> RankedTargets:
        """Rank targets, by default the test targets."""
        return evaluate_ranking(agent, self.log, self.catalog, self.split, config, targets=targets, step=step)


def plan_data(plan: Plan, config: DataConfig) -> str:
    """The log's stage of an experiment that uses only a log."""
    simulated = [users_key(config, config.seed), config.log, config.seed]
    return plan_log(plan, config, simulated, "simulator", "simulator_options")


def read_log(config: DataConfig, work: Path, *, trust: bool = False) -> tuple[EventLog, Catalog]:
    """Read the log of the data, or of simulated users; ``trust`` as in :func:`feedgym.envs.feed.make_simulator`."""
    if config.data is not None:
        return recorded_log(config)
    return simulated_log(simulator_of(config, config.seed, trust), config.log, SESSION, config.seed)

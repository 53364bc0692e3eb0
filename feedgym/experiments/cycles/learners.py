"""Learners that go through deployment cycles; each learns from the sessions it served."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from feedgym.agents.baselines import PopularRecommender
from feedgym.agents.generation import GenerativeRecommender
from feedgym.agents.pretrain import SessionDataset, pretrain
from feedgym.experiments.align.agents import model_codec, recommender_of, reward_of
from feedgym.experiments.align.pool import Pool
from feedgym.experiments.align.presets import RoundsConfig
from feedgym.experiments.align.rounds import sample_round
from feedgym.experiments.align.stages import FIGURES, REWARD, SAMPLED
from feedgym.experiments.align.steps import fitted_reward, pretrained, updated
from feedgym.experiments.align.world import Simulated
from feedgym.experiments.cycles.populations import SERVED, Served, learned_from, serve_cycle
from feedgym.experiments.cycles.presets import CyclesConfig
from feedgym.experiments.cycles.stages import OFFLINE, name_of
from feedgym.experiments.exposure import times_seen
from feedgym.experiments.progress import progress
from feedgym.experiments.records import RECORDS
from feedgym.experiments.rollouts import Rollouts
from feedgym.experiments.run import Run, with_record
from feedgym.experiments.serve import ServingRecord, judges_of, of_judges, serve, serving, told_agents
from feedgym.protocols import Recommender, SessionReward
from feedgym.rewards.ensemble import RewardEnsemble
from feedgym.rewards.model import RewardModel
from feedgym.rewards.training import train_reward_model_further
from feedgym.tokenizers.codes import CodeTokenizer


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The parts that all learners share.

    Attributes:
        config: the experiment.
        run: the run that keeps its stages.
        world: the users.
        start: the pool of the production system's log.
        tokenizer: the items' codes.
        rollouts: samples and scores sessions.
    """

    config: CyclesConfig
    run: Run
    world: Simulated
    start: Pool
    tokenizer: CodeTokenizer
    rollouts: Rollouts

    def agent(self, model: Any) -> GenerativeRecommender:
        """Make the agent of a model that serves drawn sessions."""
        return recommender_of(self.config, model, self.tokenizer, self.start.catalog)

    def score(self, reward: RewardModel | RewardEnsemble, pool: Pool) -> SessionReward:
        """Make the score of sessions with a reward model."""
        return reward_of(self.config, pool.known, pool.catalog, reward)


@dataclass(frozen=True, kw_only=True)
class Models:
    """Models and data of a learner at one moment.

    Attributes:
        model: the generative agent that it serves; None for popularity.
        base: the reference of its alignment.
        reward: its reward model.
        served: the latest record of every population that it served.
        pool: the sessions that it learns from.
    """

    model: Any
    base: Any
    reward: RewardModel | RewardEnsemble
    served: Served
    pool: Pool


class Learner:
    """Takes one learner through the cycles; subclasses define how it learns.

    Args:
        name: prefix of its stages.
        setting: the parts that all learners share.
        first: its models and data before the first cycle.
    """

    def __init__(self, name: str, setting: Setting, first: Models) -> None:
        self.name, self.setting, self.models = name, setting, first

    def agent(self) -> Recommender:
        """The agent that serves now."""
        return self.setting.agent(self.models.model)

    def serve(self, cycle: int) -> Served:
        """Serve the users of a cycle with its agent and add their responses to the pool; returns their records."""
        of, models = self.setting, self.models

        def make(work: Path) -> Served:
            with progress(f"Cycle {cycle}: {self.name} serves") as step:
                return serve_cycle(of.config, of.world.simulator, self.agent(), models.served, cycle, step)

        came: Served = self._stage(cycle, "served", make, SERVED)
        now = {**models.served, **came}
        pool = learned_from(of.config, of.start, now, cycle, of.world)
        self.models = replace(models, served=now, pool=pool)
        return came

    def learn(self, cycle: int) -> None:
        """Learn from the pool."""

    def judged(self, cycle: int) -> ServingRecord:
        """Serve the judges with its agent."""
        of = self.setting
        config, score = of.config, of.score(self.models.reward, self.models.pool)
        simulator = of_judges(of.world.simulator, config.judge)

        def make(work: Path) -> dict[str, ServingRecord]:
            with progress(f"Cycle {cycle}: judging {self.name}") as step:
                told = told_agents(config) | {"visits": config.judge.visits, "step": step}
                return {self.name: serve(simulator, serving(self.agent()), score, judges_of(config), **told)}

        return self._stage(cycle, "judged", make, RECORDS)[self.name]

    def _stage(self, cycle: int, what: str, make: Callable[[Path], Any], codec: Any) -> Any:
        return self.setting.run.stage(name_of(self.name, cycle, what), make, codec).value


class Popular(Learner):
    """Serves the most popular items of its pool."""

    def agent(self) -> Recommender:
        """Popularity, without items that the user has seen."""
        catalog, length = self.setting.start.catalog, self.setting.config.session_length
        count_I = times_seen(self.models.pool.rate.sessions, catalog.num_items)
        return PopularRecommender(torch.from_numpy(count_I), length, catalog=catalog)


class Base(Learner):
    """Predicts the next item of good sessions; it is not aligned."""

    def learn(self, cycle: int) -> None:
        """Train the model further, or train a new one."""
        kind, of, models = self.setting.config.cycles.base, self.setting, self.models
        if kind == "keep":
            return
        make = {
            "continue": partial(further, of.config, models.pool, models.model, cycle),
            "refit": partial(pretrained, of.config, models.pool, of.tokenizer),
        }[kind]
        model = self._stage(cycle, "base", make, model_codec(of.config, of.tokenizer))
        self.models = replace(models, model=model, base=model)


class Aligned(Base):
    """Learns as the base does, refits its reward model, and aligns to it."""

    def learn(self, cycle: int) -> None:
        """Learn from the pool, then align for some rounds."""
        super().learn(cycle)
        self._learn_reward(cycle)
        self._align(cycle, self.setting.config.cycle_rounds)

    def _learn_reward(self, cycle: int) -> None:
        kind, of, models = self.setting.config.cycles.reward, self.setting, self.models
        if kind == "keep":
            return
        make = {
            "continue": partial(further_reward, of.config, models.pool, models.reward, cycle),
            "refit": partial(fitted_reward, of.config, models.pool),
        }[kind]
        self.models = replace(models, reward=self._stage(cycle, "reward", make, REWARD))

    def _align(self, cycle: int, rounds: RoundsConfig) -> None:
        config, name = self.setting.config, partial(name_of, self.name, cycle)
        for r in range(config.cycles.rounds):
            t = config.rounds.num + (cycle - 1) * config.cycles.rounds + r
            names = name(f"sampled-{r}"), name(f"aligned-{r + 1}")
            self.models = aligned_once(self.setting, self.models, rounds, t, names)


class Offline(Aligned):
    """Aligned for as many rounds, but only on the log and to the log's reward model; it serves nobody."""

    def serve(self, cycle: int) -> Served:
        """No records: nobody is served."""
        return {}

    def learn(self, cycle: int) -> None:
        """Align for some more rounds."""
        self._align(cycle, self.setting.config.rounds)


LEARNERS: dict[str, type[Learner]] = {"aligned": Aligned, OFFLINE: Offline, "base": Base, "popular": Popular}
"""The learners by the names of :class:`feedgym.experiments.cycles.presets.CycleConfig`."""


def aligned_once(of: Setting, models: Models, rounds: RoundsConfig, t: int, names: tuple[str, str]) -> Models:
    """Run a round of alignment: sessions for some users of the pool, their scores, and the method's update.

    Args:
        of: the parts that all learners share.
        models: models and data before the round.
        rounds: options for drawing users and sessions.
        t: the round's number, part of its seed.
        names: names of its two stages.
    """
    config = of.config
    sampled = of.run.stage(
        names[0],
        partial(
            sample_round, rounds, models.pool, of.world, of.rollouts, of.agent(models.model), t,
            base=of.agent(models.base), reward=of.score(models.reward, models.pool), seed=config.seed,
        ),
        SAMPLED,
    )  # fmt: skip
    aligned = of.run.stage(
        names[1],
        partial(updated, config, models.pool, models.model, models.base, sampled.value, t),
        with_record(model_codec(config, of.tokenizer), FIGURES),
    )
    return replace(models, model=aligned.value[0])


def further(config: CyclesConfig, pool: Pool, model: Any, cycle: int, work: Path) -> Any:
    """Train a model further by next-token prediction, on the good sessions of the pool."""
    model, cycles = copy.deepcopy(model), config.cycles
    torch.manual_seed(config.seed + cycle)
    schedule = replace(config.pretrain, steps=0, epochs=cycles.further_epochs, lr=cycles.further_lr)
    dataset = SessionDataset(histories=pool.imitate.histories, item_ids_NK=pool.imitate.targets_NK)
    with progress(f"Cycle {cycle}: further next-token prediction") as step:
        return pretrain(model, dataset, replace(schedule, seed=schedule.seed + config.seed + cycle), work, step)


def further_reward(
    config: CyclesConfig, pool: Pool, reward: RewardModel | RewardEnsemble, cycle: int, work: Path
) -> RewardModel | RewardEnsemble:
    """Train a reward model further, on the sessions of the pool."""
    cycles, seed = config.cycles, config.reward_model.seed + config.seed + cycle
    settings = replace(config.reward_model, epochs=cycles.further_epochs, lr=cycles.further_lr, seed=seed)
    with progress(f"Cycle {cycle}: training the reward model further") as step:
        rate = pool.rate
        return train_reward_model_further(reward, rate.histories, rate.sessions, settings, work, step)

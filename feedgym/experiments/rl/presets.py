"""Experiments with RLlib as functions: each returns the whole configuration of a run, to be changed field by field."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from feedgym.agents.rl_settings import TrainConfig
from feedgym.agents.slates.layers import SlateNetConfig
from feedgym.envs.truth import RewardWeights
from feedgym.experiments.configs import JudgeConfig, LogConfig
from feedgym.ranges import Few, Length, Ranged, Seed


@dataclass(frozen=True, kw_only=True)
class RLConfig(Ranged):
    """An agent trained with RLlib on a registered environment, or from its log, and judged together with all others."""

    seed: Seed = 0
    """Seed of the log, the judging users and, with the number of the training, of weights and samples."""
    num_seeds: Few = 1
    """Number of trainings, each with another seed; 2 or more also give intervals over trainings."""
    env: str = "feedgym/ShortVideo-v1"
    """Id of the environment."""
    env_options: tuple[str, ...] = ()
    """NAME=VALUE pairs for the environment or its simulator, e.g. num_items=2000 warmup_visits=2."""
    against: str | None = None
    """Folder of a finished onerec-ipa run: train and judge in its world, together with its agents. Its simulator,
    lengths, reward and log replace those here."""
    session_length: Length | None = None
    """K, items per session; the environment's own if left out."""
    history_length: Length | None = None
    """T, events of the history that the agent sees; the environment's own if left out."""
    weights: RewardWeights | None = None
    """Weights of the reward of a visit; the environment's own if left out."""
    sizes: SlateNetConfig = field(default_factory=SlateNetConfig)
    """The networks."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The algorithm."""
    log: LogConfig = field(default_factory=lambda: LogConfig(users=2000, visits=10))
    """The production system's log, for popularity and as the only training data of bc, marwil and cql."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """The judging users."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.options()
        if self.judge.best_of and self.against is None:
            raise ValueError("judge.best_of needs agents and a reward model; name a finished run by --against.")

    def options(self) -> dict[str, Any]:
        """Keywords of the environment that differ from the registered ones."""
        given = dict(map(_pair, self.env_options))
        if "trust" in given:
            raise ValueError("env_options cannot make a simulator's folder trusted; use --trust.")
        named = {"session_length": self.session_length, "history_length": self.history_length, "reward": self.weights}
        return {name: value for name, value in named.items() if value is not None} | given

    def code(self) -> list[tuple[str, str | None]]:
        """The code that it names, apart from data; see :mod:`feedgym.trust`. An id with a module before it is code."""
        options = self.options()
        kinds = {"simulator": "simulator", "reward": "weights"}
        given = [(kind, options[name]) for name, kind in kinds.items() if isinstance(options.get(name), str)]
        return [("env", self.env if ":" in self.env else None), *given]


def _pair(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise ValueError(f"env_options={text!r} is not a NAME=VALUE pair; write it as num_items=2000.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def ppo() -> RLConfig:
    """PPO over whole slates, Plackett-Luce; minutes on 2 cores."""
    return RLConfig(train=TrainConfig(algorithm="ppo", iterations=24, epochs=3, lr=3e-3))


def slateq() -> RLConfig:
    """SlateQ: the value of a slate from its items' values and a choice model."""
    return RLConfig(
        train=TrainConfig(algorithm="slateq", iterations=8, steps=1280, batch_size=256, updates=0.04, lr=2e-3)
    )


def dqn() -> RLConfig:
    """DQN on sessions that grow item by item."""
    return RLConfig(
        train=TrainConfig(algorithm="dqn", iterations=24, steps=2560, batch_size=256, updates=0.02, lr=2e-3, gamma=0.5)
    )


def sac() -> RLConfig:
    """SAC on proto-items: a point in content space, whose nearest items are served."""
    return RLConfig(
        train=TrainConfig(algorithm="sac", iterations=40, steps=2560, batch_size=256, updates=0.02, lr=3e-3)
    )


def bc() -> RLConfig:
    """Behaviour cloning from the log."""
    return RLConfig(train=TrainConfig(algorithm="bc", iterations=6, steps=40, batch_size=256, lr=2e-3))


def marwil() -> RLConfig:
    """MARWIL from the log: cloning with more weight on good visits."""
    return RLConfig(train=TrainConfig(algorithm="marwil", iterations=6, steps=40, batch_size=256, lr=2e-3))


def cql() -> RLConfig:
    """CQL from the log, on proto-items."""
    return RLConfig(
        train=TrainConfig(algorithm="cql", iterations=8, steps=30, batch_size=256, lr=1e-3, proto_each=True)
    )


def smoke() -> RLConfig:
    """PPO in seconds: for tests and continuous integration; its figures mean nothing."""
    small = TrainConfig(iterations=2, num_envs=8, steps=64, batch_size=32, epochs=1, checkpoints=2)
    return replace(
        ppo(),
        num_seeds=2,
        env_options=("num_items=60", "horizon=4"),
        session_length=3,
        history_length=8,
        sizes=SlateNetConfig(width=8, heads=2, hidden=16),
        train=small,
        log=LogConfig(users=40, visits=3),
        judge=JudgeConfig(users=20, visits=2, beams=0),
    )


RL_PRESETS: dict[str, Callable[[], RLConfig]] = {
    **{f"rllib-{make.__name__}": make for make in (ppo, slateq, dqn, sac, bc, marwil, cql)},
    "rllib-smoke": smoke,
}
"""Presets of reinforcement learning in `feedgym run`."""

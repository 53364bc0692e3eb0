"""Makes RLlib's configuration of each algorithm from the options of a training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray.data import ActorPoolStrategy, DataContext
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.cql import CQLConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from feedgym.agents.rl_settings import OFFLINE, REPLAY, TrainConfig
from feedgym.agents.rllib.feeds import make_env
from feedgym.agents.rllib.modules import MODULE_OF, NoCatalog, SlateQLearner
from feedgym.agents.rllib.task import NETWORK_OF, Task

ENV = "feedgym-training"


def algorithm_config(
    task: Task, config: TrainConfig, seed: int, rows: Path | None = None, done: int = 0
) -> AlgorithmConfig:
    """RLlib's configuration of a training.

    Args:
        task: users and networks.
        config: the algorithm and its options.
        seed: for weights, samples and users.
        rows: the log, for offline algorithms (:func:`feedgym.agents.rllib.feeds.write_rows`).
        done: iterations done before; exploration continues after them.
    """
    for chatty in ("ray.rllib", "ray.data"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    made = _CONFIG_OF[config.algorithm](config)
    made.framework("torch").debugging(seed=seed, log_level="ERROR").learners(num_learners=0)
    register_env(ENV, partial(make_env, task, config))
    made.environment(ENV).env_runners(
        num_env_runners=0,
        num_envs_per_env_runner=1 if config.algorithm in OFFLINE else config.num_envs,
        gym_env_vectorize_mode="vector_entry_point",
    )
    # By default DQN's iterations have 1,000 requests, and those of SAC and CQL last at least a second.
    made.reporting(
        min_time_s_per_iteration=None,
        min_train_timesteps_per_iteration=0,
        min_sample_timesteps_per_iteration=config.steps if config.algorithm in REPLAY else 0,
    )
    if config.algorithm in OFFLINE:
        _read_log(made, task, config, rows)
    kind, module = NETWORK_OF[config.algorithm], MODULE_OF[config.algorithm]
    model_config = {
        "kind": kind,
        "world": task.world,
        "sizes": task.sizes,
        "more": task.more(config),
        "steps_ahead": horizon_of(config.gamma),
        "exploration": _exploration(config, done),
    }
    made.rl_module(rl_module_spec=RLModuleSpec(module_class=module, model_config=model_config, catalog_class=NoCatalog))
    return made


def horizon_of(gamma: float) -> float:
    """1 / (1 - gamma), the factor by which values exceed rewards. Networks learn values divided by it."""
    return 1 / max(1 - gamma, 1e-2)


def _exploration(config: TrainConfig, done: int) -> list[list[float]]:
    """Chances of random items by future step: from 1 to the final one over the first third of the training."""
    fading = max(1, config.iterations * config.steps // 3)
    left = max(0.0, 1 - done * config.steps / fading)
    return [[0, config.epsilon + (1 - config.epsilon) * left], [max(1, int(fading * left)), config.epsilon]]


def _read_log(made: AlgorithmConfig, task: Task, config: TrainConfig, rows: Path | None) -> None:
    """Reads the log in small batches, for machines with few cores; CQL needs an environment but never steps it."""
    assert rows is not None
    env: Any = make_env(task, config, {"num_envs": 1})
    made.environment(observation_space=env.single_observation_space, action_space=env.single_action_space)
    DataContext.get_current().enable_progress_bars = False
    made.offline_data(
        input_=[str(rows)],
        input_read_method="read_parquet",
        map_batches_kwargs={"compute": ActorPoolStrategy(size=1), "num_cpus": 1},
        iter_batches_kwargs={"prefetch_batches": 1},
        dataset_num_iters_per_learner=config.steps,
    )


def _ppo(config: TrainConfig) -> AlgorithmConfig:
    return PPOConfig().training(
        train_batch_size_per_learner=config.steps,
        minibatch_size=min(config.batch_size, config.steps),
        num_epochs=config.epochs,
        lr=config.lr,
        gamma=config.gamma,
        lambda_=0.9,
        entropy_coeff=config.entropy,
        clip_param=config.clip,
        vf_clip_param=float("inf"),
        vf_loss_coeff=0.5 / horizon_of(config.gamma) ** 2,
        use_kl_loss=False,
        grad_clip=1.0,
    )


def _q_learning(config: TrainConfig) -> AlgorithmConfig:
    made = DQNConfig().training(
        lr=config.lr, num_atoms=1, dueling=False, double_q=True, n_step=1, td_error_loss_fn="mse", **_replay(config)
    )
    return made.training(learner_class=SlateQLearner) if config.algorithm == "slateq" else made


def _sac(config: TrainConfig) -> AlgorithmConfig:
    rates: dict[str, Any] = dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr"), config.lr)
    return SACConfig().training(lr=None, twin_q=True, n_step=1, initial_alpha=config.alpha, **rates, **_replay(config))


def _replay(config: TrainConfig) -> dict[str, Any]:
    return {
        "gamma": config.gamma,
        "tau": config.tau,
        "target_network_update_freq": 1,
        "train_batch_size_per_learner": config.batch_size,
        "training_intensity": config.updates * config.batch_size,
        "num_steps_sampled_before_learning_starts": min(2 * config.batch_size, config.steps),
        "replay_buffer_config": {"type": "EpisodeReplayBuffer", "capacity": config.buffer},
    }


def _marwil(config: TrainConfig) -> AlgorithmConfig:
    shared: dict[str, Any] = {"lr": config.lr, "gamma": config.gamma, "train_batch_size_per_learner": config.batch_size}
    if config.algorithm == "bc":
        return BCConfig().training(**shared)
    return MARWILConfig().training(beta=config.beta, vf_coeff=1 / horizon_of(config.gamma) ** 2, **shared)


def _cql(config: TrainConfig) -> AlgorithmConfig:
    rates: dict[str, Any] = dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr"), config.lr)
    return CQLConfig().training(
        lr=None,
        gamma=config.gamma,
        tau=config.tau,
        twin_q=True,
        n_step=1,
        bc_iters=0,
        train_batch_size_per_learner=config.batch_size,
        **rates,
    )


_CONFIG_OF: dict[str, Callable[[TrainConfig], AlgorithmConfig]] = {
    "ppo": _ppo,
    "slateq": _q_learning,
    "dqn": _q_learning,
    "sac": _sac,
    "bc": _marwil,
    "marwil": _marwil,
    "cql": _cql,
}

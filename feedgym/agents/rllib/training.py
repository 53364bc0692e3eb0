"""Trains an agent, and resumes a killed training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID

from feedgym.agents.rl_settings import TrainConfig
from feedgym.agents.rllib.checkpoints import Curve, read_checkpoint, write_checkpoint
from feedgym.agents.rllib.configurations import algorithm_config
from feedgym.agents.rllib.modules import CHOICE_LOSS
from feedgym.agents.rllib.task import Task
from feedgym.agents.slates.policy import SlateNetwork


def train(
    task: Task,
    config: TrainConfig,
    seed: int,
    work: Path,
    rows: Path | None = None,
    step: Callable[..., None] | None = None,
    log: Callable[[dict[str, float], int], None] | None = None,
) -> tuple[SlateNetwork, Curve]:
    """Train an agent, or resume from the last checkpoint of a killed training.

    Weights, optimisers and target networks are restored; users start anew, and a replay buffer is filled again.

    Args:
        task: users and networks.
        config: the algorithm and its options.
        seed: for weights, samples and users.
        work: folder of the checkpoints.
        rows: the log, for offline algorithms.
        step: progress callback.
        log: called with the metrics of an iteration, and its number.

    Returns:
        The network, for :class:`feedgym.agents.rl_recommender.RLlibRecommender`, and the metrics of all iterations.
    """
    done, state, curve = read_checkpoint(work)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Overriding environment")  # RLlib uses one id for all trainings
        algorithm = algorithm_config(task, config, seed + done, rows, done).build_algo()
    if algorithm.local_replay_buffer is not None:  # RLlib draws from it with a generator that has no seed
        algorithm.local_replay_buffer.rng = np.random.default_rng(seed + done)
    try:
        if state is not None:
            algorithm.learner_group.set_state(state)
            if algorithm.env_runner_group is not None:
                algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group)
        every = max(1, config.iterations // config.checkpoints)
        for iteration in range(done + 1, config.iterations + 1):
            metrics = _metrics(algorithm.train(), before=done * config.steps)
            curve.append({"iteration": iteration, **metrics})
            if log is not None:
                log(metrics, iteration)
            if step is not None:
                step(iteration, config.iterations, {n: v for n, v in metrics.items() if n == "reward a step"})
            if iteration % every == 0 and iteration < config.iterations:
                write_checkpoint(work, iteration, algorithm.learner_group.get_state(), curve)
        return learned_network(algorithm, task, config), curve
    finally:
        algorithm.stop()


def _metrics(result: dict[str, Any], before: int) -> dict[str, float]:
    """Metrics for people: the training's own reward, the requests answered so far, and the learner's losses.

    Args:
        result: result of RLlib's iteration.
        before: requests that were answered before a killed training was resumed.
    """
    met = result.get("env_runners", {})
    metrics = {}
    if met.get("episode_len_mean"):
        metrics["reward a step"] = met["episode_return_mean"] / met["episode_len_mean"]
        metrics["episode return"] = met["episode_return_mean"]
    if met.get("num_env_steps_sampled_lifetime"):
        metrics["requests"] = before + float(met["num_env_steps_sampled_lifetime"])
    learner = result.get("learners", {}).get(DEFAULT_MODULE_ID, {})
    wanted = ("entropy", "vf_explained_var", "policy_loss", "qf_loss", CHOICE_LOSS, "qf_mean")
    return metrics | {name.replace("_", " "): float(learner[name]) for name in wanted if name in learner}


def learned_network(algorithm: Algorithm, task: Task, config: TrainConfig) -> SlateNetwork:
    """The current network of the algorithm's learner."""
    weights = algorithm.learner_group.get_weights()[DEFAULT_MODULE_ID]
    network = task.network(config)
    mine = {name.removeprefix("net."): value for name, value in weights.items() if name.startswith("net.")}
    network.load_state_dict({name: torch.as_tensor(value) for name, value in mine.items()})
    return network.eval()

"""Tests if a simulator learned from a log ranks agents like the simulator that made the log.

    python benchmarks/bench_learned.py RUN SIMULATOR [--users 1000] [--visits 8] [--seed 0] [--out FILE.json]

RUN is a finished run of an -ipa preset on simulated users, whose log and agents are taken; SIMULATOR is the folder of a
simulator that was fitted to that log (``feedgym run learned-simulator --data RUN/stages/log``). Every agent serves
fresh users of both, and the means of the true reward per visit are compared. The oracle is left out, because it needs
the truth. The learned simulator sees only the log. Intervals resample users, separately in each simulator.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from feedgym.agents.baselines import ItemKNNRecommender
from feedgym.agents.generation import GenerativeRecommender, SamplingConfig
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.envs.feed import judging, make_simulator
from feedgym.envs.luck import user_seeds
from feedgym.experiments.align.agents import FinishedRun, agents_of
from feedgym.experiments.controls import references
from feedgym.experiments.progress import progress
from feedgym.experiments.run import write_json
from feedgym.experiments.serve import serve
from feedgym.experiments.statistics import interval, resampling_counts

METRICS = ("true_reward", "watch_s", "session_items", "return_24h", "click_rate", "like_rate")


def contestants(run: FinishedRun) -> dict[str, Any]:
    """The agents: references, neighbours, and the run's two models at three temperatures and by search."""
    config, log, catalog = run.config, run.log, run.catalog
    agents = references(log, catalog, config)
    agents["item-knn"] = ItemKNNRecommender.fit(log, catalog.num_items, config.session_length)
    for name, agent in run.agents.items():
        assert isinstance(agent, GenerativeRecommender)
        for temperature in (2.0, 1.0, 0.5):
            agents[f"{name} at {temperature:g}"] = GenerativeRecommender(
                agent.model, agent.trie, agent.session_length, SamplingConfig(temperature=temperature), num_beams=0
            )
        agents[f"{name} by search"] = GenerativeRecommender(agent.model, agent.trie, agent.session_length, num_beams=8)
    return agents


def judged(simulator: Any, agents: dict[str, Any], config: Any, users: int, visits: int, seed: int) -> dict[str, Any]:
    """Metrics of every agent as ratios, by name."""
    seeds_U = user_seeds(users, seed, "judge")
    simulator = judging(simulator)
    found = {}
    for name, agent in agents.items():

        def choose(histories: EventBatch, _: Any, agent: Any = agent) -> SessionBatch:
            return agent.recommend(histories)

        with progress(f"{type(simulator).__name__}: {name}") as step:
            served = serve(
                simulator,
                choose,
                None,
                seeds_U,
                visits=visits,
                session_length=config.session_length,
                history_length=config.history_length,
                weights=config.weights,
                step=step,
            )
        found[name] = served.ratios()
    return found


def agreement(true: dict[str, Any], learned: dict[str, Any], metric: str, seed: int) -> dict[str, dict[str, float]]:
    """Rank correlations of the agents' means, with bootstrap intervals."""
    draws = []
    for salt, world in enumerate((true, learned)):
        first = next(iter(world.values()))[metric]
        counts_RU = resampling_counts(first.num_users, seed + salt)
        draws.append(np.stack([ratios[metric].resampled(counts_RU) for ratios in world.values()], axis=1))
    means = [np.array([ratios[metric].mean() for ratios in world.values()]) for world in (true, learned)]
    found = {}
    statistics = {"spearman": _spearman, "kendall": _kendall, "pearson": _pearson}
    for name, of in statistics.items():
        resampled = [of(a, b) for a, b in zip(draws[0][:500], draws[1][:500], strict=True)]
        low, high = np.quantile(resampled, [0.025, 0.975])
        found[name] = {"mean": float(of(*means)), "low": float(low), "high": float(high)}
    return found


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b).statistic)


def _kendall(a: np.ndarray, b: np.ndarray) -> float:
    return float(kendalltau(a, b).statistic)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def main(arguments: list[str]) -> None:
    """Judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("simulator")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--visits", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    run = agents_of(options.run)
    agents = contestants(run)
    sizes = (run.config, options.users, options.visits, options.seed)
    true_users = run.world.simulator  # type: ignore[attr-defined]
    true = judged(true_users, agents, *sizes)
    learned = judged(make_simulator(options.simulator), agents, *sizes)
    rows: dict[str, Any] = {}
    for name in agents:
        rows[name] = {}
        for side, world in (("true", true), ("learned", learned)):
            counts_RU = resampling_counts(options.users, options.seed)
            rows[name][side] = {metric: interval(world[name][metric], counts_RU) for metric in METRICS}
    print(f"{'agent':<20}" + "".join(f"{f'{m} true':>19}{'learned':>9}" for m in METRICS))
    for name in sorted(rows, key=lambda n: rows[n]["true"]["true_reward"]["mean"]):
        cells = "".join(
            f"{rows[name]['true'][m]['mean']:>19.4g}{rows[name]['learned'][m]['mean']:>9.4g}" for m in METRICS
        )
        print(f"{name:<20}{cells}")
    found = {metric: agreement(true, learned, metric, options.seed) for metric in METRICS}
    for metric, statistics in found.items():
        cells = ", ".join(f"{n} {v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for n, v in statistics.items())
        print(f"{metric}: {cells}")
    if options.out is not None:
        write_json(options.out, {"agents": rows, "agreement": found, **vars(options)})


if __name__ == "__main__":
    main(sys.argv[1:])

"""Sessions per second of a round's sampling and scoring: without Ray, with one actor, and with two.

``python benchmarks/bench_actors.py [--save FILE.json]``

OneRec of the demo's sizes draws 128 sessions for each of 512 users, and a reward model of the demo's sizes scores them.
Seconds are those of the clock, so the cores must be idle. The sides take turns. Starting Ray and a first round of 64
users do not count.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from bench_sampling import histories_of, tokenizer_of
from saved import machine, save

from feedgym.agents.generation import GenerativeRecommender
from feedgym.agents.onerec import OneRec, OneRecConfig
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.experiments.rollouts import RolloutConfig, Rollouts
from feedgym.rewards.config import RewardModelConfig
from feedgym.rewards.model import RewardModel
from feedgym.rewards.network import Sizes

USERS, ITEMS, EVENTS, SAMPLES = 512, 2000, 40, 128
SIDES = {"no Ray": ("off", 1), "1 actor": ("local", 1), "2 actors": ("local", 2)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    repeats: int = 3
    """Times that each side samples; medians count."""
    save: Path | None = None
    """File for the figures, as JSON."""


def parts() -> tuple[Any, Any, Any]:
    """Agent, reward and histories."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of((32, 128), ITEMS)
    config = OneRecConfig(session_length=5, history_length=EVENTS, profile_sizes=(2, 2))
    model = OneRec.from_tokenizer(tokenizer, config).eval()
    catalog = ShortVideo(ShortVideoConfig(num_items=ITEMS)).catalog
    agent = GenerativeRecommender(model, tokenizer.trie(), session_length=5)
    histories = histories_of(USERS, EVENTS, ITEMS, full=False)
    reward = RewardModel(RewardModelConfig(), Sizes.of(catalog, histories, 5)).eval()
    reward.items.fill(catalog)
    return agent, reward, histories


def main(options: Options) -> None:
    """Print the paces and their ratios."""
    agent, reward, histories = parts()
    paces: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(options.repeats):
        for name, (ray, num_actors) in SIDES.items():
            with Rollouts(RolloutConfig(num_actors=num_actors), ray) as workers:
                workers(agent, reward, histories.rows(slice(0, 64)), SAMPLES, (0,))
                begin = time.perf_counter()
                workers(agent, reward, histories, SAMPLES, (0,))
                paces[name].append(USERS * SAMPLES / (time.perf_counter() - begin))
    pace = {name: median(of_side) for name, of_side in paces.items()}
    for name, value in pace.items():
        print(f"{name:8} {value:,.0f} sessions per second, {value / pace['1 actor']:.2f} times one actor's")
    if options.save is not None:
        command = f"python benchmarks/bench_actors.py --repeats {options.repeats}"
        rows = {f"{USERS} users, {SAMPLES} sessions each": pace}
        save(options.save, command, "sessions per second", "2 actors", rows, machine("torch", "ray"))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

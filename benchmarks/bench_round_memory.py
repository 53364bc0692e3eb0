"""Memory that a round of alignment adds, by its number of users: in shards of 512, and as one shard of all users.

``python benchmarks/bench_round_memory.py [--users 1000 4000 16000] [--out FILE]``, on Linux. A round draws 128 sessions
of 5 items for every user, scores them and updates a small OneRec by IPA for one epoch. The sessions are random items
with random scores, because only the memory is measured. Each round runs in a process of its own, after a round of 64
users that loads the libraries. Told are the peak above the resident memory before the round, and that memory, which
libraries, log and models take.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from saved import machine, save

SHARD_TASKS = 32
SIDES = ("in shards", "in one shard")


def memory_mb(name: str) -> float:
    """A line of this process's status: ``VmRSS`` (resident now) or ``VmHWM`` (its peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


class Random:
    """Draws sessions of different random items, and scores them at random."""

    def __init__(self, num_items: int, length: int) -> None:
        from feedgym.agents.generation import SamplingConfig

        self.num_items, self.length, self.sampling = num_items, length, SamplingConfig()

    def sample(self, histories: Any, n: int, generator: Any) -> Any:
        """Sessions with log-probabilities that mean nothing."""
        import torch

        from feedgym.data.batches import SessionBatch

        drawn_USI = torch.rand(len(histories), n, self.num_items, generator=generator)
        logp_US = torch.randn(len(histories), n, generator=generator)
        names = ("logp_US", "logp_legal_US", "logp_allowed_US", "logp_drawn_US")
        return SessionBatch(item_ids_USK=drawn_USI.topk(self.length).indices, **dict.fromkeys(names, logp_US))

    def __call__(self, histories: Any, sessions: Any) -> Any:
        """The log-probabilities, which are random too."""
        return sessions.logp_US


def one_round(users: int, side: str) -> None:
    """Run a round of all users and print the memory before it, and what it added."""
    from feedgym.agents.alignment.dpo import IPAConfig
    from feedgym.data.sessions import SessionFilter
    from feedgym.experiments.align.agents import new_model, new_tokenizer
    from feedgym.experiments.align.pool import Pool
    from feedgym.experiments.align.presets import smoke
    from feedgym.experiments.align.rounds import sample_round
    from feedgym.experiments.align.steps import updated
    from feedgym.experiments.align.world import Simulated
    from feedgym.experiments.configs import LogConfig
    from feedgym.experiments.rollouts import RolloutConfig, Rollouts
    from feedgym.tokenizers.own import fit_codes

    config = smoke()
    every = SessionFilter(min_watched=0, min_watch_s=0.0, min_interactions=0, top_share=1.0)
    config = replace(
        config, log=LogConfig(users=round(users / 0.9), visits=2), sessions=every, history_length=40,
        method_options=IPAConfig(epochs=1, batch_size=64),
    )  # fmt: skip
    world = Simulated(config)
    pool = Pool.of(world.collect(Path()), world, config)
    silent = SimpleNamespace(true_value=lambda *_: None)
    agent: Any = Random(pool.catalog.num_items, config.session_length)
    with TemporaryDirectory() as place:
        work = Path(place)
        tokenizer = fit_codes(new_tokenizer(config), pool.catalog, work)
        model: Any = new_model(config, tokenizer, pool.log.profile_sizes).eval()

        def run(name: str, share: float, tasks: int) -> int:
            rounds = replace(config.rounds, user_share=share, num_samples=128)
            folder, t = work / name, 0
            (folder / "aligned").mkdir(parents=True)
            with Rollouts(RolloutConfig(tasks_per_shard=tasks), "off") as workers:
                sampled = sample_round(
                    rounds, pool, silent, workers, agent, t, folder, base=agent, reward=agent, seed=0  # type: ignore[arg-type]
                )  # fmt: skip
            for shard in sampled:
                shard.figures_by_user()
            updated(config, pool, model, model, sampled, t, folder / "aligned")
            return len(sampled.row_U)

        run("before", 64 / users, SHARD_TASKS)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = memory_mb("VmRSS")
        found = run("round", 1.0, SHARD_TASKS if side == SIDES[0] else 10**6)
        print(found, before, memory_mb("VmHWM") - before)


def main() -> None:
    """Run each round in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one_round(int(given.one[0]), given.one[1])
        return
    paces: dict[str, dict[str, float]] = {}
    for users in given.users:
        for side in SIDES:
            command = [sys.executable, __file__, "--one", str(users), side]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            found, before, added = map(float, told.split())
            print(f"{found:>9,.0f} users {side:<13} {added:7.1f} MB above {before:.0f} MB", flush=True)
            paces.setdefault(f"{users:,} users", {})[side] = found / added
    if given.out:
        users = " ".join(map(str, given.users))
        about = machine("torch", "trl")
        save(
            given.out,
            f"python benchmarks/bench_round_memory.py --users {users}",
            "users per MB that a round adds",
            SIDES[0],
            paces,
            about,
        )


if __name__ == "__main__":
    main()

"""Items that come and go: share of served items that do not exist, and true reward, with and without the mask.

    python benchmarks/arrivals.py FOLDER onerec ppo slateq    # also tiger, hstu, dqn, sac; runs are kept in FOLDER

"unmasked" is the same agent without the items' times in its choice. The sizes are tiny: only compare rows.
"""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from feedgym.agents.alignment.pairs import chosen_pairs
from feedgym.agents.rl_recommender import RLlibRecommender
from feedgym.agents.rl_settings import TrainConfig
from feedgym.agents.rllib.task import Task
from feedgym.agents.rllib.training import train
from feedgym.agents.slates.layers import SlateNetConfig
from feedgym.envs.luck import user_seeds
from feedgym.experiments.align.agents import agents_of
from feedgym.experiments.align.experiment import align, plan
from feedgym.experiments.align.pool import Pool
from feedgym.experiments.align.presets import hstu, smoke, tiger
from feedgym.experiments.align.shards import SampledRound
from feedgym.experiments.controls import references
from feedgym.experiments.rollouts import ray_running
from feedgym.experiments.run import Run
from feedgym.experiments.serve import serve

FRESH = dict(num_items=1000, arrivals_a_day=15.0, arrival_days=40.0, lifetime_days=30.0, fresh_weight=1.0)
small = smoke()
CONFIG = replace(
    small,
    ray="off",
    simulator_options=replace(small.simulator_options, **FRESH),
    log=replace(small.log, users=500, visits=6),
    pretrain=replace(small.pretrain, steps=150),
    rounds=replace(small.rounds, num=1, num_samples=32),
    judge=replace(small.judge, users=200, visits=6),
)
KINDS = {
    "onerec": CONFIG,
    "tiger": tiger(CONFIG, steps=200, d_model=16, num_heads=2, head_width=8, decoder_layers=1, d_ff=32),
    "hstu": hstu(CONFIG, d_model=16, num_layers=1, d_qk=8, d_v=8),
}


def tell(name, agent, simulator, config):
    """Serve an agent; print the reward per visit and the share of absent items."""
    absent = []

    def choose(histories, state):
        sessions = agent.recommend(histories)
        absent.append(~simulator.catalog.exists(state.time_s_U[:, None], sessions.item_ids_USK[:, 0].numpy()))
        return sessions

    seeds_U = user_seeds(config.judge.users, config.judge.seed, "judge")
    served = serve(simulator, choose, None, seeds_U, visits=config.judge.visits, session_length=config.session_length,
                   history_length=config.history_length, weights=config.weights)  # fmt: skip
    share = np.concatenate([one.ravel() for one in absent]).mean()
    print(f"{name:28} reward {served.ratio('true_reward').mean():6.3f}   absent {share:6.1%}", flush=True)


def undated(agent):
    """The agent without the items' times."""
    agent = copy.copy(agent)
    agent.trie = replace(agent.trie, upload_s_I=None, withdraw_s_I=None)
    return agent


def main():
    folder, first = Path(sys.argv[1]), True
    for kind in sys.argv[2:]:
        config = KINDS.get(kind, CONFIG)
        if kind in KINDS:
            run = Run(
                folder / kind, config, plan(config), resume=(folder / kind / "config.json").exists(), tracker="none"
            )
            align(config, run)
            run.close()
            finished = agents_of(folder / kind)
            simulator = finished.world.simulator
            if first:
                for name, agent in references(finished.log, finished.catalog, config).items():
                    tell(name, agent, simulator, config)
            first = False
            pool = Pool.of((finished.log, finished.catalog), finished.world, config)
            drawn = SampledRound.load(folder / kind / "stages" / "sampled-0").whole()
            pairs = chosen_pairs(drawn.for_method(), pool.imitate.targets_NK[drawn.row_U])
            time_s = pool.imitate.histories.rows(drawn.row_U[pairs.user_idx_P]).time_s_U.numpy()[:, None]
            both = np.stack(
                [~finished.catalog.exists(time_s, part.numpy()) for part in (pairs.chosen_PK, pairs.rejected_PK)]
            )
            print(f"{kind}: {len(pairs)} pairs of round 0, absent items in them {both.mean():.1%}")
            for name, agent in finished.agents.items():
                tell(f"{kind} {name}, unmasked", undated(agent), simulator, config)
                tell(f"{kind} {name}", agent, simulator, config)
                searched = copy.copy(agent)
                searched.num_beams = 8
                tell(f"{kind} {name}, 8 beams", searched, simulator, config)
        else:
            options = {**FRESH, "session_length": 5, "history_length": 12, "horizon": 6}
            here = Task.of("feedgym/ShortVideoFresh-v1", options, SlateNetConfig())
            settings = TrainConfig(algorithm=kind, iterations=6, num_envs=32, steps=512, batch_size=128, checkpoints=1)
            torch.manual_seed(0)
            with ray_running():
                network, _ = train(here, settings, 0, folder / kind)
            blind = copy.deepcopy(network)
            blind.world = replace(here.world, upload_s_I=None, withdraw_s_I=None)
            tell(f"{kind}, unmasked choice", RLlibRecommender(blind), here.simulator, config)
            tell(kind, RLlibRecommender(network), here.simulator, config)


if __name__ == "__main__":
    main()

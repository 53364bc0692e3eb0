"""Rounds in which the agent serves users: what they do joins the pool, the reward model and the rounds' requests."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from feedgym.agents.baselines import PopularRecommender
from feedgym.agents.generation import SamplingConfig
from feedgym.cli import main
from feedgym.data.events import Event
from feedgym.envs.luck import LOG_GROUP, user_seeds
from feedgym.envs.short_video import ShortVideoConfig
from feedgym.envs.truth import replica_seeds, session_reward
from feedgym.experiments.align.agents import HalfSearching, agents_of, recommender_of, tokenizer_codec
from feedgym.experiments.align.pool import Pool
from feedgym.experiments.align.presets import AlignConfig, RoundsConfig, smoke
from feedgym.experiments.align.world import Simulated, served_group
from feedgym.experiments.configs import LogConfig
from feedgym.experiments.run import read_product

LENGTH, ITEMS, SERVED = 4, 60, 20
CONFIG = AlignConfig(
    seed=3,
    simulator_options=ShortVideoConfig(num_items=ITEMS, memory_items=8, churn_logit=-2.5),
    log=LogConfig(users=50, visits=4),
    session_length=LENGTH,
    history_length=6,
    rounds=RoundsConfig(truth_replicas=3, serve=SERVED, serve_visits=3),
)
SEVERAL = ["--rounds.serve", "6", "--rounds.serve-visits", "3"]


@pytest.fixture(scope="module")
def world():
    return Simulated(CONFIG)


@pytest.fixture(scope="module")
def pools(world):
    """The pool before anybody was served, and after each of two rounds."""
    pool = Pool.of(world.collect(None), world, CONFIG)
    agent = PopularRecommender(torch.arange(ITEMS), LENGTH)
    pools = [pool]
    for t in range(2):
        log, _ = world.serve(agent, t, lambda *_: None)
        pools.append(pools[-1].with_served(log, served_group(t), world))
    return pools


def test_what_was_served_follows_the_log_in_all_that_is_learned_from(world, pools):
    before, _, after = pools
    assert [source.group for source in after.served] == ["served-0", "served-1"]
    assert after.log is before.log and after.unseen is before.unseen and after.unseen_good is before.unseen_good
    for part in ("imitate", "rate"):
        old, new = getattr(before, part), getattr(after, part)
        assert len(new) > len(old) and torch.equal(new.targets_NK[: len(old)], old.targets_NK)
        users = [set(new.sessions.user_idx_N[rows].tolist()) for rows in (slice(len(old)), slice(len(old), None))]
        assert not users[0] & users[1], "other users have other numbers"
    visits = sum((source.log.event == Event.LOGIN).sum() for source in after.served)
    assert len(after.rate) - len(before.rate) == visits == after.num_served_visits and before.num_served_visits == 0


def test_served_users_are_nobody_elses(world, pools):
    groups = [*(served_group(t) for t in range(2)), LOG_GROUP, "judge"]
    seeds = np.concatenate([user_seeds(500, CONFIG.seed, group) for group in groups])
    assert len(np.unique(seeds)) == len(seeds)
    assert pools[1].served[0].log.num_users == SERVED


@pytest.mark.parametrize("served_share", [0.0, 0.25, 0.5, 1.0])
def test_a_part_of_the_requests_comes_from_what_was_served_last(pools, served_share):
    after, share = pools[2], 0.4
    rows = after.draw_users(share, np.random.default_rng(0), served_share)
    total = round(share * len(set(pools[0].imitate.sessions.user_idx_N.tolist())))
    own = rows >= after.served[1].first
    users = after.imitate.sessions.user_idx_N[rows]
    assert len(rows) == total == len(set(users.tolist())), "one session per user"
    assert own.sum() == round(served_share * total)
    assert (rows[~own] < after.served[0].first).all(), "the others are the log's"


def test_users_who_were_served_are_asked_for_the_truth_at_the_moment_of_their_request(world, pools):
    pool = pools[2]
    row_U = np.array([pool.served[1].first, 0, pool.served[0].first + 2, 3, len(pool.imitate) - 1])
    sessions_USK = np.random.default_rng(2).permuted(np.tile(np.arange(ITEMS), (5, 2, 1)), axis=2)[..., :LENGTH]
    found = world.true_value(pool, row_U, sessions_USK, lambda *_: None)
    for u, row in enumerate(row_U):
        source = next(s for s, places in pool.sources(row_U) if u in places)
        log, session = source.log, pool.imitate.sessions.rows(np.array([row]))
        user = int(np.searchsorted(log.offsets_U1, session.row_N[0], side="right") - 1)
        state = world.simulator.reset(user_seeds(log.num_users, CONFIG.seed, source.group)[user : user + 1])
        mine = slice(log.offsets_U1[user], log.offsets_U1[user + 1])
        while state.time_s_U[0] < session.start_s_N[0]:
            shown = (log.session_id[mine] == state.visit_U[0]) & (log.event[mine] == Event.IMPRESSION)
            _, state = world.simulator.respond(state, log.item_id[mine][shown][None].astype(np.int64))
        assert state.time_s_U[0] == session.start_s_N[0]
        for s in range(2):
            copies = [replace(state, seed_U=np.array([seed])) for seed in replica_seeds(state.seed_U, 3, 0)[0]]
            answers = [world.simulator.respond(copy, sessions_USK[u, s][None])[0] for copy in copies]
            expected = np.mean([session_reward(answer, CONFIG.weights)[0] for answer in answers])
            assert found[u, s] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"served_share": 0.3}, "served_share=0.3 does nothing if nobody is served"),
        ({"serve_visits": 3}, "serve_visits=3 does nothing if nobody is served"),
        ({"serve": 5, "on_policy": False}, "samples only from the base"),
        ({"search": "greedy"}, "search='greedy' is unknown; choose one of sample, beam, mixed"),
        ({"reference": "first"}, "reference='first' is unknown; choose one of last, base"),
    ],
)
def test_choices_that_do_nothing_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RoundsConfig(**changes)


def test_a_recorded_log_has_nobody_to_serve():
    with pytest.raises(ValueError, match=r"rounds\.serve=5 needs simulated users; leave it 0 with --data"):
        replace(smoke(), data="log.csv", rounds=replace(smoke().rounds, serve=5))


def test_beams_and_samples_can_be_mixed(aligned_run):
    finished = agents_of(aligned_run)
    config = replace(finished.config, rounds=replace(finished.config.rounds, search="mixed"), sampling=SamplingConfig())
    base = finished.agents["base"]
    pool = Pool.of((finished.log, finished.catalog), finished.world, finished.config)
    tokenizer = read_product(aligned_run / "stages" / "tokenizer", tokenizer_codec(config).load)
    agent = recommender_of(config, base.model, tokenizer, finished.catalog)
    assert type(agent) is HalfSearching
    histories = pool.imitate.histories.rows(slice(0, 3))
    sessions = agent.sample(histories, 7, torch.Generator().manual_seed(0))
    assert sessions.item_ids_USK.shape[:2] == (3, 7)
    assert torch.equal(sessions.item_ids_USK[:, :3], agent.beams(histories, 3).item_ids_USK)
    assert sessions.logp_drawn_US[:, :3].isnan().all() and sessions.logp_drawn_US[:, 3:].isfinite().all()


def test_a_run_that_serves_is_the_same_run_when_it_is_gone_on_with(tmp_path, capsys):
    options = ["run", "onerec-ipa-smoke", "--ray", "off", "--judge.beams", "0", *SEVERAL]
    main([*options, "--run", str(tmp_path / "whole")])
    main([*options, "--rounds.num", "1", "--run", str(tmp_path / "parts")])
    main(["run", "onerec-ipa-smoke", "--rounds.num", "2", "--resume", str(tmp_path / "parts")])
    whole, parts = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "parts"))
    assert whole["rounds"] == parts["rounds"] and whole["by_visit"] == parts["by_visit"]
    spent = [row["requests_spent"] for row in whole["rounds"]]
    assert 0 == spent[0] < spent[1] < spent[2] <= 2 * 6 * 3
    stages = {path.name for path in (tmp_path / "whole" / "stages").iterdir()}
    assert {"served-0", "served-1", "reward-0", "reward-1"} <= stages and "served-2" not in stages
    assert agents_of(tmp_path / "whole").reward.weights == smoke().weights

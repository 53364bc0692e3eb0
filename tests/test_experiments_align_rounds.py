from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import WeakSet

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from toy_agents import NUM_ITEMS, K, T, dated, toy_histories, toy_model, toy_tokenizer
from toy_users import toy_catalog

from feedgym.agents.alignment.dpo import IPA, IPAConfig
from feedgym.agents.alignment.grpo import GRPO, GRPOConfig
from feedgym.agents.alignment.pairs import PairingConfig, chosen_pairs
from feedgym.agents.alignment.trainer import SCORED_TOGETHER
from feedgym.agents.generation import SamplingConfig, score_sessions
from feedgym.agents.session_model import SessionRecommender
from feedgym.data.events import BEHAVIOURS, LoggedSessions
from feedgym.data.parquet import read_batch, write_batch
from feedgym.data.requests import Requests
from feedgym.experiments.align import rounds as rounds_module
from feedgym.experiments.align import shards as shards_module
from feedgym.experiments.align.agents import recommender_of
from feedgym.experiments.align.pool import Pool
from feedgym.experiments.align.presets import AlignConfig, RoundsConfig
from feedgym.experiments.align.probe import Probe
from feedgym.experiments.align.rounds import cloud, look, round_metrics, sample_round
from feedgym.experiments.align.shards import SampledRound, Shard
from feedgym.experiments.rollouts import RolloutConfig, Rollouts

USERS, SAMPLES, BASE_SAMPLES, ITEMS = 9, 7, 3, 30


def sampled(seed=0, **columns):
    rng = torch.Generator().manual_seed(seed)
    items = torch.rand(USERS, SAMPLES, ITEMS, generator=rng).topk(4).indices
    drawn = {
        "row_U": torch.randperm(50, generator=rng)[:USERS],
        "item_ids_USK": items,
        "logp_legal_US": -torch.rand(USERS, SAMPLES, generator=rng),
        "logp_US": torch.full((USERS, SAMPLES), -7.0),
        "logp_drawn_US": torch.full((USERS, SAMPLES), -6.0),
        "logp_allowed_US": torch.full((USERS, SAMPLES), -1.0),
        "score_US": torch.randn(USERS, SAMPLES, generator=rng),
        "truth_US": torch.randn(USERS, SAMPLES, generator=rng),
    }
    return Shard(**drawn | columns)


def probed(seed=0, **columns):
    rng = torch.Generator().manual_seed(seed)
    drawn = {
        "item_ids_USK": torch.rand(USERS, SAMPLES, ITEMS, generator=rng).topk(4).indices,
        "logp_US": -5 - torch.rand(USERS, SAMPLES, generator=rng),
        "base_logp_US": -5 - torch.rand(USERS, SAMPLES, generator=rng),
        "score_US": torch.randn(USERS, SAMPLES, generator=rng),
        "truth_half_US2": torch.randn(USERS, SAMPLES, 2, generator=rng),
    }
    return Probe(**drawn | columns)


def pool_of(catalog, imitate=None):
    """A pool of which nothing but its catalogue, what is imitated and the probed users is looked at."""
    return Pool(log=None, known=None, catalog=catalog, imitate=imitate, rate=None, unseen=None, unseen_good=imitate)


# ---------------------------------------------------------------- pairs


def test_the_best_session_meets_the_worst_of_the_same_user():
    drawn, logged = sampled(), torch.arange(USERS * 4).reshape(USERS, 4)
    pairs = chosen_pairs(drawn.for_method(), logged)
    assert len(pairs) == USERS
    for u in range(USERS):
        by_score = sorted(range(SAMPLES), key=lambda s: drawn.score_US[u, s].item())
        assert pairs.user_idx_P[u] == u
        assert pairs.chosen_PK[u].tolist() == drawn.item_ids_USK[u, by_score[-1]].tolist()
        assert pairs.rejected_PK[u].tolist() == drawn.item_ids_USK[u, by_score[0]].tolist()
        assert pairs.score_chosen_P[u] == drawn.score_US[u].max()
        assert pairs.score_rejected_P[u] == drawn.score_US[u].min()
        assert pairs.logged_PK[u].tolist() == logged[u].tolist()


def test_pairs_below_the_margin_are_left_out_and_the_others_keep_their_own_history_and_log():
    drawn, logged = sampled(), torch.arange(USERS * 4).reshape(USERS, 4)
    gaps = drawn.score_US.amax(1) - drawn.score_US.amin(1)
    margin = gaps.sort().values[4].item()  # this pair's difference is the margin itself, and it stays
    pairs = chosen_pairs(drawn.for_method(), logged, PairingConfig(margin=margin))
    kept = [u for u in range(USERS) if gaps[u] >= margin]
    assert len(kept) == len(pairs) == USERS - 4
    assert pairs.user_idx_P.tolist() == kept
    assert pairs.logged_PK.tolist() == logged[kept].tolist()
    assert (pairs.score_chosen_P - pairs.score_rejected_P).tolist() == gaps[kept].tolist()


def test_users_whose_sessions_score_alike_or_not_at_all_give_no_pair_at_any_margin():
    drawn = sampled()
    drawn.score_US[2], drawn.score_US[5, 3] = 0.7, torch.nan
    pairs = chosen_pairs(drawn.for_method(), torch.zeros(USERS, 4, dtype=torch.long))
    assert pairs.user_idx_P.tolist() == [u for u in range(USERS) if u not in (2, 5)]
    huge = PairingConfig(margin=1e6)
    assert len(chosen_pairs(drawn.for_method(), torch.zeros(USERS, 4, dtype=torch.long), huge)) == 0


# ---------------------------------------------------------------- metrics


def plain_diversity(catalog, session):
    def cosine(a, b):
        a, b = catalog.content_IE[a].astype(float), catalog.content_IE[b].astype(float)
        return a @ b / np.sqrt((a @ a) * (b @ b))

    return np.mean([1 - cosine(a, b) for a, b in combinations(session, 2)])


def test_metrics_of_a_round_are_those_worked_out_by_hand():
    looked, drawn, catalog = probed(), sampled(), toy_catalog(ITEMS)
    found = round_metrics(looked, pool_of(catalog), [drawn.rows(slice(4)), drawn.rows(slice(4, None))])
    score, truth = looked.score_US.double().numpy(), looked.truth_half_US2.double().numpy().mean(axis=2)
    best, value = drawn.score_US.double().numpy(), drawn.truth_US.double().numpy()
    every = [(u, s) for u in range(USERS) for s in range(SAMPLES)]
    assert found == pytest.approx(
        {
            "model_mean": np.mean([score[at] for at in every]),
            "true_mean": np.mean([truth[at] for at in every]),
            "rank_correlation": np.mean([spearmanr(score[u], truth[u]).statistic for u in range(USERS)]),
            "diversity": np.mean([plain_diversity(catalog, looked.item_ids_USK[at].tolist()) for at in every]),
            "entropy": -np.mean([looked.logp_US[at].item() for at in every]),
            "kl_to_base": np.mean([(looked.logp_US[at] - looked.base_logp_US[at]).item() for at in every]),
            "model_max": np.mean([max(row) for row in best]),
            "true_max": np.mean([max(row) for row in value]),
            "true_of_best": np.mean([value[u, list(best[u]).index(max(best[u]))] for u in range(USERS)]),
            "legality": np.mean([np.exp(drawn.logp_legal_US[at].item()) for at in every]),
        },
        rel=1e-5,
        abs=1e-6,
    )
    last = round_metrics(looked, pool_of(catalog))
    assert last == {name: found[name] for name in last} and found.keys() - last.keys() == {
        *("model_max", "true_max", "true_of_best", "legality"),
    }


def test_without_a_truth_a_round_says_nothing_of_it():
    pool = pool_of(toy_catalog(ITEMS))
    found = round_metrics(probed(truth_half_US2=None), pool, [sampled(truth_US=None)])
    whole = round_metrics(probed(), pool, [sampled()])
    assert not [name for name in found if "true" in name or "correlation" in name]
    assert found == {name: whole[name] for name in found}


# ---------------------------------------------------------------- points to look at


@pytest.mark.parametrize("points", [5, 20, 1500])
def test_points_pair_a_score_with_the_truth_of_the_same_session_each_once_at_most(points):
    looked = probed()
    found = cloud(looked, t=3, points=points)
    pairs = list(zip(found["model"], found["true"], strict=True))
    every = list(zip(looked.score_US.flatten().tolist(), looked.truth_US.flatten().tolist(), strict=True))
    assert found["round"] == 3
    assert set(pairs) <= set(every)
    assert len(set(pairs)) == len(pairs) == min(points, len(every))
    assert (pairs[0], pairs[-1]) == (every[0], every[-1])


def test_there_are_no_points_without_a_truth():
    assert cloud(probed(truth_half_US2=None), t=0) == {}


# ---------------------------------------------------------------- sampling


class Taste:
    """Scores a session by its items and its user's profile."""

    def __call__(self, histories, sessions):
        return sessions.item_ids_USK.float().mean(-1) + 10 * histories.profile_UF[:, :1]


class Knowing:
    """A world whose truth tells the row and the session it was asked about."""

    def true_value(self, pool, row_U, sessions_USK, step):
        step(len(row_U), len(row_U))
        return (100 * row_U[:, None] + sessions_USK[..., 0]).astype(np.float32)

    def probed_values(self, pool, num_users, sessions_USK, replicas, step):
        return np.stack([sessions_USK[..., 0], sessions_USK[..., 1]], axis=2).astype(np.float32)


class Silent:
    def true_value(self, pool, row_U, sessions_USK, step):
        return None

    def probed_values(self, pool, num_users, sessions_USK, replicas, step):
        return None


def logged(user_idx_N):
    shape = (len(user_idx_N), K)
    return LoggedSessions(
        user_idx_N=user_idx_N,
        row_N=np.arange(len(user_idx_N)),
        start_s_N=np.zeros(len(user_idx_N)),
        item_ids_NK=np.zeros(shape, np.int32),
        examined_NK=np.ones(shape, bool),
        watch_s_NK=np.ones(shape, np.float32),
        behaviours_NKB=np.zeros((*shape, len(BEHAVIOURS)), np.uint8),
        propensity_NK=np.full(shape, np.nan, np.float32),
        return_gap_s_N=np.full(len(user_idx_N), np.nan),
    )


def sample(
    t=0, world=None, base_seed=0, beams=False, block_seen=False, catalog=None, days=None, scores="reward", **sampling
):
    users = np.repeat(np.arange(10), 2)
    histories = toy_histories(20, length=T - 4)
    if days is not None:
        histories = dated(histories, torch.tensor(days, dtype=torch.float64))
    requests = Requests(sessions=logged(users), histories=histories, targets_NK=torch.zeros(20, K).long())
    pool = pool_of(catalog or toy_catalog(NUM_ITEMS), requests)
    rounds = RoundsConfig(user_share=0.5, num_samples=6, scores=scores, search="beam" if beams else "sample")
    config = AlignConfig(rounds=rounds, session_length=K,
                         sampling=SamplingConfig(block_seen=block_seen, **sampling))  # fmt: skip
    agent, base = (recommender_of(config, toy_model(seed), toy_tokenizer(), pool.catalog) for seed in (0, base_seed))
    told = rounds, pool, world or Knowing()
    with Rollouts(RolloutConfig(users_per_task=2), "off") as rollouts, TemporaryDirectory() as work:
        drawn = sample_round(*told, rollouts, agent, t, Path(work), base=base, reward=Taste(), seed=0)
        return drawn.whole(), pool, (agent, base)


def looked_at(pool, agents, watchers=(), world=None, num_users=10, num_samples=4):
    workers = Rollouts(RolloutConfig(), "off")
    those = (*agents, Taste(), watchers, pool, world or Knowing(), workers)
    return look(*those, num_users, num_samples, replicas=2, seed=0)


class Counting(Taste):
    """Counts the blocks that it scores, and fails at one of them."""

    def __init__(self, fails_at=None):
        self.asked, self.fails_at = 0, fails_at

    def __call__(self, histories, sessions):
        if self.asked == self.fails_at:
            raise KeyboardInterrupt
        self.asked += 1
        return super().__call__(histories, sessions)


def test_a_round_is_the_same_in_shards_and_goes_on_from_the_last_finished_one(tmp_path):
    whole, pool, (agent, base) = sample()
    rounds = RoundsConfig(user_share=0.5, num_samples=6)

    def sharded(reward, tasks=1):
        with Rollouts(RolloutConfig(users_per_task=2, tasks_per_shard=tasks), "off") as workers:
            return sample_round(rounds, pool, Knowing(), workers, agent, 0, tmp_path, base=base, reward=reward, seed=0)

    blocks = -(-len(whole.row_U) // 2)
    assert blocks > 2
    with pytest.raises(KeyboardInterrupt):
        sharded(Counting(fails_at=2))
    rest = Counting()
    again = sharded(rest).whole()
    assert rest.asked == blocks - 2
    for found in (again, sharded(Taste(), tasks=2).whole()):  # the files of other shards are there, and not taken
        for name, column in vars(whole).items():
            torch.testing.assert_close(vars(found)[name], column, rtol=0, atol=0, equal_nan=True)
    kept = tmp_path / "product"
    kept.mkdir()
    sharded(Taste()).save(kept)
    assert torch.equal(SampledRound.load(kept).whole().item_ids_USK, whole.item_ids_USK)


class Counted:
    """Histories that note how many are built at a time."""

    def __init__(self, batch, most):
        self.batch, self.most = batch, most

    def __len__(self):
        return len(self.batch)

    def rows(self, idx):
        built = self.batch.rows(idx)
        self.most.append(len(built))
        return built

    def at(self, idx):
        return Counted(self.batch.rows(idx), self.most)


def test_a_round_holds_at_most_two_shards_and_the_histories_of_one(tmp_path, monkeypatch):
    _, pool, (agent, base) = sample()
    built, alive, most = [], WeakSet(), []
    pool = replace(pool, imitate=replace(pool.imitate, histories=Counted(pool.imitate.histories, built)))

    def note(shard):
        alive.add(shard.item_ids_USK)  # the tensor lives as long as the shard, or what a method is given of it
        most.append(len(alive))
        return shard

    monkeypatch.setattr(rounds_module, "write_batch", lambda shard, path: write_batch(note(shard), path))
    monkeypatch.setattr(shards_module, "read_batch", lambda kind, path: note(read_batch(kind, path)))
    rounds = RoundsConfig(user_share=1.0, num_samples=6)
    with Rollouts(RolloutConfig(users_per_task=2, tasks_per_shard=1), "off") as workers:
        drawn = sample_round(rounds, pool, Knowing(), workers, agent, 0, tmp_path, base=base, reward=Taste(), seed=0)
    assert len(drawn.paths) == 5 and max(built) == 2
    round_metrics(looked_at(pool, (agent, base)), pool, drawn)
    built.clear()
    config, histories = IPAConfig(batch_size=3, epochs=1), pool.imitate.histories.at(drawn.row_U)
    figures = IPA(config).update(
        agent.model, histories, drawn.for_method(), pool.imitate.targets_NK[drawn.row_U], tmp_path / "ipa"
    )
    assert figures["pairs"] > 3 == config.batch_size
    GRPO(GRPOConfig(group_size=4, batch_size=3)).update(
        agent.model, histories, drawn.for_method(), pool.imitate.targets_NK[drawn.row_U], tmp_path / "grpo"
    )
    assert len(most) >= 20 and max(most) <= 2 and not alive
    assert max(built) <= SCORED_TOGETHER


@pytest.mark.parametrize("block_seen", [False, True])
def test_before_the_first_update_the_agent_is_no_way_off_its_base(block_seen):
    _, pool, agents = sample(block_seen=block_seen)
    found = round_metrics(looked_at(pool, agents), pool)
    assert found["kl_to_base"] == pytest.approx(0, abs=1e-5)
    assert found["entropy"] > 0


WAYS = [{"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 2}, {"top_p": 0.6}, {"beams": True}]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("block_seen", [False, True])
def test_entropy_and_divergence_are_those_of_the_model_however_the_sessions_were_made(way, block_seen):
    plain, pool, agents = sample(base_seed=1, block_seen=block_seen)
    drawn, _, shaped = sample(base_seed=1, block_seen=block_seen, **way)
    assert not torch.equal(plain.item_ids_USK, drawn.item_ids_USK)
    expected, found = (round_metrics(looked_at(pool, those), pool) for those in (agents, shaped))
    assert found == expected and min(found["entropy"], found["kl_to_base"]) > 0


@pytest.mark.parametrize("block_seen", [False, True])
def test_entropy_and_divergence_are_right_on_average_as_told_by_every_session_there_is(block_seen):
    histories, n = toy_histories(6, seed=2), 3000
    every_USK = torch.tensor(list(permutations(range(NUM_ITEMS), K))).expand(len(histories), -1, -1)
    sampling = SamplingConfig(temperature=0.3, top_k=1, block_seen=block_seen)
    agent, base = (SessionRecommender(toy_model(seed), toy_tokenizer(), K, sampling) for seed in (0, 1))
    scored = [score_sessions(one.model, one.trie, histories, every_USK, block_seen) for one in (agent, base)]
    logp_UX, base_UX = (one.logp_US - one.logp_allowed_US for one in scored)
    prob_UX = logp_UX.exp()
    torch.testing.assert_close(prob_UX.sum(1), torch.ones(len(histories)))
    users = logged(np.arange(6))
    pool = pool_of(toy_catalog(NUM_ITEMS), Requests(sessions=users, histories=histories, targets_NK=torch.zeros(6, K)))
    looked = looked_at(pool, (agent, base), num_samples=n)
    found_UB, base_UB = looked.logp_US, looked.base_logp_US
    surprise_UX, gap_UX = (torch.where(prob_UX > 0, x, 0.0) for x in (-logp_UX, logp_UX - base_UX))
    for value_UX, drawn_UB in ((surprise_UX, -found_UB), (gap_UX, found_UB - base_UB)):
        exact_U = (prob_UX * value_UX).sum(1)
        error_U = ((prob_UX * value_UX**2).sum(1) - exact_U**2).clamp_min(1e-10).sqrt() / n**0.5
        assert (exact_U > 0.1).all()
        assert ((drawn_UB.mean(1) - exact_U).abs() < 4 * error_U).all()  # four standard errors, for each user


@pytest.mark.parametrize("way", [{}, *WAYS], ids=str)
def test_a_round_of_items_that_come_and_go_holds_none_that_is_absent_and_neither_do_its_pairs(way):
    upload_s_I, withdraw_s_I = np.array([0.0, 0, 0, 0, 5, 9]), np.array([np.inf, 5, np.inf, 10, np.inf, 14])
    catalog = replace(toy_catalog(NUM_ITEMS), upload_s_I=upload_s_I, withdraw_s_I=withdraw_s_I)
    drawn, pool, agents = sample(base_seed=1, block_seen=True, catalog=catalog, days=list(range(20)), **way)
    pairs = chosen_pairs(drawn.for_method(), pool.imitate.targets_NK[drawn.row_U])
    sessions = (drawn.row_U, drawn.item_ids_USK.flatten(1))
    for rows, items in (
        sessions,
        (drawn.row_U[pairs.user_idx_P], pairs.chosen_PK),
        (drawn.row_U[pairs.user_idx_P], pairs.rejected_PK),
    ):
        assert len(rows) and catalog.exists(rows.double().numpy()[:, None], items.numpy()).all()
    assert not catalog.exists(drawn.row_U.double().numpy()).all(axis=1).any(), "something is absent from every request"
    looked = looked_at(pool, agents)
    assert torch.isfinite(looked.logp_US).all() and torch.isfinite(looked.base_logp_US).all()


def test_a_round_keeps_scores_and_truths_in_line_with_their_sessions():
    drawn, pool, _ = sample(base_seed=1)
    assert len(drawn.row_U) == 5 and drawn.item_ids_USK.shape == (5, 6, K)
    histories = pool.imitate.histories.rows(drawn.row_U)
    expected = drawn.item_ids_USK.float().mean(-1) + 10 * histories.profile_UF[:, :1]
    torch.testing.assert_close(drawn.score_US, expected)
    assert drawn.truth_US.tolist() == (100 * drawn.row_U[:, None] + drawn.item_ids_USK[..., 0]).tolist()


def test_in_a_study_methods_learn_from_the_truth_itself():
    drawn, _, _ = sample(base_seed=1, scores="truth")
    assert torch.equal(drawn.for_method().score_US, drawn.truth_US)


def test_a_probe_is_of_the_same_users_and_random_numbers_and_all_who_judge_judge_its_sessions():
    _, pool, (agent, base) = sample(base_seed=1)
    first, again = (looked_at(pool, (agent, base), [Taste(), lambda h, s: -Taste()(h, s)]) for _ in range(2))
    assert torch.equal(first.item_ids_USK, again.item_ids_USK) and first.item_ids_USK.shape == (10, 4, K)
    histories = pool.probed(10).histories
    expected = first.item_ids_USK.float().mean(-1) + 10 * histories.profile_UF[:, :1]
    torch.testing.assert_close(first.score_US, expected)
    torch.testing.assert_close(first.watch_USW, torch.stack([expected, -expected], dim=2))
    assert first.truth_half_US2.tolist() == first.item_ids_USK[..., :2].float().tolist()
    of_base = score_sessions(base.model, base.trie, histories, first.item_ids_USK, block_seen=False)
    torch.testing.assert_close(first.base_logp_US, of_base.logp_US - of_base.logp_allowed_US)
    assert torch.equal(looked_at(pool, (agent, base), num_users=3).item_ids_USK, first.item_ids_USK[:3])


def test_a_round_is_the_same_again_and_another_round_meets_other_users_and_luck():
    first, again, other = (sample(t)[0] for t in (1, 1, 2))
    assert torch.equal(first.row_U, again.row_U) and torch.equal(first.item_ids_USK, again.item_ids_USK)
    assert not torch.equal(first.row_U, other.row_U) and not torch.equal(first.item_ids_USK, other.item_ids_USK)


def test_a_world_that_knows_no_truth_leaves_none():
    drawn, pool, agents = sample(world=Silent())
    assert drawn.truth_US is None and looked_at(pool, agents, world=Silent()).truth_US is None

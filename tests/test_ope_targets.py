"""Policies to be judged: probabilities that belong to what is drawn, and those of the log."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from feedgym.agents.generation import SamplingConfig, item_log_probs, sample_sessions, score_sessions
from feedgym.data.events import BEHAVIOUR_IDX
from feedgym.data.sessions import logged_sessions
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.envs.truth import session_reward
from feedgym.experiments.align.agents import agents_of
from feedgym.experiments.ope import judging
from feedgym.experiments.ope.agents import at, mixtures_of, targets_of, temperatures_of
from feedgym.experiments.ope.opinion import Opinion
from feedgym.experiments.ope.presets import OPERun, ope_smoke
from feedgym.experiments.ope.targets import ScoreTarget
from feedgym.experiments.ope.visits import judging_log, judging_visits, log_seed

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(aligned_run):
    """A tiny run; its score is none in the reward's units, so its reward model takes its place."""
    from feedgym.experiments.align.agents import finished_stage
    from feedgym.experiments.run import read_product
    from feedgym.rewards.model import RewardModel

    run = agents_of(aligned_run)
    return run._replace(reward=read_product(finished_stage(aligned_run, "reward"), RewardModel.load))


CONFIG = replace(ope_smoke(), users=25, visits=4, num_candidates=30)


@pytest.fixture(scope="module")
def visits(finished):
    simulator = finished.world.simulator
    log = judging_log(CONFIG, simulator, 4, 0)
    return judging_visits(CONFIG, finished.config, simulator, log, finished.catalog, 0)


@pytest.fixture(scope="module")
def targets(finished, visits):
    return targets_of(CONFIG, finished, visits, Opinion(finished.reward))


# ---------------------------------------------------------------- the log


def test_propensities_of_logged_slates_are_those_of_the_log_and_all_slates_make_one(visits):
    assert np.array_equal(visits.chances(visits.slates_NK[:, None])[:, 0], visits.prob_NK)
    log_config = replace(CONFIG, users=6, visits=2, num_candidates=200)
    simulator = ShortVideo(ShortVideoConfig(num_items=6))
    log = judging_log(log_config, simulator, 2, 1)
    from feedgym.experiments.align.presets import smoke

    few = judging_visits(log_config, replace(smoke(), session_length=2), simulator, log, simulator.catalog, 1)
    slates = np.repeat(np.array(list(permutations(range(6), 2)))[None], len(few), axis=0)
    assert few.chances(slates).prod(axis=2).sum(axis=1) == pytest.approx(np.ones(len(few)), abs=1e-5)


def test_logs_are_of_other_users_than_each_other_and_the_runs(finished):
    seeds = {log_seed(CONFIG, number) for number in range(5)} | {finished.config.seed}
    assert len(seeds) == 6


def test_rewards_are_the_true_rewards_of_the_visits_and_last_visits_are_left_out(finished, visits):
    response, _ = visits.simulator.respond(visits.state, visits.slates_NK)
    # The log's clock rounds: a return at the very end of a day may be told otherwise.
    wanted = session_reward(response, visits.weights)
    assert (np.abs(visits.reward_NK.sum(axis=1) - wanted) < 1e-3).mean() > 0.98
    assert (visits.state.visit_U < CONFIG.visits - 1).all()
    clicks = visits.requests.sessions.behaviours_NKB[..., BEHAVIOUR_IDX["click"]]
    assert clicks.any() and visits.weights.click == 0


def test_tastes_are_those_that_the_log_was_served_by(finished):
    """Of users without a ranker's score: the logged propensities come again from the tastes of the log alone."""

    class Plain:
        def __init__(self, inner):
            self.inner, self.catalog = inner, inner.catalog
            self.profile_names, self.profile_sizes = inner.profile_names, inner.profile_sizes

        def reset(self, seeds):
            return self.inner.reset(seeds)

        def respond(self, state, slates):
            return self.inner.respond(state, slates)

    simulator = Plain(finished.world.simulator)
    log = judging_log(CONFIG, simulator, 4, 2)
    visits = judging_visits(CONFIG, finished.config, simulator, log, finished.catalog, 2)
    assert visits.taste_NE.any()
    assert visits.chances(visits.slates_NK[:, None])[:, 0] == pytest.approx(visits.prob_NK, rel=1e-3)


# ---------------------------------------------------------------- the agents


def test_there_are_twelve_agents_and_more_by_default(finished, visits):
    everyone = targets_of(OPERun(), finished, visits, Opinion(finished.reward))
    assert len(everyone) + len(mixtures_of(OPERun())) == 19
    assert temperatures_of(replace(OPERun(), agent_temperatures=(0.5,))) == [0.5, 1.0]
    assert temperatures_of(replace(OPERun(), agent_temperatures=(0.5,), mixtures=())) == [0.5]


def test_probabilities_of_what_is_drawn_are_finite_and_slates_hold_different_items(targets):
    for name, target in targets.items():
        slates = target.sample(2, seed=3)
        assert slates.shape[1:] == (2, 4) and (np.diff(np.sort(slates, axis=2)) > 0).all(), name
        logp = target.log_probs(slates)
        assert np.isfinite(logp).all() and (logp <= 1e-6).all(), name
        assert np.array_equal(slates, target.sample(2, seed=3)), name


def test_the_weights_of_the_log_have_mean_one(targets, visits):
    """Over the log's own draws E[e / b] = 1 for whoever could be shown; the first place has the least variance."""
    for name in ("random", "logging", at("popular", 1), at("base", 1)):
        weight = np.exp(targets[name].log_probs(visits.slates_NK[:, None])[:, 0, 0]) / visits.prob_NK[:, 0]
        assert weight.mean() == pytest.approx(1, abs=4 * weight.std() / len(weight) ** 0.5 + 1e-9), name


def test_conditional_log_probabilities_add_up_to_those_of_sessions(finished, visits):
    agent, histories = finished.agents["base"], visits.histories
    drawn = sample_sessions(agent.model, agent.trie, histories, 3, 4, torch.Generator().manual_seed(0))
    logp = item_log_probs(agent.model, agent.trie, histories, drawn.item_ids_USK)
    scored = score_sessions(agent.model, agent.trie, histories, drawn.item_ids_USK)
    torch.testing.assert_close(logp.sum(2), scored.logp_US - scored.logp_allowed_US, atol=1e-4, rtol=1e-4)
    for sampling in (
        SamplingConfig(temperature=0.6),
        SamplingConfig(temperature=1.7, top_p=0.9),
        SamplingConfig(top_k=5),
    ):
        drawn = sample_sessions(agent.model, agent.trie, histories, 2, 4, torch.Generator().manual_seed(1), sampling)
        logp = item_log_probs(agent.model, agent.trie, histories, drawn.item_ids_USK, sampling)
        torch.testing.assert_close(logp.sum(2), drawn.logp_drawn_US, atol=1e-4, rtol=1e-4)


def test_an_items_conditional_probability_does_not_depend_on_what_follows_and_items_make_one(finished, visits):
    agent, histories = finished.agents["aligned"], visits.histories.rows(slice(0, 3))
    num_items = finished.catalog.num_items
    above = sample_sessions(agent.model, agent.trie, histories, 1, 4, torch.Generator().manual_seed(0)).item_ids_USK
    every = above.repeat(1, num_items, 1)
    every[:, :, 1] = torch.arange(num_items)
    logp = item_log_probs(agent.model, agent.trie, histories, every)
    torch.testing.assert_close(logp[:, :, 1].exp().sum(1), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(logp[:, :, 0], logp[:, :1, 0].expand(-1, num_items))
    twice = above.clone()
    twice[..., 2] = twice[..., 0]
    impossible = item_log_probs(agent.model, agent.trie, histories, twice)[:, 0]
    assert (impossible[:, 2:] == -torch.inf).all() and impossible[:, :2].isfinite().all()


def test_plackett_luce_at_a_temperature_is_the_formula():
    logits = torch.tensor([[0.3, -0.2, 1.1, 0.0]])
    target = ScoreTarget(logits, 0.5, 3)
    w = np.exp(logits.numpy()[0].astype(float) / 0.5)
    wanted = [w[2] / w.sum(), w[0] / (w.sum() - w[2]), w[3] / (w[3] + w[1])]
    assert np.exp(target.log_probs(np.array([[[2, 0, 3]]])))[0, 0] == pytest.approx(wanted)


def test_a_mixture_is_the_mixture_of_its_parts(targets, visits, finished):
    slates = judging.all_slates(CONFIG, visits, finished.catalog.num_items)
    assert isinstance(slates, str) and "make 2" in slates
    parts = {n: judging.answers(targets[n], visits, None, slates, CONFIG, 0) for n in ("random", at("aligned", 1))}
    shares = {"random": 0.25, at("aligned", 1): 0.75}
    mixed = parts["random"].mixed(shares, parts)
    joint = sum(share * np.exp(parts[name].logp_NK.sum(axis=1)) for name, share in shares.items())
    assert np.exp(mixed.logp_NK.sum(axis=1)) == pytest.approx(joint)
    first = sum(share * np.exp(parts[name].logp_NK[:, 0]) for name, share in shares.items())
    assert np.exp(mixed.logp_NK[:, 0]) == pytest.approx(first)
    assert mixed.truth_N == pytest.approx(sum(share * parts[name].truth_N for name, share in shares.items()))
    assert mixed.value_N is None and mixed.prob_NA is None


# ---------------------------------------------------------------- the model


def test_the_models_rewards_by_place_add_up_and_do_not_look_below(finished, visits):
    opinion, histories = Opinion(finished.reward), visits.histories
    slates = visits.slates_NK
    by_place = opinion.by_place(histories, slates)
    assert by_place.sum(axis=1) == pytest.approx(opinion.values(histories, slates[:, None])[:, 0], abs=1e-4)
    other = slates.copy()
    other[:, 3] = (other[:, 3] + 1) % finished.catalog.num_items
    assert opinion.by_place(histories, other)[:, :3] == pytest.approx(by_place[:, :3], abs=1e-5)


def test_logged_sessions_of_a_log_begin_at_its_visits(finished):
    log = judging_log(CONFIG, finished.world.simulator, 4, 0)
    sessions = logged_sessions(log, 4)
    number = log.session_id[sessions.row_N]
    assert number.max() == CONFIG.visits - 1 and (number >= 0).all()

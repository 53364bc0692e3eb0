import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from feedgym.envs import choice

SCORES = np.random.default_rng(0).uniform(-1, 1, size=(6, 5))
MODELS = {
    "logit": lambda score: choice.multinomial_logit(score, 0.3),
    "proportional": lambda score: choice.multinomial_proportional(score, 1.0, -1.0),
    "exponential cascade": lambda score: choice.exponential_cascade(score, 0.65, 0.3),
    "proportional cascade": lambda score: choice.proportional_cascade(score, 0.65, 0.4, -1.0),
}


def plain_cascade(clicks):
    """Chance that each item is the first clicked one, over all patterns of clicks."""
    first = np.zeros(len(clicks))
    for pattern in itertools.product([0, 1], repeat=len(clicks)):
        chance = np.prod([c if x else 1 - c for c, x in zip(clicks, pattern, strict=True)])
        if 1 in pattern:
            first[pattern.index(1)] += chance
    return first


def plain(model, scores):
    if model == "logit":
        mass = [np.exp(s) for s in scores]
        return [m / (np.exp(0.3) + sum(mass)) for m in mass]
    if model == "proportional":
        mass = [s + 1 for s in scores]
        return [m / (2.0 + sum(mass)) for m in mass]
    if model == "exponential cascade":
        return plain_cascade([0.65 * 0.3 * np.exp(s) for s in scores])
    return plain_cascade([0.65 * 0.4 * (s + 1) for s in scores])


@pytest.mark.parametrize("model", MODELS)
def test_probabilities_follow_the_equations(model):
    expected = [plain(model, scores) for scores in SCORES]
    np.testing.assert_allclose(MODELS[model](SCORES), expected, rtol=1e-12)
    assert (MODELS[model](SCORES).sum(axis=1) < 1).all()


@pytest.mark.parametrize("model", MODELS)
def test_users_do_not_depend_on_each_other_to_the_bit(model):
    together = MODELS[model](SCORES)
    assert all((MODELS[model](SCORES[u : u + 1])[0] == together[u]).all() for u in range(len(SCORES)))
    grid = MODELS[model](SCORES.reshape(2, 3, 5))
    assert (grid.reshape(6, 5) == together).all()


@pytest.mark.parametrize("model", ["logit", "proportional"])
def test_multinomial_choices_do_not_know_the_order(model):
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(MODELS[model](SCORES[:, order]), MODELS[model](SCORES)[:, order], rtol=1e-12)


@pytest.mark.parametrize("model", ["exponential cascade", "proportional cascade"])
def test_cascades_favour_early_places_and_what_comes_later_changes_nothing_before(model):
    alike = MODELS[model](np.zeros((1, 5)))[0]
    assert (np.diff(alike) < 0).all()
    np.testing.assert_array_equal(MODELS[model](SCORES[:, :3]), MODELS[model](SCORES)[:, :3])


@pytest.mark.parametrize("model", MODELS)
def test_choices_have_their_probabilities(model):
    prob_K = MODELS[model](SCORES)[0]
    num = 100_000
    uniform_U = (np.arange(num) + 0.5) / num
    position_U = choice.choose(np.tile(prob_K, (num, 1)), uniform_U)
    share = np.bincount(position_U + 1, minlength=6) / num
    np.testing.assert_allclose(share, [1 - prob_K.sum(), *prob_K], atol=2 / num)


def test_nothing_can_be_certain_or_impossible():
    uniform_U = np.array([1e-9, 0.5, 1 - 2**-24])
    assert (choice.choose(np.zeros((3, 4)), uniform_U) == choice.NOTHING).all()
    certain = choice.multinomial_logit(np.array([[0.1, 0.2, 0.7]] * 3))
    assert (choice.choose(certain, uniform_U) != choice.NOTHING).all()
    assert (choice.choose(np.array([[0.0, 1.0, 0.0]] * 3), uniform_U) == 1).all()
    assert not choice.multinomial(np.zeros((2, 3))).any(), "a slate without any mass is left alone"


def test_null_scores_may_differ_between_users():
    null_U = np.array([-np.inf, 0.0, 50.0])
    prob_UK = choice.multinomial_logit(np.zeros((3, 2)), null_U)
    np.testing.assert_allclose(prob_UK.sum(axis=1), [1, 2 / 3, 0], atol=1e-12)
    prob_UK = choice.multinomial_proportional(np.ones((3, 2)), np.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(prob_UK.sum(axis=1), [1, 2 / 3, 1 / 2])


def test_large_scores_do_not_overflow():
    prob_UK = choice.multinomial_logit(np.array([[1000.0, 999.0], [-1000.0, -999.0]]), np.array([999.0, -1000.0]))
    e = np.e
    np.testing.assert_allclose(prob_UK, [[e / (e + 2), 1 / (e + 2)], [1 / (e + 2), e / (e + 2)]])


def test_a_cascade_shows_what_comes_before_the_click():
    met = choice.met_in_cascade(np.array([0, 2, choice.NOTHING]), 4)
    assert met.tolist() == [[True] + [False] * 3, [True] * 3 + [False], [True] * 4]


@given(
    arrays(np.float64, (3, 4), elements=st.floats(-1, 1)),
    st.sampled_from(sorted(MODELS)),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
)
def test_any_scores_give_probabilities_and_positions(score_UK, model, uniform):
    prob_UK = MODELS[model](score_UK)
    assert (prob_UK >= 0).all() and (prob_UK.sum(axis=1) <= 1 + 1e-12).all()
    position_U = choice.choose(prob_UK, np.full(3, uniform))
    taken_U = position_U != choice.NOTHING
    assert ((position_U >= -1) & (position_U < 4)).all()
    assert (prob_UK[taken_U, position_U[taken_U]] > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choice.multinomial_proportional(SCORES, 1.0), "lower min_normalizer"),
        (lambda: choice.multinomial_proportional(SCORES, -2.0, -1.0), "A mass of -1 is negative"),
        (lambda: choice.exponential_cascade(SCORES, 1.5, 0.1), "attention_prob=1.5"),
        (lambda: choice.exponential_cascade(SCORES, 0.5, -0.1), "score_scaling=-0.1"),
        (lambda: choice.exponential_cascade(SCORES, 0.5, 2.0), "score_scaling=2.0 makes a chance of"),
        (lambda: choice.proportional_cascade(SCORES, 0.5, 0.1), "not a chance of a click"),
        (lambda: choice.cascade(np.array([[0.5, 1.2]])), "1.2 is not a chance"),
    ],
)
def test_what_makes_no_probabilities_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

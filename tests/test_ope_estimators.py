"""Estimators of off-policy evaluation: published figures, exact means by enumeration, identities."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedgym.experiments.ope import estimators as ope
from feedgym.experiments.statistics import resampling_counts

ITEMS, PLACES = 4, 2
SLATES = np.array(list(permutations(range(ITEMS), PLACES)))  # [A, K]: all ordered slates of different items


class Problem:
    """One request, all of whose slates are enumerated: two policies over them and the mean reward at each place."""

    def __init__(self, rng, rewards):
        self.b_A, self.e_A = rng.dirichlet(np.ones(len(SLATES)), 2)
        own_KI, above_II = rng.normal(size=(PLACES, ITEMS)), rng.normal(size=(ITEMS, ITEMS))
        mean = np.stack([own_KI[k, SLATES[:, k]] for k in range(PLACES)], axis=1)
        if rewards in ("cascade", "slate"):
            mean[:, 1] += above_II[SLATES[:, 0], SLATES[:, 1]]
        if rewards == "slate":  # what follows counts as well
            mean[:, 0] += above_II[SLATES[:, 1], SLATES[:, 0]]
        self.reward_AK = mean
        self.truth = float(self.e_A @ mean.sum(1))
        self.b_AK, self.e_AK = (self.conditional(p) for p in (self.b_A, self.e_A))
        self.prefix_AK = ope.prefix_weights(self.e_AK, self.b_AK)
        # Expected values depend on the items above and on the item, never on later ones.
        model = rng.normal(size=(ITEMS, ITEMS))
        self.model_AK = np.stack([model[SLATES[:, 0], 0], model[SLATES[:, 0], SLATES[:, 1]]], axis=1)
        self.q_AK = self.model_AK + rng.normal(size=(PLACES, ITEMS))[np.arange(PLACES), SLATES]
        self.value = float(self.e_A @ self.model_AK.sum(1))

    @staticmethod
    def conditional(p_A):
        first_I = np.array([p_A[SLATES[:, 0] == i].sum() for i in range(ITEMS)])
        return np.stack([first_I[SLATES[:, 0]], p_A / first_I[SLATES[:, 0]]], axis=1)

    def expected(self, q_AK):
        """E over the target's own item of each place, after the logged items above."""
        first = self.e_A @ q_AK[:, 0]
        return np.array([[first, (self.conditional_of(a) * q_AK[self.after(a), 1]).sum()] for a in range(len(SLATES))])

    def after(self, a):
        return np.flatnonzero(SLATES[:, 0] == SLATES[a, 0])

    def conditional_of(self, a):
        return self.e_AK[self.after(a), 1]

    def marginals(self, p_A):
        return np.array([[p_A[SLATES[:, k] == i].sum() for i in range(ITEMS)] for k in range(PLACES)])

    def shown(self):
        return (
            np.stack([SLATES[:, k, None] == np.arange(ITEMS) for k in range(PLACES)], axis=1).reshape(
                -1, PLACES * ITEMS
            )
            * 1.0
        )

    def mean_of(self, estimate):
        """The exact mean of an estimate that is a mean over rows, one row per slate."""
        assert (estimate.denominator_NX == 1).all()
        return float(self.b_A @ estimate.numerator_NX[:, 0])


def estimates(p):
    """Each estimator's exact mean over the log."""
    weight_AK = np.stack([(p.marginals(p.e_A) / p.marginals(p.b_A))[k, SLATES[:, k]] for k in range(PLACES)], axis=1)
    shown_AX = p.shown()
    moment_XX = (p.b_A[:, None, None] * shown_AX[:, :, None] * shown_AX[:, None]).sum(0)
    marginal_X = p.marginals(p.e_A).ravel()
    tile = lambda x: np.broadcast_to(x, (len(SLATES), *x.shape))  # noqa: E731
    value_A = np.full(len(SLATES), p.value)
    found = {
        "ips": ope.ips(p.prefix_AK, p.reward_AK),
        "iips": ope.iips(weight_AK, p.reward_AK),
        "rips": ope.rips(p.prefix_AK, p.reward_AK),
        "pi": ope.pseudo_inverse(tile(marginal_X), tile(moment_XX), shown_AX, p.reward_AK),
        "dr": ope.doubly_robust(p.prefix_AK, p.reward_AK, p.model_AK, value_A),
        "cascade_dr": ope.cascade_dr(p.prefix_AK, p.reward_AK, p.q_AK, p.expected(p.q_AK)),
        "cascade_dr_to": ope.cascade_dr_to(PLACES, p.prefix_AK, p.reward_AK, p.model_AK, value_A),
    }
    return {name: p.mean_of(estimate) for name, estimate in found.items()}


UNBIASED = {
    "own": {"ips", "iips", "rips", "pi", "dr", "cascade_dr", "cascade_dr_to"},
    "cascade": {"ips", "rips", "dr", "cascade_dr", "cascade_dr_to"},
    "slate": {"ips", "dr"},
}
"""By what rewards depend on (their own item; items down to the place; the whole slate), who is exact on average."""


@pytest.mark.parametrize("rewards", UNBIASED)
@pytest.mark.parametrize("seed", range(5))
def test_an_estimator_is_exact_on_average_where_its_assumption_holds_and_off_where_not(rewards, seed):
    problem = Problem(np.random.default_rng(seed), rewards)
    for name, mean in estimates(problem).items():
        if name in UNBIASED[rewards]:
            assert mean == pytest.approx(problem.truth, abs=1e-9), name
        else:
            assert abs(mean - problem.truth) > 1e-3, name


def test_the_direct_method_is_as_far_off_as_its_model_and_dr_without_support_too():
    problem = Problem(np.random.default_rng(0), "cascade")
    value_A = np.full(len(SLATES), problem.value)
    assert abs(problem.mean_of(ope.direct(value_A)) - problem.truth) > 0.01
    right_A = np.full(len(SLATES), problem.truth)
    assert problem.mean_of(ope.direct(right_A)) == pytest.approx(problem.truth)
    # The log never shows the slates that begin with item 0: IPS loses their share, DR keeps the model's word for it.
    seen_A = SLATES[:, 0] != 0
    b_A = problem.b_A * seen_A / problem.b_A[seen_A].sum()
    prefix_AK = np.where(seen_A[:, None], 1.0, 0.0)
    prefix_AK[seen_A] = (problem.e_A[seen_A] / b_A[seen_A])[:, None]
    lost = problem.e_A[~seen_A] @ problem.reward_AK[~seen_A].sum(1)
    assert b_A @ ope.ips(prefix_AK, problem.reward_AK).numerator_NX[:, 0] == pytest.approx(problem.truth - lost)
    perfect = ope.doubly_robust(prefix_AK, problem.reward_AK, problem.reward_AK, right_A)
    assert b_A @ perfect.numerator_NX[:, 0] == pytest.approx(problem.truth)


def test_published_figures_of_a_toy():
    # Open Bandit Pipeline's estimators_slate on four slates of three places with two actions.
    actions = np.array([[0, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]])
    reward = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 0]], float)
    b0, e0 = np.array([0.5, 0.6, 0.5]), np.array([0.8, 0.3, 0.4])
    b, e = (np.where(actions == 0, p0, 1 - p0) for p0 in (b0, e0))
    prefix = ope.prefix_weights(e, b)
    q = np.where(actions == 0, 0.6, 0.4)
    expected = np.broadcast_to(e0 * 0.6 + (1 - e0) * 0.4, q.shape)
    marginals, shown = np.stack([e0, 1 - e0], 1).ravel(), np.stack([actions == 0, actions == 1], 2).reshape(4, 6) * 1.0
    every = np.array(list(product((0, 1), repeat=3)))
    one_hot = np.stack([every == 0, every == 1], 2).reshape(8, 6) * 1.0
    prob = np.where(every == 0, b0, 1 - b0).prod(1)
    moment = np.einsum("a,ax,ay->xy", prob, one_hot, one_hot)
    pi = ope.pseudo_inverse(np.tile(marginals, (4, 1)), np.tile(moment, (4, 1, 1)), shown, reward)
    found = {
        1.97: ope.ips(prefix, reward),
        1.8625: ope.iips(e / b, reward),
        2.47: ope.rips(prefix, reward),
        1.683761: ope.snips(prefix, reward),
        1.979387: ope.snrips(prefix, reward),
        1.615385: ope.Estimate(e / b * reward, e / b),
        2.278: ope.cascade_dr(prefix, reward, q, expected),
        2.2875: pi,
    }
    for wanted, estimate in found.items():
        assert estimate.mean() == pytest.approx(wanted, abs=1e-6)
    assert ope.effective_sample_size(prefix) == pytest.approx([3.449, 2.707, 3.105], abs=1e-3)


rows = st.integers(0, 10_000).map(np.random.default_rng)


def log_of(rng, num=50, places=3):
    b, e = rng.uniform(0.05, 1, (2, num, places))
    return e, b, rng.normal(size=(num, places)), rng.normal(size=(num, places)), rng.normal(size=num)


@given(rows)
def test_the_logging_policy_itself_gets_the_mean_of_the_log(rng):
    _, b, reward, _, _ = log_of(rng)
    prefix = ope.prefix_weights(b, b)
    mean = reward.sum(1).mean()
    for estimator in (ope.ips, ope.snips, ope.rips, ope.snrips):
        assert estimator(prefix, reward).mean() == pytest.approx(mean)
    assert ope.iips(np.ones_like(b), reward).mean() == pytest.approx(mean)
    assert ope.effective_sample_size(prefix) == pytest.approx(len(b))


@given(rows)
def test_without_a_model_and_with_a_perfect_one(rng):
    e, b, reward, model, value = log_of(rng)
    prefix, zero = ope.prefix_weights(e, b), np.zeros_like(reward)
    none = ope.doubly_robust(prefix, reward, zero, np.zeros(len(b)))
    assert none.numerator_NX == pytest.approx(ope.ips(prefix, reward).numerator_NX)
    cascade = ope.cascade_dr(prefix, reward, zero, zero)
    assert cascade.numerator_NX == pytest.approx(ope.rips(prefix, reward).numerator_NX)
    # A model that knows the rewards leaves nothing to weigh: no variance beside that of the requests.
    for perfect in (
        ope.doubly_robust(prefix, reward, reward, value),
        ope.cascade_dr_to(3, prefix, reward, reward, value),
    ):
        assert perfect.numerator_NX[:, 0] == pytest.approx(value)
    assert ope.cascade_dr_to(0, prefix, reward, model, value).mean() == pytest.approx(ope.direct(value).mean())


@given(rows)
def test_the_cascade_with_the_models_reward_to_go_telescopes(rng):
    e, b, reward, model, _ = log_of(rng)
    expected = rng.normal(size=reward.shape)  # E Q_k after the logged items above, whatever it is
    q = model + np.concatenate([expected[:, 1:], np.zeros((len(b), 1))], axis=1)
    prefix = ope.prefix_weights(e, b)
    whole = ope.cascade_dr(prefix, reward, q, expected)
    assert ope.cascade_dr_to(3, prefix, reward, model, expected[:, 0]).numerator_NX == pytest.approx(
        whole.numerator_NX, rel=1e-6, abs=1e-6
    )


@given(rows)
def test_self_normalised_estimates_stay_in_the_range_of_the_rewards(rng):
    e, b, _, _, _ = log_of(rng)
    reward = rng.uniform(0, 1, e.shape)
    prefix = ope.prefix_weights(e, b) ** 3
    assert 0 <= ope.snips(prefix, reward).mean() <= 3
    assert 0 <= ope.snrips(prefix, reward).mean() <= 3


@given(rows)
def test_resampling_users_draws_all_their_requests(rng):
    e, b, reward, _, _ = log_of(rng, num=30)
    user_N, counts_RU = rng.integers(0, 7, 30), resampling_counts(7, 0, 5)
    for estimator in (ope.ips, ope.snrips):
        estimate = estimator(ope.prefix_weights(e, b), reward)
        users = estimate.of_users(user_N, 7)
        assert users.mean() == pytest.approx(estimate.mean()) and users.num_users == 7
        drawn_N = np.repeat(np.arange(30), counts_RU[0][user_N].astype(int))
        again = estimator(ope.prefix_weights(e, b)[drawn_N], reward[drawn_N])
        assert users.resampled(counts_RU)[0] == pytest.approx(again.mean())


def test_no_weight_is_no_estimate_and_not_a_warning():
    zero = np.zeros((4, 2))
    assert ope.snips(zero, np.ones((4, 2))).mean() == 0
    assert (ope.effective_sample_size(zero) == 0).all()


@pytest.mark.parametrize("wrong", [0.0, -0.1, 1.5, np.nan])
def test_propensities_that_are_none_are_refused(wrong):
    logged = np.full((3, 2), 0.5)
    logged[1, 0] = wrong
    with pytest.raises(ValueError, match="1 propensities of the log are not in"):
        ope.prefix_weights(np.full((3, 2), 0.5), logged)

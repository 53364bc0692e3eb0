from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedgym.agents.plackett_luce import PlackettLuce


def all_slates(items, length):
    return torch.tensor(list(permutations(range(items), length)))


def plain_log_prob(logits, slate):
    """From the definition: place after place among the items that are left."""
    left, total = list(range(len(logits))), 0.0
    for item in slate:
        weights = torch.tensor([logits[i] for i in left], dtype=torch.float64).exp()
        total += float((weights[left.index(item)] / weights.sum()).log())
        left.remove(item)
    return total


def every_log_prob(logits_I, length):
    slates_XK = all_slates(len(logits_I), length)
    return slates_XK, PlackettLuce(logits_I.expand(len(slates_XK), -1), length).log_prob(slates_XK)


SHAPES = [(1, 1), (4, 1), (4, 2), (5, 3), (4, 4)]


@pytest.mark.parametrize(("items", "length"), SHAPES)
def test_log_probs_are_those_of_the_definition_and_add_up_to_one(items, length):
    logits_I = torch.randn(items, generator=torch.Generator().manual_seed(items), dtype=torch.float64) * 3
    slates_XK, logp_X = every_log_prob(logits_I, length)
    assert float(logp_X.exp().sum()) == pytest.approx(1, abs=1e-9)
    for slate, logp in zip(slates_XK.tolist(), logp_X.tolist(), strict=True):
        assert logp == pytest.approx(plain_log_prob(logits_I.tolist(), slate), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-80, 80, width=32), min_size=3, max_size=6), st.floats(-1e3, 1e3))
def test_sharp_logits_stay_finite_and_a_shift_changes_nothing(logits, shift):
    logits_I = torch.tensor(logits, dtype=torch.float64)
    _, logp_X = every_log_prob(logits_I, 3)
    assert torch.isfinite(logp_X).all() and (logp_X <= 1e-9).all()
    torch.testing.assert_close(every_log_prob(logits_I + shift, 3)[1], logp_X, atol=1e-6, rtol=1e-6)


def test_samples_have_the_frequencies_of_their_probabilities():
    logits_I, length, draws = torch.tensor([1.5, 0.0, -1.0, 0.7]), 2, 40_000
    slates_XK, logp_X = every_log_prob(logits_I, length)
    drawn_SK = PlackettLuce(logits_I[None], length).sample(draws, torch.Generator().manual_seed(0))[0]
    share_X = (drawn_SK[:, None] == slates_XK).all(-1).float().mean(0)
    deviation_X = (logp_X.exp() * (1 - logp_X.exp()) / draws).sqrt()
    assert ((share_X - logp_X.exp()).abs() < 4.5 * deviation_X).all()


def test_rows_are_drawn_independently_of_each_other():
    logits_UI = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    other_UI = torch.cat([logits_UI[:1], 100 * logits_UI[1:]])
    one, two = (PlackettLuce(x, 4).sample(6, torch.Generator().manual_seed(1)) for x in (logits_UI, other_UI))
    assert torch.equal(one[0], two[0]) and not torch.equal(one[1:], two[1:])


def test_the_mode_is_the_likeliest_slate():
    logits_I = torch.randn(5, generator=torch.Generator().manual_seed(2))
    slates_XK, logp_X = every_log_prob(logits_I, 3)
    assert torch.equal(PlackettLuce(logits_I[None], 3).mode()[0], slates_XK[logp_X.argmax()])


@pytest.mark.parametrize(("items", "length"), SHAPES)
def test_entropy_and_divergence_are_unbiased(items, length):
    generator = torch.Generator().manual_seed(7)
    p_I, q_I = (torch.randn(items, generator=generator, dtype=torch.float64) * 1.5 for _ in range(2))
    _, logp_X = every_log_prob(p_I, length)
    _, logq_X = every_log_prob(q_I, length)
    entropy, kl = -(logp_X.exp() * logp_X).sum(), (logp_X.exp() * (logp_X - logq_X)).sum()
    draws = 1 if length == 1 else 20_000  # one place has a closed form: one draw is exact
    p, q = (PlackettLuce(x.expand(draws, -1), length) for x in (p_I, q_I))
    for found_U, truth in ((p.entropy(generator), entropy), (p.kl(q, generator), kl)):
        spread = 0.0 if length == 1 else 5 * float(found_U.std()) / draws**0.5
        assert float(found_U.mean()) == pytest.approx(float(truth), abs=1e-9 + spread)


def test_gradients_are_finite_where_one_item_has_all_the_probability():
    logits_UI = torch.tensor([[90.0, -90.0, 0.0, 1.0]], requires_grad=True)
    distribution = PlackettLuce(logits_UI, 3)
    total = distribution.log_prob(torch.tensor([[0, 3, 1]])) + distribution.entropy() + distribution.kl(distribution)
    total.sum().backward()
    assert torch.isfinite(total).all() and torch.isfinite(logits_UI.grad).all()

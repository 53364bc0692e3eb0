"""What methods take of a round's sessions does not depend on the parts in which its users come."""

import pytest
import torch

from feedgym.agents.alignment.groups import random_groups
from feedgym.agents.alignment.imitation import ExpRSFTConfig, _imitated, exp_weights, resampled
from feedgym.data.batches import ScoredParts, ScoredSessions
from feedgym.plugins import resolve

U, S, K = 11, 20, 3


def make_sampled():
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(U, S, generator=generator) for _ in range(4)]
    columns[0][4] = 0.5  # nothing can be learned from this user
    names = ("score_US", "logp_US", "logp_allowed_US", "logp_drawn_US")
    items = torch.rand(U, S, 40, generator=generator).topk(K).indices
    return ScoredSessions(item_ids_USK=items, **dict(zip(names, columns, strict=True)))


def in_parts(sampled, sizes):
    lows = [sum(sizes[:n]) for n in range(len(sizes))]
    return ScoredParts(sizes, lambda n: sampled.rows(slice(lows[n], lows[n] + sizes[n])))


def assert_equal(found, expected):
    for name, column in vars(expected).items():
        assert column is None is vars(found)[name] or torch.equal(vars(found)[name], column), name


SIZES = [(11,), (4, 7), (5, 1, 5), (1,) * 11]


def test_columns_of_parts_are_those_of_all_users():
    sampled = make_sampled()
    parts = in_parts(sampled, (4, 7))
    assert len(parts) == U and [len(part) for part in parts.parts()] == [4, 7]
    assert_equal(ScoredSessions(**{name: getattr(parts, name) for name in vars(sampled)}), sampled)
    with pytest.raises(AttributeError, match="truth_US"):
        parts.truth_US  # noqa: B018
    assert list(sampled.parts()) == [sampled]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ipa", {}),
        ("dpo", {"pairing": {"kind": "best_random", "num": 2}}),
        ("dpo", {"pairing": {"kind": "any", "num": 3}}),
        ("sppo", {"labels": "soft"}),
        ("s_dpo", {"rejected": {"kind": "random"}}),
        ("kto", {}),
    ],
    ids=str,
)
def test_sessions_that_are_compared(name, options, sizes):
    kind = resolve("method", name)
    kinds = {field: type(getattr(kind.Config(), field)) for field in options if isinstance(options[field], dict)}
    method = kind(kind.Config(**{n: kinds[n](**v) if n in kinds else v for n, v in options.items()}))
    sampled = make_sampled()
    expected = method.compared(sampled)
    assert len(expected) >= 10 and 4 not in expected.user_idx_P
    assert_equal(method.compared(in_parts(sampled, sizes)), expected)
    choice = method.choose(sampled, torch.Generator().manual_seed(method.config.seed))
    assert torch.equal(expected.item_ids_PSK.long(), choice.of(sampled.item_ids_USK))
    assert torch.equal(expected.logp_PS, choice.of(sampled.logp_US))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_groups(sizes):
    sampled = make_sampled()
    expected = random_groups(sampled, 7, seed=3)
    assert expected.user_idx_U.tolist() == [u for u in range(U) if u != 4]
    assert_equal(random_groups(in_parts(sampled, sizes), 7, seed=3), expected)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sessions_to_imitate(sizes):
    config, sampled = ExpRSFTConfig(draws=5), make_sampled()

    def taken(given):
        generator = torch.Generator().manual_seed(config.seed)

        def pick(part):
            idx_UG = resampled(exp_weights(part, config), config.draws, generator)
            return idx_UG, torch.full(idx_UG.shape, 1 / config.draws)

        return _imitated(given, pick)

    assert_equal(taken(in_parts(sampled, sizes)), taken(sampled))

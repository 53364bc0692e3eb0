"""Which sessions are set against which, against a brute force over users, and what is refused."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedgym.agents.alignment import pairs as module
from feedgym.agents.alignment.pairs import (
    GradingConfig,
    ListingConfig,
    PairingConfig,
    choose_grades,
    choose_lists,
    choose_pairs,
    chosen_pairs,
    prob_of_winning,
)
from feedgym.data.batches import ScoredSessions


def scored(item_ids_USK, score_US):
    nothing = torch.full_like(score_US, torch.nan)
    return ScoredSessions(
        item_ids_USK=item_ids_USK, score_US=score_US, logp_US=nothing, logp_allowed_US=nothing, logp_drawn_US=nothing
    )


def random_sessions(seed, num_users=5, num_sessions=6, num_items=3):
    """Sessions of two items out of few, so that some are drawn twice; a session's score goes by its items, some tie."""
    generator = torch.Generator().manual_seed(seed)
    item_ids_USK = torch.randint(num_items, (num_users, num_sessions, 2), generator=generator)
    values = torch.randint(4, (num_users, num_items, num_items), generator=generator).float()
    user_U1 = torch.arange(num_users)[:, None]
    return scored(item_ids_USK, values[user_U1, item_ids_USK[..., 0], item_ids_USK[..., 1]])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def by_items(sampled, choice):
    """The choices as (user, sessions' items)."""
    sessions = choice.of(sampled.item_ids_USK).tolist()
    return [(u, *map(tuple, row)) for u, row in zip(choice.user_idx_P.tolist(), sessions, strict=True)]


def distinct(sampled, u):
    """A user's different sessions with their scores."""
    return {tuple(items): score for items, score in zip(sampled.item_ids_USK[u].tolist(), sampled.score_US[u].tolist(),
                                                         strict=True)}  # fmt: skip


def eligible(sampled, config):
    """All pairs (user, better, worse) that may be made, by brute force."""
    found = set()
    for u in range(len(sampled)):
        sessions, unit = distinct(sampled, u), 1.0
        if config.margin_unit == "spread":
            unit = sampled.score_US[u].std().item()
        for a, b in combinations(sessions, 2):
            better, worse = (a, b) if sessions[a] > sessions[b] else (b, a)
            gap = sessions[better] - sessions[worse]
            if gap > 0 and gap >= config.margin * unit - 1e-6:
                found.add((u, better, worse))
    return found


MARGINS = st.sampled_from([{}, {"margin": 2.0}, {"margin": 1.2, "margin_unit": "spread"}])


@given(st.integers(0, 10**6), MARGINS)
@settings(deadline=None, max_examples=40)
def test_any_takes_all_pairs_that_differ_by_the_margin_and_no_others(seed, margin):
    sampled, config = random_sessions(seed), PairingConfig(kind="any", num=10**6, **margin)
    found = by_items(sampled, choose_pairs(sampled, config, seeded(0)))
    assert len(found) == len(set(found)) and set(found) == eligible(sampled, config)


@given(st.integers(0, 10**6), MARGINS, st.sampled_from(["best_worst", "best_random", "any"]), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_pairs_are_eligible_different_bounded_and_the_seeds(seed, margin, kind, num):
    sampled, config = random_sessions(seed), PairingConfig(kind=kind, num=num, **margin)
    choice = choose_pairs(sampled, config, seeded(3))
    found, allowed = by_items(sampled, choice), eligible(sampled, config)
    assert len(found) == len(set(found)) and set(found) <= allowed
    assert choice.user_idx_P.tolist() == sorted(choice.user_idx_P.tolist())
    for u in range(len(sampled)):
        own = [pair for pair in found if pair[0] == u]
        sessions = distinct(sampled, u)
        high, low = max(sessions.values()), min(sessions.values())
        assert len(own) <= num
        if kind != "best_worst":
            # Of equally good best sessions one is the best.
            best = own[0][1] if own else None
            there = [pair for pair in allowed if pair[0] == u and (kind == "any" or pair[1] == best)]
            assert len(own) == min(num, len(there))
        if kind != "any" and own:
            assert sessions[own[0][1]] == high
        if kind == "best_worst":
            ranks = sorted(sessions.values(), reverse=True)
            wanted = [(ranks[i], ranks[-1 - i]) for i in range(min(num, len(ranks)))]
            unit = sampled.score_US[u].std().item() if config.margin_unit == "spread" else 1.0
            wanted = [(a, b) for a, b in wanted if a > b and a - b >= config.margin * unit - 1e-6]
            assert [(sessions[a], sessions[b]) for _, a, b in own] == wanted
            assert not own or sessions[own[0][2]] == low
    again = by_items(sampled, choose_pairs(sampled, config, seeded(3)))
    assert again == found


def test_random_choices_change_with_the_seed_and_are_fair():
    sampled = scored(torch.arange(2000 * 4).view(2000, 4, 1), torch.arange(4.0).expand(2000, 4))
    for kind, ways in (("best_random", 3), ("any", 6)):
        one, two = (choose_pairs(sampled, PairingConfig(kind=kind), seeded(seed)) for seed in (0, 1))
        assert not torch.equal(one.session_idx_PS, two.session_idx_PS)
        counts = one.session_idx_PS.unique(dim=0, return_counts=True)[1]
        assert len(counts) == ways and (counts / 2000 - 1 / ways).abs().max() < 0.05


def test_blocks_of_users_are_put_together(monkeypatch):
    sampled, config = random_sessions(1, num_users=7), PairingConfig(kind="any", num=100)
    whole = by_items(sampled, choose_pairs(sampled, config, seeded(0)))
    monkeypatch.setattr(module, "BLOCK", 30)  # two users
    assert sorted(by_items(sampled, choose_pairs(sampled, config, seeded(0)))) == sorted(whole)


def test_the_margin_itself_is_enough_and_pairs_bring_their_own_log_and_scores():
    score_US = torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.5, 1.0], [5.0, 4.0, 7.0]])
    sampled, logged = scored(torch.arange(9).view(3, 3, 1), score_US), torch.tensor([[10], [11], [12]])
    pairs = chosen_pairs(sampled, logged, PairingConfig(margin=2.0))
    assert pairs.user_idx_P.tolist() == [0, 2] and pairs.logged_PK.tolist() == [[10], [12]]
    assert pairs.chosen_PK.tolist() == [[1], [8]] and pairs.rejected_PK.tolist() == [[0], [7]]
    assert pairs.score_chosen_P.tolist() == [3.0, 7.0] and pairs.score_rejected_P.tolist() == [1.0, 4.0]
    spread = PairingConfig(margin=1.8, margin_unit="spread")  # the widest of three is 2, 1.73 and 1.96 of them
    assert chosen_pairs(sampled, logged, spread).user_idx_P.tolist() == [0, 2]


def test_a_session_drawn_twice_counts_once():
    item_ids_USK = torch.tensor([[[1, 2], [1, 2], [2, 1], [1, 2]]])
    sampled = scored(item_ids_USK, torch.tensor([[3.0, 3.0, 1.0, 3.0]]))
    assert len(choose_pairs(sampled, PairingConfig(kind="any", num=9), seeded(0))) == 1
    assert len(choose_pairs(sampled, PairingConfig(num=4), seeded(0))) == 1
    assert len(choose_lists(sampled, ListingConfig(num=2), seeded(0))) == 0  # there is one other session
    assert len(choose_grades(sampled, GradingConfig(good=2, bad=1))) == 0


def test_lists_have_the_best_and_worse_ones_and_leave_out_who_has_too_few():
    score_US = torch.tensor([[4.0, 1.0, 2.0, 3.0], [2.0, 2.0, 2.0, 1.0], [1.0, 5.0, torch.nan, 0.0]])
    sampled = scored(torch.arange(12).view(3, 4, 1), score_US)
    worst = choose_lists(sampled, ListingConfig(num=2), seeded(0))
    assert worst.user_idx_P.tolist() == [0] and worst.session_idx_PS.tolist() == [[0, 1, 2]]
    near = ListingConfig(num=2, margin=2.0)
    assert choose_lists(sampled, near, seeded(0)).session_idx_PS.tolist() == [[0, 1, 2]]
    assert len(choose_lists(sampled, ListingConfig(num=3, margin=2.0), seeded(0))) == 0
    found = {tuple(choose_lists(sampled, ListingConfig(num=1, kind="random"), seeded(seed)).session_idx_PS[0].tolist())
             for seed in range(30)}  # fmt: skip
    assert found == {(0, 1), (0, 2), (0, 3)}


def test_grades_are_the_ends_of_a_users_own_order():
    score_US = torch.tensor([[4.0, 1.0, 2.0, 3.0], [2.0, 2.0, 2.0, 1.0], [9.0, 9.0, 8.0, 8.0]])
    sampled = scored(torch.arange(12).view(3, 4, 1), score_US)
    choice = choose_grades(sampled, GradingConfig(good=2, bad=2))
    assert choice.user_idx_P.tolist() == [0, 2]  # of user 1, a good one would be as good as a bad one
    assert choice.session_idx_PS.tolist() == [[0, 3, 2, 1], [0, 1, 2, 3]]
    assert choose_grades(sampled, GradingConfig(good=1, bad=1)).session_idx_PS.tolist() == [[0, 1], [0, 3], [0, 3]]
    assert choose_grades(sampled, GradingConfig(margin=3.0)).user_idx_P.tolist() == [0]


def test_probabilities_of_winning_are_means_over_the_whole_group():
    sampled = random_sessions(4, num_items=9)
    choice = choose_pairs(sampled, PairingConfig(num=2), seeded(0))
    for unit in ("score", "spread"):
        found_PS = prob_of_winning(sampled, choice, unit)
        for p, u in enumerate(choice.user_idx_P.tolist()):
            scale = sampled.score_US[u].std() if unit == "spread" else 1.0
            for s in range(2):
                own = sampled.score_US[u, choice.session_idx_PS[p, s]]
                by_hand = torch.sigmoid((own - sampled.score_US[u]) / scale).mean()
                assert found_PS[p, s].item() == pytest.approx(by_hand.item(), abs=1e-6)
        assert (found_PS[:, 0] > found_PS[:, 1]).all()


@pytest.mark.parametrize(
    "kind, given_settings, message",
    [
        (PairingConfig, {"kind": "worst"}, "kind='worst' is unknown; choose one of best_worst, best_random, any"),
        (PairingConfig, {"margin_unit": "spread"}, "margin_unit='spread' has no effect on margin=0; set a margin"),
        (
            PairingConfig,
            {"margin": 1.0, "margin_unit": "sd"},
            "margin_unit='sd' is unknown; choose one of score, spread",
        ),
        (PairingConfig, {"margin": -1.0}, "margin=-1.0 must be 0 or more"),
        (ListingConfig, {"kind": "best"}, "kind='best' is unknown; choose one of worst, random"),
    ],
)
def test_settings_are_checked(kind, given_settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**given_settings)


def test_more_sessions_than_were_drawn_are_refused():
    sampled = random_sessions(0)
    with pytest.raises(ValueError, match="6 sessions were drawn per user but 7 are needed; draw more"):
        choose_lists(sampled, ListingConfig(num=6), seeded(0))
    with pytest.raises(ValueError, match="6 sessions were drawn per user but 8 are needed"):
        choose_grades(sampled, GradingConfig(good=4, bad=4))

import math
from dataclasses import replace

import pytest
import torch
from toy_agents import NUM_ITEMS, K, toy_histories, toy_model, toy_tokenizer

from feedgym.agents.baselines import PopularRecommender, RandomRecommender
from feedgym.agents.check import check_recommender
from feedgym.agents.generation import SamplingConfig
from feedgym.agents.session_model import SessionRecommender
from feedgym.data.batches import SessionBatch
from feedgym.protocols import Recommender

ITEMS, LENGTH = 8, 2


def histories(num=6):
    return toy_histories(num, seed=4, num_items=ITEMS)


class Fine(PopularRecommender):
    """A few items are far more popular than the others, so that samples repeat themselves."""

    def __init__(self):
        super().__init__(4.0 ** -torch.arange(ITEMS), LENGTH)


def onerec(num_beams, **sampling):
    return SessionRecommender(toy_model(dropout=0.3), toy_tokenizer(), K, SamplingConfig(**sampling), num_beams)


@pytest.mark.parametrize(
    ("agent", "num_items"),
    [
        (Fine(), ITEMS),
        (RandomRecommender(ITEMS, 4), ITEMS),
        (RandomRecommender(ITEMS, ITEMS), ITEMS),
        (onerec(num_beams=1), NUM_ITEMS),
        (onerec(num_beams=5), NUM_ITEMS),
        (onerec(num_beams=0), NUM_ITEMS),
        (onerec(num_beams=5, temperature=1.3, top_k=3, top_p=0.9, block_seen=False), NUM_ITEMS),
    ],
)
def test_sound_agents_pass_and_their_histories_stay_as_they_are(agent, num_items):
    assert isinstance(agent, Recommender)
    given = toy_histories(6, num_items=num_items)
    kept = {name: column.clone() for name, column in vars(given).items() if column is not None}
    check_recommender(agent, given, num_items)
    assert all(torch.equal(getattr(given, name), column) for name, column in kept.items())


def changed(sessions, **columns):
    """Sessions with columns replaced by what a function makes of them."""
    return SessionBatch(**{name: columns.get(name, lambda v: v)(value) for name, value in vars(sessions).items()})


def samples(**columns):
    """An agent whose samples are changed."""

    class Broken(Fine):
        def sample(self, histories, n, generator):
            return changed(super().sample(histories, n, generator), **columns)

    return Broken


def served(answer):
    """An agent that serves something else: ``answer(histories, sessions)``."""

    class Broken(Fine):
        def recommend(self, histories):
            return answer(histories, super().recommend(histories))

    return Broken


def next_item(sessions, steps_U):
    """Every item moved on by a number of items, one a user."""
    return changed(sessions, item_ids_USK=lambda ids: (ids + steps_U.view(-1, 1, 1)) % ITEMS)


class Nameless(Fine):
    session_length = property(lambda self: None, lambda self, value: None)


class Endless(Fine):
    session_length = property(lambda self: ITEMS + 1, lambda self, value: None)


class Mute(Fine):
    sample = None


class Idle(Fine):
    recommend = None


class Listing(Fine):
    def sample(self, histories, n, generator):
        return vars(super().sample(histories, n, generator))


class Squeezing(Fine):
    def sample(self, histories, n, generator):
        sessions = super().sample(histories, n, generator)
        return sessions if n > 1 else changed(sessions, item_ids_USK=lambda v: v[:, 0], logp_US=lambda v: v[:, 0])


class Scribbling(Fine):
    def sample(self, histories, n, generator):
        histories.gap_s_UT.clamp_(max=1.0)
        return super().sample(histories, n, generator)


class Noisy(Fine):
    def sample(self, histories, n, generator):
        sessions = super().sample(histories, n, generator)
        return changed(sessions, logp_US=lambda v: v - torch.rand(v.shape, generator=generator))


class Restless(Fine):
    def sample(self, histories, n, generator):
        return super().sample(histories, n, torch.Generator().manual_seed(int(torch.randint(10**9, ()))))


class Infectious(Fine):
    def sample(self, histories, n, generator):
        sessions = super().sample(histories, n, generator)
        return next_item(sessions, (histories.time_of_day_U * 1000).long().roll(1))


def repeating(ids_USK):
    return ids_USK[..., :1].expand_as(ids_USK)


def restless(histories, sessions):
    return next_item(sessions, torch.randint(ITEMS, (len(histories),)))


def scribbling(histories, sessions):
    histories.behaviours_UTB.zero_()
    return sessions


def by_place(histories, sessions):
    return next_item(sessions, torch.arange(len(histories)))


def by_crowd(histories, sessions):
    return next_item(sessions, torch.full((len(histories),), len(histories)))


def by_padding(histories, sessions):
    return next_item(sessions, histories.item_ids_UT.sum(1))


def by_length(histories, sessions):
    return next_item(sessions, torch.full((len(histories),), histories.mask_UT.shape[1]))


def pretending(answer, logp):
    """Log-probabilities that must not be taken for a near tie."""
    return lambda histories, sessions: changed(answer(histories, sessions), logp_US=lambda v: torch.full_like(v, logp))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Nameless, "Nameless.session_length is None; set it to the number of items a session has, 1..8"),
        (Endless, r"session_length is 9; set it .* 1\.\.8"),
        (Mute, r"Mute has no sample\(\); see feedgym.protocols"),
        (Idle, r"Idle has no recommend\(\); see feedgym.protocols"),
        (Listing, r"Listing.sample\(\) returned dict; return a SessionBatch"),
        (samples(item_ids_USK=lambda v: v.int()), r"torch.int32 items of shape \(6, 7, 2\); give int64"),
        (samples(item_ids_USK=lambda v: v.tolist()), r"gave list items of shape \(\); give int64"),
        (
            samples(item_ids_USK=lambda v: v.flatten(0, 1)),
            r"items of shape \(42, 2\); give int64 \[U, S, K\] = \(6, 7, 2",
        ),
        (samples(item_ids_USK=lambda v: v + 7), r"gave item 7\.\.\d+; the catalogue has 0\.\.7"),
        (samples(item_ids_USK=lambda v: v - 1), r"gave item -1\.\..; the catalogue has 0\.\.7"),
        (samples(item_ids_USK=repeating), "a session with an item twice; mask the items already in the session"),
        (
            samples(logp_US=lambda v: v.double()),
            r"gave torch.float64 log-probabilities of shape \(6, 7\); give float32",
        ),
        (samples(logp_US=lambda v: v[..., None]), r"of shape \(6, 7, 1\); give float32 \[U, S\] = \(6, 7\)"),
        (samples(logp_US=lambda v: None), r"gave NoneType log-probabilities .* NaN where the agent has none"),
        (Squeezing, r"Squeezing.sample\(n=1\) gave torch.int64 items of shape \(6, 2\); .* = \(6, 1, 2\)"),
        (Scribbling, r"Scribbling.sample\(\) changed the histories it was given; work on copies"),
        (samples(logp_US=lambda v: -v), r"log-probabilities up to .* logs of probabilities, 0 at most"),
        (samples(logp_US=lambda v: v.index_fill(1, torch.tensor(2), torch.nan)), "or NaN among numbers"),
        (Noisy, "a user's same session two log-probabilities; return that of the session itself"),
        (samples(logp_US=lambda v: v / 4), r"add up to \d\.\d+; accumulate the log-softmax of every choice"),
        (Restless, r"gave other sessions under the same generator; draw every random number from it"),
        (Infectious, "the first user other sessions when the other users changed; let no user depend on the others"),
        (served(lambda h, s: None), r"recommend\(\) returned NoneType; return a SessionBatch"),
        (
            served(lambda h, s: SessionBatch.cat([s.rows([u]) for u in range(1, 6)])),
            r"shape \(5, 1, 2\); .* \(6, 1, 2\)",
        ),
        (
            served(lambda h, s: changed(s, item_ids_USK=lambda v: v.repeat(1, 2, 1))),
            r"shape \(6, 2, 2\); .* \(6, 1, 2\)",
        ),
        (served(lambda h, s: changed(s, item_ids_USK=repeating)), r"recommend\(\) gave a session with an item twice"),
        (served(lambda h, s: changed(s, item_ids_USK=lambda v: v + 7)), r"recommend\(\) gave item 7\.\."),
        (served(scribbling), r"recommend\(\) changed the histories it was given; work on copies"),
        (served(restless), "for the same request; .* must be deterministic"),
        (served(by_place), r"recommend\(\) did not permute its answers with the users"),
        (served(by_crowd), "served users differently alone and in a batch; let no user's answer depend on the others"),
        (served(by_padding), "read events where mask_UT is false; use only those where it is true"),
        (served(by_length), "depends on how far the histories are padded; use only the events where mask_UT is true"),
        (served(pretending(by_place, 0.0)), "did not permute its answers with the users"),
        (served(pretending(by_length, -0.5)), "depends on how far the histories are padded"),
    ],
)
def test_a_broken_agent_is_told_what_to_change(broken, message):
    with pytest.raises(ValueError, match=message) as found:
        check_recommender(broken(), histories(), ITEMS)
    assert "\n" not in str(found.value)


def test_sessions_that_are_equally_good_may_be_swapped_by_rounding():
    tied = served(pretending(by_crowd, math.log(0.4)))
    check_recommender(tied(), histories(), ITEMS)


def test_samples_of_less_than_everything_are_no_fault():
    """Top-k and beams leave probability out; only more than everything is wrong."""
    check_recommender(samples(logp_US=lambda v: v - 3.0)(), histories(), ITEMS)
    check_recommender(samples(logp_US=lambda v: torch.full_like(v, torch.nan))(), histories(), ITEMS)


def test_the_check_looks_at_a_new_user_and_makes_room_for_padding():
    seen = []

    class Watching(Fine):
        def recommend(self, histories):
            seen.append(histories.mask_UT.clone())
            return super().recommend(histories)

    full = replace(histories(), mask_UT=torch.ones(6, 6).bool())
    check_recommender(Watching(), full, ITEMS)
    assert not seen[0][0].any() and seen[0][1:, :-1].all() and not seen[0][:, -1].any()
    assert full.mask_UT.all()

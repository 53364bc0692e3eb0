import pytest
import torch

from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.protocols import SessionReward
from feedgym.rewards.check import check_reward

U, T, S, K = 4, 5, 3, 3


def histories():
    generator = torch.Generator().manual_seed(0)
    return EventBatch(
        item_ids_UT=torch.randint(20, (U, T), generator=generator),
        behaviours_UTB=torch.zeros(U, T, 7),
        watch_fraction_UT=torch.rand(U, T, generator=generator),
        gap_s_UT=torch.ones(U, T),
        mask_UT=torch.ones(U, T, dtype=torch.bool),
        profile_UF=torch.zeros(U, 1, dtype=torch.long),
        time_of_day_U=torch.arange(U).float(),
    )


def sessions():
    generator = torch.Generator().manual_seed(1)
    return SessionBatch(
        item_ids_USK=torch.randint(20, (U, S, K), generator=generator), logp_US=torch.zeros(U, S), logp_legal_US=None
    )


class Fine:
    """Items near the user's mean item are good."""

    def __call__(self, histories, sessions):
        mask_UT = histories.mask_UT
        mean_U = (histories.item_ids_UT * mask_UT).sum(1) / mask_UT.sum(1).clamp_min(1)
        ids_USK = sessions.item_ids_USK
        return -((ids_USK - mean_U[:, None, None]).abs() * (ids_USK >= 0)).sum(-1)


def test_a_sound_reward_passes():
    assert isinstance(Fine(), SessionReward)
    check_reward(Fine(), histories(), sessions())


class Double(Fine):
    def __call__(self, histories, sessions):
        return super().__call__(histories, sessions).double()


class PerItem(Fine):
    def __call__(self, histories, sessions):
        return sessions.item_ids_USK.float()


class LogProb(Fine):
    def __call__(self, histories, sessions):
        return super().__call__(histories, sessions) + sessions.logp_US


class Empty(Fine):
    def __call__(self, histories, sessions):
        mean_U = (histories.watch_fraction_UT * histories.mask_UT).sum(1) / histories.mask_UT.sum(1)
        return super().__call__(histories, sessions) + mean_U[:, None]


class Learning(Fine):
    def __call__(self, histories, sessions):
        return super().__call__(histories, sessions).requires_grad_()


class Changing(Fine):
    def __call__(self, histories, sessions):
        sessions.item_ids_USK[sessions.item_ids_USK == 3] = 4
        return super().__call__(histories, sessions)


class Random(Fine):
    def __call__(self, histories, sessions):
        return super().__call__(histories, sessions) + torch.rand(sessions.item_ids_USK.shape[:2])


class Centred(Fine):
    def __call__(self, histories, sessions):
        scores = super().__call__(histories, sessions)
        return scores - scores.mean(0)


class Standardised(Fine):
    def __call__(self, histories, sessions):
        scores = super().__call__(histories, sessions)
        return scores - scores.mean(1, keepdim=True)


class Sorted(Fine):
    def __call__(self, histories, sessions):
        scores = super().__call__(histories, sessions)
        return scores + torch.arange(len(scores))[:, None] * (len(scores) == U)


class Unmasked(Fine):
    def __call__(self, histories, sessions):
        return super().__call__(histories, sessions) + histories.watch_fraction_UT.sum(1, keepdim=True)


class Longing(Fine):
    def __call__(self, histories, sessions):
        return super().__call__(histories, sessions) + histories.mask_UT.shape[1]


class Counting(Fine):
    def __call__(self, histories, sessions):
        return super().__call__(histories, sessions) + sessions.item_ids_USK.shape[2]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Double, "gave torch.float64; return a float32 tensor"),
        (PerItem, r"shape \(4, 3, 3\) for 4 users with 3 sessions each"),
        (LogProb, "12 NaN or infinite scores; .* do not use log-probabilities"),
        (Empty, "3 NaN or infinite scores; look at masks"),
        (Learning, "with a gradient"),
        (Changing, "changed the histories or sessions"),
        (Random, "a second time; switch dropout off"),
        (Centred, "users differently alone and in a batch"),
        (Sorted, "users differently alone and in a batch"),
        (Standardised, "sessions differently alone and together with a user's others"),
        (Unmasked, "read padded events"),
        (Longing, "depends on how far the histories are padded"),
        (Counting, "padded by -1 differently"),
    ],
)
def test_a_broken_reward_is_told_what_to_change(broken, message):
    with pytest.raises(ValueError, match=message):
        check_reward(broken(), histories(), sessions())


def test_what_cannot_be_called_is_told_so():
    with pytest.raises(ValueError, match="cannot be called"):
        check_reward(object(), histories(), sessions())  # type: ignore[arg-type]

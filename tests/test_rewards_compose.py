import itertools

import numpy as np
import pytest
import torch
from toy_users import toy_catalog

from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Event, EventLog
from feedgym.protocols import SessionReward
from feedgym.rewards.check import check_reward
from feedgym.rewards.compose import Diversity, Weighted
from feedgym.rewards.engagement import ItemAverage

CATALOG = toy_catalog(6)
SESSIONS = SessionBatch(
    item_ids_USK=torch.tensor([[[0, 1, 2], [3, 4, -1]], [[5, -1, -1], [-1, -1, -1]]]), logp_US=torch.zeros(2, 2)
)
HISTORIES = EventBatch(
    item_ids_UT=torch.zeros(2, 3, dtype=torch.long),
    behaviours_UTB=torch.zeros(2, 3, len(BEHAVIOURS)),
    watch_fraction_UT=torch.zeros(2, 3),
    gap_s_UT=torch.zeros(2, 3),
    mask_UT=torch.ones(2, 3, dtype=torch.bool),
    profile_UF=torch.zeros(2, 0, dtype=torch.long),
    time_of_day_U=torch.zeros(2),
)


def log():
    """A login; item 0 watched for 60 s and liked, skipped at once; item 1 watched for 30 s; item 2 never reached."""
    item_id = np.array([-1, 0, 0, 1, 2], np.int32)
    behaviours = np.zeros((5, len(BEHAVIOURS)), np.uint8)
    behaviours[1, BEHAVIOUR_IDX["like"]] = 1
    return EventLog(
        user_ids_U=np.array([7]),
        offsets_U1=np.array([0, 5]),
        profile_UF=np.zeros((1, 0), np.int64),
        profile_names=(),
        profile_sizes=(),
        timestamp_s=np.arange(5.0),
        event=np.where(item_id < 0, Event.LOGIN, Event.IMPRESSION).astype(np.int8),
        session_id=np.zeros(5, np.int64),
        position=np.array([-1, 0, 1, 2, 3], np.int16),
        item_id=item_id,
        watch_s=np.array([0, 60, 0, 30, 0], np.float32),
        examined=np.array([0, 1, 1, 1, 0], bool),
        behaviours=behaviours,
        propensity=np.full(5, np.nan, np.float32),
    )


def test_item_averages_count_what_was_examined_and_lean_on_the_prior():
    score_US = ItemAverage.watch_minutes(log(), CATALOG, prior=2.0)(HISTORIES, SESSIONS)
    mean = 1.5 / 3
    value = [(1 + 2 * mean) / 4, (0.5 + 2 * mean) / 3, mean, mean, mean, mean]
    want = [[sum(value[:3]), sum(value[3:5])], [value[5], 0.0]]
    torch.testing.assert_close(score_US, torch.tensor(want))
    likes = ItemAverage.rate(log(), CATALOG, "like", prior=0.0)(HISTORIES, SESSIONS)
    torch.testing.assert_close(likes, torch.tensor([[0.5, 0.0], [0.0, 0.0]]))


def test_item_averages_refuse_what_they_cannot_average():
    with pytest.raises(ValueError, match="Unknown behaviour 'clap'"):
        ItemAverage.rate(log(), CATALOG, "clap")
    nothing = EventLog(**{**vars(log()), "examined": np.zeros(5, bool)})
    with pytest.raises(ValueError, match="no examined exposure"):
        ItemAverage.watch_minutes(nothing, CATALOG)


def test_diversity_is_the_mean_cosine_distance_of_the_pairs():
    got = Diversity(CATALOG)(HISTORIES, SESSIONS)
    unit = CATALOG.content_IE / np.linalg.norm(CATALOG.content_IE, axis=1, keepdims=True)
    for session, score in zip(SESSIONS.item_ids_USK.flatten(0, 1).tolist(), got.flatten().tolist(), strict=True):
        pairs = list(itertools.combinations([i for i in session if i >= 0], 2))
        assert score == pytest.approx(np.mean([1 - unit[a] @ unit[b] for a, b in pairs]) if pairs else 0, abs=1e-6)


def test_a_weighted_sum_adds_up():
    parts: dict[SessionReward, float] = {Diversity(CATALOG): 0.3, ItemAverage(torch.arange(6.0)): -2.0}
    want = torch.stack([weight * reward(HISTORIES, SESSIONS) for reward, weight in parts.items()]).sum(0)
    torch.testing.assert_close(Weighted(parts)(HISTORIES, SESSIONS), want)
    with pytest.raises(ValueError, match="no rewards"):
        Weighted({})


@pytest.mark.parametrize(
    "reward",
    [
        ItemAverage.watch_minutes(log(), CATALOG),
        Diversity(CATALOG),
        Weighted({Diversity(CATALOG): 1.0, ItemAverage(torch.arange(6.0)): 2.0}),
    ],
    ids=lambda reward: type(reward).__name__,
)
def test_they_keep_the_promises_of_a_reward(reward):
    check_reward(reward, HISTORIES, SESSIONS)

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from toy_users import toy_catalog

from feedgym.data.batches import DatedEventBatch, EventBatch, SessionBatch
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, DAY_S, Event, EventLog
from feedgym.protocols import SessionReward
from feedgym.rewards.check import check_reward
from feedgym.rewards.compose import Diversity, Freshness, Legality, Lexicographic, Mixed, MixedConfig, Weighted
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


def scored(*rows):
    """A reward with fixed scores for SESSIONS."""
    return lambda histories, sessions: torch.tensor(rows)


def test_rules_come_first_whatever_the_reward_says():
    legal, calm = scored([1.0, 0.0], [1.0, 0.0]), scored([0.2, 0.9], [0.9, 0.2])
    reward = Lexicographic([(legal, 1.0), (calm, 0.5)], then=scored([9.0, -3.0], [1.0, 1e6]), gap=20.0)
    want = [[9.0 - 20, -3.0 - 40], [1.0, 10.0 - 20 - 40]]
    torch.testing.assert_close(reward(HISTORIES, SESSIONS), torch.tensor(want))
    for rules, gap in (([], 1.0), ([(legal, 1.0)], 0.0)):
        with pytest.raises(ValueError, match="give no order"):
            Lexicographic(rules, then=legal, gap=gap)


def test_freshness_is_the_share_of_new_items_at_the_request():
    dated = replace(CATALOG, upload_s_I=np.array([0.0, 1, 2, 3, 4, 5]) * DAY_S)
    undated = Freshness(dated, days=2.5)(HISTORIES, SESSIONS)  # on day 5, the newest item's
    torch.testing.assert_close(undated, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    columns = {f.name: getattr(HISTORIES, f.name) for f in fields(EventBatch)}
    early = DatedEventBatch(**columns, time_s_U=torch.tensor([2.0, 9.0], dtype=torch.float64) * DAY_S)
    torch.testing.assert_close(Freshness(dated, days=1.0)(early, SESSIONS), torch.tensor([[2 / 3, 1.0], [0.0, 0.0]]))


def test_legality_is_the_share_of_items_that_may_be_served():
    ids = torch.tensor([[[1, 1, 2], [0, 9, 3]], [[5, -1, -1], [-1, -1, -1]]])
    got = Legality(CATALOG)(HISTORIES, replace(SESSIONS, item_ids_USK=ids))  # item 0 is in all histories
    torch.testing.assert_close(got, torch.tensor([[2 / 3, 1 / 3], [1.0, 0.0]]))
    check_reward(Legality(CATALOG), HISTORIES, SESSIONS)


def test_a_mix_adds_points_and_lets_a_rule_come_first():
    model, diversity = scored([1.0, 2.0], [3.0, 4.0]), Diversity(CATALOG)(HISTORIES, SESSIONS)
    plain = Mixed(model, CATALOG, MixedConfig(diversity=0.5))(HISTORIES, SESSIONS)
    torch.testing.assert_close(plain, model(None, None) + 0.5 * diversity)
    fresh = Mixed(model, CATALOG, MixedConfig(diversity=0, freshness=2.0, fresh_days=3.0))(HISTORIES, SESSIONS)
    torch.testing.assert_close(fresh, model(None, None) + 2 * Freshness(CATALOG, 3.0)(HISTORIES, SESSIONS))
    ruled = Mixed(model, CATALOG, MixedConfig(diversity=0, least_diversity=0.9))(HISTORIES, SESSIONS)
    assert ((ruled < -40) == (diversity < 0.9)).all()
    for options, says in (({"diversity": 0}, "nothing is mixed"), ({"fresh_days": 3.0}, "set freshness too")):
        with pytest.raises(ValueError, match=says):
            MixedConfig(**options)

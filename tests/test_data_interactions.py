import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedgym.data.events import BEHAVIOURS, Event
from feedgym.data.public.interactions import Ratings, k_core, rated_behaviours, ratings_log, time_order
from feedgym.data.sources import ReadOptions

QUICK = ReadOptions(text="off")


def plain_core(pairs, k):
    """Drop one user or item with too few events at a time until there is none."""
    pairs = list(pairs)
    while True:
        for place in (0, 1):
            count = pd.Series([p[place] for p in pairs]).value_counts()
            if bad := [p for p in pairs if count[p[place]] < k]:
                pairs = [p for p in pairs if p[place] != bad[0][place]]
                break
        else:
            return pairs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40), st.integers(1, 4))
def test_a_core_equals_dropping_one_by_one(pairs, k):
    table = pd.DataFrame(pairs, columns=["user_id", "item_id"])
    kept = k_core(table, k)
    assert list(kept.itertuples(index=False, name=None)) == plain_core(pairs, k)


def test_the_rule_of_ratings():
    flags = rated_behaviours(np.array([0.5, 2, 2.5, 3.5, 4, 5]), 6)
    assert {n: flags[:, b].tolist() for b, n in enumerate(BEHAVIOURS) if flags[:, b].any()} == {
        "click": [1] * 6,
        "like": [0, 0, 0, 0, 1, 1],
        "hate": [1, 1, 0, 0, 0, 0],
    }


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30), st.integers(0, 99))
def test_shuffling_moves_nothing_but_ties(pairs, seed):
    user, time = np.array(pairs).T
    order = time_order(user, time, ReadOptions(seed=seed))
    assert sorted(order.tolist()) == list(range(len(pairs)))
    assert list(zip(user[order], time[order], strict=True)) == sorted(pairs)
    kept = time_order(user, time, ReadOptions(ties="file"))
    assert kept.tolist() == sorted(range(len(pairs)), key=lambda r: (pairs[r], r))


def test_every_order_of_ties_is_equally_likely():
    user, time = np.zeros(3), np.zeros(3)
    orders = [tuple(time_order(user, time, ReadOptions(seed=s)).tolist()) for s in range(1200)]
    counts = pd.Series(orders).value_counts()
    assert len(counts) == 6 and counts.min() > 150 and counts.max() < 250


def test_rows_of_a_slate_stay_together_and_in_order():
    user, time = np.zeros(6), np.zeros(6)
    slate = np.array([0, 1, 0, 1, 2, 0])
    orders = {tuple(time_order(user, time, ReadOptions(seed=s), slate).tolist()) for s in range(60)}
    assert len(orders) == 6 and all("".join(map(str, o)).count("025") == 1 for o in orders)
    assert all(o.index(1) + 1 == o.index(3) for o in orders)


def table(**columns):
    base = {"user_id": [1, 1, 2, 2], "item_id": [5, 6, 5, 6], "rating": [5, 1, 3, 4], "timestamp": [4, 4, 9, 7]}
    return pd.DataFrame(base | columns)


def test_repeats_of_user_item_and_time_are_dropped_but_for_the_last():
    log, _ = ratings_log("x", Ratings(events=table(item_id=[5, 5, 5, 6])), QUICK)
    shown = log.event == Event.IMPRESSION
    assert log.item_id[shown].tolist() == [0, 1, 0]
    assert log.behaviours[shown][:, BEHAVIOURS.index("hate")].tolist() == [1, 0, 0]


def test_items_nobody_took_are_not_in_the_catalogue_and_profiles_fit_their_users():
    items = pd.DataFrame({"item_id": [7, 6, 5], "text": ["c", "b", None], "creator": ["x", "y", "y"]})
    users = pd.DataFrame({"user_id": [2, 9], "kind": ["new", "old"]})
    log, catalog = ratings_log("x", Ratings(events=table(), items=items, users=users), QUICK)
    assert catalog.raw_ids_I.tolist() == [5, 6] and catalog.text_I.tolist() == ["", "b"]
    assert log.user_ids_U.tolist() == [1, 2] and log.profile_UF.tolist() == [[0], [1]]


def test_a_core_that_leaves_nothing_and_one_below_1_are_refused():
    with pytest.raises(ValueError, match="x: no event is left of 4; give a fuller file, lower core, or raise users"):
        ratings_log("x", Ratings(events=table()), ReadOptions(core=3, text="off"))
    with pytest.raises(ValueError, match="core=0 must be 1 or more"):
        ReadOptions(core=0)
    for users in (0, 1.5):
        with pytest.raises(ValueError, match=f"users={users} must be"):
            ReadOptions(users=users)


def test_a_share_of_the_users_is_the_same_whatever_else_is_there():
    ids = pd.Series(np.repeat(np.arange(400), 2))
    chosen = ReadOptions(users=0.3).chosen(ids)
    assert 0.2 < chosen.mean() < 0.4 and (chosen[::2] == chosen[1::2]).all()
    assert (ReadOptions(users=0.3).chosen(ids[::-1]) == chosen[::-1]).all()
    assert (ReadOptions(users=0.3).chosen(ids.astype(str)) == chosen).all()
    assert (ReadOptions(users=0.5).chosen(ids) >= chosen).all()


def test_content_without_texts_knows_nothing_of_the_last_two_events_of_anybody():
    rng = np.random.default_rng(0)
    events = pd.DataFrame({"user_id": np.repeat(np.arange(30), 8), "item_id": rng.integers(0, 12, 240)})
    _, catalog = ratings_log("x", Ratings(events=events), QUICK)
    last = events.groupby("user_id").cumcount(ascending=False).to_numpy() < 2
    other = events.assign(item_id=np.where(last, (events["item_id"] + 5) % 12, events["item_id"]))
    _, changed = ratings_log("x", Ratings(events=other), QUICK)
    np.testing.assert_array_equal(catalog.content_IE, changed.content_IE)
    assert np.abs(catalog.content_IE).max() > 0

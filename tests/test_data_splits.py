from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedgym.data.build import assemble_log
from feedgym.data.events import BEHAVIOURS, Event, EventLog, LoggedSessions
from feedgym.data.splits import (
    leave_last_out,
    leave_one_out,
    split_time,
    split_users,
    take_users,
    temporal_split,
    until,
    without_last,
)


def parts(split):
    return split.train_idx, split.validation_idx, split.held_out_idx


def test_users_are_split_once_and_in_the_asked_shares():
    train, validation, held_out = parts(split_users(np.arange(20_000), validation=0.2, held_out=0.1))
    assert sorted(np.concatenate([train, validation, held_out]).tolist()) == list(range(20_000))
    # Three standard deviations of a binomial share.
    assert abs(len(validation) / 20_000 - 0.2) < 0.009 and abs(len(held_out) / 20_000 - 0.1) < 0.007


def test_a_user_stays_in_their_part_when_others_come_or_go():
    ids = np.arange(1000)
    few = np.array([977, 3, 512])
    held_out = set(ids[split_users(ids, held_out=0.4).held_out_idx])
    assert [u in held_out for u in few] == [i in split_users(few, held_out=0.4).held_out_idx for i in range(3)]


def test_the_split_is_pinned():
    """A change of the hash would silently move held-out users into training."""
    assert split_users(np.arange(40)).held_out_idx.tolist() == [12, 17, 18, 23, 34]
    assert split_users(np.arange(40).astype(str)).held_out_idx.tolist() == [12, 17, 18, 23, 34]


def test_the_seed_changes_the_split():
    first, second = (set(split_users(np.arange(1000), seed=s).held_out_idx) for s in (0, 1))
    assert len(first & second) < 40 < min(len(first), len(second))


def test_shares_must_leave_training_users():
    with pytest.raises(ValueError, match="sum to less than 1"):
        split_users(np.arange(5), validation=0.5, held_out=0.5)


def sessions(user, start_s):
    n = len(user)
    return LoggedSessions(
        user_idx_N=np.array(user),
        row_N=np.arange(n),
        start_s_N=np.array(start_s, dtype=np.float64),
        item_ids_NK=np.zeros((n, 1), np.int32),
        examined_NK=np.ones((n, 1), bool),
        watch_s_NK=np.ones((n, 1), np.float32),
        behaviours_NKB=np.zeros((n, 1, 7), np.uint8),
        propensity_NK=np.ones((n, 1), np.float32),
        return_gap_s_N=np.zeros(n),
    )


def test_time_split_trains_on_the_past_only():
    some = sessions([0] * 10, [5, 3, 9, 1, 7, 0, 8, 2, 6, 4])
    split = split_time(some, validation=0.2, held_out=0.1)
    assert some.start_s_N[split.held_out_N].tolist() == [9]
    assert sorted(some.start_s_N[split.validation_N]) == [7, 8]
    assert split.train_N.sum() == 7 and not (split.train_N & split.validation_N).any()


def test_time_split_with_nothing_held_out():
    split = split_time(sessions([0] * 4, [0, 1, 2, 3]), validation=0.25, held_out=0.0)
    assert split.validation_N.tolist() == [False, False, False, True] and not split.held_out_N.any()


def test_leave_last_out_by_user():
    split = leave_last_out(sessions([0, 0, 0, 0, 2, 2, 5, 5, 5], range(9)))
    assert split.held_out_N.nonzero()[0].tolist() == [3, 8]
    assert split.validation_N.nonzero()[0].tolist() == [2, 7]
    assert split.train_N.nonzero()[0].tolist() == [0, 1, 4, 5, 6]


def tiny_log():
    user = np.array([0, 0, 0, 1, 2, 2])
    return EventLog(
        user_ids_U=np.array(["a", "b", "c"]),
        offsets_U1=np.array([0, 3, 4, 6]),
        profile_UF=np.array([[1], [2], [3]]),
        profile_names=("p",),
        profile_sizes=(4,),
        timestamp_s=np.array([5.0, 6, 7, 9, 0, 1]),
        event=np.array([Event.PROFILE, Event.LOGIN, Event.IMPRESSION, Event.PROFILE, Event.PROFILE, Event.LOGIN], "i1"),
        session_id=np.array([-1, 0, 0, -1, -1, 0]),
        position=np.array([-1, -1, 0, -1, -1, -1], np.int16),
        item_id=np.array([-1, -1, 4, -1, -1, -1], np.int32),
        watch_s=user.astype(np.float32),
        examined=np.ones(6, bool),
        behaviours=np.zeros((6, 7), np.uint8),
        propensity=np.ones(6, np.float32),
    )


def test_take_users_takes_their_rows_in_the_asked_order():
    log = take_users(tiny_log(), np.array([2, 0]))
    assert log.user_ids_U.tolist() == ["c", "a"] and log.profile_UF.tolist() == [[3], [1]]
    assert log.offsets_U1.tolist() == [0, 2, 5]
    assert log.timestamp_s.tolist() == [0, 1, 5, 6, 7]
    same = take_users(tiny_log(), np.array([True, False, True]))
    assert same.timestamp_s.tolist() == [5, 6, 7, 0, 1]


def test_until_keeps_users_and_their_profiles():
    log = until(tiny_log(), 6.5)
    assert log.timestamp_s.tolist() == [5, 6, 9, 0, 1]
    assert log.offsets_U1.tolist() == [0, 2, 3, 5]
    assert until(tiny_log(), np.inf).num_events == 6


# ---------------------------------------------------------------- single items


def item_log(seed, users=12, has_time=True):
    """Users with 0 to 7 exposures each, some unexamined, some without a click, at times with ties."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 8, users)
    user = np.repeat(np.arange(users), size)
    time_s = np.sort(rng.integers(0, 20, size.sum())).astype(float)
    time_s = time_s[np.lexsort((time_s, rng.permutation(users)[user]))]
    order = np.lexsort((time_s, user))
    user, time_s = user[order], time_s[order]
    examined = rng.random(len(user)) < 0.85
    behaviours = np.zeros((len(user), len(BEHAVIOURS)), np.uint8)
    behaviours[:, 0] = examined & (rng.random(len(user)) < 0.8)
    behaviours[:, 2] = behaviours[:, 0] & (rng.random(len(user)) < 0.5)
    return assemble_log(
        user_ids_U=np.arange(users),
        profile_UF=np.zeros((users, 0), int),
        profile_names=(),
        profile_sizes=(),
        user_idx=user,
        timestamp_s=time_s,
        item_id=rng.integers(0, 9, len(user)),
        watch_s=np.zeros(len(user), np.float32),
        behaviours=behaviours,
        new_visit=np.diff(user, prepend=-1) != 0,
        examined=examined,
        extra={"tab": rng.random(len(user))},
        has_time=has_time,
    )


def taken(log, name="click"):
    """A user's rows with a behaviour, in order, user by user."""
    done = log.behaviours[:, BEHAVIOURS.index(name)] == 1
    return [
        [
            r
            for r in range(*log.offsets_U1[u : u + 2])
            if log.event[r] == Event.IMPRESSION and log.examined[r] and done[r]
        ]
        for u in range(log.num_users)
    ]


def kept_rows(log, train):
    """Which of a log's impressions are in its training part, by their extra column, which tells all apart."""
    assert train.num_users == log.num_users and (train.event == Event.PROFILE).sum() == log.num_users
    return set(train.extra["tab"][train.event == Event.IMPRESSION].tolist())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["click", "like"]), st.integers(3, 4))
def test_leave_one_out_equals_its_definition(seed, name, least):
    log = item_log(seed)
    rows = [r if len(r) >= least else [] for r in taken(log, name)]
    if not any(rows):
        with pytest.raises(ValueError, match=f"No user has {least} items with {name}|No exposure has {name}"):
            leave_one_out(log, behaviours=(name,), min_items=least)
        return
    split = leave_one_out(log, behaviours=(name,), min_items=least)
    assert split.test.row_N.tolist() == [r[-1] for r in rows if r]
    assert split.validation.row_N.tolist() == [r[-2] for r in rows if r]
    assert split.test.user_idx_N.tolist() == [u for u, r in enumerate(rows) if r]
    assert split.test.item_id_N.tolist() == log.item_id[split.test.row_N].tolist()
    assert split.test.time_s_N.tolist() == log.timestamp_s[split.test.row_N].tolist()
    end = [r[-2] if r else log.offsets_U1[u + 1] for u, r in enumerate(rows)]
    wanted = {log.extra["tab"][x] for u in range(log.num_users) for x in range(log.offsets_U1[u], end[u])}
    assert kept_rows(log, split.train) == wanted - {0.0}
    seen = split.train.item_id[(split.train.event == Event.IMPRESSION) & split.train.examined]
    assert split.shown_I(9).tolist() == [np.count_nonzero(seen == item) for item in range(9)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["first", "all"]))
def test_a_split_at_two_moments_trains_on_the_past_and_asks_for_the_future(seed, targets):
    log = item_log(seed, users=20)
    try:
        split = temporal_split(log, validation=0.2, test=0.2, targets=targets)
    except ValueError as error:
        assert "too many events share one time" in str(error)
        return
    rows = [[r for r in rs if any(log.examined[log.offsets_U1[u] : r])] for u, rs in enumerate(taken(log))]
    first_s, second_s = split.validation.time_s_N.min(), split.test.time_s_N.min()
    assert first_s < second_s and split.validation.time_s_N.max() < second_s
    train_s = split.train.timestamp_s[split.train.event == Event.IMPRESSION]
    assert train_s.max(initial=-1) < first_s
    # The moments are times of events, so no event is lost between the parts.
    times = sorted(log.timestamp_s[r] for rs in taken(log) for r in rs)
    begins = [times[int(len(times) * (1 - share))] for share in (0.4, 0.2)]
    parts = {"validation": (begins[0], begins[1]), "test": (begins[1], np.inf)}
    for part, (begin, end) in parts.items():
        found = [[r for r in rs if begin <= log.timestamp_s[r] < end] for rs in rows]
        wanted = [r for rs in found for r in (rs[:1] if targets == "first" else rs)]
        assert getattr(split, part).row_N.tolist() == wanted
    shown = log.event == Event.IMPRESSION
    assert kept_rows(log, split.train) == set(log.extra["tab"][shown & (log.timestamp_s < begins[0])].tolist())


@pytest.mark.parametrize("cut", [leave_one_out, temporal_split])
def test_what_is_held_out_moves_nothing_that_is_learnt_from(cut):
    log = item_log(5, users=30)
    split = cut(log)
    items = log.item_id.copy()
    later = np.concatenate([split.validation.row_N, split.test.row_N])
    items[later] = (items[later] + 4) % 9
    other = cut(replace(log, item_id=items))
    for name in ("item_id", "behaviours", "timestamp_s", "examined", "offsets_U1"):
        np.testing.assert_array_equal(getattr(other.train, name), getattr(split.train, name))
    assert (other.test.item_id_N != split.test.item_id_N).all()


def test_without_times_no_moment_cuts_a_log():
    log = item_log(1, has_time=False)
    with pytest.raises(ValueError, match="only the order of events, so no time can cut it; use leave_one_out"):
        temporal_split(log)
    assert not leave_one_out(log).train.has_time and not take_users(log, [0, 2]).has_time


def test_shares_and_names_of_item_splits_are_checked():
    log = item_log(1)
    for shares in ({"validation": 0}, {"test": 0.95}):
        with pytest.raises(ValueError, match="must be above 0 and sum to less than 1"):
            temporal_split(log, **shares)
    with pytest.raises(ValueError, match="min_items is 2 and must be at least 3"):
        leave_one_out(log, min_items=2)
    with pytest.raises(ValueError, match="Unknown behaviour 'love'"):
        leave_one_out(log, behaviours=("love",))


def test_without_last_takes_each_users_last_impressions():
    log = item_log(3)
    past = without_last(log, 2)
    for u in range(log.num_users):
        rows = [r for r in range(*log.offsets_U1[u : u + 2]) if log.event[r] == Event.IMPRESSION]
        mine = slice(*past.offsets_U1[u : u + 2])
        shown = past.event[mine] == Event.IMPRESSION
        assert past.extra["tab"][mine][shown].tolist() == log.extra["tab"][rows[: max(0, len(rows) - 2)]].tolist()
    assert (past.event != Event.IMPRESSION).sum() == (log.event != Event.IMPRESSION).sum()

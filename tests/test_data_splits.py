import numpy as np
import pytest

from feedgym.data.events import Event, EventLog, LoggedSessions
from feedgym.data.splits import leave_last_out, split_time, split_users, take_users, until


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

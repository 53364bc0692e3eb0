import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedgym.data.build import VISIT_GAP_S, assemble_log, cut_visits, encode_profile
from feedgym.data.events import BEHAVIOURS, Event
from feedgym.data.sessions import logged_sessions

PROFILE, LOGIN, SHOWN, LOGOUT = Event.PROFILE, Event.LOGIN, Event.IMPRESSION, Event.LOGOUT


def assembled(user_idx, timestamp_s, new_visit, *, users=None, watch_s=None, **given):
    """A log of exposures of the items 0, 1, 2, ..., each watched for a second and clicked."""
    rows = len(user_idx)
    users = max(user_idx) + 1 if users is None else users
    behaviours = np.zeros((rows, len(BEHAVIOURS)), np.uint8)
    behaviours[:, 0] = 1
    return assemble_log(
        user_ids_U=np.arange(users) * 10,
        profile_UF=np.arange(users)[:, None],
        profile_names=("p",),
        profile_sizes=(users,),
        user_idx=np.array(user_idx),
        timestamp_s=np.array(timestamp_s, dtype=np.float64),
        item_id=np.arange(rows),
        watch_s=np.ones(rows, np.float32) if watch_s is None else np.array(watch_s, np.float32),
        behaviours=behaviours,
        new_visit=np.array(new_visit, dtype=bool),
        **given,
    )


def test_visits_end_after_more_than_half_an_hour():
    user = np.array([0, 0, 0, 1, 1])
    time_s = np.array([0, VISIT_GAP_S, 2 * VISIT_GAP_S + 0.001, 2 * VISIT_GAP_S + 1, 2 * VISIT_GAP_S + 1])
    # Exactly half an hour is still the same visit; the next user's begins although it follows after a second.
    assert cut_visits(user, time_s).tolist() == [True, False, True, True, False]
    assert cut_visits(user, time_s, gap_s=0).tolist() == [True, True, True, True, False]
    assert cut_visits(np.zeros(0, int), np.zeros(0)).tolist() == []


def test_logins_logouts_and_positions_of_a_hand_made_log():
    log = assembled([0, 0, 0, 1], [10, 15, 20, 5], [True, False, True, True], watch_s=[1, 30, 4, 2])
    first, second = [PROFILE, LOGIN, SHOWN, SHOWN, LOGOUT, LOGIN, SHOWN, LOGOUT], [PROFILE, LOGIN, SHOWN, LOGOUT]
    assert log.event.tolist() == [*first, *second]
    # The first visit's last item would run until 45, but the user came back at 20.
    assert log.timestamp_s.tolist() == [10, 10, 10, 15, 20, 20, 20, 24, 5, 5, 5, 7]
    assert log.session_id.tolist() == [-1, 0, 0, 0, 0, 1, 1, 1, -1, 0, 0, 0]
    assert log.position.tolist() == [-1, -1, 0, 1, -1, -1, 0, -1, -1, -1, 0, -1]
    assert log.item_id.tolist() == [-1, -1, 0, 1, -1, -1, 2, -1, -1, -1, 3, -1]
    assert log.watch_s.tolist() == [0, 0, 1, 30, 0, 0, 4, 0, 0, 0, 2, 0]
    assert log.offsets_U1.tolist() == [0, 8, 12]
    assert log.user_ids_U.tolist() == [0, 10] and log.profile_UF.tolist() == [[0], [1]]
    shown = log.event == SHOWN
    assert log.examined.tolist() == shown.tolist()
    assert log.behaviours[:, 0].tolist() == shown.tolist() and not log.behaviours[:, 1:].any()
    assert np.isnan(log.propensity).all()
    dtypes = [np.float64, np.int8, np.int32, np.int16, np.int32, np.float32, bool, np.uint8, np.float32]
    columns = (log.timestamp_s, log.event, log.session_id, log.position, log.item_id, log.watch_s, log.examined)
    assert [c.dtype for c in (*columns, log.behaviours, log.propensity)] == dtypes


def plain_streams(users, user_idx, timestamp_s, watch_s, new_visit, without_login):
    """Walks the exposures one by one: lists of (event, time, session, position, item), one list a user."""
    streams = []
    for u in range(users):
        visits = []
        for r in [r for r, owner in enumerate(user_idx) if owner == u]:
            if new_visit[r] or not visits:
                visits.append([])
            visits[-1].append(r)
        stream = [(PROFILE, timestamp_s[visits[0][0]] if visits else 0.0, -1, -1, -1)]
        for number, visit in enumerate(visits):
            begin, last = timestamp_s[visit[0]], visit[-1]
            end = timestamp_s[last] + watch_s[last]
            if number + 1 < len(visits):
                end = min(end, timestamp_s[visits[number + 1][0]])
            impressions = [(SHOWN, timestamp_s[r], number, place, r) for place, r in enumerate(visit)]
            if without_login[visit[0]]:
                stream += impressions
            else:
                stream += [(LOGIN, begin, number, -1, -1), *impressions, (LOGOUT, end, number, -1, -1)]
        streams.append(stream)
    return streams


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_log_equals_a_plain_walk(data):
    users = data.draw(st.integers(1, 4))
    user_idx = sorted(data.draw(st.lists(st.integers(0, users - 1), min_size=1, max_size=14)))
    rows = len(user_idx)
    # Whole seconds from a small range: ties between exposures, logouts and the next visit's login are common.
    step_s = np.array(data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)), dtype=np.float64)
    timestamp_s = np.concatenate([np.cumsum(step_s[np.array(user_idx) == u]) for u in range(users)])
    watch_s = np.array(data.draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows)), dtype=np.float32)
    flags = st.lists(st.booleans(), min_size=rows, max_size=rows)
    new_visit, without_login = data.draw(flags), data.draw(flags)
    log = assembled(
        user_idx, timestamp_s, new_visit, users=users, watch_s=watch_s, without_login=np.array(without_login)
    )
    streams = plain_streams(users, user_idx, timestamp_s, watch_s, new_visit, without_login)
    assert log.offsets_U1.tolist() == np.cumsum([0, *map(len, streams)]).tolist()
    columns = (log.event, log.timestamp_s, log.session_id, log.position, log.item_id)
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == [row for stream in streams for row in stream]
    for u in range(users):
        assert (np.diff(log.timestamp_s[log.offsets_U1[u] : log.offsets_U1[u + 1]]) >= 0).all()


def test_given_exposure_columns_follow_their_rows():
    log = assembled(
        [0, 0, 1],
        [3, 4, 1],
        [True, True, True],
        examined=np.array([True, False, True]),
        propensity=np.array([0.5, np.nan, 0.25], np.float32),
    )
    shown = log.event == SHOWN
    assert log.examined[shown].tolist() == [True, False, True] and not log.examined[~shown].any()
    assert log.propensity[shown].tolist()[::2] == [0.5, 0.25] and np.isnan(log.propensity[shown][1])
    assert np.isnan(log.propensity[~shown]).all()


def test_a_visit_without_login_is_history_and_no_session():
    log = assembled([0, 0, 0], [1, 2, 9], [True, False, True], without_login=np.array([True, True, False]))
    assert log.event.tolist() == [PROFILE, SHOWN, SHOWN, LOGIN, SHOWN, LOGOUT]
    assert log.session_id.tolist() == [-1, 0, 0, 1, 1, 1]
    assert logged_sessions(log, 5).item_ids_NK.tolist() == [[2, -1, -1, -1, -1]]


def test_inputs_are_left_as_they_were():
    new_visit = np.array([False, False, True])
    assembled([0, 1, 1], [1, 2, 3], new_visit)
    assert new_visit.tolist() == [False, False, True]  # that users 0 and 1 begin a visit is worked out on a copy


def test_a_visit_longer_than_positions_reach_is_refused():
    """int16 would count on from -32768, and the log would be cut into nonsense."""
    limit = np.iinfo(np.int16).max + 1
    user = np.array([0] + [1] * (limit + 1))
    log = assembled(user[:-1], np.arange(limit + 1), np.zeros(limit + 1))
    assert log.position.max() == limit - 1 and log.position.min() == -1
    with pytest.raises(ValueError, match=r"^User 10 has a visit of 32769 exposures, but only 32768 .* session_id"):
        assembled(user, np.arange(limit + 2), np.zeros(limit + 2))


def test_profile_codes_keep_order_and_0_for_empty_cells():
    table = pd.DataFrame(
        {
            "age": [30.0, np.nan, 18.0, 30.0],
            "range": ["b", "a", None, "b"],
            "negative": [0, -124, 1, 0],  # KuaiRand writes "unknown" so: a value like any other
            "never": [None, None, None, None],
        }
    )
    codes, sizes = encode_profile(table)
    assert codes.T.tolist() == [[2, 0, 1, 2], [2, 1, 0, 2], [2, 1, 3, 2], [0, 0, 0, 0]]
    assert sizes == (3, 3, 4, 1) and codes.dtype == np.int64


def test_no_profile_fields_at_all():
    codes, sizes = encode_profile(pd.DataFrame(index=range(3)))
    assert codes.shape == (3, 0) and sizes == ()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=1, max_size=12))
def test_profile_codes_fit_their_sizes_and_tell_values_apart(values):
    codes, (size,) = encode_profile(pd.DataFrame({"f": pd.array(values, dtype="Int64")}))
    known = sorted({v for v in values if v is not None})
    assert size == len(known) + 1
    assert codes[:, 0].tolist() == [0 if v is None else known.index(v) + 1 for v in values]

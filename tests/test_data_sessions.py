import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedgym.data import sessions
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Catalog, Event, EventLog
from feedgym.data.requests import Requests
from feedgym.data.sessions import (
    LoggedHistories,
    SessionFilter,
    histories,
    logged_sessions,
    positive_sessions,
    quality_filter,
    time_of_day,
)

NUM_ITEMS = 12


def make_log(streams, profile=0):
    """A log from lists of (time, event, session, item, watch, behaviours, examined), one list a user."""
    rows = [row for stream in streams for row in stream]
    behaviours = np.zeros((len(rows), len(BEHAVIOURS)), np.uint8)
    for r, row in enumerate(rows):
        behaviours[r, [BEHAVIOUR_IDX[name] for name in row[5]]] = 1
    column = [np.array([row[c] for row in rows]) for c in (0, 1, 2, 3, 4)]
    return EventLog(
        user_ids_U=np.arange(len(streams)),
        offsets_U1=np.cumsum([0] + [len(s) for s in streams]),
        profile_UF=np.full((len(streams), 1), profile) + np.arange(len(streams))[:, None],
        profile_names=("p",),
        profile_sizes=(99,),
        timestamp_s=column[0].astype(np.float64),
        event=column[1].astype(np.int8),
        session_id=column[2].astype(np.int64),
        position=np.full(len(rows), -1, np.int16),
        item_id=column[3].astype(np.int32),
        watch_s=column[4].astype(np.float32),
        examined=np.array([row[6] for row in rows]),
        behaviours=behaviours,
        propensity=np.where(column[1] == Event.IMPRESSION, 0.5, np.nan).astype(np.float32),
    )


def profile(t):
    return (t, Event.PROFILE, -1, -1, 0.0, (), False)


def login(t, s):
    return (t, Event.LOGIN, s, -1, 0.0, (), False)


def logout(t, s):
    return (t, Event.LOGOUT, s, -1, 0.0, (), False)


def shown(t, s, item, watch=1.0, behaviours=("click",), examined=True):
    return (t, Event.IMPRESSION, s, item, watch, behaviours, examined)


def make_catalog():
    return Catalog(
        raw_ids_I=np.arange(NUM_ITEMS),
        content_IE=np.zeros((NUM_ITEMS, 2), np.float32),
        topic_I=np.zeros(NUM_ITEMS, np.int32),
        duration_s_I=np.arange(1, NUM_ITEMS + 1, dtype=np.float32),
        creator_I=np.zeros(NUM_ITEMS, np.int64),
        upload_s_I=np.zeros(NUM_ITEMS),
    )


LOG = make_log(
    [
        [
            profile(0),
            login(10, 0),
            shown(10, 0, 3, 2.0, ("click", "like")),
            shown(12, 0, 4, 0.0, (), examined=False),
            logout(13, 0),
            login(100, 1),  # a visit without an impression
            logout(101, 1),
            login(200, 2),
            shown(200, 2, 5),
            shown(203, 2, 6, 100.0),
            shown(207, 2, 7),
            logout(209, 2),
        ],
        [profile(0), shown(1, 0, 8), shown(2, 0, 9), login(50, 1), shown(50, 1, 10), logout(51, 1)],
        [profile(0)],
    ]
)


def test_logged_sessions_split_pad_and_skip():
    sessions = logged_sessions(LOG, 2)
    # User 1's first two impressions come before any login: they are history, not a visit of user 0 or 1.
    assert sessions.item_ids_NK.tolist() == [[3, 4], [5, 6], [7, -1], [10, -1]]
    assert sessions.user_idx_N.tolist() == [0, 0, 0, 1]
    assert sessions.row_N.tolist() == [1, 7, 10, 15]  # a visit's later rows have its earlier items in their history
    assert sessions.start_s_N.tolist() == [10, 200, 207, 50]
    assert sessions.examined_NK.tolist() == [[True, False], [True, True], [True, False], [True, False]]
    assert sessions.watch_s_NK.tolist() == [[2, 0], [1, 100], [1, 0], [1, 0]]
    assert sessions.behaviours_NKB[0, 0].tolist() == [1, 0, 1, 0, 0, 0, 0]
    assert np.isnan(sessions.propensity_NK[3, 1]) and sessions.propensity_NK[3, 0] == 0.5
    # 13 -> 100 (the next login, though that visit is empty); the last visits' gaps are not observed.
    assert sessions.return_gap_s_N[0] == 87 and np.isnan(sessions.return_gap_s_N[1:]).all()


def test_a_return_is_known_in_a_visits_last_row_only():
    gap = logged_sessions(make_log([[profile(0), login(1, 0), shown(1, 0, 3), shown(2, 0, 4), login(9, 1)]]), 1)
    assert np.isnan(gap.return_gap_s_N[0]) and gap.return_gap_s_N[1] == 7


def test_a_log_without_logins_has_no_visits():
    with pytest.raises(ValueError, match="positive_sessions"):
        logged_sessions(make_log([[profile(0), shown(1, 0, 8)]]), 2)
    with pytest.raises(ValueError, match="session length is 0"):
        logged_sessions(LOG, 0)


def test_histories_hold_the_last_examined_items():
    sessions = logged_sessions(LOG, 2)
    batch = histories(LOG, make_catalog(), sessions.user_idx_N, sessions.row_N, sessions.start_s_N, 3)
    # Item 4 was served but not reached, and a user's history ends where another user's begins.
    # The second row of a visit knows what the first row showed.
    assert batch.item_ids_UT.tolist() == [[0, 0, 0], [3, 0, 0], [3, 5, 6], [8, 9, 0]]
    assert batch.mask_UT.sum(1).tolist() == [0, 1, 3, 2]
    assert batch.gap_s_UT.tolist() == [[0, 0, 0], [190, 0, 0], [190, 3, 4], [1, 48, 0]]
    assert batch.watch_fraction_UT[1].tolist() == [0.5, 0, 0]
    assert batch.behaviours_UTB[1, 0].tolist() == [1, 0, 1, 0, 0, 0, 0] and batch.behaviours_UTB[1, 1:].sum() == 0
    assert batch.profile_UF.tolist() == [[0], [0], [0], [1]]


def test_histories_are_cut_from_the_left_and_clip_watch():
    end = np.array([LOG.offsets_U1[1]])
    batch = histories(LOG, make_catalog(), np.array([0]), end, np.array([210.0]), 2)
    assert batch.item_ids_UT.tolist() == [[6, 7]]
    assert batch.gap_s_UT.tolist() == [[4, 3]]
    assert batch.watch_fraction_UT.tolist() == [[5.0, 0.125]]


def test_a_log_nobody_looked_at_gives_empty_histories():
    log = make_log([[profile(0), login(1, 0), shown(1, 0, 3, 0.0, (), examined=False)]])
    batch = histories(log, make_catalog(), np.array([0]), np.array([3]), np.array([9.0]), 4)
    assert not batch.mask_UT.any() and batch.item_ids_UT.shape == (1, 4)


def random_log(seed):
    rng = np.random.default_rng(seed)
    streams = []
    for _ in range(rng.integers(1, 5)):
        now, stream = float(rng.integers(5)), [profile(0)]
        for visit in range(rng.integers(0, 5)):
            now += float(rng.integers(1, 9))
            stream.append(login(now, visit))
            for _ in range(rng.integers(0, 6)):
                chosen = tuple(name for name in BEHAVIOURS if rng.random() < 0.3)
                seen = bool(rng.random() < 0.8)
                stream.append(shown(now, visit, int(rng.integers(NUM_ITEMS)), rng.random() * 9, chosen, seen))
                now += float(rng.integers(0, 3))
            stream.append(logout(now, visit))
        streams.append(stream)
    return make_log(streams)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 6))
def test_sessions_and_histories_equal_a_plain_walk(seed, session_length, length):
    """Walks the log event by event, keeping what the user has seen so far."""
    log, catalog = random_log(seed), make_catalog()
    if not (log.event == Event.LOGIN).any():
        return
    expected = []
    for u in range(log.num_users):
        seen, visit = [], None
        for r in range(log.offsets_U1[u], log.offsets_U1[u + 1]):
            if log.event[r] == Event.LOGIN:
                visit = {"row": r, "items": [], "history": list(seen), "now": log.timestamp_s[r], "user": u}
                expected.append(visit)
            if log.event[r] == Event.IMPRESSION:
                if len(visit["items"]) == session_length:
                    visit = {"row": r, "items": [], "history": list(seen), "now": log.timestamp_s[r], "user": u}
                    expected.append(visit)
                visit["items"].append(log.item_id[r])
                if log.examined[r]:
                    seen.append((log.item_id[r], log.timestamp_s[r], log.watch_s[r]))
    expected = [visit for visit in expected if visit["items"]]
    sessions = logged_sessions(log, session_length)
    assert sessions.row_N.tolist() == [visit["row"] for visit in expected]
    batch = histories(log, catalog, sessions.user_idx_N, sessions.row_N, sessions.start_s_N, length)
    for n, visit in enumerate(expected):
        items = visit["items"] + [-1] * (session_length - len(visit["items"]))
        assert sessions.item_ids_NK[n].tolist() == items
        past = visit["history"][-length:]
        assert batch.item_ids_UT[n, batch.mask_UT[n]].tolist() == [item for item, _, _ in past]
        times = [t for _, t, _ in past] + [visit["now"]]
        assert batch.gap_s_UT[n, : len(past)].tolist() == pytest.approx(np.diff(times).tolist())
        fractions = [min(float(watch) / catalog.duration_s_I[item], 5) for item, _, watch in past]
        assert batch.watch_fraction_UT[n, : len(past)].tolist() == pytest.approx(fractions)
        assert not batch.mask_UT[n, len(past) :].any()


@pytest.mark.parametrize("memory", [0, 3])
def test_histories_built_when_they_are_asked_for_are_the_same(memory):
    log, catalog = random_log(5), make_catalog()
    sessions = logged_sessions(log, 3)
    told = sessions.user_idx_N, sessions.row_N, sessions.start_s_N, 4
    whole = histories(log, catalog, *told, dated=True, memory=memory)
    lazy = LoggedHistories(log, catalog, *told, dated=True, memory=memory)
    assert len(lazy) == len(whole) and torch.equal(lazy.lengths_N, whole.lengths_N)
    for idx in (torch.tensor([3, 0, 3]), np.array([1]), slice(2, 5), torch.arange(len(whole)) % 2 == 0):
        for name, want in vars(whole.rows(idx)).items():
            found = getattr(lazy.rows(idx), name)
            assert found is want is None or (torch.equal(found, want) and found.dtype == want.dtype), name


def test_requests_to_several_logs_have_the_histories_that_each_log_gives_them():
    data = [(random_log(seed), make_catalog()) for seed in (5, 6)]
    whole = [Requests.of(part, logged_sessions(part[0], 3), 4) for part in data]
    some = np.arange(len(whole[0])) % 2 == 1
    both = whole[0].rows(some).followed_by(whole[0].rows(slice(0))).followed_by(whole[1])
    told = [[s.user_idx_N, s.row_N, s.start_s_N] for s in (requests.sessions for requests in whole)]
    built = [histories(*part, *columns, 4) for part, columns in zip(data, told, strict=True)]
    expected = EventBatch.cat([built[0].rows(torch.from_numpy(some)), built[1]])
    lazy = both.histories
    assert len(lazy) == len(expected) == len(both) and lazy.length == 4
    assert torch.equal(lazy.lengths_N, expected.lengths_N) and torch.equal(lazy.profile_UF, expected.profile_UF)
    backwards = torch.arange(len(expected)).flip(0)
    for idx in (slice(None), slice(1, 4), slice(0), backwards, torch.arange(len(expected)) % 3 == 0, np.array([2, 2])):
        for found in (lazy.rows(idx), lazy.at(idx).rows(slice(None))):
            for name, want in vars(expected.rows(idx)).items():
                column = getattr(found, name)
                assert column is want is None or torch.equal(column, want), name


def test_the_future_and_other_users_do_not_change_a_history():
    log = random_log(5)
    sessions = logged_sessions(log, 3)
    whole = histories(log, make_catalog(), sessions.user_idx_N, sessions.row_N, sessions.start_s_N, 4)
    n = len(sessions) // 2
    one = histories(log, make_catalog(), sessions.user_idx_N[[n]], sessions.row_N[[n]], sessions.start_s_N[[n]], 4)
    assert torch.equal(whole.gap_s_UT[n], one.gap_s_UT[0])
    log.item_id[sessions.row_N[n] :] = 0
    log.watch_s[sessions.row_N[n] :] = 0
    later = histories(log, make_catalog(), sessions.user_idx_N[[n]], sessions.row_N[[n]], sessions.start_s_N[[n]], 4)
    assert torch.equal(later.item_ids_UT, one.item_ids_UT)
    assert torch.equal(later.watch_fraction_UT, one.watch_fraction_UT)


def test_time_of_day_stays_below_24():
    hours = time_of_day(np.array([0.0, 3600 * 25.5, -3600.0, 86400 - 1e-7]))
    assert hours[:3].tolist() == [0, 1.5, 23] and hours[3] < 24


def long(t, item, **kwargs):
    return shown(t, 0, item, 9.0, ("click", "long_view"), **kwargs)


POSITIVES = make_log(
    [
        [profile(0), long(1, 1), shown(2, 0, 2), long(3, 3), long(4, 1), long(5, 4), long(500, 5), long(501, 6)],
        [profile(0), long(7, 7), long(8, 8, examined=False), long(9, 9)],
    ]
)


def test_positive_windows_end_at_the_latest_positive():
    sessions = positive_sessions(POSITIVES, 2)
    # User 0 liked 1, 3, 4, 5, 6 (the second 1 is a repeat): the odd one out is the oldest, a history without a target.
    assert sessions.item_ids_NK.tolist() == [[3, 4], [5, 6], [7, 9]]
    assert sessions.row_N.tolist() == [3, 6, 9] and sessions.user_idx_N.tolist() == [0, 0, 1]
    assert np.isnan(sessions.return_gap_s_N).all()
    batch = histories(POSITIVES, make_catalog(), sessions.user_idx_N, sessions.row_N, sessions.start_s_N, 9)
    assert batch.item_ids_UT[0, batch.mask_UT[0]].tolist() == [1, 2]


def test_positive_windows_break_at_long_gaps_and_may_be_short():
    sessions = positive_sessions(POSITIVES, 2, max_gap_s=100, min_items=1)
    assert sessions.item_ids_NK.tolist() == [[1, -1], [3, 4], [5, 6], [7, 9]]
    assert positive_sessions(POSITIVES, 3, max_gap_s=100).item_ids_NK.tolist() == [[1, 3, 4]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_positive_windows_never_overlap_or_repeat(seed, session_length):
    log = random_log(seed)
    try:
        sessions = positive_sessions(log, session_length, behaviours=("like", "long_view"), min_items=1)
    except ValueError:
        return
    items = sessions.item_ids_NK
    wanted = log.behaviours[:, [BEHAVIOUR_IDX["like"], BEHAVIOUR_IDX["long_view"]]].any(1) & log.examined
    for u in range(log.num_users):
        mine = items[sessions.user_idx_N == u]
        rows = np.arange(log.offsets_U1[u], log.offsets_U1[u + 1])
        expected = list(dict.fromkeys(log.item_id[rows[wanted[rows]]].tolist()))
        assert mine[mine >= 0].tolist() == expected
        assert (mine[1:] >= 0).all()


def test_positive_sessions_name_what_the_log_has():
    log = make_log([[profile(0), shown(1, 0, 1)]])
    with pytest.raises(ValueError, match=r"the log has \['click'\]"):
        positive_sessions(log, 1)
    with pytest.raises(ValueError, match="Unknown behaviour 'share'"):
        positive_sessions(log, 1, behaviours=("share",))


def sessions_of(*rows):
    """Sessions of five items from (watch seconds, behaviours of the first item)."""
    streams = [
        [profile(0), login(0, 0), *(shown(i, 0, i, w, b if i == 0 else ()) for i, w in enumerate(watch))]
        for watch, b in rows
    ]
    return logged_sessions(make_log(streams), 5)


def test_quality_filter_asks_for_all_three():
    sessions = sessions_of(
        ([10] * 5, ("like",)),  # passes
        ([10] * 5, ("click", "long_view")),  # no interaction
        ([10, 10, 10, 10, 1], ("forward",)),  # four watched
        ([5] * 5, ("follow",)),  # 25 s in all
        ([20] * 5, ("comment",)),  # passes
    )
    assert quality_filter(sessions).tolist() == [True, False, False, False, True]
    free = SessionFilter(min_watched=0, min_watch_s=0, min_interactions=0)
    assert quality_filter(sessions, free).all()
    best = SessionFilter(min_watched=0, min_watch_s=0, min_interactions=0, top_share=0.4)
    # Sessions 0 and 1 tie after session 4: the earlier one stays.
    assert quality_filter(sessions, best).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SessionFilter(min_watched=6), "min_watched is 6 but sessions have 5 items"),
        (SessionFilter(interactions=("share",)), "Unknown behaviour 'share'"),
    ],
)
def test_quality_filter_refuses_what_cannot_be_met(config, message):
    with pytest.raises(ValueError, match=message):
        quality_filter(sessions_of(([1] * 5, ())), config)


@pytest.mark.parametrize("num", [0, 1, 7, 8, 30])
def test_chosen_rows_are_found_block_by_block(num, monkeypatch):
    monkeypatch.setattr(sessions, "ROWS_AT_ONCE", 8)
    chosen = np.random.default_rng(num).random(num) < 0.4
    found = sessions.rows_where(chosen)
    assert found.dtype == np.int32 and found.tolist() == np.flatnonzero(chosen).tolist()

import lzma
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedgym.data.events import BEHAVIOURS, Event
from feedgym.data.parquet import read_log, write_log
from feedgym.data.public.kuairand import (
    BEIJING_S,
    FIRST_DAY_S,
    LONG_VIEW_S,
    ONE_HOT,
    PROFILE_FIELDS,
    _marked,
    is_kuairand,
    read_kuairand,
)
from feedgym.data.readers import find_data
from feedgym.data.sessions import logged_sessions, positive_sessions, time_of_day
from feedgym.data.sources import ReadOptions
from feedgym.data.splits import random_exposures

MAY_MS = 1651363200000  # 2022-05-01 00:00 UTC, eight in the morning in Beijing
MAY_S = MAY_MS / 1000 + BEIJING_S
FLAGS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
IMPRESSION = Event.IMPRESSION


def exposure(user, video, after_s, play_ms=1000, **flags):
    """A row of the log, ``after_s`` seconds after MAY_MS, with some of the columns which the reader does not take."""
    row = {"user_id": user, "video_id": video, "date": 20220501, "time_ms": MAY_MS + round(after_s * 1000)}
    row |= dict.fromkeys(FLAGS, 0) | flags
    return row | {"play_time_ms": play_ms, "duration_ms": 9000, "is_rand": 0, "tab": 1}


def videos_of(ids=(70, 5, 31, 8), **columns):
    table = {
        "video_id": list(ids),
        "author_id": [9000 + i % 3 for i in ids],
        "video_type": "NORMAL",
        "upload_dt": "2022-04-10",
        "upload_type": "ShortImport",
        "visible_status": 0.0,
        "video_duration": [1000.0 * (10 + i) for i in ids],
        "server_width": 720.0,
        "music_id": 1,
        "music_type": 9.0,
        "tag": [str(i % 2) for i in ids],
    }
    return pd.DataFrame(table | columns)


def users_of(ids, **columns):
    table = {name: 0 for name in (*PROFILE_FIELDS, *(f"onehot_feat{n}" for n in (3, 7, 8)))}
    table |= {"user_active_degree": "full_active", "fans_user_num": 5, "register_days_range": "730+"}
    return pd.DataFrame(table | columns, index=range(len(ids))).assign(user_id=list(ids))


def earlier_of(*rows):
    """user_sequences.parquet from (user, history length, last exposure in s after MAY_MS, watched, liked, long)."""
    columns = ("user_id", "history_len", "last_time_ms", "watch_seq", "like_seq", "long_watch_seq")
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(last_time_ms=MAY_MS + (table["last_time_ms"] * 1000).astype(np.int64))


LOG = pd.DataFrame([exposure(2, 70, 0), exposure(1, 5, 10), exposure(2, 8, 5), exposure(1, 31, 4000)])


def folder_of(path, *logs, videos=None, users=None, earlier=None, suffix=".csv"):
    """A folder with KuaiRand's files; several logs are the months' halves."""
    path.mkdir(exist_ok=True)

    def write(table, name):
        if suffix == ".parquet":
            table.to_parquet(path / f"{name}.parquet")
        else:
            table.to_csv(path / f"{name}{suffix}", index=False)

    for number, log in enumerate(logs or (LOG,)):
        write(log, f"log_standard_4_{number}_pure")
    write(videos_of() if videos is None else videos, "video_features_basic_pure")
    ids = sorted({u for log in logs or (LOG,) for u in log["user_id"]})
    write(users_of(ids) if users is None else users, "user_features_pure")
    if earlier is not None:
        earlier.to_parquet(path / "user_sequences.parquet")
    return path


def exposures(log):
    """(user id, item id, time) of every impression."""
    user = np.repeat(log.user_ids_U, np.diff(log.offsets_U1))
    shown = log.event == IMPRESSION
    return list(zip(user[shown].tolist(), log.item_id[shown].tolist(), log.timestamp_s[shown].tolist(), strict=True))


def refused(folder, message, **given):
    with pytest.raises(ValueError, match=message) as error:
        read_kuairand(folder, **given)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)


def test_a_hand_made_folder(tmp_path):
    flags = {"is_click": 1, "long_view": 1, "is_hate": 1}
    log = pd.DataFrame(
        [
            exposure(12, 31, 2.5, 4500, **flags),
            exposure(7, 70, 0, 0),
            exposure(12, 5, 0, 61802, is_like=1, is_follow=1, is_comment=1, is_forward=1),
        ]
    )
    log, catalog = read_kuairand(folder_of(tmp_path, log, earlier=None))
    assert log.user_ids_U.tolist() == [7, 12]
    # The catalogue is the whole video file in its order, also what nobody saw.
    assert catalog.raw_ids_I.tolist() == [70, 5, 31, 8]
    assert exposures(log) == [(7, 0, MAY_S), (12, 1, MAY_S), (12, 2, MAY_S + 2.5)]
    shown = log.event == IMPRESSION
    assert log.watch_s[shown].tolist() == pytest.approx([0, 61.802, 4.5])
    named = [{n for b, n in enumerate(BEHAVIOURS) if row[b]} for row in log.behaviours[shown]]
    assert named == [set(), {"like", "follow", "comment", "forward"}, {"click", "long_view", "hate"}]
    assert log.examined.tolist() == shown.tolist() and np.isnan(log.propensity).all()
    assert catalog.duration_s_I.tolist() == [80, 15, 41, 18]
    assert catalog.creator_I.tolist() == [9001, 9002, 9001, 9002]
    assert catalog.topic_I.tolist() == [0, 1, 1, 0]
    assert catalog.upload_s_I.tolist() == [FIRST_DAY_S + 2 * 86400] * 4


def test_times_of_day_are_those_of_beijing(tmp_path):
    log, _ = read_kuairand(folder_of(tmp_path, pd.DataFrame([exposure(1, 5, 0), exposure(1, 5, 17 * 3600)])))
    hours = time_of_day(log.timestamp_s[log.event == IMPRESSION])
    assert hours.tolist() == [8, 1]  # 1651363200 is 08:00 in Beijing; 17 hours later it is one in the night


@pytest.mark.parametrize("suffix", [".csv.gz", ".parquet"])
def test_csv_archives_and_parquet_read_the_same(tmp_path, suffix):
    one, catalog = read_kuairand(folder_of(tmp_path / "csv"))
    other, same = read_kuairand(folder_of(tmp_path / "other", suffix=suffix))
    assert exposures(one) == exposures(other)
    np.testing.assert_array_equal(one.profile_UF, other.profile_UF)
    np.testing.assert_array_equal(catalog.content_IE, same.content_IE)


def test_nullable_columns_as_pyarrow_writes_them(tmp_path):
    nullable = LOG.astype({name: "Int64" for name in (*FLAGS, "play_time_ms")})
    one, _ = read_kuairand(folder_of(tmp_path / "plain"))
    other, _ = read_kuairand(folder_of(tmp_path / "nullable", nullable, suffix=".parquet"))
    np.testing.assert_array_equal(one.watch_s, other.watch_s)
    np.testing.assert_array_equal(one.behaviours, other.behaviours)
    assert other.watch_s.dtype == np.float32


def test_rows_that_repeat_user_video_and_time_are_dropped(tmp_path):
    first = pd.DataFrame(
        [
            exposure(1, 5, 0, 2000, is_click=1),
            exposure(1, 5, 0, 7000),  # the same again with other feedback: the first row stays
            exposure(1, 8, 0),  # another video, another user and another time are other exposures
            exposure(2, 5, 0),
            exposure(1, 5, 0.001),
        ]
    )
    second = pd.DataFrame([exposure(2, 5, 0, 3000), exposure(2, 31, 9)])  # and across the files
    log, _ = read_kuairand(folder_of(tmp_path, first, second), options=ReadOptions(ties="file"))
    assert exposures(log) == [(1, 1, MAY_S), (1, 3, MAY_S), (1, 1, MAY_S + 0.001), (2, 1, MAY_S), (2, 2, MAY_S + 9)]
    shown = log.event == IMPRESSION
    assert log.watch_s[shown].tolist() == [2, 1, 1, 1, 1]
    assert log.behaviours[shown, 0].tolist() == [1, 0, 0, 0, 0]


def test_visits_end_at_pauses_of_half_an_hour(tmp_path):
    rows = [exposure(1, 5, 0), exposure(1, 8, 1800), exposure(1, 31, 3600.001, 500), exposure(2, 31, 3601)]
    log, _ = read_kuairand(folder_of(tmp_path, pd.DataFrame(rows)))
    assert logged_sessions(log, 3).item_ids_NK.tolist() == [[1, 3, -1], [2, -1, -1], [2, -1, -1]]
    assert log.timestamp_s[log.event == Event.LOGOUT].tolist() == [MAY_S + s for s in (1801, 3600.501, 3602)]


def test_profiles_are_coded_and_unknown_users_are_0(tmp_path):
    users = users_of([3, 2, 1], user_active_degree=["high", "full", None], onehot_feat4=[5.0, np.nan, 2.0])
    rows = pd.DataFrame([exposure(9, 5, 0), exposure(2, 5, 0), exposure(1, 8, 0)])
    log, _ = read_kuairand(folder_of(tmp_path, rows, users=users))
    assert log.user_ids_U.tolist() == [1, 2, 9]
    assert log.profile_names == PROFILE_FIELDS and log.profile_UF.shape == (3, len(PROFILE_FIELDS))
    degree, feature = (PROFILE_FIELDS.index(name) for name in ("user_active_degree", "onehot_feat4"))
    assert log.profile_UF[:, degree].tolist() == [0, 1, 0] and log.profile_sizes[degree] == 3
    assert log.profile_UF[:, feature].tolist() == [1, 0, 0] and log.profile_sizes[feature] == 3
    assert not log.profile_UF[2].any()


def test_profiles_name_nobody():
    """Of the encrypted features three have hundreds of values, and the exact counts all but name a user."""
    assert not {"onehot_feat3", "onehot_feat7", "onehot_feat8"} & set(ONE_HOT)
    assert not {"user_id", "follow_user_num", "fans_user_num", "register_days"} & set(PROFILE_FIELDS)


def test_videos_without_length_tag_or_date(tmp_path):
    videos = videos_of(
        video_duration=[20000.0, np.nan, 0.0, 40000.0],
        tag=["62,7", None, "unknown", "39"],
        upload_dt=["2022-04-09", None, "2022-04-11", "?"],
        music_type=[9.0, np.nan, 4.0, np.nan],
    )
    log = pd.DataFrame([exposure(1, 5, 0), exposure(1, 31, 3) | {"duration_ms": 0}, exposure(1, 70, 9)])
    _, catalog = read_kuairand(folder_of(tmp_path, log, videos=videos))
    # The log knows a length of the second, 9 s; the third, a picture post, gets the median of the others.
    assert catalog.duration_s_I.tolist() == [20, 9, 20, 40]
    assert catalog.topic_I.tolist() == [1, -1, -1, 0]  # the first tag, 39 before 62
    assert catalog.upload_s_I.tolist() == [FIRST_DAY_S + d * 86400 for d in (1, 0, 3, 0)]
    assert np.isfinite(catalog.content_IE).all()


@pytest.mark.parametrize("ids", [(5,), (5, 8), tuple(range(5, 40))])
def test_any_number_of_videos_of_one_length_is_read(tmp_path, ids):
    rows = pd.DataFrame([exposure(1, ids[0], 0)])
    _, catalog = read_kuairand(folder_of(tmp_path, rows, videos=videos_of(ids, video_duration=9000.0)))
    assert catalog.content_IE.shape == (len(ids), 64) and catalog.content_IE.dtype == np.float32


def test_content_comes_from_the_videos_alone_and_likens_authors_and_tags(tmp_path):
    ids = tuple(range(60))
    rng = np.random.default_rng(0)
    videos = videos_of(ids, tag=[str(i % 4) for i in ids], video_duration=rng.uniform(5e3, 9e4, 60))
    one, other = pd.DataFrame([exposure(1, 5, 0)]), pd.DataFrame([exposure(2, 5, 0), exposure(2, 9, 7, is_like=1)])
    content = read_kuairand(folder_of(tmp_path / "one", one, videos=videos))[1].content_IE
    same = read_kuairand(folder_of(tmp_path / "other", other, videos=videos), content_width=64)[1].content_IE
    np.testing.assert_array_equal(content, same)
    alike = content @ content.T
    tag, author = np.arange(60) % 4, np.arange(60) % 3
    both = (tag[:, None] == tag) & (author[:, None] == author) & ~np.eye(60, dtype=bool)
    neither = (tag[:, None] != tag) & (author[:, None] != author)
    assert alike[both].mean() > alike[neither].mean() + 0.3
    assert read_kuairand(tmp_path / "one", content_width=7)[1].content_IE.shape == (60, 7)


def random_folder(path, late_seed):
    """30 users whose exposures before MAY_MS + 1000 s are always the same, and later ones that ``late_seed`` draws."""
    rows = []
    for seed, low, high in ((0, 0, 1000), (late_seed, 1000, 2000)):
        rng = np.random.default_rng(seed)
        for user in range(30):
            for _ in range(4):
                rows.append(exposure(user, int(rng.integers(20)), rng.uniform(low, high), is_like=rng.integers(2)))
    return folder_of(path, pd.DataFrame(rows), videos=videos_of(range(20)))


def test_collaborative_dimensions_learn_from_before_the_moment_only(tmp_path):
    one, other = random_folder(tmp_path / "one", 1), random_folder(tmp_path / "other", 2)
    given = {"collaborative": True, "content_width": 6}
    a, b = (read_kuairand(f, **given, collaborative_before_s=MAY_S + 1000)[1].content_IE for f in (one, other))
    assert a.shape == (20, 12)
    np.testing.assert_array_equal(a, b)
    assert a[:, 6:].any()
    np.testing.assert_array_equal(a[:, :6], read_kuairand(one, content_width=6)[1].content_IE)
    a, b = (read_kuairand(f, **given, collaborative_before_s=MAY_S + 2000)[1].content_IE for f in (one, other))
    assert not np.array_equal(a, b)


def test_the_default_moment_of_collaborative_dimensions_is_four_fifths(tmp_path):
    folder = random_folder(tmp_path, 1)
    log, catalog = read_kuairand(folder, collaborative=True, content_width=6)
    times_s = log.timestamp_s[log.event == IMPRESSION]
    before_s = float(np.quantile(times_s, 0.8))
    same = read_kuairand(folder, collaborative=True, content_width=6, collaborative_before_s=before_s)[1]
    np.testing.assert_array_equal(catalog.content_IE, same.content_IE)
    later = read_kuairand(folder, collaborative=True, content_width=6, collaborative_before_s=times_s.max() + 1)[1]
    assert not np.array_equal(catalog.content_IE, later.content_IE)


EARLIER = earlier_of(
    # Two of the four exposures before the log are listed: the other two lie before them.
    (1, 4, -100, [8, 31], [31], [31, 31]),
    (3, 2, -50, [5, 70], [], [5]),  # somebody whom the log does not know
    (2, 3, -60, [], [], []),
)


def test_earlier_exposures_are_history_and_targets_but_no_visit(tmp_path):
    folder = folder_of(tmp_path, earlier=EARLIER)
    log, catalog = read_kuairand(folder)
    last_s, other_s = MAY_S - 100, MAY_S - 50
    assert exposures(log) == [
        (1, 3, pytest.approx(last_s - (last_s - FIRST_DAY_S) / 4)),
        (1, 2, last_s),
        (1, 1, MAY_S + 10),
        (1, 2, MAY_S + 4000),
        (2, 0, MAY_S),
        (2, 3, MAY_S + 5),
        (3, 1, pytest.approx((FIRST_DAY_S + other_s) / 2)),
        (3, 0, other_s),
    ]
    assert log.event[: log.offsets_U1[1]].tolist() == [0, 2, 2, 1, 2, 3, 1, 2, 3]
    assert log.event[log.offsets_U1[2] :].tolist() == [0, 2, 2]  # user 3 has no visit at all
    assert log.profile_UF[2].tolist() == [0] * len(PROFILE_FIELDS)  # nor a row in the user file
    shown = log.event == IMPRESSION
    named = [{n for b, n in enumerate(BEHAVIOURS) if row[b]} for row in log.behaviours[shown]]
    assert named == [set(), {"click", "long_view", "like"}, set(), set(), set(), set(), {"click", "long_view"}, set()]
    # A long view lasts the whole of a short video, else 18 s.
    assert catalog.duration_s_I[[2, 1]].tolist() == [41, 15]
    assert log.watch_s[shown].tolist() == [0, LONG_VIEW_S, 1, 1, 1, 1, 15, 0]
    assert logged_sessions(log, 2).item_ids_NK.tolist() == [[1, -1], [2, -1], [0, 3]]
    targets = positive_sessions(log, 1)
    assert targets.user_idx_N.tolist() == [0, 2] and targets.item_ids_NK.tolist() == [[2], [1]]


def test_earlier_exposures_can_be_left_out(tmp_path):
    folder = folder_of(tmp_path / "with", earlier=EARLIER)
    without = folder_of(tmp_path / "without")
    assert exposures(read_kuairand(folder, earlier=False)[0]) == exposures(read_kuairand(without)[0])


def test_a_liked_exposure_that_was_not_long_is_a_click_too(tmp_path):
    log, _ = read_kuairand(folder_of(tmp_path, earlier=earlier_of((1, 1, -5, [8], [8], []))))
    assert log.behaviours[1].tolist() == [1, 0, 1, 0, 0, 0, 0] and log.watch_s[1] == 0


def test_sequences_that_are_all_empty(tmp_path):
    log, _ = read_kuairand(folder_of(tmp_path, earlier=earlier_of((1, 3, -5, [], [], []), (9, 1, -5, [], [], []))))
    assert log.user_ids_U.tolist() == [1, 2] and len(exposures(log)) == 4


def test_of_an_exposure_in_log_and_sequence_the_logs_row_stays(tmp_path):
    """Histories of KuaiRand end at the log's first exposure for a few users."""
    rows = pd.DataFrame([exposure(1, 8, 0, 3000, is_comment=1), exposure(1, 5, 60)])
    log, _ = read_kuairand(folder_of(tmp_path, rows, earlier=earlier_of((1, 2, 0, [31, 8], [], [8]))))
    assert [item for _, item, _ in exposures(log)] == [2, 3, 1]
    shown = log.event == IMPRESSION
    assert log.watch_s[shown].tolist() == [0, 3, 1]
    assert [row.nonzero()[0].tolist() for row in log.behaviours[shown]] == [[], [BEHAVIOURS.index("comment")], []]
    assert logged_sessions(log, 2).item_ids_NK.tolist() == [[3, 1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.lists(st.integers(0, 3), max_size=6)] * 2), min_size=1, max_size=4))
def test_marks_equal_a_plain_count_from_the_end(users):
    watched, listed = zip(*users, strict=True)
    rows = pd.DataFrame([(u, item) for u, seq in enumerate(watched) for item in seq], columns=["user", "video_id"])
    expected = []
    for seq, subsequence in zip(watched, listed, strict=True):
        left, marks = Counter(subsequence), []
        for item in reversed(seq):
            marks.append(left[item] > 0)
            left[item] -= 1
        expected += marks[::-1]
    sequences = pd.Series([np.array(s, dtype=np.int64) for s in listed], index=range(5, 5 + len(listed)))
    assert _marked(rows.astype(np.int64), sequences).tolist() == expected


def test_a_log_file_without_rows_beside_a_full_one(tmp_path):
    log, _ = read_kuairand(folder_of(tmp_path / "a", LOG.iloc[:0], LOG, LOG.iloc[:0]))
    assert exposures(log) == exposures(read_kuairand(folder_of(tmp_path / "b", LOG))[0])
    assert log.behaviours.dtype == np.uint8 and log.timestamp_s.dtype == np.float64
    refused(folder_of(tmp_path / "c", LOG.iloc[:0]), "the logs have no rows; check the download")


def test_what_counts_as_kuairands_folder(tmp_path):
    folder = folder_of(tmp_path / "whole")
    assert is_kuairand(folder) and is_kuairand(str(folder))
    assert not is_kuairand(tmp_path) and not is_kuairand(tmp_path / "none")
    assert not is_kuairand(folder / "log_standard_4_0_pure.csv")
    (folder / "video_features_basic_pure.csv").unlink()
    assert not is_kuairand(folder)


@pytest.mark.parametrize("name", ["log_standard_", "video_features_basic_", "user_features_"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = folder_of(tmp_path)
    next(folder.glob(f"{name}*")).unlink()
    refused(folder, rf"no file {name}\*; ")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("name", "column"),
    [("log_standard_4_0_pure", "is_forward"), ("video_features_basic_pure", "tag"), ("user_features_pure", "user_id")],
)
def test_a_missing_column_is_named(tmp_path, suffix, name, column):
    folder = folder_of(tmp_path, suffix=suffix)
    file = folder / f"{name}{suffix}"
    table = pd.read_csv(file) if suffix == ".csv" else pd.read_parquet(file)
    table = table.drop(columns=column)
    table.to_csv(file, index=False) if suffix == ".csv" else table.to_parquet(file)
    refused(folder, rf"{name}{suffix}: needs the columns .*\b{column}\b.*\(.*{column}.*\); take KuaiRand's\.$")


def test_a_broken_archive_is_named(tmp_path):
    folder = folder_of(tmp_path, suffix=".csv.gz")
    file = folder / "log_standard_4_0_pure.csv.gz"
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2 :] = bytes(b ^ 0xFF for b in damaged[len(whole) // 2 :])  # zlib's own error
    for broken in (whole[:-12], bytes(damaged), b"<html>not found</html>"):
        file.write_bytes(broken)
        refused(folder, r"log_standard_4_0_pure.csv.gz: cannot be read to its end .*; fetch the file again\.$")
    file.write_bytes(b"")
    refused(folder, r"log_standard_4_0_pure.csv.gz: needs the columns .*; take KuaiRand's\.$")


def test_an_xz_archive_cut_in_the_middle_is_named(tmp_path):
    folder = folder_of(tmp_path)
    (plain,) = folder.glob("log_standard_*")
    packed = lzma.compress(plain.read_bytes())
    file = plain.with_name(plain.name + ".xz")
    plain.unlink()
    file.write_bytes(packed)
    assert len(exposures(read_kuairand(folder)[0]))
    for broken in (packed[:-20], packed[: len(packed) // 2] + b"\0" * (len(packed) // 2)):
        file.write_bytes(broken)
        refused(folder, r"csv.xz: cannot be read to its end")


def test_what_is_no_behaviour_is_kept_too(tmp_path):
    log = pd.DataFrame([exposure(1, 5, 0), exposure(1, 31, 3)]).assign(
        tab=[4, 1], is_profile_enter=[0, 1], profile_stay_time=[0, 2500], comment_stay_time=[700, 0]
    )
    read, _ = read_kuairand(folder_of(tmp_path, log, earlier=None))
    shown = read.event == IMPRESSION
    kept = {name: values[shown].tolist() for name, values in read.extra.items()}
    assert kept == {
        "tab": [4, 1],
        "profile_enter": [0, 1],
        "profile_stay_s": [0, 2.5],
        "comment_stay_s": [np.float32(0.7), 0],
    }
    assert not any(values[~shown].any() for values in read.extra.values())
    bad = log.assign(profile_stay_time=[None, 1])
    refused(folder_of(tmp_path / "bad", bad), "column 'profile_stay_time' is empty, negative or not a number in 1 row")


def test_simultaneous_exposures_are_shuffled_unless_told_to_stay(tmp_path):
    log = pd.DataFrame([exposure(1, video, 0) for video in (31, 70, 5, 8)])
    folder = folder_of(tmp_path, log, earlier=None)
    in_order = [2, 0, 1, 3]
    orders = {
        tuple(i for _, i, _ in exposures(read_kuairand(folder, options=ReadOptions(seed=s))[0])) for s in range(9)
    }
    assert len(orders) > 3 and {tuple(sorted(o)) for o in orders} == {(0, 1, 2, 3)}
    kept = read_kuairand(folder, options=ReadOptions(ties="file"))[0]
    assert [i for _, i, _ in exposures(kept)] == in_order


@pytest.mark.parametrize(
    ("column", "value"), [("time_ms", None), ("is_like", None), ("play_time_ms", "long"), ("play_time_ms", -1)]
)
def test_a_bad_cell_of_a_log_is_refused(tmp_path, column, value):
    log = LOG.astype({column: object})
    log.loc[[1, 3], column] = value
    what = rf"column '{column}' is empty, negative or not a number in 2 row\(s\), first row 1; drop those rows"
    refused(folder_of(tmp_path, log), what)


def test_a_video_which_the_video_file_lacks_is_refused(tmp_path):
    log = LOG.assign(video_id=[70, 5, 99, 98])
    message = r"log_.*: column 'video_id' names video 99 in row 2, which is not in video_features"
    refused(folder_of(tmp_path / "log", log), message)
    earlier = earlier_of((1, 2, -9, [8, 5], [], []), (2, 3, -9, [5, 8, 99], [], []))
    # The file's row is the user's.
    folder = folder_of(tmp_path / "earlier", earlier=earlier)
    refused(folder, r"user_sequences.parquet: column 'watch_seq' names video 99 in row 1, which .* one version of")


def test_a_repeated_user_or_video_is_refused(tmp_path):
    videos = folder_of(tmp_path / "videos", videos=videos_of((70, 5, 31, 8, 5)))
    refused(videos, r"video_.*: column 'video_id' repeats a value in 1 row\(s\), first row 4")
    users = folder_of(tmp_path / "users", users=users_of([1, 2, 1, 2]))
    refused(users, r"user_features_.*: column 'user_id' repeats a value in 2 row\(s\), first row 2")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_share_of_the_users_is_read_chunk_by_chunk_with_the_videos_they_saw(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("feedgym.data.public.kuairand.CHUNK", 3)
    log = pd.DataFrame([exposure(u, (70, 5, 31, 8)[u % 3], s) for u in range(1, 25) for s in (0, 1)])
    folder = folder_of(tmp_path, log, suffix=suffix, earlier=None)
    whole, catalog = read_kuairand(folder)
    part, seen = read_kuairand(folder, options=ReadOptions(users=0.4))
    kept = set(part.user_ids_U.tolist())
    assert 3 < len(kept) < 20 and seen.num_items < catalog.num_items == 4
    named = lambda log, cat: [(u, int(cat.raw_ids_I[i]), t) for u, i, t in exposures(log)]  # noqa: E731
    assert named(part, seen) == [row for row in named(whole, catalog) if row[0] in kept]
    assert set(seen.raw_ids_I.tolist()) == {item for _, item, _ in named(part, seen)}
    other = read_kuairand(folder, options=ReadOptions(users=0.4, seed=1))[0]
    assert set(other.user_ids_U.tolist()) != kept


def test_a_core_leaves_out_users_and_videos_with_few_exposures(tmp_path):
    log = pd.DataFrame(
        [exposure(1, 5, 0), exposure(1, 31, 1), exposure(2, 5, 0), exposure(2, 31, 1), exposure(3, 5, 0)]
    )
    read, _ = read_kuairand(folder_of(tmp_path, log, earlier=None), options=ReadOptions(core=2))
    assert read.user_ids_U.tolist() == [1, 2] and len(exposures(read)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"watch_seq": [5]}, r"'watch_seq' holds no list of ids in row 0; drop those rows, or take"),
        ({"like_seq": [[["a"]]]}, r"'like_seq' holds no list of ids in row 0"),
        ({"last_time_ms": [b"\xff"]}, r"'last_time_ms' holds bytes and must hold one value per row"),
        ({"history_len": [0]}, r"'history_len' is too small in 1 row\(s\), first row 0"),
    ],
)
def test_sequences_that_are_none_are_refused(tmp_path, change, message):
    folder = folder_of(tmp_path, earlier=earlier_of((2, 1, -100, [70], [], [])).assign(**change))
    refused(folder, message)


def test_binary_files_are_refused(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "user_sequences.parquet").write_bytes(bytes(range(256)))
    refused(folder, "user_sequences.parquet: .*")
    earlier_of().to_parquet(folder / "user_sequences.parquet")  # and one without rows is read
    assert len(exposures(read_kuairand(folder)[0])) == 4
    for name, column in (("user_features_pure", "user_active_degree"), ("video_features_basic_pure", "tag")):
        nested = folder_of(tmp_path / name, suffix=".parquet")
        table = pd.read_parquet(nested / f"{name}.parquet")
        table.assign(**{column: [[1]] * len(table)}).to_parquet(nested / f"{name}.parquet")
        refused(nested, rf"{name}.parquet: column '{column}' holds lists and must hold one value per row")


def with_random(path, suffix=".csv", **given):
    """The folder with three random exposures of two different videos among the standard ones."""
    folder = folder_of(path, suffix=suffix, **given)
    rows = [exposure(2, 31, 3, is_click=1), exposure(1, 31, 11), exposure(9, 70, 20)]
    table = pd.DataFrame(rows).assign(is_rand=1)
    name = folder / f"log_random_4_22_to_5_08_pure{suffix}"
    table.to_parquet(name) if suffix == ".parquet" else table.to_csv(name, index=False)
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_random_exposures_are_read_with_flag_and_propensity(tmp_path, suffix):
    folder = with_random(tmp_path / "kuairand", suffix)
    source = find_data(folder)
    assert any("log_random_" in rule for rule in source.says) and len(source.files) == 4
    log, _ = source.read(ReadOptions())
    shown = log.event == IMPRESSION
    flag, chance = log.extra["random"][shown], log.propensity[shown]
    assert [(u, i) for (u, i, _), f in zip(exposures(log), flag, strict=True) if f] == [(1, 2), (2, 2), (9, 0)]
    assert (chance[flag == 1] == 0.5).all() and np.isnan(chance[flag == 0]).all()
    assert log.position[shown].tolist() == [0, 1, 0, 0, 1, 2, 0]  # in their visits, by their times
    assert (np.flatnonzero(random_exposures(log)) == np.flatnonzero(shown)[flag == 1]).all()
    write_log(log, tmp_path / "events.parquet")
    kept = read_log(tmp_path / "events.parquet")
    assert (random_exposures(kept) == random_exposures(log)).all()
    np.testing.assert_array_equal(kept.propensity, log.propensity)
    # Of a part of the users the pool is still all that was drawn from.
    parts = (ReadOptions(users=0.5, seed=seed) for seed in range(99))
    alone = next(part for part in parts if part.chosen(pd.Series([1, 2, 9])).tolist() == [False, False, True])
    some, _ = read_kuairand(folder, options=alone)
    assert some.propensity[some.event == IMPRESSION].tolist() == [0.5]


def test_without_random_logs_nothing_is_flagged(tmp_path):
    plain, _ = read_kuairand(folder_of(tmp_path / "plain"))
    assert "random" not in plain.extra and not random_exposures(plain).any()
    left_out, _ = read_kuairand(with_random(tmp_path / "both"), random=False)
    assert exposures(left_out) == exposures(plain)
    folder = with_random(tmp_path / "alone")
    next(folder.glob("log_standard_*")).unlink()
    assert is_kuairand(folder) and len(exposures(read_kuairand(folder)[0])) == 3

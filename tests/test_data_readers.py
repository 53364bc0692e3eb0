import gzip
import lzma
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedgym.data.build import VISIT_GAP_S
from feedgym.data.content import collaborative_embeddings, default_cutoff_s
from feedgym.data.events import BEHAVIOURS, Event
from feedgym.data.parquet import write_catalog, write_log
from feedgym.data.readers import find_data, load_data
from feedgym.data.sessions import time_of_day
from feedgym.data.sources import ReadOptions
from feedgym.data.table import read_table

MAY_S = 1651363200  # 2022-05-01 00:00 UTC
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
# Two users, whose rows are mixed and out of order.
VIEWS = pd.DataFrame(
    {
        "user_id": [9, 4, 9, 4, 9],
        "item_id": [30, 10, 20, 10, 10],
        "timestamp": [MAY_S + s for s in (60, 5, 30, 0, 90)],
    }
)
ITEMS = pd.DataFrame({"item_id": [20, 40, 10, 30]})


def written(path, table):
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in path.suffixes else ",")
    return path


def read(folder, views=VIEWS, items=None, suffix=".csv", options=None, **column_map):
    path = written(folder / f"views{suffix}", views)
    return read_table(path, column_map, None if items is None else written(folder / f"items{suffix}", items), options)


def refused(folder, message, views=VIEWS, items=None, suffix=".csv", about="views", **column_map):
    """The table is refused with one line that begins with the file it is about."""
    with pytest.raises(ValueError, match=message) as error:
        read(folder, views, items, suffix, **column_map)
    assert str(error.value).startswith(str(folder / f"{about}{suffix}")) and "\n" not in str(error.value)


def exposures(log):
    """(user id, dense item id, seconds after MAY_S) of every impression."""
    user = np.repeat(log.user_ids_U, np.diff(log.offsets_U1)).tolist()
    rows = np.flatnonzero(log.event == Event.IMPRESSION)
    return [(user[r], log.item_id[r].item(), log.timestamp_s[r].item() - MAY_S) for r in rows]


def shown(log, name):
    """A column, or a behaviour, of every impression."""
    column = log.behaviours[:, BEHAVIOURS.index(name)] if name in BEHAVIOURS else getattr(log, name)
    return column[log.event == Event.IMPRESSION].tolist()


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        for name, value in vars(a).items():
            np.testing.assert_array_equal(value, vars(b)[name], err_msg=name)


def test_a_hand_made_table(tmp_path):
    views = VIEWS.assign(
        watch_s=[1.5, 2, 0, 4, 5],
        duration_s=[30, 10, 20, 12, 11],
        examined=[1, 1, 0, 1, 1],
        propensity=[0.5, 1, None, 0.25, 0.125],
        like=[1, 0, 0, 1, 0],
        hate=[0, 1, 0, 0, 0],
        profile_age=[31, 1, 30, 54, 32],
        profile_town=["b", None, "a", None, "c"],
    )
    log, catalog = read(tmp_path, views)
    assert log.user_ids_U.tolist() == [9, 4] and catalog.raw_ids_I.tolist() == [10, 20, 30]
    assert exposures(log) == [(9, 1, 30), (9, 2, 60), (9, 0, 90), (4, 0, 0), (4, 0, 5)]
    assert log.event.tolist() == [0, 1, 2, 2, 2, 3, 0, 1, 2, 2, 3]
    assert shown(log, "watch_s") == [0, 1.5, 5, 4, 2] and shown(log, "position") == [0, 1, 2, 0, 1]
    assert shown(log, "examined") == [False, True, True, True, True]
    assert shown(log, "like") == [0, 1, 0, 1, 0] and shown(log, "hate") == [0, 0, 0, 0, 1]
    assert log.behaviours.sum() == 3  # and no click, for there are columns of behaviours
    np.testing.assert_array_equal(shown(log, "propensity"), [np.nan, 0.5, 0.125, 0.25, 1])
    # Profiles are those of each user's earliest row; 0 is unknown.
    assert log.profile_names == ("age", "town") and log.profile_sizes == (3, 2)
    assert log.profile_UF.tolist() == [[1, 1], [2, 0]]
    assert catalog.duration_s_I.tolist() == [12, 20, 30]  # an item's longest
    assert catalog.topic_I.tolist() == catalog.creator_I.tolist() == [-1] * 3
    assert catalog.upload_s_I.tolist() == [MAY_S] * 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_csv_archives_tsv_and_parquet_give_the_same_log(tmp_path, suffix):
    views = VIEWS.assign(item_id=["ä 1", "b,2", "c", "b,2", "c"], watch_s=[0.1, 2, None, 4, 5], like=[1, 0, 1, 0, 1])
    items = pd.DataFrame({"item_id": ["b,2", "c", "ä 1"], "duration_s": [10.5, 20, None], "topic": ["x", "y", "x"]})
    (tmp_path / "csv").mkdir()
    assert_same(read(tmp_path / "csv", views, items), read(tmp_path, views, items, suffix))


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(12)), st.integers(0, 10**6))
def test_rows_with_times_of_their_own_may_be_in_any_order(tmp_path_factory, order, seed):
    rng = np.random.default_rng(seed)
    views = pd.DataFrame({"user_id": rng.integers(0, 3, 12), "item_id": rng.integers(0, 5, 12)})
    views = views.assign(timestamp=rng.permutation(12) * 1000.0, watch_s=rng.random(12), duration_s=1 + rng.random(12))
    folder = tmp_path_factory.mktemp("any")
    # Users are in the order in which the file names them first, so one more row of each fixes that.
    first = pd.DataFrame({"user_id": [0, 1, 2], "item_id": 0, "timestamp": -1.0, "watch_s": 0.0, "duration_s": 1.0})
    one, other = (pd.concat([first, rows], ignore_index=True) for rows in (views, views.iloc[list(order)]))
    assert_same(read(folder, one, suffix=".parquet"), read(folder, other, suffix=".parquet"))


def test_simultaneous_rows_are_shuffled_unless_they_share_a_session_or_are_told_to_stay(tmp_path):
    table = VIEWS.assign(timestamp=MAY_S)
    in_order = [(9, 2, 0), (9, 1, 0), (9, 0, 0), (4, 0, 0), (4, 0, 0)]
    assert exposures(read(tmp_path, table, options=ReadOptions(ties="file"))[0]) == in_order
    assert exposures(read(tmp_path, table.assign(session_id=1))[0]) == in_order
    orders = {tuple(exposures(read(tmp_path, table, options=ReadOptions(seed=s))[0])) for s in range(15)}
    assert len(orders) > 3 and all(sorted(order) == sorted(in_order) for order in orders)


def test_columns_are_renamed_by_the_map(tmp_path):
    views = VIEWS.rename(columns={"user_id": "visitor", "timestamp": "ts"}).assign(age=[1, 2, 1, 2, 1])
    log, _ = read(tmp_path, views, user_id="visitor", timestamp="ts", profile_age="age")
    assert exposures(log) == exposures(read(tmp_path)[0]) and log.profile_names == ("age",)


def test_mapped_columns_take_the_place_of_the_files_own(tmp_path):
    log, _ = read(tmp_path, VIEWS.assign(user_id=0, visitor=VIEWS["user_id"]), user_id="visitor")
    assert log.user_ids_U.tolist() == [9, 4]
    swapped = VIEWS.rename(columns={"user_id": "item_id", "item_id": "user_id"})
    log, catalog = read(tmp_path, swapped, user_id="item_id", item_id="user_id")
    assert log.user_ids_U.tolist() == [9, 4] and catalog.raw_ids_I.tolist() == [10, 20, 30]
    log, _ = read(tmp_path, VIEWS.assign(done=[1, 0, 1, 0, 1]), click="done", long_view="done")
    assert shown(log, "click") == shown(log, "long_view") == [1, 1, 1, 0, 0]
    log, _ = read(tmp_path, VIEWS.assign(like=[1, 0, 1, 0, 1]), click="like")
    assert shown(log, "click") == [1, 1, 1, 0, 0] and not any(shown(log, "like"))


def test_names_of_item_columns_leave_the_events_alone_and_the_other_way_round(tmp_path):
    items = ITEMS.assign(user_id=[7, 7, 8, 9], timestamp=[MAY_S + s for s in (-4, -3, -2, -1)])
    log, catalog = read(tmp_path, items=items, creator="user_id", upload_time="timestamp")
    assert exposures(log) == [(9, 0, 30), (9, 3, 60), (9, 2, 90), (4, 2, 0), (4, 2, 5)]
    assert catalog.creator_I.tolist() == [0, 0, 1, 2]
    assert catalog.upload_s_I.tolist() == items["timestamp"].tolist()
    # Nor does the time of an event, under an attribute's name, take the attribute away.
    items = ITEMS.assign(topic=[1, 2, 1, 2], creator=[1, 1, 2, 2])
    views = VIEWS.rename(columns={"timestamp": "topic"})
    assert read(tmp_path, views, items, timestamp="topic")[1].topic_I.tolist() == [0, 1, 0, 1]


def test_one_map_serves_both_files(tmp_path):
    views = VIEWS.rename(columns={"item_id": "video"})
    items = ITEMS.rename(columns={"item_id": "video"}).assign(seconds=[2, 4, 1, 3], e0=[1, 2, 3, 4])
    _, catalog = read(tmp_path, views, items, item_id="video", duration_s="seconds", embedding_0="e0")
    assert catalog.raw_ids_I.tolist() == [20, 40, 10, 30] and catalog.duration_s_I.tolist() == [2, 4, 1, 3]
    assert catalog.content_IE.tolist() == [[1], [2], [3], [4]]
    _, catalog = read(tmp_path, VIEWS, items, item_id="video")  # the events have feedgym's own name
    assert catalog.raw_ids_I.tolist() == [20, 40, 10, 30]


@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_a_missing_required_column_is_named(tmp_path, name):
    refused(tmp_path, rf"column '{name}' is missing; the file has \[.*'timestamp'\]", VIEWS.drop(columns=name))
    refused(tmp_path, f"'{name}' is empty in 1 row.s., first row 3; drop", VIEWS.assign(**{name: [1, 2, 3, None, 5]}))


def test_an_items_file_must_hold_every_item_once(tmp_path):
    message = r"column 'item_id' is missing; the file has \['video'\]"
    refused(tmp_path, message, items=ITEMS.rename(columns={"item_id": "video"}), about="items")
    message = r"'item_id' repeats an item in 1 row\(s\), first row 2; keep one"
    refused(tmp_path, message, items=pd.DataFrame({"item_id": [10, 20, 10, 30]}), about="items")
    refused(tmp_path, "'item_id' is empty in 1 row", items=pd.DataFrame({"item_id": [10, None]}), about="items")
    message = r"names item 30 in row 0, which the items' file does not hold \(1 such rows\)"
    refused(tmp_path, message, items=ITEMS.iloc[:3])
    views = VIEWS.assign(item_id=VIEWS["item_id"].astype(str))
    assert exposures(read(tmp_path, views, ITEMS, suffix=".parquet")[0]) == exposures(read(tmp_path, items=ITEMS)[0])
    message = r"names item '030' in row 0, .* \(1 such rows\); add the items to it, with ids written alike"
    refused(tmp_path, message, VIEWS.assign(item_id=["030", "10", "20", "10", "10"]), ITEMS)


def test_a_map_that_fits_no_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"column_map names 'visitor', which feedgym does not know; use click, .*"):
        read(tmp_path, visitor="user_id")
    with pytest.raises(ValueError, match="column_map names 'topic', which describes items; give the items' file"):
        read(tmp_path, topic="user_id")
    refused(tmp_path, r"column 'who' \(for user_id\) is missing; there are \['item_id', 'time", user_id="who")
    refused(tmp_path, r"column 'age' \(for profile_age\) is missing", items=ITEMS.assign(age=1), profile_age="age")
    # A topic is looked for among the items, not the events.
    message = r"column 'timestamp' \(for topic\) is missing; there are \['item_id'\]"
    refused(tmp_path, message, items=ITEMS, about="items", topic="timestamp")
    message = r"column 'e' \(for embedding_0\) is missing"
    refused(tmp_path, message, VIEWS.assign(e=0), ITEMS, about="items", embedding_0="e")
    refused(tmp_path, r"column 'length' \(for duration_s\) is missing", items=ITEMS, duration_s="length")


SECONDS = np.array([60, 5, 30.25, 0, 90])
DATETIMES = pd.to_datetime(pd.Series(MAY_S + SECONDS), unit="s")


@pytest.mark.parametrize(
    "times",
    [
        MAY_S + SECONDS,
        ((MAY_S + SECONDS) * 1e3).astype(np.int64),
        ((MAY_S + SECONDS) * 1e6).astype(np.int64),
        MAY_S * 10**9 + (SECONDS * 1e9).astype(np.int64),
        pd.array(((MAY_S + SECONDS) * 1e3).astype(np.int64), dtype="Int64"),
        (MAY_S + SECONDS).astype(str),
        DATETIMES.dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        [f"2022-05-01 00:{m}+02:00" for m in ("01:00", "00:05", "00:30.25", "00:00", "01:30")],
        DATETIMES,
        DATETIMES.astype("datetime64[ns]"),
        DATETIMES.dt.tz_localize("UTC"),
        DATETIMES.dt.tz_localize("Asia/Shanghai"),
    ],
    ids=["s", "ms", "us", "ns", "nullable", "digits", "iso", "offset", "datetimes", "datetimes-ns", "utc", "zone"],
)
def test_times_are_understood_in_every_usual_form(tmp_path, times):
    for suffix in (".csv", ".parquet"):
        log, catalog = read(tmp_path, VIEWS.assign(timestamp=times), ITEMS.assign(upload_time=times[:4]), suffix)
        assert [s for _, _, s in exposures(log)] == pytest.approx([30.25, 60, 90, 0, 5], abs=1e-6)
        assert catalog.upload_s_I - MAY_S == pytest.approx([60, 5, 30.25, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("stamps", "hours"),
    [
        ([1651363200 + 3600 * h for h in (0, 1, 2, 3, 4)], [8, 9, 10, 11, 12]),
        (["2022-05-01T22:00:00", "2022-05-02 01:00", "2022-05-02", "2022-05-02 02:00Z", "2022-05-02 03:00+00:00"],
         [6, 9, 8, 10, 11]),
        # Those that tell keep their hour, whatever the offset of the others.
        ([f"2022-05-01T1{h}:00{z}" for h, z in enumerate(["-05:00", "-0500", "-05", "-05:00", "-05:00"])],
         [10, 11, 12, 13, 14]),
        (["2022-05-01T22:00:00.5+05:30"] * 5, [22 + 0.5 / 3600] * 5),
    ],
    ids=["numbers", "naive-or-utc", "own", "half-hours"],
)  # fmt: skip
def test_times_of_day_are_the_users_own(tmp_path, stamps, hours):
    views = pd.DataFrame({"user_id": range(5), "item_id": 5, "timestamp": stamps})
    log, _ = read(tmp_path, views, options=ReadOptions(utc_offset=8))
    found = time_of_day(log.timestamp_s[log.event == Event.IMPRESSION])
    np.testing.assert_allclose(found, np.array(hours, float) % 24, atol=1e-5)


def test_a_clock_never_runs_back_where_an_offset_changes(tmp_path):
    # Daylight saving ends between the two, half an hour apart; the second user's stamps are others.
    stamps = ["2022-10-30T02:45:00+02:00", "2022-10-30T02:15:00+01:00", "2022-10-30T02:15:00+09:00"]
    log, _ = read(tmp_path, pd.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 3], "timestamp": stamps}))
    time_s = log.timestamp_s[log.event == Event.IMPRESSION]
    assert time_s[1] - time_s[0] == 1800 and log.item_id[log.event == Event.IMPRESSION].tolist() == [0, 1, 2]
    assert time_of_day(time_s[[0, 2]]).tolist() == [2.75, 2.25]


def test_an_offset_that_nothing_can_use_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"utc_offset=15 must be 14 or less"):
        ReadOptions(utc_offset=15)
    with pytest.raises(ValueError, match=r"has no timestamp, and utc_offset is 8; leave it 0"):
        read(tmp_path, VIEWS.drop(columns="timestamp"), options=ReadOptions(utc_offset=8))


def test_times_in_different_units_are_refused(tmp_path):
    mixed = VIEWS["timestamp"] * np.array([1, 1, 1000, 1, 1000])
    message = r"'timestamp' looks like milliseconds, and like seconds in the others, in 2 row\(s\), first row 2; write"
    refused(tmp_path, message, VIEWS.assign(timestamp=mixed))
    items = ITEMS.assign(upload_time=[MAY_S, MAY_S * 1000, MAY_S * 1000, MAY_S * 1000])
    refused(tmp_path, "'upload_time' looks like seconds, and like milliseconds", items=items, about="items")


def test_a_logged_slate_keeps_its_order(tmp_path):
    views = pd.DataFrame({"user_id": 1, "item_id": [0, 1, 2, 3, 4, 5], "timestamp": MAY_S, "place": [3, 0, 5, 1, 4, 2]})
    for options in (ReadOptions(seed=1), ReadOptions(seed=2), ReadOptions(ties="file")):
        log, _ = read(tmp_path, views, options=options, position="place")
        assert shown(log, "item_id") == [1, 3, 5, 0, 4, 2] and shown(log, "position") == [0, 1, 2, 3, 4, 5]
        # Slates of one time stay apart.
        log, _ = read(tmp_path, views.assign(session_id=list("abaabb")), options=options, position="place")
        assert shown(log, "item_id") in ([3, 0, 2, 1, 5, 4], [1, 5, 4, 3, 0, 2])
    refused(tmp_path, "'position' is empty in 1 row", views.assign(place=[1, None, 2, 3, 4, 5]), position="place")
    without = written(tmp_path / "views.csv", views.drop(columns="timestamp"))
    assert any(
        "positions are not read without timestamp" in line for line in find_data(without, {"position": "place"}).warns
    )
    assert shown(load_data(without, {"position": "place"})[0], "item_id") == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
def test_ids_are_told_apart_as_they_are_written(tmp_path, suffix):
    views = pd.DataFrame({"user_id": ["007", "7", "7"], "item_id": ["01", "1", "01"], "timestamp": MAY_S})
    log, catalog = read(tmp_path, views.assign(session_id=["1", "01", "1"]), suffix=suffix)
    assert log.user_ids_U.tolist() == ["007", "7"] and catalog.raw_ids_I.tolist() == ["01", "1"]
    assert (log.event == Event.LOGIN).sum() == 3
    items = pd.DataFrame({"item_id": ["1", "01"], "topic": ["x", "y"]})
    _, catalog = read(tmp_path, views, items, suffix)
    assert catalog.raw_ids_I.tolist() == ["1", "01"] and catalog.topic_I.tolist() == [0, 1]
    only = views.assign(item_id="7")
    assert read(tmp_path, only, pd.DataFrame({"item_id": ["007", "7"]}), suffix)[0].item_id.max() == 1


def test_what_is_not_read_is_told(tmp_path, caplog):
    path = written(tmp_path / "views.csv", VIEWS.assign(clicks=0, play_time_ms=3, price=1.0, Position=0))
    source = find_data(path, {"item_id": "item_id"})
    assert "views.csv: columns that are not read: clicks, play_time_ms, price, Position" in source.says
    assert [line.split("'")[1] for line in source.warns] == ["clicks", "play_time_ms", "Position"]
    assert source.warns[1].endswith("; if it is watch_s, map it and duration_s: --columns watch_s=play_time_ms:ms.")
    load_data(path)
    assert all(line in caplog.messages for line in source.warns)
    mapped = find_data(path, {"click": "clicks", "position": "Position"})
    assert [line.split("'")[1] for line in mapped.warns] == ["play_time_ms"]
    items = written(tmp_path / "items.csv", ITEMS.assign(text="a", price=2))
    assert any("items.csv: columns that are not read next to texts" in line for line in find_data(path, {}, items).says)


def test_days_are_times(tmp_path):
    log, _ = read(tmp_path, VIEWS.assign(timestamp=[date(2022, 5, d) for d in (3, 2, 2, 1, 4)]), suffix=".parquet")
    assert [s / 86400 for _, _, s in exposures(log)] == [1, 2, 3, 0, 1]


@pytest.mark.parametrize("bad", [None, "soon", float("inf"), "2022-05-01"])
def test_a_row_without_a_time_is_refused(tmp_path, bad):
    views = VIEWS.astype({"timestamp": object})
    views.loc[[1, 3], "timestamp"] = bad
    refused(tmp_path, r"'timestamp' is empty or not a time in 2 row\(s\), first row 1; write seconds or ISO", views)


def test_without_times_the_rows_are_a_second_apart(tmp_path):
    log, catalog = read(tmp_path, VIEWS.drop(columns="timestamp"))
    assert [(u, i, s + MAY_S) for u, i, s in exposures(log)] == [(9, 2, 0), (9, 1, 2), (9, 0, 4), (4, 0, 1), (4, 0, 3)]
    assert catalog.upload_s_I.tolist() == [0, 0, 0]


def test_visits_end_at_pauses_of_more_than_half_an_hour(tmp_path):
    times = MAY_S + np.array([0, 0, VISIT_GAP_S, 1, 2 * VISIT_GAP_S + 1])
    log, _ = read(tmp_path, VIEWS.assign(timestamp=times))
    assert shown(log, "session_id") == [0, 0, 1, 0, 0] and shown(log, "position") == [0, 1, 0, 0, 1]


def test_visits_end_where_the_session_id_changes_and_only_there(tmp_path):
    views = pd.DataFrame({"user_id": [1, 1, 1, 1, 2, 2], "item_id": 5, "timestamp": [0, 9000, 9001, 9002, 0, 1]})
    for ids in (["x", "x", "y", "x", "x", "z"], [7, 7, 3, 7, 7, 1]):
        log, _ = read(tmp_path, views.assign(session_id=ids))
        assert shown(log, "session_id") == [0, 0, 1, 2, 0, 1]
    message = r"'session_id' is empty in 1 row\(s\), first row 2; fill it, or leave the column out"
    refused(tmp_path, message, views.assign(session_id=[7, 7, None, 7, 7, 1]))


def test_without_behaviours_what_was_examined_was_clicked(tmp_path):
    log, _ = read(tmp_path)
    assert shown(log, "click") == [1] * 5 and log.behaviours.sum() == 5 and all(shown(log, "examined"))
    assert np.isnan(log.propensity).all() and not log.watch_s.any()
    log, _ = read(tmp_path, VIEWS.assign(examined=[0, 1, 1, 1, 0]))
    assert shown(log, "click") == [1, 0, 0, 1, 1] and shown(log, "examined") == [True, False, False, True, True]


def test_empty_cells_are_unknown(tmp_path):
    empty = [None, 1, 0, None, None]
    for suffix in (".csv", ".parquet"):
        log, _ = read(tmp_path, VIEWS.assign(like=empty, examined=empty, watch_s=empty, duration_s=1), suffix=suffix)
        assert shown(log, "like") == [0, 0, 0, 0, 1] and shown(log, "watch_s") == [0, 0, 0, 0, 1]
        assert shown(log, "examined") == [False, True, True, True, True]


def test_columns_as_other_libraries_write_them(tmp_path):
    views = VIEWS.astype("Int64").assign(
        item_id=pd.Categorical(["c", "a", "b", "a", "a"]),
        like=pd.array([True, None, False, True, False], dtype="boolean"),
        click=pd.Categorical([1, 0, 1, 0, 0]),
    )
    log, catalog = read(tmp_path, views, suffix=".parquet")
    assert log.user_ids_U.dtype == np.int64 and catalog.raw_ids_I.tolist() == ["a", "b", "c"]
    assert [item for _, item, _ in exposures(log)] == [1, 2, 0, 0, 0]
    assert shown(log, "like") == [0, 1, 0, 1, 0] and shown(log, "click") == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("column", "bad", "message"),
    [
        ("click", 2, "is neither 0 nor 1 in 2 row.s., first row 0; write 0/1"),
        ("hate", 0.5, "is neither 0 nor 1"),
        ("like", "yes", "is not a finite number"),
        ("examined", -1, "is neither 0 nor 1"),
        ("watch_s", -0.1, "is negative in 2 row.s., first row 0; write seconds"),
        ("watch_s", float("inf"), "is not a finite number in 2 row.s., first row 0; write numbers"),
        ("watch_s", "long", "is not a finite number"),
        ("propensity", 0, r"is outside \(0, 1\] in 2 row.s., first row 0; leave unknown ones empty"),
        ("propensity", 1.01, r"is outside \(0, 1\]"),
        ("propensity", float("-inf"), "is not a finite number"),
        ("duration_s", float("inf"), "is not a finite number"),
    ],
)
def test_a_bad_cell_is_refused_with_its_row_in_the_file(tmp_path, column, bad, message):
    # Sorted by time the bad rows are the last, 2 before 0.
    views = pd.DataFrame({"user_id": 1, "item_id": 5, "timestamp": [9, 0, 8, 1], "duration_s": 1})
    refused(tmp_path, f"column '{column}' {message}", views.assign(**{column: [bad, 1, bad, 1]}))


def test_what_was_not_examined_has_no_behaviour(tmp_path):
    views = VIEWS.assign(examined=[1, 0, 1, 0, 1], click=[0, 0, 1, 0, 1], like=[1, 0, 1, 1, 0])
    refused(tmp_path, r"'like' is 1 where examined is 0 in 1 row\(s\), first row 3; set examined to 1 there", views)


def test_durations_of_unknown_unit_are_refused(tmp_path):
    views = VIEWS.assign(duration_s=9, watch_s=pd.to_timedelta([1, 2, None, 4, 5], unit="s"))
    refused(tmp_path, r"'watch_s' is not a finite number in 4 row\(s\), first row 0", views, suffix=".parquet")


def test_ids_are_integers_or_text(tmp_path):
    for ids, expected in (
        ([10, 9, 2**63 - 1, 9, 9], [9, 10, 2**63 - 1]),
        # Hashes of 64 bits do not fit and must not wrap around.
        ([10, 9, 2**64 - 1, 9, 9], ["10", str(2**64 - 1), "9"]),
        ([10, "b", 9, "b", "b"], ["10", "9", "b"]),
        (["x1", "ü", "x01", "ü", "ü"], ["x01", "x1", "ü"]),
    ):
        log, catalog = read(tmp_path, VIEWS.assign(item_id=ids, user_id=ids))
        assert catalog.raw_ids_I.tolist() == expected and catalog.raw_ids_I.dtype.kind in "iU"
        assert sorted(log.user_ids_U.tolist()) == sorted(expected)
        ids_as_read = [type(expected[0])(i) for i in ids]
        assert [expected[i] for user, i, _ in exposures(log)] == [user for user, _, _ in exposures(log)]
        assert log.user_ids_U.tolist() == list(dict.fromkeys(ids_as_read))
    small = VIEWS.astype({"item_id": np.uint64, "user_id": np.int8})
    log, catalog = read(tmp_path, small, suffix=".parquet")
    assert catalog.raw_ids_I.dtype == log.user_ids_U.dtype == np.int64


def test_lengths_come_from_items_then_events_then_the_median(tmp_path):
    views = VIEWS.assign(duration_s=[0, 4, None, 6, 5], watch_s=1)
    assert read(tmp_path, views)[1].duration_s_I.tolist() == [6, 6, 6]
    assert read(tmp_path, views, ITEMS)[1].duration_s_I.tolist() == [6, 6, 6, 6]
    items = ITEMS.assign(duration_s=[10, -1, 30, 100])
    assert read(tmp_path, views, items)[1].duration_s_I.tolist() == [10, 30, 30, 100]
    assert read(tmp_path)[1].duration_s_I.tolist() == [1, 1, 1]
    refused(tmp_path, "has watch_s but no duration_s.*; map duration_s in the log or items", VIEWS.assign(watch_s=1))


def test_topics_creators_and_uploads_of_items(tmp_path):
    items = ITEMS.assign(topic=["news", None, "art", "news"], creator=[70, 5, 70, None])
    _, catalog = read(tmp_path, items=items.assign(upload_time=["2022-04-30", None, "2022-04-30T12:00", "?"]))
    assert catalog.topic_I.tolist() == [1, -1, 0, 1] and catalog.creator_I.tolist() == [1, 0, 1, -1]
    # The log's first moment, where unknown.
    assert (catalog.upload_s_I - MAY_S).tolist() == [-86400, 0, -43200, 0]


@pytest.mark.parametrize(
    ("column", "bad", "message"),
    [
        ("embedding_1", None, "is NaN in 1 row.s., first row 2; drop or impute those items"),
        ("embedding_1", float("inf"), "is not a finite number in 1 row.s., first row 2"),
        ("embedding_1", "much", "is not a finite number"),
        ("price", float("-inf"), "is not a finite number"),
        ("upload_time", float("inf"), "is not a finite number"),
        ("duration_s", float("inf"), "is not a finite number"),
        ("duration_s", "long", "is not a finite number"),
    ],
)
def test_a_bad_cell_of_an_item_is_refused(tmp_path, column, bad, message):
    items = ITEMS.assign(embedding_0=1.0, **{column: [1.0, 2.0, bad, 4.0]})
    refused(tmp_path, f"column '{column}' {message}", items=items, about="items")


def test_given_embeddings_are_the_content(tmp_path):
    items = ITEMS.assign(topic=[1, 2, 1, 2], embedding_b=[1, 2, 3, 4], embedding_a=[0.5, 0, 0, 1], price=[9, 8, 7, 6])
    _, catalog = read(tmp_path, items=items)
    assert catalog.content_IE.dtype == np.float32
    assert catalog.content_IE.tolist() == [[1, 0.5], [2, 0], [3, 0], [4, 1]]


def test_attributes_become_embeddings_that_liken_what_shares_them(tmp_path):
    rng = np.random.default_rng(0)
    items = pd.DataFrame({"item_id": range(40), "topic": np.arange(40) % 2, "price": rng.normal(size=40)})
    items = items.assign(mood=[f"so {'good' if i % 4 < 2 else 'bad'}" for i in range(40)])
    items.loc[7, ["price", "mood"]] = None
    views = VIEWS.assign(item_id=[3, 1, 2, 1, 1])
    content = read(tmp_path, views, items)[1].content_IE
    assert content.shape == (40, 64) and np.isfinite(content).all()
    alike, sign = content @ content.T, np.arange(40) % 4
    same = (sign[:, None] == sign) & ~np.eye(40, dtype=bool)
    neither = (sign[:, None] - sign) % 4 == 2  # the same topic and the other mood, against both the same
    assert alike[same].mean() > alike[neither].mean() + 0.3
    # Ids and upload times are no attributes, and neither is what the users did.
    other = items.assign(upload_time=rng.random(40))
    np.testing.assert_array_equal(read(tmp_path, views.assign(like=1), other)[1].content_IE, content)


def test_numbers_of_topics_and_creators_are_names(tmp_path):
    def alike(topics):
        items = pd.DataFrame({"item_id": [10, 20, 30, 40, 50, 60], "topic": topics, "price": [3, 1, 4, 1, 5, 9]})
        content = read(tmp_path, items=items)[1].content_IE
        return content @ content.T

    np.testing.assert_allclose(alike([1, 2, 3, 1, 2, 3]), alike([900, 1, 5, 900, 1, 5]), atol=1e-5)


def random_views():
    rng = np.random.default_rng(0)
    return pd.DataFrame({"user_id": np.arange(200) % 20, "item_id": rng.integers(0, 8, 200), "timestamp": range(200)})


@pytest.mark.parametrize("columns", [{}, {"topic": 1}, {"duration_s": range(1, 10)}, {"title": list("abcdefghi")}])
def test_items_that_nothing_tells_apart_are_known_by_who_saw_them(tmp_path, columns):
    log, catalog = read(tmp_path, random_views(), pd.DataFrame({"item_id": range(9)}).assign(**columns))
    expected = collaborative_embeddings(log, 9, 64, before_s=default_cutoff_s(log))
    np.testing.assert_array_equal(catalog.content_IE, expected)
    assert catalog.content_IE[:8].any(axis=1).all() and not catalog.content_IE[8].any()


def test_without_items_content_learns_from_the_first_four_fifths_alone(tmp_path):
    views, late = random_views(), random_views()
    late.loc[160:, "item_id"] = (late.loc[160:, "item_id"] + 1) % 8
    early = views.assign(item_id=views["item_id"].where(views.index != 20, (views["item_id"] + 1) % 8))
    one, same, other = (read(tmp_path, v)[1].content_IE for v in (views, late, early))
    np.testing.assert_array_equal(one, same)
    assert one.any() and not np.array_equal(one, other)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_table_of_a_row_or_two_is_read(tmp_path, rows):
    log, catalog = read(tmp_path, VIEWS.iloc[:rows])
    assert log.num_users == catalog.num_items == rows and np.isfinite(catalog.content_IE).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "cannot be read as a table .*; give CSV, JSON lines or parquet"),
        ("empty.parquet", b"", "cannot be read as a table"),
        ("header.csv", b"user_id,item_id\n", "the file has no rows; give one with at least one event"),
        ("prose.csv", b"It was a dark night.\nNobody slept.\n", r"'user_id' is missing; the file has \['It was a dark"),
        ("page.csv", b"<html>\n<p>a, b</p>\n", "cannot be read as a table"),
        ("ragged.csv", b"user_id,item_id\n1,2\n3,4,5\n", "cannot be read as a table .*line 3"),
        # Columns would be taken for each other's.
        ("long.csv", b"user_id,item_id\n1,2,5\n3,4,5\n", "cannot be read as a table .*[Ll]ength of header"),
        ("noise.csv", bytes(range(128, 256)), "cannot be read as a table .*utf-8"),
        ("text.parquet", b"user_id,item_id\n1,2\n", "cannot be read as a table"),
        ("text.csv.gz", b"user_id,item_id\n1,2\n", "cannot be read as a table"),
        ("text.csv.xz", b"user_id,item_id\n1,2\n", "cannot be read as a table"),
        ("text.csv.zip", b"user_id,item_id\n1,2\n", "cannot be read as a table"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    for call in (lambda: read_table(path, {}), lambda: read_table(written(tmp_path / "views.csv", VIEWS), {}, path)):
        with pytest.raises(ValueError, match=message.replace("user_id", "(user|item)_id")) as error:
            call()
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_broken_archive_is_refused(tmp_path):
    csv = pd.DataFrame({"user_id": range(2000), "item_id": np.arange(2000) * 7919 % 1000}).to_csv(index=False).encode()
    parquet = written(tmp_path / "whole.parquet", VIEWS).read_bytes()
    for name, whole in (("a.csv.gz", gzip.compress(csv)), ("a.csv.xz", lzma.compress(csv)), ("a.parquet", parquet)):
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes(255 - b for b in whole[middle : middle + 400]) + whole[middle + 400 :]
        for broken in (whole[:-10], whole[:middle], flipped):
            (tmp_path / name).write_bytes(broken)
            with pytest.raises(ValueError, match="cannot be read as a table") as error:
                read_table(tmp_path / name, {})
            assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


def test_a_comma_after_every_row_shifts_nothing(tmp_path):
    (tmp_path / "views.csv").write_text("user_id,item_id,like\n1,2,0,\n3,4,1,\n")
    log, catalog = read_table(tmp_path / "views.csv", {})
    assert log.user_ids_U.tolist() == [1, 3] and catalog.raw_ids_I.tolist() == [2, 4] and shown(log, "like") == [0, 1]


def test_a_log_without_rows_is_refused(tmp_path):
    for suffix in SUFFIXES:
        refused(tmp_path, "the file has no rows", VIEWS.iloc[:0], suffix=suffix)
        refused(tmp_path, "the file has no rows", items=ITEMS.iloc[:0], suffix=suffix, about="items")


def test_load_data_reads_a_file_with_map_and_items(tmp_path):
    views = written(tmp_path / "views.csv", VIEWS.rename(columns={"user_id": "who"}))
    items = written(tmp_path / "items.csv", ITEMS)
    assert_same(load_data(str(views), {"user_id": "who"}, str(items)), read_table(views, {"user_id": "who"}, items))
    assert_same(load_data(written(views, VIEWS)), read_table(views, {}))


def test_load_data_reads_feedgyms_own_folder(tmp_path):
    log, catalog = read(tmp_path, items=ITEMS)
    write_log(log, tmp_path / "events.parquet")
    with pytest.raises(ValueError, match=r"catalog.parquet: no such file"):
        load_data(tmp_path)
    write_catalog(catalog, tmp_path / "catalog.parquet")
    assert_same(load_data(tmp_path), (log, catalog))
    hashed = {s: ReadOptions(users=0.5, seed=s).chosen(pd.Series([9, 4])).tolist() for s in range(20)}
    one, none = (next(s for s, chosen in hashed.items() if chosen == c) for c in ([False, True], [False, False]))
    some, _ = load_data(tmp_path, options=ReadOptions(users=0.5, seed=one))
    assert some.user_ids_U.tolist() == [4]
    with pytest.raises(ValueError, match=r"none of 2 users falls into that share; raise it"):
        load_data(tmp_path, options=ReadOptions(users=0.5, seed=none))
    with pytest.raises(ValueError, match="feedgym's own logs are read as they are, and core is 2; leave it 1"):
        load_data(tmp_path, options=ReadOptions(core=2))
    for given_ in ({"column_map": {"user_id": "who"}}, {"items": tmp_path / "items.csv"}):
        with pytest.raises(ValueError, match="is a folder, but column_map and items describe a single table"):
            load_data(tmp_path, **given_)


def test_load_data_knows_kuairands_folder(tmp_path, monkeypatch):
    (tmp_path / "log_standard_1.csv").touch()
    (tmp_path / "events.parquet").touch()
    known = read(tmp_path)
    monkeypatch.setattr(
        "feedgym.data.public.kuairand.read_kuairand", lambda path, options: known if path == tmp_path else None
    )
    with pytest.raises(ValueError, match=r"catalog.parquet: no such file"):
        load_data(tmp_path)  # a log without videos is not KuaiRand's
    (tmp_path / "video_features_basic_1.csv").touch()
    assert load_data(str(tmp_path)) == known


def test_load_data_names_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv: no such file or folder; check the path"):
        load_data(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"holds no files that feedgym knows \(KuaiRand's log_standard_\*;"):
        load_data(tmp_path)
    for call in ((tmp_path, {}), (written(tmp_path / "views.csv", VIEWS), {}, tmp_path / "none.csv")):
        with pytest.raises(ValueError, match="no such file; check the path"):
            read_table(*call)


@pytest.mark.parametrize("name", ["user_id", "item_id", "session_id", "timestamp", "like", "profile_town"])
@pytest.mark.parametrize(("value", "what"), [([1, 2], "lists"), ({"a": 1}, "structures"), (b"\xff", "bytes")])
def test_columns_of_several_values_are_refused(tmp_path, name, value, what):
    views = VIEWS.assign(**{name: [value] * 5})
    refused(
        tmp_path, f"column '{name}' holds {what} and must hold one value per row; convert it", views, suffix=".parquet"
    )


def test_items_columns_of_several_values_are_refused_where_they_are_read(tmp_path):
    for name in ("item_id", "topic", "genres"):
        items = ITEMS.assign(**{name: [["a", "b"]] * 4})
        refused(tmp_path, f"column '{name}' holds lists", items=items, suffix=".parquet", about="items")
    items = ITEMS.assign(genres=[["a"]] * 4, embedding_0=1.0)
    assert read(tmp_path, items=items, suffix=".parquet")[1].content_IE.tolist() == [[1.0]] * 4

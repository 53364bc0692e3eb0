import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_readers import VIEWS, assert_same, exposures, read, shown, written

from feedgym.cli import main
from feedgym.data.names import UNITS, understood
from feedgym.data.readers import find_data, load_data
from feedgym.data.rows import separator_of
from feedgym.data.sources import ReadOptions
from feedgym.data.table import EVENT_COLUMNS, read_table

QUICK = ReadOptions(text="off")
KUAISHOU = VIEWS.rename(columns={"item_id": "video_id"}).assign(
    time_ms=VIEWS["timestamp"] * 1000, is_click=[1, 0, 1, 0, 1], play_time_ms=[1500, 0, 3, 4, 5], duration_ms=2000
)
KUAISHOU = KUAISHOU.drop(columns="timestamp")
PLAIN = VIEWS.assign(click=[1, 0, 1, 0, 1], watch_s=[1.5, 0, 0.003, 0.004, 0.005], duration_s=2.0)


def test_usual_names_are_understood_and_told(tmp_path):
    path = written(tmp_path / "log.csv", KUAISHOU)
    told = (
        "log.csv: understood by their names: item_id=video_id timestamp=time_ms:ms duration_s=duration_ms:ms "
        "watch_s=play_time_ms:ms click=is_click (--columns NAME=COLUMN takes another, NAME=- none)"
    )
    assert find_data(path).says == (told,) and not find_data(path).warns
    assert_same(read_table(path, {}), read(tmp_path, PLAIN))
    assert_same(read_table(path, {"timestamp": "time_ms:ms", "watch_s": "play_time_ms:ms"}), read(tmp_path, PLAIN))
    for column in ("asin", "movieId", "vid", "Item Id", "iid"):
        named = VIEWS.rename(columns={"item_id": column, "user_id": "userId", "timestamp": "unixReviewTime"})
        assert_same(read_table(written(path, named), {}), read(tmp_path, VIEWS))


def test_what_is_left_out_or_mapped_is_not_guessed(tmp_path):
    path = written(tmp_path / "log.csv", KUAISHOU.assign(seen_first=[0, 1, 0, 1, 0]))
    log, _ = load_data(path, {"click": "-", "like": "seen_first", "watch_s": "-"})
    assert not any(shown(log, "click")) and shown(log, "like") == [0, 0, 0, 1, 1] and not log.watch_s.any()
    assert not find_data(path, {"click": "-", "watch_s": "-"}).warns
    path = written(path, VIEWS.assign(like=1))
    assert shown(load_data(path, {"like": "-"})[0], "click") == [1] * 5
    assert "columns that are not read: like" in " ".join(find_data(path, {"like": "-"}).says)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"video_id": 1, "movieId": 1}, r"item_id may be any of video_id, movieId; name one, e.g. --columns item_id="),
        ({"video_id": 1, "time": 5, "time_ms": 5}, r"timestamp may be any of time, time_ms; name one, .*timestamp=-\."),
        ({"item_id": 1, "liked": 0, "is_like": 0}, r"like may be any of liked, is_like; name one"),
    ],
)
def test_ambiguous_names_are_refused_in_one_line(tmp_path, columns, message):
    path = written(tmp_path / "log.csv", pd.DataFrame({"uid": [1, 2], **columns}))
    with pytest.raises(ValueError, match=message) as error:
        find_data(path)
    assert "\n" not in str(error.value)
    name = str(error.value).split(": ")[1].split()[0]
    find_data(path, {name: [*columns][-1]})  # a map decides


def test_feedgyms_own_names_win_over_usual_ones(tmp_path):
    path = written(tmp_path / "log.csv", VIEWS.assign(video_id=1, time=3, uid=2))
    assert exposures(read_table(path, {})[0]) == exposures(read(tmp_path)[0])
    assert find_data(path).says[0].startswith("log.csv: columns that are not read: video_id, time, uid")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=5), st.sampled_from(sorted(UNITS)))
def test_units_say_the_same_as_seconds(seconds, unit):
    columns = understood("x", ["t"], {"watch_s": f"t:{unit}"}, EVENT_COLUMNS)
    table = pd.DataFrame({"watch_s": np.array(seconds) * UNITS[unit]})
    np.testing.assert_allclose(columns.in_seconds("x", table, {"watch_s"})["watch_s"], seconds, rtol=1e-12)


@pytest.mark.parametrize(
    ("column_map", "message"),
    [
        ({"timestamp": "when:weeks"}, r"names an unknown unit; write one of ns, us, ms, s, min, h\."),
        ({"like": "when:ms"}, r"like=when:ms names a unit, but timestamp, .* alone have one; drop it"),
        ({"timestamp": "when:s"}, r"column 'timestamp' is after the year 5000 in s in 5 row"),
        ({"timestamp": "when:h"}, r"column 'timestamp' is after the year 5000 in h in 5 row"),
        ({"timestamp": "never:ms"}, r"column 'never' \(for timestamp\) is missing; there are \["),
    ],
)
def test_units_that_make_no_sense_are_refused(tmp_path, column_map, message):
    views = VIEWS.assign(timestamp=VIEWS["timestamp"] * 1000)
    path = written(tmp_path / "log.csv", views.rename(columns={"timestamp": "when"}))
    with pytest.raises(ValueError, match=message) as error:
        load_data(path, column_map)
    assert "\n" not in str(error.value)


def test_a_unit_is_for_small_numbers_too_and_a_colon_may_be_in_a_name(tmp_path):
    views = VIEWS.assign(timestamp=[60_000, 5_000, 30_000, 0, 90_000]).rename(columns={"timestamp": "t:ms"})
    log, _ = load_data(written(tmp_path / "log.csv", views), {"timestamp": "t:ms:ms"})
    assert [s + 1651363200 for _, _, s in exposures(log)] == [30, 60, 90, 0, 5]
    log, _ = load_data(tmp_path / "log.csv", {"timestamp": "t:ms"})
    assert [s + 1651363200 for _, _, s in exposures(log)] == [30_000, 60_000, 90_000, 0, 5_000]


def test_ratings_become_behaviours_by_the_rule(tmp_path):
    path = written(tmp_path / "log.csv", VIEWS.assign(stars=[5, 2, 3, 4, 1]))
    assert any("4 or more a like" in line for line in find_data(path).says)
    log, _ = load_data(path)
    assert shown(log, "click") == [1] * 5 and shown(log, "like") == [0, 1, 0, 1, 0]
    assert shown(log, "hate") == [0, 0, 1, 0, 1]
    both = written(path, VIEWS.assign(rating=5, like=0))
    assert not any(shown(load_data(both)[0], "like"))  # the own column says more
    assert find_data(both).warns[0].startswith("log.csv: column 'rating' is not read; make columns of 0 and 1")
    with pytest.raises(ValueError, match=r"has rating and like, which say the same; leave one out: --columns rating=-"):
        load_data(both, {"rating": "rating"})
    for bad, message in ((9, r"'rating' is empty or outside 0 to 5 in 5 row"), (1, "is never above 1, so it is no sc")):
        with pytest.raises(ValueError, match=message):
            load_data(written(path, VIEWS.assign(rating=bad)))
        assert shown(load_data(path, {"rating": "-"})[0], "click") == [1] * 5


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.txt", "log.csv.gz"])
def test_the_separator_is_detected(tmp_path, name, separator):
    views = VIEWS.assign(title="a, b; c|d").rename(columns={"title": "title, or words"})
    views.to_csv(tmp_path / name, sep=separator, index=False)
    assert separator_of(tmp_path / name) == separator
    assert_same(load_data(tmp_path / name), read(tmp_path))


def test_json_lines_and_folders_of_parquet_are_tables(tmp_path):
    for name in ("log.jsonl", "log.json", "log.jsonl.gz"):
        VIEWS.to_json(tmp_path / name, orient="records", lines=True)
        assert_same(load_data(tmp_path / name, options=QUICK), read(tmp_path, options=QUICK))
    rows = [{"uid": "007", "vid": 1}, {"uid": "7", "vid": 2, "is_like": 1}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    log, _ = load_data(tmp_path / "log.jsonl", options=QUICK)
    assert log.user_ids_U.tolist() == ["007", "7"] and shown(log, "like") == [0, 1]
    for part, at in (("day=1", slice(0, 2)), ("day=2", slice(2, 5))):
        (tmp_path / "parts" / part).mkdir(parents=True)
        VIEWS.iloc[at].to_parquet(tmp_path / "parts" / part / "0.parquet")
    source = find_data(tmp_path / "parts")
    assert len(source.files) == 2 and "columns that are not read: day" in source.says[0]
    assert_same(source.read(QUICK), read(tmp_path, options=QUICK))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({str(user): [1, 2] for user in range(9)}), r"it maps names to lists or objects, and has no values"),
        (json.dumps([{"user_id": 1}]), "line 1 is not a JSON object; give one object per line"),
        (json.dumps({"user_id": 1}, indent=1), r"line 1 cannot be read \(Expecting"),
        ('{"user_id": [1], "item_id": 2}\n', "column 'user_id' holds lists"),
    ],
)
def test_json_that_is_no_table_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "log.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_data(tmp_path / "log.json", options=QUICK)
    assert "\n" not in str(error.value)


def test_a_table_of_many_columns_names_a_few(tmp_path):
    written(tmp_path / "log.csv", pd.DataFrame({f"c{i}": [1] for i in range(3000)}))
    with pytest.raises(
        ValueError, match=r"'user_id' is missing; the file has \[.*'c19'\] and 2980 more: name"
    ) as error:
        load_data(tmp_path / "log.csv")
    assert len(str(error.value)) < 600


def test_items_are_understood_too(tmp_path):
    items = pd.DataFrame({"video_id": [10, 20, 30], "video_duration_ms": [1000, 2000, 3000], "text": "a"})
    views, items = written(tmp_path / "log.csv", KUAISHOU), written(tmp_path / "items.csv", items)
    source = find_data(views, None, items)
    assert any(line.startswith("items.csv: understood by their names: item_id=video_id") for line in source.says)
    _, catalog = source.read(QUICK)
    assert catalog.duration_s_I.tolist() == [1, 2, 3]


def test_the_command_says_what_it_understood(tmp_path, capsys):
    path = written(tmp_path / "log.tsv", KUAISHOU.drop(columns="time_ms").assign(t=[60, 5, 30, 0, 90]))
    main(["data", "inspect", str(path), "--text", "off", "--columns", "timestamp=t:min"])
    told = " ".join(capsys.readouterr().out.split())
    assert "log.tsv: understood by their names: item_id=video_id" in told and "not read" not in told

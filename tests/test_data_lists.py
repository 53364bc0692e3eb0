import json

import numpy as np
import pandas as pd
import pytest

from feedgym.data.events import BEHAVIOURS, Event
from feedgym.data.readers import find_data, load_data
from feedgym.data.sources import ReadOptions

QUICK = ReadOptions(text="off", ties="file")
LISTS = "7 3 1 2\n4 2 3\n"
PAIRS = "7 3\n7 1\n7 2\n4 2\n4 3\n"


def events(log):
    user = np.repeat(log.user_ids_U, np.diff(log.offsets_U1))
    shown = log.event == Event.IMPRESSION
    return list(zip(user[shown].tolist(), log.item_id[shown].tolist(), log.timestamp_s[shown].tolist(), strict=True))


@pytest.mark.parametrize("text", [LISTS, PAIRS, PAIRS.replace(" ", "\t")])
def test_lists_and_pairs_are_the_same_log_without_times(tmp_path, text):
    (tmp_path / "Beauty.txt").write_text(text)
    for path in (tmp_path, tmp_path / "Beauty.txt"):
        source = find_data(path)
        assert source.name == "lists of items" and any("only the order" in rule for rule in source.says)
        log, catalog = source.read(QUICK)
        assert not log.has_time and catalog.raw_ids_I.tolist() == [1, 2, 3]
        assert events(log) == [(7, 2, 0), (7, 0, 1), (7, 1, 2), (4, 1, 0), (4, 2, 1)]
        assert catalog.text_I is None and "without last events" in catalog.content_from


def test_maps_and_a_table_of_items_give_ids_and_words(tmp_path):
    (tmp_path / "Beauty.txt").write_text(LISTS)
    (tmp_path / "datamaps.json").write_text(json.dumps({"id2item": {"1": "B1", "2": "B2", "3": "B3", "4": "B4"}}))
    items = pd.DataFrame({"item_id": ["B3", "B1", "B2", "B9"], "name": ["soap", "brush", None, "?"], "brand": "Acme"})
    items.to_csv(tmp_path / "items.csv", index=False)
    log, catalog = load_data(tmp_path, items=tmp_path / "items.csv", options=QUICK)
    assert catalog.raw_ids_I.tolist() == ["B1", "B2", "B3"]
    assert catalog.text_I.tolist() == ["brush. Acme", "Acme", "soap. Acme"]
    assert [i for _, i, _ in events(log)] == [2, 0, 1, 1, 2]
    items.assign(item_id=["C1", "C2", "C3", "C4"]).to_csv(tmp_path / "items.csv", index=False)
    with pytest.raises(ValueError, match="the items' table holds none of its items; give them the same ids"):
        load_data(tmp_path, items=tmp_path / "items.csv", options=QUICK)
    (tmp_path / "datamaps.json").write_text(json.dumps({"id2item": {"1": "B1", "2": "B2"}}))
    with pytest.raises(ValueError, match=r"column 'item_id' has an id that datamaps.json lacks in 2 row"):
        load_data(tmp_path, options=QUICK)
    (tmp_path / "datamaps.json").write_text("{}")
    with pytest.raises(ValueError, match=r"datamaps.json: has no 'id2item'"):
        load_data(tmp_path, options=QUICK)


@pytest.mark.parametrize(("line", "word"), [("9\n", "line 4"), ("9 one\n", "line 4")])
def test_a_line_that_is_no_list_is_named(tmp_path, line, word):
    (tmp_path / "Beauty.txt").write_text("1 2 3\n2 3 4\n3 4 5\n" + line)
    with pytest.raises(ValueError, match=rf"Beauty.txt: {word} is not a list of whole numbers") as error:
        load_data(tmp_path, options=QUICK)
    assert "\n" not in str(error.value)


def test_one_list_must_be_chosen_and_prose_is_none(tmp_path):
    (tmp_path / "README.txt").write_text("Read me\nfirst\n")
    (tmp_path / "Beauty.txt").write_text(LISTS)
    assert find_data(tmp_path).files[0].name == "Beauty.txt"
    (tmp_path / "Toys.txt").write_text(LISTS)
    with pytest.raises(ValueError, match=r"several lists of items \(.*\); give one file"):
        find_data(tmp_path)
    (tmp_path / "sas_to_original_users.txt").write_text("1 7\n2 4\n")  # MovieLens's, and a list by its looks
    assert find_data(tmp_path / "Toys.txt").files[0].name == "Toys.txt"


INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n5\t11\t3\t20\n5\t12\t5\t10\n6\t11\t1\t30\n"
ITEM = (
    "item_id:token\ttitle:token_seq\tyear:token\tclass:token_seq\n"
    "11\tToy Story\t1995\tComedy Drama\n12\tFargo\t\tCrime\n"
)
USER = "user_id:token\tage:token\tgender:token\tzip:token\n" + "".join(
    f"{u}\t{20 + u % 3}\t{'FM'[u % 2]}\t{u}\n" for u in range(80)
)


def recbole(folder, **files):
    for kind, text in ({"inter": INTER, "item": ITEM, "user": USER} | files).items():
        (folder / f"ml.{kind}").write_text(text)
    return folder


def test_recboles_files(tmp_path):
    log, catalog = load_data(recbole(tmp_path), options=QUICK)
    assert events(log) == [(5, 1, 10), (5, 0, 20), (6, 0, 30)] and log.has_time
    assert [
        log.behaviours[log.event == Event.IMPRESSION][:, BEHAVIOURS.index(n)].tolist() for n in ("like", "hate")
    ] == [
        [1, 0, 0],
        [0, 0, 1],
    ]
    assert catalog.text_I.tolist() == ["Toy Story; 1995; Comedy Drama", "Fargo; Crime"]
    assert catalog.topic_I.tolist() == [0, 1]
    assert log.profile_names == ("age", "gender")  # what tells 80 users apart is no profile


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"inter": INTER.replace("user_id", "uid")}, r"ml.inter: column 'user_id' is missing; the file has \['uid'"),
        ({"inter": INTER.replace("\t3\t", "\t\t")}, r"ml.inter: column 'rating' is empty in 1 row.*first row 0"),
        ({"inter": INTER.replace("\t30", "\tnever")}, r"column 'timestamp' is not a finite number in 1 row.*row 2"),
        ({"item": ITEM.replace("item_id", "iid")}, r"ml.item: column 'item_id' is missing"),
    ],
)
def test_broken_recbole_files_are_refused(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        load_data(recbole(tmp_path, **files), options=QUICK)


def test_ids_of_recboles_files_are_words_and_other_columns_are_told(tmp_path):
    (tmp_path / "x.inter").write_text(
        "user_id:token\titem_id:token\tlabel:float\tclick:float\n007\t01\t1\t0\n7\t1\t0\t0\n"
    )
    source = find_data(tmp_path)
    assert any("columns that are not read: label, click" in line for line in source.says)
    assert [line.split("'")[1] for line in source.warns] == ["label", "click"]
    log, catalog = source.read(QUICK)
    assert log.user_ids_U.tolist() == ["007", "7"] and catalog.raw_ids_I.tolist() == ["01", "1"]
    # Where all ids are numbers, "011" among the items is still another one than 11.
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\n5\t11\n6\t12\n")
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\n011\tWrong\n11\tRight\n12\tOther\n")
    log, catalog = load_data(tmp_path, options=QUICK)
    assert catalog.raw_ids_I.tolist() == [11, 12] and catalog.text_I.tolist() == ["Right", "Other"]

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_lcrec import lists

from feedgym.cli import main
from feedgym.data.public.targets import together
from feedgym.data.readers import find_data, load_data
from feedgym.data.sources import ReadOptions

QUICK = ReadOptions(text="off")
LISTS = {"A1": [5, 5, 7, 9, 5], "A2": [8, 7]}
COLUMNS = ["user_id", "history_item_title", "item_title", "history_item_id", "item_id", "history_item_sid", "item_sid"]


def rows_of(lists_of, window):
    """A row per target with its history, as MiniOneRec cuts lists into rows."""
    return [
        (user, items[max(at - window, 0) : at], items[at])
        for user, items in lists_of.items()
        for at in range(1, len(items))
    ]


def write_minionerec(path, rows):
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for user, history, item in rows:
            titles, codes = [f'Item "{i}", new' for i in history], [f"<a_{i}><b_0>" for i in history]
            writer.writerow([user, str(titles), f"Item {item}", str(history), item, str(codes), f"<a_{item}><b_0>"])


@pytest.mark.parametrize("window", [2, 50])
def test_minionerecs_csv(tmp_path, window):
    rows = rows_of(LISTS, window)
    for split, part in (("train", rows[:2]), ("valid", rows[2:3]), ("test", rows[3:])):
        write_minionerec(tmp_path / split / "Games_5_2016-10-2018-11.csv", part)
    (tmp_path / "info").mkdir()
    (tmp_path / "info" / "Games_5_2016-10-2018-11.txt").write_text("<a_5><b_0>\tItem 5\t5\n")
    for path in (tmp_path, tmp_path / "test" / "Games_5_2016-10-2018-11.csv"):
        source = find_data(path)
        assert source.name == "MiniOneRec's CSV" and len(source.files) == 3
        log, catalog = source.read(QUICK)
        assert lists(log, catalog) == LISTS and not log.has_time
        # Nobody's target is item 8, so its title is that of the histories.
        assert catalog.text_I.tolist() == ["Item 5", "Item 7", 'Item "8", new', "Item 9"]


def test_recboles_benchmark_files(tmp_path):
    rows = rows_of(LISTS, 3)
    for split, part in (("train", rows[:3]), ("test", rows[3:])):
        lines = [f"{user}\t{' '.join(map(str, history))}\t{item}\n" for user, history, item in part]
        header = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
        (tmp_path / f"Games.{split}.inter").write_text(header + "".join(lines))
    for path in (tmp_path, tmp_path / "Games.train.inter"):
        source = find_data(path)
        assert source.name == "RecBole's benchmark files" and len(source.files) == 2
        assert lists(*source.read(QUICK)) == LISTS


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from("ab"), min_size=2, max_size=9), max_size=4), st.integers(1, 4), st.randoms())
def test_rows_give_the_lists_back_whatever_the_window(sequences, window, random):
    whole = {str(user): items for user, items in enumerate(sequences)}
    rows = rows_of(whole, window)
    mixed = [row for _, row in sorted(zip([random.random() for _ in rows], rows, strict=True), key=lambda x: x[0])]
    by_user = {user: iter([row for row in rows if row[0] == user]) for user in whole}
    assert together("x", [next(by_user[user]) for user, _, _ in mixed]) == whole


def test_rows_that_are_missing_or_there_twice(tmp_path):
    rows = rows_of({"A": list("abcdefgh")}, 3)
    assert together("x", rows + rows[:3]) == {"A": list("abcdefgh")}
    assert together("x", rows[:1] + rows[3:]) == {"A": list("abcdefgh")}
    with pytest.raises(ValueError, match=r"x: the history \['e', 'f', 'g'\] of user 'A' does not continue"):
        together("x", rows[:1] + rows[-1:])
    assert together("x", []) == {} and together("x", [("A", [], "a")]) == {"A": ["a"]}


def test_several_data_sets_and_bad_rows_are_refused(tmp_path):
    write_minionerec(tmp_path / "train" / "Games.csv", rows_of(LISTS, 9))
    write_minionerec(tmp_path / "train" / "Toys.csv", rows_of(LISTS, 9))
    with pytest.raises(ValueError, match=r"several data sets \(\*/Games.csv, \*/Toys.csv\); give one file"):
        find_data(tmp_path)
    path = tmp_path / "train" / "Games.csv"
    assert lists(*load_data(path, options=QUICK)) == LISTS
    path.write_text(path.read_text().replace("[5, 5, 7]", "[5, 5"))
    with pytest.raises(ValueError, match=r"Games.csv: column 'history' is not a list in 1 row\(s\), first row 2"):
        load_data(path, options=QUICK)


def test_the_command_reads_them(tmp_path, capsys):
    write_minionerec(tmp_path / "train.csv", rows_of(LISTS, 9))
    main(["data", "inspect", str(tmp_path / "train.csv"), "--text", "off"])
    told = " ".join(capsys.readouterr().out.split())
    assert "MiniOneRec's CSV" in told and "the rows of 1 file(s) are put together to one list of items per user" in told

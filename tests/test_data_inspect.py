import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from feedgym.cli import MISTAKE, main
from feedgym.data.inspect import inspect_log, inspection_table
from feedgym.data.readers import load_data
from feedgym.data.sources import ReadOptions
from feedgym.data.table import read_table

VIEWS = pd.DataFrame(
    {
        "user_id": [1, 1, 1, 1, 2, 2, 3],
        "item_id": ["a", "b", "a", "c", "a", "b", "a"],
        "timestamp": [1651363200 + s for s in (0, 60, 120, 120, 0, 0, 86400)],
        "like": [1, 0, 0, 0, 1, 0, 0],
        "examined": [1, 1, 1, 1, 1, 1, 0],
        "watch_s": [10, 0, 0, 5, 20, 0, 0],
        "profile_age": ["x", "x", "x", "x", "y", "y", None],
    }
)
ITEMS = pd.DataFrame({"item_id": ["a", "b", "c", "d"], "duration_s": 10, "text": ["one two", None, "three", "one"]})


@pytest.fixture
def folder(tmp_path):
    VIEWS.to_csv(tmp_path / "views.csv", index=False)
    ITEMS.to_csv(tmp_path / "items.csv", index=False)
    return tmp_path


def test_figures_of_a_hand_made_log(folder):
    log, catalog = read_table(folder / "views.csv", {}, folder / "items.csv", ReadOptions(text="tfidf"))
    report = inspect_log(log, catalog)
    assert report["counts"] == {
        "users": 3,
        "items": 4,
        "items that occur": 3,
        "events": 6,
        "shown but not examined": 1,
        "visits": 3,
        "density": 5 / 12,
    }
    assert report["events_per_user"] | {} == {
        "mean": 2,
        **{"0%": 0, "5%": pytest.approx(0.2), "25%": 1, "50%": 2, "75%": 3, "95%": pytest.approx(3.8), "100%": 4},
    }
    assert report["behaviours"]["like"] == pytest.approx(2 / 6) and report["behaviours"]["follow"] == 0
    assert report["time"] == {
        "known": True,
        "days": pytest.approx(120 / 86400),
        "first": "2022-05-01T00:00:00",
        "last": "2022-05-01T00:02:00",
    }
    # User 1's last two events and both of user 2's share a time; both end in a tie.
    assert report["ties"] == {
        "events": 4,
        "share": pytest.approx(4 / 6),
        "users whose last event is tied": 2,
        "share of users": 1,
    }
    assert report["repeats"] == {"events": 1, "share": pytest.approx(1 / 6)}
    # a 3, b 2, c 1, d 0.
    assert report["popularity"]["top 1% of items"] == 0.5 and report["popularity"]["top 50% of items"] == 5 / 6
    assert report["popularity"]["Gini"] == pytest.approx((3 * 3 + 1 * 2 - 1 * 1 - 3 * 0) / (4 * 6))
    assert report["watch"]["median seconds"] == 2.5 and report["watch"]["median share of the item"] == 0.25
    content = report["content"]
    assert content["items with text"] == 3 and content["different texts"] == 3 and content["words, median"] == 1
    assert report["profile"] == {"age": 3}
    json.dumps(report)


def test_an_order_only_log_has_neither_times_nor_ties(tmp_path):
    (tmp_path / "x.txt").write_text("1 1 2 3\n2 2 3\n")
    log, catalog = load_data(tmp_path / "x.txt", options=ReadOptions(text="off"))
    report = inspect_log(log, catalog)
    assert report["time"] == {"known": False} and report["ties"]["events"] == 0
    assert report["watch"] is None


def test_a_log_without_an_examined_event_is_told_too(folder):
    views = VIEWS.assign(examined=0, like=0)
    views.to_csv(folder / "views.csv", index=False)
    log, catalog = read_table(folder / "views.csv", {}, folder / "items.csv", ReadOptions(text="off"))
    report = inspect_log(log, catalog)
    assert report["counts"]["events"] == 0 and np.isnan(report["behaviours"]["like"])
    Console(file=open("/dev/null", "w")).print(inspection_table(report, "x"))  # noqa: SIM115


def test_the_command_says_what_it_found_and_how_it_is_read(folder, capsys):
    (folder / "lists.txt").write_text("1 1 2 3\n2 2 3\n")
    main(["data", "inspect", str(folder / "lists.txt"), "--text", "off"])
    told = " ".join(capsys.readouterr().out.split())
    for part in ("lists of items", "every item is a click", "only the order of events is known", "density"):
        assert part in told
    columns = ["user_id=user_id", "item_id=item_id", "timestamp=timestamp"]
    arguments = [
        "data",
        "inspect",
        str(folder / "views.csv"),
        "--columns",
        *columns,
        "--items",
        str(folder / "items.csv"),
    ]
    main([*arguments, "--text", "tfidf", "--json", "--out", str(folder / "out")])
    report = json.loads(capsys.readouterr().out)
    assert report["warnings"] == []
    assert report["source"] == "a table of events" and report["counts"]["events"] == 6
    log, catalog = load_data(folder / "out")
    assert catalog.text_I.tolist() == ["one two", "", "three", "one"]
    again = inspect_log(log, catalog)
    assert {n: v for n, v in report.items() if n not in ("source", "files", "rules", "warnings")} == json.loads(
        json.dumps(again)
    )


def test_help_and_mistakes_of_the_command(folder, capsys):
    main(["data"])
    assert "feedgym data inspect PATH" in capsys.readouterr().out
    for arguments, message in {
        ("data", "look"): "has no 'look'",
        ("data", "inspect", str(folder)): "holds no files that feedgym knows",
        ("data", "inspect", str(folder / "no.csv")): "no such file or folder",
        ("data", "inspect", str(folder / "views.csv"), "--core", "9"): "no row is left with core 9",
    }.items():
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        assert stop.value.code == MISTAKE and message in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_columns_that_are_not_read_are_listed_and_warned_of(tmp_path, capsys):
    views = VIEWS.drop(columns=["like", "examined"]).assign(clicks=0, score=5, colour="red")
    views.to_csv(tmp_path / "views.csv", index=False)
    main(["data", "inspect", str(tmp_path / "views.csv"), "--text", "off", "--columns", "duration_s=watch_s"])
    told = " ".join(capsys.readouterr().out.split())
    assert "views.csv: columns that are not read: clicks, score, colour" in told
    assert "no column of feedback, so every row that was looked at is a click" in told
    remedy = "map it: --columns click=clicks."
    assert f"column 'clicks' is not read, and every row counts as a click; if it is click, {remedy}" in told
    assert "column 'score' is not read, and every row counts as a click; make columns of 0 and 1" in told
    assert "'colour' is not read" not in told

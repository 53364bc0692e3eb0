import json
import zipfile

import numpy as np
import pytest

from feedgym.cli import main
from feedgym.data.events import Event
from feedgym.data.readers import find_data, load_data
from feedgym.data.sources import ReadOptions

QUICK = ReadOptions(text="off")
INTER = {"0": [12, 7, 12], "1": [9], "2": []}
ITEM = {
    "7": {"title": "Toy <b>Story</b>", "description": "['A film.', 'Old.']", "brand": "", "categories": ""},
    "9": {"title": "Brush", "brand": "Acme", "categories": "Arts, Crafts & Sewing,Painting,Brushes"},
    "12": {"title": "Soap", "description": "x" * 400, "brand": "Acme", "categories": "Beauty"},
    "13": {"title": "Nobody had it"},
}


def written(folder, inter=INTER, item=ITEM, name="Arts"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.inter.json").write_text(json.dumps(inter, indent=4))  # LETTER's are indented
    if item is not None:
        (folder / f"{name}.item.json").write_text(json.dumps(item))
    return folder


def lists(log, catalog):
    """Each user's raw items."""
    user = np.repeat(log.user_ids_U, np.diff(log.offsets_U1))
    shown = log.event == Event.IMPRESSION
    pairs = zip(user[shown].tolist(), catalog.raw_ids_I[log.item_id[shown]].tolist(), strict=True)
    result = {}
    for one, item in pairs:
        result.setdefault(one, []).append(item)
    return result


def test_lists_and_words_are_read(tmp_path):
    folder = written(tmp_path / "Arts")
    (folder / "Arts.index.json").write_text(json.dumps({"7": ["<a_1>", "<b_2>"]}))
    (folder / "Arts.train.inter").write_text("user_id:token\titem_id_list:token_seq\titem_id:token\n0\t12\t7\n")
    with zipfile.ZipFile(tmp_path / "arts.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"Arts/{file.name}")
    for path in (folder, folder / "Arts.inter.json", folder / "Arts.item.json", tmp_path / "arts.zip"):
        source = find_data(path)
        assert source.name == "LC-Rec's files of Arts" and [f.name[5:] for f in source.files] == [
            "inter.json",
            "item.json",
        ]
        log, catalog = source.read(QUICK)
        assert lists(log, catalog) == {0: [12, 7, 12], 1: [9]} and not log.has_time
    assert catalog.text_I.tolist() == [
        "Toy Story. Description: A film.', 'Old.",
        "Brush. Brand: Acme. Categories: Arts, Crafts & Sewing,Painting,Brushes",
        f"Soap. Description: {'x' * 300}. Brand: Acme. Categories: Beauty",
    ]
    assert catalog.topic_I.tolist() == [-1, 1, 0] and catalog.creator_I.tolist() == [-1, 0, 0]


def test_ids_may_be_words_and_items_may_be_titles(tmp_path):
    folder = written(tmp_path, {"A1": ["B07", "7"], "A2": ["7"]}, {"7": "Soap", "B07": "Brush", "B7": "Other"})
    log, catalog = load_data(folder, options=QUICK)
    assert lists(log, catalog) == {"A1": ["B07", "7"], "A2": ["7"]} and catalog.text_I.tolist() == ["Soap", "Brush"]
    (folder / "Arts.item.json").unlink()
    assert load_data(folder, options=QUICK)[1].text_I is None


@pytest.mark.parametrize(
    ("inter", "item", "message"),
    [
        ({"0": 3}, ITEM, r"Arts.inter.json: the entry of user '0' is not a list of items; write"),
        ({"0": [[1]]}, ITEM, r"the entry of user '0' is not a list of items"),
        ({"0": []}, ITEM, r"no user has an item"),
        ([1], ITEM, r"Arts.inter.json: is not a JSON object with an entry per user or item"),
        (INTER, {"x7": {}}, r"Arts.item.json: holds none of the 3 items; take both files of one data set"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, inter, item, message):
    with pytest.raises(ValueError, match=message) as error:
        load_data(written(tmp_path, inter, item), options=QUICK)
    assert "\n" not in str(error.value)


def test_files_that_are_cut_off_and_several_data_sets_are_refused(tmp_path):
    folder = written(tmp_path)
    (folder / "Arts.item.json").write_text('{"7": {"title": ')
    with pytest.raises(ValueError, match=r"Arts.item.json: is not JSON \(.*; fetch the file again") as error:
        load_data(folder, options=QUICK)
    assert "\n" not in str(error.value)
    written(folder, name="Games")
    with pytest.raises(ValueError, match=r"several data sets \(Arts.inter.json, Games.inter.json\); give one file"):
        find_data(folder)
    assert find_data(folder / "Games.inter.json").name == "LC-Rec's files of Games"


def test_the_command_reads_them(tmp_path, capsys):
    main(["data", "inspect", str(written(tmp_path)), "--text", "off"])
    told = " ".join(capsys.readouterr().out.split())
    assert "LC-Rec's files of Arts" in told and "every item is a click" in told and "only the order" in told

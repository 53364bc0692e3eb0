from pathlib import Path

import pytest
from test_data_readers import shown

from feedgym.cli import main
from feedgym.data.public.files import raw_files
from feedgym.data.readers import find_data, load_data
from feedgym.data.sources import ReadOptions

QUICK = ReadOptions(text="off")
TRAIN = "1\tU9\t11/11/2019 9:05:58 AM\tN7 N8\tN1-0 N2-1\n2\tU4\t11/11/2019 12:05:58 PM\t\tN2-0\n"
DEV = "1\tU9\t11/15/2019 12:00:00 AM\tN7\tN3-1 N1-0\n"
NEWS = (
    'N1\tsports\tsoccer\tA "goal\tIt was late.\thttps://x\t[]\t[]\n'
    "N2\tnews\tworld\tA vote\t\thttps://x\t[]\t[]\nN9\tnews\tworld\tUnseen\t\thttps://x\t[]\t[]\n"
)
NEWS_DEV = "N3\tsports\tgolf\tA hole\t\thttps://x\t[]\t[]\nN1\tsports\tsoccer\tAgain\t\thttps://x\t[]\t[]\n"
MATRIX = (
    "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
    "14,148,4381,6067,2020-07-05 05:27:48.378,20200705.0,1593898068.378,0.7221\n"
    "14,183,11635,6100,2020-07-05 05:28:00.057,20200705.0,1593898080.057,1.9073\n"
    "19,183,100,6100,,,,0.0164\n"
    "19,148,6067,6067,2020-07-06 00:00:00,20200706.0,1593964800.0,1\n"
)


def mind(folder):
    for name, text, news in (("MINDsmall_train", TRAIN, NEWS), ("MINDsmall_dev", DEV, NEWS_DEV)):
        (folder / name).mkdir(parents=True)
        (folder / name / "behaviors.tsv").write_text(text)
        (folder / name / "news.tsv").write_text(news)
    return folder


def test_mind(tmp_path, capsys):
    log, catalog = load_data(mind(tmp_path), options=QUICK)
    assert catalog.raw_ids_I.tolist() == ["N3", "N1", "N2"]  # dev comes first
    assert catalog.text_I.tolist()[2] == "A vote" and catalog.num_topics == 3
    assert log.user_ids_U.tolist() == ["U9", "U4"] and sorted(shown(log, "click")) == [0, 0, 0, 1, 1]
    assert sorted(shown(log, "session_id")) == [0, 0, 0, 1, 1]
    times = sorted({s % 86400 for s in shown(log, "timestamp_s")})
    assert times == [pytest.approx(s, abs=10) for s in (0, 9 * 3600 + 358, 12 * 3600 + 358)]
    for path in (tmp_path / "MINDsmall_train", tmp_path / "MINDsmall_train" / "behaviors.tsv"):
        log, catalog = load_data(path, options=QUICK)
        assert catalog.raw_ids_I.tolist() == ["N1", "N2"] and catalog.text_I[0] == 'A "goal. It was late.'
    main(["data", "inspect", str(tmp_path), "--text", "off"])
    told = " ".join(capsys.readouterr().out.split())
    assert "MIND" in told and "(history) have no times and are not read" in told


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("N2-1", "N2", r"has no clicks \(-0 or -1\), as in the test set in 1 row\(s\), first row 0; read train or dev"),
        ("9:05:58 AM", "9:05:58", r"column 'time' is not as 11/11/2019 9:05:58 AM in 1 row"),
        ("N2-0", "N5-0", "names item 'N5' in row 2, which the items' file does not hold"),
    ],
)
def test_broken_visits_are_refused_in_one_line(tmp_path, old, new, message):
    train = mind(tmp_path) / "MINDsmall_train"
    (train / "behaviors.tsv").write_text(TRAIN.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        load_data(train, options=QUICK)
    assert "\n" not in str(error.value)
    (train / "news.tsv").unlink()
    with pytest.raises(ValueError, match=r"has behaviors.tsv, but no news.tsv beside it"):
        find_data(train)


def test_kuairec(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for name in ("big_matrix.csv", "small_matrix.csv"):
        (tmp_path / "data" / name).write_text(MATRIX)
    log, catalog = load_data(tmp_path / "data" / "small_matrix.csv", options=QUICK)
    assert catalog.raw_ids_I.tolist() == [148, 183] and log.profile_names == ()
    (tmp_path / "data" / "item_categories.csv").write_text('video_id,feat\n148,"[8, 3]"\n150,[1]\n183,[27]\n')
    (tmp_path / "data" / "user_features.csv").write_text("user_id,user_active_degree,fans_user_num\n14,full,5\n19,,7\n")
    log, catalog = load_data(tmp_path, options=QUICK)
    assert log.user_ids_U.tolist() == [14, 19] and shown(log, "item_id") == [0, 1, 0]
    assert shown(log, "watch_s") == pytest.approx([4.381, 11.635, 6.067]) and shown(log, "long_view") == [0, 1, 1]
    assert shown(log, "click") == [1, 1, 1] and catalog.duration_s_I.tolist() == pytest.approx([6.067, 6.1])
    assert shown(log, "timestamp_s")[0] % 86400 == pytest.approx(5 * 3600 + 27 * 60 + 48.378, abs=1e-3)  # as ``time``
    assert log.profile_names == ("user_active_degree",) and log.profile_UF.tolist() == [[1], [0]]
    assert catalog.topic_I.tolist() in ([0, 1], [1, 0])
    main(["data", "inspect", str(tmp_path), "--text", "off"])
    told = " ".join(capsys.readouterr().out.split())
    assert "KuaiRec" in told and "small_matrix.csv is not read; give its path to read it" in told
    with pytest.raises(ValueError, match="KuaiRec's times become Beijing's by themselves, and utc_offset is 8"):
        load_data(tmp_path, options=ReadOptions(utc_offset=8))


def test_the_pages_example_of_a_format_reads(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "how_to" / "dataset.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    space = {}
    exec(code, space)
    path = tmp_path / "acme_clicks.csv"
    path.write_text("visitor,product,clock,liked\n7,3,1600000000000,1\n7,4,1600000001000,0\n")
    assert space["find_acme"](tmp_path, {}) is None
    log, catalog = space["find_acme"](tmp_path, raw_files(tmp_path)).read(QUICK)
    assert shown(log, "like") == [1, 0] and catalog.raw_ids_I.tolist() == [3, 4] and log.user_ids_U.tolist() == [7]

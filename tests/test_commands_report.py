"""``feedgym report``, through the real command line, on folders with nothing but a configuration and a summary."""

import json
from dataclasses import replace

import pytest
from pages import Page, heights
from test_experiments_report import EVIL, simulated, value

from feedgym.cli import main
from feedgym.data.whole import read_sealed, write_sealed
from feedgym.experiments import page as page_module
from feedgym.experiments.align.presets import smoke
from feedgym.experiments.presets import COMPARISONS
from feedgym.experiments.run import VERSION, plain, write_json

VISITS = {"mean": [3.0, 2.0], "low": [2.5, 1.5], "high": [3.5, 2.5]}


@pytest.fixture(autouse=True)
def without_library(monkeypatch):
    monkeypatch.setattr(page_module, "library", lambda: "// the library")


def finished(folder, config=None, **changes):
    """The folder of a finished run."""
    config = smoke() if config is None else config
    folder.mkdir(parents=True)
    about = {"version": VERSION, "kind": type(config).__name__, "config": plain(config), "git_revision": "abc"}
    write_sealed(folder / "config.json", about)
    agents = {name: {"true_reward": VISITS, "repeats": VISITS} for name in ("base", "aligned")}
    by_visit = {"agents": agents, "difference": {"aligned over base": VISITS}}
    write_json(folder / "summary.json", simulated() | {"by_visit": by_visit} | changes)
    return folder


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["report", *map(str, arguments)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_one_run_gets_its_page_again(tmp_path, capsys):
    folder = finished(tmp_path / "one")
    main(["report", str(folder)])
    assert capsys.readouterr().out == f"Report: {folder / 'report.html'}\n"
    assert "Alignment, round by round" in Page((folder / "report.html").read_text()).headings


def test_several_runs_are_side_by_side(tmp_path, capsys):
    one, two = smoke(), replace(smoke(), seed=3, rounds=replace(smoke().rounds, num=5))
    agents = {name: {"true_reward": value(mean)} for name, mean in (("base", 8.0), ("aligned", 9.0))}
    folders = [finished(tmp_path / "a" / "one", one), finished(tmp_path / "two", two, agents=agents, seed=3)]
    main(["report", *map(str, folders), "--out", str(tmp_path / "new" / "both.html")])
    assert capsys.readouterr().out == f"Report: {tmp_path / 'new' / 'both.html'}\n"
    page = Page((tmp_path / "new" / "both.html").read_text())
    assert page.headings[:4] == ["The runs", "What differs in the configurations", "Gains", "Agents"]
    assert page.table("option") == {"option": ["one", "two"], "seed": ["0", "3"],
                                    "rounds.num": [str(one.rounds.num), "5"]}  # fmt: skip
    assert page.table("aligned, two")["aligned, two"][0] == "9.00 [8.75, 9.25]"
    assert page.table("aligned, one")["aligned, one"][0] == "12.38 [12.12, 12.62]"
    reward = page.charts["true reward per visit"]
    assert list(reward) == ["one", "two"]
    assert heights(page.charts["true reward of the sampled sessions"]) == {"one": [0.5, 0.5625], "two": [0.5, 0.5625]}
    assert heights(page.charts["gain in true reward over the base"])["two"] == [3.0, 2.0]


def test_runs_of_different_kinds_show_what_they_share(tmp_path):
    offline = {"agents": {"hstu": {"recall@5": value(0.25)}}, "lift": {}, "rounds": None, "by_visit": None}
    folders = [finished(tmp_path / "x" / "run"), finished(tmp_path / "y" / "run", COMPARISONS["methods"](), **offline)]
    main(["report", *map(str, folders), "--out", str(tmp_path / "both.html")])
    page = Page((tmp_path / "both.html").read_text())
    kinds = page.table("option")["kind"]
    assert kinds == ["AlignConfig", "MethodsRun"] and page.table("option")["option"] == list(map(str, folders))
    assert "recall@5" in page.charts and "Gains" in page.headings


def test_texts_of_runs_are_escaped(tmp_path):
    folders = [finished(tmp_path / name, title=EVIL, judged_by=EVIL) for name in ("<b>one", "two</script>")]
    main(["report", *map(str, folders), "--out", str(tmp_path / "both.html")])
    page = Page((tmp_path / "both.html").read_text())
    assert "b" not in page.tags[page.tags.index("main") : page.tags.index("section")] and "<b>one" in page.text
    assert [kind for kind, _ in page.scripts].count("module") == 2 and page.text.count(EVIL) == 4


def test_what_is_no_finished_run_is_refused_in_a_line(tmp_path, capsys):
    whole, begun = finished(tmp_path / "whole"), finished(tmp_path / "begun")
    (begun / "summary.json").unlink()
    assert "has no summary.json; finish the run with --resume" in refused(capsys, begun)
    assert "has no summary.json" in refused(capsys, whole, begun)
    assert str(tmp_path / "nothing") in refused(capsys, tmp_path / "nothing")
    assert "Name the folder" in refused(capsys)
    assert "named twice" in refused(capsys, whole, whole)
    assert "leave out --out" in refused(capsys, whole, "--out", "x.html")
    (whole / "summary.json").write_text("{")
    assert "is damaged" in refused(capsys, whole)
    (whole / "summary.json").write_text(json.dumps({"title": "old"}))
    assert "another version of feedgym wrote it" in refused(capsys, whole)
    write_sealed(whole / "config.json", read_sealed(whole / "config.json") | {"kind": "Alchemy"})
    assert "Alchemy" in refused(capsys, whole)

"""Rows of the results: what they say of a run, the command that they derive, and the page that is made of them."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import feedgym
from feedgym.cli import MISTAKE, _parse_run, main
from feedgym.experiments.align.presets import RoundsConfig, smoke
from feedgym.experiments.methods.presets import METHODS_COMPARISONS
from feedgym.experiments.presets import PRESETS
from feedgym.experiments.results import Result, command_of, figure_at, found, read_results, results_table
from feedgym.experiments.run import VERSION, plain, write_sealed
from feedgym.protocols import load

DOCS = Path(feedgym.__file__).parent.parent / "docs"


def finished(folder, config=None, **summary):
    """A run's folder as far as a row needs it."""
    folder.mkdir()
    about = {"version": VERSION, "kind": "AlignConfig", "config": plain(config or smoke()), "git_revision": "a" * 40}
    write_sealed(folder / "config.json", about)
    (folder / "summary.json").write_text(
        json.dumps({"title": "OneRec", "seed": 3, "git_revision": "b" * 40, **summary})
    )
    return folder


def parsed(command):
    """The configuration of a command."""
    name, *rest = shlex.split(command)[2:]
    return _parse_run("run", rest, PRESETS[name]())


@pytest.mark.parametrize(
    "config",
    [
        smoke(),
        replace(PRESETS["onerec-ipa"](), seed=4),
        replace(smoke(), rounds=RoundsConfig(num=3, user_share=0.3, num_samples=12, truth_replicas=2, on_policy=False)),
        replace(PRESETS["tiger-ipa"](), history_length=20),
        replace(PRESETS["onerec-ipa"](), method="grpo", method_options=None),
        replace(PRESETS["hstu-small"](), epochs=3, data="my log"),
    ],
    ids=["preset", "seed", "bool", "plug-in's options", "plug-in", "retrieval"],
)
def test_the_derived_command_makes_the_same_configuration(config):
    from feedgym.plugins import completed

    again = parsed(command_of(completed(config)))
    assert {k: v for k, v in vars(again).items() if k in vars(config)} == vars(completed(config))


def test_the_command_of_a_comparison_is_compare():
    config = replace(METHODS_COMPARISONS["methods"](), seeds=(1, 2))
    assert command_of(config) == "feedgym compare methods --seeds 1 2"


def test_a_row_says_figure_interval_command_seed_and_verdict(tmp_path):
    run = finished(tmp_path / "one", lift={"true_reward": {"mean": 0.136, "low": 0.11, "high": 0.16}})
    out = tmp_path / "rows"
    main(["results", "add", str(run), "--verdict", "it helps", "--says", "gain", "--out", str(out)])
    (row,) = read_results(out)
    assert row == Result(
        experiment="OneRec", figure="gain", mean=0.136, low=0.11, high=0.16, unit="relative", over="users",
        command="feedgym run onerec-ipa-smoke", seed="3", revision="b" * 12, verdict="it helps", page="",
    )  # fmt: skip
    assert found(row) == "+13.6% [11.0, 16.0]"
    table = results_table([row])
    assert "| OneRec | gain | +13.6% [11.0, 16.0] | `feedgym run onerec-ipa-smoke (seed 3)` | it helps |" in table
    main(["results", "add", str(run), "--verdict", "it helps a lot", "--out", str(out)])
    assert [row.verdict for row in read_results(out)] == ["it helps a lot"]


def test_a_row_of_a_list_is_found_by_its_name():
    summary = {"predictors": [{"name": "log_auc", "mean": 0.6}, {"name": "log_rank", "mean": 0.7}]}
    assert figure_at(summary, "predictors.log_rank")["mean"] == 0.7
    with pytest.raises(ValueError, match="there is no 'auc'; give one of log_auc, log_rank"):
        figure_at(summary, "predictors.auc")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "verdict"),
        (["--verdict", "v", "--figure", "lift.watched"], "there is no 'watched'; give one of true_reward"),
        (["--verdict", "v", "--figure", "lift"], "not a figure with a mean"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, words, says):
    run = finished(tmp_path / "one", lift={"true_reward": {"mean": 0.1, "low": 0.0, "high": 0.2}})
    with pytest.raises(SystemExit) as stop:
        main(["results", "add", str(run), "--out", str(tmp_path), *words])
    assert stop.value.code == MISTAKE and says in capsys.readouterr().err


def test_an_unfinished_run_and_a_file_that_is_no_row_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["results", "add", str(tmp_path), "--verdict", "v"])
    assert "no summary.json" in capsys.readouterr().err
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(ValueError, match=r"odd.json is not a row"):
        read_results(tmp_path)


def test_the_page_is_rendered_from_the_rows(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    page = (DOCS / "results.md").read_text()
    assert load("render_results:rendered")(page) == page, "run python docs/render_results.py"
    for row in read_results(DOCS / "results"):
        assert (DOCS / row.page.partition("#")[0]).exists(), row.page

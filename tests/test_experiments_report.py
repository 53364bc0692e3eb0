import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from feedgym.experiments import report as report_module
from feedgym.experiments.report import agents_table, write_report
from feedgym.experiments.run import write_json


def value(mean, spread=0.25):
    return {"mean": mean, "low": mean - spread, "high": mean + spread}


def simulated():
    """A summary with all parts."""
    metrics = {"true_reward": 4.125, "model_reward": 5.5, "watch_s": 61.0, "like_rate": 0.0625, "follow_rate": 0.015625}
    scale = {"popular": 1, "oracle": 5, "aligned": 3, "base": 2, "aligned_searched": 4, "base_searched": 3.5, "mine": 6}
    return {
        "title": "OneRec + IPA on Toy",
        "note": "Nobody was harmed.",
        "agents": {
            name: {metric: value(times * mean) for metric, mean in metrics.items()} for name, times in scale.items()
        },
        "lift": {"true_reward": {"mean": 0.5, "low": 0.401, "high": 0.602}, "like_rate": value(-0.125, 0.0625)},
        "lift_searched": {"true_reward": {"mean": 0.071, "low": 0.061, "high": 0.081}},
        "judged_by": "24 fresh users",
        "samples": {
            "columns": ["user", "agent", "visit", "watched s"],
            "rows": [["user 1", "base", 1, 12.34], ["user 2", "aligned", 3, None]],
        },
        "rounds": [
            {
                **{"model_mean": 1.25, "model_max": 2.5, "true_mean": 0.5, "true_max": 0.75, "true_of_best": 0.625},
                **{"rank_correlation": 0.375, "diversity": 0.875, "legality": 0.96875, "entropy": 9.5},
                **{"kl_to_base": 0.0, "pairs": 17, "chosen_logp_change": 0.5, "rejected_logp_change": -0.5},
            },
            {
                **{"model_mean": 1.5, "model_max": 2.75, "true_mean": 0.5625, "true_max": 0.8125, "true_of_best": 0.7},
                **{"rank_correlation": 0.3125, "diversity": 0.75, "legality": 0.9375, "entropy": 8.5},
                **{"kl_to_base": 1.0625},
            },
        ],
        "scatter": [{"round": t, "model": [1.0, 2.0, 3.0], "true": [0.5, 1.5, 1.0]} for t in (0, 1)],
        "reward_model": {"click": 0.7125, "return_24h": 0.6},
        "tokenizer": {
            "num_items": 1234,
            "num_codes": [16, 32],
            "same_topic_rate": [0.5, None],
            "items_per_tuple": None,
        },
        "seed": 7,
        "stages": {"log": {"seconds": 1.25}, "base": {"seconds": 30.5}},
        "peak_memory_mb": 1536.4,
        "git_revision": "0123456789abcdef+changes",
    }


def recorded():
    """A summary of a log that knows no truth."""
    summary = simulated()
    del summary["samples"], summary["lift_searched"]
    metrics = {"model_reward": 2.5, "diversity": 0.5, "recall@5 of session": 0.125, "ndcg@10 of next item": 0.0625}
    agents = {name: {metric: value(mean) for metric, mean in metrics.items()} for name in ("random", "base", "aligned")}
    known = ("model_mean", "model_max", "diversity", "legality", "entropy", "kl_to_base")
    return summary | {
        "agents": agents,
        "lift": {"model_reward": value(0.0625, 0.03125)},
        "rounds": [{name: row[name] for name in known} for row in summary["rounds"]],
        "scatter": [],
    }


class Page(HTMLParser):
    """What a browser would fetch and what a reader would see, tables as lists of rows."""

    def __init__(self, path):
        super().__init__()
        self.fetched, self.tags, self.headings, self.tables, self.text, self.open = [], [], [], [], "", []
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [found for name, found in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "tags must be closed in order"

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] == "h2":
            self.headings[-1] += data

    def table(self, corner):
        """The table whose first column begins with one of these cells."""
        (found,) = [rows for rows in self.tables if corner in [row[0] for row in rows]]
        return {row[0]: row[1:] for row in found}


@pytest.fixture
def figures(monkeypatch):
    """The figures of the page, which are kept instead of painted: painting is what takes long."""
    kept = []
    monkeypatch.setattr(report_module, "image", lambda figure: kept.append(figure) or "<img src='data:,'>")
    return kept


def report(summary, folder):
    path = write_report(summary, folder)
    assert path == folder / "report.html" and path.exists()
    return Page(path)


ALL = [
    "Judged by",
    "Alignment, round",
    "Predicted and true values",
    "Behaviours",
    "The reward model on",
    "The items' codes",
]
ALL += ["Sessions to read", "Time by stage"]


# ---------------------------------------------------------------- the page


@pytest.mark.parametrize("summary", [simulated(), recorded()], ids=["simulated", "recorded"])
def test_the_page_is_whole_in_itself(summary, tmp_path):
    page = report(summary, tmp_path)
    assert page.fetched and not {"script", "link", "iframe", "object"} & set(page.tags)
    for found in page.fetched:
        kind, _, picture = found.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(picture).startswith(b"\x89PNG")
    assert "@import" not in page.text and "url(" not in page.text
    assert not page.open
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_simulated_run_has_every_section_and_a_recorded_one_those_that_it_knows(tmp_path, figures):
    whole, part = report(simulated(), tmp_path), report(recorded(), tmp_path)
    assert [heading[: len(start)] for heading, start in zip(whole.headings, ALL, strict=True)] == ALL
    left_out = ("Predicted and true values", "Behaviours", "Sessions to read")
    expected = [start for start in ALL if start not in left_out]
    assert [heading[: len(start)] for heading, start in zip(part.headings, expected, strict=True)] == expected
    assert len(whole.fetched) == 5 and len(part.fetched) == 3  # pictures
    assert whole.headings[0] == "Judged by 24 fresh users"


def test_agents_are_side_by_side_with_intervals_and_lifts(tmp_path, figures):
    table = report(simulated(), tmp_path).table("true reward per visit")
    names = ["popular", "base", "aligned", "base searched", "aligned searched", "oracle", "mine"]
    assert table[""] == [*names, "aligned over base"]
    assert table["true reward per visit"][:3] == ["4.12 [3.88, 4.38]", "8.25 [8.00, 8.50]", "12.38 [12.12, 12.62]"]
    assert table["true reward per visit"][-2:] == ["24.75 [24.50, 25.00]", "+50.0% [+40.1%, +60.2%]"]
    assert table["likes per item seen"][0] == "0.0625 [-0.19, 0.31]"
    assert table["likes per item seen"][-1] == "-12.5% [-18.8%, -6.2%]"
    assert table["watch time per visit (s)"][-1] == "-"
    assert list(table)[1:] == ["true reward per visit", "reward model's prediction", "watch time per visit (s)",
                               "likes per item seen", "follows per item seen"]  # fmt: skip


def test_the_headline_tells_what_came_of_it_and_how_it_was_made(tmp_path, figures):
    text = report(simulated(), tmp_path).text
    assert "aligned over base: +50.0% [+40.1%, +60.2%]" in text
    assert "beam search: +7.1% [+6.1%, +8.1%]" in text
    assert "Nobody was harmed." in text
    assert "seed 7 · revision 0123456789ab · peak memory 1,536 MB · 32 s of work" in text
    text = report(recorded(), tmp_path).text
    assert text.count("Nobody was harmed.") == 1 and "True reward" not in text


def test_every_figure_of_rounds_tokenizer_samples_and_stages_is_there(tmp_path, figures):
    page = report(simulated(), tmp_path)
    rounds = page.table("rounds done")
    assert rounds["rounds done"] == ["0", "1"]
    assert rounds["model mean"] == ["1.25", "1.50"] and rounds["kl to base"] == ["0", "1.06"]
    assert rounds["pairs"] == ["17", "-"] and rounds["rejected logp change"] == ["-0.50", "-"]
    assert len(rounds) == 1 + len(simulated()["rounds"][0])
    codes = page.table("num items")
    assert codes["num items"] == ["1,234"] and codes["num codes"] == ["16, 32"]
    assert codes["same topic rate"] == ["0.50, -"] and codes["items per tuple"] == ["-"]
    assert page.table("user 1") == {
        "user": ["agent", "visit", "watched s"],
        "user 1": ["base", "1", "12.34"],
        "user 2": ["aligned", "3", "-"],
    }
    assert page.table("log") == {"stage": ["seconds"], "log": ["1.2"], "base": ["30.5"]}


def test_metrics_that_some_agents_lack_leave_a_gap(tmp_path, figures):
    summary = simulated()
    del summary["agents"]["popular"]["like_rate"], summary["agents"]["oracle"]["true_reward"]
    table = report(summary, tmp_path).table("likes per item seen")
    assert table["likes per item seen"][0] == "-" and table["likes per item seen"][1] != "-"
    assert table["true reward per visit"][5] == "-" and table["true reward per visit"][6] != "-"


def without_numbers(nothing):
    """A summary where some figures could not be measured: NaN at first, null once it was read from its file."""
    summary = simulated()
    summary["rounds"][0]["rank_correlation"] = summary["rounds"][1]["rank_correlation"] = nothing
    summary["agents"]["mine"]["model_reward"] = dict.fromkeys(("mean", "low", "high"), nothing)
    summary["lift"]["model_reward"] = dict.fromkeys(("mean", "low", "high"), nothing)
    return summary


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_what_could_not_be_measured_is_a_dash(tmp_path, figures, nothing):
    page = report(without_numbers(nothing), tmp_path)
    assert page.table("rounds done")["rank correlation"] == ["-", "-"]
    row = page.table("true reward per visit")["reward model's prediction"]
    assert row[-2:] == ["- [-, -]", "-"] and row[0] == "5.50 [5.25, 5.75]"
    column = list(agents_table(without_numbers(nothing)).columns[-2].cells)
    assert column[:2] == ["24.75", "-"]


def test_a_summary_read_back_from_its_file_gives_the_same_page(tmp_path):
    summary = without_numbers(float("nan"))
    write_json(tmp_path / "summary.json", summary)
    first = write_report(summary, tmp_path).read_bytes()
    assert write_report(json.loads((tmp_path / "summary.json").read_text()), tmp_path).read_bytes() == first


def test_a_run_of_no_rounds_and_no_held_out_labels_has_a_page(tmp_path, figures):
    summary = simulated()
    summary["rounds"] = [{k: v for k, v in summary["rounds"][1].items()}]
    summary["reward_model"] = {}
    page = report(summary, tmp_path)
    assert page.table("rounds done")["rounds done"] == ["0"]
    assert "No held-out label took two values." in page.text


def panels(figure):
    """Titles of a figure's panels with their lines: label, and values without those left out."""
    return {
        axis.get_title(): {
            line.get_label(): [y for y in line.get_ydata() if not np.isnan(y)] for line in axis.get_lines()
        }
        for axis in figure.axes
    }


def test_rounds_are_drawn_as_far_as_they_are_known(tmp_path, figures):
    report(simulated(), tmp_path)
    drawn = panels(figures[1])
    assert drawn["rank correlation with the truth"] == {"within users": [0.375, 0.3125]}
    assert drawn["drift"] == {"KL to base (nats)": [0.0, 1.0625], "entropy (nats)": [9.5, 8.5]}
    assert drawn["change of log-probability in the round"] == {"chosen": [0.5], "rejected": [-0.5]}
    assert len(drawn["reward of the sampled sessions"]) == 4
    figures.clear()
    report(recorded(), tmp_path)
    drawn = panels(figures[1])
    assert list(drawn) == ["reward of the sampled sessions", "diversity and legality", "drift"]
    assert list(drawn["reward of the sampled sessions"]) == ["reward model, mean", "reward model, best"]


def test_a_measure_that_begins_in_a_later_round_is_drawn_too(tmp_path, figures):
    """The first round may find no pair at all, and then knows nothing of their log-probabilities."""
    summary = simulated()
    summary["rounds"].reverse()
    report(summary, tmp_path)
    assert panels(figures[1])["change of log-probability in the round"] == {"chosen": [0.5], "rejected": [-0.5]}


EVIL = "<b>&\"' [red]x[/] {0} {body} ü"


def test_text_is_shown_as_it_was_written(tmp_path, figures):
    summary = simulated()
    summary |= {"title": EVIL, "note": EVIL, "judged_by": EVIL, "git_revision": "<i>"}
    summary["agents"][EVIL] = summary["agents"].pop("mine")
    summary["samples"] = {"columns": [EVIL, "b"], "rows": [[EVIL, None]]}
    summary["stages"] = {EVIL: {"seconds": 1.0}}
    summary["reward_model"] = {"<b>": 0.75}
    page = report(summary, tmp_path)
    assert not {"b", "i"} & set(page.tags) and "revision <i>" in page.text
    assert page.headings[0] == f"Judged by {EVIL}"
    assert EVIL in page.table("true reward per visit")[""]
    assert page.text.count(EVIL) == 8  # tab, heading, note, judge, agent, column, sample and stage


# ---------------------------------------------------------------- the table for the terminal


def printed(summary):
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(agents_table(summary))
    return console.export_text()


def test_the_terminals_table_has_a_row_a_metric_and_a_column_an_agent_but_those_that_search():
    table = agents_table(simulated())
    heads = [str(column.header) for column in table.columns]
    assert heads == ["", "popular", "base", "aligned", "oracle", "mine", "aligned over base"]
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == [
        "true reward per visit",
        "reward model's prediction",
        "watch time per visit (s)",
        "likes per item seen",
    ]
    assert cells[2] == ["8.25", "11.00", "122", "0.12"]
    assert cells[-1] == ["+50.0% [+40.1%, +60.2%]", "-", "-", "-12.5% [-18.8%, -6.2%]"]


def test_the_terminals_table_of_a_recorded_log_holds_its_offline_metrics():
    summary = recorded()
    del summary["agents"]["random"]["diversity"]
    table = agents_table(summary)
    rows = {row[0]: row[1:] for row in zip(*(list(column.cells) for column in table.columns), strict=True)}
    assert rows == {
        "reward model's prediction": ("2.50", "2.50", "2.50", "+6.2% [+3.1%, +9.4%]"),
        "diversity": ("-", "0.50", "0.50", "-"),
        "ndcg@10 of next item": ("0.0625", "0.0625", "0.0625", "-"),
        "recall@5 of session": ("0.12", "0.12", "0.12", "-"),
    }


def test_many_agents_of_a_comparison_have_a_row_each_within_80_columns():
    names = ("random", "popular", "base", "aligned", "base_searched", "aligned_searched", "cascade", "oracle")
    figures = {"true_reward": 2.5, "watch_s": 61.25, "like_rate": 0.015625, "return_24h": 0.75, "cost_mflop": 1234.0}
    agents = {name: {metric: value(mean) for metric, mean in figures.items()} for name in names}
    agents["cascade"]["cost_ms"] = value(0.0625)
    lifts = {f"cascade over {name}": {"true_reward": value(0.125)} for name in names if name != "cascade"}
    summary = simulated() | {"agents": agents, "lifts": lifts, "lift_names": ["cascade", "aligned"]}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(agents_table(summary))
    text = console.export_text()
    rows = {line[:18].strip(): line[18:].split() for line in text.splitlines()}
    assert rows["cascade"] == ["2.50", "61.25", "0.0156", "0.75", "0.0625", "1,234", "-"]
    assert rows["aligned searched"] == ["2.50", "61.25", "0.0156", "0.75", "-", "1,234", "+12.5%"]
    assert "lift: cascade over each" in text


def test_what_agents_predict_comes_first_by_rising_cut_off():
    names = ["coverage", "diversity", "mrr", "ndcg@10", "ndcg@50", "ndcg@5", "recall@10", "recall@50", "recall@5"]
    summary = recorded() | {"agents": {"hstu": {name: value(1.0) for name in names}}}
    rows = list(agents_table(summary).columns[0].cells)
    assert rows[:4] == ["recall@5", "ndcg@5", "recall@10", "ndcg@10"]
    assert rows[6:] == ["diversity", "coverage", "mrr"]


def test_the_terminal_shows_title_and_lead_as_they_were_written():
    text = printed(simulated())
    assert "OneRec + IPA on Toy" in text and "aligned over base: +50.0% [+40.1%, +60.2%]" in text
    assert "OneRec + IPA on the log views[old].csv" in printed(
        recorded() | {"title": "OneRec + IPA on the log views[old].csv"}
    )


def test_learning_has_a_panel_for_what_is_told_late_and_runs_by_requests_where_they_are_counted(figures):
    late = [
        {"iteration": 1, "requests": 20.0, "loss": 3.0},
        {"iteration": 2, "requests": 45.0, "loss": 2.0, "reward": 1},
    ]
    report_module._learning_plot([late, late])
    panels = {axis.get_title(): axis for axis in figures[0].axes}
    assert list(panels) == ["loss", "reward"] and panels["loss"].get_xlabel() == "requests"
    assert [line.get_xdata().tolist() for line in panels["reward"].lines] == [[20.0, 45.0]] * 2
    epochs = [{"iteration": 1, "validation": 0.5}, {"iteration": 2, "validation": 0.75}]
    report_module._learning_plot([epochs, epochs], ["HSTU", "SASRec"])
    titles = [axis.get_title() for axis in figures[1].axes]
    assert titles == ["HSTU: validation", "SASRec: validation"] and figures[1].axes[0].get_xlabel() == "iterations"

import io
import json

import pytest
from pages import Page, heights
from rich.console import Console

from feedgym.experiments import page as page_module
from feedgym.experiments import report as report_module
from feedgym.experiments.report import agents_table, write_report
from feedgym.experiments.run import write_json


def value(mean, spread=0.25):
    return {"mean": mean, "low": mean - spread, "high": mean + spread}


SEEN = ["user", "agent", "visit", "place", "item", "topic", "duration s", "watched s", "behaviours"]


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
            "columns": [*SEEN, "title"],
            "rows": [
                ["user 1", "base", 1, 1, "805", 11, 14.1, 12.34, "click, long_view", "Cats"],
                ["user 1", "base", 1, 2, "806", -1, 20.0, None, "not reached", ""],
                ["user 2", "aligned", 3, 1, "807", 2, 10.0, 15.0, "-", ""],
            ],
            "timelines": [
                {
                    "user": "user 1",
                    "agent": "base",
                    "left": True,
                    "visits": [
                        {"day": 0.5, "topics": [11, -1], "watched": [0.9, None]},
                        {"day": 2.25, "topics": [3, 3], "watched": [1.5, 0.0]},
                    ],
                },
            ],
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


@pytest.fixture(autouse=True)
def without_library(monkeypatch):
    """The library that draws takes seconds to make, and has tests of its own in a browser."""
    monkeypatch.setattr(page_module, "library", lambda: "// the library")


def report(summary, folder):
    path = write_report(summary, folder)
    assert path == folder / "report.html" and path.exists()
    return Page(path.read_text())


ALL = [
    "Judged by",
    "Alignment, round",
    "Predicted and true values",
    "Behaviours",
    "The reward model on",
    "The items' codes",
]
ALL += ["Users' timelines", "Sessions to read", "Time by stage"]


# ---------------------------------------------------------------- the page


@pytest.mark.parametrize("summary", [simulated(), recorded()], ids=["simulated", "recorded"])
def test_the_page_is_whole_in_itself(summary, tmp_path):
    page = report(summary, tmp_path)
    assert all(found.startswith("#") for found in page.fetched), "links lead into the page, and nothing is loaded"
    assert not {"img", "link", "iframe", "object"} & set(page.tags) and not page.open
    assert {kind for kind, _ in page.scripts} == {"module", "application/json"} and page.charts
    assert "@import" not in (tmp_path / "report.html").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_simulated_run_has_every_section_and_a_recorded_one_those_that_it_knows(tmp_path):
    whole, part = report(simulated(), tmp_path), report(recorded(), tmp_path)
    assert [heading[: len(start)] for heading, start in zip(whole.headings, ALL, strict=True)] == ALL
    left_out = ("Predicted and true values", "Behaviours", "Users' timelines", "Sessions to read")
    expected = [start for start in ALL if start not in left_out]
    assert [heading[: len(start)] for heading, start in zip(part.headings, expected, strict=True)] == expected
    assert len(whole.charts) > len(part.charts) > 4
    assert whole.text.count("How to read this.") == 7 and part.text.count("How to read this.") == 3
    assert whole.headings[0] == "Judged by 24 fresh users"


def test_agents_are_side_by_side_with_intervals_and_lifts(tmp_path):
    table = report(simulated(), tmp_path).table("true reward per visit")
    names = ["popular", "base", "aligned", "base searched", "aligned searched", "oracle", "mine"]
    assert table[""] == [*names, "aligned over base"]
    assert table["true reward per visit"][:3] == ["4.12 [3.88, 4.38]", "8.25 [8.00, 8.50]", "12.38 [12.12, 12.62]"]
    assert table["true reward per visit"][-2:] == ["24.75 [24.50, 25.00]", "+50% [+40%, +60%]"]
    assert table["likes per item seen"][0] == "0.06 [-0.19, 0.31]"
    assert table["likes per item seen"][-1] == "-12% [-19%, -6%]"
    assert table["watch time per visit (s)"][-1] == "-"
    assert list(table)[1:] == ["true reward per visit", "reward model's prediction", "watch time per visit (s)",
                               "likes per item seen", "follows per item seen"]  # fmt: skip


def test_the_headline_tells_what_came_of_it_and_how_it_was_made(tmp_path):
    text = report(simulated(), tmp_path).text
    assert "aligned over base: +50% [+40%, +60%]" in text
    assert "beam search: +7.1% [+6.1%, +8.1%]" in text
    assert "Nobody was harmed." in text
    assert "seed 7 · revision 0123456789ab · peak memory 1,536 MB · 32 s of work" in text
    text = report(recorded(), tmp_path).text
    assert text.count("Nobody was harmed.") == 1 and "True reward" not in text


def test_every_figure_of_rounds_tokenizer_samples_and_stages_is_there(tmp_path):
    page = report(simulated(), tmp_path)
    rounds = page.table("rounds done")
    assert rounds["rounds done"] == ["0", "1"]
    assert rounds["model mean"] == ["1.25", "1.50"] and rounds["kl to base"] == ["0", "1.06"]
    assert rounds["pairs"] == ["17", "-"] and rounds["rejected logp change"] == ["-0.50", "-"]
    assert len(rounds) == 1 + len(simulated()["rounds"][0])
    codes = page.table("num items")
    assert codes["num items"] == ["1,234"] and codes["num codes"] == ["16, 32"]
    assert codes["same topic rate"] == ["0.50, -"] and codes["items per tuple"] == ["-"]
    assert page.table("log") == {"stage": ["seconds"], "log": ["1.2"], "base": ["30.5"]}


def test_metrics_that_some_agents_lack_leave_a_gap(tmp_path):
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
def test_what_could_not_be_measured_is_a_dash(tmp_path, nothing):
    page = report(without_numbers(nothing), tmp_path)
    assert page.table("rounds done")["rank correlation"] == ["-", "-"]
    row = page.table("true reward per visit")["reward model's prediction"]
    assert row[-2:] == ["-", "-"] and row[0] == "5.50 [5.25, 5.75]"
    column = list(agents_table(without_numbers(nothing)).columns[-2].cells)
    assert column[:2] == ["24.75", "-"]


def test_a_summary_read_back_from_its_file_gives_the_same_page(tmp_path):
    summary = without_numbers(float("nan"))
    write_json(tmp_path / "summary.json", summary)
    first = write_report(summary, tmp_path).read_bytes()
    assert write_report(json.loads((tmp_path / "summary.json").read_text()), tmp_path).read_bytes() == first


def test_a_run_of_no_rounds_and_no_held_out_labels_has_a_page(tmp_path):
    summary = simulated()
    summary["rounds"] = [{k: v for k, v in summary["rounds"][1].items()}]
    summary["reward_model"] = {}
    page = report(summary, tmp_path)
    assert page.table("rounds done")["rounds done"] == ["0"]
    assert "No held-out label took two values." in page.text


def test_rounds_are_drawn_as_far_as_they_are_known(tmp_path):
    drawn = report(simulated(), tmp_path).charts
    assert heights(drawn["rank correlation with the truth"]) == {"within users": [0.375, 0.3125]}
    assert heights(drawn["drift"]) == {"KL to base (nats)": [0.0, 1.0625], "entropy (nats)": [9.5, 8.5]}
    assert heights(drawn["change of log-probability in the round"]) == {"chosen": [0.5], "rejected": [-0.5]}
    assert len(drawn["reward of the sampled sessions"]) == 4
    drawn = report(recorded(), tmp_path).charts
    assert "rank correlation with the truth" not in drawn and "drift" in drawn
    assert list(drawn["reward of the sampled sessions"]) == ["reward model, mean", "reward model, best"]


def test_a_measure_that_begins_in_a_later_round_is_drawn_too(tmp_path):
    """The first round may find no pair at all, and then knows nothing of their log-probabilities."""
    summary = simulated()
    summary["rounds"].reverse()
    drawn = report(summary, tmp_path).charts["change of log-probability in the round"]
    assert heights(drawn) == {"chosen": [0.5], "rejected": [-0.5]}
    assert [row["x"] for row in drawn["chosen"] if row["y"] is not None] == [1]


def test_a_bar_per_agent_has_the_tables_text_for_hovering(tmp_path):
    page = report(simulated(), tmp_path)
    bars = page.charts["true reward per visit"]
    assert list(bars) == ["popular", "base", "aligned", "base searched", "aligned searched", "oracle", "mine"]
    assert [bars[name][0]["v"] for name in bars] == page.table("true reward per visit")["true reward per visit"][:-1]


def test_large_clouds_are_thinned_and_keep_their_mean(tmp_path):
    summary = simulated()
    summary["scatter"] = [{"round": 2, "model": [float(n) for n in range(1000)], "true": [1.0] * 1000}]
    drawn = report(summary, tmp_path).charts["after 2 rounds"]
    assert 100 < len(drawn["a session"]) <= 240
    assert (drawn["mean of all"][0]["x"], drawn["mean of all"][0]["y"]) == (499.5, 1.0)


def test_sessions_are_cards_by_user_and_agent_and_what_was_not_reached_is_faint(tmp_path):
    page = report(simulated(), tmp_path)
    text, html = " ".join(page.text.split()), (tmp_path / "report.html").read_text()
    assert page.tags.count("article") == 2 and page.tags.count("li") == 3 and html.count("<li class=faint") == 1
    assert "Cats" in text and "item 805" not in text and "item 807" in text
    assert "topic 11 · 12.3 of 14.1 s" in text and "not reached" in text and "long view" in text
    assert "--share: 88%" in html and "--share: 100%" in html, "watching again fills the bar"


def test_timelines_have_a_dot_per_item_and_tell_who_left(tmp_path):
    (title,) = [title for title in report(simulated(), tmp_path).charts if "visits" in title and "user 1" in title]
    assert title == "user 1, base: 2 visits, left for good"
    dots = report(simulated(), tmp_path).charts[title][""]
    assert [(dot["x"], dot["y"]) for dot in dots] == [(0.5, 1), (0.5, 2), (2.25, 1), (2.25, 2)]
    assert dots[1]["o"] < dots[0]["o"] and dots[3]["o"] == dots[0]["o"], (
        "seen and skipped is not the same as not reached"
    )
    assert dots[2]["z"] > dots[0]["z"] > dots[3]["z"] and dots[2]["c"] == dots[3]["c"] != dots[0]["c"]
    assert "150% watched" in dots[2]["n"]


def test_samples_of_an_older_run_without_timelines_are_shown(tmp_path):
    summary = simulated()
    del summary["samples"]["timelines"]
    assert "Users' timelines" not in report(summary, tmp_path).headings


EVIL = "<b>&\"' [red]x[/] {0} {body} ü</script><script>alert(1)</script>"


def test_text_is_shown_as_it_was_written(tmp_path):
    summary = simulated()
    summary |= {"title": EVIL, "note": EVIL, "judged_by": EVIL, "git_revision": "<i>"}
    summary["agents"][EVIL] = summary["agents"].pop("mine")
    row = [EVIL, EVIL, 1, 1, EVIL, 3, 2.0, 1.0, EVIL]
    line = {"user": EVIL, "agent": EVIL, "left": False, "visits": [{"day": 1.0, "topics": [1], "watched": [0.5]}]}
    summary["samples"] = {"columns": [*SEEN, "title"], "rows": [[*row, ""], [*row, EVIL]], "timelines": [line]}
    summary["stages"] = {EVIL: {"seconds": 1.0}}
    summary["reward_model"] = {EVIL: 0.75}
    page = report(summary, tmp_path)
    assert not {"i", "alert"} & set(page.tags) and "revision <i>" in page.text
    assert [kind for kind, _ in page.scripts].count("module") == 2
    assert not any(text.startswith("alert") for _, text in page.scripts)
    assert page.headings[0] == f"Judged by {EVIL}"
    assert EVIL in page.table("true reward per visit")[""]
    # Tab, contents, heading, note, judge, agent, stage; user, agent of the card; item, behaviours twice.
    assert page.text.count(EVIL) == 7 + 2 + 4
    assert EVIL in page.charts["true reward per visit"], "texts of charts are data, which the library escapes"
    assert [row["x"] for row in page.charts["area under the ROC curve"][""]] == [EVIL]


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
    assert cells[-1] == ["+50% [+40%, +60%]", "-", "-", "-12% [-19%, -6%]"]


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
    assert "lift: cascade over each" in " ".join(text.split())


def test_what_agents_predict_comes_first_by_rising_cut_off():
    names = ["coverage", "diversity", "mrr", "ndcg@10", "ndcg@50", "ndcg@5", "recall@10", "recall@50", "recall@5"]
    summary = recorded() | {"agents": {"hstu": {name: value(1.0) for name in names}}}
    rows = list(agents_table(summary).columns[0].cells)
    assert rows[:4] == ["recall@5", "ndcg@5", "recall@10", "ndcg@10"]
    assert rows[6:] == ["diversity", "coverage", "mrr"]


def test_the_terminal_shows_title_and_lead_as_they_were_written():
    text = printed(simulated())
    assert "OneRec + IPA on Toy" in text and "aligned over base: +50% [+40%, +60%]" in text
    assert "OneRec + IPA on the log views[old].csv" in printed(
        recorded() | {"title": "OneRec + IPA on the log views[old].csv"}
    )


def test_learning_has_a_panel_for_what_is_told_late_and_runs_by_requests_where_they_are_counted():
    late = [
        {"iteration": 1, "requests": 20.0, "loss": 3.0},
        {"iteration": 2, "requests": 45.0, "loss": 2.0, "reward": 1},
    ]
    drawn = Page(report_module._learning_plot([late, late]))
    assert list(drawn.charts) == ["loss", "reward"] and _axis(drawn.specs[0]) == "requests"
    assert [[row["x"] for row in rows] for rows in drawn.charts["reward"].values()] == [[20.0, 45.0]] * 2
    epochs = [{"iteration": 1, "validation": 0.5}, {"iteration": 2, "validation": 0.75}]
    drawn = Page(report_module._learning_plot([epochs, epochs], ["HSTU", "SASRec"]))
    assert list(drawn.charts) == ["HSTU: validation", "SASRec: validation"] and _axis(drawn.specs[0]) == "iterations"


def _axis(spec):
    return next(layer["encoding"]["x"]["title"] for layer in spec["layer"] if "encoding" in layer)

import pytest
from pages import Page, heights

from feedgym.experiments.report_agents import (
    agent_label,
    last_difference,
    ordered,
    style_of,
    visits_plot,
    visits_tables,
)


def series(*mean):
    return {"mean": list(mean), "low": [m - 1 for m in mean], "high": [m + 1 for m in mean]}


def told(num_visits=10):
    visits = range(1, num_visits + 1)
    agents = {
        name: {
            "true_reward": series(*(v * scale for v in visits)),
            "repeats": series(*(v / 100 for v in visits)),
            "alive": {"mean": [1.0] * num_visits},
            "concentration": {"mean": [0.25] * num_visits},
        }
        for name, scale in (("aligned", 2.0), ("base", 1.0), ("oracle", 4.0))
    }
    agents["base"]["model_reward"] = series(*(3.0 for _ in visits))
    return {"agents": agents, "difference": {"aligned over base": series(*(float(v) for v in visits))}}


def test_agents_have_one_order_with_the_best_of_n_after_those_that_search():
    names = ["oracle", "mine", "aligned_best_of_16", "aligned", "base_best_of_4_by_truth", "base_best_of_16", "base"]
    names += ["base_best_of_4", "aligned_searched", "cascade", "random"]
    expected = ["random", "base", "aligned", "aligned_searched", "base_best_of_4", "base_best_of_16"]
    expected += ["aligned_best_of_16", "base_best_of_4_by_truth", "cascade", "oracle", "mine"]
    assert ordered(names) == expected and ordered(dict.fromkeys(names)) == expected


def test_what_knows_the_truth_is_marked():
    assert agent_label("base_best_of_16") == "base best of 16"
    assert agent_label("base_best_of_16_by_truth") == "base best of 16 by truth (study only)"


def test_lines_of_one_plot_can_be_told_apart():
    names = ["random", "popular", "base", "aligned", "base_searched", "aligned_searched", "base_best_of_16"]
    names += ["aligned_best_of_16", "cascade", "retrieved", "oracle", "mine"]
    styles = {tuple(sorted(style_of(name, names).items())) for name in names}
    assert len(styles) == len(names)


def test_the_tables_tell_some_visits_and_the_last_one():
    first, rest = Page(visits_tables(told())).tables
    assert first[0][1:] == ["visit 1", "visit 8", "visit 10"]
    by_name = {row[0]: row[1:] for row in [*first, *rest]}
    assert by_name["aligned"] == ["2.0 [1.0, 3.0]", "16.0 [15.0, 17.0]", "20.0 [19.0, 21.0]"]
    assert by_name["aligned minus base"][0] == "1.0 [0.0, 2.0]"
    assert by_name["share of the 20 most served: oracle"][0] == "0.25"
    assert "reward model's prediction: base" in by_name and "reward model's prediction: aligned" not in by_name


def test_a_visit_that_nobody_paid_is_a_dash_in_the_table_and_a_gap_in_the_chart():
    by_visit = told()
    for end in ("mean", "low", "high"):
        by_visit["agents"]["base"]["true_reward"][end][-1] = None
    assert Page(visits_tables(by_visit)).table("base")["base"][-1] == "-"
    drawn = Page(visits_plot(by_visit)).charts
    assert list(drawn) == ["true reward per visit", "reward model's prediction", "share seen before",
                           "share of the 20 most served", "users still there"]  # fmt: skip
    lines = drawn["true reward per visit"]
    assert list(lines) == ["base", "aligned", "oracle"] and len(lines["base"]) == 10
    assert heights(lines)["base"] == [float(v) for v in range(1, 10)] and lines["base"][-1]["y"] is None


def test_the_last_visit_is_told_in_words_where_it_is_known():
    by_visit = told()
    assert last_difference(by_visit, "aligned over base") == "at visit 10: +10.00 [+9.00, +11.00]"
    assert last_difference(by_visit, "ppo over popular") == "" and last_difference(None, "aligned over base") == ""
    by_visit["difference"]["aligned over base"]["mean"][-1] = None
    assert last_difference(by_visit, "aligned over base") == ""


@pytest.mark.parametrize("nothing", [None, {}])
def test_without_visits_there_is_nothing_to_draw(nothing):
    assert visits_plot(nothing) == "" and visits_tables(nothing) == ""

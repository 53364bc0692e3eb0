from hypothesis import given
from hypothesis import strategies as st
from pages import Page, points

from feedgym.experiments.report_front import front, front_plot


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=8))
def test_on_the_front_nobody_is_beaten_and_everyone_else_is(points):
    costs, values = zip(*points, strict=True)
    kept = front(costs, values)
    assert kept == sorted(kept, key=lambda at: costs[at])

    def beaten(a):
        return any(
            (costs[b] <= costs[a] and values[b] > values[a]) or (costs[b] < costs[a] and values[b] >= values[a])
            for b in range(len(points))
        )

    assert {points[at] for at in kept} == {points[at] for at in range(len(points)) if not beaten(at)}


def value(mean, spread=0.25):
    return {"mean": mean, "low": mean - spread, "high": mean + spread}


def agent(reward, ms, mflop):
    return {
        "true_reward": value(reward),
        "cost_ms": value(ms, ms / 10),
        "cost_mflop": {"mean": mflop, "low": None, "high": None},
    }


def test_everyone_with_a_cost_is_drawn_with_intervals_and_the_front():
    agents = {
        "popular": agent(2.0, 0.1, 0.0),
        "base": agent(2.4, 1.0, 10.0),
        "aligned": agent(3.2, 1.1, 10.0),
        "base_best_of_16": agent(2.9, 16.0, 160.0),
        "oracle": {"true_reward": value(5.0)},  # nobody can ask it for a price
    }
    ms, mflop = map(points, Page(front_plot(agents)).specs)
    stairs = ms.pop("")
    assert list(ms) == ["popular", "base", "aligned", "base best of 16"]
    assert [(row["x"], row["y"]) for row in stairs] == [(0.1, 2.0), (1.0, 2.4), (1.1, 3.2)]
    (dot,) = ms["aligned"]
    assert (dot["l"], dot["h"], dot["a"], dot["b"], dot["n"]) == (2.95, 3.45, 0.99, 1.21, "aligned")
    assert min(row["x"] for rows in mflop.values() for row in rows) > 0, "what costs nothing is at the left"


def test_without_costs_there_is_no_picture():
    assert front_plot({"base": {"true_reward": value(2.0)}}) == ""
    assert front_plot({"base": {"cost_ms": value(2.0), "recall@5 of session": value(0.1)}}) == ""

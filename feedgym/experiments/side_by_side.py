"""Puts finished runs side by side on one page: what differs in their configurations, their figures and their curves."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from feedgym.experiments.charts import Series, figures, hue, in_rows, panels, plane
from feedgym.experiments.page import folded, html_table, page, section, with_ends
from feedgym.experiments.report import READ, label_of, metrics_of
from feedgym.experiments.report_agents import PANELS, agent_label, ordered
from feedgym.experiments.report_front import front_plot

Summary = Mapping[str, Any]
Runs = Mapping[str, tuple[Mapping[str, Any], Summary]]
"""By name of the run: its configuration as plain values, with its ``kind``, and its summary."""

DRAWN = 4
"""Metrics that are drawn; all are in the table."""
ROUNDS = {
    "true_mean": "true reward of the sampled sessions",
    "model_mean": "the reward model's prediction for them",
    "rank_correlation": "rank correlation with the truth",
    "kl_to_base": "KL to base (nats)",
    "diversity": "diversity",
}
"""Figures of a round that are drawn, with their titles."""


def side_by_side(runs: Runs) -> str:
    """Make the page.

    Args:
        runs: two runs or more.
    """
    summaries = {name: summary for name, (_, summary) in runs.items()}
    title = " · ".join(runs)
    return page(
        title,
        [
            f"<h1>{html.escape(title)}</h1>",
            section("The runs", _runs_table(summaries)),
            section("What differs in the configurations", _differences_table(runs), read=READ_OPTIONS),
            section("Gains", _lifts_table(summaries), read=READ_GAINS),
            section(
                "Agents", _agents_chart(summaries), folded("All figures", _agents_table(summaries)), read=READ_AGENTS
            ),
            section("Round by round", _rounds_charts(summaries), read=READ["rounds"]),
            section("Visit by visit", _visits_charts(summaries), read=READ_VISITS),
            section("True reward against the cost of a request", _front(summaries), read=READ["front"]),
        ],
    )


READ_OPTIONS = "Options with different values; all others are equal. A dash: the run's kind has no such option."
READ_GAINS = (
    "The relative gain of each run's compared agents, with its 95% interval, paired over users within the run. Two "
    "runs are not paired with each other: judge their difference by the distance of both intervals."
)
READ_AGENTS = (
    "A dot per agent and run with its 95% interval. Runs are comparable where they are judged by the same users; the "
    "first table says by whom."
)
READ_VISITS = "Bands are 95% intervals over users. The agent is the one that each run is about."

# ---------------------------------------------------------------- tables


def _runs_table(summaries: Mapping[str, Summary]) -> str:
    rows = [
        [name, str(told.get("title", "-")), str(told.get("judged_by", "-")), _seeds(told), told["git_revision"][:12]]
        for name, told in summaries.items()
    ]
    return html_table(["run", "experiment", "judged by", "seed", "revision"], rows)


def _seeds(summary: Summary) -> str:
    seeds = summary.get("seed", summary.get("seeds", "-"))
    return ", ".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds)


def _differences_table(runs: Runs) -> str:
    """Table of the options that are not equal in all runs."""
    options = {name: dict(_flat(config)) for name, (config, _) in runs.items()}
    names = dict.fromkeys(option for told in options.values() for option in told)
    rows = [
        [option, *(told.get(option, "-") for told in options.values())]
        for option in names
        if len({told.get(option, "-") for told in options.values()}) > 1
    ]
    return html_table(["option", *options], rows) if rows else "<p>The configurations are equal.</p>"


def _flat(config: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Options by dotted name, as text."""
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, " ".join(map(str, config)) if isinstance(config, list) else str(config)


def _lifts_table(summaries: Mapping[str, Summary]) -> str:
    lifts = {name: told["lift"] for name, told in summaries.items() if told.get("lift")}
    if not lifts:
        return ""
    metrics = metrics_of(lifts)
    pairs = [" over ".join(summaries[name].get("lift_names", ("aligned", "base"))) for name in lifts]
    heads = [f"{name}: {pair}" for name, pair in zip(lifts, pairs, strict=True)]
    rows = [[label_of(metric), *(with_ends(lift.get(metric), "+%") for lift in lifts.values())] for metric in metrics]
    return html_table(["", *heads], rows)


def _agents_table(summaries: Mapping[str, Summary]) -> str:
    """Table with a row per agent and run."""
    agents = {name: _measured(told) for name, told in summaries.items()}
    metrics = metrics_of({f"{run} {agent}": told for run in agents for agent, told in agents[run].items()})
    rows = [
        [f"{agent_label(agent)}, {run}", *(with_ends(agents[run][agent].get(metric)) for metric in metrics)]
        for agent in ordered(dict.fromkeys(agent for told in agents.values() for agent in told))
        for run in agents
        if agent in agents[run]
    ]
    return html_table(["", *map(label_of, metrics)], rows)


def _measured(summary: Summary) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The agents' figures, without what else a kind of experiment tells of them."""
    return {
        agent: {metric: value for metric, value in told.items() if isinstance(value, Mapping) and "mean" in value}
        for agent, told in summary["agents"].items()
    }


# ---------------------------------------------------------------- charts


def _agents_chart(summaries: Mapping[str, Summary]) -> str:
    agents = {name: _measured(told) for name, told in summaries.items()}
    metrics = metrics_of({f"{run} {agent}": told for run in agents for agent, told in agents[run].items()})
    charts = []
    for metric in metrics[:DRAWN]:
        series = []
        for place, (run, told) in enumerate(agents.items()):
            known = {agent_label(agent): told[agent][metric] for agent in ordered(told) if metric in told[agent]}
            series.append(Series(label=run, x=list(known), y=list(known.values()), mark="dot", colour=hue(place)))
        charts.append(in_rows(label_of(metric), series))
    return panels(*charts, width=380)


def _rounds_charts(summaries: Mapping[str, Summary]) -> str:
    charts = []
    for key, title in ROUNDS.items():
        lines = [
            _line(run, place, range(len(rounds)), [row.get(key) for row in rounds])
            for place, (run, told) in enumerate(summaries.items())
            if (rounds := told.get("rounds")) and any(key in row for row in rounds)
        ]
        if lines:
            charts.append(plane(title, lines, x="rounds of alignment", whole=True))
    return panels(*charts)


def _visits_charts(summaries: Mapping[str, Summary]) -> str:
    """Charts of each run's agent by visit, and of its difference to what it is compared with."""
    charts = []
    for metric, title in PANELS.items():
        lines = [
            _line(run, place, *_along(told["by_visit"]["agents"][agent][metric]))
            for place, (run, told) in enumerate(summaries.items())
            if (agent := _about(told)) and metric in told["by_visit"]["agents"][agent]
        ]
        if lines:
            charts.append(plane(title, lines, x="visit", whole=True))
    gains = [
        _line(run, place, *_along(told["by_visit"]["difference"][f"{agent} over base"]))
        for place, (run, told) in enumerate(summaries.items())
        if (agent := _about(told)) and f"{agent} over base" in told["by_visit"]["difference"]
    ]
    if gains:
        charts.insert(0, plane("gain in true reward over the base", gains, x="visit", whole=True, lines={"base": 0}))
    return panels(*charts)


def _about(summary: Summary) -> str:
    """The agent that a run is about, if it is judged visit by visit."""
    agent = summary.get("lift_names", ("aligned",))[0]
    return agent if agent in (summary.get("by_visit") or {}).get("agents", ()) else ""


def _along(told: Mapping[str, Sequence[Any]]) -> tuple[Sequence[int], list[Any]]:
    return range(1, len(told["mean"]) + 1), figures(told)


def _line(run: str, place: int, x: Sequence[int], y: Sequence[Any]) -> Series:
    return Series(label=run, x=x, y=y, colour=hue(place))


def _front(summaries: Mapping[str, Summary]) -> str:
    return front_plot(
        {
            f"{agent_label(agent)}, {run}": told
            for run, all_ in summaries.items()
            for agent, told in _measured(all_).items()
        }
    )

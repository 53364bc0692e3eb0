"""Presents the result: one self-contained report.html with plots and tables, and the table for the terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from feedgym.data.events import BEHAVIOURS
from feedgym.experiments.align.pictures import gap_section, over_optimisation_section
from feedgym.experiments.cycles.report import cycles_section
from feedgym.experiments.page import (
    COLOURS,
    axes_row,
    folded,
    html_table,
    image,
    missing,
    number,
    page,
    section,
    with_ends,
)
from feedgym.experiments.report_agents import agent_label, last_difference, ordered, visits_plot, visits_tables
from feedgym.experiments.report_front import front_plot
from feedgym.experiments.run import Run, write_text
from feedgym.experiments.serve import FIRST_REWARD, FIRST_VISITS

Summary = Mapping[str, Any]
Write = Callable[[Summary, Path], Any]
"""Writes report.html for a summary into a run's folder."""

OURS = ("aligned", "base")
"""The two agents that are compared if a summary does not say."""

LABELS = {
    "true_reward": "true reward per visit",
    FIRST_REWARD: f"true reward, first {FIRST_VISITS} visits",
    "model_reward": "reward model's prediction",
    "reward_a_user": "true reward per user",
    "watch_s": "watch time per visit (s)",
    "session_items": "items seen per visit",
    "like_rate": "likes per item seen",
    "return_24h": "back within 24 h",
    "churn_rate": "users lost",
    "diversity": "diversity",
    "repeats": "share seen before",
    "creator_gini": "creator Gini",
    "creators_unseen": "creators unseen",
    "catalog_coverage": "items covered",
    "top_1pct_share": "top 1% share",
    "cold_share": "cold share",
    "exploration_share": "explore share",
    "exploration_cost": "explore cost",
    "cost_ms": "ms per request",
    "cost_mflop": "MFLOP per request",
}
"""The most important metrics, with their names for people."""

SHORT = {
    "true_reward": "reward",
    "watch_s": "watch s",
    "like_rate": "likes",
    "return_24h": "24 h",
    "cost_ms": "ms",
    "cost_mflop": "MFLOP",
}
"""Metrics of a comparison of many agents in the terminal, per visit or per request."""
MOST_COLUMNS = 6
"""Most agents that fit side by side in the terminal."""

FORETOLD = re.compile(r"(recall|ndcg)@(\d+)")
"""Metrics of an agent's predictions, with their cut-off; if there are any, they come before all others."""

ROUND_PANELS = (
    (
        "reward of the sampled sessions",
        (
            ("model_mean", "reward model, mean", "model", "-"),
            ("model_max", "reward model, best", "model", "--"),
            ("true_mean", "truth, mean", "truth", "-"),
            ("true_max", "truth, best", "truth", "--"),
        ),
    ),
    ("rank correlation with the truth", (("rank_correlation", "within users", "truth", "-"),)),
    (
        "diversity and legality",
        (("diversity", "diversity", "aligned", "-"), ("legality", "legal without the trie", "base", "--")),
    ),
    ("drift", (("kl_to_base", "KL to base (nats)", "model", "-"), ("entropy", "entropy (nats)", "base", "--"))),
    (
        "change of log-probability in the round",
        (
            ("chosen_logp_change", "chosen", "aligned", "-"),
            ("rejected_logp_change", "rejected", "model", "-"),
        ),
    ),
)
"""Panels of the rounds plot: title, then (key of the round, label, colour, line)."""


def conclude(
    run: Run, summary: dict[str, Any], artifacts: Mapping[str, str], write: Write | None = None
) -> dict[str, Any]:
    """End a run: write its result for programs and for people, and add it to the W&B record.

    Args:
        run: the run.
        summary: the future content of summary.json.
        artifacts: names of W&B artefacts, with the stages that hold them.
        write: writes the page for kinds of experiments with a page of their own; :func:`write_report` if None.

    Returns:
        The summary.
    """
    run.finish(summary)
    (write or write_report)(summary, run.folder)
    run.publish(summary, artifacts)
    return summary


def write_report(summary: Summary, folder: Path) -> Path:
    """Write ``report.html`` for a run's summary.

    Args:
        summary: the content of ``summary.json``; parts that a run does not have are left out of the page.
        folder: the run folder.

    Returns:
        The file's path.
    """
    agents = summary["agents"]
    rates = [f"{name}_rate" for name in BEHAVIOURS if _has(agents, f"{name}_rate")]
    sections = [
        _headline(summary),
        cycles_section(summary),
        section(f"Judged by {summary['judged_by']}", _bars(agents, _first_metrics(agents)), _agents_table(summary)),
        section("True reward against the cost of a request", front_plot(agents)),
        section("Visit by visit", visits_plot(summary.get("by_visit")), visits_tables(summary.get("by_visit"))),
        section("Over the trainings", _seeds_table(summary.get("over_seeds"))),
        section("Learning", _learning_plot(summary.get("learning"), summary.get("learning_names"))),
        section("Alignment, round by round", _rounds_plot(summary.get("rounds")), _rounds_table(summary.get("rounds"))),
        over_optimisation_section(summary.get("over_optimisation"), summary.get("stops")),
        gap_section(summary.get("gap")),
        section("Predicted and true values", _scatter_plot(summary.get("scatter"))),
        section("Behaviours per item seen", _bars(agents, rates, width=2.2)),
        section("The reward model on users it never saw: area under the ROC curve", _aucs(summary.get("reward_model"))),
        section("The items' codes", _facts_table(summary.get("tokenizer"))),
        section("Sessions to read", _samples_table(summary.get("samples"))),
        section("Time by stage", _stages_table(summary["stages"])),
    ]
    path = folder / "report.html"
    write_text(path, page(summary["title"], sections))
    return path


def compact_table(title: str, caption: str) -> Table:
    """Make an empty table for the terminal that stays within 80 columns; texts are escaped."""
    return Table(
        title=escape(title), caption=escape(caption), caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
        pad_edge=False,
    )  # fmt: skip


def agents_table(summary: Summary) -> Table:
    """Table of the agents side by side, for the terminal: means, and the lift with its 95% interval.

    The second judgement, by search, is in the caption and in the report, because 80 columns cannot hold it. If there
    are too many agents for columns, each gets a row with the metrics of ``SHORT``.
    """
    if len(summary["agents"]) > MOST_COLUMNS and "lifts" in summary and _has(summary["agents"], "cost_ms"):
        return _contest_table(summary)
    agents = {name: metrics for name, metrics in summary["agents"].items() if not name.endswith("_searched")}
    title, caption = escape(summary["title"]), escape(_lift_sentence(summary))
    table = Table(title=title, caption=caption, caption_justify="left")
    table.add_column("", style="bold")
    for name in ordered(agents):
        table.add_column(name, justify="right")
    table.add_column(_lift_name(summary), justify="right")
    for metric in _metrics(agents):
        if metric in LABELS or not metric.endswith("_rate"):  # the rarer behaviours are in the report
            cells = [agents[name].get(metric) for name in ordered(agents)]
            means = ["-" if value is None else number(value["mean"]) for value in cells]
            table.add_row(_label(metric), *means, _change(summary, metric))
    return table


def _contest_table(summary: Summary) -> Table:
    """Table of many agents, one per row, with the lift of the compared agent over each of them."""
    agents, ours = summary["agents"], summary.get("lift_names", OURS)[0]
    title, caption = escape(summary["title"]), escape(f"{_lift_sentence(summary)}; lift: {ours} over each")
    table = Table(title=title, caption=caption, caption_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for head in (*SHORT.values(), "lift"):
        table.add_column(head, justify="right", no_wrap=True)
    for name in ordered(agents):
        cells = [agents[name].get(metric) for metric in SHORT]
        lifted = summary["lifts"].get(f"{ours} over {name}", {}).get("true_reward")
        change = "-" if lifted is None else f"{lifted['mean']:+.1%}"
        table.add_row(name.replace("_", " "), *("-" if v is None else number(v["mean"]) for v in cells), change)
    return table


# ---------------------------------------------------------------- words and numbers


def _has(agents: Mapping[str, Any], metric: str) -> bool:
    return any(metric in agent for agent in agents.values())


def _metrics(agents: Mapping[str, Any]) -> list[str]:
    """All metrics of the agents: those of predictions by rising cut-off, then those of LABELS, then the others."""
    names = sorted({metric for agent in agents.values() for metric in agent})
    parts = {metric: FORETOLD.match(metric) for metric in names}
    foretold = {metric: (int(part[2]), part[1] != "recall", metric) for metric, part in parts.items() if part}
    first = sorted(foretold, key=lambda metric: foretold[metric]) + [metric for metric in LABELS if metric in names]
    return first + [metric for metric in names if metric not in first]


def _first_metrics(agents: Mapping[str, Any], most: int = 4) -> list[str]:
    """The metrics to draw: the most important ones of simulated users, or those that a recorded log allows."""
    return [m for m in _metrics(agents) if m not in ("diversity", FIRST_REWARD)][:most]


def _label(metric: str) -> str:
    return LABELS.get(metric, metric.replace("_rate", "s per item seen").replace("_", " "))


def _change(summary: Summary, metric: str, lift: str = "lift") -> str:
    change = summary[lift].get(metric, {})
    if missing(change.get("mean")):
        return "-"
    return f"{change['mean']:+.1%} [{change['low']:+.1%}, {change['high']:+.1%}]"


def _lift_name(summary: Summary) -> str:
    """Names of the two compared agents."""
    return " over ".join(summary.get("lift_names", OURS))


def _lift_sentence(summary: Summary) -> str:
    if "true_reward" not in summary["lift"]:
        return summary["note"]
    sentence = (
        f"True reward, {_lift_name(summary)}: {_change(summary, 'true_reward')} (95% interval, paired over users)"
    )
    if left := last_difference(summary.get("by_visit"), _lift_name(summary)):
        sentence += f"; {left}"
    if "lift_searched" in summary:
        sentence += f"; when both serve by beam search: {_change(summary, 'true_reward', 'lift_searched')}"
    return sentence


def _headline(summary: Summary) -> str:
    facts = [
        f"seed {summary['seed']}",
        f"revision {summary['git_revision'][:12]}",
        f"peak memory {summary['peak_memory_mb']:,.0f} MB",
        f"{sum(stage['seconds'] for stage in summary['stages'].values()):,.0f} s of work",
    ]
    lead, note = _lift_sentence(summary), summary["note"]
    rest = f"<p>{html.escape(note)}</p>" if note != lead else ""
    return (
        f"<h1>{html.escape(summary['title'])}</h1><p class='lead'>{html.escape(lead)}</p>{rest}"
        f"<p class='facts'>{html.escape(' · '.join(facts))}</p>"
    )


# ---------------------------------------------------------------- plots


def _bars(agents: Mapping[str, Any], metrics: Sequence[str], width: float = 3.2) -> str:
    """Draw a panel per metric, with a bar per agent and intervals."""
    if not metrics:
        return ""
    figure, axes = axes_row(len(metrics), width, height=3.0)
    for axis, metric in zip(axes, metrics, strict=True):
        names = [name for name in ordered(agents) if metric in agents[name]]
        intervals = [agents[name][metric] for name in names]
        mean, low, high = (np.array([value[end] for value in intervals], float) for end in ("mean", "low", "high"))
        colours = [COLOURS.get(name, COLOURS["other"]) for name in names]
        spread = np.maximum([mean - low, high - mean], 0)
        axis.bar([agent_label(name) for name in names], mean, yerr=spread, color=colours, capsize=3, width=0.65)
        axis.set_title(_label(metric), fontsize=10)
        axis.tick_params(axis="x", rotation=90, labelsize=8)
    return image(figure)


def _learning_plot(curves: Sequence[Sequence[Mapping[str, float]]] | None, names: Sequence[str] | None = None) -> str:
    """Draw the trainings' own metrics by requests or by iterations: a panel per metric, a line per training.

    Trainings with ``names`` are of different models, whose figures have different scales, so each has its own panels.
    """
    curves = [curve for curve in curves or () if curve]
    groups = [(f"{name}: ", [curve]) for name, curve in zip(names or (), curves, strict=bool(names))] or [("", curves)]
    panels = [
        (title, metric, group)
        for title, group in groups
        for metric in dict.fromkeys(name for curve in group for row in curve for name in row)
        if metric not in ("iteration", "requests")
    ]
    if not panels:
        return ""
    figure, axes = axes_row(len(panels), width=3.0)
    for axis, (title, metric, group) in zip(axes, panels, strict=True):
        along = "requests" if "requests" in group[0][0] else "iteration"
        for curve in group:
            values = [row.get(metric, np.nan) for row in curve]
            axis.plot([row[along] for row in curve], values, linewidth=1.2, marker="o", markersize=3)
        axis.set_title(f"{title}{metric}".replace("_", " "), fontsize=10)
        axis.set_xlabel("requests" if along == "requests" else "iterations")
        axis.locator_params(axis="x", nbins=4)
    return image(figure)


def _rounds_plot(rounds: Sequence[Mapping[str, float]] | None) -> str:
    if not rounds:
        return ""
    panels = [
        (title, [line for line in lines if any(line[0] in row for row in rounds)]) for title, lines in ROUND_PANELS
    ]
    panels = [panel for panel in panels if panel[1]]
    figure, axes = axes_row(len(panels), width=3.4)
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for key, label, colour, style in lines:
            values = [np.nan if row.get(key) is None else row[key] for row in rounds]
            axis.plot(range(len(rounds)), values, style, color=COLOURS[colour], label=label, marker="o", markersize=3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("rounds of alignment")
        axis.set_xticks(range(len(rounds)))
        axis.legend(fontsize=7, frameon=False)
    return image(figure)


def _scatter_plot(clouds: Sequence[Mapping[str, Any]] | None) -> str:
    """Draw sampled sessions of each round: the reward model's score against the true value."""
    if not clouds:
        return ""
    figure, axes = axes_row(len(clouds), width=2.6, height=2.9)
    limits = [_limits(np.concatenate([np.asarray(cloud[key]) for cloud in clouds])) for key in ("model", "true")]
    low, high = min(limits[0][0], limits[1][0]), max(limits[0][1], limits[1][1])
    for axis, cloud in zip(axes, clouds, strict=True):
        axis.plot([low, high], [low, high], color=COLOURS["other"], linewidth=1)
        axis.scatter(cloud["model"], cloud["true"], s=4, alpha=0.25, color=COLOURS["truth"], linewidths=0)
        axis.scatter([np.mean(cloud["model"])], [np.mean(cloud["true"])], marker="+", s=140, color=COLOURS["model"])
        axis.set_title(f"after {cloud['round']} rounds", fontsize=10)
        axis.set_xlabel("reward model")
        axis.set_xlim(*limits[0])
        axis.set_ylim(*limits[1])
    axes[0].set_ylabel("true value")
    note = "On the line the model is right; the cross is the mean of the sessions."
    return image(figure) + f"<p class='facts'>{note}</p>"


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.002, 0.998])
    margin = 0.05 * (high - low) + 1e-6
    return float(low - margin), float(high + margin)


def _aucs(aucs: Mapping[str, float] | None) -> str:
    if aucs is None:
        return ""
    if not aucs:
        return "<p>No held-out label took two values.</p>"
    figure, (axis,) = axes_row(1, width=1.5 + 0.7 * len(aucs), height=2.4)
    axis.bar(list(aucs), list(aucs.values()), color=COLOURS["model"], width=0.6)
    for place, value in enumerate(aucs.values()):
        axis.text(place, value + 0.01, f"{value:.3f}", ha="center", fontsize=8)
    axis.axhline(0.5, color=COLOURS["base"], linewidth=1)
    axis.set_ylim(min(0.45, *aucs.values()), 1)
    axis.tick_params(axis="x", rotation=25, labelsize=8)
    return image(figure)


# ---------------------------------------------------------------- tables


def _agents_table(summary: Summary) -> str:
    agents = summary["agents"]
    rows = [
        [_label(metric), *(with_ends(agents[name].get(metric)) for name in ordered(agents)), _change(summary, metric)]
        for metric in _metrics(agents)
    ]
    return html_table(["", *map(agent_label, ordered(agents)), _lift_name(summary)], rows)


def _seeds_table(over_seeds: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Table of means over trainings with their intervals, and of each training."""
    if not over_seeds or len(next(iter(over_seeds.values()))["runs"]) < 2:
        return ""
    rows = [[_label(name), with_ends(value), *map(number, value["runs"])] for name, value in over_seeds.items()]
    runs = [f"training {n + 1}" for n in range(len(next(iter(over_seeds.values()))["runs"]))]
    return html_table(["", "mean, 95% interval over trainings", *runs], rows)


def _rounds_table(rounds: Sequence[Mapping[str, float]] | None) -> str:
    if not rounds:
        return ""
    keys = list(dict.fromkeys(key for row in rounds for key in row))
    rows = [[key.replace("_", " "), *(number(row.get(key)) for row in rounds)] for key in keys]
    return folded("All figures of all rounds", html_table(["rounds done", *map(str, range(len(rounds)))], rows))


def _facts_table(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return ""
    rows = [
        [name.replace("_", " "), ", ".join(map(number, value)) if isinstance(value, list) else number(value)]
        for name, value in facts.items()
    ]
    return folded("Quality of the tokenizer", html_table(["", ""], rows))


def _samples_table(samples: Mapping[str, Any] | None) -> str:
    if not samples:
        return ""
    rows = [[number(value) for value in row] for row in samples["rows"]]
    return folded("The last visits of a few users, item by item", html_table(samples["columns"], rows))


def _stages_table(stages: Mapping[str, Mapping[str, float]]) -> str:
    rows = [[name, f"{stage['seconds']:.1f}"] for name, stage in stages.items()]
    return folded("Seconds per stage", html_table(["stage", "seconds"], rows))

"""Presents the result: one self-contained report.html with plots and tables, and the table for the terminal."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from feedgym.data.events import BEHAVIOURS
from feedgym.experiments.align.pictures import gap_section, over_optimisation_section
from feedgym.experiments.charts import Chart, Series, hue, in_rows, panels, plane
from feedgym.experiments.cycles.report import cycles_section
from feedgym.experiments.page import folded, html_table, missing, number, page, section, with_ends
from feedgym.experiments.report_agents import agent_label, last_difference, ordered, visits_plot, visits_tables
from feedgym.experiments.report_front import front_plot
from feedgym.experiments.report_users import cards, timelines
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
            ("model_mean", "reward model, mean", "model", "solid"),
            ("model_max", "reward model, best", "model", "dashed"),
            ("true_mean", "truth, mean", "truth", "solid"),
            ("true_max", "truth, best", "truth", "dashed"),
        ),
    ),
    ("rank correlation with the truth", (("rank_correlation", "within users", "truth", "solid"),)),
    (
        "diversity and legality",
        (("diversity", "diversity", "aligned", "solid"), ("legality", "legal without the trie", "base", "dashed")),
    ),
    ("drift", (("kl_to_base", "KL to base (nats)", "model", "solid"), ("entropy", "entropy (nats)", "base", "dashed"))),
    (
        "change of log-probability in the round",
        (
            ("chosen_logp_change", "chosen", "aligned", "solid"),
            ("rejected_logp_change", "rejected", "model", "solid"),
        ),
    ),
)
"""Panels of the rounds plot: title, then (key of the round, label, colour, dash)."""

READ = {
    "judged": "A bar per agent, with its 95% interval over users. All agents served the same users with the same "
    "random numbers, so the difference of two agents is surer than their intervals look; the table's last column has "
    "it. The truth is what users did; the reward model only predicts it.",
    "front": "Further up is better, further left is cheaper. No agent beats those on the staircase at the same or a "
    "lower cost. Upright bars are 95% intervals of the reward; level ones span the fastest and the slowest batch.",
    "visits": "A line per agent along the visits of users who are still there; bands are 95% intervals. A gain that "
    "shrinks from left to right was partly favourites served early. Click on a name to single out its line.",
    "seeds": "The same training with other random numbers. The interval is that of the mean over trainings.",
    "learning": "The trainings' own measures, for spotting one that did not converge. Judge agents by the sections "
    "above, not by these.",
    "rounds": "What each round of alignment did to sessions drawn for users of the log. If the reward model rises "
    "while the truth stays or falls, the agent exploits the model's mistakes. Point at a dot for its figure.",
    "scatter": "A dot per drawn session. On the line the reward model is right; below it, it promises too much. The "
    "cross is the mean of all sessions.",
    "auc": "How well each tower ranks held-out users' answers: 0.5 is chance, 1 is perfect.",
    "timelines": "A column per visit, its items from first to last upwards. Colour is the topic, size the share that "
    "was watched; faint items were not reached. Columns of one colour show an agent that repeats itself.",
    "cards": "The last visit of a few users under each agent, item by item, in the order shown. The bar is the share "
    "that was watched; faint items were not reached.",
}
"""Instructions for reading the sections."""

MOST_POINTS = 240
"""Most sessions to draw in a cloud."""


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
        section(
            f"Judged by {summary['judged_by']}", _bars(agents, _first_metrics(agents)), _agents_table(summary),
            read=READ["judged"],
        ),
        section("True reward against the cost of a request", front_plot(agents), read=READ["front"]),
        section(
            "Visit by visit", visits_plot(summary.get("by_visit")), visits_tables(summary.get("by_visit")),
            read=READ["visits"],
        ),
        section("Over the trainings", _seeds_table(summary.get("over_seeds")), read=READ["seeds"]),
        section(
            "Learning", _learning_plot(summary.get("learning"), summary.get("learning_names")), read=READ["learning"]
        ),
        section(
            "Alignment, round by round", _rounds_plot(summary.get("rounds")), _rounds_table(summary.get("rounds")),
            read=READ["rounds"],
        ),
        over_optimisation_section(summary.get("over_optimisation"), summary.get("stops")),
        gap_section(summary.get("gap")),
        section("Predicted and true values", _scatter_plot(summary.get("scatter")), read=READ["scatter"]),
        section("Behaviours per item seen", _bars(agents, rates, width=220), read=READ["judged"]),
        section("The reward model on users it never saw", _aucs(summary.get("reward_model")), read=READ["auc"]),
        section("The items' codes", _facts_table(summary.get("tokenizer"))),
        section("Users' timelines", timelines(summary.get("samples")), read=READ["timelines"]),
        section("Sessions to read", cards(summary.get("samples")), read=READ["cards"]),
        section("Time by stage", _stages_table(summary["stages"]), _idle_table(summary.get("idle"))),
    ]  # fmt: skip
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
    for metric in metrics_of(agents):
        if metric in LABELS or not metric.endswith("_rate"):  # the rarer behaviours are in the report
            cells = [agents[name].get(metric) for name in ordered(agents)]
            means = ["-" if value is None else number(value["mean"]) for value in cells]
            table.add_row(label_of(metric), *means, _change(summary, metric))
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


def metrics_of(agents: Mapping[str, Any]) -> list[str]:
    """All metrics of the agents: those of predictions by rising cut-off, then those of LABELS, then the others."""
    names = sorted({metric for agent in agents.values() for metric in agent})
    parts = {metric: FORETOLD.match(metric) for metric in names}
    foretold = {metric: (int(part[2]), part[1] != "recall", metric) for metric, part in parts.items() if part}
    first = sorted(foretold, key=lambda metric: foretold[metric]) + [metric for metric in LABELS if metric in names]
    return first + [metric for metric in names if metric not in first]


def _first_metrics(agents: Mapping[str, Any], most: int = 4) -> list[str]:
    """The metrics to draw: the most important ones of simulated users, or those that a recorded log allows."""
    return [m for m in metrics_of(agents) if m not in ("diversity", FIRST_REWARD)][:most]


def label_of(metric: str) -> str:
    """A metric's name for people."""
    return LABELS.get(metric, metric.replace("_rate", "s per item seen").replace("_", " "))


def _change(summary: Summary, metric: str, lift: str = "lift") -> str:
    change = summary[lift].get(metric)
    return with_ends(change, "+%")


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


def _bars(agents: Mapping[str, Any], metrics: Sequence[str], width: int = 240) -> str:
    """Draw a chart per metric, with a bar per agent and intervals."""
    charts = []
    for metric in metrics:
        names = [name for name in ordered(agents) if metric in agents[name]]
        bars = [
            Series(label=agent_label(name), x=[agent_label(name)], y=[agents[name][metric]], mark="bar",
                   colour=name.partition("_")[0] if name.startswith(OURS) else "other")
            for name in names
        ]  # fmt: skip
        charts.append(in_rows(label_of(metric), bars))
    return panels(*(replace(chart, legend=False) for chart in charts), width=width)


def _learning_plot(curves: Sequence[Sequence[Mapping[str, float]]] | None, names: Sequence[str] | None = None) -> str:
    """Draw the trainings' own metrics by requests or by iterations: a chart per metric, a line per training.

    Trainings with ``names`` are of different models, whose figures have different scales, so each has its own charts.
    """
    curves = [curve for curve in curves or () if curve]
    groups = [(f"{name}: ", [curve]) for name, curve in zip(names or (), curves, strict=bool(names))] or [("", curves)]
    charts = [
        _training_chart(f"{title}{metric}".replace("_", " "), metric, group)
        for title, group in groups
        for metric in dict.fromkeys(name for curve in group for row in curve for name in row)
        if metric not in ("iteration", "requests")
    ]
    return panels(*charts, width=260)


def _training_chart(title: str, metric: str, group: Sequence[Sequence[Mapping[str, float]]]) -> Chart:
    along = "requests" if "requests" in group[0][0] else "iteration"
    lines = [
        Series(label=f"training {place + 1}", x=[row[along] for row in curve], y=[row.get(metric) for row in curve],
               colour=hue(place))
        for place, curve in enumerate(group)
    ]  # fmt: skip
    return plane(title, lines, x="requests" if along == "requests" else "iterations", whole=True)


def _rounds_plot(rounds: Sequence[Mapping[str, float]] | None) -> str:
    if not rounds:
        return ""
    charts = []
    for title, lines in ROUND_PANELS:
        drawn = [
            Series(label=label, x=range(len(rounds)), y=[row.get(key) for row in rounds], colour=colour, dash=dash)
            for key, label, colour, dash in lines
            if any(key in row for row in rounds)
        ]
        if drawn:
            charts.append(panels(plane(title, drawn, x="rounds of alignment", whole=True)))
    return f"<div class='charts' style='--least: 300px'>{''.join(charts)}</div>"


def _scatter_plot(clouds: Sequence[Mapping[str, Any]] | None) -> str:
    """Draw sampled sessions of each round: the reward model's score against the true value."""
    if not clouds:
        return ""
    charts, ends = [], [_ends([value for cloud in clouds for value in cloud[key]]) for key in ("model", "true")]
    for cloud in clouds:
        every = math.ceil(len(cloud["model"]) / MOST_POINTS)
        sessions = Series(label="a session", x=cloud["model"][::every], y=cloud["true"][::every], mark="cloud")
        middle = [sum(cloud[key]) / len(cloud[key]) for key in ("model", "true")]
        mean = Series(label="mean of all", x=middle[:1], y=middle[1:], mark="cross", colour="model")
        title = f"after {cloud['round']} rounds"
        charts.append(plane(title, [sessions, mean], x="reward model", y="true value", diagonal=True, ends=ends))
    return panels(*charts, width=250)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis for values, without the few most extreme ones."""
    kept = sorted(value for value in values if not missing(value))
    beyond = len(kept) // 500
    return kept[beyond], kept[-1 - beyond]


def _aucs(aucs: Mapping[str, float] | None) -> str:
    if aucs is None:
        return ""
    if not aucs:
        return "<p>No held-out label took two values.</p>"
    dots = Series(label="", x=list(aucs), y=list(aucs.values()), mark="dot", colour="model")
    low = min(0.45, *(value for value in aucs.values() if not missing(value)))
    chart = in_rows("area under the ROC curve", [dots], ends=(low, 1), walls={"by chance": 0.5})
    return panels(chart, width=340)


# ---------------------------------------------------------------- tables


def _agents_table(summary: Summary) -> str:
    agents = summary["agents"]
    rows = [
        [label_of(metric), *(with_ends(agents[name].get(metric)) for name in ordered(agents)), _change(summary, metric)]
        for metric in metrics_of(agents)
    ]
    return html_table(["", *map(agent_label, ordered(agents)), _lift_name(summary)], rows)


def _seeds_table(over_seeds: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Table of means over trainings with their intervals, and of each training."""
    if not over_seeds or len(next(iter(over_seeds.values()))["runs"]) < 2:
        return ""
    rows = [[label_of(name), with_ends(value), *map(number, value["runs"])] for name, value in over_seeds.items()]
    runs = [f"training {n + 1}" for n in range(len(next(iter(over_seeds.values()))["runs"]))]
    return html_table(["", "mean, 95% interval over trainings", *runs], rows)


def _rounds_table(rounds: Sequence[Mapping[str, float]] | None) -> str:
    if not rounds:
        return ""
    keys = list(dict.fromkeys(key for row in rounds for key in row))
    rows = [[key.replace("_", " "), *(number(row.get(key)) for row in rounds)] for key in keys]
    return folded("All figures of all rounds", html_table(["rounds done", *map(str, range(len(rounds)))], rows))


def _idle_table(idle: Sequence[Mapping[str, float]] | None) -> str:
    if not idle or not any(idle):
        return ""
    keys = list(dict.fromkeys(key for row in idle for key in row))
    rows = [[f"{key} idle" if key != "seconds" else key, *(number(row.get(key)) for row in idle)] for key in keys]
    return folded("Share of each round that workers idled", html_table(["round", *map(str, range(len(idle)))], rows))


def _facts_table(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return ""
    rows = [
        [name.replace("_", " "), ", ".join(map(number, value)) if isinstance(value, list) else number(value)]
        for name, value in facts.items()
    ]
    return folded("Quality of the tokenizer", html_table(["", ""], rows))


def _stages_table(stages: Mapping[str, Mapping[str, float]]) -> str:
    rows = [[name, f"{stage['seconds']:.1f}"] for name, stage in stages.items()]
    return folded("Seconds per stage", html_table(["stage", "seconds"], rows))

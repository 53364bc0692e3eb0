"""Presents the result of a comparison: one self-contained page, and a table for the terminal."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from feedgym.experiments.methods.figures import LAST_REWARD
from feedgym.experiments.methods.pictures import axes_plot, cost_plot, gains_plot, gap_plot, truth_plot, visits_plot
from feedgym.experiments.page import bold, folded, html_table, link, note, number, page, section, with_ends
from feedgym.experiments.report import LABELS, READ, compact_table
from feedgym.experiments.run import write_text
from feedgym.experiments.serve import FIRST_REWARD, FIRST_VISITS

Summary = Mapping[str, Any]

CALLED = {
    **LABELS,
    FIRST_REWARD: f"true reward, first {FIRST_VISITS} visits",
    LAST_REWARD: "true reward, last visit",
    "long_view_rate": "views per item seen",
    "follow_rate": "follows per item seen",
    "true_reward_searched": "true reward by search",
    "model_mean": "predicted reward of sampled sessions, mean",
    "model_max": "predicted reward of sampled sessions, best",
    "true_mean": "truth of sampled sessions, mean",
    "true_max": "truth of sampled sessions, best",
    "legality": "legal without the trie",
    "kl_to_base": "KL to the base (nats)",
    "entropy": "entropy (nats)",
    "learned_from": "pairs or groups learned from",
    "update_s": "seconds of the updates",
    "requests_spent": "users' requests spent",
}
"""Figures in the order of the whole table, with their names for people."""
READ_TRUTH = (
    "A row per condition, best first. The truth is what users did, the prediction what the reward model said of it; a "
    "wide space between the two is reward that the model imagined. Intervals are over the seeds."
)
READ_OPTIONS = "Everything else is as in the preset; the preset's own value is among the rows of each option."
READ_VISITS = "Means over the seeds. A gain that shrinks from left to right was partly favourites served early."
READ_GAINS = (
    "A dot per round, further right the further the agent moved from the base. Where the left chart rises and the "
    "right one falls, a method exploits the reward model's mistakes."
)
READ_GAP = (
    "From the base to the oracle: choosing the best of n sessions of the base by the reward model, and by the truth, "
    "are the marks in between. A method right of the first mark learned more than choosing."
)
FIRST = ("true_reward", LAST_REWARD, "model_reward")
"""Figures of the first table; the whole table is folded away."""


def write_report(summary: Summary, folder: Path, more: Sequence[str] = ()) -> Path:
    """Write ``report.html``.

    Args:
        summary: the content of ``summary.json``.
        folder: the folder of the comparison.
        more: sections for this kind of comparison; they come after the first table.

    Returns:
        The file's path.
    """
    sections = [
        _headline(summary),
        section("Cells that failed", _failed_table(summary)),
        section(f"Judged by {summary['judged_by']}", _first_table(summary), folded("All figures", _table(summary))),
        *more,
        section("Predicted reward, true reward, and the gap to the oracle", truth_plot(summary), read=READ_TRUTH),
        section("Options varied one by one", axes_plot(summary), read=READ_OPTIONS),
        section("True reward against the cost of a request", cost_plot(summary), read=READ["front"]),
        section("Visit by visit", visits_plot(summary), read=READ_VISITS),
        section("Over-optimisation: gains along the rounds", gains_plot(summary), read=READ_GAINS),
        section("Where the gap lies", gap_plot(summary), read=READ_GAP),
        section("Every cell", _cells_table(summary)),
    ]
    path = folder / "report.html"
    write_text(path, page(summary["title"], sections))
    return path


def terminal_table(summary: Summary) -> Table:
    """Table of the conditions and the other agents, best first, in 80 columns."""
    table = compact_table(summary["title"], best_sentence(summary))
    table.add_column("", no_wrap=True, max_width=18)
    for head in ("reward", "last", "model", "over base", "of gap", "KL", "s"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows_in_order(summary):
        figures, way = summary["agents"][row], summary["way"].get(row)
        means = [_mean(figures, metric) for metric in FIRST]
        rest = [_mean(figures, metric, style) for metric, style in (("kl_to_base", ".2g"), ("update_s", ".0f"))]
        gain = summary["over"].get("base", {}).get(row)
        told = ["-" if gain is None else with_ends(gain, "+"), "-" if way is None else f"{way['mean']:.0%}"]
        style = "bold" if row in summary["bold"].get("true_reward", ()) else None
        table.add_row(escape(title(summary, row)), *means, *told, *rest, style=style)
    return table


def rows_in_order(summary: Summary) -> list[str]:
    """The conditions from the best to the worst, then the other agents."""
    agents, conditions = summary["agents"], summary["conditions"]
    reward = {row: agents[row].get("true_reward", {}).get("mean", float("-inf")) for row in agents}
    return sorted(agents, key=lambda row: (row not in conditions, -reward[row]))


def title(summary: Summary, row: str) -> str:
    """A row's name for people; agents that know the truth are marked."""
    return summary["conditions"].get(row) or row.replace("_", " ") + " (study only)" * row.endswith("_by_truth")


def best_sentence(summary: Summary) -> str:
    """The result in one sentence."""
    gains = summary["over"].get("base") or {}
    if not gains:
        return "No cell is finished." if not summary["cells"] else "There is no base to compare with."
    name = max(gains, key=lambda row: gains[row]["mean"])
    best, seeds = summary["bold"].get("true_reward", []), _seeds(gains[name])
    sure = f"{len(best)} of {len(gains)} are not beaten by any other, as far as these seeds can show"
    gain = with_ends(gains[name], "+")
    lead = f"Highest true reward: {title(summary, name)}, {gain} over the base"
    return f"{lead} (95% interval over {seeds}); {sure if best else 'no two can be told apart'}."


# ---------------------------------------------------------------- parts of the page


def _headline(summary: Summary) -> str:
    facts = [
        f"seeds {', '.join(map(str, summary['seeds']))}",
        f"{len(summary['cells'])} cells",
        f"{summary['work_s'] / 60:,.0f} minutes of work",
        f"revision {summary['git_revision'][:12]}",
        f"peak memory {summary['peak_memory_mb']:,.0f} MB",
    ]
    commands = "<br>".join(f"<code>{html.escape(summary[name])}</code>" for name in ("command", "resume"))
    return (
        f"<h1>{html.escape(summary['title'])}</h1><p class='lead'>{html.escape(best_sentence(summary))}</p>"
        f"<p class='facts'>{html.escape(' · '.join(facts))}</p><p>{commands}</p>"
    )


def _failed_table(summary: Summary) -> str:
    if not summary["failed"]:
        return ""
    again = f"<p>Finished cells are kept; to retry these: <code>{html.escape(summary['resume'])}</code></p>"
    return html_table(["cell", "why"], list(summary["failed"].items())) + again


def _first_table(summary: Summary) -> str:
    """Table with a row per condition or agent: rewards, and the confidence in the differences."""
    controls = [control for control, gains in summary["over"].items() if gains]
    heads = [CALLED[metric] for metric in FIRST]
    for control in controls:
        heads += [f"over {title(summary, control)}", "p, Holm"]
    heads += ["share of the gap to the oracle", "worst seed"]
    rows = []
    for row in rows_in_order(summary):
        cells = [_cell(summary, row, metric) for metric in FIRST]
        for control in controls:
            gain = summary["over"][control].get(row)
            cells += ["-", "-"] if gain is None else [with_ends(gain, "+"), number(gain["p_holm"])]
        way = summary["way"].get(row)
        told = ["-", "-"] if way is None else [with_ends(way, "%"), f"{way['worst']:.0%}"]
        rows.append([title(summary, row), *cells, *told])
    read = (
        "All intervals are 95%: by Student's t over the seeds, or over users if there is only one seed. Differences "
        "are taken seed by seed; p is corrected by Holm for the number of rows. The share of the gap from base to "
        "oracle is the interquartile mean over the seeds with a stratified bootstrap. Bold: no other row is better by "
        "a paired test; shown only if the seeds can tell any two rows apart."
    )
    return html_table(["", *heads], rows) + note(read)


def _table(summary: Summary) -> str:
    """Table of all figures of all rows."""
    there = {metric for figures in summary["agents"].values() for metric in figures}
    metrics = [metric for metric in CALLED if metric in there] + sorted(there - set(CALLED))
    heads = [CALLED.get(metric, metric.replace("_", " ")) for metric in metrics]
    rows = [
        [title(summary, row), *(_cell(summary, row, metric) for metric in metrics)] for row in rows_in_order(summary)
    ]
    return html_table(["", *heads], rows)


def _cells_table(summary: Summary) -> str:
    """Table of each cell by itself, with intervals over its users."""
    if not summary["cells"]:
        return ""
    rows = []
    for name, cell in summary["cells"].items():
        figures = [with_ends(cell["agents"][agent].get("true_reward")) for agent in ("aligned", "base")]
        rest = [number(cell["agents"]["aligned"].get(metric, {}).get("mean")) for metric in ("kl_to_base", "update_s")]
        rows.append([link(name, f"{cell['folder']}/report.html"), str(cell["seed"]), *figures, *rest])
    heads = ["cell", "seed", "true reward per visit", "of its base", CALLED["kl_to_base"], CALLED["update_s"]]
    return html_table(heads, rows) + note("Intervals over users.")


# ---------------------------------------------------------------- words and numbers


def _cell(summary: Summary, row: str, metric: str) -> str:
    """A figure with its interval, in bold if nothing beats it."""
    told = summary["agents"][row].get(metric)
    if told is None:
        return "-"
    text = with_ends(told)
    return bold(text) if row in summary["bold"].get(metric, ()) else text


def _mean(figures: Mapping[str, Any], metric: str, style: str = "") -> str:
    if metric not in figures:
        return "-"
    value = figures[metric]["mean"]
    return f"{value:{style}}" if style else number(value)


def _seeds(gain: Mapping[str, Any]) -> str:
    return "1 seed, which has no interval" if (runs := len(gain["runs"])) == 1 else f"{runs} seeds"

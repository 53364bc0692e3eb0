"""The result for people: one self-contained report.html with plots and tables, and the table for the terminal."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from feedgym.experiments.run import write_text

COLOURS = {"model": "#c2571a", "truth": "#1a6b8f", "base": "#8a8f98", "aligned": "#1a8f5b", "other": "#b9bec7"}
AGENT_ORDER = ("random", "popular", "base", "aligned", "oracle")
LABELS = {
    "true_reward": "true reward a visit",
    "model_reward": "reward model's opinion",
    "watch_s": "watch time a visit (s)",
    "session_items": "items seen a visit",
    "like_rate": "likes an item seen",
    "return_24h": "back within 24 h",
    "churn_rate": "users lost",
    "diversity": "diversity",
}

# Panels of the rounds plot: title, then (key of the round, label, colour, line).
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
    ("rank correlation with the truth", (("rank_correlation", "within a user", "truth", "-"),)),
    (
        "diversity and legality",
        (("diversity", "diversity", "aligned", "-"), ("legality", "legal without the trie", "base", "--")),
    ),
    ("drift", (("kl_to_base", "KL to base (nats)", "model", "-"), ("entropy", "entropy (nats)", "base", "--"))),
)


def write_report(summary: Mapping[str, Any], folder: Path) -> Path:
    """Write ``report.html`` for a run's summary.

    Args:
        summary: what ``summary.json`` holds; parts that a run does not have are left out of the page.
        folder: the run folder.

    Returns:
        The file's path.
    """
    sections = [
        _headline(summary),
        _figure("Served to the same fresh users", _agents_plot, summary, "agents"),
        _agents_table(summary),
        _figure("Alignment, round by round", _rounds_plot, summary, "rounds"),
        _figure("What the reward model believes, and what is true", _scatter_plot, summary, "scatter"),
        _figure("Behaviour an item seen", _behaviour_plot, summary, "agents"),
        _table("Next item on the held-out log", summary.get("offline")),
        _rounds_table(summary),
        _table(
            "Reward model on held-out users", {"AUC": summary["reward_model"]} if summary.get("reward_model") else None
        ),
        _table("Item tokenizer", {"tokenizer": summary["tokenizer"]} if summary.get("tokenizer") else None),
        _samples_table(summary),
        _stages_table(summary),
    ]
    path = folder / "report.html"
    write_text(
        path, _PAGE.format(title=html.escape(summary.get("title", "feedgym")), body="\n".join(filter(None, sections)))
    )
    return path


def agents_table(summary: Mapping[str, Any]) -> Table:
    """The agents side by side, for the terminal; every figure with its 95% interval."""
    metrics = [name for name in LABELS if any(name in agent for agent in summary["agents"].values())]
    table = Table(title=summary.get("title"), caption=_lift_sentence(summary), caption_justify="left")
    table.add_column("agent", style="bold")
    for metric in metrics:
        table.add_column(LABELS[metric], justify="right")
    for name in _ordered(summary["agents"]):
        agent = summary["agents"][name]
        table.add_row(name, *(_cell(agent.get(metric)) for metric in metrics))
    return table


def _ordered(agents: Mapping[str, Any]) -> list[str]:
    known = [name for name in AGENT_ORDER if name in agents]
    return known + [name for name in agents if name not in known]


def _cell(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{_number(value['mean'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _lift_sentence(summary: Mapping[str, Any]) -> str:
    found = summary.get("lift", {}).get("true_reward")
    if not found:
        return summary.get("note", "")
    return (
        f"True reward, aligned over base: {found['mean']:+.1%} [{found['low']:+.1%}, {found['high']:+.1%}] "
        "(95% interval, paired over users)"
    )


def _headline(summary: Mapping[str, Any]) -> str:
    note = html.escape(summary.get("note", ""))
    facts = [f"seed {summary['seed']}", f"revision {summary['git_revision'][:12]}"]
    facts.append(f"peak memory {summary['peak_memory_mb']:,.0f} MB")
    lead = f"<p class='lead'>{html.escape(_lift_sentence(summary))}</p>" if summary.get("lift") else ""
    title = html.escape(summary.get("title", "feedgym"))
    return f"<h1>{title}</h1>{lead}<p>{note}</p><p class='facts'>{' · '.join(facts)}</p>"


def _figure(title: str, draw: Callable[[Mapping[str, Any]], Any], summary: Mapping[str, Any], part: str) -> str:
    if not summary.get(part):
        return ""
    figure = draw(summary)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, bbox_inches="tight")
    data = base64.b64encode(picture.getvalue()).decode()
    return f"<h2>{html.escape(title)}</h2><img alt='{html.escape(title)}' src='data:image/png;base64,{data}'>"


def _axes(columns: int, width: float = 4.2, height: float = 3.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e8eb", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _bars(axis: Any, agents: Mapping[str, Any], metric: str) -> None:
    names = [name for name in _ordered(agents) if metric in agents[name]]
    means = np.array([agents[name][metric]["mean"] for name in names])
    spread = np.array([[agents[n][metric]["mean"] - agents[n][metric]["low"] for n in names],
                       [agents[n][metric]["high"] - agents[n][metric]["mean"] for n in names]])  # fmt: skip
    colours = [COLOURS.get(name, COLOURS["other"]) for name in names]
    axis.bar(names, means, yerr=np.maximum(spread, 0), color=colours, capsize=3, width=0.65)
    axis.set_title(LABELS.get(metric, metric.replace("_", " ")), fontsize=10)
    axis.tick_params(axis="x", rotation=35, labelsize=8)


def _agents_plot(summary: Mapping[str, Any]) -> Any:
    metrics = [m for m in ("true_reward", "model_reward", "watch_s", "session_items") if _has(summary, m)]
    figure, axes = _axes(len(metrics), width=3.3)
    for axis, metric in zip(axes, metrics, strict=True):
        _bars(axis, summary["agents"], metric)
    return figure


def _behaviour_plot(summary: Mapping[str, Any]) -> Any:
    names = ("click_rate", "long_view_rate", "like_rate", "follow_rate", "comment_rate", "forward_rate", "hate_rate")
    metrics = [m for m in names if _has(summary, m)]
    figure, axes = _axes(max(len(metrics), 1), width=2.2, height=2.8)
    for axis, metric in zip(axes, metrics, strict=False):
        _bars(axis, summary["agents"], metric)
    return figure


def _has(summary: Mapping[str, Any], metric: str) -> bool:
    return any(metric in agent for agent in summary["agents"].values())


def _rounds_plot(summary: Mapping[str, Any]) -> Any:
    rounds = summary["rounds"]
    panels = [(title, [line for line in lines if line[0] in rounds[0]]) for title, lines in ROUND_PANELS]
    panels = [panel for panel in panels if panel[1]]
    figure, axes = _axes(len(panels), width=3.6)
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for key, label, colour, style in lines:
            values = [row[key] for row in rounds]
            axis.plot(range(len(rounds)), values, style, color=COLOURS[colour], label=label, marker="o", markersize=3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("rounds of alignment")
        axis.set_xticks(range(len(rounds)))
        axis.legend(fontsize=7, frameon=False)
    return figure


def _scatter_plot(summary: Mapping[str, Any]) -> Any:
    clouds = summary["scatter"]
    figure, axes = _axes(len(clouds), width=2.8)
    everything = np.concatenate([np.asarray(cloud["true"]) for cloud in clouds])
    beliefs = np.concatenate([np.asarray(cloud["model"]) for cloud in clouds])
    for axis, cloud in zip(axes, clouds, strict=True):
        axis.scatter(cloud["model"], cloud["true"], s=4, alpha=0.25, color=COLOURS["truth"], linewidths=0)
        axis.scatter([np.mean(cloud["model"])], [np.mean(cloud["true"])], marker="+", s=120, color=COLOURS["model"])
        axis.set_title(f"round {cloud['round']}", fontsize=10)
        axis.set_xlabel("reward model")
        axis.set_xlim(*_limits(beliefs))
        axis.set_ylim(*_limits(everything))
    axes[0].set_ylabel("true value")
    return figure


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.002, 0.998])
    margin = 0.05 * (high - low) + 1e-6
    return float(low - margin), float(high + margin)


def _agents_table(summary: Mapping[str, Any]) -> str:
    agents = summary.get("agents")
    if not agents:
        return ""
    metrics = sorted(
        {m for agent in agents.values() for m in agent},
        key=lambda m: (m not in LABELS, list(LABELS).index(m) if m in LABELS else 0, m),
    )
    head = ["metric", *_ordered(agents), "aligned over base"]
    rows = []
    for metric in metrics:
        found = summary.get("lift", {}).get(metric)
        change = f"{found['mean']:+.1%} [{found['low']:+.1%}, {found['high']:+.1%}]" if found else ""
        rows.append(
            [
                LABELS.get(metric, metric.replace("_", " ")),
                *(_cell(agents[n].get(metric)) for n in _ordered(agents)),
                change,
            ]
        )
    return _html_table(head, rows)


def _rounds_table(summary: Mapping[str, Any]) -> str:
    rounds = summary.get("rounds")
    if not rounds:
        return ""
    keys = list(dict.fromkeys(key for row in rounds for key in row))
    return "<h2>Every figure of every round</h2>" + _html_table(
        keys, [[_number(row.get(k, "")) for k in keys] for row in rounds]
    )


def _table(title: str, rows: Mapping[str, Mapping[str, Any]] | None) -> str:
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    body = [[name, *(_value(row.get(key, "")) for key in keys)] for name, row in rows.items()]
    return f"<h2>{html.escape(title)}</h2>" + _html_table(["", *keys], body)


def _value(value: Any) -> str:
    if isinstance(value, Mapping) and "mean" in value:
        return _cell(value)
    return ", ".join(_number(v) for v in value) if isinstance(value, list | tuple) else _number(value)


def _samples_table(summary: Mapping[str, Any]) -> str:
    samples = summary.get("samples")
    if not samples:
        return ""
    return "<h2>Sample sessions</h2>" + _html_table(
        samples["columns"], [[_number(v) for v in row] for row in samples["rows"]]
    )


def _stages_table(summary: Mapping[str, Any]) -> str:
    rows = [[name, f"{stage['seconds']:.1f}"] for name, stage in summary["stages"].items()]
    return "<h2>Time</h2>" + _html_table(["stage", "seconds"], rows)


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(str(cell)).replace('_', ' ')}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1d2126;
  max-width: 1180px; margin: 2rem auto; padding: 0 1.2rem; }}
h1 {{ font-size: 1.5rem; margin-bottom: .3rem; }} h2 {{ font-size: 1.1rem; margin: 2.2rem 0 .6rem; }}
.lead {{ font-size: 1.15rem; font-weight: 600; }} .facts {{ color: #69707a; font-size: .85rem; }}
img {{ max-width: 100%; height: auto; }} .scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e6e8eb; }}
th:first-child, td:first-child {{ text-align: left; }} th {{ font-weight: 600; border-bottom: 2px solid #c9ced6; }}
</style></head><body>
{body}
</body></html>
"""

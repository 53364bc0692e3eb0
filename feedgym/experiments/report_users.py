"""Shows a few users in reports: their last sessions as cards, and all their visits as timelines."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from feedgym.experiments.charts import Bead, Chart, beads, hue, panels
from feedgym.experiments.report_agents import agent_label

Samples = Mapping[str, Any]
"""The part ``samples`` of a summary; see :func:`feedgym.experiments.serve.samples`."""


def cards(samples: Samples | None) -> str:
    """Show the last visits: a heading per user, and a card per agent with its items; empty without visits."""
    if not samples or not samples["rows"]:
        return ""
    items = [dict(zip(samples["columns"], row, strict=True)) for row in samples["rows"]]
    shown = []
    for user, of_user in groupby(items, key=lambda item: item["user"]):
        sessions = groupby(of_user, key=lambda item: (item["agent"], item["visit"]))
        drawn = "".join(_card(agent_label(agent), visit, list(of)) for (agent, visit), of in sessions)
        shown.append(f"<h3>{html.escape(str(user))}</h3><div class='cards'>{drawn}</div>")
    return "".join(shown)


def timelines(samples: Samples | None) -> str:
    """Draw a chart per user and agent with the items of every visit; empty without them."""
    told = sorted((samples or {}).get("timelines") or (), key=lambda line: line["user"])
    return panels(*map(_timeline, told), width=420)


def _card(agent: str, visit: int, items: Sequence[Mapping[str, Any]]) -> str:
    """One session."""
    head = f"<header><b>{html.escape(agent)}</b> <span>visit {visit}</span></header>"
    return f"<article class='card'>{head}<ol>{''.join(map(_item, items))}</ol></article>"


def _item(item: Mapping[str, Any]) -> str:
    """One item in the colour of its topic, with a bar for the share that was watched."""
    watched, duration = item["watched s"], item["duration s"]
    seen = watched is not None
    share = min(watched / duration, 1) if seen and duration else 0
    did = [name for name in str(item["behaviours"]).split(", ") if seen and name != "-"]
    name = str(item.get("title") or f"item {item['item']}")
    seconds = f"{watched:.3g} of {duration:.3g} s" if seen else "not reached"
    badges = "".join(f"<b>{html.escape(one.replace('_', ' '))}</b>" for one in did)
    tint = f"--tint: {_hue(item['topic'])}; --share: {share:.0%}"
    return (
        f"<li{'' if seen else ' class=faint'} style='{tint}'><span class='name'>{html.escape(name)}</span>"
        f"<span class='facts'>topic {html.escape(str(item['topic']))} · {seconds}</span>"
        f"<span class='did'>{badges}</span></li>"
    )


def _hue(topic: Any) -> str:
    """Hue of a topic in degrees."""
    return hue(int(topic)).partition("(")[2].partition(" ")[0] if topic is not None and int(topic) >= 0 else "0"


def _timeline(line: Mapping[str, Any]) -> Chart:
    """The visits of a user under an agent."""
    data = [
        Bead(x=visit["day"], y=place, share=share, colour=hue(topic) if topic >= 0 else "var(--other)",
             text=f"topic {topic}, " + ("not reached" if share is None else f"{share:.0%} watched"))
        for visit in line["visits"]
        for place, (topic, share) in enumerate(zip(visit["topics"], visit["watched"], strict=True), 1)
    ]  # fmt: skip
    end = ", left for good" if line["left"] else ""
    title = f"{line['user']}, {agent_label(line['agent'])}: {len(line['visits'])} visits{end}"
    return beads(title, data, x="day", y="items")

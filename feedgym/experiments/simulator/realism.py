"""``feedgym realism A B``: compares two logs, as a table, a page with plots, pictures and a JSON file."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from feedgym.data.events import BEHAVIOURS, Catalog, EventLog
from feedgym.data.parquet import replacing
from feedgym.data.parts import has_log
from feedgym.data.readers import load_data
from feedgym.data.realism import Aspect, Distance, compare
from feedgym.data.whole import check_product, product_of
from feedgym.envs.feed import make_simulator
from feedgym.envs.logging import collect_log
from feedgym.experiments.charts import Chart, Series, in_rows, panels, plane, png
from feedgym.experiments.page import html_table, note, number, page, section
from feedgym.experiments.progress import progress
from feedgym.experiments.run import write_json, write_text
from feedgym.plugins import is_named

COLOURS = ("truth", "model")
"""Colours of the two logs."""
SIDES = ("A", "B")
MOST_POINTS = 120
"""Most points of a curve to draw."""


def read_side(
    source: str,
    *,
    users: int,
    visits: int,
    session_length: int,
    seed: int,
    columns: Mapping[str, str] | None = None,
    trust: bool = False,
) -> tuple[EventLog, Catalog]:
    """Get the log that an argument of ``feedgym realism`` names.

    Args:
        source: a run's folder, for its log. Or anything that ``feedgym data inspect`` reads, including
            ``events.parquet`` next to its ``catalog.parquet``. Or a user simulator, whose log is collected under the
            logging policy. A simulator is given by its import path, a learned one by its folder.
        users: number of users of a simulator.
        visits: visits per user of a simulator.
        session_length: items per session of a simulator.
        seed: for a simulator's users.
        columns: column map of a table.
        trust: for a learned simulator's folder, as in :func:`feedgym.envs.feed.make_simulator`.

    Raises:
        ValueError: it names none of these.
    """
    path = product_of(Path(source))
    if has_log(product_of(path / "stages" / "log")):
        check_product(path / "stages" / "log")
        path = product_of(path / "stages" / "log")
    elif path.name == "events.parquet" and (path.parent / "catalog.parquet").exists():
        path = path.parent
    elif (path / "simulator.json").exists() or (is_named("simulator", source) and not path.exists()):
        simulator = make_simulator(source, trust=trust)
        with progress(f"Simulating {source}") as step:
            log = collect_log(
                simulator,
                num_users=users,
                num_visits=visits,
                session_length=session_length,
                seed=seed,
                progress=step,
            )
        return log, simulator.catalog
    return load_data(path, columns)


def realism(
    names: tuple[str, str], a: tuple[EventLog, Catalog], b: tuple[EventLog, Catalog], *, seed: int = 0
) -> dict[str, Any]:
    """Compares two logs, for :func:`table_of` and :func:`write_realism`.

    Returns:
        ``names``, the ``aspects`` of both and their ``distances``.
    """
    of_a, of_b, distances = compare(a, b, seed=seed)
    return {"names": names, "aspects": (of_a, of_b), "distances": distances}


def table_of(comparison: Mapping[str, Any]) -> Table:
    """The figures and distances as a table for the terminal."""
    title = "A = {}   B = {}".format(*comparison["names"])
    shown = Table(title=title, title_justify="left", caption_justify="left", caption=CAPTION)
    for name, side in (("", "left"), ("A", "right"), ("B", "right"), ("distance", "right"), ("A's halves", "right")):
        shown.add_column(name, justify=side)  # type: ignore[arg-type]
    before = ""
    for distance in comparison["distances"]:
        if distance.aspect != before:
            why = f"   ({distance.missing})" if distance.missing else ""
            shown.add_row(f"[bold]{distance.aspect}[/bold]{why}", "", "", "", "")
            before = distance.aspect
        shown.add_row(*_cells(distance))
    return shown


CAPTION = (
    "The distance of two figures is their absolute difference. A's halves: the same distance between two halves of A's "
    "users, which shows what chance alone gives; a mean over four ways to halve them."
)


def _cells(distance: Distance) -> list[str]:
    kind = "" if distance.kind == "absolute difference" else f": {distance.kind}"
    values = [number(value) for value in (distance.a, distance.b, distance.distance, distance.halves)]
    return [f"  {distance.figure}{kind}", *values]


def write_realism(comparison: Mapping[str, Any], folder: Path) -> Path:
    """Write ``realism.html``, ``realism.json`` and one PNG per plot.

    Args:
        comparison: result of :func:`realism`.
        folder: folder to write to, made if it does not exist.

    Returns:
        The page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        f"<h1>{html.escape(' and '.join(comparison['names']))}</h1>",
        note(CAPTION),
    ]
    of_a, of_b = comparison["aspects"]
    legend = [f"{side}: {name}" for side, name in zip(SIDES, comparison["names"], strict=True)]
    for name in of_a:
        chart = _chart(name, of_a[name], of_b[name], legend)
        if chart is not None:
            with replacing(folder / f"{name.replace(' ', '_')}.png") as temporary:
                temporary.write_bytes(png(chart))
        picture = "" if chart is None else panels(chart, width=420)
        rows = [_cells(distance) for distance in comparison["distances"] if distance.aspect == name]
        why = "".join(
            f"<p>{side}: {html.escape(aspect.missing)}.</p>"
            for side, aspect in zip(SIDES, (of_a[name], of_b[name]), strict=True)
            if aspect.missing
        )
        parts.append(
            section(name.capitalize(), picture, why, html_table(["", "A", "B", "distance", "A's halves"], rows))
        )
    facts = {
        "A": comparison["names"][0],
        "B": comparison["names"][1],
        "distances": [vars(d) for d in comparison["distances"]],
    }
    write_json(folder / "realism.json", facts)
    path = folder / "realism.html"
    write_text(path, page(" and ".join(comparison["names"]), parts))
    return path


# ---------------------------------------------------------------- charts


def _chart(name: str, a: Aspect, b: Aspect, legend: list[str]) -> Chart | None:
    """The chart of an aspect, or None if neither log has one."""
    both = zip((a, b), COLOURS, legend, strict=True)
    told = [(aspect, colour, label) for aspect, colour, label in both if not aspect.missing]
    return DRAW[name](told) if name in DRAW and told else None


Told = list[tuple[Aspect, str, str]]
"""An aspect of each log that has it, with its colour and its name."""


def _samples(told: Told) -> Chart:
    """Histograms of relative frequencies; the bins of both logs are equal."""
    unit = told[0][0].unit
    top = {"durations": 2, "exposures per user over their mean": 5}.get(unit)
    if unit == "items seen":
        edges = np.arange(0.5, 31.5)
    else:
        edges = np.linspace(-3.5, 3, 40) if top is None else np.linspace(0, top, 41)
    stairs = []
    for aspect, colour, label in told:
        assert aspect.sample is not None
        share, _ = np.histogram(np.clip(aspect.sample, edges[0], edges[-1]), edges)
        heights = [*(share / max(len(aspect.sample), 1)).tolist(), 0.0]
        stairs.append(Series(label=label, x=edges.tolist(), y=heights, colour=colour, mark="step"))
    return plane("share", stairs, x=unit)


def _curves(told: Told) -> Chart:
    lines = []
    for aspect, colour, label in told:
        assert aspect.curve is not None
        every = math.ceil(len(aspect.curve) / MOST_POINTS)
        places = range(1, len(aspect.curve) + 1, every)
        lines.append(Series(label=label, x=places, y=aspect.curve[::every].tolist(), colour=colour))
    return plane(told[0][0].unit, lines, x="place", whole=True)


def _rates(told: Told) -> Chart:
    dots = [
        Series(label=label, x=BEHAVIOURS, y=[max(aspect.figures[name], 1e-6) for name in BEHAVIOURS], colour=colour,
               mark="dot")
        for aspect, colour, label in told
    ]  # fmt: skip
    return in_rows("share of the items seen", dots, log=True)


DRAW: dict[str, Callable[[Told], Chart]] = {
    "item popularity": _curves,
    "session length": _samples,
    "watch ratio": _samples,
    "behaviour rates": _rates,
    "return gaps": _samples,
    "repeat-topic autocorrelation": _curves,
    "position effect": _curves,
    "user heterogeneity": _samples,
}
"""Draws the chart of an aspect."""

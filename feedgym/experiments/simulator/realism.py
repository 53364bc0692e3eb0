"""``feedgym realism A B``: compares two logs, as a table, a page with plots, pictures and a JSON file."""

from __future__ import annotations

import html
import io
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
from feedgym.experiments.page import COLOURS, axes_row, html_table, image, number, page, section
from feedgym.experiments.progress import progress
from feedgym.experiments.run import write_json, write_text
from feedgym.plugins import is_named

COLOUR_A, COLOUR_B = COLOURS["truth"], COLOURS["model"]
SIDES = ("A", "B")


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
        f"<p class='facts'>{html.escape(CAPTION)}</p>",
    ]
    of_a, of_b = comparison["aspects"]
    legend = [f"{side}: {name}" for side, name in zip(SIDES, comparison["names"], strict=True)]
    for name in of_a:
        figure = _figure(name, of_a[name], of_b[name], legend)
        picture = ""
        if figure is not None:
            _write_png(figure, folder / f"{name.replace(' ', '_')}.png")
            picture = image(figure)
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


def _write_png(figure: Any, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130, bbox_inches="tight")
    with replacing(path) as temporary:
        temporary.write_bytes(picture.getvalue())


# ---------------------------------------------------------------- plots


def _figure(name: str, a: Aspect, b: Aspect, legend: list[str]) -> Any:
    """The plot of an aspect, or None if neither log has one."""
    draw = PLOTS.get(name)
    if draw is None or (a.missing and b.missing):
        return None
    figure, (axis,) = axes_row(1, width=5.2)
    for aspect, colour, label in zip((a, b), (COLOUR_A, COLOUR_B), legend, strict=True):
        if not aspect.missing:
            draw(axis, aspect, colour, label)
    axis.legend(fontsize=7, frameon=False)
    return figure


def _draw_sample(axis: Any, aspect: Aspect, colour: str, label: str) -> None:
    """Draws a histogram of relative frequencies; the bins of both logs are equal if their ranges are."""
    assert aspect.sample is not None
    top = {"items seen": 30, "durations": 2, "exposures per user over their mean": 5}.get(aspect.unit)
    if aspect.unit == "items seen":
        bins = np.arange(0.5, 31.5)
    elif top is None:
        bins = np.linspace(-3.5, 3, 40)
    else:
        bins = np.linspace(0, top, 41)
    values = np.clip(aspect.sample, bins[0], bins[-1])
    share, _ = np.histogram(values, bins)
    axis.stairs(share / max(len(values), 1), bins, color=colour, label=label, linewidth=1.4)
    axis.set_xlabel(aspect.unit)
    axis.set_ylabel("share")


def _draw_curve(axis: Any, aspect: Aspect, colour: str, label: str) -> None:
    assert aspect.curve is not None
    axis.plot(np.arange(1, len(aspect.curve) + 1), aspect.curve, color=colour, label=label, linewidth=1.4, marker=".")
    axis.set_title(aspect.unit, fontsize=9)


def _draw_rates(axis: Any, aspect: Aspect, colour: str, label: str) -> None:
    offset = -0.2 if colour == COLOUR_A else 0.2
    rates = [max(aspect.figures[name], 1e-6) for name in BEHAVIOURS]
    axis.bar(np.arange(len(rates)) + offset, rates, width=0.38, color=colour, label=label)
    axis.set_yscale("log")
    axis.set_xticks(range(len(rates)), BEHAVIOURS, rotation=25, fontsize=8)


PLOTS: dict[str, Callable[[Any, Aspect, str, str], None]] = {
    "item popularity": _draw_curve,
    "session length": _draw_sample,
    "watch ratio": _draw_sample,
    "behaviour rates": _draw_rates,
    "return gaps": _draw_sample,
    "repeat-topic autocorrelation": _draw_curve,
    "position effect": _draw_curve,
    "user heterogeneity": _draw_sample,
}

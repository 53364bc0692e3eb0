"""Figures that describe a log, to look at before training on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOURS, Catalog, Event, EventLog

if TYPE_CHECKING:
    from rich.table import Table

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
A_DATE_S = 3e8
"""Times above this (after 1979) are dates; a simulator's clock begins near 0."""


def inspect_log(log: EventLog, catalog: Catalog) -> dict[str, Any]:
    """Figures of a log and its catalogue, ready for JSON.

    "Events" are examined exposures. Ties are events at the same time as another event of the same user. If a user's
    last events are tied, chance (or the file's order) decides which item a leave-one-out test asks for.

    Returns:
        ``counts``, ``events_per_user``, ``events_per_item`` (quantiles), ``behaviours`` (rates), ``time``, ``ties``,
        ``repeats``, ``popularity``, ``watch`` (None without watch times), ``content``, ``profile``, ``extra``.
    """
    shown = np.flatnonzero(log.event == Event.IMPRESSION)
    seen = shown[log.examined[shown]]
    user = np.searchsorted(log.offsets_U1, seen, side="right") - 1
    item, time_s = log.item_id[seen].astype(np.int64), log.timestamp_s[seen]
    pairs = len(np.unique(user * catalog.num_items + item))
    per_user = np.bincount(user, minlength=log.num_users)
    per_item = np.bincount(item, minlength=catalog.num_items)
    return {
        "counts": {
            "users": log.num_users,
            "items": catalog.num_items,
            "items that occur": int((per_item > 0).sum()),
            "events": len(seen),
            "shown but not examined": len(shown) - len(seen),
            "visits": int((log.event == Event.LOGIN).sum()),
            "density": pairs / (log.num_users * catalog.num_items),
        },
        "events_per_user": _quantiles(per_user),
        "events_per_item": _quantiles(per_item),
        "behaviours": {name: _mean(log.behaviours[seen, b]) for b, name in enumerate(BEHAVIOURS)},
        "time": _time(log, time_s),
        "ties": _ties(log, user, time_s),
        "repeats": {"events": len(seen) - pairs, "share": _share(len(seen) - pairs, len(seen))},
        "popularity": _popularity(per_item),
        "watch": _watch(log, catalog, seen, item),
        "content": _content(catalog),
        "profile": dict(zip(log.profile_names, log.profile_sizes, strict=True)),
        "extra": {name: _mean(values[seen]) for name, values in log.extra.items()},
    }


def gini(count_I: NDArray) -> float:
    """Gini coefficient of counts: 0 where all are equal, near 1 where one item has everything; NaN if all are 0."""
    ordered = np.sort(np.asarray(count_I, dtype=np.float64))
    if not ordered.sum():
        return float("nan")
    rank = np.arange(1, len(ordered) + 1)
    return float(((2 * rank - len(ordered) - 1) * ordered).sum() / (len(ordered) * ordered.sum()))


def _quantiles(values: NDArray) -> dict[str, float]:
    return {"mean": _mean(values), **{f"{q:.0%}": float(np.quantile(values, q)) for q in QUANTILES}}


def _mean(values: NDArray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _time(log: EventLog, time_s: NDArray) -> dict[str, Any]:
    if not log.has_time:
        return {"known": False}
    first_s, last_s = (float(time_s.min()), float(time_s.max())) if len(time_s) else (0.0, 0.0)
    dates = {}
    if first_s > A_DATE_S:
        dates = {name: str(np.datetime64(int(s), "s")) for name, s in (("first", first_s), ("last", last_s))}
    return {"known": True, "days": (last_s - first_s) / 86400, **dates}


def _ties(log: EventLog, user: NDArray, time_s: NDArray) -> dict[str, float]:
    """Events of one user at the same time; also counts tied last events, which decide what leave-one-out asks for."""
    with_next = np.append((np.diff(user) == 0) & (np.diff(time_s) == 0), False)
    tied = with_next | np.concatenate([[False], with_next[:-1]])
    last = np.append(np.diff(user) != 0, True) if len(user) else np.zeros(0, dtype=bool)
    return {
        "events": int(tied.sum()),
        "share": _share(tied.sum(), len(user)),
        "users whose last event is tied": int((tied & last).sum()),
        "share of users": _share((tied & last).sum(), last.sum()),
    }


def _popularity(per_item: NDArray) -> dict[str, float]:
    """Share of all events that the most popular items have."""
    ordered, total = np.sort(per_item)[::-1], per_item.sum()
    tops = {f"top {q:.0%} of items": max(1, round(q * len(ordered))) for q in (0.01, 0.1, 0.5)}
    return {**{name: _share(ordered[:count].sum(), total) for name, count in tops.items()}, "Gini": gini(per_item)}


def _watch(log: EventLog, catalog: Catalog, seen: NDArray, item: NDArray) -> dict[str, float] | None:
    if not log.watch_s[seen].any():
        return None
    fraction = log.watch_s[seen] / catalog.duration_s_I[item]
    return {
        "median seconds": float(np.median(log.watch_s[seen])),
        "mean seconds": _mean(log.watch_s[seen]),
        "median share of the item": float(np.median(fraction)),
        "median item, seconds": float(np.median(catalog.duration_s_I)),
    }


def _content(catalog: Catalog) -> dict[str, Any]:
    texts = [] if catalog.text_I is None else [str(text) for text in catalog.text_I if str(text).strip()]
    return {
        "made of": catalog.content_from or "unknown",
        "width": int(catalog.content_IE.shape[1]),
        "items without": int((~catalog.content_IE.any(axis=1)).sum()),
        "items with text": len(texts),
        "share with text": len(texts) / catalog.num_items,
        "words, median": float(np.median([len(text.split()) for text in texts])) if texts else 0.0,
        "different texts": len(set(texts)),
        "topics": catalog.num_topics,
        "items with a topic": int((catalog.topic_I >= 0).sum()),
    }


# ---------------------------------------------------------------- for people


def inspection_table(report: dict[str, Any], title: str) -> Table:
    """The figures as a table of two columns."""
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column("", style="bold")
    table.add_column("", overflow="fold")
    for name, value in _lines(report):
        table.add_row(name, value)
    return table


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    counts, ties, repeats, content = (report[name] for name in ("counts", "ties", "repeats", "content"))
    lines = [
        (name, f"{count:,}")
        for name, count in counts.items()
        if name != "density" and (count or name != "shown but not examined")
    ]
    lines.append(("density", f"{counts['density']:.4%} of all (user, item) pairs"))
    for name in ("events_per_user", "events_per_item"):
        cells = ", ".join(f"{q} {value:,.0f}" for q, value in report[name].items() if q != "mean")
        lines.append((name.replace("_", " "), f"mean {report[name]['mean']:,.1f}; {cells}"))
    rates = {name: rate for name, rate in report["behaviours"].items() if rate}
    lines.append(("behaviours", ", ".join(f"{name} {rate:.2%}" for name, rate in rates.items()) or "none"))
    lines.append(("time", _time_line(report["time"])))
    if report["time"]["known"]:
        at_end = f"{ties['users whose last event is tied']:,} users ({ties['share of users']:.1%})"
        lines.append(
            ("ties", f"{ties['events']:,} events ({ties['share']:.1%}) share their user's time; last of {at_end}")
        )
    lines.append(("repeats", f"{repeats['events']:,} events ({repeats['share']:.2%}) with an item seen before"))
    shares = [f"{name} {value:.1%}" for name, value in report["popularity"].items() if name != "Gini"]
    lines.append(("popularity", f"{', '.join(shares)} of the events; Gini {report['popularity']['Gini']:.3f}"))
    if report["watch"]:
        lines.append(("watching", ", ".join(f"{name} {value:,.2f}" for name, value in report["watch"].items())))
    texts = (
        f"{content['items with text']:,} items ({content['share with text']:.1%}), median "
        f"{content['words, median']:.0f} words, {content['different texts']:,} different"
    )
    lines.append(("texts", texts if content["items with text"] else "none"))
    without = f", {content['items without']:,} items without" if content["items without"] else ""
    lines.append(("content", f"{content['width']} dimensions from {content['made of']}{without}"))
    lines.append(("topics", f"{content['topics']:,}, known for {content['items with a topic']:,} items"))
    fields = ", ".join(f"{name} ({size})" for name, size in report["profile"].items())
    lines.append(("profile fields", fields or "none"))
    if report["extra"]:
        lines.append(("further feedback", ", ".join(f"{name} mean {v:.4g}" for name, v in report["extra"].items())))
    return lines


def _time_line(time: dict[str, Any]) -> str:
    if not time["known"]:
        return "only the order of events is known: time biases and splits at a moment mean nothing"
    dates = f"{time['first']} to {time['last']}, " if "first" in time else ""
    return f"{dates}{time['days']:,.1f} days"

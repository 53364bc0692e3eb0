"""Describes a log by the figures in which feeds differ, and measures how far two logs are apart in each.

Eight aspects: item popularity, session length, watch ratio, behaviour rates, return gaps, repeat-topic autocorrelation,
position effect, user heterogeneity. An aspect is a handful of figures, with the sample or the curve they come from
where there is one. Figures are compared by their absolute difference, and curves by their mean absolute difference over
the places that both have. Samples are compared by the Kolmogorov-Smirnov distance (KS, the largest difference of the
two distribution functions) and the Wasserstein distance (in the sample's own unit).

Visits are cut in the same way in both logs, whatever each log calls a visit. They end at pauses of more than half an
hour between two exposures of a user (:func:`feedgym.data.build.cut_visits`). A simulator's visit is one request, and
users who ask again within minutes have not returned.

A log may lack the data for an aspect (no times, no watch seconds, no topics, one visit per user). The aspect then holds
the reason instead. Distances of finite logs are never 0. So :func:`compare` also gives the mean distance between two
halves of the first log's users; distances below that mean nothing.

Axes beyond the legend of :mod:`feedgym.data.events`: ``R`` ranks of items, ``V`` visits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from feedgym.data.build import cut_visits
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Catalog, Event, EventLog
from feedgym.data.inspect import gini
from feedgym.data.sessions import MAX_WATCH_FRACTION, user_of_rows
from feedgym.data.splits import take_users, user_luck

LAGS = 10
"""Lags of the topics' autocorrelation, in items."""
POSITIONS = 10
"""Number of first positions of a visit whose click rates are compared."""
MIN_POSITION_EVENTS = 20
"""Least number of items seen at a position for its rate to be used."""
FEW_EXPOSURES = 5
"""The popularity exponent is fitted to items with at least this many exposures; below that, ranks are ties."""
DURATION_EDGES_S = (0.0, 7.0, 15.0, 30.0, 60.0, 120.0, np.inf)
"""Bins of the items' durations for the median watch ratio."""
SKIP_RATIO, WHOLE_RATIO = 0.1, (0.9, 1.1)
"""Watch ratios that count as a skip, and as watching the whole item once."""
HALVES = 10**9
"""Added to the seed of the halves, so that users chosen by a split with that seed fall into both halves."""
NUM_HALVINGS = 4
"""Number of ways in which the users are halved; a single distance may be small by chance."""
NO_SESSIONS = "only the order of events is known, so visits have no beginning and no end"


@dataclass(frozen=True, kw_only=True, eq=False)
class Aspect:
    """One aspect of a log.

    Attributes:
        figures: numbers for people to read; NaN where unknown.
        sample: float64 [n] values that the figures come from; None if there are none.
        curve: float64 [x] a line over places 1, 2, ..., NaN where unknown; None if there is none.
        unit: of the sample, or a description of the curve.
        missing: why the log cannot give the aspect; then all else is empty.
    """

    figures: dict[str, float] = field(default_factory=dict)
    sample: NDArray[np.float64] | None = None
    curve: NDArray[np.float64] | None = None
    unit: str = ""
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Distance between two logs in one figure.

    Attributes:
        aspect: name of the aspect.
        figure: the figure, or "distribution" or "curve".
        kind: "absolute difference", "KS", "Wasserstein (unit)" or "mean absolute difference".
        a: the first log's figure; None for distributions and curves.
        b: the second one's.
        distance: 0 for equal logs; NaN where one of the logs lacks the aspect.
        halves: the same distance between two halves of the first log's users, a mean over several ways to halve them.
            NaN where there are too few users.
        missing: why there is no distance.
    """

    aspect: str
    figure: str
    kind: str
    a: float | None
    b: float | None
    distance: float
    halves: float = float("nan")
    missing: str = ""


class _Seen:
    """The examined exposures of a log as columns, with flags where a visit begins.

    If a log has visits, exposures outside of them are left out: such a history was recorded without times or feedback.
    """

    def __init__(self, log: EventLog, catalog: Catalog) -> None:
        self.log, self.catalog = log, catalog
        user, is_login = user_of_rows(log), log.event == Event.LOGIN
        login = np.flatnonzero(is_login)
        self.has_visits = bool(len(login))
        row = np.flatnonzero((log.event == Event.IMPRESSION) & log.examined)
        visit = (np.cumsum(is_login) - 1)[row]
        if self.has_visits:
            row = row[(visit >= 0) & (user[login[np.maximum(visit, 0)]] == user[row])]
        self.row, self.user = row, user[row]
        self.item, self.position = log.item_id[row].astype(np.int64), log.position[row].astype(np.int64)
        self.behaviours = log.behaviours[row]
        self.time_s = log.timestamp_s[row]
        self.begins = np.flatnonzero(cut_visits(self.user, self.time_s))

    def click(self) -> NDArray[np.float64]:
        """1 where an exposure was clicked, else 0."""
        return self.behaviours[:, BEHAVIOUR_IDX["click"]].astype(np.float64)


def describe(log: EventLog, catalog: Catalog) -> dict[str, Aspect]:
    """The eight aspects of a log.

    Args:
        log: the event log; only examined exposures count.
        catalog: its items, for durations and topics.

    Raises:
        ValueError: nothing was examined.
    """
    seen = _Seen(log, catalog)
    if not len(seen.row):
        raise ValueError("The log has no examined exposure, so there is nothing to describe; give impressions.")
    return {
        "item popularity": _item_popularity(seen),
        "session length": _session_length(seen),
        "watch ratio": _watch_ratio(seen),
        "behaviour rates": Aspect(
            figures={name: float(seen.behaviours[:, b].mean()) for b, name in enumerate(BEHAVIOURS)}
        ),
        "return gaps": _return_gaps(seen),
        "repeat-topic autocorrelation": _topic_autocorrelation(seen),
        "position effect": _position_effect(seen),
        "user heterogeneity": _heterogeneity(seen),
    }


def compare(
    a: tuple[EventLog, Catalog], b: tuple[EventLog, Catalog], *, seed: int = 0
) -> tuple[dict[str, Aspect], dict[str, Aspect], list[Distance]]:
    """Describes two logs and measures the distances between them.

    Args:
        a: the first log and its items.
        b: the second one.
        seed: for the halves of the first log's users, see the module's docstring.

    Returns:
        The aspects of both, and all distances.
    """
    of_a, of_b = describe(*a), describe(*b)
    apart = distances(of_a, of_b)
    noise = _noise(*a, seed)
    apart = [replace(d, halves=noise.get((d.aspect, d.figure, d.kind), float("nan"))) for d in apart]
    return of_a, of_b, apart


def distances(a: dict[str, Aspect], b: dict[str, Aspect]) -> list[Distance]:
    """The distances between two described logs, aspect by aspect."""
    return [distance for name in a for distance in _aspect_distances(name, a[name], b[name])]


def ks(a: NDArray, b: NDArray) -> float:
    """Kolmogorov-Smirnov distance of two samples: the largest difference of their distribution functions."""
    places = np.concatenate([a, b])
    below_a, below_b = (np.searchsorted(np.sort(x), places, side="right") / len(x) for x in (a, b))
    return float(np.abs(below_a - below_b).max())


def bimodality(values: NDArray) -> float:
    """Sarle's bimodality coefficient: (skewness^2 + 1) / kurtosis, 5/9 for a uniform and 1 for a two-point sample.

    Values above 5/9 indicate two modes (Pfister et al., Front. Psychol. 2013, with its correction for small samples).
    """
    n = len(values)
    if n < 4 or not np.ptp(values):
        return float("nan")
    skew, excess = stats.skew(values, bias=False), stats.kurtosis(values, bias=False)
    return float((skew**2 + 1) / (excess + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))))


def _noise(log: EventLog, catalog: Catalog, seed: int) -> dict[tuple[str, str, str], float]:
    """Mean distances between two halves of a log's users, over several ways to halve them."""
    user = user_of_rows(log)[(log.event == Event.IMPRESSION) & log.examined]
    values_of: dict[tuple[str, str, str], list[float]] = {}
    for number in range(NUM_HALVINGS):
        first_U = user_luck(log.user_ids_U, seed + HALVES + number) < 0.5
        if first_U[user].any() and not first_U[user].all():
            halves = (describe(take_users(log, half_U), catalog) for half_U in (first_U, ~first_U))
            for d in distances(*halves):
                values_of.setdefault((d.aspect, d.figure, d.kind), []).append(d.distance)
    return {key: float(np.mean(values)) for key, values in values_of.items()}


def _aspect_distances(name: str, a: Aspect, b: Aspect) -> list[Distance]:
    if a.missing or b.missing:
        why = "; ".join(f"{side}: {aspect.missing}" for side, aspect in (("A", a), ("B", b)) if aspect.missing)
        figures = a.figures or b.figures
        return [
            Distance(aspect=name, figure=figure, kind="absolute difference", a=a.figures.get(figure),
                     b=b.figures.get(figure), distance=float("nan"), missing=why)
            for figure in figures or ("all",)
        ]  # fmt: skip
    rows = []
    if a.sample is not None and b.sample is not None and len(a.sample) and len(b.sample):
        kinds = {"KS": ks(a.sample, b.sample)}
        kinds[f"Wasserstein ({a.unit})"] = float(stats.wasserstein_distance(a.sample, b.sample))
        rows += [
            Distance(aspect=name, figure="distribution", kind=kind, a=None, b=None, distance=value)
            for kind, value in kinds.items()
        ]
    if a.curve is not None and b.curve is not None:
        shared = min(len(a.curve), len(b.curve))
        apart = np.abs(a.curve[:shared] - b.curve[:shared])
        value = float(apart[np.isfinite(apart)].mean()) if np.isfinite(apart).any() else float("nan")
        kind = "mean absolute difference"
        rows.append(Distance(aspect=name, figure=a.unit, kind=kind, a=None, b=None, distance=value))
    for figure, value in a.figures.items():
        other = b.figures.get(figure, float("nan"))
        kind = "absolute difference"
        rows.append(Distance(aspect=name, figure=figure, kind=kind, a=value, b=other, distance=abs(value - other)))
    return rows


# ---------------------------------------------------------------- the aspects


def _item_popularity(seen: _Seen) -> Aspect:
    """Exposures per item in descending order; the curve is the share held by the top 1%, 2%, ... of items."""
    count_R = np.sort(np.bincount(seen.item, minlength=seen.catalog.num_items))[::-1].astype(np.float64)
    held = np.append(0, np.cumsum(count_R)) / count_R.sum()
    curve = np.interp(np.arange(1, 101) / 100, np.linspace(0, 1, len(held)), held)
    return Aspect(
        figures={
            "exponent": popularity_exponent(count_R),
            "share of the top 1%": float(curve[0]),
            "share of the top 10%": float(curve[9]),
            "Gini": gini(count_R),
        },
        curve=curve,
        unit="share of exposures held by the top 1..100% of items",
    )


def popularity_exponent(count_R: NDArray) -> float:
    """Fits a in count ~ rank ** -a: least squares of log count on log rank, every e-fold of ranks weighing the same.

    Args:
        count_R: exposures per item, most first; items with fewer than FEW_EXPOSURES are left out.
    """
    count_R = count_R[count_R >= FEW_EXPOSURES]
    if len(count_R) < 3:
        return float("nan")
    rank_R = np.arange(1, len(count_R) + 1)
    weight_R = 1 / np.sqrt(rank_R)  # polyfit squares its weights
    return float(-np.polyfit(np.log(rank_R), np.log(count_R), 1, w=weight_R)[0])


def _session_length(seen: _Seen) -> Aspect:
    if not seen.log.has_time:
        return Aspect(missing=NO_SESSIONS)
    if not seen.has_visits:
        return Aspect(missing="the log has no visits")
    length_V = np.diff(seen.begins, append=len(seen.row)).astype(np.float64)
    return Aspect(
        figures={
            "mean": float(length_V.mean()),
            "median": float(np.median(length_V)),
            "90%": float(np.quantile(length_V, 0.9)),
        },
        sample=length_V,
        unit="items seen",
    )


def _watch_ratio(seen: _Seen) -> Aspect:
    """Seconds watched over the item's duration: figures of the two bumps, and the median by duration."""
    watch_s = seen.log.watch_s[seen.row].astype(np.float64)
    if not watch_s.any():
        return Aspect(missing="the log has no watch seconds")
    duration_s = seen.catalog.duration_s_I[seen.item].astype(np.float64)
    ratio = np.clip(watch_s / duration_s, 0, MAX_WATCH_FRACTION)
    whole = (ratio >= WHOLE_RATIO[0]) & (ratio <= WHOLE_RATIO[1])
    figures = {
        "mean": float(ratio.mean()),
        "median": float(np.median(ratio)),
        f"below {SKIP_RATIO:g}": float((ratio < SKIP_RATIO).mean()),
        "{:g} to {:g}".format(*WHOLE_RATIO): float(whole.mean()),
        f"above {WHOLE_RATIO[1]:g}": float((ratio > WHOLE_RATIO[1]).mean()),
        "bimodality": bimodality(np.minimum(ratio, WHOLE_RATIO[1])),
    }
    for low, high in itertools.pairwise(DURATION_EDGES_S):
        inside = (duration_s >= low) & (duration_s < high)
        name = f"median, {low:g}-{high:g} s" if np.isfinite(high) else f"median, over {low:g} s"
        figures[name] = float(np.median(ratio[inside])) if inside.any() else float("nan")
    return Aspect(figures=figures, sample=ratio, unit="durations")


def _return_gaps(seen: _Seen) -> Aspect:
    """Hours from the end of a visit's last item to the next visit; unknown for last visits, which are left out."""
    if not seen.log.has_time:
        return Aspect(missing=NO_SESSIONS)
    first = seen.begins[1:]
    again = first[seen.user[first] == seen.user[first - 1]] if seen.has_visits else first[:0]
    if not len(again):
        return Aspect(missing="no user returns")
    gap_s = seen.time_s[again] - (seen.time_s + seen.log.watch_s[seen.row])[again - 1]
    gap_h = np.maximum(gap_s, 1) / 3600
    return Aspect(
        figures={
            "median, hours": float(np.median(gap_h)),
            "back within 24 h": float((gap_h <= 24).mean()),
            "over a week": float((gap_h > 168).mean()),
        },
        sample=np.log10(gap_h),
        unit="log10 hours",
    )


def _topic_autocorrelation(seen: _Seen) -> Aspect:
    """Excess over chance of the probability that a user's items at distance 1, 2, ... share a topic.

    Chance is the probability for two items of the whole log. The excess is divided by its maximum, (P(same) - P(by
    chance)) / (1 - P(by chance)). So logs with few and with many topics can be compared.
    """
    topic = seen.catalog.topic_I[seen.item]
    tagged = topic >= 0
    topic, user = topic[tagged], seen.user[tagged]
    if not tagged.any() or len(np.unique(topic)) < 2:
        return Aspect(missing="the items' topics are not known")
    chance = float((np.bincount(topic) / len(topic)) @ (np.bincount(topic) / len(topic)))
    curve = np.full(LAGS, np.nan)
    for lag in range(1, LAGS + 1):
        of_one = user[lag:] == user[:-lag]
        if of_one.any():
            same = float((topic[lag:] == topic[:-lag])[of_one].mean())
            curve[lag - 1] = (same - chance) / (1 - chance)
    figures = {"next item": float(curve[0]), "fifth next item": float(curve[4])}
    return Aspect(figures=figures, curve=curve, unit="excess of equal topics at lags 1..10")


def _position_effect(seen: _Seen) -> Aspect:
    """Click rate of the items seen at a position of their visit, relative to that of all positions together."""
    if not seen.log.has_time:
        return Aspect(missing=NO_SESSIONS)
    if not seen.has_visits:
        return Aspect(missing="the log has no visits")
    click, position = seen.click(), seen.position
    if not click.any():
        return Aspect(missing="nothing was clicked")
    kept = (position >= 0) & (position < POSITIONS)
    clicks_K = np.bincount(position[kept], click[kept], POSITIONS)
    seen_K = np.bincount(position[kept], minlength=POSITIONS)
    rate_K = np.where(seen_K >= MIN_POSITION_EVENTS, clicks_K / np.maximum(seen_K, 1), np.nan) / click.mean()
    figures = {"first": float(rate_K[0]), "fifth": float(rate_K[4]), "tenth": float(rate_K[9])}
    return Aspect(figures=figures, curve=rate_K, unit="relative click rate at positions 1..10")


def _heterogeneity(seen: _Seen) -> Aspect:
    """Differences between users: in activity, in click rates beyond chance, and in who gives rare feedback."""
    count_U = np.bincount(seen.user, minlength=seen.log.num_users).astype(np.float64)
    active_U = count_U > 0
    count_U = count_U[active_U]
    clicks_U = np.bincount(seen.user, seen.click(), seen.log.num_users)[active_U]
    figures = {
        "Gini of exposures a user": gini(count_U),
        "correlation of a user's clicks": intraclass(clicks_U, count_U),
    }
    for name in ("like", "follow", "comment", "forward"):
        given_U = np.bincount(seen.user, seen.behaviours[:, BEHAVIOUR_IDX[name]], seen.log.num_users)[active_U]
        figures[f"{name}s of the top 1% of users"] = _top_share(given_U, 0.01)
    relative_U = count_U / count_U.mean()
    return Aspect(figures=figures, sample=relative_U, unit="exposures per user over their mean")


def intraclass(success_U: NDArray, trials_U: NDArray) -> float:
    """Correlation of two trials of one user: 0 if all users are alike, 1 if each always does the same.

    The analysis-of-variance estimator for proportions (Ridout et al., Biometrics 1999).
    """
    total, users = trials_U.sum(), len(trials_U)
    if users < 2 or total <= users:
        return float("nan")
    rate_U = success_U / trials_U
    between = (trials_U * (rate_U - success_U.sum() / total) ** 2).sum() / (users - 1)
    within = (success_U * (1 - rate_U)).sum() / (total - users)
    size = (total - (trials_U**2).sum() / total) / (users - 1)
    spread = between + (size - 1) * within
    return float((between - within) / spread) if spread else float("nan")


def _top_share(given_U: NDArray, share: float) -> float:
    """Share of the feedback that came from the users who gave most."""
    top = np.sort(given_U)[::-1][: max(1, round(share * len(given_U)))]
    return float(top.sum() / given_U.sum()) if given_U.sum() else float("nan")

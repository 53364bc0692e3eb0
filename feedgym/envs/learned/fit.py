"""Fits :class:`feedgym.envs.learned.LearnedSimulator` to a log, and measures it on unseen users.

Parts that use the ranker's predictions (response, watching, leaving) are fitted on users outside the ranker's training
data. It is overconfident on its training users. The other parts (return, churn) are fitted on all users of the log.

Leaving and churn must be read from a log with care:

* A session ends after its last examined item if further items were served. If a log holds only examined items, a
  visit's last item ends it. Otherwise a session that was seen to its end does not show what came next, so its end is
  left out.
* A user's last visit means churn only if the time until the end of the log is longer than 99% of the gaps. It does not
  if the log itself stopped counting, so users with the maximum number of visits are left out.

Axes beyond the legend of :mod:`feedgym.data.events`: ``X`` features of a regression, ``H`` parts of the day, ``Q``
evenly spaced quantiles, ``R`` examined items.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, BoolArray, Catalog, Event, EventLog, LoggedSessions
from feedgym.data.sessions import histories, logged_sessions
from feedgym.envs.learned.features import (
    CLICK,
    HOUR_BINS,
    LONG_VIEW,
    ItemColumns,
    Request,
    ResponseModel,
    habits,
    hour_bin,
    leave_features,
    linear,
    sigmoid,
    surplus,
    visit_features,
)
from feedgym.envs.learned.simulator import FittedNumbers, LearnedSimulator
from feedgym.envs.learned.users import donors_of
from feedgym.ranges import CountOrZero, Length, Ranged

BLOCK = 2048
"""Sessions per call of the ranker."""
DURATION_BINS, FRACTION_BINS, WATCH_QUANTILES, GAP_QUANTILES = 12, 3, 101, 101
FEW = 40
"""Least number of exposures for a cell's own quantiles; smaller cells use those of a wider one."""
LONG_VIEW_S, RULE_HOLDS = 18.0, 0.98
"""Seconds of KuaiRand's rule for long views, and the least share of exposures for which a log follows it."""
RETURN_QUANTILE = 0.99
RARE_SHARE = 0.1
"""Share of the exposures, those of the least examined items, on which responses to rare items are measured."""


@dataclass(frozen=True, kw_only=True)
class LearnedConfig(Ranged):
    """Options for fitting a simulator to a log."""

    session_length: Length = 10
    """K: longer visits of the log are read as several requests of this many items."""
    known_visits: CountOrZero = 3
    """Visits that users have made in the log before the simulation begins."""


def fit_simulator(
    log: EventLog,
    catalog: Catalog,
    ranker: ResponseModel,
    *,
    unseen_U: BoolArray,
    config: LearnedConfig = LearnedConfig(),
) -> LearnedSimulator:
    """Fit a simulator whose users are those of a log.

    Args:
        log: log of its users, without those who will judge the simulator.
        catalog: the items.
        ranker: trained on the users who are not in ``unseen_U``; ``config.history_length`` and ``config.tasks`` are
            read.
        unseen_U: the users outside the ranker's training data, on whom it is calibrated.
        config: options.

    Raises:
        ValueError: the log has no times or no visits, or none of the unseen users has a visit.
    """
    if not log.has_time:
        raise ValueError(
            "The log has only the order of events, so leaving and returning are unknown; give one with times."
        )
    rows = SessionsWithHistory.of(log, catalog, config.session_length, ranker.config.history_length)
    unseen_N = unseen_U[rows.sessions.user_idx_N]
    if not unseen_N.any():
        raise ValueError(f"None of {int(unseen_U.sum())} users for calibration has a visit; give more of them.")
    calibration = PredictedSessions.of(ranker, catalog, rows.take(unseen_N))
    response_BX, probability_NKB = _fit_response(calibration)
    edges_s, fraction_edges, watch_22DFQ = _fit_watch(calibration)
    clicked_B = _clicked(calibration)
    return LearnedSimulator(
        ranker,
        catalog,
        log.profile_names,
        log.profile_sizes,
        FittedNumbers(
            response_BX=response_BX,
            clicked_B=clicked_B,
            duration_edges_s=edges_s,
            fraction_edges=fraction_edges,
            watch_22DFQ=watch_22DFQ,
            long_view_s=np.array([_long_view_rule(calibration)]),
            leave_X=_fit_logistic(*_leave_rows(calibration, probability_NKB)),
            **_fit_return(log, rows),
        ),
        donors_of(log, catalog, ranker.config.history_length, config.known_visits),
        np.bincount(log.item_id[(log.event == Event.IMPRESSION) & log.examined], minlength=catalog.num_items),
    )


# ---------------------------------------------------------------- data from the log


@dataclass(frozen=True, eq=False)
class SessionsWithHistory:
    """N sessions of a log with their histories.

    Attributes:
        sessions: the sessions.
        histories: the history before each session.
        closes_N: true if the session is its visit's last.
        only_examined: true if the log holds no item that was served but not seen.
    """

    sessions: LoggedSessions
    histories: EventBatch
    closes_N: BoolArray
    only_examined: bool

    @classmethod
    def of(cls, log: EventLog, catalog: Catalog, session_length: int, history_length: int) -> SessionsWithHistory:
        """All sessions of a log in which something was examined."""
        sessions = logged_sessions(log, session_length)
        opens_N = log.event[sessions.row_N] == Event.LOGIN
        closes_N = np.append(opens_N[1:], True)
        kept = np.flatnonzero(sessions.examined_NK[:, 0])
        sessions = sessions.rows(kept)
        before = histories(log, catalog, sessions.user_idx_N, sessions.row_N, sessions.start_s_N, history_length)
        shown = log.event == Event.IMPRESSION
        return cls(sessions, before, closes_N[kept], bool(log.examined[shown].all()))

    def take(self, idx: NDArray) -> SessionsWithHistory:
        """Some of the sessions."""
        rows = np.arange(len(self.sessions))[idx]
        return replace(
            self,
            sessions=self.sessions.rows(rows),
            histories=self.histories.rows(torch.from_numpy(rows)),
            closes_N=self.closes_N[rows],
        )


@dataclass(frozen=True, eq=False)
class PredictedSessions:
    """Sessions with the ranker's predictions for their items, all [N, K] or [N, K, ...]."""

    rows: SessionsWithHistory
    request: Request
    habits_N3: NDArray[np.float64]

    @classmethod
    def of(cls, ranker: ResponseModel, catalog: Catalog, rows: SessionsWithHistory) -> PredictedSessions:
        """Run the ranker, block by block."""
        items = ItemColumns.of(catalog)
        slates_NK = np.maximum(rows.sessions.item_ids_NK, 0)
        parts = [
            Request.of(ranker, items, rows.histories.rows(slice(low, low + BLOCK)), slates_NK[low : low + BLOCK])
            for low in range(0, len(slates_NK), BLOCK)
        ]
        columns = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Request)}
        return cls(rows, Request(**columns), habits(rows.histories))

    @property
    def examined_NK(self) -> BoolArray:
        """True for items that were reached; false for -1 padding."""
        return self.rows.sessions.examined_NK

    def label(self, behaviour: int) -> NDArray[np.float64]:
        """1 where the behaviour happened, [N, K]."""
        return self.rows.sessions.behaviours_NKB[:, :, behaviour].astype(np.float64)

    def ratio(self) -> NDArray[np.float64]:
        """Seconds watched over the durations, [N, K]."""
        return np.minimum(self.rows.sessions.watch_s_NK / self.request.duration_s_UK, 5.0)

    def surplus(self, prob_click_NK: NDArray[np.float64]) -> NDArray[np.float64]:
        """The clicks before each item beyond the expected ones, [N, K]."""
        before = [np.cumsum(x, axis=1) - x for x in (self.label(CLICK), prob_click_NK)]
        return surplus(before[0], before[1], np.arange(prob_click_NK.shape[1]))


# ---------------------------------------------------------------- response


def _fit_response(predicted: PredictedSessions) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of every behaviour, and the calibrated probabilities [N, K, B].

    Clicks are fitted first without the surplus, which needs their probabilities, and then again with it.
    """
    shape = (*predicted.examined_NK.shape, len(BEHAVIOURS))
    first_X = _fit_behaviour(predicted, CLICK, np.zeros(shape[:2]))
    surplus_NK = predicted.surplus(_probability(predicted, CLICK, first_X, np.zeros(shape[:2])))
    weights = [_fit_behaviour(predicted, b, surplus_NK) for b in range(len(BEHAVIOURS))]
    probability = [_probability(predicted, b, weight_X, surplus_NK) for b, weight_X in enumerate(weights)]
    return np.stack(weights), np.stack(probability, axis=2)


def _behaviour_features(predicted: PredictedSessions, b: int, surplus_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    request = predicted.request
    return np.concatenate([request.logit_UKB[:, :, b, None], request.context_UKX, surplus_NK[:, :, None]], axis=2)


def _fit_behaviour(predicted: PredictedSessions, b: int, surplus_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    seen_NK = predicted.examined_NK
    return _fit_logistic(_behaviour_features(predicted, b, surplus_NK)[seen_NK], predicted.label(b)[seen_NK])


def _probability(
    predicted: PredictedSessions, b: int, weight_X: NDArray[np.float64], surplus_NK: NDArray[np.float64]
) -> NDArray:
    logit_NK = linear(_behaviour_features(predicted, b, surplus_NK), weight_X)
    return np.clip(sigmoid(logit_NK), 1e-6, 1 - 1e-6)


def _clicked(predicted: PredictedSessions) -> NDArray[np.float64]:
    """Share of each behaviour's occurrences that come with a click, shrunk towards the click rate by one occurrence."""
    # Behaviours such as likes nearly always come with a click. Drawn independently they would happen without one, so
    # their association is measured here. Shrinking by one occurrence keeps rare behaviours off 0 and 1.
    did_RB = predicted.rows.sessions.behaviours_NKB[predicted.examined_NK].astype(np.float64)
    rate = did_RB[:, CLICK].mean()
    share_B = ((did_RB * did_RB[:, [CLICK]]).sum(axis=0) + rate) / (did_RB.sum(axis=0) + 1)
    never_without_B = (did_RB * (1 - did_RB[:, [CLICK]])).sum(axis=0) == 0
    share_B[never_without_B & (did_RB.sum(axis=0) >= FEW)] = 1  # a rule, not chance
    share_B[CLICK] = 1
    return share_B


def _fit_watch(predicted: PredictedSessions) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Quantiles of the watch ratio by click, long view, duration and predicted fraction, and the bins' inner edges."""
    seen_NK = predicted.examined_NK
    duration_s, fraction, ratio = (
        x[seen_NK] for x in (predicted.request.duration_s_UK, predicted.request.fraction_UK, predicted.ratio())
    )
    click, long = (predicted.label(b)[seen_NK].astype(int) for b in (CLICK, LONG_VIEW))
    # No common distribution fits watch ratios, so their quantiles are stored by what they depend on. Bins hold equally
    # many exposures, so that few cells are too small for their own quantiles.
    edges_s = np.quantile(duration_s, np.arange(1, DURATION_BINS) / DURATION_BINS)
    of_duration = np.searchsorted(edges_s, duration_s, side="right")
    parts = np.arange(1, FRACTION_BINS) / FRACTION_BINS
    fraction_edges = np.tile(np.quantile(fraction, parts), (DURATION_BINS, 1))
    for d in range(DURATION_BINS):
        if (of_duration == d).any():
            fraction_edges[d] = np.quantile(fraction[of_duration == d], parts)
    of_fraction = (fraction[:, None] > fraction_edges[of_duration]).sum(axis=1)
    table = np.empty((2, 2, DURATION_BINS, FRACTION_BINS, WATCH_QUANTILES))
    for c, v, d, f in np.ndindex(table.shape[:-1]):
        masks = [click == c, long == v, of_duration == d, of_fraction == f]
        for kept in (masks, masks[:3], masks[:2], masks[:1], []):  # the first cell that is large enough
            inside = np.logical_and.reduce([np.ones(len(ratio), bool), *kept])
            if inside.sum() >= FEW or not kept:
                table[c, v, d, f] = np.quantile(ratio[inside], np.linspace(0, 1, WATCH_QUANTILES))
                break
    return edges_s, fraction_edges, table


def _long_view_rule(predicted: PredictedSessions) -> float:
    """Seconds of KuaiRand's rule if the log follows it, else 0."""
    seen_NK = predicted.examined_NK
    least_s = np.minimum(LONG_VIEW_S, predicted.request.duration_s_UK)
    agrees = (predicted.rows.sessions.watch_s_NK >= least_s * (1 - 1e-6)) == predicted.label(LONG_VIEW)
    return LONG_VIEW_S if agrees[seen_NK].mean() >= RULE_HOLDS else 0.0


# ---------------------------------------------------------------- leaving, returning, churn


def _leave_rows(predicted: PredictedSessions, probability_NKB: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Features and labels of all items after which the log shows if the user continued."""
    sessions, seen_NK = predicted.rows.sessions, predicted.examined_NK
    surplus_NK = predicted.surplus(probability_NKB[:, :, CLICK])
    count_N, served_N = seen_NK.sum(axis=1), (sessions.item_ids_NK >= 0).sum(axis=1)
    # Position by position, because the features cover the visit up to and including it, as in the simulator. Only items
    # after which the log shows it: a user who saw a session to its end may have left or been served no more.
    features, labels = [], []
    for k in range(seen_NK.shape[1]):
        is_last_N = count_N == k + 1
        ends_N = is_last_N & ((served_N > count_N) | (predicted.rows.only_examined & predicted.rows.closes_N))
        goes_on_N = (count_N > k + 1) | (is_last_N & predicted.rows.only_examined & ~predicted.rows.closes_N)
        told = np.flatnonzero(ends_N | goes_on_N)
        features.append(
            leave_features(
                predicted.request.rows(told),
                k,
                sessions.behaviours_NKB[told, k],
                sessions.watch_s_NK[told, : k + 1],
                surplus_NK[told, k],
                probability_NKB[told, k],
                predicted.habits_N3[told],
            )
        )
        labels.append(ends_N[told].astype(np.float64))
    return np.concatenate(features), np.concatenate(labels)


def _visit_rows(log: EventLog, rows: SessionsWithHistory) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Features, logouts, return gaps and churn for sessions that end a visit.

    The gap is NaN if the user did not return, and churn (0 or 1) is NaN if the log does not show it.
    """
    ending = rows.take(rows.closes_N)
    sessions = ending.sessions
    logout_s_N = sessions.start_s_N + sessions.watch_s_NK.sum(axis=1, dtype=np.float64)
    features_NX = visit_features(
        sessions.behaviours_NKB, sessions.watch_s_NK, sessions.examined_NK, logout_s_N, habits(ending.histories)
    )
    # A last visit is churn only if a return would have been seen. So the log must continue for longer than almost all
    # gaps, and must not have been cut at a number of visits. Otherwise the end of the log would look like churn.
    gap_s_N = sessions.return_gap_s_N
    churned_N = np.isnan(gap_s_N)
    visits_U = np.bincount(sessions.user_idx_N, minlength=log.num_users)
    horizon_s = np.nanquantile(gap_s_N, RETURN_QUANTILE) if not churned_N.all() else np.inf
    watched_N = log.timestamp_s.max() - logout_s_N >= horizon_s
    stopped_N = churned_N & (visits_U[sessions.user_idx_N] == visits_U.max())
    return features_NX, logout_s_N, gap_s_N, np.where(watched_N & ~stopped_N, churned_N, np.nan)


def _fit_return(log: EventLog, rows: SessionsWithHistory) -> dict[str, NDArray[np.float64]]:
    features_NX, logout_s_N, gap_s_N, churned_N = _visit_rows(log, rows)
    back_N, told_N = ~np.isnan(gap_s_N), ~np.isnan(churned_N)
    if back_N.sum() <= features_NX.shape[1]:
        raise ValueError(f"Only {int(back_N.sum())} visits of the log are followed by another; give a longer log.")
    # Gaps range from seconds to weeks, so the model is linear in their logs. Its residuals are not normal and depend on
    # the hour of the logout, with a night in between or not. So there are quantiles by part of the day.
    log_gap_N = np.log(np.maximum(gap_s_N[back_N], 1.0))
    model = LinearRegression().fit(features_NX[back_N], log_gap_N)
    residual_N, bin_N = log_gap_N - model.predict(features_NX[back_N]), hour_bin(logout_s_N[back_N])
    ranks = np.linspace(0, 1, GAP_QUANTILES)
    gap_HQ = np.stack(
        [
            np.quantile(residual_N[bin_N == h] if (bin_N == h).sum() >= FEW else residual_N, ranks)
            for h in range(HOUR_BINS)
        ]
    )
    return {
        "gap_X": np.append(model.coef_, model.intercept_),
        "gap_HQ": gap_HQ,
        "gap_max_s": np.array([max(np.exp(log_gap_N.max()), 1.0)]),
        "churn_X": _fit_logistic(features_NX[told_N], churned_N[told_N]),
    }


def _fit_logistic(features_NX: NDArray, label_N: NDArray) -> NDArray[np.float64]:
    """Logistic regression on standardised features, written as weights on the raw ones with the bias last."""
    if len(np.unique(label_N)) < 2:
        rate = (label_N.sum() + 0.5) / (len(label_N) + 1)
        return np.append(np.zeros(features_NX.shape[1]), np.log(rate / (1 - rate)))
    scaler = StandardScaler().fit(features_NX)
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(features_NX), label_N)
    weight_X = model.coef_[0] / scaler.scale_
    return np.append(weight_X, model.intercept_[0] - weight_X @ scaler.mean_)


# ---------------------------------------------------------------- quality of the fit


def fit_figures(simulator: LearnedSimulator, log: EventLog, session_length: int = 10) -> dict[str, dict[str, float]]:
    """Measures how well each part predicts the users of a log, given their real histories.

    Args:
        simulator: fitted without these users.
        log: log of these users.
        session_length: K, as it was fitted with.

    Returns:
        For each behaviour, "click on rare items", "leave" and "churn": ``auc``, ``log_loss``, ``base_log_loss`` (of the
        mean), ``calibration`` (predicted over observed rate) and ``events``. For "watch": the rank correlation of
        predicted and true fraction. For "gap": that of log seconds, and ``r2``. Rare items are the least examined ones
        of the log, with a tenth of these users' exposures in all. They show how far to trust responses to rarely shown
        items. Behaviours that never or always happened are left out, and so is churn if no visit shows it.
    """
    length = simulator.donors.items_UT.shape[1]
    rows = SessionsWithHistory.of(log, simulator.catalog, session_length, length)
    predicted, numbers = PredictedSessions.of(simulator.ranker, simulator.catalog, rows), simulator.numbers
    seen_NK = predicted.examined_NK
    zero_NK = np.zeros(seen_NK.shape)
    surplus_NK = predicted.surplus(_probability(predicted, CLICK, numbers.response_BX[CLICK], zero_NK))
    probability = [_probability(predicted, b, numbers.response_BX[b], surplus_NK) for b in range(len(BEHAVIOURS))]
    figures = {name: _binary(predicted.label(b)[seen_NK], probability[b][seen_NK]) for b, name in enumerate(BEHAVIOURS)}
    exposures = simulator.exposures_I[rows.sessions.item_ids_NK[seen_NK]]
    rare = exposures <= np.quantile(exposures, RARE_SHARE)
    figures["click on rare items"] = _binary(predicted.label(CLICK)[seen_NK][rare], probability[CLICK][seen_NK][rare])
    features, labels = _leave_rows(predicted, np.stack(probability, axis=2))
    figures["leave"] = _binary(labels, sigmoid(linear(features, numbers.leave_X)))
    features, _, gap_s, churned = _visit_rows(log, rows)
    told, back = ~np.isnan(churned), ~np.isnan(gap_s)
    figures["churn"] = _binary(churned[told], sigmoid(linear(features[told], numbers.churn_X)))
    log_gap, predicted_log_gap = np.log(np.maximum(gap_s[back], 1)), linear(features[back], numbers.gap_X)
    error = ((log_gap - predicted_log_gap) ** 2).mean() / log_gap.var() if len(log_gap) > 1 else np.nan
    figures["gap"] = {"rank_correlation": _rank_correlation(log_gap, predicted_log_gap), "r2": float(1 - error)}
    ratio = _rank_correlation(predicted.ratio()[seen_NK], predicted.request.fraction_UK[seen_NK])
    figures["watch"] = {"rank_correlation": ratio}
    return {name: value for name, value in figures.items() if value}


def _binary(label: NDArray, probability: NDArray) -> dict[str, float]:
    if len(np.unique(label)) < 2:
        return {}
    base = np.full(len(label), label.mean())
    return {
        "auc": float(roc_auc_score(label, probability)),
        "log_loss": float(log_loss(label, probability)),
        "base_log_loss": float(log_loss(label, base)),
        "calibration": float(probability.mean() / label.mean()),
        "events": float(label.sum()),
    }


def _rank_correlation(a: NDArray, b: NDArray) -> float:
    if len(a) < 3 or not np.ptp(a) or not np.ptp(b):
        return float("nan")
    return float(spearmanr(a, b).statistic)

"""Retention from recorded gaps: how soon users return after a visit, and how many are still active days later.

Gaps are those of the infos. Rows are visits, in any order between users but in order within a user. A user whose
episode was cut is known up to the last gap, so request no more days than the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from feedgym.data.events import DAY_S


@dataclass(frozen=True, kw_only=True, eq=False)
class ReturnStatistics:
    """Statistics of the returns after N visits.

    Attributes:
        share_D: float64, share of the visits after which the user was back within d = 1..D days.
        mean_days: mean gap of users who came back, days.
        median_days: their median gap, days.
        churned: share of the visits after which the user never came back.
        num_visits: N.
    """

    share_D: NDArray[np.float64]
    mean_days: float
    median_days: float
    churned: float
    num_visits: int


def return_statistics(return_gap_days: ArrayLike, num_days: int = 10) -> ReturnStatistics:
    """Statistics of the gaps after visits.

    Args:
        return_gap_days: days to the next visit [N], infinite if there was none; the info of the retention level.
        num_days: D; KuaiSim's return days end at 10.

    Raises:
        ValueError: there are no gaps, a gap is negative or NaN, or ``num_days`` is below 1.
    """
    gap_N = np.ravel(np.asarray(return_gap_days, np.float64))
    if not len(gap_N) or not (gap_N >= 0).all():
        raise ValueError(f"{len(gap_N)} gaps, least {gap_N.min(initial=np.inf)}; give one or more, of 0 days or more.")
    _check_days(num_days)
    back_N = np.isfinite(gap_N)
    return ReturnStatistics(
        share_D=(gap_N[:, None] <= np.arange(1, num_days + 1)).mean(axis=0),
        mean_days=float(gap_N[back_N].mean()) if back_N.any() else np.inf,
        median_days=float(np.median(gap_N[back_N])) if back_N.any() else np.inf,
        churned=float(1 - back_N.mean()),
        num_visits=len(gap_N),
    )


def retention_curve(
    user_N: ArrayLike, elapsed_s_N: ArrayLike, return_gap_days_N: ArrayLike, num_days: int = 7
) -> NDArray[np.float64]:
    """Share of users with a visit within the 24 hours that begin d = 1..D days after their first login; float64 [D].

    Args:
        user_N: user of each visit, integers.
        elapsed_s_N: duration of the visit, seconds.
        return_gap_days_N: days from its end to the next visit, infinite if there was none.
        num_days: D; at most the days for which the users were observed.

    Raises:
        ValueError: the columns differ in length or are empty, or ``num_days`` is below 1.
    """
    user_N, elapsed_s_N = np.asarray(user_N), np.asarray(elapsed_s_N, np.float64)
    gap_N = np.asarray(return_gap_days_N, np.float64)
    if not len(user_N) or not len(user_N) == len(elapsed_s_N) == len(gap_N):
        raise ValueError(
            f"{len(user_N)} users, {len(elapsed_s_N)} lengths, {len(gap_N)} gaps: give one of each per visit."
        )
    _check_days(num_days)
    order = np.argsort(user_N, kind="stable")
    users, first_N = np.unique(user_N[order], return_index=True)
    passed_N = elapsed_s_N[order] / DAY_S + gap_N[order]
    seen_UD = np.zeros((len(users), num_days + 1), bool)
    row_N = np.repeat(np.arange(len(users)), np.diff(np.append(first_N, len(order))))
    # The next login after each visit, counted from the user's first one. A running sum over all users, minus its value
    # where the user begins, needs no loop over users. An infinite gap is a user's last and would spoil the sums of all
    # later users. So it counts 0 there and is then left out.
    finite_N = np.where(np.isfinite(passed_N), passed_N, 0)
    total_N = np.cumsum(finite_N)
    next_days_N = total_N - (total_N - finite_N)[first_N][row_N]
    day_N = np.floor(next_days_N).astype(np.int64)
    is_seen_N = np.isfinite(passed_N) & (day_N <= num_days)
    seen_UD[row_N[is_seen_N], day_N[is_seen_N]] = True
    return seen_UD[:, 1:].mean(axis=0)


def _check_days(num_days: int) -> None:
    if num_days < 1:
        raise ValueError(f"num_days={num_days} is below 1; give 1 or more.")

"""Measures an alignment's effect on the same users: sessions for the same requests, drawn after every round.

A round's own sessions cannot be compared with the next round's: their users differ, and temperature or beams shape
them. A probe is drawn at temperature 1 for held-out users at their logged requests. It uses the same random numbers
after each round, so that differences between rounds are paired over users.

Axes beyond the legend of :mod:`feedgym.data.events`: ``N`` probes, one after each of the rounds 0..N-1; ``W`` watchers,
reward models that are not optimised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from feedgym.data.batches import TensorRows
from feedgym.experiments.statistics import correlation_per_user, within_user_correlation

Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe(TensorRows):
    """S sessions for each of U held-out users, drawn at temperature 1, with all their scores and true values.

    Attributes:
        item_ids_USK: int64 sampled sessions.
        logp_US: float32 log-probability with which the agent draws them, under the model restricted to legal items.
        base_logp_US: float32, the same under the agent before the first round.
        score_US: float32 scores of the optimised reward.
        watch_USW: float32 scores of W reward models that are not optimised; None if there are none.
        truth_half_US2: float32 true values, each the mean over one half of the replicas. So one half can choose
            sessions and the other value them. None on a recorded log.
    """

    item_ids_USK: Tensor
    logp_US: Tensor
    base_logp_US: Tensor
    score_US: Tensor
    watch_USW: Tensor | None = None
    truth_half_US2: Tensor | None = None

    def __len__(self) -> int:
        return len(self.item_ids_USK)

    @property
    def truth_US(self) -> Tensor | None:
        """float32 true values, the mean over all replicas; None on a recorded log."""
        return None if self.truth_half_US2 is None else self.truth_half_US2.mean(dim=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Signals:
    """Measurements that do not need the truth, after each of N rounds and for each of U users, float64.

    Attributes:
        proxy_NU: mean score of the optimised reward.
        kl_NU: estimated divergence from the base in nats per session; single values may be negative.
        entropy_NU: estimated entropy in nats per session.
        diversity_NU: mean distance between the contents of a session's items.
        held_out_NU: mean score of the watchers; None without them.
        spread_NU: standard deviation of a session's scores over the optimised reward and the watchers. Each is in units
            of its own spread over the base's sessions. None without watchers.
        correlation_NU: rank correlation, over the user's sessions, of the optimised reward and the watchers' mean. NaN
            for users for whom one of them is constant. None without watchers.
    """

    proxy_NU: Float
    kl_NU: Float
    entropy_NU: Float
    diversity_NU: Float
    held_out_NU: Float | None = None
    spread_NU: Float | None = None
    correlation_NU: Float | None = None

    def __len__(self) -> int:
        return len(self.proxy_NU)

    def until(self, t: int) -> Signals:
        """The signals known after round t."""
        early: dict[str, Any] = {name: None if value is None else value[: t + 1] for name, value in vars(self).items()}
        return Signals(**early)


def signals_of(probes: Sequence[Probe], diversity_NU: Float) -> Signals:
    """Compute the signals from the probes of one run.

    Args:
        probes: probes after rounds 0, 1, ... of the same users; the first is the base's.
        diversity_NU: diversity of the probes' sessions, mean per user.
    """
    known = {
        "proxy_NU": np.stack([_mean_U(probe.score_US) for probe in probes]),
        "kl_NU": kl_of(probes),
        "entropy_NU": np.stack([-_mean_U(probe.logp_US) for probe in probes]),
        "diversity_NU": np.asarray(diversity_NU, float),
    }
    if probes[0].watch_USW is None:
        return Signals(**known)
    return Signals(
        **known,
        held_out_NU=np.stack([_watched_US(probe).mean(axis=1) for probe in probes]),
        spread_NU=_spread(probes),
        correlation_NU=np.stack(
            [correlation_per_user(_float(probe.score_US), _watched_US(probe), ranks=True) for probe in probes]
        ),
    )


def kl_of(probes: Sequence[Probe]) -> Float:
    """Divergence from the base in nats per session [N, U]: the mean log-ratio over the agent's own samples."""
    return np.stack([_mean_U(probe.logp_US) - _mean_U(probe.base_logp_US) for probe in probes])


def truth_of(probes: Sequence[Probe]) -> Float | None:
    """Mean true value of the users' sessions [N, U]; None on a recorded log."""
    truths = [probe.truth_US for probe in probes]
    return None if any(truth is None for truth in truths) else np.stack([_mean_U(truth) for truth in truths])


def probe_metrics(probe: Probe) -> dict[str, float]:
    """Figures of one probe, means over users.

    Returns:
        ``model_mean``, the mean score, ``kl_to_base`` and ``entropy``, both in nats per session. If the truth is known,
        ``true_mean`` and the ``rank_correlation`` of score and truth within users. With watchers, ``held_out_mean``,
        their mean score, and the ``held_out_correlation`` of its ranks with the score's.
    """
    score_US = _float(probe.score_US)
    metrics = {
        "model_mean": score_US.mean(),
        "kl_to_base": kl_of([probe]).mean(),
        "entropy": -_float(probe.logp_US).mean(),
    }
    if probe.truth_US is not None:
        truth_US = _float(probe.truth_US)
        metrics["true_mean"] = truth_US.mean()
        metrics["rank_correlation"] = within_user_correlation(score_US, truth_US, ranks=True)
    if probe.watch_USW is not None:
        watched_US = _watched_US(probe)
        metrics["held_out_mean"] = watched_US.mean()
        metrics["held_out_correlation"] = within_user_correlation(score_US, watched_US, ranks=True)
    return {name: float(value) for name, value in metrics.items()}


def _float(values: Tensor) -> Float:
    return values.cpu().numpy().astype(np.float64)


def _mean_U(values_US: Tensor | None) -> Float:
    assert values_US is not None
    return _float(values_US).mean(axis=1)


def _watched_US(probe: Probe) -> Float:
    assert probe.watch_USW is not None
    return _float(probe.watch_USW).mean(axis=2)


def _spread(probes: Sequence[Probe]) -> Float:
    """Spread between the judges of a session, mean over a user's sessions [N, U]."""
    judged = [np.dstack([_float(probe.score_US), _float(probe.watch_USW)]) for probe in probes]  # type: ignore[arg-type]
    # In units of the base's sessions: a member with higher scores or a wider scale for all sessions does not disagree.
    mean, scale = judged[0].mean(axis=(0, 1)), np.maximum(judged[0].std(axis=(0, 1)), 1e-12)
    return np.stack([((values - mean) / scale).std(axis=2, ddof=1).mean(axis=1) for values in judged])

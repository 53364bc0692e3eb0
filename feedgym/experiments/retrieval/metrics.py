"""Judges retrieval offline, by the rank of the item that a user took next in the whole catalogue.

Every target is ranked among ALL items (never among sampled ones: Krichene & Rendle, KDD 2020), and hits are counted by
items, never by codes. Users are judged in chunks, so that the scores of all users are never in memory together.

Ties. If items have the same score, their order is random, and a metric is its expected value over that order, as in
scikit-learn's ``ndcg_score``. A target tied with m - 1 others after b better items has ranks b+1..b+m, each with
probability 1/m. So a model that gives all items the same score gets the figure of a random ranking, not a perfect one.
Lists of recommendations (for coverage, concentration, popularity) must choose: there, ties go to the lower item id.

Seen items (those the user examined before) may be left out of the ranking; every table names this choice. A target that
was seen before can then not be found and counts as missed; the share of such targets is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from feedgym.data.batches import EventBatch
from feedgym.data.events import Catalog, EventLog
from feedgym.data.inspect import gini
from feedgym.data.sessions import LoggedHistories
from feedgym.data.splits import ItemSplit, NextItems
from feedgym.experiments.evaluate import top_items
from feedgym.experiments.progress import Step
from feedgym.experiments.statistics import Ratio, interval, resampling_counts
from feedgym.protocols import Recommender
from feedgym.ranges import Count, Length, Ranged

if TYPE_CHECKING:
    from rich.table import Table


class Scorer(Protocol):
    """An agent that scores every item."""

    def scores(self, histories: EventBatch) -> Tensor:
        """Scores [U, I], higher for items that are likelier to come next; also for seen items."""
        ...


@dataclass(frozen=True, kw_only=True)
class RankingConfig(Ranged):
    """Options for judging retrieval."""

    at: tuple[Count, ...] = (5, 10, 50)
    """Cut-offs k of HR@k and NDCG@k; MRR is cut at the largest."""
    list_at: Count = 10
    """Length of the lists for coverage, concentration and popularity."""
    leave_out_seen: bool = True
    """Rank only items that the user has not examined before."""
    history_length: Length = 200
    """Events of a history that an agent receives; seen items come from the whole history."""
    chunk: Count = 256
    """Targets ranked at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.at:
            raise ValueError("ranking.at is empty; name at least one cut-off, e.g. 10.")


@dataclass(frozen=True, kw_only=True, eq=False)
class RankedTargets:
    """Result of an agent's ranking of N targets of U users.

    Attributes:
        protocol: description of the procedure, for the table's title.
        ranked_by: "scores" of all items, ties averaged, or "lists".
        values_N: HR@k, NDCG@k and MRR of every target, float64 [N].
        ratios: the same as sums per user over counts per user; "cold ..." for only the targets unseen in training. Also
            the popularity lift (GAP_r - GAP_h) / GAP_h of the lists over the histories. GAP is the mean training
            popularity of their items (Abdollahpouri et al., RecSys 2020).
        totals: figures over all lists together: coverage, Gini; and shares of the targets: cold, seen before, tied.
        user_idx_U: int64 rows of the log's users, in the order of the ratios.
        lists_NK: int64 the recommended items, best first, -1 if an agent gave fewer.
    """

    protocol: str
    ranked_by: str
    values_N: dict[str, NDArray[np.float64]]
    ratios: dict[str, Ratio]
    totals: dict[str, float]
    user_idx_U: NDArray[np.int64]
    lists_NK: NDArray[np.int64] = field(repr=False)

    def mean(self, metric: str) -> float:
        """A metric over all users, or a total."""
        return self.totals[metric] if metric in self.totals else self.ratios[metric].mean()

    def intervals(self, seed: int = 0) -> dict[str, dict[str, float]]:
        """Means with the ends of their 95% intervals over users, resampled under ``seed``."""
        counts_RU = resampling_counts(len(self.user_idx_U), seed)
        return {name: interval(ratio, counts_RU) for name, ratio in self.ratios.items()}

    def summary(self, seed: int = 0) -> dict[str, Any]:
        """Everything except the lists, for a JSON file."""
        return {
            "protocol": self.protocol,
            "ranked_by": self.ranked_by,
            "metrics": self.intervals(seed),
            "totals": self.totals,
        }


def evaluate_ranking(
    agent: Scorer | Recommender,
    log: EventLog,
    catalog: Catalog,
    split: ItemSplit,
    config: RankingConfig | None = None,
    *,
    targets: NextItems | None = None,
    step: Step | None = None,
) -> RankedTargets:
    """Rank the next items of a split.

    Args:
        agent: gives scores (``scores``) or lists. A generative agent gives lists by beam search, others by the session
            they would serve. Lists have as many items as the largest cut-off; seen items are removed from them.
        log: the whole log, for the histories.
        catalog: its items.
        split: the targets, and the training events, which define popular and cold items.
        config: cut-offs, lengths, seen items.
        targets: other targets than ``split.test``, e.g. ``split.validation``.
        step: progress callback with the number of targets done and in all.

    Returns:
        The metrics.

    Raises:
        ValueError: scores are NaN or of another shape, a list names an item twice or one that does not exist.
    """
    config, targets = config or RankingConfig(), split.test if targets is None else targets
    whose = targets.user_idx_N, targets.row_N, targets.time_s_N
    every = LoggedHistories(log, catalog, *whose, config.history_length)
    popularity_I = split.shown_I(catalog.num_items).astype(np.float64)
    values, lists, before = [], [], []
    by_scores = callable(getattr(agent, "scores", None))
    for low in range(0, len(targets), config.chunk):
        chunk = slice(low, low + config.chunk)
        part, past, seen = targets.rows(chunk), every.rows(chunk), _seen_pairs(every, chunk)
        rank = _rank_by_scores if by_scores else _rank_in_lists
        metrics, list_NK = rank(agent, past, torch.from_numpy(part.item_id_N), seen, catalog.num_items, config)
        values.append(metrics)
        lists.append(list_NK[:, : config.list_at])
        before.append(_before(seen, part.item_id_N, popularity_I))
        if step is not None:
            step(low + len(part), len(targets))
    values_N = {name: np.concatenate([part[name] for part in values]) for name in values[0]}
    seen_too = "seen items left out" if config.leave_out_seen else "seen items ranked too"
    protocol = f"{split.name}; {catalog.num_items:,} items, {seen_too}; {len(targets):,} targets"
    return RankedTargets(
        protocol=protocol,
        ranked_by="scores" if by_scores else "lists",
        **_gathered(
            values_N,
            np.concatenate(lists),
            targets,
            popularity_I,
            {name: np.concatenate([part[name] for part in before]) for name in before[0]},
        ),
    )


Ranked = tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]
"""Metrics of a chunk's targets, and its lists."""


def _rank_by_scores(
    agent: Any, past: EventBatch, target_N: Tensor, seen: Pairs, num_items: int, config: RankingConfig
) -> Ranked:
    with torch.inference_mode():
        score_NI = agent.scores(past).detach().cpu()
    _check_scores(agent, score_NI, (len(target_N), num_items))
    if config.leave_out_seen:
        score_NI = score_NI.clone()
        score_NI[torch.from_numpy(seen[0]), torch.from_numpy(seen[1])] = -torch.inf
    better_N, tied_N = rank_of(score_NI, target_N)
    list_NK = top_of(score_NI, min(config.list_at, num_items))
    return rank_metrics(better_N.numpy(), tied_N.numpy(), config.at), list_NK.numpy()


def _rank_in_lists(
    agent: Any, past: EventBatch, target_N: Tensor, seen: Pairs, num_items: int, config: RankingConfig
) -> Ranked:
    with torch.inference_mode():
        list_NL = top_items(agent, past, min(max(*config.at, config.list_at), num_items)).cpu()
    _check_lists(agent, list_NL, num_items)
    if config.leave_out_seen:
        list_NL = _taken_out(list_NL, seen, num_items)
    hit_NL = list_NL == target_N[:, None]
    better_N = torch.where(hit_NL.any(1), hit_NL.int().argmax(1), MISSED)
    return rank_metrics(better_N.numpy(), np.ones(len(target_N), np.int64), config.at), list_NL.numpy()


MISSED = 2**40
"""Number of better items for a target that is not ranked at all."""


def rank_of(score_NI: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Number of items with a higher score than the target, and with the same score, including itself.

    Args:
        score_NI: -inf for items that are not ranked; such a target is missed.
        target_N: int64.
    """
    own_N1 = score_NI.gather(1, target_N[:, None])
    better_N, tied_N = (score_NI > own_N1).sum(1), (score_NI == own_N1).sum(1)
    missed_N = own_N1[:, 0] == -torch.inf
    return better_N.masked_fill(missed_N, MISSED), tied_N.masked_fill(missed_N, 1)


def top_of(score_NI: Tensor, k: int) -> Tensor:
    """The k best items [N, k], best first; ties go to the lower id, and -1 fills up if fewer are ranked."""
    last_N1 = score_NI.topk(k, dim=1).values[:, -1:]
    above_NI, equal_NI = score_NI > last_N1, score_NI == last_N1
    room_N1 = k - above_NI.sum(1, keepdim=True)
    item_NK = (above_NI | (equal_NI & (equal_NI.cumsum(1) <= room_N1))).nonzero()[:, 1].view(-1, k)  # by id
    chosen_NK = score_NI.gather(1, item_NK)
    order_NK = chosen_NK.argsort(dim=1, descending=True, stable=True)
    return item_NK.masked_fill(chosen_NK == -torch.inf, -1).gather(1, order_NK)


def rank_metrics(better_N: NDArray, tied_N: NDArray, at: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Expected HR@k, NDCG@k and MRR over the order of ties.

    With one target the ideal DCG is 1. So NDCG@k is 1 / log2(1 + rank) within the first k, and HR@k equals recall@k.

    Args:
        better_N: items with a higher score than the target.
        tied_N: items with its score, including itself, >= 1.
        at: cut-offs.

    Returns:
        float64 [N] each; MRR is cut at the largest k.
    """
    rank = np.arange(1, max(at) + 1)

    def expected(gain: NDArray, k: int) -> NDArray[np.float64]:
        total = np.concatenate([[0.0], np.cumsum(gain[:k])])
        return (total[np.minimum(better_N + tied_N, k)] - total[np.minimum(better_N, k)]) / tied_N

    metrics = {f"HR@{k}": expected(np.ones(len(rank)), k) for k in at}
    metrics |= {f"NDCG@{k}": expected(1 / np.log2(rank + 1), k) for k in at}
    return metrics | {f"MRR@{max(at)}": expected(1 / rank, max(at))}


def over_seeds(rankings: Sequence[RankedTargets], metric: str) -> dict[str, float]:
    """Mean of a metric over runs with different seeds, with its 95% interval by Student's t; NaN limits for one run."""
    values = np.array([ranking.mean(metric) for ranking in rankings])
    if len(values) < 2:
        return {"mean": float(values.mean()), "low": float("nan"), "high": float("nan")}
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return {"mean": float(values.mean()), "low": float(values.mean() - half), "high": float(values.mean() + half)}


def ranking_table(rankings: Mapping[str, Sequence[RankedTargets]], metrics: Sequence[str] | None = None) -> Table:
    """A table for people, with one row per agent and the protocol above it.

    Args:
        rankings: maps an agent's name to its runs; intervals are over users for one run, over seeds for several.
        metrics: columns; all except the shares of targets if None.

    Raises:
        ValueError: the agents were not judged in the same way.
    """
    from rich.table import Table

    runs = [ranking for several in rankings.values() for ranking in several]
    if len(protocols := sorted({ranking.protocol for ranking in runs})) > 1:
        raise ValueError(f"The agents were judged differently ({' / '.join(protocols)}); judge them in the same way.")
    names = metrics or [n for n in (*runs[0].ratios, *runs[0].totals) if not n.startswith(("cold", "targets"))]
    table = Table(title=protocols[0])
    table.add_column("agent")
    table.add_column("ranked by")
    for name in names:
        table.add_column(name, justify="right")
    for agent, several in rankings.items():
        users = several[0].intervals() if len(several) == 1 else {}
        cells = [users.get(name) or over_seeds(several, name) for name in names]
        table.add_row(agent, several[0].ranked_by, *(_cell(cell) for cell in cells))
    over = "users" if all(len(several) == 1 for several in rankings.values()) else "seeds (users for one run)"
    shares = runs[0].totals
    table.caption = (
        f"mean [95% interval over {over}]; ties in scores averaged; {shares['cold targets']:.1%} of the targets unseen "
        f"in training, {shares['targets seen before']:.1%} seen by their user before"
    )
    return table


def _cell(cell: Mapping[str, float]) -> str:
    mean = f"{cell['mean']:.4f}"
    return mean if np.isnan(cell["low"]) else f"{mean}\n[{cell['low']:.4f}, {cell['high']:.4f}]"


# ---------------------------------------------------------------- parts


Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""A target's place in its chunk, and an item that its user had seen."""


def _seen_pairs(every: LoggedHistories, chunk: slice) -> Pairs:
    """Pairs of a target's place in the chunk and an item that its user examined before, one per event."""
    begin = every.first_U1[every.user_idx_N[chunk]]
    size = every.end_N[chunk] - begin
    place = np.repeat(np.arange(len(size)), size)
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    return place, every.log.item_id[every.seen[np.repeat(begin, size) + within]].astype(np.int64)


def _before(seen: Pairs, target_N: NDArray, popularity_I: NDArray) -> dict[str, NDArray]:
    """Mean training popularity and number of the items that each target's user saw before, and if the target is one."""
    place, item = seen
    size = np.bincount(place, minlength=len(target_N))
    total = np.bincount(place, weights=popularity_I[item], minlength=len(target_N))
    repeats = np.bincount(place, weights=item == target_N[place], minlength=len(target_N)) > 0
    return {"mean": total / np.maximum(size, 1), "size": size, "target": repeats}


def _taken_out(list_NL: Tensor, seen: Pairs, num_items: int) -> Tensor:
    """Lists without the seen items, closed up; -1 fills the end."""
    seen_NI = torch.zeros(len(list_NL), num_items + 1, dtype=torch.bool)
    seen_NI[torch.from_numpy(seen[0]), torch.from_numpy(seen[1])] = True
    seen_NI[:, num_items] = True  # padding of short lists
    dropped_NL = seen_NI.gather(1, torch.where(list_NL < 0, num_items, list_NL))
    order_NL = dropped_NL.int().argsort(dim=1, stable=True)
    return list_NL.masked_fill(dropped_NL, -1).gather(1, order_NL)


def _check_scores(agent: Any, score_NI: Tensor, shape: tuple[int, int]) -> None:
    name = type(agent).__name__
    if tuple(score_NI.shape) != shape:
        raise ValueError(
            f"{name}.scores() gave shape {tuple(score_NI.shape)}; give one score per item, [U, I] = {shape}."
        )
    if score_NI.isnan().any():
        raise ValueError(f"{name}.scores() gave NaN for {int(score_NI.isnan().any(1).sum())} users; mask or fix them.")


def _check_lists(agent: Any, list_NL: Tensor, num_items: int) -> None:
    name = type(agent).__name__
    if bool(((list_NL < -1) | (list_NL >= num_items)).any()):
        raise ValueError(f"{name} listed an item outside 0..{num_items - 1}; list items of the catalogue, or -1.")
    ordered = list_NL.sort(dim=1).values
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        raise ValueError(f"{name} listed an item twice; hits would count twice, so list every item once.")


def _gathered(
    values_N: dict[str, NDArray[np.float64]],
    list_NK: NDArray[np.int64],
    targets: NextItems,
    popularity_I: NDArray[np.float64],
    before: dict[str, NDArray],
) -> dict[str, Any]:
    """Metrics per user, and figures over all lists: the fields of :class:`RankedTargets`."""
    users, user_N = np.unique(targets.user_idx_N, return_inverse=True)

    def ratio(numerator_N: NDArray, denominator_N: NDArray) -> Ratio:
        return Ratio(
            *(np.bincount(user_N, weights=part, minlength=len(users)) for part in (numerator_N, denominator_N))
        )

    ones_N = np.ones(len(targets))
    cold_N = popularity_I[targets.item_id_N] == 0
    ratios = {name: ratio(value_N, ones_N) for name, value_N in values_N.items()}
    if cold_N.any():
        ratios |= {f"cold {name}": ratio(v * cold_N, cold_N.astype(float)) for name, v in values_N.items()}
    listed_NK, k = list_NK >= 0, list_NK.shape[1]
    size_N = listed_NK.sum(axis=1)
    mean_N = (popularity_I[list_NK] * listed_NK).sum(axis=1) / np.maximum(size_N, 1)
    known_N = (before["size"] > 0) & (size_N > 0)
    ratios[f"popularity lift@{k}"] = ratio((mean_N - before["mean"]) * known_N, before["mean"] * known_N)
    count_I = np.bincount(list_NK[listed_NK], minlength=len(popularity_I))
    totals = {
        f"coverage@{k}": float((count_I > 0).mean()),
        f"Gini@{k}": gini(count_I),
        "cold targets": float(cold_N.mean()),
        "targets seen before": float(before["target"].mean()),
    }
    return {"values_N": values_N, "ratios": ratios, "totals": totals, "user_idx_U": users, "lists_NK": list_NK}

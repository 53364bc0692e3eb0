"""Ranking: a model trained on a log's exposures and judged by later ones, together with simple baselines.

    log -> rows by time: training | validation | judged -> training, best epoch by validation -> figures per behaviour

Rows are requests; MTGR trains on windows of them, which end before validation begins. Events after the decision on a
candidate are never read; histories of judged rows hold everything before them, as in use. Judged rows are never used
for choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import TypedDict

from feedgym import plugins
from feedgym.agents.fit import Curve, fit
from feedgym.agents.ranker import Ranker
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Catalog, EventLog
from feedgym.data.ranking import RankingBatch, RankingRows
from feedgym.data.splits import leave_last_out, random_exposures, split_time
from feedgym.experiments.evaluate import Table
from feedgym.experiments.logs import LOG
from feedgym.experiments.progress import progress
from feedgym.experiments.rank.agents import DataFacts, new_ranker
from feedgym.experiments.rank.metrics import task_figures, watch_figures
from feedgym.experiments.rank.presets import RankRun
from feedgym.experiments.report import conclude
from feedgym.experiments.retrieval.data import plan_data, read_log
from feedgym.experiments.retrieval.experiment import iteration_row
from feedgym.experiments.run import Codec, Plan, Run, json_of, with_curve
from feedgym.experiments.statistics import Figure, interval, lift, resampling_counts

MIN_EVENTS = 50
"""Least number of times that a behaviour must happen, and fail to, in training to be a task by default."""
SMOOTHING = 20.0
"""Number of exposures with the mean rate that baselines add to an item's own."""
ROWS_PER_BLOCK = 1024
AT_RANDOM = ", drawn at random"
"""Ending of the names of figures on exposures that were drawn at random."""
NUM_RESAMPLES = 500
"""Number of resamplings of the users; an AUC is computed again for each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RankingData:
    """Rows of a log, cut by time.

    Attributes:
        catalog: the items.
        train: training rows.
        validation: rows that choose the epoch.
        judged: rows that judge.
        drawn: exposures of the judged time that were drawn at random, for figures without exposure bias; None if the
            log has none. They are not candidates anywhere else, but are part of histories.
        facts: facts about the data for the ranker.
        protocol: description of how the log was cut.
    """

    catalog: Catalog
    train: RankingRows
    validation: RankingRows
    judged: RankingRows
    drawn: RankingRows | None
    facts: DataFacts
    protocol: str

    @classmethod
    def of(cls, config: RankRun, data: tuple[EventLog, Catalog]) -> RankingData:
        """Cut a log.

        Raises:
            ValueError: a part is empty, or no behaviour can be predicted.
        """
        log, catalog = data
        random = random_exposures(log)
        only = ~random if random.any() else None
        rows: Any = config.rows(log, catalog, only)
        if log.has_time:
            split = split_time(rows, validation=config.validation, held_out=config.held_out)
            protocol = f"the last {config.held_out:.0%} of the rows by time"
        else:
            split, protocol = leave_last_out(rows), "each user's last row (the log has no times)"
        parts = [rows.rows(keep_N) for keep_N in (split.train_N, split.validation_N, split.held_out_N)]
        if not all(map(len, parts)):
            raise ValueError(f"{len(rows)} rows leave a part of the split empty; give a longer log.")
        if log.has_time:
            parts[0] = config.training_rows(parts[0], log, catalog, parts[1].start_s_N.min())
        tasks = config.tasks or _frequent(parts[0].batch)
        facts = DataFacts(num_items=catalog.num_items, profile_sizes=log.profile_sizes, tasks=tasks, watch=config.watch)
        drawn = None
        if random.any() and log.has_time:
            drawn = config.rows(log, catalog, random)
            drawn = drawn.rows(drawn.start_s_N >= parts[2].start_s_N.min())
        return cls(catalog=catalog, train=parts[0], validation=parts[1], judged=parts[2],
                   drawn=drawn if drawn is not None and len(drawn) else None, facts=facts,
                   protocol=protocol)  # fmt: skip


def _frequent(rows: RankingBatch) -> tuple[str, ...]:
    """The behaviours that happen, and fail to, often enough to be learned."""
    labels_NB = rows.behaviours_NKB[rows.mask_NK]
    happened_B = labels_NB.sum(0)
    often_B = torch.minimum(happened_B, len(labels_NB) - happened_B) >= MIN_EVENTS
    tasks = tuple(name for name, often in zip(BEHAVIOURS, often_B.tolist(), strict=True) if often)
    if not tasks:
        raise ValueError(
            f"No behaviour both happens and fails to happen {MIN_EVENTS} times in training; name some with --tasks or "
            "give a longer log."
        )
    return tasks


class RankingFigures(TypedDict):
    """The stage of the figures, as :func:`judge` makes it."""

    figures: dict[str, Table]
    lifts: dict[str, Table]
    candidates: dict[str, int]
    protocol: str


FIGURES: Codec[Any] = json_of(RankingFigures)


def plan(config: RankRun) -> Plan:
    """The stages in order, with the settings that decide each."""
    plan = Plan()
    log = plan_data(plan, config)
    cut: Any = [config.tasks, config.watch, config.max_candidates, config.validation, config.held_out, config.seed]
    cut += [getattr(config, name, None) for name in ("window_s", "max_tokens")]
    ranker = plan.stage(config.name, [config.model, config.history_length, config.epochs, config.fit, *cut], (log,))
    plan.stage("judged", cut, (ranker,))
    return plan


def experiment(config: RankRun, run: Run) -> dict[str, Any]:
    """Train a ranker and judge it together with baselines.

    Args:
        config: the whole experiment.
        run: the folder that keeps it; stages found there are not done again.

    Returns:
        The summary, as written to ``summary.json``.
    """
    log = run.stage("log", partial(read_log, config, trust=run.trust), LOG)
    data, kind = RankingData.of(config, log.value), plugins.resolve("ranker", config.name)
    ranker = run.stage(
        config.name, partial(train, config, data, run), with_curve(Codec(kind.save_pretrained, kind.load))
    )
    judged = run.stage("judged", lambda _: judge(config, data, ranker.value[0]), FIGURES)
    summary = _summarised(config, data, judged.value, ranker.value[1]) | {"seed": config.seed, **run.facts()}
    return conclude(run, summary, artifacts={f"{config.name}-ranker": config.name})


def train(config: RankRun, data: RankingData, run: Run, work: Path) -> tuple[Ranker, Curve]:
    """The trained ranker and its validations."""
    torch.manual_seed(config.seed)
    ranker = new_ranker(config.name, config.model, data.catalog, data.facts, config.history_length)
    examples, batch_size = config.examples(data.train.batch)
    settings = replace(config.fit, batch_size=batch_size)
    with progress(f"Training {config.name}") as step:
        validate = partial(mean_auc, rows=data.validation)
        ranker, curve = fit(ranker, examples, settings, config.epochs, config.seed, validate, work, step)
    for row in curve:
        run.log({f"{config.name}/{key}": value for key, value in row.items()})
    return ranker, curve


# ---------------------------------------------------------------- judgement


def mean_auc(ranker: Ranker, rows: RankingRows) -> float:
    """Mean area under the ROC curve over the tasks that have both outcomes."""
    figures = figures_of(scores_of(ranker, rows), ranker.config.tasks, rows)
    return float(np.nanmean([figures[f"auc.{task}"].mean() for task in ranker.config.tasks]))


def scores_of(ranker: Ranker, rows: RankingRows, step: Any = None) -> NDArray[np.float32]:
    """Probabilities [candidates, M] of all real candidates, row by row."""
    parts = []
    for low in range(0, len(rows), ROWS_PER_BLOCK):
        block = rows.batch.rows(slice(low, low + ROWS_PER_BLOCK)).trimmed()
        parts.append(torch.sigmoid(ranker.scores_UKM(block))[block.mask_NK])
        if step is not None:
            step(min(low + ROWS_PER_BLOCK, len(rows)), len(rows))
    return torch.cat(parts).numpy()


def figures_of(scores: NDArray, tasks: Any, rows: RankingRows) -> dict[str, Figure]:
    """The figures of all tasks over the users who have a candidate."""
    real_NK = rows.batch.mask_NK
    users, user_N = np.unique(rows.user_idx_N, return_inverse=True)
    user = np.repeat(user_N, real_NK.sum(1).numpy())
    labels = rows.batch.behaviours_NKB[real_NK].numpy() > 0
    figures: dict[str, Figure] = {}
    for m, task in enumerate(tasks):
        figures |= task_figures(task, labels[:, BEHAVIOUR_IDX[task]], scores[:, m], user, len(users))
    if scores.shape[1] > len(tasks):
        figures |= watch_figures(rows.batch.watch_fraction_NK[real_NK].numpy(), scores[:, -1], user, len(users))
    return figures


def item_rates(data: RankingData) -> NDArray[np.float32]:
    """The baseline's prediction for each item, [I, M]: its rates in training, shrunk towards the mean of all items."""
    rows = data.train.batch
    columns = [BEHAVIOUR_IDX[name] for name in data.facts.tasks]
    outcome = rows.behaviours_NKB[rows.mask_NK][:, columns]
    if data.facts.watch:
        outcome = torch.cat([outcome, rows.watch_fraction_NK[rows.mask_NK].clamp_max(1)[:, None]], dim=1)
    item_ids = rows.item_ids_NK[rows.mask_NK]
    sum_IM = torch.zeros(data.facts.num_items, outcome.shape[1]).index_add_(0, item_ids, outcome)
    count_I1 = torch.bincount(item_ids, minlength=data.facts.num_items)[:, None]
    return ((sum_IM + SMOOTHING * outcome.mean(0)) / (count_I1 + SMOOTHING)).numpy()


def judge(config: RankRun, data: RankingData, ranker: Ranker) -> dict[str, Any]:
    """The figures of ranker and baselines, with intervals over users, and the ranker's lifts over them."""
    measured = _measured(config, data, data.judged, ranker)
    counts_RU = resampling_counts(len(np.unique(data.judged.user_idx_N)), config.seed, NUM_RESAMPLES)
    table = _table(measured, counts_RU)
    if data.drawn is not None:
        drawn_RU = resampling_counts(len(np.unique(data.drawn.user_idx_N)), config.seed, NUM_RESAMPLES)
        at_random = _table(_measured(config, data, data.drawn, ranker), drawn_RU)
        table |= {f"{name}{AT_RANDOM}": figures for name, figures in at_random.items()}
    lifts = {
        f"{config.name} over {name}": {
            metric: gain
            for metric, figure in measured[config.name].items()
            if metric.startswith("gauc") and (gain := lift(figure, measured[name][metric], counts_RU)) is not None
        }
        for name in ("item_rate", "constant")
    }
    parts = {"train": data.train, "validation": data.validation, "judged": data.judged, "drawn at random": data.drawn}
    sizes = {name: int(rows.batch.mask_NK.sum()) for name, rows in parts.items() if rows is not None}
    return {"figures": table, "lifts": lifts, "candidates": sizes, "protocol": data.protocol}


def _measured(config: RankRun, data: RankingData, rows: RankingRows, ranker: Ranker) -> dict[str, dict[str, Figure]]:
    """The figures of ranker and baselines on some rows."""
    rate_IM = item_rates(data)
    item_ids = rows.batch.item_ids_NK[rows.batch.mask_NK].numpy()
    with progress(f"Judging {config.name}") as step:
        scores = {config.name: scores_of(ranker, rows, step)}
    train_items = data.train.batch.item_ids_NK[data.train.batch.mask_NK].numpy()
    rate_M = rate_IM[train_items].mean(0)
    scores |= {"item_rate": rate_IM[item_ids], "constant": np.broadcast_to(rate_M, scores[config.name].shape)}
    return {name: figures_of(task_scores, data.facts.tasks, rows) for name, task_scores in scores.items()}


def _table(
    measured: Mapping[str, Mapping[str, Figure]], counts_RU: NDArray
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Figures with intervals over users."""
    table = {}
    with progress("Intervals") as step:
        for done, (name, figures) in enumerate(measured.items()):
            table[name] = {metric: _measurable(interval(figure, counts_RU)) for metric, figure in figures.items()}
            step(done + 1, len(measured))
    return table


def _measurable(figures: dict[str, float]) -> dict[str, float | None]:
    """Replaces NaN by None, because JSON has no NaN."""
    return {name: None if np.isnan(value) else value for name, value in figures.items()}


def _summarised(
    config: RankRun, data: RankingData, judged: Mapping[str, Any], curve: list[dict[str, float]]
) -> dict[str, Any]:
    """The part of summary.json about figures and learning."""
    figures, sizes = judged["figures"], judged["candidates"]
    title = f"{config.label} on {Path(config.data).name if config.data else 'ShortVideo, simulated users'}"
    note = (
        f"{config.label}; predicted: {', '.join(data.facts.tasks)}{', watched fraction' * data.facts.watch}. "
        f"{sizes['train']:,} exposures to learn from, {sizes['validation']:,} to choose the epoch by mean AUC, "
        f"{sizes['judged']:,} judged: {judged['protocol']}. item_rate predicts each item's rates in training, constant "
        "those of all items."
    )
    if "drawn at random" in sizes:
        note += (
            f" In addition {sizes['drawn at random']:,} exposures of that time were drawn at random, independently of "
            "the user: figures on them have no exposure bias. They are candidates nowhere else."
        )
    over = f"{config.name} over item_rate"
    return {
        "title": title,
        "note": note,
        "judged_by": judged["protocol"],
        "offline": figures[config.name],
        "baselines": {name: metrics for name, metrics in figures.items() if name != config.name},
        "agents": figures,
        "lift": judged["lifts"][over],
        "lift_names": [config.name, "item_rate"],
        "lifts": judged["lifts"],
        "candidates": sizes,
        "learning": [[iteration_row(row) for row in curve]],
        "learning_names": [config.name],
    }

"""Next-item retrieval: trains a model on a log and judges it by ranking the whole catalogue, together with baselines.

    log -> leave-one-out split -> baselines chosen on validation -> training, best epoch by validation -> test targets

Each user's last item taken is the test target and the one before it the validation target. Test targets never choose a
setting, an epoch or a baseline, unlike in Meta's published figures, which have no validation split.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import TypedDict

from feedgym.agents.baselines import ItemKNNRecommender, PopularRecommender
from feedgym.agents.fit import Curve
from feedgym.experiments.evaluate import Table
from feedgym.experiments.logs import LOG
from feedgym.experiments.progress import progress
from feedgym.experiments.report import conclude
from feedgym.experiments.retrieval.agents import AgentStage, stages_of, writes_codes
from feedgym.experiments.retrieval.data import CHOSEN_BY, SESSION, RetrievalData, plan_data, read_log
from feedgym.experiments.retrieval.metrics import RankedTargets
from feedgym.experiments.retrieval.presets import RetrievalConfig
from feedgym.experiments.run import Codec, FinishedStage, Plan, Run, json_of
from feedgym.experiments.statistics import interval, lift, resampling_counts


class TestFigures(TypedDict):
    """The stage of the test figures, as :func:`ranked_all` makes it."""

    figures: dict[str, Table]
    lifts: dict[str, Table]
    protocol: str
    ranked_by: dict[str, str]
    item_knn_recent: int
    has_time: bool
    targets: dict[str, float]


FIGURES: Codec[Any] = json_of(TestFigures)


def plan(config: RetrievalConfig) -> Plan:
    """The stages in order, with the settings that decide each."""
    plan = Plan()
    log = plan_data(plan, config)
    protocol = [config.behaviours, config.min_items, config.validation_targets, config.seed]
    if config.is_sasrec_ce():
        plan.leave_out("sasrec_ce", because="the model is that baseline itself")
    if writes_codes(config):
        plan.leave_out("model.positives", because="the run's behaviours are those it reads and predicts")
    agents = [
        plan.stage(name, [stage.key, config.epochs, config.fit, config.ranking, *protocol], (log,))
        for name, stage in stages_of(config).items()
    ]
    plan.stage("ranked", [config.ranking, config.knn_recent, *protocol], (log, *agents))
    return plan


def experiment(config: RetrievalConfig, run: Run) -> dict[str, Any]:
    """Train a model and judge its ranking together with baselines.

    Args:
        config: the whole experiment.
        run: the folder that keeps it; stages found there are not done again.

    Returns:
        The summary, as written to ``summary.json``.
    """
    log = run.stage("log", partial(read_log, config, trust=run.trust), LOG)
    world = RetrievalData.of(config, log.value)
    agents: dict[str, FinishedStage] = {
        name: run.stage(name, partial(_trained, stage, world, name, run), stage.codec)
        for name, stage in stages_of(config).items()
    }
    ranked = run.stage(
        "ranked", lambda _: ranked_all(world, {name: stage.value[0] for name, stage in agents.items()}), FIGURES
    )
    curves = {name: stage.value[1] for name, stage in agents.items()}
    summary = summarised(config, ranked.value, curves) | {"seed": config.seed, **run.facts()}
    return conclude(run, summary, artifacts={f"{config.name}-agent": config.name})


def _trained(stage: AgentStage, world: RetrievalData, name: str, run: Run, work: Path) -> tuple[Any, Curve]:
    return stage.train(world, work, name, lambda row: run.log({f"{name}/{key}": value for key, value in row.items()}))


# ---------------------------------------------------------------- judgement


def ranked_all(world: RetrievalData, agents: Mapping[str, Any]) -> dict[str, Any]:
    """The test figures of all agents, with intervals over users, and the model's lifts over the others."""
    config = world.config
    knn, recent = item_knn(world)
    everyone = {"popular": popular(world), "item_knn": knn}
    everyone |= {name.replace("-", "_"): agent for name, agent in agents.items()}
    rankings = {}
    for name, agent in everyone.items():
        with progress(f"Ranking by {name}") as step:
            rankings[name] = world.rank(agent, config.ranking, step=step)
    model = rankings[config.name]
    counts_RU = resampling_counts(len(model.user_idx_U), config.seed)
    figures = {name: figures_of(ranking, counts_RU) for name, ranking in rankings.items()}
    lifts = {
        f"{config.name} over {name}": {
            metric_name(metric): gain
            for metric, ratio in model.ratios.items()
            if metric in other.ratios and (gain := lift(ratio, other.ratios[metric], counts_RU)) is not None
        }
        for name, other in rankings.items()
        if name != config.name
    }
    return {
        "figures": figures,
        "lifts": lifts,
        "protocol": model.protocol,
        "ranked_by": {name: ranking.ranked_by for name, ranking in rankings.items()},
        "item_knn_recent": recent,
        "has_time": world.log.has_time,
        "targets": {name: model.totals[name] for name in ("cold targets", "targets seen before")},
    }


def figures_of(ranking: RankedTargets, counts_RU: np.ndarray) -> dict[str, dict[str, float | None]]:
    """Metrics as {"mean", "low", "high"}; figures over all lists together have no interval."""
    figures: dict[str, Any] = {metric_name(name): interval(ratio, counts_RU) for name, ratio in ranking.ratios.items()}
    whole = {metric_name(name): value for name, value in ranking.totals.items() if "targets" not in name}
    return figures | {name: {"mean": value, "low": None, "high": None} for name, value in whole.items()}


def metric_name(name: str) -> str:
    """recall@k, ndcg@k, mrr, coverage, gini: a metric's name in summaries."""
    for long, short in (("HR@", "recall@"), ("NDCG@", "ndcg@")):
        name = name.replace(long, short)
    head, cutoff, _ = name.rpartition("@")
    if cutoff and head.removeprefix("cold ") in ("MRR", "coverage", "Gini", "popularity lift"):
        name = head
    return name.lower()


def popular(world: RetrievalData) -> PopularRecommender:
    """The baseline of popular items, by examined exposures in the training log."""
    count_I = world.split.shown_I(world.catalog.num_items)
    return PopularRecommender(torch.from_numpy(count_I), min(SESSION, world.catalog.num_items))


def item_knn(world: RetrievalData) -> tuple[ItemKNNRecommender, int]:
    """ItemKNN with the number of last events that is best on validation, and that number (0: all)."""
    config, num_items = world.config, world.catalog.num_items
    fitted = ItemKNNRecommender.fit(world.split.train, num_items, min(SESSION, num_items), behaviours=config.behaviours)

    def looking_at(recent: int) -> ItemKNNRecommender:
        return ItemKNNRecommender(fitted.similarity_II, fitted.count_I, fitted.session_length, recent=recent or None)

    with progress("Choosing ItemKNN") as step:
        value = {}
        for done, recent in enumerate(config.knn_recent):
            value[recent] = world.validation(looking_at(recent))
            step(done + 1, len(config.knn_recent))
    best = max(value, key=lambda recent: value[recent])
    return looking_at(best), best


def summarised(config: RetrievalConfig, ranked: Mapping[str, Any], curves: Mapping[str, Any]) -> dict[str, Any]:
    """The part of summary.json about figures, choices and learning."""
    figures, best = ranked["figures"], f"{config.name} over "
    strongest = max((n for n in figures if n != config.name), key=lambda n: figures[n]["ndcg@10"]["mean"])
    cold, seen = (ranked["targets"][name] for name in ("cold targets", "targets seen before"))
    recent = ranked["item_knn_recent"] or "all"
    note = (
        f"{config.label}; {ranked['protocol']}; mrr is cut at {max(config.ranking.at)}. Epochs and baselines are "
        f"chosen on validation targets by {CHOSEN_BY}: ItemKNN uses the last {recent} events. {cold:.1%} of the "
        f"test targets were never seen in training, {seen:.1%} by their user before."
    )
    if not ranked["has_time"]:
        note += " The data have only the order of events, so no model learns from times."
    title = f"{config.label} on {Path(config.data).name if config.data else 'ShortVideo, simulated users'}"
    return {
        "title": title,
        "note": note,
        "judged_by": f"each user's last item; {ranked['protocol']}",
        "offline": figures[config.name],
        "baselines": {name: metrics for name, metrics in figures.items() if name != config.name},
        "agents": figures,
        "lift": ranked["lifts"][best + strongest],
        "lift_names": [config.name, strongest],
        "lifts": ranked["lifts"],
        "ranked_by": ranked["ranked_by"],
        "item_knn_recent": ranked["item_knn_recent"],
        "learning": [[iteration_row(row) for row in curve] for curve in curves.values() if curve],
        "learning_names": [name for name, curve in curves.items() if curve],
    }


def iteration_row(row: Mapping[str, float]) -> dict[str, float]:
    """A validation in the form for the report's plots."""
    return {"iteration": row["epoch"]} | {name: row[name] for name in ("validation", "loss") if name in row}

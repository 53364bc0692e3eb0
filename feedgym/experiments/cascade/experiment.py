"""Compares a cascade with an end-to-end agent in the same simulator, including the cost per request.

    an aligned run's world and log -> retriever -> ranker -> cascade -> judge (the same users for everyone) -> cost

The end-to-end agent comes from a finished run (``against``) or is trained first, by a preset, in a run folder inside
this one. ``retrieved`` serves the retriever's best items, ``ranked`` the ranker's best ones among the candidates, and
``cascade`` the choice of the re-rank rule.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedgym import plugins
from feedgym.agents.cascade import Cascade
from feedgym.agents.fit import Curve, fit
from feedgym.agents.ranker import Ranker, RankingDataset
from feedgym.agents.sequences import ScoreRecommender
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog, EventLog
from feedgym.data.ranking import ranking_requests
from feedgym.data.requests import LogAndItems
from feedgym.data.whole import WORK
from feedgym.envs.history import has_arrivals
from feedgym.experiments.against import rivals, rivals_key
from feedgym.experiments.align.agents import FinishedRun, agents_of, key_of, read_config
from feedgym.experiments.align.experiment import align
from feedgym.experiments.align.experiment import plan as align_plan
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.by_visit import told_by_visit
from feedgym.experiments.cascade.presets import CascadeRun, RankerStage
from feedgym.experiments.configs import CostConfig
from feedgym.experiments.controls import references, with_controls
from feedgym.experiments.cost import COSTS, MEASURED_HERE, asked, costs, told, with_costs
from feedgym.experiments.evaluate import JUDGED, exposure_of, judged_by, lifts_over_each
from feedgym.experiments.logs import LOG
from feedgym.experiments.presets import PRESETS
from feedgym.experiments.progress import progress
from feedgym.experiments.rank.agents import DataFacts, new_ranker
from feedgym.experiments.report import conclude
from feedgym.experiments.retrieval.agents import model_stage
from feedgym.experiments.retrieval.data import RetrievalData
from feedgym.experiments.retrieval.experiment import iteration_row
from feedgym.experiments.retrieval.presets import RetrievalConfig
from feedgym.experiments.run import Codec, FinishedStage, Plan, Run, StageReached, with_curve
from feedgym.experiments.serve import judges_of, samples, serve_all
from feedgym.experiments.statistics import interval, resampling_counts
from feedgym.protocols import Recommender

OPPONENT = "aligned"
"""The agent that the cascade's lift is relative to; the others are in ``lifts``."""


def plan(config: CascadeRun) -> Plan:
    """The stages in order, with the settings that decide each."""
    check(config)
    plan = Plan()
    plan.leave_out("ray", because="the process that draws a block of sessions does not change them")
    if config.against:
        plan.leave_out("end_to_end", because="the end-to-end agent is that of a finished run")
        log = plan.stage("log", key_of(config.against))
    else:
        aligned = replace(end_to_end_config(config), ray="off")  # it does not change any figure
        own = "The end-to-end agent has its own run folder; name a finished run by --against to share the rest"
        log = plan.stage("log", parents=(plan.stage("end-to-end", aligned, own=own),))
    retriever = plan.stage("retriever", [config.retriever, config.seed], (log,))
    ranker = plan.stage("ranker", [config.ranker, config.seed], (log,))
    cascade = plan.stage("cascade", config.cascade, (retriever, ranker))
    judges = [replace(config.judge, cost=CostConfig()), rivals_key(config.judge.against)]
    judged = plan.stage("judged", judges, (cascade,))
    plan.stage("cost", config.judge.cost, (judged,), MEASURED_HERE)
    return plan


def experiment(config: CascadeRun, run: Run) -> dict[str, Any]:
    """Train a cascade and judge it together with an end-to-end agent.

    Args:
        config: the whole comparison.
        run: the folder that keeps it; stages found there are not done again.

    Returns:
        The summary, as written to ``summary.json``.
    """
    finished = agents_of(config.against, trust=run.trust) if config.against else end_to_end(config, run).value
    align_config = replace(finished.config, judge=config.judge)
    log = run.stage("log", lambda _: (finished.log, finished.catalog), LOG)
    retriever = retriever_stage(config.retriever.run(config.seed), log, run)
    ranker = ranker_stage(config.ranker, log, align_config.history_length, config.seed, run)
    models = (retriever.value[0], ranker.value[0])
    cascade = run.stage(
        "cascade",
        lambda _: Cascade(*models, finished.catalog, align_config.session_length, config.cascade, align_config.weights),
        Codec(lambda agent, folder: agent.save(folder), Cascade.load),
    )
    agents = references(finished.log, finished.catalog, align_config)
    agents |= with_controls(finished.agents, finished.reward, config.judge) | grown(cascade.value)
    agents |= rivals(align_config, finished.catalog, trust=run.trust)
    judged = run.stage("judged", lambda _: judge(agents, finished, align_config), JUDGED)
    cost = run.stage(
        "cost",
        lambda _: costs(agents, requests(finished, config.judge.cost.requests), config.judge.cost),
        COSTS,
    )
    summary = summarised(config, finished, judged.value, cost.value) | {
        "learning": [[iteration_row(row) for row in curve] for _, curve in (retriever.value, ranker.value) if curve],
        "learning_names": [stage.name for stage in (retriever, ranker) if stage.value[1]],
        "seed": config.seed,
        **run.facts(),
    }
    return conclude(run, summary, artifacts={"cascade-agent": cascade.name})


# ---------------------------------------------------------------- the end-to-end agent


def check(config: CascadeRun) -> None:
    """Report mistakes before anything is trained.

    Raises:
        ValueError: the end-to-end agent has no simulated users, or the preset does not align an agent.
    """
    if config.against is None:
        align_config = aligning(config.end_to_end)
    else:
        align_config = read_config(Path(config.against))
    if isinstance(align_config, AlignConfig):
        if align_config.data is not None:
            raise ValueError(f"{config.against} learned from a recorded log and has no users to be judged by.")
        if align_config.session_length > config.cascade.candidates:
            raise ValueError(
                f"cascade.candidates={config.cascade.candidates} are fewer than the {align_config.session_length} "
                "items of a session; raise it."
            )


def aligning(end_to_end: str) -> AlignConfig:
    """The preset that trains an end-to-end agent.

    Raises:
        ValueError: it does not align one.
    """
    config = PRESETS[end_to_end]() if end_to_end in PRESETS else None
    if not isinstance(config, AlignConfig):
        known = ", ".join(name for name in PRESETS if "-ipa" in name)
        raise ValueError(f"end_to_end={end_to_end!r} aligns no agent; choose one of {known}.")
    return config


def end_to_end_config(config: CascadeRun) -> AlignConfig:
    """The experiment that trains the end-to-end agent."""
    return replace(aligning(config.end_to_end), seed=config.seed, ray=config.ray)


def end_to_end(config: CascadeRun, run: Run) -> FinishedStage[FinishedRun]:
    """The end-to-end agent before and after its alignment, trained in a run folder inside the stage's."""
    return trained(end_to_end_config(config), run)


def trained(align_config: AlignConfig, run: Run) -> FinishedStage[FinishedRun]:
    """The stage ``end-to-end``: an alignment up to its chosen agent, in a run folder inside the stage's."""
    last = "chosen" if align_config.rounds.num else "reward-check"

    def train(work: Path) -> FinishedRun:
        inner = Run(work / "run", align_config, align_plan(align_config), resume=True, stop_after=last, tracker="none")
        try:
            align(align_config, inner)
        except StageReached:
            pass
        finally:
            inner.close()
        return agents_of(work / "run")

    codec: Codec[FinishedRun] = Codec(
        lambda finished, folder: shutil.copytree(folder / WORK / "run", folder / "run"),
        lambda folder: agents_of(folder / "run"),
    )
    return run.stage("end-to-end", train, codec)


# ---------------------------------------------------------------- the cascade


def retriever_stage(config: RetrievalConfig, log: FinishedStage, run: Run) -> FinishedStage:
    """The retriever and its learning curve."""
    stage = model_stage(config)
    return run.stage(
        "retriever",
        lambda work: stage.train(RetrievalData.of(config, log.value), work, "the retriever", lambda row: None),
        stage.codec,
    )


def ranker_stage(config: RankerStage, log: FinishedStage, history_length: int, seed: int, run: Run) -> FinishedStage:
    """The ranker and its learning curve."""
    kind = plugins.resolve("ranker", config.kind)
    return run.stage(
        "ranker",
        lambda work: fitted_ranker(config, log.value, history_length, seed, work),
        with_curve(Codec(kind.save_pretrained, kind.load)),
    )


def fitted_ranker(
    config: RankerStage, data: LogAndItems, history_length: int, seed: int, work: Path
) -> tuple[Ranker, Curve]:
    """A ranker trained on the log's requests, with the weights of the epoch that predicted the latest ones best."""
    log, catalog = data
    rows = ranking_requests(log, catalog, history_length)
    late_N = rows.start_s_N >= np.quantile(rows.start_s_N, 1 - config.validation_share)
    early, late = rows.rows(np.flatnonzero(~late_N)).batch, rows.rows(np.flatnonzero(late_N)).batch
    torch.manual_seed(seed)
    model = build_ranker(config, log, catalog, history_length)
    dataset = RankingDataset(rows=early)

    def validate(model: Ranker) -> float:
        return -model.mean_loss(late)

    with progress("Training the ranker") as step:
        return fit(model, dataset, config.fit, config.epochs, seed, validate, work, step)


def build_ranker(config: RankerStage, log: EventLog, catalog: Catalog, history_length: int) -> Ranker:
    """An untrained ranker for all behaviours and the watched fraction."""
    facts = DataFacts(num_items=catalog.num_items, profile_sizes=log.profile_sizes, tasks=BEHAVIOURS, watch=True)
    return new_ranker(config.kind, config.sizes(), catalog, facts, history_length)


# ---------------------------------------------------------------- judgement


def grown(cascade: Cascade) -> dict[str, Recommender]:
    """The cascade with one part more in each agent."""
    retriever: Any = cascade.retriever
    agents: dict[str, Recommender] = {
        "retrieved": ScoreRecommender(retriever, cascade.session_length, catalog=cascade.catalog)
    }
    if cascade.config.diversity:
        parts = (cascade.retriever, cascade.ranker, cascade.catalog, cascade.session_length)
        agents["ranked"] = Cascade(*parts, replace(cascade.config, diversity=0.0), cascade.weights)
    return agents | {"cascade": cascade}


def judge(agents: Mapping[str, Recommender], finished: FinishedRun, config: AlignConfig) -> dict[str, Any]:
    """Serve all agents to the same fresh users.

    Returns:
        ``agents``, ``lift``, ``lift_names``, ``lifts`` (of the cascade over each agent), ``by_visit``, ``samples`` and
        ``judged_by``.
    """
    simulator = finished.world.simulator  # type: ignore[attr-defined]  # check() left no other worlds
    seeds_U = judges_of(config)
    served = serve_all(simulator, agents, finished.reward, seeds_U, config)
    figures = {
        name: {**result.ratios(), **exposure_of(result, simulator, finished.log, config)}
        for name, result in served.items()
    }
    counts_RU = resampling_counts(len(seeds_U), config.seed)
    lifts = lifts_over_each("cascade", figures, counts_RU)
    read = {name: served[name] for name in ("base", "aligned", "cascade")}
    return {
        "agents": {
            name: {metric: interval(figure, counts_RU) for metric, figure in metrics.items()}
            for name, metrics in figures.items()
        },
        "lift": lifts[f"cascade over {OPPONENT}"],
        "lift_names": ["cascade", OPPONENT],
        "lifts": lifts,
        "by_visit": told_by_visit(served, [("cascade", name) for name in ("aligned", "base")], counts_RU),
        "samples": samples(read, finished.catalog),
        "judged_by": judged_by(len(seeds_U), config),
    }


def requests(finished: FinishedRun, wanted: int) -> EventBatch:
    """The last requests of the log's first users."""
    dated = has_arrivals(finished.world.simulator)  # type: ignore[attr-defined]
    return asked((finished.log, finished.catalog), finished.config, wanted, dated=dated)


def summarised(
    config: CascadeRun, finished: FinishedRun, judged: Mapping[str, Any], cost: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of summary.json about the comparison."""
    simulator = finished.world.simulator  # type: ignore[attr-defined]
    rule = f"{config.cascade.rule}, diversity {config.cascade.diversity:g}"
    model = plugins.title_of("model", finished.config.model)
    note = (
        f"The cascade ranks {config.cascade.candidates} candidates of HSTU by {config.ranker.label} and orders them by "
        f"{rule}. {model} (base) and {model} + IPA (aligned) serve drawn sessions; as _searched the best of a beam "
        f"search. {told(cost)}"
    )
    return {
        "title": f"Cascade against {model} on {type(simulator).__name__}, simulated users",
        "note": note,
        **with_costs(judged, cost),
    }

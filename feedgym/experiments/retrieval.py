"""Next-item retrieval: a model trained on a log and ranked against the whole catalogue, beside simple baselines.

    log -> leave-one-out split -> baselines chosen on validation -> training, best epoch by validation -> test targets

Each user's last item taken is the test target and the one before it the validation target. No setting, no epoch and no
baseline is chosen by test targets, unlike in Meta's published figures, which have no validation split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedgym.agents.baselines import ItemKNNRecommender, PopularRecommender
from feedgym.agents.hstu import HSTU, HSTUConfig
from feedgym.agents.next_item import fit
from feedgym.agents.pretrain import SessionDataset
from feedgym.agents.sasrec import SASRec, SASRecConfig
from feedgym.agents.sequences import SequenceDataset, SequenceModel
from feedgym.agents.session_model import SessionRecommender
from feedgym.agents.tiger import Tiger, TigerConfig
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOUR_IDX, Catalog, Event, EventLog
from feedgym.data.readers import column_pair, load_data
from feedgym.data.sessions import histories, user_of_rows
from feedgym.data.splits import ItemSplit, NextItems, leave_one_out
from feedgym.envs.feed import make_simulator
from feedgym.envs.logging import collect_log
from feedgym.envs.short_video import ShortVideo
from feedgym.experiments.progress import progress
from feedgym.experiments.ranking import Ranking, RankingConfig, evaluate_ranking
from feedgym.experiments.report import write_report
from feedgym.experiments.retrieval_presets import HSTURun, RetrievalConfig, SASRecRun, SASRecSizes, TigerRun
from feedgym.experiments.run import JSON, Codec, Run, Stage
from feedgym.experiments.statistics import interval, lift, resampling_counts
from feedgym.experiments.worlds import LOG
from feedgym.tokenizers.rqvae import RQVAE, RQVAEConfig

CHOSEN_BY = "NDCG@10"
"""The validation figure by which epochs and baselines are chosen."""
SESSION = 10
"""Items in the sessions of the baselines; only their scores are used here."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrieval:
    """What agents learn from and are judged by.

    Attributes:
        config: the whole experiment.
        log: the whole log.
        catalog: its items.
        split: what may be learnt from, and the targets.
    """

    config: RetrievalConfig
    log: EventLog
    catalog: Catalog
    split: ItemSplit

    @classmethod
    def of(cls, config: RetrievalConfig, data: tuple[EventLog, Catalog]) -> Retrieval:
        """Cut the log."""
        split = leave_one_out(data[0], behaviours=config.behaviours, min_items=config.min_items)
        return cls(config=config, log=data[0], catalog=data[1], split=split)

    def training_histories(self, length: int) -> EventBatch:
        """The newest ``length`` training events of every user who has at least one."""
        train = self.split.train
        end_U = train.offsets_U1[1:]
        last_U = np.maximum(end_U - 1, 0)
        now_s_U = train.timestamp_s[last_U] if train.num_events else np.zeros(len(end_U))
        every = histories(train, self.catalog, np.arange(train.num_users), end_U, now_s_U, length)
        return every.rows(every.mask_UT.any(1))

    def windows(self, length: int, every: bool) -> SessionDataset:
        """Items taken in training with what came before them: every one, or each user's last one alone."""
        train = self.split.train
        chosen = [BEHAVIOUR_IDX[name] for name in self.config.behaviours]
        taken = (train.event == Event.IMPRESSION) & train.examined & train.behaviours[:, chosen].any(axis=1)
        row_N = np.flatnonzero(taken)
        user_N = user_of_rows(train)[row_N]
        if not every:
            last_N = np.append(user_N[1:] != user_N[:-1], True)
            row_N, user_N = row_N[last_N], user_N[last_N]
        before = histories(train, self.catalog, user_N, row_N, train.timestamp_s[row_N], length)
        return SessionDataset(
            histories=before, item_ids_NK=torch.from_numpy(train.item_id[row_N].astype(np.int64))[:, None]
        )

    def validation(self, agent: Any) -> float:
        """The figure by which an agent, or an epoch of it, is chosen."""
        return self.rank(agent, RankingConfig(at=(10,), leave_out_seen=self.config.ranking.leave_out_seen,
                                              history_length=self.config.ranking.history_length),
                         self.validation_targets()).mean(CHOSEN_BY)  # fmt: skip

    def validation_targets(self) -> NextItems:
        """All validation targets, or the drawn ones."""
        targets, wanted = self.split.validation, self.config.validation_targets
        if not 0 < wanted < len(targets):
            return targets
        drawn = np.random.default_rng(0).choice(len(targets), wanted, replace=False)
        return targets.rows(np.sort(drawn))

    def rank(self, agent: Any, config: RankingConfig, targets: NextItems | None = None, step: Any = None) -> Ranking:
        """Rank targets; the test targets if none are given."""
        return evaluate_ranking(agent, self.log, self.catalog, self.split, config, targets=targets, step=step)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A stage that trains one agent.

    Attributes:
        make: the agent and how its training went, from the data and the stage's work folder.
        save: writes the agent to a folder.
        load: reads it back.
        key: what decides it besides data and split.
    """

    make: Callable[[Retrieval, Path, str], tuple[Any, list[dict[str, float]]]]
    save: Callable[[Any, Path], Any]
    load: Callable[[Path], Any]
    key: Any

    @property
    def codec(self) -> Codec[tuple[Any, list[dict[str, float]]]]:
        """Of the agent and its learning curve."""

        def save(product: tuple[Any, list[dict[str, float]]], folder: Path) -> None:
            self.save(product[0], folder)
            JSON.save(product[1], folder)

        return Codec(save, lambda folder: (self.load(folder), JSON.load(folder)))


def experiment(config: RetrievalConfig, run: Run) -> dict[str, Any]:
    """Train a model and rank it beside baselines.

    Args:
        config: the whole experiment.
        run: the folder that keeps it; stages found there are not done again.

    Returns:
        The summary, as written to ``summary.json``.
    """
    log = run.stage("log", partial(read_log, config), LOG, config=log_key(config))
    world = Retrieval.of(config, log.value)
    protocol = [config.behaviours, config.min_items, config.validation_targets, config.seed]
    agents: dict[str, Stage] = {}
    for name, trained in agents_to_train(config).items():
        agents[name] = run.stage(
            name,
            partial(_made, trained, world, name, run),
            trained.codec,
            config=[trained.key, config.epochs, config.fit, config.ranking, *protocol],
            parents=[log],
        )
    ranked = run.stage(
        "ranked",
        lambda _: ranked_all(world, {name: stage.value[0] for name, stage in agents.items()}),
        JSON,
        config=[config.ranking, config.knn_recent, *protocol],
        parents=[log, *agents.values()],
    )
    curves = {name: stage.value[1] for name, stage in agents.items()}
    summary = summarised(config, ranked.value, curves) | {"seed": config.seed, **run.facts()}
    run.finish(summary)
    write_report(summary, run.folder)
    run.publish(summary, artifacts={f"{config.name}-agent": config.name})
    return summary


def stage_names(config: RetrievalConfig) -> list[str]:
    """The stages of an experiment, in order."""
    return ["log", *agents_to_train(config), "ranked"]


def agents_to_train(config: RetrievalConfig) -> dict[str, Trained]:
    """The baseline SASRec-CE, where it is asked for and is not the model itself, and the model."""
    ce = SASRecSizes(block="original", loss="ce", similarity="dot", temperature=1.0)
    baseline = replace(ce, **_shared_lengths(config))
    wanted = config.sasrec_ce and not config.is_sasrec_ce()
    return ({"sasrec-ce": sasrec_of(baseline, config)} if wanted else {}) | {config.name: agent_of(config)}


@singledispatch
def agent_of(config: Any) -> Trained:
    """How the model of a kind of configuration is made; each kind registers its own."""
    raise TypeError(f"{type(config).__name__} has no agent_of().")


@agent_of.register
def _(config: SASRecRun) -> Trained:
    return sasrec_of(config.model, config)


def sasrec_of(sizes: SASRecSizes, config: RetrievalConfig) -> Trained:
    """A SASRec of some sizes."""

    def make(world: Retrieval, work: Path, name: str) -> tuple[Any, list[dict[str, float]]]:
        torch.manual_seed(config.seed)
        known: dict[str, Any] = {"num_items": world.catalog.num_items, "positives": config.behaviours}
        return fit_sequences(SASRec(SASRecConfig(**vars(sizes), **known)), world, work, name)

    return sequence_model(make, SASRec, sizes)


@agent_of.register
def _(config: HSTURun) -> Trained:
    def make(world: Retrieval, work: Path, name: str) -> tuple[Any, list[dict[str, float]]]:
        torch.manual_seed(config.seed)
        known: dict[str, Any] = {
            "num_items": world.catalog.num_items,
            "positives": config.behaviours,
            "profile_sizes": world.log.profile_sizes,
            "use_time": config.model.use_time and world.log.has_time,
        }
        return fit_sequences(HSTU(HSTUConfig(**vars(config.model) | known)), world, work, name)

    return sequence_model(make, HSTU, config.model)


@agent_of.register
def _(config: TigerRun) -> Trained:
    sizes = config.model

    def make(world: Retrieval, work: Path, name: str) -> tuple[Any, list[dict[str, float]]]:
        codes = RQVAEConfig(num_codes=sizes.num_codes, steps=sizes.rqvae_steps, seed=config.seed)
        tokenizer = RQVAE(codes).fit(world.catalog.content_IE, work=work / "tokenizer")
        torch.manual_seed(config.seed)
        shared = {key: value for key, value in vars(sizes).items() if key in TigerConfig.__dataclass_fields__}
        shared |= {"profile_sizes": world.log.profile_sizes, "positives": config.behaviours}
        model = Tiger.from_tokenizer(tokenizer, TigerConfig(**shared | {"num_codes": tokenizer.num_codes}))
        examples = world.windows(sizes.history_length, sizes.sliding_window)

        def validate(model: Tiger) -> float:
            return world.validation(SessionRecommender(model, tokenizer))

        with progress(f"Training {name}") as step:
            model, curve = fit(model, examples, config.fit, config.epochs, config.seed, validate, work, step)
        return SessionRecommender(model, tokenizer), curve

    return Trained(make=make, save=_save_tiger, load=_load_tiger, key=sizes)


def _save_tiger(agent: SessionRecommender, folder: Path) -> None:
    agent.model.save_pretrained(folder)
    agent.tokenizer.save(folder / "tokenizer")


def _load_tiger(folder: Path) -> SessionRecommender:
    tokenizer = RQVAE.load(folder / "tokenizer")
    return SessionRecommender(Tiger.load(folder, tokenizer), tokenizer)


def sequence_model(make: Any, kind: type[SequenceModel], key: Any) -> Trained:
    """A next-item model as a stage."""
    return Trained(make=make, save=lambda model, folder: model.save_pretrained(folder), load=kind.load, key=key)


def fit_sequences(model: SequenceModel, world: Retrieval, work: Path, name: str) -> tuple[Any, list[dict[str, float]]]:
    """Train a next-item model on whole sequences; what it has after its best epoch, and the epochs."""
    sizes, config = model.config, world.config
    examples = SequenceDataset(histories=world.training_histories(sizes.history_length + sizes.session_length))
    with progress(f"Training {name}") as step:
        return fit(model, examples, config.fit, config.epochs, config.seed, world.validation, work, step)


def _shared_lengths(config: Any) -> dict[str, Any]:
    """The lengths of the model, if it has some, and its width, for the baseline beside it."""
    names = ("d_model", "history_length", "session_length")
    sizes = {name: getattr(config.model, name) for name in names if hasattr(config.model, name)}
    return sizes | ({"d_ff": sizes["d_model"]} if "d_model" in sizes else {})


def _made(trained: Trained, world: Retrieval, name: str, run: Run, work: Path) -> tuple[Any, list[dict[str, float]]]:
    agent, curve = trained.make(world, work, name)
    for row in curve:
        run.log({f"{name}/{key}": value for key, value in row.items()})
    return agent, curve


# ---------------------------------------------------------------- data


def log_key(config: RetrievalConfig) -> Any:
    """What decides the log: the simulation, or the files by name, size and time of change and how they are read."""
    if config.data is None:
        return [config.short_video, config.log, config.seed]
    path = Path(config.data)
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found += [Path(config.items)] if config.items else []
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in found if p.exists()]
    return [str(path), config.columns, config.items, config.read, stats]


def read_log(config: RetrievalConfig, work: Path) -> tuple[EventLog, Catalog]:
    """The log of the data, or of simulated users."""
    if config.data is not None:
        columns = dict(column_pair(text) for text in config.columns)
        with progress(f"Reading {Path(config.data).name}") as step:
            data = load_data(config.data, columns or None, config.items, config.read)
            step(1, 1)
        return data
    short_video = replace(config.short_video, catalog_seed=config.short_video.catalog_seed + config.seed)
    simulator = make_simulator(ShortVideo(short_video))
    with progress("Logging simulated users") as step:
        log = collect_log(simulator, num_users=config.log.users, num_visits=config.log.visits,
                          session_length=SESSION, seed=config.seed, until_s=config.log.until_s,
                          progress=step)  # fmt: skip
    return log, simulator.catalog


# ---------------------------------------------------------------- judgement


def ranked_all(world: Retrieval, agents: Mapping[str, Any]) -> dict[str, Any]:
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
            metric_name(metric): found
            for metric, ratio in model.ratios.items()
            if metric in other.ratios and (found := lift(ratio, other.ratios[metric], counts_RU)) is not None
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


def figures_of(ranking: Ranking, counts_RU: np.ndarray) -> dict[str, dict[str, float | None]]:
    """Metrics as {"mean", "low", "high"}; figures of all lists together have no interval."""
    found: dict[str, Any] = {metric_name(name): interval(ratio, counts_RU) for name, ratio in ranking.ratios.items()}
    whole = {metric_name(name): value for name, value in ranking.totals.items() if "targets" not in name}
    return found | {name: {"mean": value, "low": None, "high": None} for name, value in whole.items()}


def metric_name(name: str) -> str:
    """recall@k, ndcg@k, mrr, coverage, gini: a metric's name in summaries."""
    for long, short in (("HR@", "recall@"), ("NDCG@", "ndcg@")):
        name = name.replace(long, short)
    head, found, _ = name.rpartition("@")
    if found and head.removeprefix("cold ") in ("MRR", "coverage", "Gini", "popularity lift"):
        name = head
    return name.lower()


def popular(world: Retrieval) -> PopularRecommender:
    """By examined exposures in the training log."""
    train = world.split.train
    shown = (train.event == Event.IMPRESSION) & train.examined
    count_I = np.bincount(train.item_id[shown], minlength=world.catalog.num_items)
    return PopularRecommender(torch.from_numpy(count_I), min(SESSION, world.catalog.num_items))


def item_knn(world: Retrieval) -> tuple[ItemKNNRecommender, int]:
    """ItemKNN that looks at as many of the last events as validation likes best, and that number (0: all)."""
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
    """What summary.json says of figures, choices and learning."""
    figures, best = ranked["figures"], f"{config.name} over "
    strongest = max((n for n in figures if n != config.name), key=lambda n: figures[n]["ndcg@10"]["mean"])
    cold, seen = (ranked["targets"][name] for name in ("cold targets", "targets seen before"))
    recent = ranked["item_knn_recent"] or "all"
    note = (
        f"{config.label}; {ranked['protocol']}; mrr is cut at {max(config.ranking.at)}. Epochs and baselines are "
        f"chosen on validation targets by {CHOSEN_BY}: ItemKNN looks at the last {recent} events. {cold:.1%} of the "
        f"test targets were never seen in training, {seen:.1%} by their user before."
    )
    if not ranked["has_time"]:
        note += " The data know the order of events only, so nothing learns from times."
    title = f"{config.label} on {Path(config.data).name if config.data else 'ShortVideo, simulated users'}"
    return {
        "title": title,
        "note": note,
        "judged_by": f"each user's last item; {ranked['protocol']}",
        "offline": figures[config.name],
        "baselines": {name: found for name, found in figures.items() if name != config.name},
        "agents": figures,
        "lift": ranked["lifts"][best + strongest],
        "lift_names": [config.name, strongest],
        "lifts": ranked["lifts"],
        "ranked_by": ranked["ranked_by"],
        "item_knn_recent": ranked["item_knn_recent"],
        "learning": [[_iteration(row) for row in curve] for curve in curves.values() if curve],
        "learning_names": [name for name, curve in curves.items() if curve],
    }


def _iteration(row: Mapping[str, float]) -> dict[str, float]:
    """A validation as the report's plots want it."""
    return {"iteration": row["epoch"]} | {name: row[name] for name in ("validation", "loss") if name in row}

"""feedgym from Python: align, pretrain, evaluate and simulate. The command line is a thin layer over these functions.

Wherever the command line takes a name or an import path, you can pass your own objects, classes and functions::

    result = feedgym.align(users=MyUsers(), reward=my_reward, rounds=2, run="runs/mine")
    print(result.lift("true_reward"))

A folder that holds a run is resumed: stages made under the same configuration are read, and the rest is made. Your
objects are identified by the source of their module and a hash of their state. If these are not available, the run
reports that it cannot be resumed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feedgym.data.events import Catalog, EventLog
    from feedgym.experiments.align.agents import FinishedRun
    from feedgym.experiments.tracking import TrackerName
    from feedgym.protocols import Recommender

RUNS = Path("runs")


def new_folder(title: str) -> Path:
    """A run folder that does not exist yet."""
    return RUNS / f"{title}-{time.strftime('%Y%m%d-%H%M%S')}"


def prepare_libraries() -> None:
    """Set options that other libraries read when they are first imported.

    Their own progress bars and notes are off, and nothing is downloaded. OpenMP's threads sleep while they wait:
    spinning threads slow training down eightfold as soon as another process uses one of two cores.
    """
    for variable, value in {
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
    }.items():
        os.environ.setdefault(variable, value)


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: folder with all files.
        summary: its figures, as in ``summary.json``.
        named: code that the program itself named, which may be imported again.
        trust: allow importing code that folders name.
    """

    folder: Path
    summary: dict[str, Any] = field(repr=False)
    named: frozenset[str] = field(default=frozenset(), repr=False)
    trust: bool = field(default=False, repr=False)

    @cached_property
    def finished(self) -> FinishedRun:
        """Agents, reward, world, log and items of an alignment, loaded from the folder."""
        from feedgym.experiments.align.agents import agents_of

        return agents_of(self.folder, trust=self.trust, named=self.named)

    @property
    def agents(self) -> dict[str, Recommender]:
        """Agents of an alignment: "base", as pretrained, and "aligned", after the last round."""
        return self.finished.agents

    @property
    def log(self) -> EventLog:
        """Event log of an alignment, which its agents were trained on."""
        return self.finished.log

    def lift(self, metric: str = "true_reward") -> dict[str, float]:
        """Relative gain of the aligned agent over the base in a metric: mean, low and high."""
        return self.summary["lift"][metric]

    def report(self) -> Path:
        """Path of the page that shows the run in a browser."""
        return self.folder / "report.html"


def align(
    *,
    users: Any = None,
    data: str | Path | None = None,
    model: Any = None,
    tokenizer: Any = None,
    reward: Any = None,
    method: Any = None,
    rounds: int | None = None,
    seed: int | None = None,
    preset: str | Any = "onerec-ipa",
    options: Mapping[str, Any] | None = None,
    run: str | Path | None = None,
    store: str | Path | None = None,
    tracker: TrackerName = "wandb",
    trust: bool = False,
) -> Result:
    """Pretrain an agent on a log, align it round by round, and judge it by the truth if it is known.

    Args:
        users: the simulated users of the log and the judgement: a name, an import path, a learned simulator's folder,
            or a UserSimulator.
        data: a recorded log instead; the truth is then unknown.
        model: "onerec", "tiger", "hstu", an import path or a class that follows GenerativeAgent.
        tokenizer: a name, an import path, or an ItemTokenizer or its class.
        reward: scores the sessions. It is a name, an import path, a SessionReward, or a function of histories and
            sessions. It may also be a function that makes one from any of catalog, log and reward_model.
        method: turns scored sessions into an update: a name, an import path, or an AlignmentMethod or its class.
        rounds: rounds of alignment.
        seed: seed of everything.
        preset: source of all other options: a preset's name, or a whole configuration.
        options: further options, by their command-line names, e.g. {"log.users": 500, "method.beta": 0.3}.
        run: the folder; a new one under runs/ if left out. A folder with a run is resumed.
        store: a folder that keeps stages for many runs.
        tracker: keeps an additional record in the run's folder: wandb (offline unless WANDB_MODE says otherwise),
            tensorboard or none.
        trust: import code named in folders even if it is not feedgym's own, such as a learned simulator's ranker.

    Returns:
        The finished run.

    Raises:
        ValueError: a name or an option is unknown, or parts do not fit each other.
    """
    from feedgym.experiments.options import with_options

    given = {"simulator": users, "model": model, "tokenizer": tokenizer, "reward": reward, "method": method}
    if preset == "onerec-ipa" and model in ("tiger", "hstu"):  # whose presets have suitable codes
        preset = f"{model}-ipa"
    config = _with_plugins(_preset(preset), given)
    changes = {"data": None if data is None else str(data), "seed": seed, "rounds.num": rounds, **(options or {})}
    config = with_options(config, {name: value for name, value in changes.items() if value is not None})
    return _run(config, "align", run, store=store, tracker=tracker, trust=trust)


def pretrain(
    model: str = "sasrec",
    *,
    data: str | Path | None = None,
    seed: int | None = None,
    preset: str | Any = None,
    options: Mapping[str, Any] | None = None,
    run: str | Path | None = None,
    store: str | Path | None = None,
    tracker: TrackerName = "wandb",
    trust: bool = False,
) -> Result:
    """Train a model on a log and judge it offline, without any alignment.

    Args:
        model: "sasrec", "hstu" or "tiger" (next items), "genrank", "hstu-rank" or "mtgr" (responses to items), or
            "onerec" (sessions; judged as in an alignment without rounds).
        data: a recorded log; if left out, simulated users make one.
        seed: seed of everything.
        preset: a preset's name, such as "sasrec-small", or a whole configuration, instead of the model's own.
        options: further options, by their command-line names.
        run: as for :func:`align`.
        store: as for :func:`align`.
        tracker: as for :func:`align`.
        trust: as for :func:`align`.

    Raises:
        ValueError: as for :func:`align`.
    """
    from feedgym.experiments.options import with_options

    config = _preset(preset or ("onerec-ipa" if model == "onerec" else model))
    changes: dict[str, Any] = {"rounds.num": 0} if hasattr(config, "rounds") else {}
    changes |= {"data": None if data is None else str(data), "seed": seed, **(options or {})}
    config = with_options(config, {name: value for name, value in changes.items() if value is not None})
    return _run(config, f"pretrain-{model}", run, store=store, tracker=tracker, trust=trust)


def evaluate(
    agents: Any,
    *,
    users: Any = "short_video",
    num_users: int | None = None,
    visits: int | None = None,
    seed: int | None = None,
    beams: int | None = None,
    history_length: int = 40,
    weights: Any = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Serve agents to the same fresh simulated users with the same random numbers, and the oracle if there is one.

    Args:
        agents: the folder of a finished run, whose agents are judged again and whose summary and report are rewritten.
            Or one Recommender, or several by name.
        users: the users they serve, as in :func:`align`; a run has its own.
        num_users: fresh users; 280, or those of the run, if left out.
        visits: visits per user, unless they churn earlier; 30, or those of the run, if left out.
        seed: another seed is another population.
        beams: for a run: width of the beam search of its agents in the second judgement; 0 skips it.
        history_length: T, events of the history that agents see; a run has its own.
        weights: :class:`feedgym.RewardWeights` of the true reward; a run has its own.
        trust: for a run: import code that its folder names.

    Returns:
        Every agent's metrics, each with its mean and its 95% interval over users; for a run its summary.

    Raises:
        ValueError: the folder holds no finished run, or agents write sessions of different lengths.
    """
    if isinstance(agents, (str, Path)):
        return _evaluate_run(Path(agents), num_users, visits, seed, beams, trust)
    from feedgym.envs.feed import make_simulator
    from feedgym.envs.luck import user_seeds
    from feedgym.envs.truth import RewardWeights
    from feedgym.experiments.configs import JudgeConfig
    from feedgym.experiments.serve import JudgeSettings, serve_all
    from feedgym.experiments.statistics import interval, resampling_counts
    from feedgym.plugins import made

    agents = agents if isinstance(agents, Mapping) else {type(agents).__name__: agents}
    if len(lengths := {agent.session_length for agent in agents.values()}) != 1:
        raise ValueError(f"The agents write sessions of {sorted(lengths)} items; judge agents of one length together.")
    given: dict[str, Any] = {"users": num_users, "visits": visits, "seed": seed}
    judge = JudgeConfig(**{name: value for name, value in given.items() if value is not None})
    asked = JudgeSettings(
        seed=judge.seed, session_length=lengths.pop(), history_length=history_length,
        weights=weights or RewardWeights(), judge=judge,
    )  # fmt: skip
    simulator = make_simulator(made("simulator", users))
    served = serve_all(simulator, agents, None, user_seeds(judge.users, judge.seed, "judge"), asked)
    counts_RU = resampling_counts(judge.users, judge.seed)
    return {
        name: {metric: interval(ratio, counts_RU) for metric, ratio in result.ratios().items()}
        for name, result in served.items()
    }


def simulate(
    users: Any = "short_video",
    *,
    num_users: int = 1000,
    visits: int = 14,
    session_length: int = 10,
    popularity_share: float = 0.1,
    random_share: float = 0.1,
    seed: int = 0,
    out: str | Path | None = None,
    trust: bool = False,
) -> tuple[EventLog, Catalog]:
    """Collect the log of simulated users under the production system; returns it with its items.

    Args:
        users: as in :func:`align`.
        num_users: users.
        visits: visits per user, unless they churn earlier.
        session_length: K, items in a session.
        popularity_share: share of the visits served only by popularity.
        random_share: share of the visits served at random; the production system serves the rest.
        seed: for the users, their random numbers and those of the system.
        out: folder for ``events.parquet`` and ``catalog.parquet``, which ``data=`` takes.
        trust: import the ranker named in a learned simulator's folder even if it is not feedgym's own.

    Raises:
        ValueError: a number or share is out of range, or the log does not fit into memory.
    """
    from feedgym.data.parquet import write_catalog, write_log
    from feedgym.envs.feed import make_simulator
    from feedgym.envs.logging import collect_log
    from feedgym.envs.logging_policy import LoggingConfig
    from feedgym.experiments.limits import check_simulated
    from feedgym.experiments.progress import progress
    from feedgym.plugins import made

    check_simulated(users=num_users, visits=visits, session_length=session_length)
    simulator = make_simulator(made("simulator", users), trust=trust)
    served = LoggingConfig(popularity_share=popularity_share, random_share=random_share)
    with progress("Simulating") as step:
        log = collect_log(
            simulator, num_users=num_users, num_visits=visits, session_length=session_length, seed=seed, config=served,
            progress=step,
        )  # fmt: skip
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        write_catalog(simulator.catalog, Path(out) / "catalog.parquet")
        write_log(log, Path(out) / "events.parquet")
    return log, simulator.catalog


def simulate_parts(
    users: Any = "short_video",
    *,
    out: str | Path,
    num_users: int,
    visits: int = 14,
    session_length: int = 10,
    popularity_share: float = 0.1,
    random_share: float = 0.1,
    seed: int = 0,
    trust: bool = False,
) -> dict[str, Any]:
    """Write the log of :func:`simulate` in parts while it is collected, for logs larger than memory.

    Args:
        users: as for :func:`simulate`.
        out: folder for ``events`` (:mod:`feedgym.data.parts`) and ``catalog.parquet``, which ``data=`` takes.
        num_users: as for :func:`simulate`.
        visits: as for :func:`simulate`.
        session_length: K.
        popularity_share: as for :func:`simulate`.
        random_share: as for :func:`simulate`.
        seed: as for :func:`simulate`.
        trust: as for :func:`simulate`.

    Returns:
        Counts: ``rows``, ``visits``, ``seen`` items, and the ``behaviours`` [B] of these.

    Raises:
        ValueError: a number or share is out of range, or the folder holds a log already. Or parts do not fit into
            memory, or files onto the disk.
    """
    import numpy as np

    from feedgym.data.parquet import write_catalog
    from feedgym.data.parts import PART_USERS, begin_parts, end_parts, part_of, parts_for, write_part
    from feedgym.envs.feed import make_simulator
    from feedgym.envs.logging import logs_of_groups
    from feedgym.envs.logging_policy import LoggingConfig
    from feedgym.experiments.limits import check_simulated_parts
    from feedgym.experiments.progress import progress
    from feedgym.plugins import made

    sizes = {"visits": visits, "session_length": session_length}
    check_simulated_parts(Path(out), users=num_users, part_users=PART_USERS, **sizes)
    simulator = make_simulator(made("simulator", users), trust=trust)
    served = LoggingConfig(popularity_share=popularity_share, random_share=random_share)
    num_parts = parts_for(num_users)
    part_U = part_of(np.arange(num_users), num_parts)
    parts = [part for part in range(num_parts) if (part_U == part).any()]
    groups = (np.flatnonzero(part_U == part) for part in parts)
    logs = logs_of_groups(simulator, groups, num_visits=visits, session_length=session_length, seed=seed, config=served)
    begin_parts(Path(out))
    write_catalog(simulator.catalog, Path(out) / "catalog.parquet")
    counts: dict[str, Any] = {}
    with progress("Simulating") as step:
        for done, (part, log) in enumerate(zip(parts, logs, strict=True), 1):
            write_part(log, Path(out), part)
            counts = {name: counts.get(name, 0) + value for name, value in counts_of(log).items()}
            step(done, len(parts))
    end_parts(Path(out), num_parts)
    return counts


def counts_of(log: EventLog) -> dict[str, Any]:
    """Counts the rows, visits and seen items of a log, and the items with each behaviour [B]."""
    from feedgym.data.events import Event

    seen = (log.event == Event.IMPRESSION) & log.examined
    visits, behaviours = int((log.event == Event.LOGIN).sum()), log.behaviours[seen].sum(axis=0, dtype="int64")
    return {"rows": log.num_events, "visits": visits, "seen": int(seen.sum()), "behaviours": behaviours}


# ---------------------------------------------------------------- configurations


def preset_of(name: str, presets: Mapping[str, Callable[[], Any]]) -> Any:
    """Make the configuration of a preset.

    Raises:
        ValueError: there is no preset of this name.
    """
    if name not in presets:
        raise ValueError(f"There is no preset {name!r}; the presets are {', '.join(presets)}.")
    return presets[name]()


def check_finished(folder: Path) -> None:
    """Raise ValueError unless a folder holds a finished run."""
    if not (folder / "summary.json").exists():
        raise ValueError(f"{folder} holds no finished run; finish it with `feedgym demo --resume {folder}`.")


def judged_by_others(config: Any, **changes: Any) -> Any:
    """A run's configuration with other judging users; options that are None stay unchanged.

    Raises:
        ValueError: the run as a whole has no judging users.
    """
    if not hasattr(config, "judge"):
        raise ValueError(
            f"A {type(config).__name__} has no judges to change; of a comparison, evaluate its cells/ one by one or "
            "resume it with --set judge.users=100."
        )
    judge = replace(config.judge, **{name: value for name, value in changes.items() if value is not None})
    return replace(config, judge=judge)


def _preset(preset: Any) -> Any:
    """A preset's configuration, or a given configuration unchanged."""
    if is_dataclass(preset):
        return preset
    from feedgym.experiments.presets import COMPARISONS, PRESETS

    return preset_of(preset, {**PRESETS, **COMPARISONS})


def _with_plugins(config: Any, given: Mapping[str, Any]) -> Any:
    """The configuration with the given plug-ins (names or objects) and their options."""
    from feedgym.plugins import named

    names = {kind: named(kind, value) for kind, value in given.items() if value is not None}
    changed = {kind: name for kind, name in names.items() if name != getattr(config, kind)}
    return replace(config, **changed, **{f"{kind}_options": None for kind in changed})


def _run(config: Any, title: str, run: str | Path | None, **run_options: Any) -> Result:
    """Run a configuration in a folder, from the beginning or from where it stopped."""
    prepare_libraries()
    from feedgym.experiments.launch import launch
    from feedgym.experiments.run import CONFIG

    folder = new_folder(title) if run is None else Path(run)
    summary = launch(config, folder, resume=(folder / CONFIG).exists(), **run_options)
    named = frozenset(name for _, name in config.code() if name) if hasattr(config, "code") else frozenset()
    return Result(folder, summary, named, run_options.get("trust", False))


def _evaluate_run(
    folder: Path, num_users: int | None, visits: int | None, seed: int | None, beams: int | None, trust: bool
) -> dict[str, Any]:
    """Judge a finished run's agents again."""
    check_finished(folder)
    from feedgym.experiments.align.agents import read_config
    from feedgym.experiments.run import CONFIG
    from feedgym.trust import trusted

    config = trusted(read_config(folder), folder / CONFIG, trust=trust)
    config = judged_by_others(config, users=num_users, visits=visits, seed=seed, beams=beams)
    return _run(config, "evaluate", folder, trust=trust).summary

"""The trials of a sweep: how one is run, and by which figure it is judged.

A trial is a run in its own folder that ends before anybody judges its agent. While it runs it reports a figure of
held-out users after every round, or of validation targets after every epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from feedgym.experiments.align.agents import CHOSEN
from feedgym.experiments.launch import kind_of
from feedgym.experiments.place import Place
from feedgym.experiments.run import CURVE, StageReached, plain, read_product
from feedgym.experiments.sweep.presets import SweepRun

Figures = Mapping[int, float]
"""The figure of a trial after each of its rounds or epochs so far."""


class Judge(ABC):
    """Judges the trials of a kind of experiment.

    Args:
        sweep: the configuration of the sweep.
    """

    clock: ClassVar[str]
    """The unit in which a trial counts: rounds or epochs."""

    def __init__(self, sweep: Any) -> None:
        self.sweep = sweep

    @abstractmethod
    def decides(self, config: Any) -> Any:
        """List what decides a trial's figure besides its agent, as JSON types; equal for all trials of a seed."""

    @abstractmethod
    def trimmed(self, config: Any) -> Any:
        """A trial's configuration without what no trial needs."""

    @abstractmethod
    def last_stage(self, config: Any) -> str:
        """The stage that ends a trial, before its agent is judged."""

    @abstractmethod
    def most(self, config: Any) -> int:
        """Most rounds or epochs of a trial."""

    @abstractmethod
    def point(self, config: Any, metrics: Mapping[str, float], step: int | None) -> tuple[int, float] | None:
        """The round or epoch of a row of a run's metrics, with its figure; None if it has none."""

    @abstractmethod
    def best(self, figures: Figures) -> float:
        """The figure of the agent that a trial would keep if it ended now."""

    @abstractmethod
    def ended(self, config: Any, folder: Path, figures: Figures) -> tuple[Figures, float]:
        """All figures of a trial that has ended, and that of the agent that it kept."""


class AlignJudge(Judge):
    """Judges alignments by the probes after their rounds."""

    clock = "rounds"
    FIGURE: ClassVar = {"held_out": "held_out_mean", "proxy": "model_mean", "truth": "true_mean"}
    SCORED_BY: ClassVar = {"held_out": "watchers", "proxy": "reward", "truth": "log"}

    def decides(self, config: Any) -> Any:
        """The log, the reward models or the reward, and the probe."""
        if not config.rounds.num:
            raise ValueError("rounds.num=0 aligns nothing; raise it.")
        proxy = self.sweep.objective == "proxy"
        if proxy and config.rounds.serve:
            raise ValueError(
                "objective='proxy' compares scores of one reward model, but with rounds.serve every trial fits its "
                "own; choose held_out."
            )
        keys = kind_of(config).plan(config).shared
        own = [config.reward, config.reward_options] if proxy else []
        return [keys["log"], keys[self.SCORED_BY[self.sweep.objective]], config.weights, config.probe, *own]

    def trimmed(self, config: Any) -> Any:
        """The alignment in one process."""
        return replace(config, ray="off")

    def last_stage(self, config: Any) -> str:
        """The choice of the round."""
        return "chosen"

    def most(self, config: Any) -> int:
        """Rounds."""
        return config.rounds.num

    def point(self, config: Any, metrics: Mapping[str, float], step: int | None) -> tuple[int, float] | None:
        """The probe after a round."""
        figure = f"round/{self.FIGURE[self.sweep.objective]}"
        return None if step is None or figure not in metrics else (step, float(metrics[figure]))

    def best(self, figures: Figures) -> float:
        """That of the last round."""
        return figures[max(figures)]

    def ended(self, config: Any, folder: Path, figures: Figures) -> tuple[Figures, float]:
        """The figures, and that of the round that the stop rule kept."""
        return figures, figures[read_product(folder / "stages" / "chosen", CHOSEN.load)["round"]]


class RetrievalJudge(Judge):
    """Judges next-item models by their validations."""

    clock = "epochs"

    def decides(self, config: Any) -> Any:
        """The log and its validation targets."""
        targets = [config.behaviours, config.min_items, config.validation_targets, config.ranking]
        return [kind_of(config).plan(config).shared["log"], *targets]

    def trimmed(self, config: Any) -> Any:
        """The model without the baseline beside it."""
        return replace(config, sasrec_ce=False)

    def last_stage(self, config: Any) -> str:
        """The model."""
        return config.name

    def most(self, config: Any) -> int:
        """Epochs."""
        return config.epochs

    def point(self, config: Any, metrics: Mapping[str, float], step: int | None) -> tuple[int, float] | None:
        """A validation."""
        figure, epoch = f"{config.name}/validation", f"{config.name}/epoch"
        return None if figure not in metrics else (int(metrics[epoch]), float(metrics[figure]))

    def best(self, figures: Figures) -> float:
        """That of the best epoch, which is kept."""
        return max(figures.values())

    def ended(self, config: Any, folder: Path, figures: Figures) -> tuple[Figures, float]:
        """The figures of the whole training, also if another trial or an earlier attempt has made it."""
        curve = read_product(folder / "stages" / config.name, CURVE.load)
        every = {int(row["epoch"]): float(row["validation"]) for row in curve}
        return every, self.best(every)


JUDGES: dict[str, type[Judge]] = {"AlignSweep": AlignJudge, "RetrievalSweep": RetrievalJudge}
"""Judges by kind of sweep."""


def judge_of(sweep: SweepRun) -> Judge:
    """Make the judge of a sweep."""
    return JUDGES[type(sweep).__name__](sweep)


def check(sweep: SweepRun) -> None:
    """Refuse a space that is empty, does not fit the experiment, or changes the judges of a trial.

    Plug-ins that the options name are imported.

    Raises:
        ValueError: says which.
    """
    if not sweep.space:
        raise ValueError("nothing varies; give --space NAME=SPEC, such as rounds.num=choice(2,4,6).")
    judge = judge_of(sweep)
    usual = plain(judge.decides(sweep.base()))
    for example in sweep.examples():
        if plain(judge.decides(example)) != usual:
            raise ValueError(
                f"the space ({', '.join(sweep.domains())}) changes what trials are judged by, {sweep.judged_by}, so "
                "they could not be compared; vary other options."
            )


def run_trial(
    sweep: SweepRun, place: Place, name: str, draw: Mapping[str, Any], report: Callable[[dict[str, Any]], Any]
) -> None:
    """Run a trial, or continue it where it stopped.

    Args:
        sweep: the configuration of the sweep.
        place: folders and settings.
        name: of its folder.
        draw: its options by dotted name, seed included.
        report: called after every round or epoch, and once more at the end. It gets ``objective``, ``at`` (the round
            or epoch), ``figures`` (pairs of both so far) and ``ended``.
    """
    judge = judge_of(sweep)
    config, folder = judge.trimmed(sweep.drawn(draw)), place.folder / name
    figures: dict[int, float] = {}

    def told(figures: Figures, objective: float, ended: bool) -> None:
        pairs = [[at, figure] for at, figure in sorted(figures.items())]
        report({"objective": objective, "at": max(figures), "figures": pairs, "ended": ended})

    def hear(metrics: Mapping[str, float], step: int | None) -> None:
        if (point := judge.point(config, metrics, step)) is not None:
            figures[point[0]] = point[1]
            if 0 < point[0] < judge.most(config):  # before the first all agents are the same; the last is told below
                told(figures, judge.best(figures), False)

    with suppress(StageReached):
        place.launch(config, name, stop_after=judge.last_stage(config), heard=hear)
    told(*judge.ended(config, folder, figures), True)

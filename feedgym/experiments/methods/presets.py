"""Comparisons of alignments as functions: each returns a whole configuration, to be changed field by field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import tyro
from annotated_types import Interval

from feedgym.experiments.align.presets import ALIGN_PRESETS, AlignConfig
from feedgym.experiments.options import pairs_of
from feedgym.plugins import BUILT_IN
from feedgym.ranges import Few, Positive, Ranged, Seed, SomeShare

NONE = "none"
"""The condition that aligns nothing."""
CENTRE = "preset"
"""The condition of an ablation in which nothing is varied."""

DECIDED = {"seed": "--seeds", "method": "--methods or --method", "ray": "--ray", "data": "simulated users alone"}
"""Options of an alignment that a comparison sets itself, and by what."""

Samples = Annotated[int, Interval(ge=2, le=10**6)]
Rounds = Annotated[int, Interval(ge=1, le=10_000)]


@dataclass(frozen=True, kw_only=True)
class CellsRun(Ranged):
    """What all comparisons of alignments are told."""

    called: ClassVar[str]
    """The name of the comparison's preset."""
    said: ClassVar[str]
    """What is compared, for titles."""

    preset: str = "onerec-ipa"
    """The alignment, of which each cell is a variant: an -ipa preset of `feedgym run`."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Each makes its own users, log, base and reward model, once for all cells that share them."""
    options: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """NAME=VALUE options of the alignments in all cells, by the names of `feedgym run`: --set rounds.num=3
    judge.users=100. METHOD.NAME=VALUE is for the cells of one method: dpo.beta=0.3."""
    ray: str = "local"
    """Where cells are run: local (processes on this machine), off (in this process, one after the other), or the
    address of a Ray cluster that sees the same folders. It changes no figure."""
    workers: Few = 2
    """Cells that run at a time, on a core each, where ray is not off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in ALIGN_PRESETS:
            raise ValueError(f"preset={self.preset!r} aligns nothing; choose one of {', '.join(ALIGN_PRESETS)}.")
        check_list(self, "seeds")
        for name in pairs_of(self.options, "set"):
            if name in DECIDED:
                raise ValueError(f"set says {name}, which a comparison decides itself, by {DECIDED[name]}; drop it.")

    def conditions(self) -> dict[str, dict[str, Any]]:
        """What each condition changes, by dotted name of the alignment's options."""
        raise NotImplementedError

    def axes(self) -> dict[str, tuple[str, tuple[Any, ...]]]:
        """Of an ablation: by name what is varied, the alignment's option and its values."""
        return {}

    def methods_named(self) -> Sequence[str]:
        """Methods that options may be for alone."""
        raise NotImplementedError

    def code(self) -> list[tuple[str, str | None]]:
        """What it names besides data; see :mod:`feedgym.trust`."""
        named = pairs_of(self.options, "set")
        plugins = [(kind, str(named[kind])) for kind in AlignConfig.PLUGINS if kind in named]
        return [*(("method", method) for method in self.methods_named()), *plugins, ("ray", self.ray)]


def check_list(config: Any, name: str) -> None:
    """Refuse a field that is empty or has a value twice."""
    values = getattr(config, name)
    if not values:
        raise ValueError(f"{name} is empty; give one or more.")
    if repeated := [value for at, value in enumerate(values) if value in values[:at]]:
        raise ValueError(f"{name} has {repeated[0]!r} twice; give each once.")


@dataclass(frozen=True, kw_only=True)
class MethodsRun(CellsRun):
    """Methods of alignment against each other: each from the same log, base and reward model, over several seeds.

    At the laptop's sizes a method and seed take about 2 minutes, and a seed about 1 more for what its methods share. A
    comparison that was stopped goes on with --resume FOLDER: finished cells are read, and --methods or --seeds may add
    others.
    """

    called: ClassVar[str] = "methods"
    said: ClassVar[str] = "Methods of alignment"

    methods: tuple[str, ...] = field(default_factory=lambda: tuple(BUILT_IN["method"]))
    """The methods, by name or by the import path of your own; none aligns nothing, which is the base alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_list(self, "methods")
        for method in self.methods:
            if method not in (NONE, *BUILT_IN["method"]) and ":" not in method:
                known = ", ".join([*BUILT_IN["method"], NONE])
                raise ValueError(f"methods has {method!r}, which is unknown; give {known}, or an import path.")

    def conditions(self) -> dict[str, dict[str, Any]]:
        """A condition a method."""
        return {method: {"rounds.num": 0} if method == NONE else {"method": method} for method in self.methods}

    def methods_named(self) -> Sequence[str]:
        """Those that are compared."""
        return [method for method in self.methods if method != NONE]


@dataclass(frozen=True, kw_only=True)
class AblationsRun(CellsRun):
    """What an alignment's options are worth: each varied by itself around the preset's own value, over several seeds.

    At the laptop's sizes a value and seed take about 2 minutes, and a seed about 1 more for what its cells share; fewer
    rounds are read from the cells with more. A comparison that was stopped goes on with --resume FOLDER. An axis
    without values, such as --beta with none after it, is left out.
    """

    called: ClassVar[str] = "ablations"
    said: ClassVar[str] = "Options of an alignment"

    method: str = "dpo"
    """The method, by name or by the import path of your own."""
    num_samples: tuple[Samples, ...] = (8, 32, 512)
    """N: sessions sampled per user and round."""
    user_share: tuple[SomeShare, ...] = (0.05, 0.25, 0.5)
    """r_DPO: share of the training users sampled for in a round."""
    pairing: tuple[str, ...] = ("best_random", "any")
    """Which sessions make a pair: best_worst, best_random or any."""
    beta: tuple[Positive, ...] = (0.03, 0.3, 1.0)
    """How dear it is to the method to leave its reference."""
    rounds: tuple[Rounds, ...] = (1, 3, 12)
    """Rounds of alignment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for axis, (_, values) in self.axes().items():
            if values:
                check_list(self, axis)
        if not any(values for _, values in self.axes().values()):
            raise ValueError(f"nothing is varied; give values to one of {', '.join(self.axes())}.")

    def axes(self) -> dict[str, tuple[str, tuple[Any, ...]]]:
        """By name what is varied, the alignment's option and its values."""
        return {
            "num_samples": ("rounds.num_samples", self.num_samples),
            "user_share": ("rounds.user_share", self.user_share),
            "pairing": ("method.pairing.kind", self.pairing),
            "beta": ("method.beta", self.beta),
            "rounds": ("rounds.num", self.rounds),
        }

    def conditions(self) -> dict[str, dict[str, Any]]:
        """The preset as it is, and a condition a value."""
        own = {"method": self.method}
        return {CENTRE: own} | {
            f"{axis}={value}": {**own, option: value}
            for axis, (option, values) in self.axes().items()
            for value in values
        }

    def methods_named(self) -> Sequence[str]:
        """The one that is used."""
        return [self.method]


def methods() -> MethodsRun:
    """Every method of alignment from the same base and reward model, over seeds: one table, one report."""
    return MethodsRun()


def ablations() -> AblationsRun:
    """What samples, users, pairing, beta and rounds are worth to one method, each varied by itself."""
    return AblationsRun()


def methods_smoke() -> MethodsRun:
    """Two methods and two seeds in seconds; its figures mean nothing."""
    return MethodsRun(preset="onerec-ipa-smoke", methods=("dpo", "rsft"), seeds=(0, 1))


def ablations_smoke() -> AblationsRun:
    """Three options and two seeds in seconds; its figures mean nothing."""
    axes: dict[str, Any] = {"num_samples": (6,), "user_share": (0.3, 0.5), "pairing": (), "beta": ()}
    return AblationsRun(preset="onerec-ipa-smoke", seeds=(0, 1), rounds=(1,), **axes)


METHODS_COMPARISONS: dict[str, Callable[[], CellsRun]] = {
    "methods": methods,
    "methods-smoke": methods_smoke,
    "ablations": ablations,
    "ablations-smoke": ablations_smoke,
}
"""What `feedgym compare` offers of it."""

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
"""The condition without alignment."""
CENTRE = "preset"
"""The condition of an ablation without variation."""

DECIDED = {"seed": "--seeds", "method": "--methods or --method", "ray": "--ray", "data": "using only simulated users"}
"""Options of an alignment that a comparison sets itself, with the replacement."""

Samples = Annotated[int, Interval(ge=2, le=10**6)]
Rounds = Annotated[int, Interval(ge=1, le=10_000)]


@dataclass(frozen=True, kw_only=True)
class CellsRun(Ranged):
    """Options of all comparisons of alignments."""

    called: ClassVar[str]
    """The name of the comparison's preset."""
    said: ClassVar[str]
    """The compared thing, for titles."""

    preset: str = "onerec-ipa"
    """The alignment that all cells vary: an -ipa preset of `feedgym run`."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds; each makes its own users, log, base and reward model, once for all cells that share them."""
    options: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """NAME=VALUE options of the alignments in all cells, by the names of `feedgym run`: --set rounds.num=3
    judge.users=100. METHOD.NAME=VALUE is only for the cells of one method: dpo.beta=0.3."""
    ray: str = "local"
    """Place to run cells: local (processes on this machine) or off (in this process, one after the other). Or the
    address of a Ray cluster that sees the same folders. It does not change any figure."""
    workers: Few = 2
    """Number of cells to run in parallel, one core each, unless ray is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in ALIGN_PRESETS:
            raise ValueError(f"preset={self.preset!r} aligns nothing; choose one of {', '.join(ALIGN_PRESETS)}.")
        check_list(self, "seeds")
        for name in pairs_of(self.options, "set"):
            if name in DECIDED:
                raise ValueError(f"set has {name}, which a comparison decides itself, by {DECIDED[name]}; drop it.")

    def conditions(self) -> dict[str, dict[str, Any]]:
        """Changes of each condition, by dotted name of the alignment's options."""
        raise NotImplementedError

    def axes(self) -> dict[str, tuple[str, tuple[Any, ...]]]:
        """For an ablation: by name of the axis, the alignment's option and its values."""
        return {}

    def methods_named(self) -> Sequence[str]:
        """Methods whose options may be set separately."""
        raise NotImplementedError

    def code(self) -> list[tuple[str, str | None]]:
        """The code that it names, apart from data; see :mod:`feedgym.trust`."""
        named = pairs_of(self.options, "set")
        plugins = [(kind, str(named[kind])) for kind in AlignConfig.PLUGINS if kind in named]
        return [*(("method", method) for method in self.methods_named()), *plugins, ("ray", self.ray)]


def check_list(config: Any, name: str) -> None:
    """Refuse a field that is empty or repeats a value."""
    values = getattr(config, name)
    if not values:
        raise ValueError(f"{name} is empty; give one or more.")
    if repeated := [value for at, value in enumerate(values) if value in values[:at]]:
        raise ValueError(f"{name} has {repeated[0]!r} twice; give each value once.")


@dataclass(frozen=True, kw_only=True)
class MethodsRun(CellsRun):
    """Compares alignment methods: each from the same log, base and reward model, over several seeds.

    At the laptop's sizes each method takes about 2 minutes per seed. Each seed takes about 1 minute more for the parts
    that its methods share. A comparison that was stopped continues with --resume FOLDER: finished cells are read, and
    --methods or --seeds may add others.
    """

    called: ClassVar[str] = "methods"
    said: ClassVar[str] = "Methods of alignment"

    methods: tuple[str, ...] = field(default_factory=lambda: tuple(BUILT_IN["method"]))
    """Methods, by name or by the import path of your own; none is the base without alignment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_list(self, "methods")
        for method in self.methods:
            if method not in (NONE, *BUILT_IN["method"]) and ":" not in method:
                known = ", ".join([*BUILT_IN["method"], NONE])
                raise ValueError(f"methods has {method!r}, which is unknown; give {known}, or an import path.")

    def conditions(self) -> dict[str, dict[str, Any]]:
        """A condition per method."""
        return {method: {"rounds.num": 0} if method == NONE else {"method": method} for method in self.methods}

    def methods_named(self) -> Sequence[str]:
        """The compared methods."""
        return [method for method in self.methods if method != NONE]


@dataclass(frozen=True, kw_only=True)
class AblationsRun(CellsRun):
    """Measures the effects of an alignment's options, each varied alone around the preset's value, over several seeds.

    At the laptop's sizes each value takes about 2 minutes per seed. Each seed takes about 1 minute more for the parts
    that its cells share. Cells with fewer rounds are read from the cells with more. A comparison that was stopped
    continues with --resume FOLDER. To leave out an axis, give it no values: --beta with none after it.
    """

    called: ClassVar[str] = "ablations"
    said: ClassVar[str] = "Options of an alignment"

    method: str = "dpo"
    """The method, by name or by the import path of your own."""
    num_samples: tuple[Samples, ...] = (8, 32, 512)
    """N: sessions to sample per user and round."""
    user_share: tuple[SomeShare, ...] = (0.05, 0.25, 0.5)
    """r_DPO: share of the training users to sample for in a round."""
    pairing: tuple[str, ...] = ("best_random", "any")
    """Choice of the sessions of a pair: best_worst, best_random or any."""
    beta: tuple[Positive, ...] = (0.03, 0.3, 1.0)
    """Strength of the penalty for leaving the reference."""
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
        """By name of the axis, the alignment's option and its values."""
        return {
            "num_samples": ("rounds.num_samples", self.num_samples),
            "user_share": ("rounds.user_share", self.user_share),
            "pairing": ("method.pairing.kind", self.pairing),
            "beta": ("method.beta", self.beta),
            "rounds": ("rounds.num", self.rounds),
        }

    def conditions(self) -> dict[str, dict[str, Any]]:
        """The unchanged preset, and a condition per value."""
        own = {"method": self.method}
        return {CENTRE: own} | {
            f"{axis}={value}": {**own, option: value}
            for axis, (option, values) in self.axes().items()
            for value in values
        }

    def methods_named(self) -> Sequence[str]:
        """The method in use."""
        return [self.method]


def methods() -> MethodsRun:
    """Every alignment method from the same base and reward model, over seeds: one table, one report."""
    return MethodsRun()


def ablations() -> AblationsRun:
    """Effects of samples, users, pairing, beta and rounds on one method, each varied by itself."""
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
"""The comparisons of alignments in `feedgym compare`."""

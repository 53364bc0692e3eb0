"""The cells of a comparison: conditions by seeds, each a whole alignment.

A condition is one change of the preset's alignment: another method, or another value of one option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

from feedgym.experiments.align.presets import ALIGN_PRESETS, AlignConfig
from feedgym.experiments.methods.presets import NONE, CellsRun
from feedgym.experiments.options import pairs_of, with_options
from feedgym.plugins import completed

TRAINING = ("learning_rate", "epochs", "batch_size", "bf16")
"""Options of a preset's own method for its training; if a preset sets them, the other methods are trained so too."""


@dataclass(frozen=True)
class Cell:
    """One alignment of a comparison.

    Attributes:
        condition: the condition that it is an instance of.
        config: the whole alignment.
    """

    condition: str
    config: AlignConfig

    @property
    def name(self) -> str:
        """Name of its folder and its stage: condition and seed."""
        return re.sub(r"[^-.=\w]", "_", f"{self.condition}-{self.config.seed}")


def cells_of(run: CellsRun) -> list[Cell]:
    """Make all cells, seed by seed within each condition, so that parallel cells wait little for each other.

    Conditions that equal an earlier one are left out, such as a varied option's own value. Plug-ins that the cells name
    are imported.

    Raises:
        ValueError: an alignment is not possible.
    """
    configs: dict[str, AlignConfig] = {}
    for condition, changes in run.conditions().items():
        config = aligned(run, condition, changes)
        if config not in configs.values():
            configs[condition] = config
    return [Cell(condition, replace(config, seed=seed)) for condition, config in configs.items() for seed in run.seeds]


def aligned(run: CellsRun, condition: str, changes: Mapping[str, Any]) -> AlignConfig:
    """The alignment of a condition, without its seed.

    Raises:
        ValueError: an option does not fit; the message names the condition.
    """
    preset = ALIGN_PRESETS[run.preset]()
    method = changes.get("method")
    config = preset if method is None else with_method(preset, method)
    given = _options_for(run, method)
    try:
        config = with_options(config, {"ray": "off", **given, **changes})
    except ValueError as error:
        raise ValueError(f"{condition}: {error}{_remedy(config, [*given, *changes])}") from error
    if not config.rounds.num and condition != NONE:
        raise ValueError(f"{condition}: rounds.num=0 aligns nothing; raise it, or compare with the method {NONE}.")
    return config


def with_method(config: AlignConfig, method: str) -> AlignConfig:
    """An alignment by another method, trained as the preset trains its own.

    The preset's options of :data:`TRAINING` belong to the size of the experiment. If they differ from the defaults of
    the preset's own method, the other method gets them too. All its other options keep their defaults.
    """
    if method == config.method:
        return completed(config)
    before, config = config.method_options, completed(replace(config, method=method, method_options=None))
    usual, options = type(before)(), config.method_options
    said = {name: getattr(before, name) for name in TRAINING if hasattr(options, name) and hasattr(before, name)}
    said = {name: value for name, value in said.items() if value != getattr(usual, name)}
    return replace(config, method_options=replace(options, **said)) if said else config


def _options_for(run: CellsRun, method: str | None) -> dict[str, Any]:
    """The options that a comparison sets for the cells of a method (or of none), by the alignment's names."""
    found = {}
    for name, value in pairs_of(run.options, "set").items():
        whose = next((other for other in run.methods_named() if name.startswith(f"{other}.")), "method")
        if method is not None and whose in ("method", method):
            found[f"method.{name.removeprefix(f'{whose}.')}" if whose == method else name] = value
        elif whose == "method" and not name.startswith("method."):
            found[name] = value
    return found


def _remedy(config: AlignConfig, names: list[str]) -> str:
    """Remedy for an option that a method does not have; empty if that is not the fault."""
    has = [field.name for field in fields(config.method_options)] if config.method_options else []
    options = [name.removeprefix("method.") for name in names if name.startswith("method.")]
    lacking = [option for option in options if option.partition(".")[0].replace("-", "_") not in has]
    return f" Leave {lacking[0]} out, or give METHOD.{lacking[0]} for each method that has it." if lacking else ""


def value_of(config: AlignConfig, option: str) -> Any:
    """The value of an option by its dotted name; None if there is no such option."""
    head, _, rest = option.partition(".")
    part = getattr(config, f"{head}_options" if head in config.PLUGINS else head)
    return reduce(lambda value, name: getattr(value, name, None), rest.split("."), part)

"""Ranges of numeric options: each is declared in the field's type, and a single function checks all of them.

A field is declared as ``users: Count = 4000`` or, if no name below fits, as ``core: Annotated[int, Interval(ge=1,
le=500)] = 1``. A configuration that inherits from :class:`Ranged` then refuses values outside the range, and so does
pydantic when it reads a run's config.json. Infinity and NaN are outside of every range. The upper limits are far beyond
any real use; they catch typing errors at once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from annotated_types import Interval

Seed = Annotated[int, Interval(ge=0, le=2**31 - 1)]
"""A random seed; the sum of two is still a valid seed for NumPy."""
Count = Annotated[int, Interval(ge=1, le=10**9)]
"""Number of users, items or samples, or of steps between two events."""
CountOrZero = Annotated[int, Interval(ge=0, le=10**9)]
"""A count where 0 means none, off or all."""
Steps = Annotated[int, Interval(ge=1, le=10**7)]
"""Optimiser steps, or requests per iteration, up to months of work on one machine."""
StepsOrZero = Annotated[int, Interval(ge=0, le=10**7)]
"""Steps where 0 means that another option decides."""
Passes = Annotated[int, Interval(ge=1, le=10_000)]
"""Passes over data: epochs, iterations, repeats."""
Visits = Annotated[int, Interval(ge=1, le=100_000)]
"""Visits per user, up to ten a day for 27 years."""
Few = Annotated[int, Interval(ge=1, le=1024)]
"""Layers, heads, experts."""
Drawn = Annotated[int, Interval(ge=2, le=10**6)]
"""Sessions drawn per request, one of which is taken."""
Width = Annotated[int, Interval(ge=1, le=65_536)]
"""Width of a vector, or codes of a level."""
Length = Annotated[int, Interval(ge=1, le=1_000_000)]
"""Items of a session, events of a history."""

Share = Annotated[float, Interval(ge=0, le=1)]
"""A share or a probability."""
SomeShare = Annotated[float, Interval(gt=0, le=1)]
"""A share above 0."""
SplitShare = Annotated[float, Interval(gt=0, lt=1)]
"""A share above 0 and below 1, which leaves something on both sides."""
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
"""A share below 1; the decay of a moving average."""
LearningRate = Annotated[float, Interval(gt=0, le=10)]
"""Step of an optimiser."""

Positive = Annotated[float, Interval(gt=0, le=10**6)]
"""A scale, a temperature, a time constant in hours or days."""
NonNegative = Annotated[float, Interval(ge=0, le=10**6)]
"""A strength, where 0 means off."""
PartPasses = Annotated[float, Interval(gt=0, le=10_000)]
"""Passes over data, the last of which may be partial."""
Seconds = Annotated[float, Interval(ge=0, le=10**10)]
"""A duration; 10**10 s are 317 years."""
SomeSeconds = Annotated[float, Interval(gt=0, le=10**10)]
"""A duration above 0."""
Weight = Annotated[float, Interval(ge=-(10**6), le=10**6)]
"""A weight that may be negative."""
Logit = Annotated[float, Interval(ge=-100, le=100)]
"""A logarithm, or a term that is added to one."""
Spread = Annotated[float, Interval(ge=0, le=20)]
"""A standard deviation of logarithms or of standard scores."""


class Ranged:
    """Base of configurations: a number outside its declared range raises ValueError.

    A subclass with its own checks calls ``super().__post_init__()`` first.
    """

    def __post_init__(self) -> None:
        check_ranges(self)


def check_ranges(config: Any) -> None:
    """Refuse numbers outside the ranges in the types of a configuration's fields.

    Raises:
        ValueError: names the field, the value, the limit and the remedy.
    """
    kind: Any = type(config)
    for name, hint in field_types(kind).items():
        for path, value, interval in _numbers(name, hint, getattr(config, name)):
            if interval is not None and (fault := _fault(value, interval)):
                raise ValueError(f"{path}={value} {fault}")


def check_divides(config: Any, heads: str, width: str) -> None:
    """Refuse a width that is not divisible by its heads."""
    if getattr(config, width) % getattr(config, heads):
        raise ValueError(
            f"{width}={getattr(config, width)} is not a multiple of {heads}={getattr(config, heads)}; change either."
        )


def check_order(config: Any, name: str) -> None:
    """Refuse a pair whose first number is above its second."""
    low, high = getattr(config, name)
    if low > high:
        raise ValueError(f"{name}={getattr(config, name)} must not fall; change the order of the two numbers.")


@cache
def field_types(kind: type) -> dict[str, Any]:
    """Type of each annotated field of a class, including its range."""
    types: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.partition(".")[0] != "transformers":  # its types use names that only type checkers import
            types |= inspect.get_annotations(base, eval_str=True)
    return types


def _numbers(path: str, hint: Any, value: Any) -> Iterator[tuple[str, Any, Interval | None]]:
    """The numbers of a field with their ranges: itself, or the elements of a tuple."""
    if isinstance(value, (tuple, list)):
        for variant in (hint, *get_args(hint)):  # the tuple itself, or the tuple of "a tuple or None"
            if get_origin(variant) in (tuple, list):
                element, *others = get_args(variant)
                elements = [element] * len(value) if others in ([], [...]) else [element, *others]
                for idx, (part, its_hint) in enumerate(zip(value, elements, strict=False)):
                    yield from _numbers(f"{path}[{idx}]", its_hint, part)
                return
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        for variant in (hint, *get_args(hint)):
            for mark in getattr(variant, "__metadata__", ()):
                if isinstance(mark, Interval):
                    yield path, value, mark
                    return


def _fault(value: Any, interval: Interval) -> str | None:
    """Describe what is wrong with a number and the remedy; None if nothing is."""
    low = interval.gt if interval.ge is None else interval.ge
    high = interval.lt if interval.le is None else interval.le
    if not math.isfinite(value):
        return f"is not a finite number; give one from {low} to {high}."
    if interval.gt is not None and not value > interval.gt:
        return f"must be above {low}; raise it."
    if interval.ge is not None and not value >= interval.ge:
        return f"must be {low} or more; raise it."
    if interval.lt is not None and not value < interval.lt:
        return f"must be below {high}; lower it."
    if interval.le is not None and not value <= interval.le:
        return f"must be {high} or less; lower it."
    return None


def check_choices(config: Any, **choices: Any) -> None:
    """Refuse a field with a value, or a tuple with one, that is not among its Literal's choices."""
    for name, literal in choices.items():
        chosen = getattr(config, name)
        for value in chosen if isinstance(chosen, tuple) else (chosen,):
            if value not in get_args(literal):
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(get_args(literal))}.")

"""Search spaces, given as texts in the words of Ray Tune: ``rounds.num=choice(2, 4, 6)``.

A text is parsed and never evaluated: a function's name and literals.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

KINDS = {
    "choice": "(VALUE, VALUE, ...)",
    "uniform": "(LOW, HIGH)",
    "quniform": "(LOW, HIGH, STEP)",
    "loguniform": "(LOW, HIGH)",
    "qloguniform": "(LOW, HIGH, STEP)",
    "randint": "(LOW, HIGH)",
    "qrandint": "(LOW, HIGH, STEP)",
    "lograndint": "(LOW, HIGH)",
    "qlograndint": "(LOW, HIGH, STEP)",
}
"""Functions of ``ray.tune`` that draw a value, with their arguments."""


@dataclass(frozen=True)
class Domain:
    """The values that an option may take.

    Attributes:
        kind: a function of ``ray.tune``, one of :data:`KINDS`.
        arguments: its arguments; the values of a choice.
    """

    kind: str
    arguments: tuple[Any, ...]

    def examples(self) -> tuple[Any, ...]:
        """All values of a choice; otherwise values near both ends and one between them."""
        if self.kind == "choice":
            return self.arguments
        low, high = self.arguments[:2]
        if self.kind.endswith("randint"):
            return low, high - (not self.kind.startswith("q"))  # without a step the high end is not drawn
        return low + (high - low) / 1000, (low + high) / 2, high - (high - low) / 1000


def spaces_of(texts: Iterable[str]) -> dict[str, Domain]:
    """Parse NAME=SPEC texts of a command line into domains by the option's name.

    Raises:
        ValueError: a text is not such a pair, a name appears twice, or Ray Tune would not take the SPEC.
    """
    found: dict[str, Domain] = {}
    for text in texts:
        name, _, spec = text.partition("=")
        if not name or not spec:
            raise ValueError(f"space={text!r} is not a NAME=SPEC pair; write it as rounds.num=choice(2,4,6).")
        head, dot, rest = name.strip().replace("-", "_").partition(".")
        name = f"{head.removesuffix('_options')}{dot}{rest}"
        if name in found:
            raise ValueError(f"space has {name} twice; give it once.")
        found[name] = _domain(name, spec)
    return found


def _domain(name: str, spec: str) -> Domain:
    known = ", ".join(f"{kind}{arguments}" for kind, arguments in KINDS.items())
    try:
        call = ast.parse(spec.strip().removeprefix("tune."), mode="eval").body
    except SyntaxError:
        call = None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in KINDS):
        raise ValueError(f"space has {name}={spec}, which is none of {known}.")
    if call.keywords:
        raise ValueError(f"space has {name}={spec}; give the arguments without names: {KINDS[call.func.id]}.")
    arguments = tuple(_literal(name, argument) for argument in call.args)
    if call.func.id == "choice" and len(arguments) == 1 and isinstance(arguments[0], (list, tuple)):
        arguments = tuple(arguments[0])  # as ray.tune has it
    if fault := _fault(call.func.id, arguments):
        raise ValueError(f"space has {name}={spec}: {fault}.")
    return Domain(call.func.id, arguments)


def _literal(name: str, node: ast.expr) -> Any:
    """A value; words without quotes, as in choice(dpo, ipa), are texts."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, (ast.List, ast.Tuple)):
        return tuple(_literal(name, element) for element in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"space of {name} has {ast.unparse(node)}, no literal; put texts in quotes.") from error


def _fault(kind: str, arguments: tuple[Any, ...]) -> str | None:
    """Say what Ray Tune would not take; None if all is well."""
    if kind == "choice":
        return None if arguments else "a choice needs values"
    wanted, number = KINDS[kind], int if kind.endswith("randint") else (int, float)
    numbers = all(isinstance(value, number) and not isinstance(value, bool) for value in arguments)
    if len(arguments) != wanted.count(",") + 1 or not numbers or not all(map(math.isfinite, arguments)):
        return f"give {'whole numbers' if number is int else 'numbers'} as {kind}{wanted}"
    low, high, *step = arguments
    if low >= high:
        return f"the low end {low} must be below the high end {high}"
    if "log" in kind and low <= 0:
        return f"the low end {low} must be above 0 for a logarithm"
    return f"the step {step[0]} must be above 0" if step and step[0] <= 0 else None

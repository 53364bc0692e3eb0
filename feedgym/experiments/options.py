"""Sets options by dotted name, as the command line has them: "rounds.num", "method.beta"."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass, replace
from typing import Any, get_type_hints


def with_options(config: Any, options: Mapping[str, Any]) -> Any:
    """Change options of a configuration.

    Args:
        config: a configuration.
        options: values by dotted name: "rounds.num", "model.d_model" or "model.d-model". A newly named plug-in gets its
            own defaults.

    Raises:
        ValueError: there is no such option, or it does not take the value.
    """
    parts: dict[str, dict[str, Any]] = {}
    own: dict[str, Any] = {}
    plugins = getattr(config, "PLUGINS", ())
    for name, value in options.items():
        head, _, rest = name.replace("-", "_").partition(".")
        if rest:
            parts.setdefault(f"{head}_options" if head in plugins else head, {})[rest] = value
        else:
            own[head] = value
    for head in (*own, *parts):
        if not hasattr(config, head):
            raise ValueError(f"There is no option {head.removesuffix('_options')!r} in {type(config).__name__}.")
    own = {head: _as_typed(type(config), head, value) for head, value in own.items()}
    anew: dict[str, Any] = {
        f"{kind}_options": None for kind in plugins if kind in own and own[kind] != getattr(config, kind)
    }
    # All at once: a value that is refused together with another one may be right once both are changed. Only the
    # options of a newly named plug-in must wait until it is set.
    early = {head: _within(config, head, inner) for head, inner in parts.items() if head not in anew}
    config = replace(config, **anew, **own, **early)
    return replace(config, **{head: _within(config, head, inner) for head, inner in parts.items() if head in anew})


def _within(config: Any, head: str, options: Mapping[str, Any]) -> Any:
    """Change options of a part of a configuration."""
    if not is_dataclass(getattr(config, head)):
        raise ValueError(f"{head.removesuffix('_options')} has no options, and got {', '.join(options)}.")
    return with_options(getattr(config, head), options)


def pairs_of(texts: Iterable[str], option: str) -> dict[str, Any]:
    """Parse NAME=VALUE texts of a command line into values by name.

    Args:
        texts: the texts; those that Python reads as a number, a tuple or the like become that, others stay texts.
        option: its name, for messages.

    Raises:
        ValueError: a text is not a pair, or a name appears twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise ValueError(f"{option}={text!r} is not a NAME=VALUE pair; write it as rounds.num=3.")
        if name in values:
            raise ValueError(f"{option} has {name} twice; give it once.")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return values


def _as_typed(kind: Any, name: str, value: Any) -> Any:
    """Convert a value to a field's type: whole numbers for 3.0, tuples for lists; its range is left to the class."""
    if is_dataclass(value):
        return value
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(get_type_hints(kind)[name]).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{name}={value!r}: {error.errors()[0]['msg'].lower()}.") from error

"""``feedgym completion SHELL``: a script that completes commands, presets and options in bash and zsh.

The script is written from the registries and holds all names, so that completing starts no Python.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

SHELLS = {
    "bash": "feedgym completion bash > ~/.local/share/bash-completion/completions/feedgym",
    "zsh": "feedgym completion zsh >> ~/.zshrc",
}
"""Per shell, a command that installs the script."""

SCRIPT = """\
# Completes feedgym's commands, presets and options. Write it to a file that your shell reads:
#   {how}
{begin}_feedgym() {{
  local here="${{COMP_WORDS[COMP_CWORD]}}" words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words={commands}
  else
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{cases}
    esac
  fi
  if [ -n "$words" ]; then COMPREPLY=( $(compgen -W "$words" -- "$here") ); fi
}}
complete -o default -F _feedgym feedgym
"""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
"""Lets zsh understand a script of bash."""


def script(shell: str, commands: Mapping[str, Callable[..., None]], arguments: Mapping[str, Any]) -> str:
    """Returns the script for a shell.

    Args:
        shell: one of :data:`SHELLS`.
        commands: by name.
        arguments: the dataclass of the options of each command that has one.

    Raises:
        ValueError: the shell is not one of :data:`SHELLS`.
    """
    if shell not in SHELLS:
        raise ValueError(f"There is no completion for {shell!r}; the shells are {', '.join(SHELLS)}.")
    patterns: dict[str, list[str]] = {}  # presets of one kind share their options, which are written once
    for pattern, words in _cases(arguments):
        patterns.setdefault(" ".join(words), []).append(pattern)
    cases = "\n".join(f"      {'|'.join(those)}) words={shlex.quote(words)} ;;" for words, those in patterns.items())
    begin = ZSH if shell == "zsh" else ""
    return SCRIPT.format(how=SHELLS[shell], begin=begin, commands=shlex.quote(" ".join(commands)), cases=cases)


def _cases(arguments: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yields patterns of the first two words, narrow ones first, with the words that may follow them."""
    from feedgym.commands.listing import KINDS
    from feedgym.experiments.presets import COMPARISONS, PRESETS, SWEEPS

    for command, presets in (("run", PRESETS), ("compare", COMPARISONS), ("sweep", SWEEPS)):
        for name, preset in presets.items():
            yield f"{shlex.quote(f'{command} {name}')}", [*_options(arguments[command]), *_options(preset())]
        yield f"'{command} '*", list(presets)
    yield "'list '*", list(KINDS)
    yield "'completion '*", list(SHELLS)
    yield "'data inspect'", _options(arguments["data"])
    yield "'data '*", ["inspect"]
    for command, options in arguments.items():
        if command not in ("run", "compare", "sweep", "data"):
            yield f"'{command} '*", _options(options)


def _options(config: Any, before: str = "--") -> list[str]:
    """Returns the options of a dataclass, or of an instance, which also knows the options of its parts."""
    names = []
    for field in fields(config):
        value = None if isinstance(config, type) else getattr(config, field.name)
        name = before + field.name.removesuffix("_options").replace("_", "-")
        names += _options(value, f"{name}.") if is_dataclass(value) else [name]
    return names

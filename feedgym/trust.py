"""What names code in a run's or a simulator's folder, and whether it may be imported (docs/security.md).

A folder may come from somebody else, so it is data. It names classes and functions by import path; feedgym's own are
free, and any other is imported only if the user's command names it too or says ``--trust`` (``trust=True`` in Python).
What is asked here is asked before anything is imported.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from feedgym.plugins import BUILT_IN, OBJECT, completed, is_built_in, is_folder

OTHERS: dict[str, frozenset[str]] = {
    "weights": frozenset(
        {
            "feedgym.envs.recsim:INTEREST_EVOLUTION_REWARD",
            "feedgym.envs.recsim:INTEREST_EXPLORATION_REWARD",
            "feedgym.envs.recsim:LONG_TERM_SATISFACTION_REWARD",
        }
    ),
    "env": frozenset(),
    "ray": frozenset({"local", "off"}),
}
"""What a folder may name without being trusted besides plug-ins: weights of a reward, and places where work is done."""


def check_named(
    what: str, name: str | None, source: Path | str, *, trust: bool = False, named: Collection[str] = ()
) -> None:
    """Let a name out of a folder pass, or refuse it.

    Args:
        what: a kind of plug-in, or a key of :data:`OTHERS`.
        name: an import path; a learned simulator's folder passes, for what it names in turn is asked when it is read.
        source: the file that has it.
        trust: let everything pass.
        named: names that the user's own command has; they pass too.

    Raises:
        ValueError: it is none of feedgym's own and nobody trusts it.
    """
    if name is None or trust or name in named or name in OTHERS.get(what, ()):
        return
    if what in BUILT_IN and (is_built_in(what, name) or name.startswith(OBJECT)):
        return
    if is_folder(what, name):
        return
    does = "connect to the Ray cluster" if what == "ray" else "import and run"
    raise ValueError(
        f"{source} would {does} {name!r} (its {what}), which is not feedgym's own; if you trust where this folder "
        "comes from, say so with --trust (in Python trust=True)."
    )


def check_config(config: Any, source: Path | str, *, trust: bool = False, named: Collection[str] = ()) -> None:
    """Let all names in a configuration that was read from a folder pass, or refuse it.

    Args:
        config: an experiment's; its method ``code``, if it has one, says what it names.
        source: the file it was read from.
        trust: as for :func:`check_named`.
        named: likewise.

    Raises:
        ValueError: a name is none of feedgym's own and nobody trusts it.
    """
    for what, name in config.code() if hasattr(config, "code") else ():
        check_named(what, name, source, trust=trust, named=named)


def trusted(config: Any, source: Path | str, *, trust: bool = False, named: Collection[str] = ()) -> Any:
    """A configuration that was read from a folder, with the options of its plug-ins, which are then imported.

    Raises:
        ValueError: as for :func:`check_config`; or a name leads nowhere.
    """
    check_config(config, source, trust=trust, named=named)
    return completed(config)

"""Decides if code that is named in a run's or a simulator's folder may be imported (docs/security.md).

A folder may come from somebody else, so it is treated as data. It names classes and functions by import path. feedgym's
own may always be imported. Any other is imported only if the user's command names it too or has ``--trust``
(``trust=True`` in Python). These checks run before anything is imported.
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
"""Things other than plug-ins that a folder may name: weights of a reward, and places where work is done."""


def check_named(
    what: str, name: str | None, source: Path | str, *, trust: bool = False, named: Collection[str] = ()
) -> None:
    """Accept a name from a folder, or refuse it.

    Args:
        what: a kind of plug-in, or a key of :data:`OTHERS`.
        name: an import path; a learned simulator's folder is accepted, because the names in it are checked when it is
            read.
        source: the file that contains it.
        trust: accept everything.
        named: names in the user's own command, which are accepted too.

    Raises:
        ValueError: it is not feedgym's own and is not trusted.
    """
    if name is None or trust or name in named or name in OTHERS.get(what, ()):
        return
    if what in BUILT_IN and (is_built_in(what, name) or name.startswith(OBJECT)):
        return
    if is_folder(what, name):
        return
    does = "connect to the Ray cluster" if what == "ray" else "import and run"
    raise ValueError(
        f"{source} would {does} {name!r} (its {what}), which is not feedgym's own; if you trust the source "
        "of this folder, add --trust (in Python trust=True)."
    )


def check_config(config: Any, source: Path | str, *, trust: bool = False, named: Collection[str] = ()) -> None:
    """Accept a configuration from a folder if all names in it are accepted, or refuse it.

    Args:
        config: an experiment's configuration; its method ``code``, if it has one, lists the names.
        source: the file it was read from.
        trust: as for :func:`check_named`.
        named: as for :func:`check_named`.

    Raises:
        ValueError: a name is not feedgym's own and is not trusted.
    """
    for what, name in config.code() if hasattr(config, "code") else ():
        check_named(what, name, source, trust=trust, named=named)


def trusted(config: Any, source: Path | str, *, trust: bool = False, named: Collection[str] = ()) -> Any:
    """Completes a configuration from a folder with the options of its plug-ins, which are then imported.

    Raises:
        ValueError: as for :func:`check_config`, or a name does not exist.
    """
    check_config(config, source, trust=trust, named=named)
    return completed(config)

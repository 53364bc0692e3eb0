"""Docstrings as Markdown: the roles of Sphinx become plain code, and ``::`` before a block becomes ``:``."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?([^`]+)`")


class PlainRoles(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """A docstring as Markdown; lists that are indented under a line lose their indentation."""
    text = ROLE.sub(lambda role: f"`{role[1].removeprefix('feedgym.')}`", text)
    text = re.sub(r"^(.*\S)::$", r"\1:\n", text, flags=re.M)
    lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        if not inside and re.match(r"    [-*] ", line):
            inside = True
            lines.append("")
        inside = inside and (line.startswith("    ") or not line)
        lines.append(line.removeprefix("    ") if inside else line)
    return "\n".join(lines)

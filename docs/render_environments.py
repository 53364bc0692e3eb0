"""Renders the ids and the task levels' pages into docs/environments.md, from the specs and the classes' docstrings.

``python docs/render_environments.py`` rewrites what stands between the two marks; a test sees that it was done.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import gymnasium as gym

from feedgym.envs.registration import ENVIRONMENTS, LEVELS
from feedgym.protocols import load

PAGE = Path(__file__).with_name("environments.md")
BEGIN, END = "<!-- rendered by docs/render_environments.py -->\n", "<!-- end -->\n"


def rendered(page: str) -> str:
    """The page with the part between the marks made anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    levels = "\n\n".join(level_page(level) for level in LEVELS)
    return f"{before}{BEGIN}\n## Registered ids\n{table()}\n\n{levels}\n\n{END}{after}"


def table() -> str:
    """A row an id: its level, its simulator and its defaults, which never change within a version."""
    rows = ["| id | level | users | defaults |", "|---|---|---|---|"]
    for env_id, (level, simulator, _) in ENVIRONMENTS.items():
        given = {name: value for name, value in gym.spec(env_id).kwargs.items() if name != "simulator"}
        defaults = ", ".join(f"{name} {str(value).rpartition(':')[2]}" for name, value in given.items())
        rows.append(f"| `{env_id}` | [{level}](#level-{level}) | `{simulator.rpartition(':')[2]}` | {defaults} |")
    return "\n".join(rows)


def level_page(level: str) -> str:
    """The docstring of a level's environment, one heading deeper and without Sphinx's roles."""
    path = f"{LEVELS[level][0]}Env"
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", inspect.getdoc(load(path)) or "").replace("``", "`")
    return f"## Level: {level}\n`help({path.replace(':', '.')})` says the same.\n\n{text}"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))

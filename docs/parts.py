"""Parts of pages that are rendered from the code: tables of options and descriptions of alignment methods.

A page holds a comment where a part belongs::

    <!-- options: feedgym.agents.onerec:OneRecSizes model -->   the fields of a dataclass as --model.NAME
    <!-- method: ipo -->                                        everything about an alignment method
    <!-- methods -->                                            a row per method
    <!-- speed: simulator -->                                   the figures in benchmarks/results/simulator.json
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from griffe_plain import markdown

from feedgym.plugins import BUILT_IN, resolve
from feedgym.protocols import load

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
MARK = re.compile(r"<!-- (options|methods|method|speed):? ?(.*?) -->")


def filled(page: str) -> str:
    """A page with its comments replaced."""
    return MARK.sub(lambda mark: PARTS[mark[1]](*mark[2].split()), page)


def meanings(kind: type) -> dict[str, str]:
    """The docstrings of a dataclass's fields, its bases' included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for line, after in pairwise(body):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and is_text:
                found[line.target.id] = " ".join(str(after.value.value).split())  # type: ignore[attr-defined]
    return found


def rows(kind: type, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Option, default and meaning of each field; of a field that is a dataclass, those of its fields."""
    said = meanings(kind)
    for field in fields(kind):
        value = field.default if field.default_factory is MISSING else field.default_factory()
        if is_dataclass(value):
            yield from rows(type(value), f"{prefix}.{field.name}")
        else:
            yield f"{prefix}.{field.name}".replace("_", "-"), str(value), said.get(field.name, "")


def options(path: str, prefix: str) -> str:
    """A table of a dataclass's fields as options of the command line."""
    return table(load(path), prefix)


def table(kind: type, prefix: str) -> str:
    """A table of options."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    lines += [f"| `--{name}` | `{value}` | {cell(meaning)} |" for name, value, meaning in rows(kind, prefix)]
    return "\n".join(lines)


def cell(text: str) -> str:
    """A text inside a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def base_names(kind: type) -> set[str]:
    """The names of a class and its bases."""
    return {base.__name__ for base in kind.__mro__}


def learns_from(kind: Any) -> str:
    """What a method learns from."""
    names = {field.name for field in fields(kind.Config)}
    if "pairing" in names or kind.__name__ == "IPA":
        return "pairs of sessions"
    if "rejected" in names:
        return "one session against several"
    if "graded" in names:
        return "good and bad sessions"
    return "whole groups" if "PolicyGradient" in base_names(kind) else "the better sessions"


def loss_of(kind: Any) -> str:
    """Who computes a method's loss, and in which training loop."""
    if not hasattr(kind, "of_trl"):
        return "feedgym's own, in transformers' `Trainer`"
    given = kind(kind.Config()).of_trl(15).get("loss_type")
    name = given if isinstance(given, str) else given and given[0]
    return f"TRL's `{kind.trainer}`, " + (f"loss `{name}`" if name else "with feedgym's own loss")


def reference_of(kind: Any) -> str:
    """What a method must not leave too far."""
    if "reference" in inspect.signature(kind.update).parameters:
        return "the snapshot, or the base"
    return "the snapshot" if kind.__name__ == "IPA" else "none"


def method(name: str) -> str:
    """Formula, loss, options, command and source of an alignment method."""
    kind = resolve("method", name)
    path = BUILT_IN["method"][name].partition(":")[0]
    facts = "| learns from | loss | reference | source |\n|---|---|---|---|\n"
    facts += f"| {learns_from(kind)} | {loss_of(kind)} | {reference_of(kind)} | `{path.replace('.', '/')}.py` |"
    command = f"```\nfeedgym run onerec-ipa --method {name}\n```"
    folded = textwrap.indent(table(kind.Config, "method"), "    ")
    title = getattr(kind, "title", kind.__name__)
    heading = f"## {title} {{: #{name.replace('_', '-')} }}"
    said = markdown(inspect.getdoc(kind) or "").replace("<", "&lt;")
    return "\n\n".join([heading, said, facts, command, f'??? note "Options"\n\n{folded}'])


PAGES = {
    "pairs": ("ipa", "dpo", "ipo", "cdpo", "rdpo", "apo", "sppo"),
    "reference_free": ("cpo", "simpo", "orpo"),
    "lists": ("s_dpo", "kto"),
    "policy_gradients": ("grpo", "dr_grpo", "rloo", "ecpo", "gbpo"),
    "imitation": ("rsft", "exp_rsft"),
}
"""The page of every method."""


def methods() -> str:
    """A row per method, with a link to its page."""
    lines = ["| name | method | learns from | loss | reference |", "|---|---|---|---|---|"]
    page_of = {name: page for page, names in PAGES.items() for name in names}
    for name in BUILT_IN["method"]:
        kind = resolve("method", name)
        link = f"[`{name}`]({page_of[name]}.md#{name.replace('_', '-')})"
        first = (inspect.getdoc(kind) or "").partition("\n")[0]
        lines.append(f"| {link} | {cell(first)} | {learns_from(kind)} | {loss_of(kind)} | {reference_of(kind)} |")
    return "\n".join(lines)


def speed(name: str) -> str:
    """A benchmark's figures: the pace of each side, how many times ours is faster, the command and the machine."""
    found = json.loads((RESULTS / f"{name}.json").read_text())
    sides = list(dict.fromkeys(side for row in found["rows"] for side in row["pace"]))
    others = [side for side in sides if side != found["ours"]]
    lines = [f"| {found['unit']} | {' | '.join(sides)} | {' | '.join(f'times {side}' for side in others)} |"]
    lines.append("|---" * (1 + len(sides) + len(others)) + "|")
    for row in found["rows"]:
        paces = [times(row["pace"][side]) if side in row["pace"] else "" for side in sides]
        ratios = [times(row["ratio"][side]) if side in row["ratio"] else "" for side in others]
        lines.append(f"| {row['what']} | {' | '.join([*paces, *ratios])} |")
    about = [
        f"{name} {value}" for name, value in found["machine"].items() if name not in ("processor", "cores", "load")
    ]
    machine = f"{found['machine']['processor']}, {found['machine']['cores']} cores, load {found['machine']['load']}"
    return "\n".join([*lines, "", f"`{found['command']}` on {machine}; {', '.join(about)}."])


def times(ratio: float) -> str:
    """A pace or a ratio in three digits."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"


PARTS = {"speed": speed, "options": options, "method": method, "methods": methods}

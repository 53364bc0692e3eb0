"""Words and turns that readers stumble over are used nowhere in README, in the documentation, or where already clean.

``python tests/test_english.py FILE...`` prints what would be refused in any file.
"""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNITS = (
    r"(user|visit|request|item|session|round|second|minute|hour|day|week|batch|seed|training|row|file|epoch|core|level|"
    r"episode|place|position|code|tower|column|catalogue|candidate|exposure|cell|side|page|stage|line|node|slate|topic)"
)
RATES = (
    r"(rewards?|visits?|values?|items?|sessions?|samples?|exposures?|requests?|minutes|seconds|ms|MFLOP|clicks?|likes?|"
    r"steps?|events?|pages?|codes?|draws?|rates?|hours|epochs?|tokens?|points?|answers?|rows?|users?|pairs?|one|times)"
)
VERBS = (
    r"(?! (has|had|saw|sees|did|does|took|takes|knows|knew|watched|gives|likes|liked|loves|wants|wanted|"
    r"is|was|could|can|may))"
)
LISTED = {
    rf"\b{RATES} an? {UNITS}\b{VERBS}(?!')": "per",
    r"\bfore(tell|tells|told|telling)\b": "predict",
    r"\b(is|are|was|were) told by\b": "say who tells whom",
    r"(?<![\w.`/])luck(?!\w|\.\w|[`(:])": "randomness, random numbers, chance",
    r"\bbelieved in about twice\b": "predicted about twice",
    r"\bbelieves in\b": "predicts",
    r"\bagain and again\b": "repeatedly",
    r"\bspeaks? of\b": "is about, was trained with",
    r"\bstands? (at|in|behind|beside|above|below|for|there|under|nowhere|before|still)\b(?!-)": "is, comes, remains",
    r"\bstood\b": "was",
    r"\bbehind (them|it|him)\b": "after, at the root of",
    r"\bMISSED\b": "say what was found",
}
"""Pattern, and what to write instead."""

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "docs").rglob("*.ipynb"))]

NOT_YET = {
    "envs/compiling.py",
    "envs/levels.py",
    "envs/short_video/population.py",
    "envs/short_video/simulator.py",
    "envs/short_video/visit.py",
}
"""Files of feedgym/ whose docstrings are not clean yet; this list only shrinks."""


def stumbles(text):
    """Every listed turn in a text, with its line."""
    prose = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL)
    for pattern, instead in LISTED.items():
        for found in re.finditer(pattern.replace(" ", r"\s+"), prose):
            yield prose[: found.start()].count("\n") + 1, " ".join(found[0].split()), instead


def docstrings(path):
    """All docstrings of a file, those of fields included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def parts_of(path):
    """The texts of a file that people read, each with its first line."""
    if path.suffix == ".py":
        yield from docstrings(path)
    elif path.suffix == ".ipynb":
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "markdown":
                yield 1, "".join(cell["source"])
    else:
        yield 1, path.read_text()


def found_in(path):
    """What would be refused in a file, a line each."""
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    for first, text in parts_of(path):
        for line, words, instead in stumbles(text):
            yield f"{name}:{first + line - 1}: {words!r} -> {instead}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_have_none_of_them(path):
    assert not list(found_in(path))


def clean():
    """The files of feedgym whose docstrings are swept."""
    for path in sorted((ROOT / "feedgym").rglob("*.py")):
        name = str(path.relative_to(ROOT / "feedgym"))
        if name not in NOT_YET:
            yield path


def test_docstrings_have_none_of_them():
    assert not [line for path in clean() for line in found_in(path)]


@pytest.mark.parametrize("said", ["one reward a user", "10 visits a user", "a ranker foretells", "with the same luck"])
def test_the_sweep_finds(said):
    assert list(stumbles(f"Here is {said}."))


@pytest.mark.parametrize("said", ["items a user saw", "envs.luck.stream(x)", "`luck.draw`", "once a user leaves"])
def test_the_sweep_leaves(said):
    assert not list(stumbles(f"Here is {said}."))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print("\n".join(found_in(Path(name).resolve())))

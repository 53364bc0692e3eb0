"""Words and turns that readers stumble over are used nowhere in README, in the documentation, or in the code.

Of code, the sweep reads docstrings, comments and texts, such as errors and ``--help``, but no identifiers.

``python tests/test_english.py FILE...`` prints what would be refused in any file.
"""

import ast
import json
import re
import sys
import tokenize
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

PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docs").rglob("*.ipynb")),
]

IN_CODE = {
    r"\b(is|are|was|were) told (of|in|beside|apart by)\b": "is reported in",
    r"\bstands?\b(?! for\b)": "is",
    r"\bbehind\b": "after",
    r"\bbelieved in\b": "predicted",
    r"\bbe had\b|\bhad again\b": "computed, possible",
    r"\bnone of (feedgym's|its own|ours)\b": "not part of feedgym",
    r"\bwhat (it|they|this|that) (is|are) worth\b": "its value",
    r"\b(is|are) no (id|ids|path|folder|pair|feed|link|number|import path|[A-Z]\w+)\b": "is not a",
}
"""Further patterns for code, whose texts use few words in other senses."""

CODE = sorted(path for folder in ("feedgym", "examples") for path in (ROOT / folder).rglob("*.py"))

ALLOWED = {
    ("feedgym/envs/check_luck.py", "check luck"),  # names a population of users; another name is another population
    ("feedgym/agents/generation.py", "draw a session"),
    ("feedgym/data/realism.py", "Gini of exposures a user"),  # a key of realism.json
    ("feedgym/envs/levels.py", "answers a page"),
    ("feedgym/envs/levels.py", "session    a page"),  # columns of a table
    ("feedgym/envs/wrappers.py", "behind the others"),
    ("feedgym/experiments/launch.py", "leave nothing behind"),
}
"""Files and texts in which a listed word is right."""

QUESTION = re.compile(r"(Who|Whom|Whose|What|Where|Why|When|Which|How)\b")


def stumbles(text, phrases=LISTED):
    """Every listed turn in a text: its number of the line, the turn, what to write instead, and the line."""
    prose = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL)
    for pattern, instead in phrases.items():
        for found in re.finditer(pattern.replace(" ", r"\s+"), prose):
            number = prose[: found.start()].count("\n")
            yield number + 1, " ".join(found[0].split()), instead, prose.split("\n")[number]


def prose_of(path):
    """Comments and strings of a file of code, docstrings among them, with their lines; f-strings without their code."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.STRING and re.match(r"[rb]*f", token.string, re.IGNORECASE):
                yield token.start[0], re.sub(r"\{[^{}]*\}", "", token.string)
            elif token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
                yield token.start[0], token.string


def parts_of(path):
    """The texts of a file that people read, each with its first line."""
    if path.suffix == ".py":
        yield from prose_of(path)
    elif path.suffix == ".ipynb":
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "markdown":
                yield 1, "".join(cell["source"])
    else:
        yield 1, path.read_text()


def found_in(path):
    """What would be refused in a file, a line each."""
    name = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    phrases = LISTED | IN_CODE if path.suffix == ".py" else LISTED
    for first, text in parts_of(path):
        for number, words, instead, line in stumbles(text, phrases):
            if not any(name == where and right in line for where, right in ALLOWED):
                yield f"{name}:{first + number - 1}: {words!r} -> {instead}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_have_none_of_them(path):
    assert not list(found_in(path))


def test_code_has_none_of_them():
    assert not [line for path in CODE for line in found_in(path)]


def test_docstrings_begin_with_what_a_thing_does():
    found = []
    for path in (path for path in CODE if path.is_relative_to(ROOT / "feedgym")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            text = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else None
            if isinstance(text, str) and QUESTION.match(text.strip()):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text.strip().splitlines()[0]}")
    assert not found


def test_allowed_texts_are_still_there():
    assert all(text in (ROOT / where).read_text() for where, text in ALLOWED)


def test_the_sweep_reads_prose_and_no_code(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(
        '"""One reward a\nuser."""\nluck = 1  # again and again\nraise ValueError(f"{luck.draw()} behind it")\n'
    )
    found = [line.removeprefix(f"{path}:").split(" -> ")[0] for line in found_in(path)]
    assert found == ["1: 'reward a user'", "3: 'again and again'", "4: 'behind it'", "4: 'behind'"]


@pytest.mark.parametrize("said", ["one reward a user", "10 visits a user", "a ranker foretells", "with the same luck"])
def test_the_sweep_finds(said):
    assert list(stumbles(f"Here is {said}."))


@pytest.mark.parametrize("said", ["items a user saw", "envs.luck.stream(x)", "`luck.draw`", "once a user leaves"])
def test_the_sweep_leaves(said):
    assert not list(stumbles(f"Here is {said}."))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print("\n".join(found_in(Path(name).resolve())))

"""Sentences of docstrings, comments and pages are short enough to be read once."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "feedgym").rglob("*.py"))
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
MOST_IN_CODE, MOST_IN_PAGES = 25, 30
"""Words of a sentence; pages report results, whose figures need room."""
SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):$")
ITEM = re.compile(r"([*-]|\d+\.) ")
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|cf|vs|et al)\.")


def sentences(paragraph):
    """The sentences of a paragraph; a middle dot parts the entries of a list."""
    text = ABBREVIATION.sub(r"\1", " ".join(paragraph.split()))
    return re.split(r'(?<=[.!?])[)"*]*\s+| · ', text)


def num_words(sentence):
    """Words and numbers; code and links count as one word each, marks as none."""
    text = re.sub(r"``?[^`]*``?|https?://\S+", " X ", re.sub(r"\[([^\]]*)\]\([^)]*\)", " X ", sentence))
    return len(re.findall(r"[^\W_][\w'.\-/%]*", re.sub(r":\w+:", " ", text)))


def of_docstring(text):
    """The paragraphs of a docstring: without formulas and tables, each entry of a section and of a list on its own."""
    lines, paragraph, section, entry = text.split("\n"), [], None, None
    base = min((len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()), default=0)
    for number, line in enumerate([*lines, ""]):
        words, indent = line.strip(), len(line) - len(line.lstrip()) if number else base
        if words and section is not None and indent <= section:
            section = None
        if words and section is not None and entry is None:
            entry = indent
        begins = not words or SECTION.match(words) or ITEM.match(words) or (section is not None and indent == entry)
        if paragraph and begins:
            yield " ".join(paragraph)
            paragraph = []
        if SECTION.match(words):
            section, entry = indent, None
        elif words and (indent == base or section is not None or ITEM.match([*paragraph, words][0])):
            paragraph.append(words.lstrip("#"))


def of_page(text):
    """The paragraphs of a page, and the cells of its tables."""
    text = re.sub(r"```.*?```|<!--.*?-->|^#.*?$", "\n", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[*-]|\d+\.) )", text):
        yield from block.split("|") if "|" in block else [block.lstrip("*- ")]


def docstrings(path):
    for node in ast.walk(ast.parse(path.read_bytes())):
        text = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else None
        if isinstance(text, str):
            yield node.lineno, text


def comments(path):
    """The comments on lines of their own, those of neighbouring lines as one."""
    text = re.sub(r"\n *# ?", "\n\0", path.read_text())
    for block in re.finditer(r"(?:\n\0.*)+", text):
        yield text[: block.start()].count("\n") + 2, block[0].replace("\0", "")


def is_prose(paragraph):
    """False for the legends of axes, for tables and for lines of a formula."""
    return not paragraph.startswith("Axes beyond") and "====" not in paragraph and "|---" not in paragraph


def test_sentences_of_code_are_short():
    found = []
    for path in MODULES:
        told = [(line, part) for line, text in docstrings(path) for part in of_docstring(text) if is_prose(part)]
        for line, sentence in ((line, one) for line, part in (*told, *comments(path)) for one in sentences(part)):
            if num_words(sentence) > MOST_IN_CODE:
                found.append(f"{path.relative_to(ROOT)}:{line}: {num_words(sentence)} words: {sentence}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sentences_of_pages_are_short(path):
    told = [sentence for paragraph in of_page(path.read_text()) for sentence in sentences(paragraph)]
    assert not [sentence for sentence in told if num_words(sentence) > MOST_IN_PAGES]


def test_the_sweep_finds_long_sentences_and_leaves_formulas(tmp_path):
    long = " ".join(["word"] * 26)
    text = (
        f"Short.\n\n    {long} = formula\n\nArgs:\n    one: {long}.\n    two: short.\n    three: {long[:60]}.\n\n{long}"
    )
    found = [sentence for part in of_docstring(text) for sentence in sentences(part) if num_words(sentence) > 25]
    assert found == [f"one: {long}.", long]
    path = tmp_path / "some.py"
    path.write_text("x = 1  # beside\n# One two.\n# Three\n\n  # four.\n")
    assert [(line, part.split()) for line, part in comments(path)] == [(2, ["One", "two.", "Three"]), (5, ["four."])]
    assert [num_words(s) for s in sentences("One, e.g. `a b` [c d](e). 2.5% of :class:`F`? Yes.")] == [4, 3, 1]

"""The site has a page for everything: presets, alignment methods, models; its notebooks are as they are run."""

import ast
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import feedgym
from feedgym.experiments.options import with_options
from feedgym.experiments.presets import COMPARISONS, PRESETS
from feedgym.plugins import BUILT_IN
from feedgym.protocols import load

pytest.importorskip("griffe", reason="the site's packages are missing; `make docs` installs them")

DOCS = Path(feedgym.__file__).parent.parent / "docs"
NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))
HOW_TO = sorted((DOCS / "how_to").glob("*.md"))


@pytest.fixture(autouse=True)
def scripts_beside_each_other(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))


def test_code_of_files_is_included_by_lines_that_mkdocs_knows():
    """A formatter once made of them expressions in Python, which were then printed as code."""
    lines = [line for page in HOW_TO for line in page.read_text().splitlines() if line.startswith("--8")]
    named = [re.fullmatch(r'--8<-- "([^":]+)(:\d+)*"', line) for line in lines]
    assert lines and all(match and (DOCS.parent / match[1]).is_file() for match in named), lines


def test_every_preset_has_a_page_or_is_a_smoke_test():
    nav = load("generate:experiments_nav")()
    paged = {name for group in nav[1:] for pages in group.values() for page in pages for name in page}
    assert paged == {name for name in (*PRESETS, *COMPARISONS) if not name.endswith("smoke")}
    assert {type(make()).__name__ for make in PRESETS.values()} <= set(load("generate:OUTCOMES"))


def test_a_preset_s_page_says_what_it_does_what_comes_out_and_what_differs():
    make = PRESETS["tiger-ipa"]
    page = load("generate:experiment_page")("tiger-ipa", make, make())
    assert "The demo with TIGER" in page and "feedgym run tiger-ipa --help" in page
    assert "| `--model` | `tiger` | `onerec` |" in page and "`aligned-N`" in page
    assert page.count("## ") == 3


@pytest.mark.parametrize("name", BUILT_IN["method"])
def test_every_method_has_its_place(name):
    (page,) = [page for page, names in load("parts:PAGES").items() if name in names]
    assert f"<!-- method: {name} -->" in (DOCS / "methods" / f"{page}.md").read_text()
    text = load("parts:method")(name)
    assert f"--method {name}" in text and "`--method.learning-rate`" in text
    assert "arXiv" in text or "Algorithm" in text or "Mitchell" in text


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A part."""

    deep: int = 3
    """How deep."""


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A whole."""

    inner: Inner = Inner()
    """A part."""
    wide_as: float = 0.5
    """How wide, a < b
    or a | b."""


def test_options_are_rendered_with_defaults_and_meanings():
    table = load("parts:table")(Outer, "model")
    assert table.split("\n")[2:] == [
        "| `--model.inner.deep` | `3` | How deep. |",
        "| `--model.wide-as` | `0.5` | How wide, a &lt; b or a \\| b. |",
    ]


def test_docstrings_become_markdown():
    markdown = load("griffe_plain:markdown")
    said = markdown(
        "See :class:`~feedgym.data.events.Catalog`. Parts:\n    - one,\n      and more\n    - two\n\nThen::\n\n    code"
    )
    assert said == "See `data.events.Catalog`. Parts:\n\n- one,\n  and more\n- two\n\nThen:\n\n\n    code"


def test_links_out_of_the_docs_must_lead_to_files():
    hooks = load("hooks:LINK")
    outside = load("hooks:outside")
    page = DOCS / "how_to" / "users.md"
    assert outside(hooks.search("[x](../../examples/minimal_users.py)"), page) == "`examples/minimal_users.py`"
    assert outside(hooks.search("[x](../concepts.md)"), page) == "[x](../concepts.md)"
    with pytest.raises(ValueError, match="does not exist"):
        outside(hooks.search("[x](../../examples/nothing.py)"), page)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_no_outputs_and_their_code_is_python(path):
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    for source in code:
        ast.parse(re.sub(r"^(!|%%writefile).*$", "pass", source, flags=re.MULTILINE))
    assert any("plt.subplots" in source for source in code)


def calls_of(source):
    """Calls of feedgym's own functions in code: name and keywords."""
    for node in ast.walk(ast.parse(source)):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and getattr(called.value, "id", "") == "feedgym":
            yield called.attr, {word.arg: word.value for word in node.keywords}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_use_arguments_and_options_that_exist(path):
    """`make docs` runs them; this is the part of it that needs no minute."""
    cells = json.loads(path.read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    code = re.sub(r"^(!|%%writefile).*$", "pass", code, flags=re.MULTILINE)
    given = dict(calls_of(code))
    assert "align" in given
    for name, keywords in given.items():
        target = getattr(feedgym, name)
        if not isinstance(target, type):
            inspect.signature(target).bind_partial(**keywords)
    named = next(node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assign) and is_options(node))
    sizes = dict(zip(named.value.keys, named.value.values, strict=True))
    literal = {k.value: ast.literal_eval(v) for k, v in sizes.items() if isinstance(v, ast.Constant | ast.Tuple)}
    with_options(PRESETS["onerec-ipa-smoke"](), literal)


def is_options(node):
    """Whether an assignment is that of a run's options."""
    return getattr(node.targets[0], "id", "") in ("options", "sizes") and isinstance(node.value, ast.Dict)


def test_benchmarks_are_shown_with_their_command_and_machine():
    for path in sorted((DOCS.parent / "benchmarks" / "results").glob("*.json")):
        found = json.loads(path.read_text())
        shown = load("parts:speed")(path.stem)
        assert found["command"] in shown and f"load {found['machine']['load']}" in shown
        for row in found["rows"]:
            pace = row["pace"]
            ratios = {side: pace[found["ours"]] / pace[side] for side in pace if side != found["ours"]}
            assert row["ratio"] == pytest.approx(ratios, rel=0.01) and f"| {row['what']} |" in shown


def test_ratios_have_three_digits():
    times = load("parts:times")
    assert [times(ratio) for ratio in (0.9512, 4.3557, 12.345, 1746.7)] == ["0.951", "4.36", "12.3", "1,747"]

"""The page of the environments says what their docstrings and specs say."""

from pathlib import Path

import feedgym
from feedgym.protocols import load

DOCS = Path(feedgym.__file__).parent.parent / "docs"


def test_the_page_is_rendered_from_the_docstrings(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    rendered = load("render_environments:rendered")
    page = (DOCS / "environments.md").read_text()
    assert rendered(page) == page, "run python docs/render_environments.py"
    assert "| `feedgym/ShortVideoSession-v1` | [session](#level-session) |" in page and ":class:" not in page

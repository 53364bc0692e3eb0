"""Renders the table of docs/results.md from docs/results/*.json.

``python docs/render_results.py`` rewrites the part between the two marks; a test sees that it was done.
"""

from __future__ import annotations

from pathlib import Path

from feedgym.experiments.results import read_results, results_table

PAGE = Path(__file__).with_name("results.md")
ROWS = Path(__file__).with_name("results")
BEGIN, END = "<!-- rendered by docs/render_results.py -->\n", "<!-- end -->\n"


def rendered(page: str) -> str:
    """The page with the part between the marks made anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{results_table(read_results(ROWS))}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))

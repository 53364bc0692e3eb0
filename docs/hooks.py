"""Hooks of the site: rendered parts, pages per preset in the navigation, links into the repository, wide tables."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
WIDE = ("index.md", "results.md")
LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)\)")


def on_config(config: Any) -> Any:
    """Put a page per preset where mkdocs.yml says ``experiments/``."""
    experiments_nav = beside("generate").experiments_nav
    for entry in config["nav"]:
        if entry.get("Experiments") == "experiments/":
            entry["Experiments"] = experiments_nav()
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Render what comments ask for, and turn links to files outside docs/ into their names."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["navigation", "toc"]
    return LINK.sub(lambda link: outside(link, DOCS / page.file.src_uri), beside("parts").filled(markdown))


def beside(name: str) -> Any:
    """A module of this folder; mkdocs forgets paths that are added while it loads this file."""
    if str(DOCS) not in sys.path:
        sys.path[:0] = [str(DOCS), str(DOCS.parent)]
    return importlib.import_module(name)


def outside(link: re.Match[str], page: Path) -> str:
    """A link as it is, or the name of a file that is in the repository and not on the site.

    Raises:
        ValueError: there is no such file.
    """
    target = (page.parent / link[2]).resolve()
    if target.is_relative_to(DOCS):
        return link[0]
    if not target.exists():
        raise ValueError(f"{page}: {link[2]} does not exist.")
    return f"`{target.relative_to(DOCS.parent)}`"


def on_page_content(html: str, **_: Any) -> str:
    """Let wide tables scroll inside their own box."""
    return html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")

"""THE list of public data sets that feedgym reads.

To add one, write a file in this folder and add an entry here. Its finder looks at the files at a path. It returns how
they are read (:class:`~feedgym.data.sources.Source`), or None if they are not its own. If the path names
one file of several, :func:`~feedgym.data.public.files.with_neighbours` gives the finder the others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from feedgym.data.public.amazon import find_amazon
from feedgym.data.public.files import RawFile
from feedgym.data.public.kuairand import find_kuairand
from feedgym.data.public.kuairec import find_kuairec
from feedgym.data.public.kuaisar import find_kuaisar
from feedgym.data.public.lcrec import find_lcrec
from feedgym.data.public.lists import find_sequences
from feedgym.data.public.mind import find_mind
from feedgym.data.public.movielens import find_movielens
from feedgym.data.public.recbole import find_recbole
from feedgym.data.public.targets import find_targets
from feedgym.data.public.yambda import find_yambda
from feedgym.data.sources import Source

Finder = Callable[[Path, dict[str, RawFile]], Source | None]
"""Takes a path (a folder, a zip or a file) and the files there, by name without the suffix of a compression."""

FINDERS: tuple[Finder, ...] = (
    *(find_kuairand, find_kuairec, find_kuaisar, find_mind, find_yambda, find_movielens, find_lcrec, find_targets),
    *(find_recbole, find_amazon, find_sequences),
)
"""Tried in this order: the first that recognises the files reads them."""

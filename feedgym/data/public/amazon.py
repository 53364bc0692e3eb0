"""Amazon's reviews (McAuley lab) of 2014, 2018 and 2023: reviews or ratings of a category, and its products.

The files are recognised by their fields, not by their names. JSON lines of 2014 and 2018 have ``reviewerID, asin,
overall, unixReviewTime``; those of 2023 have ``user_id, parent_asin, rating, timestamp`` in milliseconds. CSV files of
2023 have a header. Those of 2014 and 2018 have none, and their item is the column of ten-character ids. The benchmark's
train, valid and test files of 2023 are joined into one log, because feedgym splits it itself. Products (``meta_*``) are
JSON lines; those of 2014 are Python literals.

A product's text is its title, brand (2023: store), categories, price and the beginning of its description or features.
Its topic is the second category (the first is that of the whole file), its creator the brand. In 2023 items are
parents: all sizes and colours of a product are one item. Times are days in 2014 and 2018, so there are many ties.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from feedgym.data.events import Catalog, EventLog
from feedgym.data.public.files import (
    RawFile,
    decoded,
    delimited,
    json_lines,
    need,
    numbers,
    one_line,
    refuse,
    with_neighbours,
)
from feedgym.data.public.interactions import RULE, Ratings, ratings_log
from feedgym.data.sources import ReadOptions, Source

OLD = {"reviewerID": "user_id", "asin": "item_id", "overall": "rating", "unixReviewTime": "timestamp"}
NEW = {"user_id": "user_id", "parent_asin": "item_id", "rating": "rating", "timestamp": "timestamp"}
JSON = re.compile(r".*\.(json|jsonl)")
META = re.compile(r"meta_.*\.(json|jsonl)")
DESCRIPTION = 300
"""Characters of a description that are kept; the sentence model reads 256 tokens."""
PEEK = 4_194_304
"""Bytes read of a first line; reviews are long, and so are the addresses of their pictures."""


def find_amazon(path: Path, files: dict[str, RawFile]) -> Source | None:
    """Finds Amazon's reviews by the fields of their first line; None if there are none.

    Raises:
        ValueError: there are reviews of several categories, so it is unclear which to read.
    """
    reviews = {n: fields for n, f in files.items() if not META.fullmatch(n) and (fields := _fields(f)) is not None}
    parts = [n for n in reviews if re.fullmatch(r".*\.(train|valid|test)\.csv", n)]
    if parts and len({name.rsplit(".", 2)[0] for name in parts}) == 1:
        reviews = {name: reviews[name] for name in sorted(parts)}
    elif len(reviews) > 1:  # a category's reviews say more than its ratings alone
        reviews = {name: fields for name, fields in reviews.items() if JSON.fullmatch(name)} or reviews
    if not reviews:
        return None
    if len(reviews) > 1 and reviews.keys() != {*parts}:
        where = next(iter(files.values())).path.parent
        raise ValueError(f"{where}: holds reviews of several categories ({', '.join(reviews)}); give one file.")
    fields, chosen = next(iter(reviews.values())), [files[name] for name in reviews]
    meta = _meta_of(chosen[0], with_neighbours(path, files, META.pattern))

    def read(options: ReadOptions) -> tuple[EventLog, Catalog]:
        events = pd.concat([_events(file, fields) for file in chosen], ignore_index=True)
        items = _products(meta, set(events["item_id"])) if meta else pd.DataFrame({"item_id": []})
        return ratings_log(chosen[0], Ratings(events=events, items=items), options)

    year = "2023" if fields is NEW else "2014/2018"
    days = () if fields is NEW else ("times are days: mind the ties",)
    files_read = (*chosen, meta) if meta else tuple(chosen)
    return Source(name=f"Amazon reviews {year}", files=files_read, says=(RULE, *days), read=read)


def _meta_of(reviews: RawFile, files: dict[str, RawFile]) -> RawFile | None:
    """The file of products whose name matches the reviews' category; if none matches, the only such file."""
    category = re.sub(r"^(reviews|ratings)_|(_5|\.train|\.valid|\.test)?\.(json|jsonl|csv)$", "", reviews.stem)
    meta = {name: file for name, file in files.items() if META.fullmatch(name)}
    fitting = [file for name, file in meta.items() if name.rpartition(".")[0] == f"meta_{category}"]
    return next(iter(fitting or (meta.values() if len(meta) == 1 else ())), None)


def _fields(file: RawFile) -> dict[str, str] | None:
    """Detects which of the two forms a file's first line has; None for neither."""
    if not (JSON.fullmatch(file.stem) or file.stem.endswith(".csv")):
        return None
    try:
        with file.opened() as stream:
            line = decoded(stream.readline(PEEK)).strip()
    except ValueError:  # damaged: reading it reports so
        return None
    if file.stem.endswith(".csv"):
        cells = [cell.strip('"') for cell in line.split(",")]
        if {*NEW} <= {*cells}:
            return NEW
        return OLD if len(cells) == 4 and sum(_is_product(cell) for cell in cells[:2]) == 1 else None
    # By its keys alone, because the line may be cut off above.
    return next((fields for fields in (OLD, NEW) if all(f'"{key}"' in line for key in fields)), None)


def _is_product(cell: str) -> bool:
    """True for a product id: those have ten characters, user ids have more."""
    return bool(re.fullmatch(r"[0-9A-Z]{10}", cell.strip()))


def _events(file: RawFile, fields: dict[str, str]) -> pd.DataFrame:
    if not file.stem.endswith(".csv"):
        rows = [[row.get(name) for name in fields] for row in json_lines(file)]
        table = pd.DataFrame(rows, columns=list(fields))
    elif fields is NEW:
        table = need(file, delimited(file, ",", None, quoted=True, words=tuple(fields)[:2]), tuple(fields))
    else:
        table = delimited(file, ",", tuple(fields), words=tuple(fields)[:2])
        if _is_product(str(table["reviewerID"].iloc[0])):  # 2018 has the product first
            table = table.set_axis(["asin", "reviewerID", *table.columns[2:]], axis=1)
    user, item, stars, when = fields
    for name in (user, item):
        bad = table[name].isna()
        if table[name].dtype == object:  # JSON holds anything
            bad |= ~table[name].map(type).isin((str, int))
        refuse(file, table, name, bad, "is empty or not an id", "drop those reviews")
    rating, time = numbers(file, table, stars), numbers(file, table, when)
    refuse(file, table, stars, ~((rating >= 0) & (rating <= 5)), "is empty or outside 0 to 5", "drop those reviews")
    refuse(file, table, when, ~(time > 0), "is empty or not positive", "drop those reviews")
    ids = {"user_id": table[user].astype(str), "item_id": table[item].astype(str)}
    return pd.DataFrame({**ids, "rating": rating, "timestamp": time / (1000 if fields is NEW else 1)})


def _literal(line: str) -> Any:
    """Parses JSON, or the Python literals of 2014's products; nothing is executed."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return ast.literal_eval(line)


def _products(file: RawFile, wanted: set[str]) -> pd.DataFrame:
    """Texts, topics and brands of the wanted products."""
    rows = []
    for product in json_lines(file, _literal):
        item_id = product.get("parent_asin") or product.get("asin")
        if item_id not in wanted:
            continue
        brand = one_line(product.get("brand") or product.get("store"))
        categories = _categories(product)
        parts = {
            "": one_line(product.get("title")),
            "Brand: ": brand,
            "Categories: ": ", ".join(categories),
            "Price: ": one_line(product.get("price")),
            "Description: ": (one_line(product.get("description")) or one_line(product.get("features")))[:DESCRIPTION],
        }
        text = ". ".join(name + value for name, value in parts.items() if value)
        topic = categories[min(1, len(categories) - 1)] if categories else None
        rows.append((item_id, text, topic, brand or None))
    if not rows:
        raise ValueError(f"{file}: holds none of the {len(wanted)} reviewed products; take both files of one category.")
    return pd.DataFrame(rows, columns=["item_id", "text", "topic", "creator"])


def _categories(product: dict[str, Any]) -> list[str]:
    """The path of categories; 2014 has several paths, and the first one counts."""
    path = product.get("categories") or product.get("category") or product.get("main_category") or []
    if isinstance(path, str):
        path = [path]
    if path and isinstance(path[0], list):
        path = path[0]
    return [name for name in (one_line(name) for name in path) if name]

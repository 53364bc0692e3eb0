"""MovieLens (Harper & Konstan, 2015) as GroupLens publishes it: 100K, 1M, 10M, and 20M, 25M, 32M or latest.

Read from the zip or the folder. The order-only form of 1M that papers on sequential recommendation share is read too.
It is a text file with one "user item" per line and new ids, next to ``movies.dat`` and the map of its ids to
MovieLens's. A film's text is its title with the year, and its genres. Its topic is its first genre, its upload time the
first day of its year. Profiles, where users are described (100K, 1M), are gender, age group and occupation.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from feedgym.data.events import Catalog, EventLog
from feedgym.data.public.files import RawFile, delimited, need, numbers, refuse, whole_numbers, with_neighbours
from feedgym.data.public.interactions import ORDER_ONLY, RULE, Ratings, ratings_log
from feedgym.data.sources import ReadOptions, Source

EVENTS = ("user_id", "item_id", "rating", "timestamp")
GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
ITEMS_100K = ("item_id", "title", "release", "video_release", "url", *GENRES_100K)
HEADERS = {"userId": "user_id", "movieId": "item_id", "rating": "rating", "timestamp": "timestamp"}
FILM_HEADERS = {"movieId": "item_id", "title": "title", "genres": "genres"}
AGES = (18, 25, 35, 45, 50, 56)
"""The youngest ages of MovieLens-1M's age groups; 100K's ages are sorted into the same groups."""
ORDERED = re.compile(r".*_sas\.txt")
ID_MAP = "sas_to_original_items.txt"
BESIDE = r"(movies|users)\.(dat|csv)|u\.(item|user)|sas_to_original_.*\.txt"


def find_movielens(path: Path, files: dict[str, RawFile]) -> Source | None:
    """Finds MovieLens by the names of its files; None if it is not there."""
    files = with_neighbours(path, files, BESIDE)
    if "u.data" in files:
        return _source("MovieLens-100K", files, ("u.data", "u.item", "u.user"), _read_100k, RULE)
    if "ratings.dat" in files:
        name = "MovieLens-1M" if "users.dat" in files else "MovieLens-10M"
        return _source(name, files, ("ratings.dat", "movies.dat", "users.dat"), _read_dat, RULE)
    if {"ratings.csv", "movies.csv"} <= files.keys():
        return _source("MovieLens (20M and later)", files, ("ratings.csv", "movies.csv"), _read_csv, RULE)
    ordered = [name for name in files if ORDERED.fullmatch(name)]
    if ordered and "movies.dat" in files:
        names = (ordered[0], ID_MAP, "movies.dat", "users.dat", ID_MAP.replace("items", "users"))
        return _source("MovieLens-1M, order only", files, names, _read_ordered, ORDER_ONLY)
    return None


def _source(name: str, files: dict[str, RawFile], names: tuple[str, ...], read, says: str) -> Source:
    present = tuple(files[n] for n in names if n in files)

    def log_of(options: ReadOptions) -> tuple[EventLog, Catalog]:
        return ratings_log(present[0], read({file.stem: file for file in present}, present[0]), options)

    return Source(name=name, files=present, says=(says,), read=log_of)


def _read_100k(files: dict[str, RawFile], _: RawFile) -> Ratings:
    events = delimited(files["u.data"], "\t", EVENTS)
    items = pd.DataFrame({"item_id": []})
    if "u.item" in files:
        table = delimited(files["u.item"], "|", ITEMS_100K)
        flags = np.stack([numbers(files["u.item"], table, genre, 0) for genre in GENRES_100K], axis=1) > 0
        genres = ["|".join(np.array(GENRES_100K)[row]) for row in flags]
        items = _films(table.assign(genres=genres))
    users = pd.DataFrame({"user_id": []})
    if "u.user" in files:
        table = delimited(files["u.user"], "|", ("user_id", "age", "gender", "occupation", "zip"))
        users = _people(files["u.user"], table)
    return Ratings(events=_checked(files["u.data"], events), items=items, users=users)


def _read_dat(files: dict[str, RawFile], _: RawFile) -> Ratings:
    events = delimited(files["ratings.dat"], "::", EVENTS)
    return Ratings(events=_checked(files["ratings.dat"], events), **_beside(files))


def _beside(files: dict[str, RawFile]) -> dict[str, pd.DataFrame]:
    """Films and users of 1M and 10M, if their files exist."""
    tables = {}
    if "movies.dat" in files:
        tables["items"] = _films(delimited(files["movies.dat"], "::", ("item_id", "title", "genres")))
    if "users.dat" in files:
        table = delimited(files["users.dat"], "::", ("user_id", "gender", "age", "occupation", "zip"))
        tables["users"] = _people(files["users.dat"], table)
    return tables


def _read_csv(files: dict[str, RawFile], _: RawFile) -> Ratings:
    ratings, films = files["ratings.csv"], files["movies.csv"]
    events = need(ratings, delimited(ratings, ",", None, quoted=True), HEADERS)
    items = need(films, delimited(films, ",", None, quoted=True), FILM_HEADERS)
    return Ratings(events=_checked(ratings, events), items=_films(items))


def _read_ordered(files: dict[str, RawFile], ordered: RawFile) -> Ratings:
    """Reads one user and item per line, in time order; ids become MovieLens's own if the maps exist."""
    events = _whole(ordered, delimited(ordered, " ", ("user_id", "item_id")), ("user_id", "item_id"))
    beside = _beside(files)
    for column, name in (("item_id", ID_MAP), ("user_id", ID_MAP.replace("items", "users"))):
        if name in files:
            pairs = _whole(files[name], delimited(files[name], " ", ("own", "original")), ("own", "original"))
            for side in ("own", "original"):
                refuse(files[name], pairs, side, pairs[side].duplicated(), "repeats an id", "keep one line per id")
            listed = events[column].isin(pairs["own"])
            refuse(ordered, events, column, ~listed, f"has an id that {name} lacks", "take both files from one source")
            events[column] = events[column].map(pairs.set_index("own")["original"])
        else:  # renumbered: films and users cannot be identified
            beside.pop("items" if column == "item_id" else "users", None)
    return Ratings(events=events, **beside)


def _checked(file: RawFile, events: pd.DataFrame) -> pd.DataFrame:
    """Ratings of 0.5 to 5 with ids and times that are whole numbers."""
    events = _whole(file, events, ("user_id", "item_id", "timestamp"))
    rating = numbers(file, events, "rating")
    bad = ~((rating >= 0.5) & (rating <= 5))
    refuse(file, events, "rating", bad, "is empty or outside 0.5 to 5", "write stars, or drop those rows")
    return events.assign(rating=rating)


def _whole(file: RawFile, events: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    remedy = "fetch the file again, or drop those rows"
    return events.assign(**{name: whole_numbers(file, events, name, remedy) for name in columns})


def _films(table: pd.DataFrame) -> pd.DataFrame:
    title, genres = table["title"].fillna("").astype(str), table["genres"].fillna("").astype(str)
    genres = genres.where(genres != "(no genres listed)", "")
    year = pd.to_numeric(title.str.extract(r"\((\d{4})\)\s*$")[0])
    upload_s = (year - 1970) * 365.2425 * 86400  # the first second of the year, at most a day or two off
    text = title.str.strip() + ("; " + genres.str.replace("|", ", ")).where(genres != "", "")
    topic = genres.str.split("|").str[0]
    return pd.DataFrame(
        {"item_id": table["item_id"], "text": text, "topic": topic.where(topic != ""), "upload_s": upload_s}
    )


def _people(file: RawFile, table: pd.DataFrame) -> pd.DataFrame:
    group = np.searchsorted(AGES, numbers(file, table, "age", 0), side="right")
    return table[["user_id", "gender", "occupation"]].assign(age_group=group)

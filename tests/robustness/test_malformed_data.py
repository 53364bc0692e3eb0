"""Data of every kind, damaged in every way: read as if nothing were, or refused in one line that names the file.

By default a part of the inputs is tried; ``FEEDGYM_MALFORMED=2000 pytest -m slow -s FILE`` tries that many and prints
what became of them.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import traceback
import warnings
import zipfile
from collections import Counter
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedgym.data.events import BEHAVIOURS, Event
from feedgym.data.parquet import write_catalog, write_log
from feedgym.data.public.kuairand import PROFILE_FIELDS
from feedgym.data.readers import load_data
from feedgym.data.sources import ReadOptions

COUNT = int(os.environ.get("FEEDGYM_MALFORMED", "300"))
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
UNPACK = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
MAY_S = 1_651_363_200
OPTIONS = ReadOptions(text="off")

# ---------------------------------------------------------------- whole data sets: {file: bytes}, and how they are read


def csv(table, separator=","):
    return table.to_csv(index=False, sep=separator).encode()


def parquet(table, compression="zstd"):
    out = io.BytesIO()
    table.to_parquet(out, compression=compression)
    return out.getvalue()


def views():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"user_id": rng.integers(0, 9, 60), "item_id": rng.integers(0, 12, 60)})
    return table.assign(
        timestamp=MAY_S + rng.integers(0, 90_000, 60),
        session_id=table["user_id"] * 10 + rng.integers(0, 2, 60),
        position=rng.integers(0, 5, 60),
        watch_s=rng.random(60).round(2),
        duration_s=9.5,
        examined=1,
        propensity=0.25,
        like=rng.integers(0, 2, 60),
        profile_town=table["user_id"].map(lambda u: "abc"[u % 3]),
    )


def items():
    ids = np.arange(12)
    return pd.DataFrame(
        {
            "item_id": ids,
            "topic": ids % 3,
            "creator": ids % 4,
            "upload_time": MAY_S - ids,
            "genre": "x",
            "price": ids / 2,
        }
    ).assign(name=[f"näme {i}" for i in ids])


def ratings(separator, header=None):
    rng = np.random.default_rng(1)
    rows = zip(
        rng.integers(1, 9, 50), rng.integers(1, 9, 50), rng.integers(1, 6, 50), MAY_S + np.arange(50), strict=True
    )
    lines = [separator.join(map(str, row)) for row in rows]
    return "\n".join(([header] if header else []) + lines + [""]).encode()


def kuairand(write, suffix):
    rng = np.random.default_rng(2)
    flags = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter")
    log = pd.DataFrame({"user_id": rng.integers(0, 6, 50), "video_id": rng.integers(0, 9, 50)})
    log = log.assign(
        time_ms=MAY_S * 1000 + rng.integers(0, 10**8, 50),
        play_time_ms=rng.integers(0, 10**4, 50),
        duration_ms=9000,
        tab=1,
        profile_stay_time=0,
        comment_stay_time=0,
        is_rand=0,
        **{name: rng.integers(0, 2, 50) for name in flags},
    )
    ids = np.arange(9)
    videos = pd.DataFrame({"video_id": ids, "author_id": ids % 3, "video_type": "NORMAL", "upload_dt": "2022-04-10"})
    videos = videos.assign(upload_type="ShortImport", video_duration=1000.0 * (ids + 3), music_type=9.0, tag="1,2")
    users = pd.DataFrame({name: 0 for name in PROFILE_FIELDS}, index=range(6)).assign(user_id=range(6))
    earlier = pd.DataFrame({"user_id": [0, 1], "history_len": 9, "last_time_ms": MAY_S * 1000})
    earlier = earlier.assign(watch_seq=[[1, 2, 3], [4]], like_seq=[[2], []], long_watch_seq=[[], [4]])
    return {
        f"log_standard_x{suffix}": write(log),
        f"video_features_basic_x{suffix}": write(videos),
        f"user_features_x{suffix}": write(users),
        "user_sequences.parquet": parquet(earlier),
    }


def own(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    views().to_csv(folder / "views.csv", index=False)
    items().to_csv(folder / "items.csv", index=False)
    log, catalog = load_data(folder / "views.csv", {"user_id": "user_id"}, folder / "items.csv", OPTIONS)
    write_log(log, folder / "events.parquet")
    write_catalog(catalog, folder / "catalog.parquet")
    return {name: (folder / name).read_bytes() for name in ("events.parquet", "catalog.parquet")}


def json_lines(rows):
    return "\n".join(map(json.dumps, rows)).encode()


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def kinds(tmp_path):
    """Name to (files, what load_data is asked for: the path, a column map, an items' file)."""
    movies_dat = "\n".join(f"{i}::Film {i} ({1990 + i})::Drama|Comedy" for i in range(1, 9)).encode()
    users_dat = "\n".join(f"{u}::M::25::3::12345" for u in range(1, 9)).encode()
    movies_csv = (
        "movieId,title,genres\n" + "\n".join(f'{i},"Film, The {i} (1999)",Drama' for i in range(1, 9))
    ).encode()
    lists = "\n".join(f"{u} 1 2 {u % 3 + 1} 4" for u in range(1, 8)).encode()
    maps = json.dumps({"id2item": {str(i): f"B{i}" for i in range(1, 9)}}).encode()
    reviews = [
        {
            "reviewerID": f"U{n % 5}",
            "asin": f"000000000{n % 4}",
            "overall": 1.0 + n % 5,
            "unixReviewTime": 1_400_000_000 + n,
        }
        for n in range(20)
    ]
    meta = [{"asin": f"000000000{n}", "title": f"Soap {n}", "categories": [["A", "B"]], "brand": "X"} for n in range(4)]
    new = [
        {"user_id": f"U{n % 5}", "parent_asin": f"B00000000{n % 4}", "rating": 4.0, "timestamp": (MAY_S + n) * 1000}
        for n in range(20)
    ]
    headless = "\n".join(f"A{n % 5}USER12345,000000000{n % 4},{1 + n % 5}.0,{MAY_S + n}" for n in range(20)).encode()
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    inter += "\n".join(f"{n % 5}\t{n % 4}\t{1 + n % 5}\t{MAY_S + n}" for n in range(20))
    item = "item_id:token\ttitle:token_seq\tclass:token_seq\n" + "\n".join(f"{n}\tTitle {n}\tA B" for n in range(4))
    user = "user_id:token\tage:token\n" + "\n".join(f"{n}\t{20 + n}" for n in range(5))
    ml_100k = {"u.data": ratings("\t"), "u.user": "\n".join(f"{u}|24|M|other|1" for u in range(1, 9)).encode()}
    ml_100k["u.item"] = "\n".join(f"{i}|Film {i} (1995)|1|2|3|{'|'.join('01' * 9)}|0" for i in range(1, 9)).encode()
    ordered = {
        "ml-1m_sas.txt": "\n".join(f"{u} {i}" for u in range(1, 6) for i in range(1, 5)).encode(),
        "movies.dat": movies_dat,
        "users.dat": users_dat,
        "sas_to_original_items.txt": "\n".join(f"{i} {9 - i}" for i in range(1, 9)).encode(),
        "sas_to_original_users.txt": "\n".join(f"{u} {9 - u}" for u in range(1, 9)).encode(),
    }
    mapped = {"user_id": "user_id", "item_id": "item_id"}
    return {
        "csv": ({"views.csv": csv(views()), "items.csv": csv(items())}, ("views.csv", mapped, "items.csv")),
        "csv.gz": ({"views.csv.gz": gzip.compress(csv(views()))}, ("views.csv.gz", mapped, None)),
        "tsv": ({"views.tsv": csv(views(), "\t")}, ("views.tsv", mapped, None)),
        "parquet": (
            {"views.parquet": parquet(views()), "items.parquet": parquet(items(), "gzip")},
            ("views.parquet", mapped, "items.parquet"),
        ),
        "lists": ({"Beauty.txt": lists, "datamaps.json": maps}, ("", None, None)),
        "lists with items": ({"Beauty.txt": lists, "words.csv": csv(items())}, ("Beauty.txt", None, "words.csv")),
        "MovieLens 100K": (ml_100k, ("", None, None)),
        "MovieLens 1M": (
            {"ratings.dat": ratings("::"), "movies.dat": movies_dat, "users.dat": users_dat},
            ("", None, None),
        ),
        "MovieLens zip": (
            {"ml.zip": zipped({"ml/ratings.csv": ratings(",", "userId,movieId,rating,timestamp"),
                               "ml/movies.csv": movies_csv})},
            ("ml.zip", None, None),
        ),
        "MovieLens ordered": (ordered, ("", None, None)),
        "Amazon 2014": (
            {"reviews_Soap_5.json.gz": gzip.compress(json_lines(reviews)), "meta_Soap.json": json_lines(meta)},
            ("", None, None),
        ),
        "Amazon 2018 csv": ({"ratings_Soap.csv": headless}, ("", None, None)),
        "Amazon 2023": ({"Soap.jsonl": json_lines(new)}, ("", None, None)),
        "Amazon 2023 csv": ({"Soap.csv": csv(pd.DataFrame(new))}, ("", None, None)),
        "RecBole": (
            {"x.inter": inter.encode(), "x.item": item.encode(), "x.user": user.encode()},
            ("", None, None),
        ),
        "KuaiRand csv": (kuairand(csv, ".csv"), ("", None, None)),
        "KuaiRand parquet": (kuairand(parquet, ".parquet"), ("", None, None)),
        "feedgym's own": (own(tmp_path), ("", None, None)),
    }  # fmt: skip


# ---------------------------------------------------------------- damages

ODD = (
    None,
    "",
    "x",
    "NaN",
    "inf",
    -1,
    0,
    -1e300,
    1e300,
    1e18,
    2**63,
    2**64,
    -(2**63),
    0.5,
    True,
    "2022-05-01",
    "ä\x00",
)
NESTED = ([1, 2], {"a": 1}, [], [[1]], {"b": [None]})


def of_bytes(data, rng):
    """Damages that know nothing of the format."""
    low, high = np.sort(rng.integers(0, len(data) + 1, 2))
    size = max(1, min(40, high - low))
    junk = rng.bytes(int(rng.integers(1, 400)))
    flipped = bytearray(data)
    for place in rng.integers(0, max(len(data), 1), rng.integers(1, 20)):
        if flipped:
            flipped[place] ^= 1 << int(rng.integers(8))
    return {
        "bits flipped": bytes(flipped),
        "cut off": data[:low],
        "part missing": data[:low] + data[low + size :],
        "part doubled": data[: low + size] + data[low:],
        "junk inside": data[:low] + junk + data[low:],
        "junk only": junk,
        "empty": b"",
        "zeros": data[:low] + bytes(size) + data[low + size :],
    }


def of_text(data, rng):
    """Damages to lines and encodings."""
    text = data.decode("utf-8", "replace")
    lines = text.split("\n")
    a, b = rng.integers(0, len(lines), 2)
    swapped = list(lines)
    swapped[a], swapped[b] = lines[b], lines[a]
    doubled = lines[: a + 1] + lines[a:]
    words = lines[a].replace("\t", ",").replace("::", ",").replace("|", ",").split(",")
    place = int(rng.integers(len(words)))
    odd = str(ODD[rng.integers(len(ODD))])
    changed = list(lines)
    changed[a] = lines[a].replace(words[place], odd) if words[place] else lines[a] + odd
    return {
        "utf-16": text.encode("utf-16"),
        "latin-1": (text + "é").encode("latin-1", "replace"),
        "byte order mark": b"\xef\xbb\xbf" + data,
        "lines swapped": "\n".join(swapped).encode(),
        "line doubled": "\n".join(doubled).encode(),
        "all doubled": (text + "\n" + text).encode(),
        "no first line": "\n".join(lines[1:]).encode(),
        "first line only": lines[0].encode(),
        "carriage returns": text.replace("\n", "\r").encode(),
        "word changed": "\n".join(changed).encode(),
        "quote": (text[: len(text) // 2] + '"' + text[len(text) // 2 :]).encode(),
        "other separator": text.replace(",", ";").replace("\t", " ").replace("::", ":").encode(),
        "longer lines": text.replace("\n", ",7\n").replace("\n", "\t7\n", 3).encode(),
        "blank lines": text.replace("\n", "\n\n").encode(),
    }


def of_json(data, rng):
    """Damages to values of JSON lines."""
    rows = [json.loads(line) for line in data.splitlines()]
    row = rows[rng.integers(len(rows))]
    name = list(row)[rng.integers(len(row))]
    values = (*ODD, *NESTED)
    row[name] = values[rng.integers(len(values))]
    every = [{**r, name: row[name]} for r in rows]
    return {
        "a value changed": json_lines(rows),
        "all values changed": json_lines(every),
        "a key missing": json_lines([*rows[:3], {k: v for k, v in row.items() if k != name}]),
        "no objects": json_lines([1, None, [row], "x"]),
        "one list": json.dumps(rows).encode(),
    }


def of_table(table, rng, nested):
    """Damages to the columns of a table."""
    name, other = (str(table.columns[rng.integers(table.shape[1])]) for _ in range(2))
    some = rng.random(len(table)) < 0.3
    odd = ODD[rng.integers(len(ODD))]
    column = table[name].astype(object)
    changed = {
        "column missing": table.drop(columns=name),
        "column renamed": table.rename(columns={name: name.upper() + " "}),
        "columns swapped": table.rename(columns={name: other, other: name}),
        "column doubled": pd.concat([table, table[[name]]], axis=1),
        "columns shuffled": table[rng.permutation(table.columns)],
        "all empty": table.assign(**{name: None}),
        "all odd": table.assign(**{name: odd}),
        "some empty": table.assign(**{name: column.where(~some, None)}),
        "some odd": table.assign(**{name: [odd if s else v for s, v in zip(some, column, strict=True)]}),
        "negative": table.assign(**{name: [-v if isinstance(v, (int, float)) else v for v in column]}),
        "text": table.assign(**{name: table[name].astype(str)}),
        "no rows": table.iloc[:0],
        "one row": table.iloc[:1],
        "rows doubled": pd.concat([table, table], ignore_index=True),
        "rows shuffled": table.iloc[rng.permutation(len(table))],
        "other unit": table.assign(**{name: [v * 1000 if isinstance(v, int) else v for v in column]}),
    }
    if nested:
        value = NESTED[rng.integers(2)]
        changed |= {
            "nested": table.assign(**{name: [value] * len(table)}),
            "lists": table.assign(**{name: [[v] for v in column]}),
            "bytes": table.assign(**{name: [str(v).encode() + b"\xff" for v in column]}),
            "flags": table.assign(**{name: some}),
            "times": table.assign(**{name: pd.Timestamp("2022-05-01", tz="Asia/Shanghai")}),
            "durations": table.assign(**{name: pd.Timedelta(seconds=3)}),
            "decimals": table.assign(**{name: [Decimal("1.5")] * len(table)}),
            "categories": table.assign(**{name: pd.Categorical(table[name].astype(str))}),
            "small floats": table.assign(**{name: np.float16(1.5)}),
        }
    return changed


def arrow_bytes(table, rng):
    """Parquet of a table, with objects that pandas would not mix brought to text; in any compression."""
    out = io.BytesIO()
    try:
        arrow = pa.Table.from_pandas(table, preserve_index=False)
    except (pa.ArrowException, ValueError, OverflowError):
        plain = table.astype({n: str for n in table if table[n].dtype == object})
        arrow = pa.Table.from_pandas(plain, preserve_index=False)
    pq.write_table(arrow, out, compression=("zstd", "gzip", "snappy", "none")[rng.integers(4)])
    return out.getvalue()


def damaged(name, data, rng):
    """One damage of a file: what it is called, and the bytes."""
    suffix = os.path.splitext(name)[1]
    if rng.random() < 0.25 or suffix == ".zip":
        found = of_bytes(data, rng)
    elif suffix == ".parquet":
        arrow = pq.read_table(io.BytesIO(data))
        changed = of_table(arrow.to_pandas(), rng, nested=True)
        kind = list(changed)[rng.integers(len(changed))]
        return kind, arrow_bytes(changed[kind], rng) if changed[kind].columns.is_unique else data[:-7]
    else:
        plain = UNPACK[suffix](data) if suffix in UNPACK else data
        inner = os.path.splitext(name.removesuffix(suffix))[1] if suffix in UNPACK else suffix
        if inner in (".json", ".jsonl") and not plain.startswith(b'{"id2item') and rng.random() < 0.6:
            found = of_json(plain, rng)
        elif inner in (".csv", ".tsv") and b"USER" not in plain and rng.random() < 0.6:
            separator = "\t" if inner == ".tsv" else ","
            tables = of_table(pd.read_csv(io.BytesIO(plain), sep=separator), rng, nested=False)
            found = {kind: csv(table, separator) for kind, table in tables.items()}
        else:
            found = of_text(plain, rng)
        if suffix in PACK:
            found = {kind: PACK[suffix](raw) for kind, raw in found.items()}
    kind = list(found)[rng.integers(len(found))]
    return kind, found[kind]


# ---------------------------------------------------------------- the test


def fault_of(folder, asked):
    """None where the data are read or properly refused, with what became of them; else what is wrong."""
    path, columns, beside = asked
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            log, catalog = load_data(folder / path, columns, folder / beside if beside else None, OPTIONS)
    except (ValueError, OSError) as error:
        text = str(error)
        if "\n" in text:
            return "refused", f"several lines: {text!r}"
        if str(folder) not in text:
            return "refused", f"the file is not named: {text!r}\n{traceback.format_exc()[-1500:]}"
        return "refused", None
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}\n{traceback.format_exc()[-1800:]}"
    shown = log.event == Event.IMPRESSION
    sound = (
        np.isfinite(log.timestamp_s).all()
        and np.isfinite(catalog.content_IE).all()
        and (catalog.duration_s_I > 0).all()
        and (log.item_id[shown] >= 0).all()
        and (log.item_id < catalog.num_items).all()
        and (log.watch_s >= 0).all()
        and set(np.unique(log.behaviours)) <= {0, 1}
        and log.behaviours.shape[1] == len(BEHAVIOURS)
    )
    return "read", None if sound else "the log is not sound"


@pytest.mark.slow
def test_no_damage_ends_in_a_traceback(tmp_path):
    sound = kinds(tmp_path)
    names, count, faults = list(sound), Counter(), []
    for name, (files, asked) in sound.items():
        folder = tmp_path / f"sound {name}"
        folder.mkdir()
        for file, data in files.items():
            (folder / file).write_bytes(data)
        assert fault_of(folder, asked) == ("read", None), name
    for n in range(COUNT):
        rng = np.random.default_rng([n, 7])
        name = names[n % len(names)]
        files, asked = sound[name]
        victim = list(files)[rng.integers(len(files))]
        kind, data = damaged(victim, files[victim], rng)
        folder = tmp_path / f"{n}"
        folder.mkdir()
        for file, whole in files.items():
            (folder / file).write_bytes(data if file == victim else whole)
        became, fault = fault_of(folder, asked)
        count[became] += 1
        if fault:
            faults.append(f"{n}: {name}, {victim}, {kind}: {fault}")
    print(f"\n{COUNT} damaged inputs of {len(names)} kinds: {dict(count)}; {len(faults)} faults")
    assert not faults, "\n\n".join(faults)

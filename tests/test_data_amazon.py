import gzip
import json

import numpy as np
import pytest

from feedgym.data.events import BEHAVIOURS, Event
from feedgym.data.readers import find_data, load_data
from feedgym.data.sources import ReadOptions

QUICK = ReadOptions(text="off", ties="file")
DAY = 86400
USERS, ITEMS = ("A1YJEY40YUW4SE", "A60XNB876KYML"), ("B0000AAAA1", "7806397051", "B0000AAAA3")
# (user, item, stars, day)
REVIEWS = [(0, 0, 5, 3), (0, 1, 3, 1), (1, 2, 1, 2), (1, 0, 4, 2)]
PRODUCTS = {
    ITEMS[0]: {"title": "Red <b>Lipstick</b>", "brand": "Acme", "path": ["Beauty", "Makeup", "Lips"], "price": 3.5},
    ITEMS[1]: {"title": "Brush", "brand": None, "path": ["Beauty", "Tools"], "price": None},
    "B0000ZZZZZ": {"title": "Never reviewed", "brand": "Acme", "path": ["Beauty"], "price": 1},
}


def packed(path, lines):
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def folder_of(folder, year, suffix=".json.gz"):
    if year == 2023:
        reviews = [
            {"rating": float(s), "title": "ok", "text": "x" * 70_000, "asin": "B00OTHER00", "parent_asin": ITEMS[i],
             "user_id": USERS[u], "timestamp": d * DAY * 1000 + 7, "verified_purchase": True}
            for u, i, s, d in REVIEWS
        ]  # fmt: skip
        meta = [
            {"main_category": "All Beauty", "title": p["title"], "price": p["price"], "store": p["brand"],
             "categories": p["path"], "features": ["soft"], "description": [], "parent_asin": asin}
            for asin, p in PRODUCTS.items()
        ]  # fmt: skip
        packed(folder / f"All_Beauty.jsonl{suffix}", map(json.dumps, reviews))
        packed(folder / f"meta_All_Beauty.jsonl{suffix}", map(json.dumps, meta))
        return folder
    reviews = [
        {"reviewerID": USERS[u], "asin": ITEMS[i], "overall": float(s), "unixReviewTime": d * DAY, "reviewText": "é"}
        for u, i, s, d in REVIEWS
    ]
    packed(folder / f"reviews_Beauty_5{suffix}", map(json.dumps, reviews))
    if year == 2014:  # Python literals, and several paths of categories
        meta = [
            repr({"asin": a, "title": p["title"], "categories": [p["path"], ["Gifts"]]}
                 | ({"brand": p["brand"]} if p["brand"] else {}) | ({"price": p["price"]} if p["price"] else {}))
            for a, p in PRODUCTS.items()
        ]  # fmt: skip
    else:
        meta = [
            json.dumps({"asin": a, "title": p["title"], "category": p["path"], "brand": p["brand"] or "",
                        "price": f"${p['price']}" if p["price"] else "", "description": ["Very", "fine"]})
            for a, p in PRODUCTS.items()
        ]  # fmt: skip
    packed(folder / f"meta_Beauty{suffix}", meta)
    return folder


def events(log):
    user = np.repeat(log.user_ids_U, np.diff(log.offsets_U1))
    shown = log.event == Event.IMPRESSION
    flags = [tuple(n for b, n in enumerate(BEHAVIOURS) if row[b]) for row in log.behaviours[shown]]
    days = (log.timestamp_s[shown] // DAY).tolist()
    return list(zip(user[shown].tolist(), log.item_id[shown].tolist(), days, flags, strict=True))


@pytest.mark.parametrize(
    ("year", "suffix"), [(2014, ".json.gz"), (2014, ".json"), (2018, ".json.gz"), (2023, ".gz"), (2023, "")]
)
def test_reviews_and_products_of_every_year(tmp_path, year, suffix):
    source = find_data(folder_of(tmp_path, year, suffix))
    assert source.name == ("Amazon reviews 2023" if year == 2023 else "Amazon reviews 2014/2018")
    assert len(source.files) == 2
    log, catalog = source.read(QUICK)
    # Only what was reviewed, by id; digits come before letters.
    assert catalog.raw_ids_I.tolist() == [ITEMS[1], ITEMS[0], ITEMS[2]]
    assert events(log) == [
        (USERS[0], 0, 1, ("click",)),
        (USERS[0], 1, 3, ("click", "like")),
        (USERS[1], 2, 2, ("click", "hate")),
        (USERS[1], 1, 2, ("click", "like")),
    ]
    text = catalog.text_I[1]
    assert text.startswith("Red Lipstick. Brand: Acme. Categories: Beauty, Makeup, Lips. Price: ") and "3.5" in text
    tail = {2014: "", 2018: ". Description: Very fine", 2023: ". Description: soft"}[year]
    assert text.endswith("3.5" + tail) and catalog.text_I[2] == ""
    assert catalog.topic_I.tolist() == [1, 0, -1]  # Makeup before Tools
    assert catalog.creator_I.tolist() == [-1, 0, -1]


@pytest.mark.parametrize("item_first", [False, True])  # 2014 and 2018 disagree
def test_ratings_without_a_header_tell_users_and_products_by_their_ids(tmp_path, item_first):
    lines = [",".join((ITEMS[i], USERS[u])[:: 1 if item_first else -1]) + f",{s}.0,{d * DAY}" for u, i, s, d in REVIEWS]
    packed(tmp_path / "ratings_Beauty.csv", lines)
    log, catalog = load_data(tmp_path, options=QUICK)
    assert events(log)[1] == (USERS[0], 1, 3, ("click", "like")) and catalog.num_items == 3
    log, _ = load_data(tmp_path / "ratings_Beauty.csv", options=QUICK)
    assert log.num_users == 2


def test_the_benchmarks_parts_are_one_log_again(tmp_path):
    for part, rows in {"train": REVIEWS[:2], "valid": REVIEWS[2:3], "test": REVIEWS[3:]}.items():
        lines = [f"{USERS[u]},{ITEMS[i]},{s}.0,{d * DAY * 1000}" for u, i, s, d in rows]
        packed(tmp_path / f"All_Beauty.{part}.csv", ["user_id,parent_asin,rating,timestamp", *lines])
    source = find_data(tmp_path)
    assert [file.name.split(".")[1] for file in source.files] == ["test", "train", "valid"]
    log, _ = source.read(QUICK)
    assert sorted(events(log))[0] == (USERS[0], 0, 1, ("click",)) and len(events(log)) == 4


def test_the_noughts_of_books_numbers_stay(tmp_path):
    lines = [f"u{n},000000000{n % 2},5,{1_500_000_000_000 + n}" for n in range(4)]
    packed(tmp_path / "Books.csv", ["user_id,parent_asin,rating,timestamp", *lines])
    _, catalog = load_data(tmp_path / "Books.csv", options=QUICK)
    assert catalog.raw_ids_I.tolist() == ["0000000000", "0000000001"]


def test_a_category_is_named_where_a_folder_has_several(tmp_path):
    folder_of(tmp_path, 2014)
    (tmp_path / "reviews_Toys_5.json.gz").write_bytes((tmp_path / "reviews_Beauty_5.json.gz").read_bytes())
    with pytest.raises(ValueError, match=r"several categories \(reviews_.*\); give one file\."):
        load_data(tmp_path, options=QUICK)
    _, catalog = load_data(tmp_path / "reviews_Beauty_5.json.gz", options=QUICK)
    assert catalog.text_I[0].startswith("Brush")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("overall"), r"column 'overall' is empty or outside 0 to 5 in 1 row\(s\), first row 2"),
        (lambda r: r.update(overall="five"), r"column 'overall' is not a finite number in 1 row\(s\), first row 2"),
        (lambda r: r.update(reviewerID=None), r"column 'reviewerID' is empty or not an id in 1 row.*, first row 2"),
        (lambda r: r.update(reviewerID=["U1"]), r"column 'reviewerID' is empty or not an id in 1 row.*, first row 2"),
        (lambda r: r.update(unixReviewTime=-5), r"column 'unixReviewTime' is empty or not positive in 1 row"),
    ],
)
def test_a_bad_review_is_refused_with_its_row(tmp_path, change, message):
    folder_of(tmp_path, 2018, ".json")
    file = tmp_path / "reviews_Beauty_5.json"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    change(lines[2])
    packed(file, map(json.dumps, lines))
    with pytest.raises(ValueError, match="reviews_Beauty_5.json: " + message) as error:
        load_data(tmp_path, options=QUICK)
    assert "\n" not in str(error.value)


def test_lines_that_are_no_json_and_archives_cut_off_are_named(tmp_path):
    folder_of(tmp_path, 2014)
    meta = tmp_path / "meta_Beauty.json.gz"
    packed(meta, ["{'asin': 'B0000AAAA1'}", "{'asin': __import__('os').getcwd()}"])
    with pytest.raises(ValueError, match=r"meta_Beauty.json.gz: line 2 cannot be read .*; fetch the file again\.$"):
        load_data(tmp_path, options=QUICK)
    packed(meta, ["[1]"])
    with pytest.raises(ValueError, match="line 1 is not a JSON object"):
        load_data(tmp_path, options=QUICK)
    packed(meta, ["{'asin': 'B0000ZZZZZ'}"])
    with pytest.raises(ValueError, match="holds none of the 3 reviewed products"):
        load_data(tmp_path, options=QUICK)
    file = tmp_path / "reviews_Beauty_5.json.gz"
    rng = np.random.default_rng(0)
    lines = [json.dumps({"reviewerID": USERS[0], "asin": ITEMS[0], "overall": 5.0, "unixReviewTime": DAY,
                         "reviewText": rng.bytes(400).hex()}) for _ in range(2000)]  # fmt: skip
    packed(file, lines)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2 : len(whole) // 2 + 500] = bytes(500)
    for broken in (whole[: len(whole) // 2], bytes(flipped)):
        file.write_bytes(broken)
        with pytest.raises(
            ValueError, match=r"reviews_Beauty_5.json.gz: (cannot be read to its end|line \d+ cannot)"
        ) as error:
            load_data(tmp_path, options=QUICK)
        assert "\n" not in str(error.value)


def test_days_are_ties_which_a_seed_shuffles(tmp_path):
    reviews = [{"reviewerID": USERS[0], "asin": f"B0000AAA{n:02d}", "overall": 5.0, "unixReviewTime": DAY}
               for n in range(20)]  # fmt: skip
    packed(tmp_path / "reviews_Beauty_5.json", map(json.dumps, reviews))
    read = lambda **given: [e[1] for e in events(load_data(tmp_path, options=ReadOptions(text="off", **given))[0])]  # noqa: E731
    assert read(ties="file") == list(range(20))
    assert read() == read(seed=0) != read(seed=1) and sorted(read()) == list(range(20)) != read()

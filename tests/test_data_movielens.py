import gzip
import re
import zipfile
from datetime import UTC, datetime

import numpy as np
import pytest

from feedgym.data.events import BEHAVIOURS, Event
from feedgym.data.readers import find_data, load_data
from feedgym.data.sources import ReadOptions

QUICK = ReadOptions(text="off", ties="file")

# The same four ratings and three films in every format; user 2 rates two films in one second.
RATINGS = [(2, 1193, 5, 978300760), (1, 661, 2, 978302109), (2, 914, 3, 978300760), (1, 1193, 4, 978301968)]
FILMS = {
    661: ("James and the Giant Peach (1996)", "Animation|Children's|Musical"),
    914: ("Misérables, Les (1995)", "Drama|Musical"),
    1193: ("One Flew Over the Cuckoo's Nest (1975)", "Drama"),
}
FLAGS = {661: (3, 4, 12), 914: (8, 12), 1193: (8,)}


def rows(separator, *tables):
    return ["\n".join(separator.join(map(str, row)) for row in table) + "\n" for table in tables]


def files_of(kind):
    """Name to bytes, as GroupLens lays a data set out."""
    films = [(i, title, genres) for i, (title, genres) in FILMS.items()]
    if kind == "100k":
        flags = {i: [int(g in FLAGS[i]) for g in range(19)] for i in FILMS}
        items = [(i, title, "01-Jan-1995", "", "http://x", *flags[i]) for i, title, _ in films]
        users = [(1, 24, "M", "technician", "85711"), (2, 53, "F", "other", "94043")]
        (data,) = rows("\t", RATINGS)
        item, user = rows("|", items, users)
        return {"u.data": data, "u.item": item.encode("latin-1"), "u.user": user}
    if kind in ("1m", "10m"):
        ratings, movies, users = rows("::", RATINGS, films, [(1, "F", 1, 10, "48067"), (2, "M", 56, 16, "70072")])
        encoding = "latin-1" if kind == "1m" else "utf-8"
        found = {"ratings.dat": ratings, "movies.dat": movies.encode(encoding), "users.dat": users}
        return found if kind == "1m" else {n: found[n] for n in ("ratings.dat", "movies.dat")}
    ratings = "userId,movieId,rating,timestamp\n" + rows(",", RATINGS)[0]
    movies = "movieId,title,genres\n" + rows(",", [(i, f'"{title}"', genres) for i, title, genres in films])[0]
    return {"ratings.csv": ratings, "movies.csv": movies, "tags.csv": "userId,movieId,tag,timestamp\n"}


def laid_out(folder, kind, how="folder"):
    files = {n: c if isinstance(c, bytes) else c.encode() for n, c in files_of(kind).items()}
    if how == "zip":
        with zipfile.ZipFile(folder / "ml.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(f"ml/{name}", content)
        return folder / "ml.zip"
    for name, content in files.items():
        (folder / "ml").mkdir(exist_ok=True)
        (folder / "ml" / name).write_bytes(content)
    return folder / "ml" if how == "folder" else folder


def events(log):
    user = np.repeat(log.user_ids_U, np.diff(log.offsets_U1))
    shown = log.event == Event.IMPRESSION
    flags = [tuple(n for b, n in enumerate(BEHAVIOURS) if row[b]) for row in log.behaviours[shown]]
    return list(
        zip(user[shown].tolist(), log.item_id[shown].tolist(), log.timestamp_s[shown].tolist(), flags, strict=True)
    )


@pytest.mark.parametrize("how", ["folder", "folder above", "zip"])
@pytest.mark.parametrize(
    ("kind", "name"), [("100k", "-100K"), ("1m", "-1M"), ("10m", "-10M"), ("25m", r" \(20M and later\)")]
)
def test_every_format_gives_the_same_log(tmp_path, kind, name, how):
    path = laid_out(tmp_path, kind, how)
    source = find_data(path)
    assert re.fullmatch(f"MovieLens{name}", source.name) and "4 or more a like" in source.says[0]
    log, catalog = source.read(QUICK)
    assert catalog.raw_ids_I.tolist() == [661, 914, 1193]
    assert events(log) == [
        (2, 2, 978300760, ("click", "like")),
        (2, 1, 978300760, ("click",)),
        (1, 2, 978301968, ("click", "like")),
        (1, 0, 978302109, ("click", "hate")),
    ]
    assert catalog.text_I.tolist()[1] == "Misérables, Les (1995); Drama, Musical"
    # The first genre is the topic, by name: Animation, Drama.
    assert catalog.topic_I.tolist() == [0, 1, 1]
    years = [datetime.fromtimestamp(s + 5 * 86400, UTC).year for s in catalog.upload_s_I]
    assert years == [1996, 1995, 1975]
    assert log.has_time
    fields = {"100k": ("gender", "occupation", "age_group"), "1m": ("gender", "occupation", "age_group")}
    assert log.profile_names == fields.get(kind, ())
    if kind == "1m":  # F before M; 10 before 16; under 18 before over 55: user 2 comes first in the log
        assert log.profile_UF.tolist() == [[2, 2, 2], [1, 1, 1]]


def test_one_file_of_a_folder_brings_what_lies_beside_it(tmp_path):
    folder = laid_out(tmp_path, "1m")
    _, catalog = load_data(folder / "ratings.dat", options=QUICK)
    assert catalog.text_I[0].startswith("James") and catalog.num_topics == 2


@pytest.mark.parametrize(
    ("kind", "name", "old", "new", "message"),
    [
        (
            "100k",
            "u.data",
            "\t5\t",
            "\t7\t",
            r"u.data: column 'rating' is empty or outside 0.5 to 5 in 1 row.*first row 0",
        ),
        ("1m", "ratings.dat", "661", "6x1", r"ratings.dat: column 'item_id' is not a finite number.*row 1"),
        ("1m", "ratings.dat", "::978302109", "", r"'timestamp' is empty or not a whole number in 1 row.*first row 1"),
        (
            "1m",
            "ratings.dat",
            "::978302109",
            "::1::1",
            r"ratings.dat: cannot be read with the columns user_id, item_id",
        ),
        ("25m", "ratings.csv", "rating,", "stars,", r"ratings.csv: column 'rating' is missing; it has \['userId'"),
        ("25m", "movies.csv", "title,", "name,", r"movies.csv: column 'title' is missing"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, kind, name, old, new, message):
    folder = laid_out(tmp_path, kind)
    text = (folder / name).read_text(encoding="latin-1")
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1), encoding="latin-1")
    with pytest.raises(ValueError, match=message) as error:
        load_data(folder, options=QUICK)
    assert "\n" not in str(error.value)


def test_a_zip_cut_off_is_refused_in_one_line(tmp_path):
    path = laid_out(tmp_path, "1m", "zip")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"ml.zip: is not a whole zip archive .*; fetch the file again\.$"):
        load_data(path, options=QUICK)


def ordered(folder, maps=True):
    """Two users in the form that counts users and items anew, without times."""
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / "ml-1m_sas.txt.gz", "wt") as stream:
        stream.write("1 1\n1 2\n1 3\n2 3\n2 1\n")
    (folder / "movies.dat").write_bytes(files_of("1m")["movies.dat"])
    (folder / "users.dat").write_text(files_of("1m")["users.dat"])
    if maps:
        (folder / "sas_to_original_items.txt").write_text("1 1193\n2 661\n3 914\n")
        (folder / "sas_to_original_users.txt").write_text("1 2\n2 1\n")
    return folder


def test_the_order_only_form_keeps_its_order_and_says_that_it_has_no_times(tmp_path):
    source = find_data(ordered(tmp_path / "ml-1m"))
    assert source.name == "MovieLens-1M, order only" and "only the order" in source.says[0]
    log, catalog = source.read(ReadOptions(text="off"))
    assert not log.has_time
    assert [e[:3] for e in events(log)] == [(2, 2, 0), (2, 0, 1), (2, 1, 2), (1, 1, 0), (1, 2, 1)]
    assert {e[3] for e in events(log)} == {("click",)}
    assert catalog.text_I[2].startswith("One Flew") and log.profile_names == ("gender", "occupation", "age_group")


def test_without_the_maps_ids_are_the_files_own_and_films_unknown(tmp_path):
    log, catalog = load_data(ordered(tmp_path / "ml-1m", maps=False), options=ReadOptions(text="off"))
    assert catalog.raw_ids_I.tolist() == [1, 2, 3] and catalog.text_I is None and log.profile_names == ()


def test_an_id_which_the_map_lacks_is_refused(tmp_path):
    folder = ordered(tmp_path / "ml-1m")
    (folder / "sas_to_original_items.txt").write_text("1 1193\n2 661\n")
    with pytest.raises(ValueError, match=r"column 'item_id' has an id that sas_to_original_items.txt lacks in 2 row"):
        load_data(folder, options=QUICK)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "1 1193\n2 661\n3 914\n2 661\n",
            r"column 'own' repeats an id in 1 row\(s\), first row 3; keep one line per id",
        ),
        ("1 1193\n2 661\n3 661\n", r"column 'original' repeats an id in 1 row\(s\), first row 2"),
        ("1 1193\n2 x\n3 661\n", r"column 'original' is not a finite number in 1 row"),
    ],
)
def test_an_id_map_with_doubled_lines_is_refused(tmp_path, lines, message):
    folder = ordered(tmp_path / "ml-1m")
    (folder / "sas_to_original_items.txt").write_text(lines)
    with pytest.raises(ValueError, match="sas_to_original_items.txt: " + message) as error:
        load_data(folder, options=QUICK)
    assert "\n" not in str(error.value)

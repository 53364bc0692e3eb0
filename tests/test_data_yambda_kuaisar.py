"""Small files in the published forms of Yambda and KuaiSAR."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data_readers import shown

from feedgym.cli import main
from feedgym.data.readers import find_data, load_data
from feedgym.data.sources import ReadOptions

QUICK = ReadOptions(text="off")

# uid, timestamp, item_id, is_organic, played_ratio_pct, track_length_seconds
LISTENS = [
    (100, 50, 7, 1, 100, 200),
    (100, 250, 9, 0, 49, 300),
    (100, 8000, 7, 0, 120, 200),
    (200, 60, 9, 0, 50, 300),
]
LIKES = [(100, 255, 7, 1), (200, 9000, 9, 0), (200, 9000, 11, 0)]  # 9000: long after the listen, and without one
DISLIKES = [(100, 250, 9, 0)]
COLUMNS = ("uid", "timestamp", "item_id", "is_organic", "played_ratio_pct", "track_length_seconds")


def flat(rows):
    types = (pa.uint32(), pa.uint32(), pa.uint32(), pa.uint8(), pa.uint16(), pa.uint32())
    columns = zip(COLUMNS, types, zip(*rows, strict=True), strict=False)
    return pa.table({name: pa.array(values, type=kind) for name, kind, values in columns})


def multi_event():
    rows = [(*row, "listen") for row in LISTENS]
    for kind, more in (("like", LIKES), ("dislike", DISLIKES), ("unlike", [(100, 9999, 7, 1)])):
        rows += [(*row, None, None, kind) for row in more]
    rows.sort(key=lambda row: row[:2])
    table = flat([row[:6] for row in rows])
    return table.append_column("event_type", pa.array([row[6] for row in rows]).dictionary_encode())


def sequential(table, plural):
    """A row per user with lists, under the names of the description or of the published code."""
    names = {"item_id": "item_ids", "timestamp": "timestamps"} if plural else {}
    frame = table.to_pandas().astype({"event_type": str})
    lists = frame.groupby("uid").agg(list).reset_index().rename(columns=names)
    return pa.Table.from_pandas(lists, preserve_index=False)


def yambda(folder, tables):
    folder.mkdir(parents=True)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def check(log, catalog):
    assert log.user_ids_U.tolist() == [100, 200] and catalog.raw_ids_I.tolist() == [7, 9, 11]
    assert shown(log, "timestamp_s") == [50, 250, 8000, 60, 9000, 9000]
    assert sorted(zip(shown(log, "item_id")[4:], shown(log, "click")[4:], strict=True)) == [(1, 0), (2, 0)]
    assert shown(log, "item_id")[:4] == [0, 1, 0, 1] and shown(log, "click")[:4] == [1, 1, 1, 1]
    assert shown(log, "long_view") == [1, 0, 1, 1, 0, 0] and shown(log, "hate") == [0, 1, 0, 0, 0, 0]
    assert shown(log, "like") == [1, 0, 0, 0, 1, 1]
    assert shown(log, "watch_s")[:4] == pytest.approx([200, 147, 240, 150])
    assert catalog.duration_s_I.tolist() == [200, 300, 250]  # nobody heard the last one: the median
    organic = log.extra["organic"][log.event == 2].tolist()
    assert organic[:4] == [1, 0, 0, 0]


def test_yambdas_forms_are_one_log(tmp_path):
    parts = {"listens": flat(LISTENS), "likes": flat(LIKES), "dislikes": flat(DISLIKES), "unlikes": flat(LIKES)}
    single = yambda(tmp_path / "a" / "flat" / "50m", parts)
    check(*load_data(single, options=QUICK))
    check(*load_data(single / "listens.parquet", options=QUICK))
    check(*load_data(tmp_path / "a", options=QUICK))
    check(*load_data(yambda(tmp_path / "b", {"multi_event": multi_event()}), options=QUICK))
    for plural in (True, False):
        lists = {"multi_event": sequential(multi_event(), plural)}
        check(*load_data(yambda(tmp_path / f"c{plural}" / "sequential" / "50m", lists), options=QUICK))
    alone = load_data(yambda(tmp_path / "d", {"listens": flat(LISTENS)}), options=QUICK)[0]
    assert shown(alone, "like") == [0, 0, 0, 0]


def test_yambdas_embeddings_and_artists_come_from_the_folders_above(tmp_path):
    folder = yambda(tmp_path / "flat" / "50m", {"listens": flat(LISTENS), "likes": flat(LIKES)})
    vectors = {7: [0.6, 0.8], 8: [1.0, 0.0], 11: [0.0, 1.0]}
    audio = {"item_id": pa.array([*vectors], pa.uint32()), "embed": [*vectors.values()]}
    pq.write_table(pa.table({**audio, "normalized_embed": [*vectors.values()]}), tmp_path / "embeddings.parquet")
    artists = pa.table({"artist_id": pa.array([3, 4, 3], pa.uint32()), "item_id": pa.array([7, 7, 11], pa.uint32())})
    pq.write_table(artists, tmp_path / "artist_item_mapping.parquet")
    catalog = load_data(folder, options=QUICK)[1]
    assert (
        catalog.content_IE == pytest.approx(np.array([[0.6, 0.8], [0, 0], [0, 1]]))
        and "embedding" in catalog.content_from
    )
    assert catalog.creator_I.tolist() == [0, -1, 0]


def test_yambda_is_told_from_others_and_sizes_are_not_mixed(tmp_path, capsys):
    for size in ("50m", "500m"):
        yambda(tmp_path / "flat" / size, {"listens": flat(LISTENS)})
    with pytest.raises(
        ValueError, match=r"several sizes or forms of Yambda \(flat/500m, flat/50m\); give one of these"
    ):
        find_data(tmp_path)
    other = tmp_path / "listens.parquet"
    pq.write_table(pa.table({"user_id": [1], "item_id": [2]}), other)
    assert find_data(other).name == "a table of events"
    main(["data", "inspect", str(tmp_path / "flat" / "50m"), "--text", "off"])
    told = " ".join(capsys.readouterr().out.split())
    assert "Yambda" in told and "unlikes and undislikes are not read" in told and "organic" in told


def test_a_share_of_yambdas_users_is_read(tmp_path):
    rows = [(user, 5 * n, n, 1, 60, 100) for user in range(100) for n in range(3)]
    likes = [row[:4] for row in rows if row[1] == 5]
    folder = yambda(tmp_path / "a", {"listens": flat(rows), "likes": flat(likes)})
    log = load_data(folder, options=ReadOptions(users=0.2, text="off"))[0]
    assert 10 < log.num_users < 30 and len(shown(log, "click")) == 3 * log.num_users
    assert log.user_ids_U.dtype == np.int64 and sum(shown(log, "like")) == log.num_users


def test_damaged_files_of_yambda_are_refused_in_one_line(tmp_path):
    table = multi_event().to_pandas().astype({"event_type": str}).groupby("uid").agg(list).reset_index()
    table["timestamp"] = table["timestamp"].map(lambda times: times[1:])
    folder = yambda(tmp_path / "a", {"multi_event": pa.Table.from_pandas(table, preserve_index=False)})
    with pytest.raises(
        ValueError, match=r"multi_event.parquet: cannot be read as a file of Yambda \(.*timestamp"
    ) as error:
        load_data(folder, options=QUICK)
    assert "\n" not in str(error.value)
    less = yambda(tmp_path / "b", {"listens": flat(LISTENS).drop_columns("played_ratio_pct")})
    with pytest.raises(ValueError, match=r"listens.parquet: column 'played_ratio_pct' is missing"):
        load_data(less, options=QUICK)


# ---------------------------------------------------------------- KuaiSAR

REC = (
    "user_id,item_id,playing_time,duration_ms,time,timestamp,click,forward,like,follow,search,search_item_related\n"
    "1,5,60792.0,45400.0,2023-05-22 15:53:20,1684742000000.0,1,0,1,0,0,0\n"
    "1,6,100.0,5000.0,2023-05-22 15:54:20,1684742060000.0,0,0,0,0,1,1\n"
    "2,5,0.0,45400.0,2023-05-23 00:00:00,1684771200000.0,0,0,0,0,0,0\n"
)
SRC = (
    "user_id,search_session_id,search_session_time,search_session_timestamp,keyword,search_source,item_id,click_cnt,"
    "item_type\n"
    '1,9,2023-05-22 21:58:52,1684763932919.0,"[20, 34]",USER_INPUT,6,2,VIDEO\n'
    '1,9,2023-05-22 21:58:52,1684763932919.0,"[20, 34]",USER_INPUT,8,0,LIVE\n'
    '2,9,2023-05-22 21:59:52,1684763992919.0,"[3]",USER_INPUT,6,0,VIDEO\n'
)
ITEMS = (
    "item_id,caption,author_id,item_type,upload_time,upload_type,first_level_category_name_en,"
    "second_level_category_name_en,third_level_category_name_en,fourth_level_category_name_en\n"
    '5,"[1, 213]",10,NORMAL,2023-04-22,LongImport,Funny,Funny joke,empty,empty\n'
    "6,[],0,NORMAL,1970-1-1,LongImport,Food,empty,empty,empty\n"
    '7,"[4]",11,NORMAL,2023-04-01,LongImport,Food,empty,empty,empty\n'
)
USERS = "user_id,search_active_level,rec_active_level,onehot_feat1,onehot_feat2\n1,2,1,0,7\n2,1,1,2,7\n"


def kuaisar(folder):
    for name, text in (("rec_inter", REC), ("src_inter", SRC), ("item_features", ITEMS), ("user_features", USERS)):
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_kuaisars_recommendations(tmp_path, capsys):
    log, catalog = load_data(kuaisar(tmp_path), options=QUICK)
    assert log.user_ids_U.tolist() == [1, 2] and catalog.raw_ids_I.tolist() == [5, 6]
    assert shown(log, "item_id") == [0, 1, 0] and shown(log, "click") == [1, 0, 0] and shown(log, "like") == [1, 0, 0]
    assert shown(log, "watch_s") == pytest.approx([60.792, 0.1, 0]) and log.extra["search"].sum() == 1
    assert shown(log, "timestamp_s")[0] % 86400 == 15 * 3600 + 53 * 60 + 20  # as ``time``
    assert catalog.text_I.tolist() == ["Funny. Funny joke. w1 w213", "Food"]
    assert catalog.topic_I.tolist() == [1, 0] and catalog.creator_I.tolist() == [0, -1]
    uploaded = pd.Timestamp("2023-04-22").timestamp()
    assert catalog.upload_s_I.tolist() == [uploaded, log.timestamp_s.min()]
    assert log.profile_names == ("search_active_level", "rec_active_level", "onehot_feat1", "onehot_feat2")
    main(["data", "inspect", str(tmp_path), "--text", "tfidf"])
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "KuaiSAR's recommendations" in told and "src_inter.csv is not read; give its path to read the searches" in told
    )
    with pytest.raises(ValueError, match="KuaiSAR's times become Beijing's by themselves, and utc_offset is 8"):
        load_data(tmp_path, options=ReadOptions(utc_offset=8))


def test_kuaisars_searches(tmp_path):
    log, catalog = load_data(kuaisar(tmp_path) / "src_inter.csv", options=QUICK)
    assert catalog.raw_ids_I.tolist() == [6, 8] and catalog.text_I.tolist() == ["Food", ""]
    assert shown(log, "item_id") == [0, 1, 0] and shown(log, "click") == [1, 0, 0]
    assert shown(log, "session_id") == [0, 0, 0] and shown(log, "position") == [0, 1, 0]
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "rec_inter.csv").write_text(REC.replace("duration_ms", "length"))
    with pytest.raises(ValueError, match=r"rec_inter.csv: column 'duration_ms' is missing"):
        load_data(bare, options=QUICK)

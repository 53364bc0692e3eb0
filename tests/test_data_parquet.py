from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedgym.data.batches import Preferences, SessionBatch
from feedgym.data.events import BEHAVIOURS, Catalog, Event, EventLog
from feedgym.data.parquet import read_batch, read_catalog, read_log, write_batch, write_catalog, write_log

NUM_ITEMS = 9


def random_log(seed: int, users: int, fields_: int = 2, text_ids: bool = False) -> EventLog:
    """A log of ``users`` users with up to three visits each, with ties in time."""
    rng = np.random.default_rng(seed)
    rows: list[tuple] = []
    sizes = []
    for _ in range(users):
        before = len(rows)
        now = float(rng.integers(-3, 3))
        rows.append((now, Event.PROFILE, -1, -1, -1))
        for visit in range(rng.integers(0, 4)):
            now += float(rng.integers(0, 2)) * rng.random()
            rows.append((now, Event.LOGIN, visit, -1, -1))
            for place in range(rng.integers(0, 4)):
                rows.append((now, Event.IMPRESSION, visit, place, rng.integers(NUM_ITEMS)))
                now += float(rng.integers(0, 2))
            rows.append((now, Event.LOGOUT, visit, -1, -1))
        sizes.append(len(rows) - before)
    time_s, event, session, position, item = (np.array(column) for column in zip(*rows, strict=True))
    shown = event == Event.IMPRESSION
    ids = rng.permutation(10 * users)[:users]
    return EventLog(
        user_ids_U=np.array([f"ü{i}" for i in ids]) if text_ids else ids.astype(np.int64),
        offsets_U1=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        profile_UF=rng.integers(0, 3, (users, fields_)),
        profile_names=tuple(f"field{f}" for f in range(fields_)),
        profile_sizes=(7,) * fields_,
        timestamp_s=time_s.astype(np.float64),
        event=event.astype(np.int8),
        session_id=session.astype(np.int32),
        position=position.astype(np.int16),
        item_id=item.astype(np.int32),
        watch_s=(rng.random(len(rows)) * shown).astype(np.float32),
        examined=shown & (rng.random(len(rows)) < 0.8),
        behaviours=(rng.random((len(rows), len(BEHAVIOURS))) < 0.3).astype(np.uint8) * shown[:, None],
        propensity=np.where(shown, rng.random(len(rows)), np.nan).astype(np.float32),
    )


def random_catalog(seed: int = 0, text_ids: bool = False) -> Catalog:
    rng = np.random.default_rng(seed)
    ids = np.arange(NUM_ITEMS) * 7
    return Catalog(
        raw_ids_I=ids.astype("<U2") if text_ids else ids,
        content_IE=rng.normal(size=(NUM_ITEMS, 5)).astype(np.float32),
        topic_I=rng.integers(-1, 4, NUM_ITEMS).astype(np.int32),
        duration_s_I=(rng.random(NUM_ITEMS) + 1).astype(np.float32),
        creator_I=rng.integers(0, 4, NUM_ITEMS),
        upload_s_I=rng.normal(size=NUM_ITEMS),
    )


def assert_same(a, b):
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype and x.shape == y.shape, field.name
            assert x.tobytes() == y.tobytes(), field.name
        else:
            assert x == y, field.name


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_log_round_trips_to_the_bit(tmp_path, seed, users, fields_, text_ids):
    log = random_log(seed, users, fields_, text_ids)
    write_log(log, tmp_path / "log.parquet")
    assert_same(log, read_log(tmp_path / "log.parquet", random_catalog()))


@pytest.mark.parametrize("text_ids", [False, True])
def test_catalog_round_trips_to_the_bit(tmp_path, text_ids):
    catalog = random_catalog(text_ids=text_ids)
    write_catalog(catalog, tmp_path / "new" / "catalog.parquet")
    assert_same(catalog, read_catalog(tmp_path / "new" / "catalog.parquet"))


def test_rows_in_another_order_are_sorted(tmp_path):
    log = random_log(3, 4)
    # Ties would leave the order open, so every event gets its own time.
    log = replace(log, timestamp_s=np.arange(log.num_events, dtype=np.float64))
    write_log(log, tmp_path / "log.parquet")
    table = pq.read_table(tmp_path / "log.parquet")
    # Users keep the order in which they first appear, hence reversal inside each user.
    order = np.concatenate([np.arange(log.offsets_U1[u], log.offsets_U1[u + 1])[::-1] for u in range(4)])
    pq.write_table(table.take(pa.array(order)), tmp_path / "reversed.parquet")
    assert_same(log, read_log(tmp_path / "reversed.parquet"))


def test_writing_replaces_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "log.parquet"
    write_log(random_log(1, 2), path)
    log = random_log(2, 3)
    write_log(log, path)
    assert_same(log, read_log(path))
    assert [p.name for p in tmp_path.iterdir()] == ["log.parquet"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "log.parquet"
    log = random_log(1, 2)
    write_log(log, path)
    without = replace(log, event=np.full_like(log.event, Event.LOGIN))
    with pytest.raises(ValueError, match="0 profile events"):
        write_log(without, path)
    assert_same(log, read_log(path))


def with_value(name, row, value):
    def change(table):
        column = table[name].to_pylist()
        column[row] = value
        return table.set_column(table.column_names.index(name), name, pa.array(column))

    return change


FIRST_ITEM = int(np.argmax(random_log(3, 4).event == Event.IMPRESSION))

BROKEN = [
    (lambda t: t.drop_columns(["watch_s"]), "column 'watch_s' is missing.*read_table"),
    (with_value("event", 2, "view"), "'event' has the unknown name 'view' .* row 2; use one of profile, login"),
    (with_value("item_id", FIRST_ITEM, NUM_ITEMS), f"outside the catalogue of 9 items .* first row {FIRST_ITEM}"),
    (with_value("item_id", FIRST_ITEM, -1), "'item_id' is negative for an impression"),
    (with_value("item_id", 0, 3), "'item_id' is set on no impression in 1 row.s., first row 0"),
    (with_value("watch_s", 4, float("nan")), "'watch_s' is NaN or infinite in 1 row.s., first row 4"),
    (with_value("watch_s", 4, -1.0), "'watch_s' is negative"),
    (
        lambda t: t.set_column(t.column_names.index("session_id"), "session_id", pa.array([2**31] * len(t))),
        "'session_id' is too large for 32 bits in .* first row 0",
    ),
    (with_value("watch_s", 4, None), "'watch_s' is empty in 1 row.s., first row 4"),
    (with_value("timestamp_s", 1, float("inf")), "'timestamp_s' is NaN or infinite"),
    (with_value("user_id", 5, None), "'user_id' is empty in 1 row.s., first row 5"),
    (with_value("profile_field1", 0, None), "'profile_field1' is empty on a profile event"),
    (with_value("profile_field1", 0, 7), "'profile_field1' is outside 0..6"),
    (with_value("event", 0, "login"), "'event' has 0 profile events for user"),
    (
        lambda t: t.set_column(t.column_names.index("like"), "like", pa.array(np.arange(len(t)) % 3)),
        "'like' is neither 0 nor 1 in .* first row 2",
    ),
    (
        lambda t: t.set_column(t.column_names.index("session_id"), "session_id", pa.array(["a"] * len(t))),
        "'session_id' is string and must be integer",
    ),
    (lambda t: t.slice(0, 0), "has no rows"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_broken_log_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "log.parquet"
    write_log(random_log(3, 4), path)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(ValueError, match=message) as error:
        read_log(path, random_catalog())
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_files_that_are_no_parquet_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_log(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("user_id,item_id\n1,2\n")
    with pytest.raises(ValueError, match=r"text.parquet: not a whole parquet file"):
        read_log(tmp_path / "text.parquet")


def test_damaged_pages_are_refused_in_one_line_that_names_the_file(tmp_path):
    path = tmp_path / "catalog.parquet"
    write_catalog(random_catalog(text_ids=True), path)
    whole, found = path.read_bytes(), set()
    for place in range(4, len(whole) - 8, 7):  # thrift headers, zstd frames and the footer
        path.write_bytes(whole[:place] + bytes(12) + whole[place + 12 :])
        try:
            read_catalog(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            found |= {word for word in ("thrift", "ZSTD") if word in str(error)}
    assert found == {"thrift", "ZSTD"}


def test_a_catalog_with_nan_content_is_refused(tmp_path):
    path = tmp_path / "catalog.parquet"
    catalog = random_catalog()
    write_catalog(catalog, path)
    catalog.content_IE[4, 1] = np.nan
    write_catalog(catalog, path)
    with pytest.raises(ValueError, match=r"'content' has NaN or infinite values in 1 row.s., first row 4"):
        read_catalog(path)


def test_batches_round_trip(tmp_path):
    sessions = SessionBatch(item_ids_USK=torch.arange(12).view(2, 3, 2), logp_US=torch.full((2, 3), float("nan")))
    write_batch(sessions, tmp_path / "sessions.safetensors")
    back = read_batch(SessionBatch, tmp_path / "sessions.safetensors")
    assert torch.equal(back.item_ids_USK, sessions.item_ids_USK) and back.item_ids_USK.dtype == torch.int64
    assert back.logp_US.isnan().all() and back.logp_legal_US is None


def test_preferences_that_share_memory_are_written(tmp_path):
    pool = torch.arange(24).view(4, 6)
    pairs = Preferences(
        user_idx_P=torch.arange(4),
        chosen_PK=pool[:, :2],
        rejected_PK=pool[:, 2:4],
        logged_PK=pool[:, 4:],
        score_chosen_P=torch.ones(4),
        score_rejected_P=torch.zeros(4),
    )
    write_batch(pairs, tmp_path / "pairs.safetensors")
    back = read_batch(Preferences, tmp_path / "pairs.safetensors")
    assert torch.equal(back.rejected_PK, pool[:, 2:4])
    with pytest.raises(ValueError, match=r"SessionBatch needs .'item_ids_USK', 'logp_US'."):
        read_batch(SessionBatch, tmp_path / "pairs.safetensors")


def test_what_is_optional_round_trips_and_old_files_are_read_without_it(tmp_path):
    plain = random_log(1, 5)
    log = replace(plain, has_time=False, extra={"tab": np.arange(plain.num_events, dtype=np.float32)})
    log.extra["tab"][3] = np.nan
    texts = np.empty(NUM_ITEMS, dtype=object)
    texts[:] = ["ü " * n for n in range(NUM_ITEMS)]
    catalog = replace(random_catalog(), text_I=texts, content_from="words")
    write_log(log, tmp_path / "events.parquet")
    write_catalog(catalog, tmp_path / "catalog.parquet")
    read = read_log(tmp_path / "events.parquet")
    assert not read.has_time and read.extra["tab"].tobytes() == log.extra["tab"].tobytes()
    found = read_catalog(tmp_path / "catalog.parquet")
    assert found.text_I.tolist() == texts.tolist() and found.content_from == "words"
    # What older versions wrote has neither the columns nor the metadata.
    old = pq.read_table(tmp_path / "events.parquet").drop(["extra_tab"])
    sizes = {b"feedgym_profile_sizes": old.schema.metadata[b"feedgym_profile_sizes"]}
    pq.write_table(old.replace_schema_metadata(sizes), tmp_path / "events.parquet")
    pq.write_table(pq.read_table(tmp_path / "catalog.parquet").drop(["text"]).replace_schema_metadata(None),
                   tmp_path / "catalog.parquet")  # fmt: skip
    assert_same(read_log(tmp_path / "events.parquet"), plain)
    assert_same(read_catalog(tmp_path / "catalog.parquet"), random_catalog())


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("events", "extra_tab", "'extra_tab' is string and must be number"),
        ("catalog", "text", "'text' is .* be string"),
    ],
)
def test_optional_columns_of_the_wrong_kind_are_refused(tmp_path, name, column, message):
    write_log(random_log(1, 3), tmp_path / "events.parquet")
    write_catalog(random_catalog(), tmp_path / "catalog.parquet")
    path = tmp_path / f"{name}.parquet"
    table = pq.read_table(path)
    values = ["x"] * table.num_rows if name == "events" else [1] * table.num_rows
    pq.write_table(table.append_column(column, pa.array(values)), path)
    with pytest.raises(ValueError, match=message):
        (read_log if name == "events" else read_catalog)(path)

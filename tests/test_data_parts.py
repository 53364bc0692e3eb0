"""A log in parts is the same log: written while it is simulated, read whole or for some users only."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_parquet import assert_same, random_catalog, random_log

from feedgym import api
from feedgym.cli import main
from feedgym.data import parts
from feedgym.data.events import DAY_S
from feedgym.data.parquet import write_catalog, write_log
from feedgym.data.parts import begin_parts, end_parts, load_log, part_of, save_log, write_part
from feedgym.data.readers import find_data, load_data
from feedgym.data.sources import ReadOptions
from feedgym.data.splits import take_users

SIZES = {"num_users": 60, "visits": 3, "session_length": 4, "seed": 2}


def by_id(log):
    return take_users(log, np.argsort(log.user_ids_U, kind="stable"))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_USERS", 25)


@pytest.fixture
def always_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_USERS", 2)
    monkeypatch.setattr(parts, "ONE_FILE_ROWS", 0)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 7), st.booleans())
def test_a_log_saved_in_parts_round_trips_to_the_bit(always_parts, tmp_path_factory, seed, users, text_ids):
    folder = tmp_path_factory.mktemp("log")
    log = random_log(seed, users, text_ids=text_ids)
    rng = np.random.default_rng(seed)
    stretch = np.float64(rng.choice([1.0, DAY_S / 3]))  # within a day, or over many, some of them before day 0
    log = replace(log, timestamp_s=log.timestamp_s * stretch, extra={"tab": rng.random(log.num_events, np.float32)})
    save_log(log, folder)
    assert not (folder / "events.parquet").exists()
    want, found = by_id(log), load_log(folder, random_catalog())
    assert want.extra["tab"].tobytes() == found.extra["tab"].tobytes()
    assert_same(replace(want, extra={}), replace(found, extra={}))


def test_a_simulated_log_in_parts_equals_the_one_in_memory(small_parts, tmp_path):
    counts = api.simulate_parts(out=tmp_path / "parts", **SIZES)
    log, _ = api.simulate(out=tmp_path / "whole", **SIZES)
    assert len(list((tmp_path / "parts/events").glob("users=*"))) == 3
    assert all(day.stat().st_size for day in (tmp_path / "parts/events").glob("users=*/day=*.parquet"))
    for options in (ReadOptions(), ReadOptions(users=0.3), ReadOptions(users=0.3, seed=5)):
        whole, items = load_data(tmp_path / "whole", options=options)
        read, same_items = load_data(tmp_path / "parts", options=options)
        assert_same(whole, read)
        assert_same(items, same_items)
        assert options.users == 1 or 0 < read.num_users < 60
    told = api.counts_of(log)
    assert counts.pop("behaviours").tolist() == told.pop("behaviours").tolist() and counts == told


def test_a_share_of_the_users_opens_only_their_parts(small_parts, tmp_path):
    api.simulate_parts(out=tmp_path, **SIZES)
    for file in (tmp_path / "events" / "users=00002").iterdir():
        file.write_bytes(b"not parquet")
    assert load_data(tmp_path, options=ReadOptions(users=0.5))[0].num_users > 0
    with pytest.raises(ValueError, match=r"users=00002: not whole parquet files"):
        load_data(tmp_path, options=ReadOptions(users=0.5, seed=1))
    with pytest.raises(ValueError, match="raise the share"):
        load_data(tmp_path, options=ReadOptions(users=1e-9))


def test_only_columns_of_a_log_are_read(always_parts, tmp_path):
    log = random_log(4, 6)
    save_log(log, tmp_path)
    for path in (tmp_path / "events").glob("users=*/day=*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("embedding", pa.array(["x"] * len(table))), path)
    assert_same(by_id(log), load_log(tmp_path))


def test_the_command_writes_parts_and_experiments_take_them(small_parts, tmp_path, capsys):
    main(["simulate", "--out", str(tmp_path / "log"), "--users", "40", "--visits", "2", "--seed", "1"])
    assert str(tmp_path / "log" / "events") in capsys.readouterr().out
    main(["data", "inspect", str(tmp_path / "log"), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["users"] == 40 and any("users=" in name for name in report["files"])
    assert find_data(tmp_path / "log").name == "feedgym's own log"


def test_users_fall_into_parts_by_the_hash_that_chooses_a_share():
    ids = np.arange(2000)
    chosen = ReadOptions(users=0.25).chosen(ids)
    assert (chosen == (part_of(ids, 4) == 0)).all() and (part_of(ids, 8)[chosen] < 2).all()


def test_a_folder_with_a_log_is_not_written_over(always_parts, tmp_path):
    log = random_log(1, 3)
    save_log(log, tmp_path / "parts")
    write_log(log, tmp_path / "one" / "events.parquet")
    for name in ("parts", "one"):
        with pytest.raises(ValueError, match="holds a log already"):
            begin_parts(tmp_path / name)


def test_a_log_that_was_not_finished_is_not_read(small_parts, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "end_parts", lambda *_: None)
    api.simulate_parts(out=tmp_path, **SIZES)
    with pytest.raises(ValueError, match="holds no files that feedgym knows"):
        load_data(tmp_path)
    with pytest.raises(ValueError, match="or part of one; remove it"):
        api.simulate_parts(out=tmp_path, **SIZES)


def test_broken_parts_are_refused_in_one_line(always_parts, tmp_path):
    save_log(random_log(1, 3), tmp_path)
    write_catalog(random_catalog(), tmp_path / "catalog.parquet")
    (tmp_path / "events" / "parts.json").write_text("{}")
    with pytest.raises(ValueError, match="does not give the number of parts"):
        load_data(tmp_path)
    (tmp_path / "events" / "parts.json").unlink()
    with pytest.raises(ValueError, match="holds no files that feedgym knows"):
        load_data(tmp_path)


def test_a_log_too_large_for_the_disk_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"users=\d+.* would take"):
        api.simulate_parts(out=tmp_path / "log", num_users=10**10, visits=50)
    assert not (tmp_path / "log").exists()


def test_a_part_is_replaced_as_a_whole_file(tmp_path):
    log = random_log(2, 3)
    begin_parts(tmp_path)
    write_part(log, tmp_path, 0)
    write_part(log, tmp_path, 0)
    end_parts(tmp_path, 1)
    assert_same(by_id(log), load_log(tmp_path))

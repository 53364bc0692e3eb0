"""Stages kept once for many runs: shared by what decides them, made once, and never half."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from toy_stages import JSON, Config, plan_of

from feedgym.cli import main
from feedgym.data.whole import product_of, read_mark, read_sealed, write_sealed
from feedgym.experiments.align.agents import agents_of, key_of
from feedgym.experiments.logs import simulator_key
from feedgym.experiments.run import Plan, Run, read_about, read_product

PASSING = ("peak_memory_mb", "git_revision", "stages", "cost")
"""What summary.json says of how a run went, and not of what it found."""


@pytest.fixture
def open_run(tmp_path):
    """Opens a run by its name, with one store for all."""
    runs = {}

    def opened(name, config=None, store="store", **options):
        if name in runs:
            runs.pop(name).close()
        config = config or Config()
        place = None if store is None else tmp_path / store
        runs[name] = Run(tmp_path / name, config, plan_of(config), tracker="none", store=place, **options)
        return runs[name]

    yield opened
    for run in runs.values():
        run.close()


def all_stages(run, calls):
    def make(name):
        def made(work):
            calls.append(name)
            return {"name": name, "call": len(calls)}

        return made

    return {name: run.stage(name, make(name), JSON).value for name in run.plan}


def never(work):
    raise AssertionError("is made though it is there")


def stored(tmp_path, name):
    """The only product of a stage in the store."""
    (found,) = (path for path in (tmp_path / "store").glob(f"{name}-*") if path.is_dir())
    return found


def test_runs_with_other_tails_share_the_head(open_run, tmp_path, capsys):
    calls = []
    first = all_stages(open_run("a"), calls)
    capsys.readouterr()
    second = all_stages(open_run("b", Config(rounds=2)), calls)
    assert calls == ["log", "base", "aligned", "cost", "aligned", "cost"]
    assert {name for name in first if first[name] == second[name]} == {"log", "base"}
    said = capsys.readouterr().err
    assert "from the store log" in said and "from the store base" in said and "from the store aligned" not in said
    assert product_of(tmp_path / "a/stages/base") == product_of(tmp_path / "b/stages/base") == stored(tmp_path, "base")
    assert read_product(tmp_path / "b/stages/base", JSON.load) == first["base"]
    assert read_mark(tmp_path / "b/stages/base")["key"] == plan_of(Config())["base"]
    assert [path.name for path in (tmp_path / "b/stages/base").iterdir()] == ["stored.json"]


def test_what_no_key_decides_stays_in_the_run(open_run, tmp_path, capsys):
    all_stages(open_run("a"), [])
    assert "Kept in the run's folder and not in the store: cost. It is measured here." in capsys.readouterr().err
    assert (tmp_path / "a/stages/cost/stage.json").exists()
    calls = []
    all_stages(open_run("b", Config(simulator="my_lab.users:Teen")), calls)
    said = " ".join(capsys.readouterr().err.split())
    assert "log, base, aligned. my_lab.users:Teen is code of your own." in said
    assert calls == ["log", "base", "aligned", "cost"] and not list((tmp_path / "b").rglob("stored.json"))


def test_parts_of_the_same_fields_and_other_kinds_share_nothing():
    plans = []
    for name in ("Wide", "Deep"):
        plan = Plan()
        plan.stage("base", dataclass(type(name, (), {"__annotations__": {"size": int}, "size": 3}))())
        plans.append(plan)
    assert plans[0]["base"] == plans[1]["base"] and plans[0].shared["base"] != plans[1].shared["base"]


def test_a_learned_simulator_with_a_ranker_of_ones_own_is_code_of_ones_own(tmp_path):
    (tmp_path / "simulator.json").write_text(json.dumps({"ranker": "feedgym.agents.genrank:GenRank"}))
    plan = Plan()
    plan.stage("log", simulator_key(str(tmp_path)))
    (tmp_path / "simulator.json").write_text(json.dumps({"ranker": "my_lab.rankers:Mine"}))
    plan.stage("other", simulator_key(str(tmp_path)))
    assert set(plan.own) == {"other"}


def test_a_run_is_resumed_without_saying_its_store_again(open_run, tmp_path):
    calls = []
    before = all_stages(open_run("a"), calls)
    assert all_stages(open_run("a", store=None, resume=True), calls) == before and len(calls) == 4
    again = all_stages(open_run("a", Config(rounds=5), store=None, resume=True), calls)
    assert calls[4:] == ["aligned"] and again["base"] == before["base"]
    assert product_of(tmp_path / "a/stages/aligned").parent == tmp_path / "store"
    assert all_stages(open_run("b"), calls)["aligned"] == before["aligned"], "the one before is kept for others"


def test_a_store_that_is_gone_or_moved_is_told_in_a_line(open_run, tmp_path):
    before = all_stages(open_run("a"), [])
    shutil.move(tmp_path / "store", tmp_path / "moved")
    for reading in (
        lambda: open_run("a", store=None, resume=True),
        lambda: read_product(tmp_path / "a/stages/base", JSON.load),
    ):
        with pytest.raises(
            ValueError, match=r"store \S+/store of \S+/a is gone; .* --resume \S+/a --store DIR"
        ) as told:
            reading()
        assert "\n" not in str(told.value)
    assert not (tmp_path / "store").exists()
    assert all_stages(open_run("a", store="moved", resume=True), []) == before
    assert read_product(tmp_path / "a/stages/base", JSON.load) == before["base"]


def test_a_run_that_keeps_its_stages_itself_goes_on_so(open_run):
    all_stages(open_run("a", store=None), [])
    with pytest.raises(ValueError, match="keeps its stages itself; --store is for a new run"):
        open_run("a", resume=True)


def test_a_damaged_product_is_refused_and_the_remedy_mends_it_for_all(open_run, tmp_path):
    before = all_stages(open_run("a"), [])
    (stored(tmp_path, "base") / "value.json").write_text("{}")
    remedy = rf"value.json is damaged; make it again: feedgym stage base --run {tmp_path}/b --redo"
    with pytest.raises(ValueError, match=remedy) as told:
        all_stages(open_run("b"), [])
    assert "\n" not in str(told.value)
    run = open_run("b", resume=True, redo="base")
    run.stage("log", never, JSON)
    assert run.stage("base", lambda work: before["base"], JSON).value == before["base"]
    assert all_stages(open_run("a", resume=True), []) == before


def test_a_whole_product_is_not_changed_under_others(open_run, tmp_path):
    before = all_stages(open_run("a"), [])
    with pytest.raises(ValueError, match=rf"base is complete in the store, .* remove {stored(tmp_path, 'base')}"):
        open_run("b", redo="base").stage("base", never, JSON)
    assert all_stages(open_run("c", Config(rounds=4), redo="cost"), [])["base"] == before["base"]


RECORDS = {
    "leads out": ({"folder": "../secret"}, r"names '../secret', which is not a stage of a store"),
    "an absolute path": ({"folder": "/etc"}, r"names '/etc', which is not a stage of a store"),
    "no name": ({"folder": ["base"]}, r"which is not a stage of a store"),
    "a link": ({"folder": "link"}, r"link is a link"),
}


@pytest.mark.parametrize(("record", "says"), RECORDS.values(), ids=RECORDS)
def test_a_record_does_not_lead_out_of_the_store(open_run, tmp_path, record, says):
    before = all_stages(open_run("a"), [])
    shutil.copytree(stored(tmp_path, "base"), tmp_path / "secret")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    write_sealed(tmp_path / "a/stages/base/stored.json", record)
    with pytest.raises(ValueError, match=says):
        read_product(tmp_path / "a/stages/base", JSON.load)
    assert all_stages(open_run("a", resume=True), []) == before, "which mends the record"
    (tmp_path / "a/stages/base/stored.json").write_text("{}")
    with pytest.raises(ValueError, match=r"damaged .*; repair it: feedgym demo --resume \S+/a"):
        read_product(tmp_path / "a/stages/base", JSON.load)


def test_links_in_a_store_are_not_followed_to_be_written_to(open_run, tmp_path):
    run = open_run("a")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "letter").write_text("dear")
    place = run._place("log")
    place.symlink_to(victim)
    with pytest.raises(ValueError, match="is a link, and products lie in the store itself"):
        run.stage("log", never, JSON)
    place.unlink()
    place.with_name(f"{place.name}.lock").symlink_to(victim / "letter")
    with pytest.raises(OSError, match="symbolic link"):
        run.stage("log", never, JSON)
    assert (victim / "letter").read_text() == "dear"


def test_a_product_moved_to_another_stages_place_is_not_taken(open_run, tmp_path):
    all_stages(open_run("a"), [])
    run = open_run("b", Config(users=7))
    shutil.copytree(stored(tmp_path, "log"), run._place("log"))
    assert run.stage("log", lambda work: "its own", JSON).value == "its own"


# ---------------------------------------------------------------- several processes

MAKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from toy_stages import JSON, Config, plan_of
from feedgym.experiments.run import Run

top, name = Path(sys.argv[2]), sys.argv[3]
def make(work):
    with open(top / "calls", "a") as calls:
        calls.write(name)
    found = (work / "checkpoint").read_text() if (work / "checkpoint").exists() else "nothing"
    (work / "checkpoint").write_text(f"half by {name}")
    print("making", flush=True)
    while not (top / "go").exists():
        time.sleep(0.05)
    return [name, found]
run = Run(top / name, Config(), plan_of(Config()), tracker="none", store=top / "store")
print(run.stage("log", make, JSON).value, flush=True)
run.close()
"""


def maker(tmp_path, name):
    """A process that makes the log of a run, once there is a file "go", or takes it."""
    command = [sys.executable, "-c", MAKER, Path(__file__).parent, tmp_path, name]
    wide = os.environ | {"COLUMNS": "1000"}  # messages are on one line
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=wide)


def test_two_processes_at_once_make_a_product_once(tmp_path):
    first = maker(tmp_path, "a")
    assert first.stdout.readline() == "making\n"
    second = maker(tmp_path, "b")
    waits = next(line for line in iter(second.stderr.readline, "") if "Waiting" in line)
    assert f"in use by process {first.pid} on " in waits and "it makes a stage that is needed here too" in waits
    (tmp_path / "go").touch()
    made, (taken, said) = first.communicate()[0], second.communicate()
    assert made == taken == "['a', 'nothing']\n" and (tmp_path / "calls").read_text() == "a"
    assert "from the store log" in said


def test_a_killed_maker_leaves_its_work_to_the_next_and_no_product(tmp_path):
    first = maker(tmp_path, "a")
    assert first.stdout.readline() == "making\n"
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    (tmp_path / "go").touch()
    second = maker(tmp_path, "b")
    assert second.communicate()[0] == "making\n['b', 'half by a']\n"
    assert not (stored(tmp_path, "log") / "work").exists()
    assert maker(tmp_path, "c").communicate()[0] == "['b', 'half by a']\n"


# ---------------------------------------------------------------- the command line


def feedgym(*arguments):
    main([str(argument) for argument in arguments])


def figures(folder):
    found = json.loads((folder / "summary.json").read_text())
    for metrics in found["agents"].values():
        metrics.pop("cost_ms", None)  # measured
    return {name: value for name, value in found.items() if name not in PASSING}


def contents(stages):
    """The hashes of all products but the tokenizer, whose file has its metadata in any order, and what was timed."""
    return {stage.name: read_mark(stage)["files"] for stage in stages.iterdir() if stage.name not in OF_THE_MOMENT}


OF_THE_MOMENT = ("tokenizer", "cost")


def test_the_command_line_shares_all_before_the_rounds_and_changes_no_figure(tmp_path, capfd):
    preset = ("onerec-ipa-smoke", "--ray", "off", "--judge.users", 12)
    one, two, alone, store = (tmp_path / name for name in ("one", "two", "alone", "store"))
    feedgym("run", *preset, "--rounds.num", 1, "--run", one, "--store", store)
    assert "from the store" not in capfd.readouterr().err
    feedgym("run", *preset, "--rounds.num", 2, "--run", two, "--store", store)
    said = " ".join(capfd.readouterr().err.split())
    taken = {name for name in read_stages(two) if f"from the store {name} " in said}
    assert taken == set(read_stages(one)) - {"chosen", "judged", "cost", "pool-aligned"}
    feedgym("run", *preset, "--rounds.num", 2, "--run", alone)
    assert figures(two) == figures(alone) and contents(two / "stages") == contents(alone / "stages")
    assert "store" not in read_about(alone) and not list(store.rglob("work"))
    revision = json.loads((two / "summary.json").read_text())["git_revision"].encode()
    for file in (path for path in store.glob("*-*/**/*") if path.is_file() and path.name != "stage.json"):
        assert str(tmp_path).encode() not in file.read_bytes() and revision not in file.read_bytes()

    assert set(agents_of(two).agents) == {"base", "aligned"} and key_of(two)[1]["base"] == key_of(one)[1]["base"]
    feedgym("watch", two, "--visits", 1, "--delay", 0)
    feedgym("evaluate", two, "--users", 10)
    feedgym("evaluate", alone, "--users", 10)
    assert figures(two) == figures(alone)
    feedgym("data", "inspect", two / "stages" / "log")
    feedgym("stage", "log", "--run", tmp_path / "again", "--preset", "onerec-ipa-smoke", "--store", store)
    assert read_sealed(tmp_path / "again/stages/log/stored.json") == read_sealed(two / "stages/log/stored.json")
    capfd.readouterr()
    with pytest.raises(SystemExit):
        feedgym("stage", "base", "--run", two, "--redo")
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("feedgym:"))
    assert "is complete in the store" in line


def read_stages(folder):
    return json.loads((folder / "summary.json").read_text())["stages"]

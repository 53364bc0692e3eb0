import json
import subprocess
import sys
import time
from dataclasses import dataclass, make_dataclass
from typing import Any

import pytest

from feedgym.experiments.run import Plan, Run, StageReached, json_of

JSON = json_of(Any)


@dataclass(frozen=True)
class Config:
    seed: int = 0
    users: int = 3


def plan_of(config):
    plan = Plan()
    plan.leave_out("seed", because="a test's")
    plan.stage("log", config.users)
    plan.stage("base", parents=("log",))
    plan.stage("reward")
    return plan


@pytest.fixture
def open_run(tmp_path):
    runs = []

    def opened(config=None, **options):
        if runs:
            runs[-1].close()
        config = config or Config()
        runs.append(Run(tmp_path / "run", config, plan_of(config), tracker="none", **options))
        return runs[-1]

    yield opened
    for run in runs:
        run.close()


def counted(calls, value):
    def make(work):
        assert work.is_dir()
        calls.append(value)
        return value

    return make


def killed(work):
    (work / "checkpoint").write_text("half")
    raise KeyboardInterrupt


def refused(work):
    raise ValueError("users=500 are too many.")


def test_a_finished_stage_is_read_back_not_made_again(open_run):
    calls = []
    first = open_run().stage("log", counted(calls, [1, 2]), JSON)
    again = open_run(resume=True).stage("log", counted(calls, "never"), JSON)
    assert (first.value, again.value, calls) == ([1, 2], [1, 2], [[1, 2]])


def test_a_changed_configuration_or_parent_makes_the_stage_again(open_run):
    calls = []
    run = open_run()
    run.stage("log", counted(calls, 1), JSON)
    run.stage("base", counted(calls, 2), JSON)
    run = open_run(Config(users=4), resume=True)
    run.stage("log", counted(calls, 3), JSON)
    assert run.stage("base", counted(calls, 4), JSON).value == 4
    assert calls == [1, 2, 3, 4]


def test_a_killed_stage_finds_its_checkpoints_again_but_a_changed_one_does_not(open_run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        open_run().stage("log", killed, JSON)
    found = open_run(resume=True).stage("log", lambda work: (work / "checkpoint").read_text(), JSON)
    assert found.value == "half"
    assert not (tmp_path / "run/stages/log/work").exists()

    with pytest.raises(KeyboardInterrupt):
        open_run(resume=True, redo="log").stage("log", killed, JSON)
    fresh = open_run(Config(users=4), resume=True).stage("log", lambda work: (work / "checkpoint").exists(), JSON)
    assert fresh.value is False


def test_a_change_says_what_it_makes_again_before_anything_is_made(open_run, capsys):
    run = open_run()
    for name in ("log", "base", "reward"):
        run.stage(name, counted([], name), JSON)
    open_run(Config(users=4), resume=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "users 3 -> 4" in said and "Made again: log, base. Kept: reward." in said
    open_run(Config(seed=1), resume=True)
    assert "seed 0 -> 1 Made again: nothing. Kept: log, base, reward." in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("end", [killed, refused])
def test_a_change_that_is_refused_or_given_up_leaves_configuration_and_products(open_run, tmp_path, end):
    open_run().stage("log", counted([], 1), JSON)
    before = (tmp_path / "run/config.json").read_text()
    with pytest.raises((ValueError, KeyboardInterrupt)):
        open_run(Config(users=500), resume=True).stage("log", end, JSON)
    assert (tmp_path / "run/config.json").read_text() == before
    assert open_run(resume=True).stage("log", counted([], "never"), JSON).value == 1


def test_an_accepted_change_keeps_the_configuration_before_it(open_run, tmp_path):
    open_run().stage("log", counted([], 1), JSON)
    for users in (4, 5):
        open_run(Config(users=users), resume=True).stage("log", counted([], users), JSON)
    kept = [json.loads((tmp_path / "run" / name).read_text())["config"]["users"]
            for name in ("config-1.json", "config-2.json", "config.json")]  # fmt: skip
    assert kept == [3, 4, 5]


def test_stopping_after_a_stage_and_doing_one_again(open_run):
    calls = []
    with pytest.raises(StageReached):
        open_run(stop_after="log").stage("log", counted(calls, 1), JSON)
    open_run(resume=True, redo="log").stage("log", counted(calls, 2), JSON)
    assert calls == [1, 2]
    with pytest.raises(ValueError, match=r"no stage 'dance'; its stages are log, base, reward"):
        open_run(resume=True, stop_after="dance")


def test_a_folder_with_a_run_is_not_overwritten_without_resume(open_run):
    open_run()
    with pytest.raises(ValueError, match="--resume"):
        open_run()


def test_a_run_of_another_kind_is_refused(open_run, tmp_path):
    open_run().close()
    other = make_dataclass("Other", [("seed", int, 0)], frozen=True)()
    with pytest.raises(ValueError, match="is a run of Config, not of Other"):
        Run(tmp_path / "run", other, Plan(), resume=True, tracker="none")


DAMAGES = {
    "a bit of the product": ("value.json", lambda data: data.replace(b"12", b"13"), "value.json is damaged"),
    "no product": ("value.json", None, "value.json is missing"),
    "another file": ("model.bin", lambda data: b"x", "model.bin was added"),
    "a bit of the mark": ("stage.json", lambda data: data.replace(b'"key": "', b'"key": "0'), "stage.json is damaged"),
    "another mark": ("stage.json", lambda data: b"[1, 2]", "stage.json is damaged"),
}


@pytest.mark.parametrize(("name", "damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_product_is_refused_with_the_remedy_which_mends_it(open_run, tmp_path, name, damage, says):
    open_run().stage("log", counted([], [12]), JSON)
    file = tmp_path / "run/stages/log" / name
    file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes() if file.exists() else b""))
    with pytest.raises(ValueError, match=rf"Stage log cannot be read: .*{says}.*feedgym stage log --run \S+ --redo"):
        open_run(resume=True).stage("log", counted([], "never"), JSON)
    assert open_run(resume=True, redo="log").stage("log", counted([], [12]), JSON).value == [12]
    assert open_run(resume=True).stage("log", counted([], "never"), JSON).value == [12]


def test_json_of_another_type_is_refused(open_run):
    open_run().stage("log", counted([], {"a": "text"}), JSON)
    with pytest.raises(ValueError, match=r"Stage log cannot be read: .*--redo"):
        open_run(resume=True).stage("log", counted([], "never"), json_of(dict[str, float]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace('"users": 3', '"users": 4'), "is damaged or was changed by hand; restore it"),
        (lambda text: text[:40], "is damaged"),
        (lambda text: "[]", "is damaged"),
        (lambda text: json.dumps({"kind": "Config", "config": {"seed": 0}}), "is of version 1 of run folders"),
    ],
)
def test_a_damaged_or_older_configuration_is_refused_and_stays(open_run, tmp_path, change, says):
    open_run().close()
    path = tmp_path / "run/config.json"
    path.write_text(changed := change(path.read_text()))
    with pytest.raises(ValueError, match=says):
        open_run(resume=True)
    assert path.read_text() == changed


def test_metrics_go_to_a_line_each(open_run, tmp_path):
    open_run().log({"reward": 1.5}, step=3)
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["reward"] == 1.5
    assert json.loads(line)["step"] == 3


def test_wandb_records_offline_inside_the_run_folder_without_an_account(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    run = Run(tmp_path / "run", Config(), plan_of(Config()), tracker="wandb")
    run.log({"reward": 1.5}, step=0)
    (tmp_path / "run/report.html").write_text("<p>")
    run.stage("base", lambda work: 1, JSON)
    samples = {"columns": ["item", "watched"], "rows": [[1, True]]}
    rounds = [{"true_mean": 1.0, "model_mean": 1.5}, {"true_mean": 2.0, "model_mean": 3.0}]
    summary = {"agents": {"base": {"true_reward": {"mean": 2.5}}}, "samples": samples, "rounds": rounds}
    run.publish(summary, {"base": "base"})
    run.close()
    (record,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    give_up = time.monotonic() + 10
    while b"reward" not in record.read_bytes() and time.monotonic() < give_up:
        time.sleep(0.1)  # W&B's own process writes the end of the file after finish() has returned
    assert b"reward" in record.read_bytes()


FORKED = """
import os, time
from feedgym.experiments.run import PeakMemory
held = bytearray(os.urandom(2**20)) * 200
child = os.fork()
if not child:
    {child}
    time.sleep(2)
    os._exit(0)
peak = PeakMemory(0.1)
os.waitpid(child, 0)
peak.stop()
print(peak.peak_mb)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how many processes share a page")
def test_memory_that_processes_share_counts_once():
    def peak_of(child):
        return float(subprocess.check_output([sys.executable, "-c", FORKED.format(child=child)], text=True))

    shared, written = peak_of("pass"), peak_of("held[::512] = bytes(len(held[::512]))")
    assert 200 < shared < 350
    assert written - shared == pytest.approx(200, abs=30)

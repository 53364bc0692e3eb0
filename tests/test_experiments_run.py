import json
import time
from dataclasses import dataclass

import pytest

from feedgym.experiments.run import JSON, Run, StageReached


@dataclass(frozen=True)
class Config:
    seed: int = 0


@pytest.fixture
def open_run(tmp_path):
    runs = []

    def opened(**options):
        runs.append(Run(tmp_path / "run", Config(), tracker=False, **options))
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


def test_a_finished_stage_is_read_back_not_made_again(open_run):
    calls = []
    first = open_run().stage("log", counted(calls, [1, 2]), JSON, config={"users": 3})
    again = open_run(resume=True).stage("log", counted(calls, "never"), JSON, config={"users": 3})
    assert (first.value, again.value, calls) == ([1, 2], [1, 2], [[1, 2]])
    assert again.key == first.key


def test_a_changed_configuration_or_parent_makes_the_stage_again(open_run):
    run, calls = open_run(), []
    parent = run.stage("log", counted(calls, 1), JSON, config=1)
    run.stage("base", counted(calls, 2), JSON, parents=[parent])
    changed = run.stage("log", counted(calls, 3), JSON, config=2)
    assert run.stage("base", counted(calls, 4), JSON, parents=[changed]).value == 4
    assert calls == [1, 2, 3, 4]


def test_a_killed_stage_finds_its_checkpoints_again_but_a_changed_one_does_not(open_run, tmp_path):
    def killed(work):
        (work / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_run().stage("base", killed, JSON, config=1)
    found = open_run(resume=True).stage("base", lambda work: (work / "checkpoint").read_text(), JSON, config=1)
    assert found.value == "half"
    assert not (tmp_path / "run/stages/base/work").exists()

    with pytest.raises(KeyboardInterrupt):
        open_run(resume=True).stage("reward", killed, JSON, config=1)
    fresh = open_run(resume=True).stage("reward", lambda work: (work / "checkpoint").exists(), JSON, config=2)
    assert fresh.value is False


def test_stopping_after_a_stage_and_doing_one_again(open_run):
    calls = []
    with pytest.raises(StageReached):
        open_run(stop_after="log").stage("log", counted(calls, 1), JSON)
    open_run(resume=True, redo="log").stage("log", counted(calls, 2), JSON)
    assert calls == [1, 2]


def test_a_folder_with_a_run_is_not_overwritten_without_resume(open_run):
    open_run()
    with pytest.raises(ValueError, match="--resume"):
        open_run()


def test_metrics_go_to_a_line_each(open_run, tmp_path):
    open_run().log({"reward": 1.5}, step=3)
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["reward"] == 1.5
    assert json.loads(line)["step"] == 3


def test_wandb_records_offline_inside_the_run_folder_without_an_account(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    run = Run(tmp_path / "run", Config(), tracker=True)
    run.log({"reward": 1.5}, step=0)
    (tmp_path / "run/report.html").write_text("<p>")
    run.stage("base", lambda work: 1, JSON)
    samples = {"columns": ["item", "watched"], "rows": [[1, True]]}
    run.publish({"agents": {"base": {"true_reward": {"mean": 2.5}}}, "samples": samples}, {"base": "base"})
    run.close()
    (record,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    give_up = time.monotonic() + 10
    while b"reward" not in record.read_bytes() and time.monotonic() < give_up:
        time.sleep(0.1)  # W&B's own process writes the end of the file after finish() has returned
    assert b"reward" in record.read_bytes()

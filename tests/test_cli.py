"""The real command line: a whole small experiment, runs that were killed, and input that must be refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feedgym.cli import COMMANDS, MISTAKE, main
from feedgym.experiments.align.experiment import plan
from feedgym.experiments.align.presets import smoke
from feedgym.experiments.presets import PRESETS

PROGRAM = Path(sys.executable).parent / "feedgym"
AGENTS = {"random", "popular", "base", "aligned", "base_searched", "aligned_searched", "oracle"}


LAB = """
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig

def few():
    return ShortVideo(ShortVideoConfig(num_items=120))
"""


def feedgym(*arguments):
    """Run the program to its end, with the record that W&B keeps; its output."""
    environment = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def inside(*arguments):
    """The same in this process, which has the libraries imported already."""
    main(list(map(str, arguments)))


def refused(capsys, *arguments):
    """Run the program on a mistake; the line it says."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    assert stop.value.code == MISTAKE
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("feedgym: ")]
    return line


def figures(folder):
    """What a summary says of agents and rounds, but for what requests cost, which is measured."""
    summary = json.loads((folder / "summary.json").read_text())
    summary["agents"] = {
        name: {metric: value for metric, value in metrics.items() if not metric.startswith("cost_")}
        for name, metrics in summary["agents"].items()
    }
    return {name: summary[name] for name in ("agents", "lift", "lift_searched", "rounds", "reward_model", "tokenizer")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the smoke preset, over Ray as a user would have it."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    output = feedgym("run", "onerec-ipa-smoke", "--run", folder)
    assert "aligned" in output and str(folder / "report.html") in output
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_writes_a_summary_for_programs_and_a_report_for_people(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary["agents"]) == AGENTS
    for name in ("true_reward", "model_reward", "watch_s", "like_rate", "session_items", "diversity"):
        for agent in AGENTS:
            value = summary["agents"][agent][name]
            assert value["low"] <= value["mean"] <= value["high"]
    lift, agents = summary["lift"]["true_reward"], summary["agents"]
    ratio = agents["aligned"]["true_reward"]["mean"] / agents["base"]["true_reward"]["mean"]
    assert lift["mean"] == pytest.approx(ratio - 1) and lift["low"] < lift["mean"] < lift["high"]
    assert agents["oracle"]["true_reward"]["mean"] > agents["random"]["true_reward"]["high"]
    assert len(summary["rounds"]) == 3 and set(summary["stages"]) == set(plan(smoke()))
    assert all(stage["seconds"] > 0 for stage in summary["stages"].values())
    assert summary["peak_memory_mb"] > 100 and summary["seed"] == 0 and summary["git_revision"]
    report = (finished / "report.html").read_text()
    assert report.count("class='chart'") >= 4 and not re.search(r"(src|href)=.https?:", report)


def test_each_round_is_told_whole_and_dpo_starts_at_the_reference(finished):
    rounds = json.loads((finished / "summary.json").read_text())["rounds"]
    told = {"model_mean", "true_mean", "rank_correlation", "diversity", "entropy", "kl_to_base", "requests_spent"}
    assert all(told <= set(row) for row in rounds)
    assert all({"model_max", "true_max", "true_of_best", "legality"} <= set(row) for row in rounds[:-1])
    assert rounds[0]["kl_to_base"] == pytest.approx(0, abs=1e-4) and rounds[-1]["kl_to_base"] != 0
    for row in rounds[:-1]:
        assert row["first_loss"] == pytest.approx(np.log(2), abs=1e-4)
        assert row["first_margin"] == pytest.approx(0, abs=1e-4)
        assert row["chosen_logp"] < 0 and row["rejected_logp"] < 0 and row["pairs"] > 0


def test_a_run_is_recorded_by_wandb_inside_its_folder(finished):
    assert list((finished / "wandb").glob("offline-run-*/run-*.wandb"))
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {"round/model_mean", "round/true_mean"} <= set(lines[0])


@pytest.mark.parametrize(
    "moment",
    ["base", *(pytest.param(name, marks=pytest.mark.slow) for name in ("reward", "sampled-0", "aligned-2", "judged"))],
)
def test_a_run_killed_at_any_moment_and_resumed_without_ray_has_the_same_figures(finished, tmp_path, moment):
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [PROGRAM, "run", "onerec-ipa-smoke", "--ray", "off", "--run", folder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stages = folder / "stages"
    deadline = time.monotonic() + 200

    def begun():
        if moment != "base":
            return (stages / moment / "work").exists()
        # A busy machine may see neither checkpoint before they are cleared away; just after them will do.
        return any((stages / "base" / "work").glob("checkpoint-*")) or (stages / "reward").exists()

    while not begun():
        assert process.poll() is None and time.monotonic() < deadline, f"{moment} never began"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (folder / "summary.json").exists()
    inside("demo", "--resume", folder, "--ray", "off")
    assert figures(folder) == figures(finished)


def test_a_stage_stops_there_and_evaluate_judges_again(copied, tmp_path):
    inside("stage", "tokenizer", "--run", tmp_path / "new", "--preset", "onerec-ipa-smoke")
    made = {path.name for path in (tmp_path / "new" / "stages").iterdir()}
    assert made == {"log", "tokenizer"} and not (tmp_path / "new" / "summary.json").exists()
    before = figures(copied)
    inside("evaluate", copied, "--users", 30, "--beams", 0)
    after = json.loads((copied / "summary.json").read_text())
    assert set(after["agents"]) == {name for name in AGENTS if not name.endswith("_searched")}
    assert "lift_searched" not in after and after["judged_by"].startswith("30 fresh users")
    assert after["rounds"] == before["rounds"]


def test_a_simulated_log_is_taken_like_a_real_one_and_the_report_says_that_nobody_knows_the_truth(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "feed_lab.py").write_text(LAB)
    size = ["--users", 90, "--visits", 5, "--session-length", 5]
    monkeypatch.syspath_prepend(str(tmp_path))
    inside("simulate", "--out", tmp_path / "log", "--simulator", "feed_lab:few", *size)
    said = capsys.readouterr().out
    assert said.startswith("90 users, ") and "click" in said
    log = pd.read_parquet(tmp_path / "log/events.parquet").query("event == 'impression' and examined")
    catalog = pd.read_parquet(tmp_path / "log/catalog.parquet")
    items = pd.DataFrame({"vid": catalog.raw_id, "topic": catalog.topic, "duration_s": catalog.duration_s})
    items.to_csv(tmp_path / "items.csv", index=False)
    names = {"user_id": "uid", "item_id": "vid", "timestamp_s": "ts", "watch_s": "sec", "click": "clicked"}
    log[list(names)].rename(columns=names).assign(vid=catalog.raw_id.to_numpy()[log.item_id]).to_csv(
        tmp_path / "mine.csv.gz", index=False
    )
    columns = [f"{name.removesuffix('_s') if name == 'timestamp_s' else name}={own}" for name, own in names.items()]
    for source in (["log"], ["mine.csv.gz", "--items", tmp_path / "items.csv", "--columns", *columns]):
        run = tmp_path / f"of-{source[0]}"
        inside("run", "onerec-ipa-smoke", "--ray", "off", "--run", run, "--data", tmp_path / source[0], *source[1:])
        summary = json.loads((run / "summary.json").read_text())
        assert "no simulator truth" in summary["note"] and "no simulator truth" in (run / "report.html").read_text()
        assert not any(name.startswith("true") for row in summary["rounds"] for name in row)
        for agent in ("random", "popular", "base", "aligned"):
            assert {"recall@5 of session", "ndcg@10 of next item", "model_reward"} <= set(summary["agents"][agent])
        assert {"watch", "click"} <= set(summary["reward_model"])


def test_users_may_be_served_at_random_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "feed_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = ["simulate", "--simulator", "feed_lab:few", "--users", 40, "--visits", 2, "--session-length", 3]
    inside(*asked, "--out", tmp_path / "log", "--random-share", 1, "--popularity-share", 0)
    log = pd.read_parquet(tmp_path / "log/events.parquet").query("event == 'impression'")
    np.testing.assert_allclose(log.propensity, 1 / (120 - log.position), rtol=1e-5)
    assert "add up to at most 1" in refused(capsys, *asked, "--out", tmp_path / "none", "--random-share", 0.95)
    assert not (tmp_path / "none").exists()


def test_check_proves_plug_ins_and_names_the_broken_promise(tmp_path, monkeypatch, capsys):
    main(["check", "feedgym.experiments.conformance:random_agent"])
    assert "random_agent" in capsys.readouterr().out
    (tmp_path / "lab.py").write_text("class Empty:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "follows none of the protocols" in refused(capsys, "check", "lab:Empty")
    assert "lab:Gone" in refused(capsys, "check", "lab:Gone")
    assert "--all" in refused(capsys, "check")


@pytest.mark.slow
def test_check_all_passes_every_built_in():
    assert "ShortVideo" in feedgym("check", "--all")


@pytest.mark.parametrize("arguments", [["--help"], ["list", "--help"], ["list", "simulators"]])
def test_a_reader_who_has_seen_enough_gets_no_message(arguments):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([PROGRAM, *arguments], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_help_teaches_every_command(capsys):
    main(["--help"])
    overview = capsys.readouterr().out
    assert all(f"  {name}" in overview for name in COMMANDS)
    first = {
        "run": ["onerec-ipa"],
        "compare": ["cascade"],
        "sweep": ["onerec-ipa"],
        "data": ["inspect"],
        "results": ["add"],
    }
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([name, *first.get(name, []), "--help"])
        assert stop.value.code == 0 and f"usage: feedgym {name}" in capsys.readouterr().out
    main(["run"])
    presets = capsys.readouterr().out
    assert all(name in presets for name in PRESETS)


# ---------------------------------------------------------------- bad input: one line, exit code 2, nothing left over


EVENTS = pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [7, 8, 7, 9], "timestamp": [10, 20, 10, 20]})
ITEMS = pd.DataFrame({"item_id": [7, 8, 9], "embedding_0": [0.1, 0.2, 0.3], "embedding_1": [1.0, 2.0, 3.0]})


@pytest.mark.parametrize(
    ("events", "items", "says"),
    [
        (EVENTS.drop(columns="item_id"), ITEMS, "events.csv: column 'item_id' is missing"),
        (EVENTS.assign(item_id=[7, 8, 99, 9]), ITEMS, "99"),
        (EVENTS, ITEMS.assign(embedding_1=[1.0, np.nan, 3.0]), "items.csv: column 'embedding_1' is NaN"),
        (EVENTS[:0], ITEMS, "events.csv"),
        (EVENTS, ITEMS, "session_length=5 exceeds the catalogue's 3 items"),
    ],
    ids=["a missing column", "an unknown item", "NaN embeddings", "an empty log", "K over the catalogue"],
)
def test_a_bad_log_is_refused_in_a_line_and_leaves_nothing(tmp_path, capsys, events, items, says):
    events.to_csv(tmp_path / "events.csv", index=False)
    items.to_csv(tmp_path / "items.csv", index=False)
    arguments = ["--data", tmp_path / "events.csv", "--items", tmp_path / "items.csv", "--run", tmp_path / "run"]
    assert says in refused(capsys, "run", "onerec-ipa-smoke", *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dance"], "the commands are demo, run"),
        (["run", "onerec"], "the presets are onerec-ipa"),
        (["run", "onerec-ipa-smoke", "--session-length", 500], "500 must be in 1..120, the items of the catalogue"),
        (["run", "onerec-ipa-smoke", "--data", "nowhere.csv"], "nowhere.csv"),
        (["run", "onerec-ipa-smoke", "--ray", "127.0.0.1:1"], "ray start --head"),
        (["demo", "--resume", "nowhere"], "holds no run"),
        (["evaluate", "nowhere"], "holds no finished run"),
        (["stage", "dance", "--run", "new"], "its stages are log, tokenizer"),
    ],
)
def test_a_mistake_is_told_in_a_line_with_the_remedy(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *arguments)
    assert not list(tmp_path.rglob("summary.json")) and not list(tmp_path.rglob("stages/*/stage.json"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--sampling.temperature 0", "sampling.temperature=0.0 must be above 0; raise it."),
        ("--sampling.temperature inf", "sampling.temperature=inf is not a finite number; give one from 0 to 1000000."),
        ("--judge.users 0", "judge.users=0 must be 1 or more; raise it."),
        ("--simulator.gap-shape 0", "simulator.gap_shape=0.0 must be 0.05 or more; raise it."),
        ("--tokenizer.num-codes 8 0", "tokenizer.num_codes[1]=0 must be 1 or more; raise it."),
        ("--split-seed -1", "split_seed=-1 must be 0 or more; raise it."),
        ("--reward feedgym.rewards.compose:nothing", "no 'nothing'"),
        ("--method.beta much", "--method.beta: 'much' is not a number. See feedgym run onerec-ipa-smoke --help."),
        ("--rounds.num inf", "--rounds.num: 'inf' is not a whole number. See feedgym run onerec-ipa-smoke --help."),
        ("--rounds.num-sampels 3", "--rounds.num-sampels, 3; perhaps you meant --rounds.num-samples. See feedgym run"),
        ("--model.d-model 15", "model.d_model=15 is not a multiple of num_heads=2; change either."),
        ("--model.num-experts-per-tok 5", "num_experts_per_tok=5 is above num_experts=4; lower it."),
        ("--tokenizer.steps 7", "--tokenizer.steps, 7"),
        ("--tokenizer item_id --tokenizer.num-codes 16 16", "--tokenizer.num-codes, 16"),
        ("--rounds.search beam --sampling.top-k 5", "do nothing where rounds.search='beam'; leave one of them out."),
        (
            "--tokenizer dance",
            "tokenizer='dance' is unknown; give one of residual_kmeans, rqvae,",
        ),
        ("--model my_lab.own:Model", "Cannot import 'my_lab.own'"),
        ("--method.margin", "--method.margin"),
        ("--seed", "--seed"),
    ],
)
def test_a_value_an_option_cannot_take_is_refused_in_a_line_before_work_starts(tmp_path, capsys, options, says):
    with pytest.raises(SystemExit) as stop:
        main(["run", "onerec-ipa-smoke", *options.split(), "--run", str(tmp_path / "run")])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == MISTAKE and line.startswith("feedgym: ") and says in line
    assert not (tmp_path / "run").exists()


def test_help_is_the_librarys_and_shows_no_ranges(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "onerec-ipa-smoke", "--help"])
    said = capsys.readouterr().out
    assert not stop.value.code and "--rounds.num-samples INT" in said and "Interval" not in said


def test_a_run_folder_is_not_overwritten(copied, capsys):
    assert f"--resume {copied}" in refused(capsys, "run", "onerec-ipa-smoke", "--run", copied)
    assert (copied / "summary.json").exists()


def test_a_corrupt_checkpoint_is_named_and_the_remedy_mends_it(copied, finished, capsys):
    weights = copied / "stages/base/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    said = refused(capsys, "demo", "--resume", copied)
    assert "Stage base cannot be read" in said and "--redo" in said
    inside("stage", "base", "--run", copied, "--redo")
    (copied / "summary.json").unlink()
    inside("demo", "--resume", copied, "--ray", "off")
    assert figures(copied) == figures(finished)


def test_a_tokenizer_of_another_checkpoint_is_refused(copied, tmp_path, capsys):
    inside("stage", "tokenizer", "--run", tmp_path / "other", "--preset", "onerec-ipa-smoke", "--seed", 1)
    for file in (tmp_path / "other/stages/tokenizer").glob("*.safetensors"):
        shutil.copy(file, copied / "stages/tokenizer")
    assert "tokenizer" in refused(capsys, "demo", "--resume", copied)

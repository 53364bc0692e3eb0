"""Retrieval through the real command line: on simulated users, on a table, and after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feedgym.cli import MISTAKE, main
from feedgym.experiments.presets import PRESETS
from feedgym.experiments.retrieval.experiment import metric_name, plan
from feedgym.experiments.retrieval.presets import hstu_retrieval, hstu_retrieval_large, sasrec

PROGRAM = Path(sys.executable).parent / "feedgym"
METRICS = {"recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr", "coverage", "gini"}


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def run(name, folder, *options):
    main(["run", name, "--run", str(folder), *map(str, options)])
    return summary_of(folder)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(one_thread, tmp_path_factory):
    """A run of HSTU in seconds."""
    folder = tmp_path_factory.mktemp("retrieval") / "run"
    run("hstu-smoke", folder)
    return folder


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    """A table of users who walk round a circle of items one by one; what is popular says nothing."""
    rng = np.random.default_rng(0)
    rows = [
        {"user_id": user, "item_id": f"i{(start + step) % 40:02}", "timestamp": 1_600_000_000 + 3600 * step + user}
        for user, start in enumerate(rng.integers(40, size=150))
        for step in range(rng.integers(6, 14))
    ]
    path = tmp_path_factory.mktemp("data") / "walks.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_a_run_leaves_figures_with_intervals_and_baselines_in_the_same_form(finished):
    summary = summary_of(finished)
    assert set(summary["baselines"]) == {"popular", "item_knn", "sasrec_ce"}
    for figures in (summary["offline"], *summary["baselines"].values()):
        assert set(figures) >= METRICS
        for name in METRICS - {"coverage", "gini"}:
            value = figures[name]
            assert 0 <= value["low"] <= value["mean"] <= value["high"] <= 1
        assert figures["coverage"]["low"] is None and figures["recall@5"]["mean"] <= figures["recall@10"]["mean"]
    names = list(plan(PRESETS["hstu-smoke"]()))
    assert list(summary["stages"]) == names and names == ["log", "sasrec-ce", "hstu", "ranked"]
    assert "loss sampled_softmax" in summary["note"] and "events stream" in summary["title"]
    assert len(summary["learning"]) == 2 and summary["seed"] == 0
    assert (finished / "stages" / "hstu" / "model.safetensors").exists()
    report = (finished / "report.html").read_text()
    assert report.count("class='chart'") >= 2 and "<table" in report and "sasrec ce" in report


def test_a_finished_run_is_read_and_a_lost_stage_made_again_gives_the_same_figures(finished, tmp_path):
    copied = Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("wandb")))
    shutil.rmtree(copied / "stages" / "hstu")
    main(["run", "hstu-smoke", "--resume", str(copied)])
    before, after = summary_of(finished), summary_of(copied)
    assert after["offline"] == before["offline"] and after["baselines"] == before["baselines"]
    assert after["stages"]["sasrec-ce"] == before["stages"]["sasrec-ce"]


def test_a_table_is_learned_from_and_the_model_beats_what_counts_only(walks, tmp_path):
    options = ("--data", walks, "--epochs", 16, "--history-length", 12, "--session-length", 2,
               "--model.d-model", 16, "--model.d-ff", 16, "--model.loss", "ce", "--model.dropout", 0.0,
               "--fit.batch-size", 32, "--fit.lr", 0.02, "--ranking.at", 1, 10)  # fmt: skip
    summary = run("sasrec", tmp_path / "run", *options)
    assert set(summary["baselines"]) == {"popular", "item_knn"}  # the model is SASRec-CE itself
    assert summary["offline"]["recall@1"]["low"] > 0.6 > 0.2 > summary["baselines"]["popular"]["recall@1"]["high"]
    assert summary["item_knn_recent"] == 1 and summary["lift_names"][0] == "sasrec"
    curve = summary["learning"][0]
    assert max(row["validation"] for row in curve) > curve[0]["validation"]


def test_mistakes_are_told_before_anything_is_trained(walks, tmp_path, capsys):
    for options, remedy in (
        (("--epochs", 0), "epochs=0"),
        (("--behaviours", "like"), "like"),
        (("--data", tmp_path / "none"), "check the path"),
    ):
        given = options if "--data" in options else ("--data", walks, *options)
        with pytest.raises(SystemExit) as stop:
            run("sasrec-smoke", tmp_path / "run", *given)
        assert stop.value.code == MISTAKE and remedy in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_presets_have_the_published_sizes():
    assert (sasrec().model.d_model, sasrec().model.num_layers, sasrec().history_length) == (50, 2, 200)
    large = hstu_retrieval_large().model
    assert (large.num_layers, large.num_heads, large.d_qk, large.d_v) == (8, 2, 25, 25)
    hstu = hstu_retrieval()
    assert (hstu.model.num_negatives, hstu.model.temperature, hstu.fit.adam_beta2) == (128, 0.05, 0.98)
    assert metric_name("HR@10") == "recall@10" and metric_name("MRR@50") == "mrr"
    assert metric_name("cold NDCG@5") == "cold ndcg@5" and metric_name("Gini@10") == "gini"


@pytest.mark.slow
def test_a_run_that_was_killed_resumes_to_the_same_figures(finished, tmp_path):
    folder = tmp_path / "killed"
    # W&B's service of this process would go on holding the killed run.
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_SERVICE")}
    process = subprocess.Popen(
        [PROGRAM, "run", "hstu-smoke", "--run", folder],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    begun, deadline = folder / "stages" / "hstu" / "work" / "validation.json", time.monotonic() + 200
    while not begun.exists():
        assert process.poll() is None and time.monotonic() < deadline, "training never began"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (folder / "summary.json").exists()
    subprocess.run([PROGRAM, "run", "hstu-smoke", "--resume", folder], env=env, check=True, capture_output=True)
    for part in ("offline", "baselines"):
        assert summary_of(folder)[part] == summary_of(finished)[part]

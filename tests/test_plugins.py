"""Somebody else's package in all five places of an experiment, through the real command line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from feedgym.cli import MISTAKE, main
from feedgym.experiments.align.experiment import plan
from feedgym.experiments.align.presets import smoke
from feedgym.plugins import completed

LAB = Path(__file__).parent / "plugins" / "my_lab"
PLUGINS = {
    "simulator": "my_lab.users:Users",
    "tokenizer": "my_lab.codes:Buckets",
    "model": "my_lab.model:Recurrent",
    "reward": "my_lab.reward:ClickRates",
    "method": "my_lab.method:BestSession",
}
NAMED = [word for kind, path in PLUGINS.items() for word in (f"--{kind}", path)]
TINY = [
    *("--ray", "off", "--log.users", 40, "--log.visits", 3, "--pretrain.steps", 4),
    *("--rounds.num-samples", 6, "--rounds.truth-replicas", 2, "--judge.users", 8, "--judge.beams", 0),
]


def feedgym(*arguments):
    main(list(map(str, arguments)))


def refused(capsys, *arguments):
    """Run the program on a mistake; the line it says."""
    with pytest.raises(SystemExit) as stop:
        feedgym(*arguments)
    assert stop.value.code == MISTAKE
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("feedgym: ")]
    return line


@pytest.fixture(scope="module")
def lab_run(tmp_path_factory):
    """A run of two rounds on the lab's parts, with options of theirs."""
    folder = tmp_path_factory.mktemp("runs") / "lab"
    options = ["--model.width", 8, "--simulator.num-items", 48, "--tokenizer.num-buckets", 5, "--method.lr", 0.01]
    feedgym("run", "onerec-ipa-smoke", *NAMED, *TINY, "--rounds.num", 2, *options, "--run", folder)
    return folder


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_the_run_is_on_the_labs_parts(lab_run):
    summary = summary_of(lab_run)
    assert "Recurrent" in summary["title"]
    assert {"base", "aligned", "random", "popular"} <= summary["agents"].keys()
    assert len(summary["rounds"]) == 3 and "first_loss" in summary["rounds"][0]  # the method's own figure


def test_options_of_plugins_reach_the_configuration_and_the_parts(lab_run):
    config = json.loads((lab_run / "config.json").read_text())["config"]
    assert {kind: config[kind] for kind in PLUGINS} == PLUGINS
    assert config["model_options"] == {"width": 8}
    assert config["simulator_options"] == {"num_items": 48, "taste": 0.8}
    assert config["tokenizer_options"] == {"num_buckets": 5}
    assert config["method_options"]["lr"] == 0.01
    assert config["reward_options"] is None
    (weights,) = (lab_run / "stages" / "base").rglob("recurrent.safetensors")
    model = load_file(weights)
    assert model["first.weight"].shape == (8, 8)
    assert model["codes_IL"].shape == (48, 2) and int(model["codes_IL"][:, 0].max()) == 4


def test_each_round_changed_the_model(lab_run):
    base, first, second = (
        load_file(next((lab_run / "stages" / name).rglob("recurrent.safetensors")))["out.weight"]
        for name in ("base", "aligned-1", "aligned-2")
    )
    assert not torch.equal(base, first) and not torch.equal(first, second)


def test_one_more_round_keeps_the_earlier_stages(lab_run, tmp_path):
    folder = shutil.copytree(lab_run, tmp_path / "lab", symlinks=True)
    before = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("stages/*/stage.json")}
    rounds = summary_of(folder)["rounds"]
    feedgym("run", "onerec-ipa-smoke", "--resume", folder, *NAMED, "--rounds.num", 3)
    after = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("stages/*/stage.json")}
    assert after.keys() - before.keys() == {"aligned-3", "sampled-2", "probe-3"}
    assert {name for name in before if after[name] != before[name]} == {"chosen", "pool-aligned", "judged", "cost"}
    assert summary_of(folder)["rounds"][:2] == rounds[:2] and len(summary_of(folder)["rounds"]) == 4
    assert json.loads((folder / "config.json").read_text())["config"]["model_options"] == {"width": 8}


def test_a_folder_that_names_them_is_judged_again_only_if_it_is_trusted(lab_run, tmp_path, capsys):
    folder = shutil.copytree(lab_run, tmp_path / "lab", symlinks=True)
    line = refused(capsys, "evaluate", folder, "--users", 6)
    assert "'my_lab.users:Users' (its simulator), which is not feedgym's own" in line and "--trust" in line
    feedgym("evaluate", folder, "--users", 6, "--trust")
    assert summary_of(folder)["agents"]["aligned"] != summary_of(lab_run)["agents"]["aligned"]


@pytest.mark.parametrize(
    ("file", "first"),
    [
        ("users", "log"),
        ("codes", "tokenizer"),
        ("model", "base"),
        ("reward", "probe-0"),
        ("method", "aligned-1"),
    ],
)
def test_a_change_of_a_file_makes_anew_what_it_decides(file, first, tmp_path, monkeypatch):
    package = f"lab_of_{tmp_path.name}"  # of its own: Python keeps what it has imported
    shutil.copytree(LAB, tmp_path / package)
    monkeypatch.syspath_prepend(str(tmp_path))
    named = {kind: path.replace("my_lab", package) for kind, path in PLUGINS.items()}
    config = completed(replace(smoke(), **named, **{f"{kind}_options": None for kind in named}))
    before = plan(config)
    assert plan(config) == before
    path = tmp_path / package / f"{file}.py"
    path.write_text(path.read_text() + "\n# another version\n")
    after = plan(config)
    changed = [name for name in before if after[name] != before[name]]
    assert changed[0] == first and changed[-2:] == ["judged", "cost"]

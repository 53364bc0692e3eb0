"""Folders made by somebody who wants their code run: the real commands read them, and nothing is executed.

Every payload leaves a mark when it is executed; that they can do so is shown first. What a configuration may name is
tried field by field in tests/test_trust.py.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time

import joblib
import numpy as np
import pytest
import torch
from toy_ranker import ToyRanker

from feedgym.agents.rllib.checkpoints import TENSORS
from feedgym.cli import main
from feedgym.data.whole import MARK, SEAL, WORK, digests_of, read_mark, seal, write_sealed
from feedgym.envs.learned.fit import LearnedConfig, fit_simulator
from feedgym.envs.logging import collect_log
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig

pytestmark = pytest.mark.slow


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w')",)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The current folder: a module that leaves a mark when imported, and the payload as three libraries write it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    mark = tmp_path / "mark"
    (tmp_path / "evil_lab.py").write_text(f"open({str(mark)!r}, 'w')\nclass Mine: pass\n")
    (tmp_path / "plain").write_bytes(pickle.dumps(Payload(mark)))
    torch.save({"state": Payload(mark)}, tmp_path / "torch")
    joblib.dump(Payload(mark), tmp_path / "joblib")
    yield tmp_path
    sys.modules.pop("evil_lab", None)
    assert not mark.exists()


def environment():
    """For a process of its own, which shares no service of Weights & Biases with this one."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}


def code_of(*arguments):
    """The exit code of a command."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def test_the_payloads_would_do_it(lab):
    readers = {"plain": lambda file: pickle.loads(file.read_bytes()), "joblib": joblib.load}
    readers["torch"] = lambda file: torch.load(file, weights_only=False)
    for name, read in readers.items():
        read(lab / name)
        (lab / "mark").unlink()
    exec((lab / "evil_lab.py").read_text(), {})
    (lab / "mark").unlink()


# ---------------------------------------------------------------- runs


def reseal(folder):
    """Write the hashes of what lies in a run's folder now, as its maker can."""
    about = json.loads((folder / "config.json").read_text())
    about.pop("sha256", None)
    write_sealed(folder / "config.json", about)
    for stage in (folder / "stages").iterdir():
        if (stage / MARK).exists():
            write_sealed(stage / MARK, {**read_mark(stage), "files": digests_of(stage, (MARK, WORK))})


@pytest.mark.parametrize("poison", ["plain", "torch"])
def test_a_run_whose_files_are_pickles(aligned_run, lab, poison):
    weights = sorted({path.relative_to(aligned_run) for path in aligned_run.glob("stages/*/*.safetensors")})
    assert len(weights) >= 4
    for number, file in enumerate(weights):
        folder = lab / f"run-{number}"
        shutil.copytree(aligned_run, folder)
        (folder / "summary.json").write_text("{}")
        for name in (file.name, "pytorch_model.bin", "training_args.bin", "model.pkl"):
            shutil.copy(lab / poison, (folder / file).parent / name)
        reseal(folder)
        assert code_of("watch", folder, "--visits", 1, "--delay", 0) in (0, 2)  # it reads no sampled sessions
    for parquet in folder.rglob("*.parquet"):
        shutil.copy(lab / poison, parquet)
    reseal(folder)
    assert code_of("evaluate", folder) == 2


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "model"])
def test_a_killed_run_whose_checkpoint_is_a_pickle(killed_run, lab, name):
    for poison in ("plain", "torch"):
        folder = lab / f"run-{poison}"
        shutil.copytree(killed_run, folder)
        for checkpoint in (folder / "stages" / "base" / "work").glob("checkpoint-*"):
            poisoned = [checkpoint / name]
            if name == "model":
                (checkpoint / "model.safetensors").unlink()
                poisoned = [checkpoint / "pytorch_model.bin", checkpoint / "adapter_model.bin"]
            for file in poisoned:
                shutil.copy(lab / poison, file)
            seal(checkpoint)
        assert code_of("stage", "base", "--run", folder) in (0, 2)
        assert not (lab / "mark").exists()


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory):
    """A run that was killed while its agent was pretrained, with checkpoints."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    more = ["--pretrain.steps", "60", "--pretrain.checkpoint-steps", "4", "--run", str(folder)]
    run = subprocess.Popen(
        [sys.executable, "-m", "feedgym", "run", "onerec-ipa-smoke", *more], stdout=subprocess.DEVNULL
    )
    work = folder / "stages" / "base" / "work"
    while len(list(work.glob(f"checkpoint-*/{SEAL}"))) < 2:
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    run.wait()
    return folder


def test_a_killed_training_of_rllibs_whose_checkpoint_is_a_pickle(lab):
    folder = lab / "run"
    command = ["run", "rllib-smoke", "--num-seeds", "1", "--train.iterations", "4", "--train.checkpoints", "4"]
    run = subprocess.Popen([sys.executable, "-m", "feedgym", *command, "--run", str(folder)], env=environment())
    work = folder / "stages" / "trained-0" / "work"
    while not list(work.glob(f"checkpoint-*/{SEAL}")):
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    run.wait()
    for checkpoint in work.glob("checkpoint-*"):
        for name in (TENSORS, "algorithm_state.pkl", "class_and_ctor_args.pkl"):
            shutil.copy(lab / "plain", checkpoint / name)
        seal(checkpoint)
    assert code_of(*command, "--resume", folder) == 0  # that training begins again


# ---------------------------------------------------------------- simulators


@pytest.fixture
def users(lab):
    """A learned simulator's folder."""
    simulator = ShortVideo(ShortVideoConfig(num_items=100))
    log = collect_log(simulator, num_users=60, num_visits=4, session_length=4, seed=0)
    unseen_U = np.arange(log.num_users) % 2 == 0
    ranker = ToyRanker(torch.from_numpy(simulator.catalog.content_IE))
    made = fit_simulator(
        log, simulator.catalog, ranker, unseen_U=unseen_U, config=LearnedConfig(session_length=4, known_visits=1)
    )
    made.save(lab / "users")
    return lab / "users"


@pytest.mark.parametrize("trust", [False, True])
def test_a_simulator_whose_ranker_is_joblib(lab, users, capsys, trust):
    facts = json.loads((users / "simulator.json").read_text())
    (users / "simulator.json").write_text(json.dumps(facts | {"ranker": "sklearn.utils.parallel:joblib"}))
    shutil.rmtree(users / "ranker")
    shutil.copy(lab / "joblib", users / "ranker")
    word = ["--trust"] if trust else []
    assert code_of("simulate", "--simulator", users, "--out", lab / "log", *word) == 2
    says = (
        "is not a class with load() and predict()" if trust else "would import and run 'sklearn.utils.parallel:joblib'"
    )
    assert says in capsys.readouterr().err


def test_a_simulator_whose_files_are_pickles(lab, users):
    for file in sorted(path for path in users.rglob("*") if path.is_file()):
        kept = file.read_bytes()
        for poison in ("plain", "torch"):
            shutil.copy(lab / poison, file)
            assert code_of("simulate", "--simulator", users, "--out", lab / "log", "--trust") == 2, file
        file.write_bytes(kept)


def test_a_trusted_simulator_of_ones_own_runs(lab, users):
    assert code_of("simulate", "--simulator", users, "--out", lab / "log", "--users", 20) == 2
    assert code_of("simulate", "--simulator", users, "--out", lab / "log", "--users", 20, "--trust") == 0
    assert (lab / "log" / "events.parquet").exists()


# ---------------------------------------------------------------- Weights & Biases


def test_a_run_folder_does_not_choose_where_weights_and_biases_sends_to(lab):
    for place in ("wandb/config", "wandb"):
        (lab / "run" / place).mkdir(parents=True, exist_ok=True)
        (lab / "run" / place / "settings").write_text("[default]\nbase_url = http://evil.example\n")
    code = (
        "import sys; from feedgym.experiments.run import Plan, Run; "
        "from feedgym.experiments.align.presets import smoke; "
        "run = Run(sys.argv[1], smoke(), Plan()); told = run._wandb.settings; "
        "print('url', told.base_url, told.git_root); "
        "run.close()"
    )
    done = subprocess.run([sys.executable, "-c", code, lab / "run"], env=environment(), capture_output=True, text=True)
    assert "url http" in done.stdout and "evil" not in done.stdout and done.stdout.rstrip().endswith("None"), done

"""The package: environments without anything heavy, the plug-in's template, and the files around it."""

import io
import json
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = ("numpy", "scipy", "gymnasium", "annotated_types", "typing_extensions", "farama_notifications", "cloudpickle")
"""What the package without extras has: its dependencies and theirs."""

ENVIRONMENTS = """
import gymnasium as gym, feedgym
from feedgym.envs.registration import ENVIRONMENTS
for name in ENVIRONMENTS:
    env = gym.make(name)
    env.reset(seed=0)
    env.step(env.action_space.sample())
many = gym.make_vec("feedgym/ShortVideo-v1", 3, vectorization_mode="vector_entry_point")
many.reset(seed=0)
print(many.step(many.action_space.sample())[1].shape)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs code in a process that finds only the packages without extras."""
    alone = tmp_path_factory.mktemp("alone")
    for name in BASE:
        origin = Path(find_spec(name).origin)
        package = origin.parent if origin.name == "__init__.py" else origin
        for path in (package, package.parent / f"{name}.libs"):
            if path.exists():
                (alone / path.name).symlink_to(path)
    (alone / "feedgym").symlink_to(ROOT / "feedgym")

    def run(code):
        command = [sys.executable, "-S", "-W", "ignore", "-c", code]  # -S: no site-packages
        return subprocess.run(command, capture_output=True, text=True, cwd=alone, env={"PYTHONPATH": str(alone)})

    return run


def test_the_environments_run_without_extras(python):
    names = {name.partition(">")[0].replace("-", "_") for name in PROJECT["dependencies"]}
    assert names <= set(BASE)
    done = python(ENVIRONMENTS)
    assert done.stdout == "(3,)\n", done.stderr


def test_what_needs_more_says_what_to_install(python):
    done = python("from feedgym.__main__ import main; main()")
    assert (done.returncode, done.stderr) == (2, 'feedgym: tyro is not installed; run pip install "feedgym[train]".\n')
    done = python("import feedgym; feedgym.EventLog, feedgym.ShortVideo")
    assert done.stderr == ""
    done = python("import feedgym; feedgym.align(rounds=1)")
    assert "ModuleNotFoundError" in done.stderr or "pip install 'feedgym[train]'" in done.stderr


def test_the_plug_ins_template_can_be_installed_and_passes_its_own_test(tmp_path):
    template, copy = ROOT / "examples" / "plugin", tmp_path / "plugin"
    subprocess.run(["cp", "-r", template, copy], check=True)  # the build leaves files behind
    where = ["--target", str(tmp_path / "site"), str(copy)]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", *where]
    subprocess.run(install, check=True, capture_output=True)
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(copy / "tests")]
    env = {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_extras_have_no_package_twice_and_development_has_all_of_training():
    extras = PROJECT["optional-dependencies"]
    assert "feedgym[train]" in extras["dev"] and extras["env"] == []
    train = {name.partition(">")[0] for name in extras["train"]}
    assert {"torch", "trl", "ray[rllib]", "wandb"} <= train
    assert not train & {name.partition(">")[0] for name in PROJECT["dependencies"]}


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_container_takes_its_base_from_outside_pins_torch_and_does_not_run_as_root():
    dockerfile = DockerfileParser(fileobj=io.BytesIO((ROOT / "Dockerfile").read_bytes()))
    steps = [(step["instruction"], step["value"]) for step in dockerfile.structure if step["instruction"] != "COMMENT"]
    assert steps[0][0] == "ARG" and steps[0][1].startswith("BASE=") and steps[1] == ("FROM", "${BASE}")
    assert ":" in steps[0][1] and not steps[0][1].endswith(":latest")
    runs = [value for name, value in steps if name == "RUN"]
    assert all("--no-cache-dir" in run for run in runs if "pip install" in run)
    assert all("rm -rf /var/lib/apt/lists" in run for run in runs if "apt-get install" in run)
    users = [value for name, value in steps if name == "USER"]
    assert users and users[-1] not in ("root", "0")
    pin = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "torch==" in line)
    assert any(word in run for run in runs for word in pin.split() if word.startswith("torch=="))


@pytest.mark.parametrize("name", [".devcontainer/devcontainer.json"])
def test_the_development_container_installs_as_the_makefile_does(name):
    assert json.loads((ROOT / name).read_text())["postCreateCommand"] == "make install"

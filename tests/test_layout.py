"""The rules of the house about who imports whom, read off the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import feedgym

ROOT = Path(feedgym.__file__).parent
LAYERS = ("data", "protocols", "envs", "tokenizers", "agents", "rewards", "experiments", "cli")
BESIDE_EACH_OTHER = {"envs": "tokenizers", "tokenizers": "envs"}
ONLY_IN = {
    "trl": {"agents/alignment/"},
    "ray": {"experiments/rollouts.py", "agents/rllib/"},
    "wandb": {"experiments/run.py"},
    "stable_baselines3": {"envs/sb3.py"},
}


def source_files():
    return sorted(ROOT.rglob("*.py"))


def imported(path):
    """Absolute names of all modules a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def layer(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else None


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_lower_layer_never_imports_a_higher_one(path):
    here = layer("feedgym." + ".".join(path.relative_to(ROOT).with_suffix("").parts))
    if here is None or here == "cli":
        return
    for name in imported(path):
        there = layer(name) if name.startswith("feedgym.") else None
        if there is not None and there != here:
            assert LAYERS.index(there) < LAYERS.index(here), f"{path.name} ({here}) imports {name}"
            assert BESIDE_EACH_OTHER.get(here) != there, f"{path.name} ({here}) imports {name}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_the_big_libraries_are_imported_where_the_list_says(library):
    users = {
        path.relative_to(ROOT).as_posix()
        for path in source_files()
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users and all(user.startswith(tuple(ONLY_IN[library])) for user in users)


def test_hugging_faces_tokenizers_is_not_shadowed_by_ours():
    code = "import feedgym, tokenizers; from transformers import AutoTokenizer; print(tokenizers.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr


def test_no_pickle_is_loaded():
    for path in source_files():
        text = path.read_text()
        for forbidden in ("import pickle", "torch.load(", "allow_pickle=True", "joblib.load", "pd.read_pickle"):
            assert forbidden not in text, f"{path.name}: {forbidden}"

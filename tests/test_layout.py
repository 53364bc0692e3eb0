"""The rules of the house about who imports whom, read off the source."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import feedgym
import feedgym.data.events

ROOT = Path(feedgym.__file__).parent
LAYERS = (
    "data",
    "protocols",
    "plugins",
    "trust",
    "envs",
    "tokenizers",
    "agents",
    "rewards",
    "experiments",
    "api",
    "commands",
    "cli",
)
BESIDE_EACH_OTHER = {"envs": "tokenizers", "tokenizers": "envs"}
ABOVE_ALL = ("feedgym", "feedgym.__main__")
ONLY_IN = {
    "trl": {"agents/alignment/"},
    "ray": {"experiments/rollouts.py", "experiments/sweep/tuning.py", "agents/rllib/"},
    "wandb": {"experiments/tracking.py"},
    "tensorboardX": {"experiments/tracking.py"},
    "stable_baselines3": {"envs/sb3.py"},
}


def source_files():
    return sorted(ROOT.rglob("*.py"))


def module_name(path):
    parts = ("feedgym", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in source_files()}


@cache
def tree_of(path):
    return ast.parse(path.read_text())


def imported(path):
    """Absolute names of all modules a file imports, wherever in the file: in functions and for types too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                yield name if name in MODULES else node.module


def packages(name):
    """The packages that a module lies in, whose __init__ runs before it."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


def import_graph():
    """Each module's imports of others, and of the packages around those as far as it does not lie in them itself."""
    graph = {}
    for name, path in MODULES.items():
        targets = {target for target in imported(path) if target in MODULES}
        around = {package for target in targets for package in packages(target)} - packages(name)
        graph[name] = (targets | around) - {name}
    return graph


def circle(graph):
    """The modules of one circle of imports, in its order; none where there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def layer(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else None


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_lower_layer_never_imports_a_higher_one(path):
    if module_name(path) in ABOVE_ALL:
        return
    here = layer(module_name(path))
    rank = -1 if here is None else LAYERS.index(here)  # files in no layer (ranges) are below all of them
    for name in imported(path):
        there = layer(name) if name.startswith("feedgym.") else None
        if there is not None and there != here:
            assert LAYERS.index(there) < rank, f"{path.name} ({here}) imports {name}"
            assert BESIDE_EACH_OTHER.get(here) != there, f"{path.name} ({here}) imports {name}"


def test_no_files_import_each_other_in_a_circle():
    graph = import_graph()
    assert graph["feedgym.envs.feed"]  # it was read
    assert not circle(graph)


def test_a_circle_would_be_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    around = circle({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": set()})
    assert {*around} == {"b", "c"} and around[0] == around[-1]


def test_imports_in_functions_and_for_types_count(tmp_path):
    path = tmp_path / "lazy.py"
    path.write_text("if TYPE_CHECKING:\n    from feedgym.envs import feed\ndef f():\n    import feedgym.cli\n")
    assert {*imported(path)} == {"feedgym.envs.feed", "feedgym.cli"}


def test_experiments_packages_import_nothing_so_that_help_is_fast():
    inits = sorted((ROOT / "experiments").rglob("__init__.py"))
    assert len(inits) > 1
    for path in inits:
        assert not list(imported(path)), f"{path.relative_to(ROOT)} imports something; keep it a docstring alone"


@pytest.mark.parametrize("library", ONLY_IN)
def test_the_big_libraries_are_imported_where_the_list_says(library):
    users = {
        path.relative_to(ROOT).as_posix()
        for path in source_files()
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users and all(user.startswith(tuple(ONLY_IN[library])) for user in users)


def imported_at_once(node):
    """Names of the modules that are imported together with a file: outside of its functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.module
        elif not isinstance(child, ast.FunctionDef):
            yield from imported_at_once(child)


def test_trl_takes_seconds_to_import_and_is_not_imported_before_a_round_trains():
    tree = ast.parse("if True:\n    from trl.trainer import utils\ndef train():\n    import trl")
    assert [*imported_at_once(tree)] == ["trl.trainer"]
    for folder in ONLY_IN["trl"]:
        for path in (ROOT / folder).glob("*.py"):
            names = {name.split(".")[0] for name in imported_at_once(tree_of(path))}
            assert "trl" not in names, f"{path.name} imports trl outside of a function"


def test_hugging_faces_tokenizers_is_not_shadowed_by_ours():
    found = PathFinder.find_spec("tokenizers", [str(ROOT.parent), *sys.path])
    assert not Path(found.origin).is_relative_to(ROOT)


def test_no_pickle_is_loaded():
    for path in source_files():
        text = path.read_text()
        for forbidden in ("import pickle", "torch.load(", "allow_pickle=True", "joblib.load", "pd.read_pickle"):
            assert forbidden not in text, f"{path.name}: {forbidden}"


def names_in(path):
    for node in ast.walk(tree_of(path)):
        name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "arg", None)
        if isinstance(name, str):
            yield name


def test_every_axis_letter_is_in_the_legend():
    legend = {*re.findall(r"^    ([A-Z]) \w", feedgym.data.events.__doc__, re.MULTILINE)}
    assert "U" in legend
    for path in source_files():
        for name in names_in(path):
            axes = re.fullmatch(r"_?[a-z]\w*_([A-Z][A-Z0-9]*)", name)
            unknown = {*re.sub(r"\d", "", axes[1])} - legend if axes else set()
            assert not unknown, f"{path.relative_to(ROOT)}: {name} has an axis that feedgym.data.events does not name"


def test_the_architecture_can_be_printed():
    script = Path(__file__).parents[1] / "docs" / "architecture.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rooms = dict(block.split("\n", 1) for block in done.stdout.strip().split("\n\n") if "\n" in block)
    agents = next(text for title, text in rooms.items() if title.startswith("feedgym/agents: Recommenders"))
    assert re.search(r"^    files    .*\bonerec\b", agents, re.MULTILINE)
    assert re.search(r"^    imports  .*\bdata \d+", agents, re.MULTILINE)

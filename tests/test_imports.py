"""Commands that only read or simulate a log import none of the heavy libraries, so that they start at once."""

import json
import subprocess
import sys

import pytest

from feedgym.api import simulate

HEAVY = {"torch", "sklearn", "transformers", "pandas", "scipy.stats", "matplotlib", "ray", "pydantic"}
RUNS = """
import json, sys
import feedgym
from feedgym.cli import main
main(sys.argv[1:])
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(*arguments):
    """The modules that a process has imported after a command."""
    done = subprocess.run(
        [sys.executable, "-c", RUNS, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def small_log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imports") / "log"
    simulate(num_users=5, visits=2, out=folder)
    return folder


def test_looking_at_a_log_imports_nothing_heavy(small_log):
    modules = modules_after("data", "inspect", small_log, "--json")
    assert "feedgym.data.parquet" in modules and not modules & HEAVY


def test_simulating_imports_nothing_heavy(tmp_path):
    modules = modules_after("simulate", "--out", tmp_path / "log", "--users", 3, "--visits", 1)
    assert "feedgym.envs.short_video" in modules and not modules & HEAVY


def test_a_table_of_events_needs_pandas_alone(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id\n" + "\n".join(f"{u},{i}" for u in range(6) for i in range(u, u + 4)) + "\n")
    modules = modules_after("data", "inspect", path, "--json")
    assert "pandas" in modules and not modules & {"torch", "transformers", "matplotlib", "ray"}

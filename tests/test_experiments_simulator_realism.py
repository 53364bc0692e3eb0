"""``feedgym realism``, through the real command line."""

import json

import pytest

from feedgym.cli import main
from feedgym.experiments.simulator.realism import read_side

SMALL = ("--users", "30", "--visits", "3", "--session-length", "4")


def test_the_command_compares_a_simulator_with_its_own_log(tmp_path, capsys):
    simulator = "feedgym.envs.recsim:InterestEvolution"
    main(["simulate", "--out", str(tmp_path / "log"), "--simulator", simulator, *SMALL])
    main(["realism", str(tmp_path / "log" / "events.parquet"), simulator, *SMALL, "--out", str(tmp_path / "out")])
    assert "session length" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "realism.json").read_text())
    assert all(d["distance"] in (0, None) for d in found["distances"])  # the same users, the same seed
    page = (tmp_path / "out" / "realism.html").read_text()
    assert page.count("class='chart'") == len(list((tmp_path / "out").glob("*.png"))) >= 6
    assert "Kolmogorov" not in page and "KS" in page


def test_a_runs_folder_gives_its_log(tmp_path):
    main(["simulate", "--out", str(tmp_path / "run" / "stages" / "log"), *SMALL])
    log, _ = read_side(str(tmp_path / "run"), users=1, visits=1, session_length=1, seed=0)
    assert log.num_users == 30


def test_what_is_no_log_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_side(str(tmp_path / "nothing"), users=1, visits=1, session_length=1, seed=0)

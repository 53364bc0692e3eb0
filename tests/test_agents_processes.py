"""Several processes of a launcher train one model with the loss and the weights of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_agents_pretrain import CONFIG, dataset
from toy_agents import toy_model
from toy_processes import TRAININGS
from transformers import TrainerCallback

from feedgym import cli
from feedgym.agents import processes
from feedgym.agents.layers.moe import balance_loss
from feedgym.agents.pretrain import pretrain
from feedgym.agents.sharing import average, part_of_mean, share_of, shared_step, total, whole_mean

TOY = Path(__file__).parent / "toy_processes.py"
LAUNCH = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
BY_CHANCE = {"accuracy", "rewards/accuracies", "num_tokens"}
"""Figures of the first step, whose margins are 0 but for rounding; and what idle rows add to."""


def started(folder, launcher, *names):
    """What the trainings in a program of one process, or of two, said."""
    path = folder / f"{len(launcher)}.json"
    env = {name: value for name, value in os.environ.items() if name not in processes.VARIABLES}
    env |= {"PYTHONPATH": f"{TOY.parents[1]}:{TOY.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(TOY), str(path), *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What all trainings said: in one process, and in two."""
    folder = tmp_path_factory.mktemp("processes")
    return started(folder, []), started(folder, LAUNCH)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_learn_what_one_learns(name, said):
    one, two = (told[name] for told in said)
    assert len(one["steps"]) == len(two["steps"]) > 1
    for (*place, want), (*same_place, got) in zip(one["steps"], two["steps"], strict=True):
        assert place == same_place and want.keys() == got.keys()
        for figure in want.keys() - BY_CHANCE:
            assert got[figure] == pytest.approx(want[figure], rel=2e-4, abs=1e-5), (place, figure)
    if name != "sasrec":  # a key's bias has no gradient but rounding, which Adam makes steps of
        assert two["weights"] == pytest.approx(one["weights"], rel=1e-4)


@pytest.mark.slow
def test_a_loss_that_is_not_shared_out_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="The loss of Own cannot be shared out over 2 processes") as failed:
        started(tmp_path, LAUNCH, "own loss")
    assert "part_of_mean; start one process" in str(failed.value)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 8])
def test_shares_are_the_batch_in_order(num_rows, num_processes):
    rows = list(range(num_rows))
    shares = [share_of(rows, process, num_processes) for process in range(num_processes)]
    counted = [list(share) for share, counts in shares if counts]
    assert [row for share in counted for row in share] == rows
    assert max(map(len, counted)) - min(map(len, counted)) <= 1
    assert all(list(share) == [0] for share, counts in shares if not counts)


@pytest.mark.parametrize("counts", [(3, 3), (5, 1), (4, 0)])
def test_the_average_of_the_parts_is_the_mean_over_all_terms(counts, monkeypatch):
    """Two processes by hand: each call waits for nothing, because the sums of both are known."""
    torch.manual_seed(0)
    terms = [torch.randn(count, dtype=torch.float64) for count in counts]
    sums = torch.tensor(float(sum(counts)), dtype=torch.float64)
    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda value: value.copy_(sums))
    with shared_step():
        parts = [part_of_mean(values.mean(), len(values)) for values in terms]
    torch.testing.assert_close(sum(parts) / 2, torch.cat(terms).mean())
    with shared_step(counts=False) as step:
        assert part_of_mean(terms[0].mean(), 3) == 0 and step.num_means == 1


def test_alone_nothing_is_scaled():
    mean = torch.tensor(1.5, requires_grad=True)
    assert part_of_mean(mean, 3) is mean and torch.equal(whole_mean(mean, 3), mean)
    assert total(mean) is mean and average(mean) is mean


def test_the_load_of_a_shared_batch_is_balanced_by_the_same_formula(monkeypatch):
    logits, mask = tuple(torch.randn(2, 12, 4)), torch.arange(12).view(3, 4) % 5 > 0
    want = balance_loss(logits, 2, mask.long())
    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda value: None)
    with shared_step():
        torch.testing.assert_close(balance_loss(logits, 2, mask.long()), want)


def test_a_command_under_a_launcher_is_run_by_all(monkeypatch):
    ran = []
    monkeypatch.setattr(processes, "run_by_all", lambda command: ran.append("all") or command())
    monkeypatch.setitem(cli.COMMANDS, "doctor", lambda rest: ran.append(rest))
    cli.main(["doctor", "x"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    cli.main(["doctor", "y"])
    assert ran == [["x"], "all", ["y"]]


def test_without_a_launcher_training_is_as_before(tmp_path):
    worlds = []

    class World(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            worlds.append(args.world_size)

    pretrain(toy_model(), dataset(), CONFIG, tmp_path, callbacks=[World()])
    assert worlds == [1] and not torch.distributed.is_initialized()

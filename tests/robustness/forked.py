"""Tiny experiments in forks of one process that has imported everything: kills and damages by the hundred.

No thread of torch may run before a fork, so nothing is computed here before it.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}

import torch
import wandb  # noqa: F401 (imported once for all forks)
from datasets import Dataset  # noqa: F401
from trl import DPOConfig, DPOTrainer  # noqa: F401

from feedgym.cli import main
from feedgym.experiments import report
from feedgym.experiments.align.agents import agents_of, read_config
from feedgym.experiments.align.presets import smoke
from feedgym.experiments.launch import kind_of
from feedgym.experiments.presets import PRESETS
from feedgym.experiments.run import Run

torch.set_num_threads(1)
report.write_report = lambda summary, folder: (folder / "report.html").touch()  # plots take longer than the rest

TIMES = ("stages", "peak_memory_mb", "git_revision")
"""Of a summary: what two runs do not share."""


def aligned():
    """OneRec's alignment: Trainer's and TRL's checkpoints, with the rotation of old ones."""
    tiny = smoke()
    return replace(
        tiny,
        ray="off",
        session_length=3,
        simulator_options=replace(tiny.simulator_options, num_items=60),
        log=replace(tiny.log, users=40, visits=3),
        pretrain=replace(tiny.pretrain, steps=8, checkpoint_steps=2),
        reward_model=replace(tiny.reward_model, checkpoint_steps=1),
        method_options=replace(tiny.method_options, checkpoint_steps=1, batch_size=4),
        rounds=replace(tiny.rounds, num=1, num_samples=4, truth_replicas=2),
        judge=replace(tiny.judge, users=8, visits=1, beams=0),
    )


def retrieved():
    """HSTU's retrieval: the best epoch's weights beside the checkpoints."""
    tiny = PRESETS["hstu-smoke"]()
    return replace(
        tiny,
        sasrec_ce=False,
        epochs=4,
        fit=replace(tiny.fit, batch_size=16, checkpoint_steps=2),
        log=replace(tiny.log, users=40),
        knn_recent=(0, 1),
    )


CONFIGS = {"aligned": aligned, "retrieved": retrieved}


def in_fork(work: Callable[[], None], told: Path) -> int:
    """What a fork ends with: its exit code, or the negative number of its signal; its words go to a file."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        with open(told, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(config, folder: Path) -> None:
    """Begin a run, or go on with it, to its end; its own configuration counts, where it has one."""
    if (folder / "config.json").exists():
        config = read_config(folder)
    kind = kind_of(config)
    run = Run(folder, config, kind.plan(config), resume=True, tracker="none")
    try:
        kind.experiment(config, run)
    finally:
        run.close()


def resume(folder: Path) -> None:
    """``feedgym demo --resume``."""
    main(["demo", "--resume", str(folder), "--ray", "off"])


def weigh(folder: Path) -> None:
    """Print what the agents of a finished run are, or one line of refusal as the command line has it."""
    try:
        agents = agents_of(folder).agents
    except (ValueError, OSError) as error:
        print("feedgym:", " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from error
    sums = {
        name: sum(float(w.double().sum()) for w in agent.model.state_dict().values()) for name, agent in agents.items()
    }
    print("weights", json.dumps(sums))


def figures(folder: Path) -> str:
    """All that a summary says, but times and memory."""
    summary = json.loads((folder / "summary.json").read_text())
    return json.dumps({name: value for name, value in summary.items() if name not in TIMES}, sort_keys=True)

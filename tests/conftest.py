"""Lets test files import the helpers that lie beside them (the import mode is importlib), and trains what many need."""

import gc
import os
import sys
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "plugins"))  # my_lab, a package of somebody else's

# W&B's record takes seconds a run; the tests of it ask for it.
os.environ["WANDB_MODE"] = "disabled"

# The same examples in every run, so that a change is what breaks a test; HYPOTHESIS_PROFILE=explore looks for new ones.
hypothesis.settings.register_profile("repeat", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


def pytest_collection_finish():
    """Leaves what is imported by now out of all garbage collections: the Trainer asks for a whole one per training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread():
    """Networks as small as the tests' only lose by threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def aligned_run(tmp_path_factory):
    """The folder of a tiny run brought up to the snapshot of its only round, which is all that its agents need."""
    from feedgym.experiments.align.experiment import align, plan
    from feedgym.experiments.align.presets import smoke
    from feedgym.experiments.run import Run, StageReached

    folder = tmp_path_factory.mktemp("runs") / "one"
    tiny = smoke()
    config = replace(
        tiny,
        ray="off",
        session_length=4,
        log=replace(tiny.log, users=60, visits=3),
        pretrain=replace(tiny.pretrain, steps=3, checkpoint_steps=3),
        rounds=replace(tiny.rounds, num=1, num_samples=6, truth_replicas=2),
        reward="diverse",
    )
    run = Run(folder, config, plan(config), tracker="none", stop_after="aligned-1")
    with pytest.raises(StageReached):
        align(config, run)
    run.close()
    return folder


@pytest.fixture
def two_gpus(monkeypatch):
    """Makes the Trainer see two GPUs, on any machine; what it then does to a model happens on the CPU.

    The value is a list of the batches that were cut in two, as ``nn.DataParallel`` cuts them.
    """
    import torch

    cut = []

    class Cutting(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **batch):
            cut.append(batch)
            halves = [{name: value.chunk(2)[i] for name, value in batch.items()} for i in range(2)]
            first, second = (self.module(**half) for half in halves)
            joined = {
                name: (value + second[name]) / 2 if value.ndim == 0 else torch.cat([value, second[name]])
                for name, value in first.items()
                if isinstance(value, torch.Tensor)
            }
            return type(first)(**joined)

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.nn, "DataParallel", Cutting)
    return cut

"""Lets test files import the helpers that lie beside them (the import mode is importlib), and trains what many need."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))

# The same examples in every run, so that a change is what breaks a test; HYPOTHESIS_PROFILE=explore looks for new ones.
hypothesis.settings.register_profile("repeat", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


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
    from feedgym.experiments.align import align
    from feedgym.experiments.presets import smoke
    from feedgym.experiments.run import Run, StageReached

    folder = tmp_path_factory.mktemp("runs") / "one"
    tiny = smoke()
    config = replace(
        tiny,
        ray="off",
        session_length=4,
        log=replace(tiny.log, users=60, visits=3),
        pretrain=replace(tiny.pretrain, steps=3, checkpoint_steps=3),
        ipa=replace(tiny.ipa, rounds=1, num_samples=6, truth_replicas=1),
        score="feedgym.rewards.compose:diverse",
    )
    run = Run(folder, config, tracker=False, stop_after="aligned-1")
    with pytest.raises(StageReached):
        align(config, run)
    run.close()
    return folder

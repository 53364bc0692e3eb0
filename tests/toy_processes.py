"""Trains one model of every kind and writes what each step said; a program, so that a launcher can start it.

python tests/toy_processes.py OUT.json [NAMES ...]
python -m torch.distributed.run --nproc-per-node 2 tests/toy_processes.py OUT.json [NAMES ...]
"""

import json
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

for variable in ("HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES"):
    os.environ[variable] = {"HF_HUB_OFFLINE": "1"}.get(variable, "")

from test_agents_fit import cycles, model_of  # noqa: E402
from test_agents_pretrain import CONFIG, dataset  # noqa: E402
from test_alignment_methods import make_method, make_sampled  # noqa: E402
from toy_agents import toy_model  # noqa: E402
from toy_contrasts import make_histories, make_model, make_preferences  # noqa: E402

from feedgym.agents.fit import FitConfig, fit  # noqa: E402
from feedgym.agents.pretrain import pretrain  # noqa: E402
from feedgym.agents.processes import run_by_all  # noqa: E402
from feedgym.agents.sequences import SequenceDataset  # noqa: E402


def onerec(folder, told):
    """Sessions of different lengths, a last batch with one row for two processes, experts, two epochs."""
    config = replace(CONFIG, steps=0, epochs=2, batch_size=8)
    return pretrain(toy_model(dropout=0.0), dataset(41), config, folder, told)


def sasrec(folder, told):
    """Validated by the first process alone, which decides to stop."""
    model, config = model_of(loss="ce", dropout=0.0), FitConfig(batch_size=16, patience=2)
    values = iter([0.1, 0.3, 0.2, 0.1, 0.5])
    model, curve = fit(model, SequenceDataset(histories=cycles(50)), config, 5, 0, lambda _: next(values), folder, told)
    assert [row["epoch"] for row in curve] == [1, 2, 3, 4]
    told(-1, -1, {"score": float(model.scores(cycles(50)).abs().mean())})
    return model


def reward(folder, told, members=1):
    """Labels with gaps, so that every mean of the loss has its own number of terms."""
    from test_rewards_model import SMALL, catalog, histories, logged

    from feedgym.rewards.training import fit_reward_model

    config = replace(SMALL, id_dropout=0.0, dropout=0.0, epochs=2, members=members)
    return fit_reward_model(catalog(), histories(50), logged(50), config, folder, told)


def aligned(name):
    """A round of an alignment method, whose users have logged sessions of 0 to K items."""

    def train(folder, told):
        model, sampled = make_model(), make_sampled(21)
        method = make_method(name, batch_size=4, ntp_weight=0.5)
        figures = method.update(model, make_histories(21), sampled, make_preferences(21).logged_PK, folder, told)
        told(-1, -1, figures)
        return model

    return train


def run(folder, told):
    """A tiny run up to its only round: the first process makes its stages, both train its models."""
    from feedgym.experiments.align.experiment import align, plan
    from feedgym.experiments.align.presets import smoke
    from feedgym.experiments.run import Run, StageReached

    tiny = smoke()
    config = replace(
        tiny,
        ray="off",
        session_length=4,
        log=replace(tiny.log, users=60, visits=3),
        model_options=replace(tiny.model_options, dropout=0.0),
        reward_model=replace(tiny.reward_model, dropout=0.0, id_dropout=0.0),
        pretrain=replace(tiny.pretrain, steps=3, checkpoint_steps=3),
        rounds=replace(tiny.rounds, num=1, num_samples=6, truth_replicas=2),
    )
    run = Run(folder, config, plan(config), tracker="none", stop_after="aligned-1")
    with suppress(StageReached):
        align(config, run)
    run.close()
    told(-1, -1, json.loads((folder / "stages" / "aligned-1" / "value.json").read_text()))
    weights = load_file(folder / "stages" / "base" / "model.safetensors")
    told(-1, -1, {name: float(value.double().abs().sum()) for name, value in weights.items()})


class Own(type(toy_model())):
    """A model whose loss is not made for several processes."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs | {"labels": None, "output_router_logits": False})
        outputs.loss = outputs.logits.square().mean()
        return outputs


def own_loss(folder, told):
    """Refused by two processes."""
    model = toy_model(dropout=0.0)
    model.__class__ = Own
    return pretrain(model, dataset(), CONFIG, folder, told)


TRAININGS = {
    "run": run,
    "onerec": onerec,
    "sasrec": sasrec,
    "reward": reward,
    "reward, three members": lambda folder, told: reward(folder, told, members=3),
    **{name: aligned(name) for name in ("ipa", "simpo", "s_dpo", "kto", "grpo", "exp_rsft")},
}


def main(out, *names):
    """Train the named models, or all."""
    torch.set_num_threads(1)
    said = {}
    for name in names or TRAININGS:
        steps = []
        train = own_loss if name == "own loss" else TRAININGS[name]
        with tempfile.TemporaryDirectory() as folder:
            model = train(Path(folder), lambda *step, steps=steps: steps.append(step))
        weights = [float(value.double().abs().sum()) for value in model.state_dict().values()] if model else []
        said[name] = {"steps": steps, "weights": weights}
    Path(out).write_text(json.dumps(said))


if __name__ == "__main__":
    if "WORLD_SIZE" in os.environ:
        run_by_all(lambda: main(*sys.argv[1:]))
    else:
        main(*sys.argv[1:])

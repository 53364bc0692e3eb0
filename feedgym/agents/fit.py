"""Training of next-item models and rankers by transformers.Trainer, and the epoch that validation liked best.

After each epoch a figure of validation targets is taken (never of test targets). The weights of the best epoch are kept
beside the checkpoints; training stops once ``patience`` epochs have brought no better one. A killed run goes on at its
last checkpoint, which is written whenever validation has spoken, and ends in the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from feedgym.agents.pretrain import Examples, PretrainConfig, Progress, Schedule, pretrain
from feedgym.data.parquet import replacing
from feedgym.data.whole import digest_of, drop_checkpoints, read_sealed, write_sealed
from feedgym.ranges import BelowOne, Count, CountOrZero, LearningRate, NonNegative, Ranged

ModelT = TypeVar("ModelT", bound=nn.Module)

RECORD = "validation.json"

Curve = list[dict[str, float]]
"""A row a validation: epoch, step, its figure, and the mean of the training losses logged since the one before."""


@dataclass(frozen=True, kw_only=True)
class FitConfig(Ranged):
    """How a next-item model or a ranker is trained."""

    batch_size: Count = 128
    """Examples a step and device: users with their whole sequences, or requests."""
    lr: LearningRate = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: CountOrZero = 0
    """Steps in which the learning rate rises from 0."""
    schedule: Schedule = "constant_with_warmup"
    """What the learning rate does afterwards."""
    weight_decay: NonNegative = 0.0
    """AdamW's decay of matrices."""
    adam_beta2: BelowOne = 0.98
    """AdamW's memory of squared gradients."""
    max_grad_norm: NonNegative = 0.0
    """Gradients are clipped to this norm; 0 leaves them as they are."""
    group_by_length: bool = False
    """Put histories of like length into a batch, among 50 batches drawn at random: less padding to compute."""
    bf16: bool = False
    """Compute in bfloat16, which GPUs and some processors multiply several times as fast."""
    validate_every: Count = 1
    """Epochs between validations."""
    patience: CountOrZero = 10
    """Validations without a better one after which training stops; 0 never stops early."""
    checkpoint_steps: Count = 1000
    """Steps between checkpoints inside long epochs."""

    def pretrain(self, epochs: int, seed: int) -> PretrainConfig:
        """The Trainer's part."""
        shared = {name: value for name, value in vars(self).items() if name in PretrainConfig.__dataclass_fields__}
        return PretrainConfig(**shared, epochs=epochs, seed=seed)


def fit(
    model: ModelT,
    examples: Examples,
    config: FitConfig,
    epochs: int,
    seed: int,
    validate: Callable[[ModelT], float],
    output_dir: Path,
    progress: Progress | None = None,
) -> tuple[ModelT, Curve]:
    """Train ``model`` in place and leave it with the weights of its best epoch.

    Args:
        model: the agent.
        examples: what it learns from, with its own way to make batches.
        config: learning rate, patience and so on.
        epochs: passes over the examples, at most.
        seed: of the order of the examples, of dropout and of drawn negatives.
        validate: a figure of the model on validation targets, higher is better.
        output_dir: gets checkpoints, the best weights and the record of validation; a training begun there goes on.
        progress: called after each step.

    Returns:
        The model and the record of validation.
    """
    best = BestEpoch(model, lambda: validate(model), config, output_dir)
    if not best.stopped:
        pretrain(model, examples, config.pretrain(epochs, seed), output_dir, progress, [best])
    model.load_state_dict(load_file(best.weights(best.best_step)))
    return model.eval(), best.curve


class BestEpoch(TrainerCallback):
    """Validates after epochs, keeps the best weights and stops when nothing gets better."""

    def __init__(self, model: nn.Module, validate: Callable[[], float], config: FitConfig, folder: Path) -> None:
        self.model, self.validate, self.config, self.folder = model, validate, config, folder
        self.curve: Curve = []
        self.stopped = False
        if not self._go_on():  # without the record, or the weights that it likes best, checkpoints are of no use
            self.curve, self.stopped = [], False
            drop_checkpoints(folder)
            self._write()

    def _go_on(self) -> bool:
        """Take up the record of a killed training, if it and the best weights are whole."""
        try:
            record = read_sealed(self.folder / RECORD)
            self.curve, self.stopped = record["curve"], record["stopped"]
            return self._best_digest() == record["best"]
        except (OSError, ValueError, KeyError, TypeError):  # none, a damaged one, or another file in its place
            return False

    def _best_digest(self) -> str | None:
        return digest_of(self.weights(self.best_step)) if self.curve else None

    @property
    def best_step(self) -> int:
        """When validation was best; the earliest of equals."""
        return int(max(self.curve, key=lambda row: row["validation"])["step"])

    def weights(self, step: int) -> Path:
        """Where the weights of a step lie."""
        return self.folder / f"best-{step}.safetensors"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """No checkpoint between an epoch's last step and its validation: a run that went on there would miss it."""
        control.should_save &= state.epoch != round(state.epoch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Validate, unless it is not yet time."""
        epoch = round(state.epoch)
        if epoch % self.config.validate_every and state.global_step < state.max_steps:
            return
        # A run that was killed after its last checkpoint validates some epochs again.
        self.curve = [row for row in self.curve if row["step"] < state.global_step]
        begin = self.curve[-1]["step"] if self.curve else 0
        losses = [row["loss"] for row in state.log_history if "loss" in row and row["step"] > begin]
        row = {"epoch": epoch, "step": state.global_step, "validation": self.validate()}
        self.curve.append(row | ({"loss": fmean(losses)} if losses else {}))
        if self.best_step == state.global_step:
            self._keep_weights(state.global_step)
        since = sum(row["step"] > self.best_step for row in self.curve)
        self.stopped = 0 < self.config.patience <= since
        self._write()
        for old in self.folder.glob("best-*.safetensors"):
            if old != self.weights(self.best_step):
                old.unlink()
        control.should_save = True
        control.should_training_stop |= self.stopped

    def _keep_weights(self, step: int) -> None:
        with replacing(self.weights(step)) as temporary:
            save_file({name: value.contiguous() for name, value in self.model.state_dict().items()}, temporary)

    def _write(self) -> None:
        record = {"curve": self.curve, "stopped": self.stopped, "best": self._best_digest()}
        write_sealed(self.folder / RECORD, record)

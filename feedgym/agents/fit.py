"""Trains next-item models and rankers by transformers.Trainer, and selects the epoch with the best validation figure.

After each epoch a figure is computed on validation targets (never on test targets). The weights of the best epoch are
kept next to the checkpoints. Training stops after ``patience`` epochs without improvement. A killed run resumes from
its last checkpoint, which is written after every validation, and ends with the same weights.
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
"""One row per validation: epoch, step, its figure, and the mean of the training losses logged since the previous
one."""


@dataclass(frozen=True, kw_only=True)
class FitConfig(Ranged):
    """Options for training a next-item model or a ranker."""

    batch_size: Count = 128
    """Examples per step, which the processes of a launcher share out: users with their sequences, or requests."""
    lr: LearningRate = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: CountOrZero = 0
    """Steps during which the learning rate rises from 0."""
    schedule: Schedule = "constant_with_warmup"
    """Learning rate after the warm-up."""
    weight_decay: NonNegative = 0.0
    """AdamW's weight decay of matrices."""
    adam_beta2: BelowOne = 0.98
    """AdamW's decay for the average of squared gradients (beta 2)."""
    max_grad_norm: NonNegative = 0.0
    """Gradients are clipped to this norm; 0 disables clipping."""
    group_by_length: bool = False
    """Put histories of similar length into a batch, among 50 batches drawn at random, which reduces padding."""
    bf16: bool = False
    """Compute in bfloat16, which is several times as fast on GPUs and some processors."""
    validate_every: Count = 1
    """Epochs between validations."""
    patience: CountOrZero = 10
    """Validations without improvement after which training stops; 0 never stops early."""
    checkpoint_steps: Count = 1000
    """Steps between checkpoints within long epochs."""

    def pretrain(self, epochs: int, seed: int) -> PretrainConfig:
        """The options of the Trainer."""
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
    tell: Callable[[dict[str, float]], Any] = lambda row: None,
) -> tuple[ModelT, Curve]:
    """Train ``model`` in place and leave it with the weights of its best epoch.

    Args:
        model: the agent.
        examples: the training data, which makes its own batches.
        config: learning rate, patience and so on.
        epochs: most passes over the examples.
        seed: for the order of the examples, dropout and drawn negatives.
        validate: computes a figure of the model on validation targets; higher is better.
        output_dir: folder for checkpoints, the best weights and the record of validation; a training begun there
            resumes.
        progress: called after each step.
        tell: called with each validation, a row of the record, as soon as it is written.

    Returns:
        The model and the record of validation.
    """
    best = BestEpoch(model, lambda: validate(model), config, output_dir, tell)
    if not best.stopped:
        pretrain(model, examples, config.pretrain(epochs, seed), output_dir, progress, [best])
    model.load_state_dict(load_file(best.weights(best.best_step)))
    return model.eval(), best.curve


class BestEpoch(TrainerCallback):
    """Validates after epochs, keeps the best weights and stops when there is no improvement."""

    def __init__(
        self,
        model: nn.Module,
        validate: Callable[[], float],
        config: FitConfig,
        folder: Path,
        tell: Callable[[dict[str, float]], Any] = lambda row: None,
    ) -> None:
        self.model, self.validate, self.config, self.folder, self.tell = model, validate, config, folder, tell
        self.curve: Curve = []
        self.stopped = False
        if not self._go_on():  # checkpoints are useless without the record or the best weights
            self.curve, self.stopped = [], False
            drop_checkpoints(folder)
            self._write()

    def _go_on(self) -> bool:
        """Continue with the record of a killed training, if it and the best weights are complete."""
        try:
            record = read_sealed(self.folder / RECORD)
            self.curve, self.stopped = record["curve"], record["stopped"]
            return self._best_digest() == record["best"]
        except (OSError, ValueError, KeyError, TypeError):  # missing, damaged, or replaced by another file
            return False

    def _best_digest(self) -> str | None:
        return digest_of(self.weights(self.best_step)) if self.curve else None

    @property
    def best_step(self) -> int:
        """Step with the best validation; the earliest among equals."""
        return int(max(self.curve, key=lambda row: row["validation"])["step"])

    def weights(self, step: int) -> Path:
        """Path of the weights of a step."""
        return self.folder / f"best-{step}.safetensors"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write no checkpoint between an epoch's last step and its validation, which a resumed run would miss."""
        control.should_save &= state.epoch != round(state.epoch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Validate, if it is due."""
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
        self.tell(self.curve[-1])
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

"""Options and helpers shared by all trainers: the Trainer's arguments, and a model that is returned as it came."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from feedgym.agents.pretrain import Schedule
from feedgym.ranges import Count, CountOrZero, LearningRate, NonNegative, Passes, Positive, Ranged, Seed, check_choices


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Ranged):
    """Options for training the model for one round; a row is a contrast or a group, as the method learns from one."""

    ntp_weight: NonNegative = 0.5
    """Weight of next-token prediction on the logged sessions (mean over codes). At 0 a method may push probability off
    the catalogue."""
    learning_rate: LearningRate = 3e-4
    """Peak learning rate of AdamW; no weight decay."""
    warmup_steps: CountOrZero = 0
    """Steps during which the learning rate rises from 0."""
    schedule: Schedule = "linear"
    """Learning rate after the warm-up; linear and cosine fall to 0, inverse_sqrt stays high for long."""
    epochs: Passes = 3
    """Passes over the rows."""
    batch_size: Count = 16
    """Rows per step; the processes of a launcher share them out."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    bf16: bool = False
    """Compute in bfloat16, which is several times as fast on GPUs and some processors."""
    checkpoint_steps: Count = 200
    """Steps between checkpoints."""
    seed: Seed = 0
    """Seed for the order of the rows and for all random draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, schedule=Schedule)


def shared_arguments(config: TrainingConfig, output_dir: Path) -> dict[str, Any]:
    """Arguments of transformers' Trainer for a round, from the fields of the same meaning."""
    return {
        "output_dir": str(output_dir),
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "lr_scheduler_type": config.schedule,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.bf16,
        "use_cpu": not torch.accelerator.is_available(),  # else bf16 asks for a GPU
        "seed": config.seed,
        "data_seed": config.seed,
        "save_strategy": "steps",
        "save_steps": config.checkpoint_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
    }


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Undo at the end what trainers do to a model besides training: dropout rates, flags, their own ``forward``.

    A deep copy would go on calling a ``forward`` on the instance with this model's weights.
    """
    rates = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    training = model.training
    try:
        yield
    finally:
        for module, rate in rates:
            module.p = rate
        for name in ("forward", "_original_forward", "_input_embed_layer"):
            vars(model).pop(name, None)
        model.train(training)

"""What the trainers of all methods share: the Trainer's arguments, and a model that is given back as it came."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn


def shared_arguments(config: Any, output_dir: Path) -> dict[str, Any]:
    """The arguments of transformers' Trainer by which a round is trained, from the fields of the same meaning."""
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
    """Undo in the end what trainers do to a model besides training: dropout rates, flags, a ``forward`` of theirs.

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

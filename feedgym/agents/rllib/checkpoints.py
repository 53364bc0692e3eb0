"""Stores a learner's state and metrics: arrays as safetensors, the rest as JSON, nothing pickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from feedgym.data.whole import last_whole_checkpoint, new_checkpoint

TENSORS = "learner.safetensors"


Curve = list[dict[str, float]]
"""Metrics of the iterations so far, one row each."""


def write_checkpoint(work: Path, iteration: int, state: Any, curve: Curve) -> None:
    """Store a learner's state and the metrics so far."""
    tensors: dict[str, Tensor] = {}
    rest = _split(state, "", tensors)
    told = {"iteration": str(iteration), "rest": json.dumps(rest), "curve": json.dumps(curve)}
    with new_checkpoint(work, iteration) as folder:
        save_file(tensors, folder / TENSORS, metadata=told)


def read_checkpoint(work: Path) -> tuple[int, Any, Curve]:
    """The iterations done, the learner's state and the metrics; 0, None and [] without a complete checkpoint."""
    if (folder := last_whole_checkpoint(work)) is None:
        return 0, None, []
    try:
        with safe_open(folder / TENSORS, "pt") as file:
            told = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return int(told["iteration"]), _joined(json.loads(told["rest"]), tensors), json.loads(told["curve"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):  # sealed by another program
        return 0, None, []


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """A nested state as JSON, with arrays replaced by names in ``tensors``."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        tensors[path] = torch.as_tensor(value).detach().clone().contiguous()
        return {"array": path, "numpy": not isinstance(value, Tensor)}
    if isinstance(value, dict):
        return {"dict": [[key, _split(part, f"{path}/{key}", tensors)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_split(part, f"{path}/{n}", tensors) for n, part in enumerate(value)]}
    return {"value": value}


def _joined(rest: Any, tensors: dict[str, Tensor]) -> Any:
    if "array" in rest:
        return tensors[rest["array"]].numpy() if rest["numpy"] else tensors[rest["array"]]
    if "dict" in rest:
        return {key: _joined(part, tensors) for key, part in rest["dict"]}
    if "list" in rest:
        return [_joined(part, tensors) for part in rest["list"]]
    return rest["value"]

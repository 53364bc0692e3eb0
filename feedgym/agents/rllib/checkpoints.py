"""A learner's state on disk: its arrays as safetensors, the rest as JSON, nothing pickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from feedgym.data.parquet import replacing

TENSORS = "learner.safetensors"


def write_checkpoint(work: Path, iteration: int, state: Any) -> None:
    """Keep a learner's state: its arrays as safetensors, the rest as JSON, nothing pickled."""
    tensors: dict[str, Tensor] = {}
    rest = _split(state, "", tensors)
    with replacing(work / TENSORS) as temporary:
        save_file(tensors, temporary, metadata={"iteration": str(iteration), "rest": json.dumps(rest)})


def read_checkpoint(work: Path) -> tuple[int, Any]:
    """The iterations done and the learner's state then; 0 and None where there is no checkpoint, or no whole one."""
    try:
        with safe_open(work / TENSORS, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return int(metadata["iteration"]), _joined(json.loads(metadata["rest"]), tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return 0, None


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """A nested state as JSON, whose arrays are names in ``tensors``."""
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

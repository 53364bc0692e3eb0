"""``feedgym doctor``: the facts about a machine that belong in a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

PACKAGES = (
    *("torch", "gymnasium", "trl", "transformers", "accelerate", "datasets", "ray", "wandb"),
    *("numpy", "scipy", "pandas", "pyarrow", "scikit-learn", "numba"),
)
"""Libraries whose versions matter."""


def findings() -> dict[str, dict[str, str]]:
    """Returns the facts by topic and name. Nothing is started, and no secret is printed."""
    return {
        "feedgym": dict(_feedgym()),
        "libraries": {name: _version(name) for name in PACKAGES},
        "machine": dict(_machine()),
        "GPU": dict(_gpus()),
        "Ray": dict(_ray()),
        "Weights & Biases": dict(_wandb()),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _feedgym() -> Iterator[tuple[str, str]]:
    from feedgym.experiments.run import git_revision

    yield "version", _version("feedgym")
    yield "revision", git_revision()
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "environment", "virtual" if sys.prefix != sys.base_prefix else "system"


def _machine() -> Iterator[tuple[str, str]]:
    memory = psutil.virtual_memory()
    yield "system", platform.platform()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count()
    yield (
        "cores",
        f"{allowed} usable of {psutil.cpu_count()}; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}",
    )
    yield "memory", f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}"
    yield "disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free"
    if Path("/dev/shm").is_dir():  # Ray keeps its objects there
        yield "shared memory", f"{shutil.disk_usage('/dev/shm').free / 2**30:.1f} GiB free"


def _gpus() -> Iterator[tuple[str, str]]:
    import torch

    if not torch.cuda.is_available():
        yield "CUDA", "none; everything runs on the CPU"
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"


def _ray() -> Iterator[tuple[str, str]]:
    address = os.environ.get("RAY_ADDRESS")
    yield "cluster", f"RAY_ADDRESS={address}" if address else "none named; --ray local starts one for each run"


def _wandb() -> Iterator[tuple[str, str]]:
    mode = os.environ.get("WANDB_MODE", "offline")
    yield "mode", f"{mode}; runs are kept in their folder, and `wandb sync` uploads them" if mode == "offline" else mode
    netrc = Path.home() / ".netrc"
    known = bool(os.environ.get("WANDB_API_KEY")) or (netrc.exists() and "wandb" in netrc.read_text(errors="ignore"))
    yield "account", "a key is set" if known else "no key is set; offline runs need none"

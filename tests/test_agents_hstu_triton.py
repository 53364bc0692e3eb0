"""HSTU's fused attention: in Triton's interpreter as without kernels, and compiled for GPUs that are not there."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_fused import CASES, KINDS, USERS, made

from feedgym.agents.layers import hstu_triton
from feedgym.agents.layers.hstu_triton import HAS_TRITON, INTERPRETED

TOY = Path(__file__).parent / "toy_fused.py"
LEAST_SHARED = 99 * 1024
"""Bytes of shared memory that a block may have on any GPU of compute capability 8 or more."""
TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed, or turned off")


def in_a_process(*command, **variables):
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=os.environ | variables, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the kernels compute in the interpreter, and what it is without them."""
    path = tmp_path_factory.mktemp("fused") / "out.pt"
    in_a_process(TOY, path, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    return torch.load(path)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_kernels_have_the_values_and_gradients_of_blocks_and_of_the_equation(name, interpreted):
    found, half = dict(interpreted["layers"][name]), "dtype" in CASES[name]
    fused, _ = found.pop("fused")
    assert len(fused) == 4 - (not CASES[name].get("use_time", True)) and all(x.abs().max() > 1e-3 for x in fused)
    for other, _ in found.values():
        torch.testing.assert_close(fused, other, atol=5e-3 if half else 5e-6, rtol=5e-3 if half else 1e-5)


@needs_triton
def test_nothing_is_kept_for_pairs_of_positions(interpreted):
    found = interpreted["layers"]["an odd length, two heads"]
    assert found["plain"][1] == USERS * 2 * 53 * 53  # weights
    assert found["fused"][1] == USERS * 2 * 53 * 7  # values


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_trains_the_same_with_kernels(kind, interpreted):
    (fused, calls), (blocks, none) = (interpreted["models"][kind][way] for way in ("fused", "blocks"))
    assert calls == 2 and none == 0  # once a layer
    torch.testing.assert_close(fused, blocks, atol=1e-5, rtol=1e-4)


class Compiling:
    """Stands for a kernel: compiles it for what it would be launched with, and runs nothing."""

    def __init__(self, kernel, capability, compiled):
        self.kernel, self.capability, self.compiled = kernel, capability, compiled

    def __getitem__(self, grid):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        def launch(*arguments, **constants):
            assert all(0 < size < 2**16 for size in grid)
            given = dict(zip(self.kernel.arg_names, arguments, strict=False)) | constants
            kinds, fixed = {}, {}
            for parameter in self.kernel.params:
                value = given.get(parameter.name, parameter.default)
                kinds[parameter.name] = "constexpr" if parameter.is_constexpr else kind(value)
                if kinds[parameter.name] == "constexpr":
                    fixed[parameter.name] = value
            target = GPUTarget("cuda", self.capability, 32)
            self.compiled.append(compile(ASTSource(self.kernel, kinds, fixed), target=target))

        return launch


def kind(argument):
    """The type of a kernel's argument, in Triton's notation."""
    if argument is None:
        return "constexpr"
    if isinstance(argument, torch.Tensor):
        return "*" + TYPES[argument.dtype]
    return "i32" if isinstance(argument, int) else "fp32"


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(
    ("capability", "dtype", "width", "use_time"),
    [
        (80, torch.bfloat16, 5, True),
        (90, torch.float32, 5, False),
        pytest.param(80, torch.float32, 64, True, marks=pytest.mark.slow),
        pytest.param(80, torch.float16, 128, True, marks=pytest.mark.slow),
        pytest.param(90, torch.float32, 50, True, marks=pytest.mark.slow),
        pytest.param(90, torch.bfloat16, 128, True, marks=pytest.mark.slow),
    ],
)
def test_kernels_compile_for_gpus_and_fit_into_their_memory(capability, dtype, width, use_time, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = []
    for name in ("_attended", "_query_gradients", "_key_gradients"):
        monkeypatch.setattr(hstu_triton, name, Compiling(getattr(hstu_triton, name), capability, compiled))
    layer, _, times, _ = made(20, 2, width, width, use_time)
    q, k, v = (torch.zeros(USERS, 20, 2, width, dtype=dtype, requires_grad=True) for _ in range(3))
    layer._attend_fused(q, k, v, times).sum().backward()
    assert len(compiled) == 3
    for kernel in compiled:
        assert kernel.asm["cubin"] and kernel.metadata.shared <= LEAST_SHARED


@pytest.mark.parametrize(
    ("changes", "fuses"),
    [
        ({}, True),
        ({"dtype": torch.bfloat16, "width": 128}, True),
        ({"width": 65}, False),
        ({"dtype": torch.float64}, False),
        ({"capability": (7, 5)}, False),
        ({"is_cuda": False}, False),
        ({"deterministic": True}, False),
        ({"has_triton": False}, False),
    ],
)
def test_kernels_are_used_on_gpus_for_what_they_support(changes, fuses, monkeypatch):
    given = dict(width=64, dtype=torch.float32, capability=(8, 0), is_cuda=True)
    given |= dict(deterministic=False, has_triton=True) | changes
    monkeypatch.setattr(hstu_triton, "HAS_TRITON", given["has_triton"])
    monkeypatch.setattr(hstu_triton, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: given["capability"])
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: given["deterministic"])
    q, v = (
        SimpleNamespace(shape=(2, 5, 1, width), dtype=given["dtype"], is_cuda=given["is_cuda"], device="cuda")
        for width in (given["width"], 3)
    )
    assert hstu_triton.can_attend(q, v) == fuses


SAYS = "from feedgym.agents.layers import hstu_triton; print(hstu_triton.HAS_TRITON, 'triton' in sys.modules)"


def test_the_module_can_be_imported_without_triton_and_with_kernels_turned_off():
    assert in_a_process("-c", f"import sys; sys.modules['triton'] = None; {SAYS}") == "False True"
    assert in_a_process("-c", f"import sys; {SAYS}", FEEDGYM_TRITON="0").startswith("False")

"""Shared fixtures: which backends a test runs on, instruction-set levels, and NaN poison around outputs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import settings

from jepa_kernels import _native

settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("default")

# What runs on CPU tensors. Triton's interpreter tests live in tests/kernels, in a process of their own.
CPU_BACKENDS = ("reference", "cpu")
GPU_BACKENDS = ("reference", "triton", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine"))


@pytest.fixture(autouse=True)
def _no_forced_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("JEPA_KERNELS_BACKEND"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 is float32: by itself cuDNN multiplies in TF32, and the reference's convolution would be off by a thousandth."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def backend_parameters(*extra: str, without: Sequence[str] = ()) -> list:  # type: ignore[type-arg]
    """Parameters (device, backend): the CPU ones always, the GPU ones, but for `without`, under the mark `gpu`."""
    names = [name for name in (*GPU_BACKENDS, *extra) if name not in without]
    cpu = [pytest.param(("cpu", name), id=f"cpu-{name}") for name in CPU_BACKENDS]
    gpu = [pytest.param(("cuda", name), id=f"cuda-{name}", marks=pytest.mark.gpu) for name in names]
    return cpu + gpu


@contextlib.contextmanager
def instruction_set(level: str) -> Iterator[None]:
    """Limits the CPU kernels to one instruction-set level."""
    native = _native.cpu()
    before = native.active_isa()
    native.limit_isa(level)
    try:
        yield
    finally:
        native.limit_isa(before)


def instruction_sets() -> list[str]:
    """Every level this processor has, lowest first."""
    levels = ["baseline", "avx2", "avx512", "avx512_bf16"]
    if _native.why_no_cpu():
        return []
    return levels[: levels.index(_native.cpu().detected_isa()) + 1]


def guarded(tensor: torch.Tensor, margin: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of a contiguous tensor between two bands of a bit pattern, and the whole allocation; see `assert_guards_intact`."""
    whole = torch.full((tensor.numel() + 2 * margin,), 77, dtype=tensor.dtype, device=tensor.device)
    inner = whole[margin : margin + tensor.numel()].view(tensor.shape)
    inner.copy_(tensor)
    return inner, whole


def assert_guards_intact(whole: torch.Tensor, margin: int = 64) -> None:
    assert torch.all(whole[:margin] == 77), "written before the start of the output"
    assert torch.all(whole[-margin:] == 77), "written past the end of the output"

"""What this machine is: processor, instruction sets, GPUs, and the names under which tuned tables know them."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import _native


@functools.cache
def architecture(device_index: int) -> str:
    """The name of a GPU's architecture as the tuned tables use it, such as `sm_90`."""
    major, minor = torch.cuda.get_device_capability(device_index)
    return f"sm_{major}{minor}"


@functools.cache
def cpu_name() -> str:
    """The processor's model name, as the kernel reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Processor, instruction-set level, OpenMP runtime, native modules, Triton and GPUs; an absent part gives its reason."""
    return {
        "cpu": _describe_cpu(),
        "gpus": [_describe_gpu(index) for index in range(torch.cuda.device_count())],
        "native": {"cpu": _native.why_no_cpu() or "available", "cuda": _native.why_no_cuda() or "available"},
        "versions": versions(),
    }


def _describe_cpu() -> dict[str, Any]:
    native = None if _native.why_no_cpu() else _native.cpu()
    return {
        "name": cpu_name(),
        "machine": platform.machine(),
        "available_cpus": available_cpus(),
        "torch_threads": torch.get_num_threads(),
        "instruction_set": native.detected_isa() if native else None,
        "openmp_library": native.openmp_library() if native else None,
    }


def _describe_gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "index": index,
        "name": properties.name,
        "architecture": architecture(index),
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
    }


def versions(packages: Sequence[str] = ("jepa-kernels", "torch", "triton", "numpy")) -> dict[str, str | None]:
    """Installed versions of Python, of the CUDA that torch was built with, and of packages; None for what is absent."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found

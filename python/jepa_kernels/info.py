"""What `jepa-kernels info` tells: the hardware, and for each operator which backends can run here and why not."""

from __future__ import annotations

from typing import Any

import torch

from . import _native, backends, hardware
from .ops import registry

AVAILABLE = "available"


def collect() -> dict[str, Any]:
    """`hardware.describe()` and, for each operator and backend, `available` or the reason why not."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    operators = {
        operator.name: {
            "backends": {name: why_not(operator, name, device) or AVAILABLE for name in backends.NAMES},
            "automatic": backends.automatic_order(operator.name, device),
        }
        for operator in registry.all_operators()
    }
    return {**hardware.describe(), "device": str(device), "operators": operators}


def why_not(operator: registry.Operator, backend: str, device: torch.device) -> str | None:
    """Why a backend of an operator can run nothing on this machine, or None."""
    if backend not in operator.backends:
        return f"{operator.name} has no {backend} kernel"
    if backend == "cpu":
        return _native.why_no_cpu()
    if backend == "triton":
        return backends.why_no_triton(device, ())
    if backend == "cuda":
        return _native.why_no_cuda() or (None if device.type == "cuda" else "there is no CUDA device")
    return None


def as_text(found: dict[str, Any]) -> str:
    """The same for people, one fact a line."""
    cpu = found["cpu"]
    lines = [
        f"processor         {cpu['name']} ({cpu['machine']}), {cpu['available_cpus']} CPUs",
        f"torch threads     {cpu['torch_threads']}",
        f"instruction set   {cpu['instruction_set'] or 'unknown: the native CPU module is absent'}",
        f"OpenMP library    {cpu['openmp_library'] or 'none'}",
    ]
    lines += [f"native {name:<11}{state}" for name, state in found["native"].items()]
    for gpu in found["gpus"]:
        memory = gpu["memory_bytes"] / 2**30
        lines.append(f"GPU {gpu['index']:<14}{gpu['name']}, {gpu['architecture']}, {memory:.0f} GiB")
    if not found["gpus"]:
        lines.append("GPU               none")
    lines += [f"{name:<18}{version or 'not installed'}" for name, version in found["versions"].items()]
    for operator, state in found["operators"].items():
        lines.append(f"\n{operator}   (automatic on {found['device']}: {', '.join(state['automatic'])})")
        lines += [f"  {name:<12}{reason}" for name, reason in state["backends"].items()]
    return "\n".join(lines)

"""Checks that a patch changes no result: `patch(model, verify=inputs)`, and the probe of classes with a common name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .targets import Target

# Largest accepted RMS difference relative to the RMS of the output, by dtype: a model is some hundred operations deep,
# and low precision rounds after each.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_PROBED = (torch.float64, torch.float32, torch.bfloat16)


def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Every floating-point tensor of `model(inputs)`, in evaluation mode and without gradients; modes are left as found."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            if isinstance(inputs, Mapping):
                outputs = model(**inputs)
            elif isinstance(inputs, (tuple, list)):
                outputs = model(*inputs)
            else:
                outputs = model(inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    found = list(tensors(outputs))
    if not found:
        raise ValueError("patch: verify's inputs gave no floating-point output to compare; give inputs that do")
    return found


def probe_reason(module: nn.Module, target: Target) -> str | None:
    """None, or that the module computes something else than the class it was taken for, on a small random input.

    Not asked where that has side effects or no answer: inside has hooks, parameters are sharded, on another device or in float16.
    """
    tensors_inside = [*module.parameters(), *module.buffers()]
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    plain = all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors_inside)
    known = all(tensor.device.type in ("cpu", "cuda") and tensor.dtype in _PROBED for tensor in tensors_inside)
    if target.probe is None or hooked or not plain or not known:
        return None
    modes = {part: part.training for part in module.modules()}
    module.eval()
    device = tensors_inside[0].device if tensors_inside else torch.device("cpu")
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices), torch.autocast(device.type, enabled=False):
            x = target.probe(module)
            before, after = tensors(type(module).forward(module, x)), tensors(target.forward(module, x))
    except Exception as error:  # a foreign class of that name may fail in any way, by an assertion too
        return f"it is not the {target.code_base} {target.class_name}: {error}"
    finally:
        for part, mode in modes.items():
            part.training = mode
    difference = disagreement(before[:1], after[:1])
    return None if difference is None else f"it is not the {target.code_base} {target.class_name}: {difference}"


def tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors inside nested sequences, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors(item)]
    return tensors(vars(value)) if hasattr(value, "__dataclass_fields__") else []


def disagreement(before: list[Tensor], after: list[Tensor]) -> str | None:
    """None, or in words how two lists of outputs differ."""
    if [(x.shape, x.dtype) for x in before] != [(x.shape, x.dtype) for x in after]:
        return f"outputs were {_shapes(before)}, and are {_shapes(after)}"
    for index, (x, y) in enumerate(zip(before, after, strict=True)):
        scale = x.double().square().mean().sqrt().item()
        error = (x.double() - y.double()).square().mean().sqrt().item()
        limit = _TOLERANCES.get(x.dtype, 1e-2) * max(scale, 1e-12)
        if not error <= limit:  # also true for NaN
            return f"output {index} has RMS {scale:.3g} and differs by {error:.3g}; at most {limit:.3g} is rounding"
    return None


def _shapes(found: list[Tensor]) -> str:
    return ", ".join(f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in found)

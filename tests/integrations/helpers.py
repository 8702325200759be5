"""Comparisons and optional packages for the tests of `jk.patch`."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import jepa_kernels as jk


def optional(name: str) -> ModuleType:
    """The module, or a skip that says why it cannot be imported: it may be absent, or its own binaries may not load."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} cannot be imported ({type(error).__name__}: {error})", allow_module_level=True)


LINEARS = {"Linear", "MLP", "Mlp", "VJEPA2MLP", "IJepaMLP", "IJepaIntermediate"}


def operators(report: jk.integrations.Report) -> list[jk.integrations.Entry]:
    """What was replaced, but for linear layers and MLPs."""
    return [entry for entry in report.replaced if entry.class_name not in LINEARS]


def run(model: nn.Module, forward: Callable[[nn.Module], Tensor], seed: int = 1) -> dict[str, Tensor]:
    """The output, and the gradient of every parameter for a fixed random cotangent."""
    model.zero_grad(set_to_none=True)
    out = forward(model)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (out * cotangent.to(out.dtype)).sum().backward()
    gradients = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"output": out.detach(), **gradients}


def assert_same(model: nn.Module, forward: Callable[[nn.Module], Tensor], tolerance: float = 1e-5) -> jk.integrations.Report:
    """Output to `tolerance` absolutely, every gradient relative to its own largest value; returns the report, still applied."""
    before = run(model, forward)
    report = jk.patch(model)
    assert report.replaced
    after = run(model, forward)
    assert list(before) == list(after)
    for name, value in before.items():
        scale = max(1.0, value.abs().max().item())
        assert (after[name] - value).abs().max().item() <= tolerance * scale, name
    return report


def assert_error_rule(
    model: nn.Module, forward: Callable[[nn.Module], Tensor], exact: Callable[[nn.Module], Tensor], low: bool = True
) -> None:
    """Error of the patched model against float64 at most twice that of the unpatched one.

    RMS for the output and for every gradient, over three cotangents: the error of a bias is mostly one offset that all its values
    share, so that one cotangent is one draw. The maximum for the output, and for all gradients together in units of each one's
    RMS: among the 64 values of one bias, behind a whole model, it is one draw of a wide distribution.

    `low`: the model is converted to bfloat16; otherwise `forward` runs it under autocast.
    """
    if low:
        model.bfloat16()
    seeds = (1, 2, 3)
    reference = copy.deepcopy(model).double()
    right = [run(reference, exact, seed) for seed in seeds]
    before = [run(model, forward, seed) for seed in seeds]
    jk.patch(model)
    after = [run(model, forward, seed) for seed in seeds]
    largest = {"output": [0.0, 0.0], "gradients": [0.0, 0.0]}
    for name in right[0]:
        value = torch.stack([found[name] for found in right])
        scale = value.square().mean().sqrt().clamp_min(1e-12)
        theirs, ours = ((torch.stack([each[name] for each in found]).double() - value) / scale for found in (before, after))
        assert ours.square().mean().sqrt() <= 2 * theirs.square().mean().sqrt() + 1e-7, name
        place = largest["output" if name == "output" else "gradients"]
        place[:] = [max(place[0], theirs.abs().max().item()), max(place[1], ours.abs().max().item())]
    for name, (theirs_max, ours_max) in largest.items():
        assert ours_max <= 2 * theirs_max, name

"""The training step against the official form in plain PyTorch: twenty steps of losses, and the memory of a step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jepa_kernels.bench.cases import train_step as cases
from jepa_kernels.bench.cases.base import Setting
from jepa_kernels.bench.cases.training_steps import FLOOR, StepInputs
from jepa_kernels.bench.memory import peak_memory
from jepa_kernels.bench.video import Clip

STEPS = 20
CPU = torch.device("cpu")


def noise() -> Clip:
    frames = torch.randint(0, 256, (16, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Clip(frames, "noise")


def inputs_of(dtype: str, **changes) -> StepInputs:
    shape = cases.Shape("vit_tiny", 2, 2, 8, 64, predictor_dim=96, predictor_depth=2, predictor_heads=3)
    return cases._inputs(replace(shape, **changes), dtype, Setting(0, CPU, noise))


def losses(step, steps=STEPS) -> torch.Tensor:
    return torch.stack([step().double() for _ in range(steps)])


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_twenty_steps_agree_within_the_error_of_the_official_form(dtype):
    inputs = inputs_of(dtype)
    exact = losses(cases.FAMILY.eager_setup(inputs, double=True))
    official = losses(cases.FAMILY.eager_setup(inputs))
    ours = losses(cases.FAMILY.kernel_setup(inputs))
    assert exact[-1] < exact[0]  # steps that change nothing would agree, too
    allowed = 2 * (official - exact).abs().max() + FLOOR[dtype] * exact.max()
    assert (ours - exact).abs().max() <= allowed


def test_a_step_holds_less_memory_than_the_official_form():
    # Wide enough that weights and activations outweigh what does not scale.
    inputs = inputs_of("bf16", size=64, frames=16)
    peaks = []
    for setup in (cases.FAMILY.kernel_setup, cases.FAMILY.eager_setup):
        step = setup(inputs)
        step(), step()  # moments and plans stay; they are made in the first step
        found = peak_memory(step, CPU)
        assert found.peak_bytes is not None, found.reason
        peaks.append(found.peak_bytes)
    kept = 2 * sum(value.numel() for value in inputs.state.values())  # our bfloat16 copies, held between steps
    assert peaks[0] + kept <= peaks[1]

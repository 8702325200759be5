"""The I-JEPA step that the benchmark compares with: it follows our model, and its optimiser leaves fixed tables alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jepa_kernels.bench import eager_ijepa
from jepa_kernels.bench.cases import train_step_ijepa as cases
from jepa_kernels.bench.cases.base import Setting
from jepa_kernels.bench.cases.training_steps import FLOOR, StepInputs
from jepa_kernels.bench.video import Clip

CPU = torch.device("cpu")
STEPS = 6


def inputs_of(dtype: str, **changes) -> StepInputs:
    frames = torch.randint(0, 256, (4, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shape = cases.Shape("vit_tiny", 1, 2, 96, predictor_dim=96, predictor_depth=1, predictor_heads=3, patch=8)
    return cases._inputs(replace(shape, **changes), dtype, Setting(0, CPU, lambda: Clip(frames, "noise")))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_steps_agree_within_the_error_of_the_official_form(dtype):
    inputs = inputs_of(dtype)
    exact, official, ours = (
        torch.stack([step().double() for _ in range(STEPS)])
        for step in (
            cases.FAMILY.eager_setup(inputs, double=True),
            cases.FAMILY.eager_setup(inputs),
            cases.FAMILY.kernel_setup(inputs),
        )
    )
    assert exact[-1] < exact[0]  # steps that change nothing would agree, too
    allowed = 2 * (official - exact).abs().max() + FLOOR[dtype] * exact.max()
    assert (ours - exact).abs().max() <= allowed


def test_position_tables_are_in_no_group_and_stay():
    inputs = inputs_of("fp32")
    model = eager_ijepa.EagerIJEPA(inputs.config)
    model.load_state_dict(inputs.state)
    trained = {id(p) for group in model.make_optimizer(1e-3, 0.04).param_groups for p in group["params"]}
    assert id(model.encoder.pos_embed) not in trained and id(model.predictor.mask_token) in trained
    assert len(trained) == sum(p.requires_grad for p in model.parameters())


def test_work_counts_each_target_and_grows_with_the_batch():
    small, large = inputs_of("bf16"), inputs_of("bf16", batch=6)
    assert cases._work(large).flops > 1.9 * cases._work(small).flops * min(
        1, large.masks_enc[0].shape[1] / small.masks_enc[0].shape[1]
    )
    fewer = replace(small, masks_pred=small.masks_pred[:1])
    assert cases._work(fewer).flops < cases._work(small).flops

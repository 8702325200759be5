"""Checks of the Triton AdamW with EMA; run by test_adamw_ema_interpreter.py under TRITON_INTERPRET=1."""

from __future__ import annotations

import math

import pytest
import torch

import jepa_kernels as jk

SIZES = (1, 7, 1024, 20_001)  # the last one spans two chunks


def problem(grad_dtype=torch.float32, offset=0):
    torch.manual_seed(1)

    def draw(dtype=torch.float32):
        return [torch.randn(size + offset).to(dtype)[offset:] for size in SIZES]

    steps = [torch.tensor(float(index)) for index in range(len(SIZES))]
    return {
        "params": draw(),
        "grads": draw(grad_dtype),
        "exp_avgs": draw(),
        "exp_avg_sqs": [x.square() for x in draw()],
        "steps": steps,
        "targets": [None, *draw()[1:]],
        "param_shadows": [None, *draw(torch.float16)[1:]],
        "target_shadows": [None, None, *draw(torch.float16)[2:]],
    }


def clone(lists):
    return {name: [None if x is None else x.clone() for x in tensors] for name, tensors in lists.items()}


def close(got, want):
    for name, tensors in got.items():
        for ours, theirs in zip(tensors, want[name], strict=True):
            if ours is not None:
                tolerance = 1e-3 if ours.dtype == torch.float16 else 2e-6
                torch.testing.assert_close(
                    ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
                )


@pytest.mark.parametrize(
    "options", [{}, {"max_grad_norm": 1.0, "grad_scale": 4.0}, {"skip_nonfinite": False, "betas": (0.3, 0.6)}]
)
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("offset", [0, 1])
def test_equals_reference(options, grad_dtype, offset):
    lists = problem(grad_dtype, offset)
    expected = clone(lists)
    common = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, **options}
    wanted = jk.reference.adamw_ema_(**expected, **common)
    with jk.backend("triton"):
        status = jk.adamw_ema_(**lists, **common)
    close(lists, expected)
    torch.testing.assert_close(status[:2], wanted[:2], rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [{"grads": math.nan}, {"grads": math.inf}, {"found_inf": 1.0}])
def test_a_step_that_is_skipped_changes_nothing(bad):
    lists, options = problem(), {}
    if "grads" in bad:
        lists["grads"][3][12_345] = bad["grads"]
    else:
        options = bad
    before = clone(lists)
    with jk.backend("triton"):
        status = jk.adamw_ema_(**lists, momentum=0.9, **options)
    assert status[1:].tolist() == [1.0, 1.0]
    lists["grads"], before["grads"] = [], []
    assert all(
        a is None or torch.equal(a, b) for name in lists for a, b in zip(lists[name], before[name], strict=True)
    )

"""Checks of the Triton JEPA loss; run by test_jepa_loss_interpreter.py under TRITON_INTERPRET=1."""

from __future__ import annotations

import math

import pytest
import torch

import jepa_kernels as jk

B, N, K = 2, 13, 5


def inputs(width, dtype=torch.float32, padded=False):
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(N, generator=generator)[:K] for _ in range(B)])
    if padded:
        ids[1, 3:] = -1
    pred = torch.randn(B, K, width, generator=generator).to(dtype).requires_grad_()
    return pred, (torch.randn(B, N, width, generator=generator) * 2 + 1).to(dtype), ids


def both(pred, target, ids, **options):
    """(loss, gradient) of the kernel and of the reference in float64."""
    exact = pred.detach().double().requires_grad_()
    doubled = {
        name: tuple(v.double() if isinstance(v, torch.Tensor) else v for v in value) if name == "norm" else value
        for name, value in options.items()
    }
    expected = jk.reference.jepa_loss(exact, target.double(), ids, **doubled)
    with jk.backend("triton"):
        loss = jk.jepa_loss(pred, target, ids, **options)
        (gradient,) = torch.autograd.grad(loss * 3, pred)
    (expected_gradient,) = torch.autograd.grad(expected * 3, exact)
    return (loss, gradient), (expected, expected_gradient)


def check(got, want, dtype):
    torch.testing.assert_close(got[0].double(), want[0], rtol=1e-6, atol=1e-7)
    tolerance = {"rtol": 2e-5, "atol": 1e-8} if dtype == torch.float32 else {"rtol": 1e-3, "atol": 1e-7}
    torch.testing.assert_close(got[1].double(), want[1], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("options", [
    {}, {"power": 1.5}, {"power": 2.0}, {"kind": "smooth_l1"}, {"kind": "smooth_l1", "beta": 0.3}, {"kind": "l2"},
    {"normalize": False}, {"kind": "smooth_l1", "beta": 0.0},
])  # fmt: skip
def test_equals_reference(options, dtype):
    pred, target, ids = inputs(48, dtype)
    got, want = both(pred, target, ids, **options)
    check(got, want, dtype)


@pytest.mark.parametrize("width", [1, 24, 129, 384, 1408, 4000])
def test_widths(width):
    pred, target, ids = inputs(width)
    if width == 1:
        target = target * 0 + 2  # a norm over one channel is zero
    got, want = both(pred, target, ids)
    check(got, want, torch.float32)


def test_affine_norm_weights_and_padding():
    pred, target, ids = inputs(100, padded=True)
    norm = (torch.rand(100) + 0.5, torch.randn(100), 1e-6)
    got, want = both(pred, target, ids, norm=norm, weights=torch.rand(B, K), kind="smooth_l1")
    check(got, want, torch.float32)
    assert torch.all(got[1][1, 3:] == 0)


def test_without_ids_and_with_row_strides():
    target = torch.randn(B, N, 3 * 64)
    pred = torch.randn(B, N, 2 * 64)
    got, want = both(pred[..., 64:].requires_grad_(), target[..., 64:128], None)
    check(got, want, torch.float32)


def test_an_id_out_of_range_reads_nothing_and_gives_nan():
    pred, target, _ = inputs(48)
    rows = torch.tensor([0, -2, 3, -1])
    from jepa_kernels.kernels import jepa_loss as kernel

    flat = pred.detach().flatten(0, 1)[:4].contiguous()
    common = (flat, target.flatten(0, 1), rows, None, None, None, None, "absolute", 1.0, 1e-5)
    assert math.isnan(float(kernel.forward(*common).sum()))
    gradient = torch.full((4, 48), 7.0)
    kernel.backward(torch.ones(()), gradient, *common, 1.0)
    assert torch.all(torch.isnan(gradient[1])) and torch.all(gradient[3] == 0)
    assert torch.all(gradient[[0, 2]].abs() == 1)


def test_bfloat16_is_refused():
    pred, target, ids = inputs(16, torch.bfloat16)
    with pytest.raises(jk.BackendError, match="interpreter computes bfloat16 wrongly"), jk.backend("triton"):
        jk.jepa_loss(pred, target, ids)

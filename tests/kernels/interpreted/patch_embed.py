"""Checks of the Triton patch embedding; run by test_patch_embed_interpreter.py under TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

import jepa_kernels as jk
from jepa_kernels.kernels import patch_embed as kernel

MEAN, STD = (123.675, 116.28, 103.53, 110.0), (58.395, 57.12, 57.375, 60.0)


def problem(shape, patch, width, dtype):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    weight = (torch.randn(width, shape[1], *patch) / (shape[1] * torch.tensor(patch).prod()) ** 0.5).to(dtype)
    tokens = int(torch.tensor([size // step for size, step in zip(shape[2:], patch, strict=True)]).prod())
    return pixels, weight, torch.randn(width).to(dtype), torch.randn(tokens, width), tokens


@pytest.mark.parametrize(
    ("shape", "patch", "width"),
    [
        ((1, 3, 28, 42), (14, 14), 24),  # K = 588, not a multiple of the tile
        ((2, 3, 4, 32, 48), (2, 16, 16), 70),
        ((2, 1, 16, 16), (8, 8), 5),
        ((2, 4, 2, 9, 10), (1, 3, 5), 17),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_reference_with_all_gradients(shape, patch, width, masked, dtype):
    pixels, weight, bias, pos_embed, tokens = problem(shape, patch, width, dtype)
    channels = shape[1]
    keep = torch.randint(0, tokens, (shape[0], tokens + 1)) if masked else None  # at least one id repeats
    moments = {"mean": MEAN[:channels], "std": STD[:channels]}
    for x in (pixels, pixels.float(), pixels.movedim(1, -1).contiguous().movedim(-1, 1)):
        leaves = [tensor.clone().requires_grad_() for tensor in (weight, bias, pos_embed)]
        leaves += [x.clone().requires_grad_()] if x.is_floating_point() else []
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        want = jk.reference.patch_embed(*(exact[3:] or [x]), *exact[:2], keep=keep, pos_embed=exact[2], **moments)
        grad = torch.randn_like(want).to(dtype)
        with jk.backend("triton"):
            got = jk.patch_embed(*(leaves[3:] or [x]), *leaves[:2], keep=keep, pos_embed=leaves[2], **moments)
            ours = [got, *torch.autograd.grad(got, leaves, grad.to(got.dtype))]
        tolerance = 1e-5 if dtype == torch.float32 else 2e-3
        for a, b in zip(ours, [want, *torch.autograd.grad(want, exact, grad.double())], strict=True):
            assert (a.double() - b).abs().max() <= tolerance * max(1.0, b.abs().max().item())


def test_ids_out_of_range_read_nothing_and_give_nan_rows():
    pixels, weight, bias, pos_embed, _ = problem((2, 3, 32, 32), (16, 16), 8, torch.float32)
    clip, kernels = pixels.unsqueeze(2), weight.unsqueeze(2)
    rows = torch.tensor([0, -1, 7, 8, 2**40, 3, -(2**50)])
    out = torch.zeros(7, 8)
    kernel.forward(clip, kernels, bias, rows, pos_embed, None, None, out)
    good = torch.tensor([0, 2, 5])
    want = jk.reference.patch_embed(pixels, weight, bias, pos_embed=pos_embed).flatten(0, 1)[rows[good]]
    torch.testing.assert_close(out[good], want, rtol=1e-5, atol=2e-4)  # sums of 768 products of up to 1000
    assert out[torch.tensor([1, 3, 4, 6])].isnan().all()
    grads = [torch.zeros_like(kernels) for _ in range(2)]
    grad = torch.randn(7, 8)
    kernel.backward_weight(grad, clip, rows, None, None, grads[0])
    kernel.backward_weight(grad[good].contiguous(), clip, rows[good], None, None, grads[1])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-3)


def test_more_rows_than_one_split_of_the_weight_gradient(monkeypatch):
    monkeypatch.setattr(kernel, "SPLIT_ROWS", 32)
    pixels, weight, _, _, tokens = problem((2, 3, 24, 20), (4, 4), 8, torch.float32)
    keep = torch.randint(0, tokens, (2, 40))
    weight.requires_grad_()
    grad = torch.randn(2, 40, 8)
    want = torch.autograd.grad(jk.reference.patch_embed(pixels, weight, keep=keep), weight, grad)[0]
    with jk.backend("triton"):
        got = [torch.autograd.grad(jk.patch_embed(pixels, weight, keep=keep), weight, grad)[0] for _ in range(2)]
    torch.testing.assert_close(got[0], want, rtol=1e-4, atol=1e-2)
    assert torch.equal(*got)


def test_nothing_is_written_beyond_the_outputs():
    pixels, weight, bias, _, tokens = problem((1, 3, 28, 28), (14, 14), 9, torch.float32)
    clip, kernels = pixels.unsqueeze(2).float(), weight.unsqueeze(2)
    whole = torch.full((64 + tokens * 9 + 64,), 77.0)
    kernel.forward(clip, kernels, bias, None, None, None, None, whole[64:-64].view(tokens, 9))
    frame = torch.full((1, 3, 1, 30, 32), 77.0)
    kernel.backward_pixels(torch.randn(tokens, 9), kernels, None, frame[..., 1:29, 2:30])
    assert (whole[:64] == 77).all() and (whole[-64:] == 77).all() and (whole[64:-64] != 77).all()
    frame[..., 1:29, 2:30] = 77
    assert (frame == 77).all()


def test_bfloat16_and_float64_are_refused():
    pixels, weight, *_ = problem((1, 3, 16, 16), (16, 16), 4, torch.float32)
    for dtype, reason in (
        (torch.bfloat16, "interpreter computes bfloat16 wrongly"),
        (torch.float64, "computes in float32"),
    ):
        with jk.backend("triton"), pytest.raises(jk.BackendError, match=reason):
            jk.patch_embed(pixels, weight.to(dtype))


def test_constants_of_any_strides():
    pixels, weight, bias, pos_embed, _ = problem((1, 3, 16, 16), (8, 8), 6, torch.float32)
    expanded = torch.tensor([120.0]).expand(3)
    column = torch.stack([bias, torch.full_like(bias, 9.0)], dim=1)[:, 0]
    want = jk.reference.patch_embed(pixels, weight, bias, pos_embed=pos_embed, mean=expanded, std=expanded)
    with jk.backend("triton"):
        got = jk.patch_embed(pixels, weight, column, pos_embed=pos_embed, mean=expanded, std=expanded)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_nan_gradients_at_ids_out_of_range_reach_no_parameter():
    """Tokens of such ids are NaN, and a loss over them sends NaN back."""
    from jepa_kernels.ops.patch_embed import OPERATOR

    pixels, weight, _, _, _ = problem((1, 3, 1, 16, 16), (1, 8, 8), 6, torch.float32)
    rows = torch.tensor([0, -1, 3])
    grad = torch.randn(3, 6)
    grad[1] = torch.nan
    backward = OPERATOR.backends["triton"].functions["backward"]
    found = backward(grad, pixels, weight, rows, None, None, torch.float32, [True, True, True, False])
    kept = torch.tensor([0, 2])
    want = backward(grad[kept], pixels, weight, rows[kept], None, None, torch.float32, [True, True, True, False])
    for a, b in zip(found[:3], want[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-3)

"""Checks of the Triton target and context embedding; run by test_patch_embed_pair_interpreter.py under TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

import jepa_kernels as jk
from jepa_kernels.kernels import patch_embed_pair as kernel

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def problem(shape, patch, dtype):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    tokens = 1
    for size, step in zip(shape[2:], patch, strict=True):
        tokens *= size // step
    widths = (24, 40)
    weights = [(torch.randn(width, shape[1], *patch) * 0.05).to(dtype) for width in widths]
    biases = [torch.randn(width).to(dtype) for width in widths]
    positions = [torch.randn(tokens, width) for width in widths]
    return pixels, weights, biases, positions, tokens


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((2, 3, 28, 42), (14, 14)), ((3, 3, 4, 32, 48), (2, 16, 16)), ((2, 3, 80, 96), (8, 8))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kept", [0, 1, 5, 200])
def test_equals_reference(shape, patch, dtype, kept):
    """Few and many kept rows, so that tiles of the context are none, some, and more than those of the target."""
    pixels, weights, biases, positions, tokens = problem(shape, patch, dtype)
    keep = [torch.randint(0, tokens, (shape[0], kept)), torch.randint(0, tokens, (shape[0], 2))]
    for x in (pixels, pixels.movedim(1, -1).contiguous().movedim(-1, 1)):
        arguments = (x, weights[0], biases[0], weights[1], biases[1])
        options = {"target_pos_embed": positions[0], "context_pos_embed": positions[1], "mean": MEAN, "std": STD}
        with jk.backend("triton"):
            every, contexts = jk.patch_embed_pair(*arguments, keep=keep, **options)
        doubles = [x, *(tensor.double() for tensor in arguments[1:])]
        want, wanted = jk.reference.patch_embed_pair(*doubles, keep=keep, **options)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-3
        for a, b in zip((every, *contexts), (want, *wanted), strict=True):
            assert a.shape == b.shape and a.dtype == torch.float32
            if b.numel():
                assert (a.double() - b).abs().max() <= tolerance * max(1.0, b.abs().max().item())


def test_every_tile_of_both_results_is_written_and_nothing_else():
    pixels, weights, _, _, tokens = problem((2, 3, 48, 80), (16, 16), torch.float32)
    clip, kernels = pixels.unsqueeze(2), [weight.unsqueeze(2) for weight in weights]
    rows = torch.tensor([3, -1, 2 * tokens, 7, 0])
    whole = [torch.full((64 + count * width + 64,), 77.0) for count, width in ((2 * tokens, 24), (5, 40))]
    out, kept = whole[0][64:-64].view(-1, 24), whole[1][64:-64].view(-1, 40)
    kernel.forward(clip, kernels[0], None, None, out, kernels[1], None, None, rows, kept, None, None)
    for memory in whole:
        assert (memory[:64] == 77).all() and (memory[-64:] == 77).all() and (memory[64:-64] != 77).all()
    assert kept.isnan().all(1).tolist() == [False, True, True, False, False]
    want = jk.reference.patch_embed(pixels, weights[1]).flatten(0, 1)[7]
    torch.testing.assert_close(kept[3], want, rtol=1e-5, atol=2e-3)  # sums of 768 products of up to 50


def test_two_types_of_weight_are_refused():
    pixels, weights, *_ = problem((1, 3, 16, 16), (16, 16), torch.float32)
    with jk.backend("triton"), pytest.raises(jk.BackendError, match="two weights of one type"):
        jk.patch_embed_pair(pixels, weights[0], None, weights[1].half(), None, keep=torch.tensor([[0]]))

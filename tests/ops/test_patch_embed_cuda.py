"""The CUDA C++ patch embedding on a GPU: both kernels equal to the reference, at every shape, type and order of pixels."""

from __future__ import annotations

import pytest
import torch

import jepa_kernels as jk
from jepa_kernels.functional.patch_embed import prepare
from jepa_kernels.ops.cuda_paths import CUDA_PATHS, cuda_path
from jepa_kernels.ops.patch_embed_gpu import cuda_forward

pytestmark = pytest.mark.gpu

MOMENTS = {"mean": (123.675, 116.28, 103.53, 110.0), "std": (58.395, 57.12, 57.375, 60.0)}
# name -> pixels (B, C[, T], H, W), patch, D; the last two make few and many tiles of every kernel
SHAPES = {
    "i-jepa-h14": ((2, 3, 224, 224), (14, 14), 1280),  # K = 588, padded to a multiple of 8
    "p16-batch24": ((24, 3, 64, 48), (16, 16), 200),
    "one-channel": ((2, 1, 32, 16), (8, 8), 17),  # rows of tokens that are not a multiple of 16 bytes
    "four-channels": ((2, 4, 4, 16, 24), (2, 8, 8), 264),
    "odd-patch": ((1, 3, 3, 10, 21), (3, 5, 7), 5),
    "clip": ((1, 3, 16, 256, 256), (2, 16, 16), 1024),
}


@pytest.fixture(params=CUDA_PATHS)
def path(request):
    if request.param == "warpgroup" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the warpgroup kernel needs compute capability 9.0")
    with cuda_path(request.param):
        yield request.param


def problem(name, dtype, pixel_dtype, decoder_order):
    shape, patch, width = SHAPES[name]
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda").to(pixel_dtype)
    if decoder_order:
        pixels = pixels.movedim(1, -1).contiguous().movedim(-1, 1)
    weight = torch.randn(width, shape[1], *patch, device="cuda")
    weight /= weight[0].numel() ** 0.5
    tokens = 1
    for size, step in zip(shape[2:], patch, strict=True):
        tokens *= size // step
    bias, pos_embed = torch.randn(width, device="cuda"), torch.randn(tokens, width, device="cuda")
    moments = {key: values[: shape[1]] for key, values in MOMENTS.items()}
    return pixels, weight.to(dtype), bias.to(dtype), pos_embed, moments, tokens


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pixel_dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decoder_order", [False, True])
def test_error_within_twice_pytorch(path, name, dtype, pixel_dtype, decoder_order):
    pixels, weight, bias, pos_embed, moments, tokens = problem(name, dtype, pixel_dtype, decoder_order)
    keep = torch.randint(0, tokens, (pixels.shape[0], 1 + tokens // 3), device="cuda")
    for ids, position in ((None, None), (keep, pos_embed), (keep, pos_embed.to(dtype))):
        options = {"keep": ids, "pos_embed": position, **moments}
        want = jk.reference.patch_embed(pixels, weight.double(), bias.double(), **options).flatten(0, 1)
        theirs = jk.reference.patch_embed(pixels, weight, bias, **options).flatten(0, 1)
        ours = cuda_forward(*prepare(pixels, weight, bias, **options).values())
        assert ours.dtype == theirs.dtype and ours.shape == want.shape
        error, allowed = (ours.double() - want).abs(), (theirs.double() - want).abs()
        assert error.max() <= 2 * allowed.max() and error.square().mean() <= 4 * allowed.square().mean()


def test_ids_out_of_range_give_nan_rows(path):
    pixels, weight, bias, pos_embed, moments, tokens = problem("p16-batch24", torch.bfloat16, torch.uint8, False)
    keep = torch.zeros(24, 9, dtype=torch.int64, device="cuda")
    keep[3, 2], keep[23, 8] = tokens, -1
    arguments = prepare(pixels, weight, bias, keep=keep, pos_embed=pos_embed, **moments)
    got = cuda_forward(*arguments.values()).view(24, 9, -1)
    wrong = torch.zeros(24, 9, dtype=torch.bool, device="cuda")
    wrong[3, 2] = wrong[23, 8] = True
    assert torch.equal(got.isnan().all(-1), wrong) and torch.equal(got.isnan().any(-1), wrong)


def test_the_backend_with_gradients_equals_triton():
    pixels, weight, bias, pos_embed, moments, tokens = problem("four-channels", torch.bfloat16, torch.uint8, True)
    leaves = [tensor.requires_grad_() for tensor in (weight, bias, pos_embed)]
    keep = torch.randint(0, tokens, (2, 9), device="cuda")
    results = []
    for name in ("cuda", "triton"):
        with jk.backend(name):
            out = jk.patch_embed(pixels, weight, bias, keep=keep, pos_embed=pos_embed, **moments)
            results.append([out, *torch.autograd.grad(out.sum(), leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_repeats_bit_for_bit_under_poison(path):
    pixels, weight, bias, pos_embed, moments, _ = problem("clip", torch.bfloat16, torch.uint8, True)
    arguments = prepare(pixels, weight, bias, pos_embed=pos_embed, **moments)
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        results = [cuda_forward(*arguments.values()) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert not results[0].isnan().any() and all(torch.equal(result, results[0]) for result in results)


def test_graph_capture_and_replay(path):
    pixels, weight, bias, _, moments, tokens = problem("clip", torch.bfloat16, torch.uint8, False)
    keep = torch.randint(0, tokens, (1, 200), device="cuda")

    def embed():
        return cuda_forward(*prepare(pixels, weight, bias, keep=keep, **moments).values())

    embed()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = embed()
    keep.copy_(keep.flip(1))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, embed())


@pytest.mark.parametrize(("dtype", "reason"), [(torch.float32, "bfloat16 or float16"), (torch.float64, "bfloat16 or float16")])
def test_says_what_it_does_not_compute(dtype, reason):
    pixels = torch.zeros(1, 3, 16, 16, device="cuda")
    with jk.backend("cuda"), pytest.raises(jk.BackendError, match=reason):
        jk.patch_embed(pixels, torch.zeros(8, 3, 16, 16, device="cuda", dtype=dtype))

"""patch_embed on every backend: equal to normalise, convolve, gather, with all gradients; rounding within twice PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import jepa_kernels as jk
from conftest import backend_parameters

MEAN = (123.675, 116.28, 103.53, 110.0)
STD = (58.395, 57.12, 57.375, 60.0)
# name -> pixels (B, C[, T], H, W), patch, D
SHAPES = {
    "i-jepa-h14-224": ((1, 3, 224, 224), (14, 14), 48),  # K = 588, not a multiple of 16
    "image-p16-batch24": ((24, 3, 32, 32), (16, 16), 24),
    "clip-tubelet": ((2, 3, 4, 32, 48), (2, 16, 16), 40),  # not square
    "one-channel": ((2, 1, 32, 16), (8, 8), 17),
    "four-channels": ((2, 4, 4, 16, 24), (2, 8, 8), 32),
    "odd-patch": ((1, 3, 3, 10, 21), (3, 5, 7), 5),
    "wide-patch": ((1, 3, 23, 80), (23, 40), 6),
}


# What cuda computes, in bfloat16 and float16 alone, is tested in test_patch_embed_cuda.py.
@pytest.fixture(params=backend_parameters(without=("cuda",)))
def place(request):
    """(device, backend)"""
    return request.param


def problem(shape, patch, width, device="cpu", dtype=torch.float32):
    """uint8 pixels, weight, bias, pos_embed; outputs are of order one."""
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    weight = (torch.randn(width, shape[1], *patch) / (shape[1] * torch.tensor(patch).prod()) ** 0.5).to(device, dtype)
    tokens = int(torch.tensor([size // step for size, step in zip(shape[2:], patch, strict=True)]).prod())
    return pixels, weight, torch.randn(width).to(device, dtype), torch.randn(tokens, width).to(device, dtype), tokens


def random_keep(batch, tokens, kept, device):
    """Unsorted, with repetitions."""
    return torch.randint(0, tokens, (batch, kept)).to(device)


def official(pixels, weight, bias, keep, pos_embed, channels):
    """As the published code computes it, for one mask or none."""
    view = (1, channels, *[1] * (pixels.ndim - 2))
    mean, std = (
        torch.tensor(value[:channels], dtype=weight.dtype, device=pixels.device).view(view) for value in (MEAN, STD)
    )
    convolve = F.conv3d if pixels.ndim == 5 else F.conv2d
    x = (pixels.to(weight.dtype) - mean) / std
    tokens = convolve(x, weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2) + pos_embed
    return tokens if keep is None else torch.gather(tokens, 1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def run(place, *args, **options):
    with jk.backend(place[1]):
        return jk.patch_embed(*args, **options)


def moments(channels):
    return {"mean": MEAN[:channels], "std": list(STD[:channels])}


def assert_near(got, want, tolerance=1e-5):
    assert got.shape == want.shape
    scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
    assert torch.all((got.double() - want.double()).abs() <= tolerance * scale)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pixel_dtype", [torch.uint8, torch.float32])
def test_equals_normalise_convolve_gather_with_all_gradients(place, name, masked, pixel_dtype):
    shape, patch, width = SHAPES[name]
    pixels, weight, bias, pos_embed, tokens = problem(shape, patch, width, place[0])
    keep = random_keep(shape[0], tokens, 1 + tokens // 2, place[0]) if masked else None
    pixels = pixels.to(pixel_dtype)
    leaves = [tensor.requires_grad_() for tensor in (weight, bias, pos_embed)]
    if pixel_dtype.is_floating_point:
        leaves.append(pixels.requires_grad_())
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    want = official(*(doubles[3:] or [pixels]), *doubles[:2], keep, doubles[2], shape[1])
    grad = torch.randn_like(want)
    got = run(place, pixels, weight, bias, keep=keep, pos_embed=pos_embed, **moments(shape[1]))
    assert_near(got, want)
    gradients = torch.autograd.grad(got, leaves, grad.float())
    for ours, exact in zip(gradients, torch.autograd.grad(want, doubles, grad), strict=True):
        assert_near(ours, exact)


def test_without_bias_position_and_moments(place):
    pixels, weight, _, _, tokens = problem((2, 3, 4, 32, 32), (2, 16, 16), 8, place[0])
    got = run(place, pixels, weight)
    assert_near(got, F.conv3d(pixels.float(), weight, stride=(2, 16, 16)).flatten(2).transpose(1, 2), 1e-4)
    for options in ({"mean": MEAN[:3]}, {"std": torch.tensor(STD[:3], device=place[0], dtype=torch.float64)}):
        assert_near(
            run(place, pixels, weight, **options),
            jk.reference.patch_embed(pixels.double(), weight.double(), **options),
        )


@pytest.mark.parametrize("strides", ["channels-last", "cropped", "frame-step", "expanded", "transposed"])
@pytest.mark.parametrize("pixel_dtype", [torch.uint8, torch.float32])
def test_any_strides(place, strides, pixel_dtype):
    pixels, weight, bias, pos_embed, tokens = problem((2, 3, 4, 32, 48), (2, 16, 16), 8, place[0])
    dense = pixels.to(pixel_dtype)
    if strides == "channels-last":  # decoder order
        view = dense.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    elif strides == "cropped":
        view = F.pad(dense, (3, 5, 1, 7))[..., 1:33, 3:51]
    elif strides == "frame-step":
        view = dense.repeat_interleave(2, dim=2)[:, :, ::2]
    elif strides == "expanded":  # one frame shown over and over
        dense = dense[:, :, :1].expand(-1, -1, 4, -1, -1)
        view = dense
    else:
        view = dense.transpose(3, 4).contiguous().transpose(3, 4)
    assert torch.equal(view, dense)
    keep = random_keep(2, tokens, 5, place[0])
    expected = run(place, dense.contiguous(), weight, bias, keep=keep, pos_embed=pos_embed, **moments(3))
    assert torch.equal(run(place, view, weight, bias, keep=keep, pos_embed=pos_embed, **moments(3)), expected)
    if pixel_dtype.is_floating_point and strides != "expanded":
        leaf, plain = view.detach().requires_grad_(), dense.detach().clone().requires_grad_()
        for tensor in (leaf, plain):
            run(place, tensor, weight, bias, keep=keep, **moments(3)).square().sum().backward()
        assert torch.equal(leaf.grad, plain.grad)


def test_list_of_masks_is_mask_major_and_ragged_joins_elements(place):
    pixels, weight, bias, pos_embed, tokens = problem((3, 3, 4, 32, 32), (2, 16, 16), 8, place[0])
    masks = [random_keep(3, tokens, 3, place[0]) for _ in range(2)]
    options = {"pos_embed": pos_embed.unsqueeze(0), **moments(3)}
    dense = run(place, pixels, weight, bias, **options)
    want = jk.reference.patch_embed(pixels, weight, bias, keep=masks, **options)
    got = run(place, pixels, weight, bias, keep=masks, **options)
    assert got.shape == (6, 3, 8)
    assert_near(got, want)
    for m, mask in enumerate(masks):
        for b in range(3):
            assert_near(got[3 * m + b], dense[b, mask[b]])
    entries = [torch.tensor(ids, dtype=torch.int64, device=place[0]) for ids in ([7, 0, 0], [], [2])]
    ragged = jk.RaggedIds.from_list(entries)
    got = run(place, pixels, weight, bias, keep=ragged, **options)
    assert got.shape == (4, 8)
    assert_near(got, torch.stack([dense[0, 7], dense[0, 0], dense[0, 0], dense[2, 2]]))
    assert_near(got, jk.reference.patch_embed(pixels, weight, bias, keep=ragged, **options))


@pytest.mark.parametrize("empty", ["keep", "batch"])
def test_empty_inputs_give_zero_gradients(place, empty):
    batch = 0 if empty == "batch" else 2
    pixels, weight, bias, pos_embed, _ = problem((batch, 3, 32, 32), (16, 16), 8, place[0])
    keep = torch.zeros(2, 0, dtype=torch.int64, device=place[0]) if empty == "keep" else None
    pixels = pixels.float()
    leaves = [tensor.requires_grad_() for tensor in (weight, bias, pos_embed, pixels)]
    out = run(place, pixels, weight, bias, keep=keep, pos_embed=pos_embed)
    assert out.shape == ((2, 0, 8) if empty == "keep" else (0, 4, 8))
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pixel_dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_low_precision_error_within_twice_pytorch(place, dtype, pixel_dtype):
    pixels, weight, bias, pos_embed, tokens = problem((2, 3, 4, 64, 64), (2, 16, 16), 64, place[0], dtype)
    keep = random_keep(2, tokens, 20, place[0])
    pixels = pixels.to(pixel_dtype)
    leaves = [weight, bias, pos_embed] + ([pixels] if pixel_dtype.is_floating_point else [])
    grad = torch.randn(2, 20, 64, device=place[0]).to(dtype)

    def results(function, cast):
        inputs = [leaf.detach().to(cast or leaf.dtype).requires_grad_() for leaf in leaves]
        out = function(*(inputs[3:] or [pixels]), *inputs[:2], keep=keep, pos_embed=inputs[2], **moments(3))
        return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]

    exact = results(jk.reference.patch_embed, torch.float64)
    theirs = results(jk.reference.patch_embed, None)
    with jk.backend(place[1]):
        ours = results(jk.patch_embed, None)
    for a, b, want in zip(ours, theirs, exact, strict=True):
        assert a.dtype == b.dtype
        error, allowed = (a.double() - want).abs(), (b.double() - want).abs()
        assert error.max() <= 2 * allowed.max()
        assert error.square().mean() <= 4 * allowed.square().mean()


def test_ids_may_repeat_and_come_in_any_order(place):
    pixels, weight, bias, pos_embed, _ = problem((2, 3, 32, 48), (16, 16), 8, place[0])
    weight.requires_grad_()
    keep = torch.tensor([[5, 0, 5], [3, 3, 1]], device=place[0])
    dense = run(place, pixels, weight, bias, pos_embed=pos_embed, **moments(3))
    got = run(place, pixels, weight, bias, keep=keep, pos_embed=pos_embed, **moments(3))
    want = torch.stack([dense[b, ids] for b, ids in enumerate(keep.tolist())])
    assert_near(got, want)
    grad = torch.randn_like(want)
    ours, theirs = (torch.autograd.grad(out, weight, grad)[0] for out in (got, want))
    assert_near(ours, theirs)


def test_position_promotes_as_torch_does(place):
    pixels, weight, bias, pos_embed, tokens = problem((2, 3, 32, 32), (16, 16), 8, place[0], torch.float16)
    keep = random_keep(2, tokens, 2, place[0])
    pos_embed = pos_embed.float().requires_grad_()
    for options in ({}, {"keep": keep}):
        out = run(place, pixels, weight, bias, pos_embed=pos_embed, **options, **moments(3))
        assert out.dtype == torch.float32
        assert torch.autograd.grad(out.sum(), pos_embed)[0].dtype == torch.float32


def test_same_bits_every_time(place):
    pixels, weight, bias, pos_embed, tokens = problem((4, 3, 4, 32, 32), (2, 16, 16), 32, place[0])
    keep = random_keep(4, tokens, 30, place[0])  # every patch is kept several times
    leaves = [tensor.requires_grad_() for tensor in (weight, bias, pos_embed, pixels.float())]
    if place == ("cuda", "reference"):
        pytest.skip("index_add_ on CUDA adds in no fixed order; the reference makes no promise there")

    def once():
        out = run(place, leaves[3], weight, bias, keep=keep, pos_embed=pos_embed, **moments(3))
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    first = once()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


@given(
    st.tuples(*[st.integers(1, 3)] * 2, st.integers(1, 4)),  # batch, grid
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 18), st.integers(1, 35)),  # channels, patch
    st.integers(1, 9),
    st.sampled_from([torch.uint8, torch.float32, torch.float16]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_any_shape_on_the_cpu(grid, patch, width, pixel_dtype, decoder_order, random):
    (batch, rows, columns), (channels, *size) = grid, patch
    shape = (batch, channels, 2 * size[0], rows * size[1], columns * size[2])
    pixels, weight, bias, pos_embed, tokens = problem(shape, tuple(size), width)
    pixels = pixels.to(pixel_dtype)
    if decoder_order:
        pixels = pixels.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    keep = torch.tensor(
        [[random.randrange(tokens) for _ in range(random.randrange(6))]] * batch, dtype=torch.int64
    ).view(batch, -1)
    options = {"keep": keep, "pos_embed": pos_embed, **moments(channels)}
    want = jk.reference.patch_embed(pixels.double(), weight.double(), bias.double(), **options)
    assert_near(run(("cpu", "cpu"), pixels, weight, bias, **options), want)

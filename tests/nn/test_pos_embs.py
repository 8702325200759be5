"""The sine-cosine tables against their definition, written out element by element."""

import math

import pytest
import torch
import torch.nn.functional as F

from jepa_kernels.nn import (
    get_1d_sincos_pos_embed_from_grid,
    get_2d_sincos_pos_embed,
    get_3d_sincos_pos_embed,
    interpolate_pos_embed,
)


def on_axis(position, dim):
    angles = [position * 10000.0 ** (-j / (dim / 2)) for j in range(dim // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def test_one_axis():
    table = get_1d_sincos_pos_embed_from_grid(12, [[0, 3], [1.5, 700]])
    for row, position in zip(table, (0, 3, 1.5, 700), strict=True):
        assert row.tolist() == pytest.approx(on_axis(position, 12), abs=1e-12)


def test_image_grid_is_row_then_column():
    table = get_2d_sincos_pos_embed(16, (2, 3), cls_token=True)
    assert not table[0].any()
    for token, row in enumerate(table[1:]):
        assert row.tolist() == pytest.approx(on_axis(token // 3, 8) + on_axis(token % 3, 8), abs=1e-12)


@pytest.mark.parametrize(
    ("uniform_power", "dims"),
    [(False, (16, 8, 8)), (True, (12, 12, 12))],  # 2 * ceil(32 / 6) = 12, cut to 32
)
def test_clip_grid_is_depth_row_column(uniform_power, dims):
    table = get_3d_sincos_pos_embed(32, (2, 3), 4, uniform_power=uniform_power)
    assert table.shape == (24, 32)
    for token, row in enumerate(table):
        place = (token // 6, token // 3 % 2, token % 3)
        expected = [x for position, dim in zip(place, dims, strict=True) for x in on_axis(position, dim)]
        assert row.tolist() == pytest.approx(expected[:32], abs=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda: get_1d_sincos_pos_embed_from_grid(7, [0.0]),
        lambda: get_2d_sincos_pos_embed(6, 4),
        lambda: get_3d_sincos_pos_embed(20, 4, 2),
        lambda: get_3d_sincos_pos_embed(31, 4, 2, uniform_power=True),
    ],
)
def test_impossible_widths_are_errors(call):
    with pytest.raises(ValueError, match="embed_dim must be"):
        call()


def cubic(x):
    """The kernel of bicubic interpolation with a = -0.75."""
    x = abs(x)
    if x < 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def linear(x):
    return max(0.0, 1.0 - abs(x))


def along(length, new, kernel, reach):
    """Weights [new, length] of interpolation along one axis, cells' centres on cells' centres, edges repeated."""
    weights = torch.zeros(new, length, dtype=torch.float64)
    for place in range(new):
        at = (place + 0.5) * length / new - 0.5
        if kernel is linear:
            at = max(at, 0.0)
        for cell in range(math.floor(at) - reach + 1, math.floor(at) + reach + 1):
            weights[place, min(max(cell, 0), length - 1)] += kernel(at - cell)
    return weights


def test_image_tables_are_interpolated_bicubically():
    table = torch.from_numpy(get_2d_sincos_pos_embed(8, (4, 6)))
    got = interpolate_pos_embed(table, (4, 6), (7, 5)).view(7, 5, 8)
    rows, columns = along(4, 7, cubic, 2), along(6, 5, cubic, 2)
    want = torch.einsum("ra,cb,abd->rcd", rows, columns, table.view(4, 6, 8))
    torch.testing.assert_close(got, want)


def test_clip_tables_are_interpolated_trilinearly():
    table = torch.from_numpy(get_3d_sincos_pos_embed(16, (3, 4), 2)).unsqueeze(0)
    got = interpolate_pos_embed(table, (2, 3, 4), (4, 2, 6))
    assert got.shape == (1, 48, 16)
    axes = [along(old, new, linear, 1) for old, new in ((2, 4), (3, 2), (4, 6))]
    want = torch.einsum("ta,rb,cg,abgd->trcd", *axes, table.view(2, 3, 4, 16))
    torch.testing.assert_close(got.view(4, 2, 6, 16), want)


def test_equals_the_official_call_by_scale_factor():
    """The published encoders hand `F.interpolate` a scale: on grids that it meets exactly, results are equal."""
    table = torch.from_numpy(get_2d_sincos_pos_embed(8, 4)).float()
    picture = table.view(1, 4, 4, 8).permute(0, 3, 1, 2)
    official = F.interpolate(picture, scale_factor=math.sqrt(64 / 16), mode="bicubic").permute(0, 2, 3, 1).view(64, 8)
    torch.testing.assert_close(interpolate_pos_embed(table, (4, 4), (8, 8)), official)
    table = torch.from_numpy(get_3d_sincos_pos_embed(16, 4, 4)).float()
    volume = table.view(1, 4, 4, 4, 16).permute(0, 4, 1, 2, 3)
    official = F.interpolate(volume, scale_factor=(0.5, 2.0, 2.0), mode="trilinear").permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(interpolate_pos_embed(table, (4, 4, 4), (2, 8, 8)), official.reshape(-1, 16))


def test_interpolation_keeps_equal_sizes_prefixes_types_and_gradients():
    table = torch.randn(1, 13, 8, requires_grad=True)
    assert interpolate_pos_embed(table, (3, 4), (3, 4), num_prefix_tokens=1) is table
    grown = interpolate_pos_embed(table, (3, 4), (6, 8), num_prefix_tokens=1)
    assert grown.shape == (1, 49, 8) and torch.equal(grown[:, 0], table[:, 0])
    assert torch.autograd.grad(grown.sum(), table)[0].abs().sum() > 0
    half = interpolate_pos_embed(table.detach().bfloat16(), (3, 4), (6, 8), num_prefix_tokens=1)
    wide = interpolate_pos_embed(table.detach().bfloat16().float(), (3, 4), (6, 8), num_prefix_tokens=1)
    assert half.dtype == torch.bfloat16 and torch.equal(half, wide.bfloat16())


@pytest.mark.parametrize(
    ("shape", "old", "new", "message"),
    [
        ((12, 8), (3, 4), (3, 4, 5), "grids must both be"),
        ((12, 8), (12,), (6,), "grids must both be"),
        ((12, 8), (3, 4), (0, 4), "1 and more"),
        ((13, 8), (3, 4), (6, 8), r"pos_embed has shape \(13, 8\); expected \(12, D\)"),
        ((2, 12, 8), (3, 4), (6, 8), r"expected \(12, D\) or \(1, 12, D\)"),
    ],
)
def test_tables_that_cannot_be_interpolated_are_errors(shape, old, new, message):
    with pytest.raises(ValueError, match=message):
        interpolate_pos_embed(torch.zeros(shape), old, new)

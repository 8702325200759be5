"""The sine-cosine tables against their definition, written out element by element."""

import math

import pytest

from jepa_kernels.nn import (
    get_1d_sincos_pos_embed_from_grid,
    get_2d_sincos_pos_embed,
    get_3d_sincos_pos_embed,
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

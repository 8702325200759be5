"""Rope3D: its tables against V-JEPA 2's definition, its precisions, and its cache."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

import jepa_kernels as jk


def defined_tables(positions: torch.Tensor, head_dim: int, convention: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula, channel by channel, in Python's double precision."""
    d = 2 * (head_dim // 3 // 2)
    cos = torch.ones(len(positions), head_dim, dtype=torch.float64)
    sin = torch.zeros(len(positions), head_dim, dtype=torch.float64)
    for n, position in enumerate(positions.tolist()):
        for axis in range(3):
            for c in range(d):
                j = c % (d // 2) if convention == "vjepa2" else c // 2
                theta = position[axis] * 10000.0 ** (-j / (d / 2))
                cos[n, axis * d + c] = math.cos(theta)
                sin[n, axis * d + c] = math.sin(theta) if c % 2 else -math.sin(theta)
    return cos, sin


@pytest.mark.parametrize("convention", ["vjepa2", "rotation"])
@pytest.mark.parametrize("head_dim", [2, 4, 6, 24, 32, 64, 80, 88, 96, 104, 128, 256])
def test_tables_equal_definition(head_dim, convention):
    positions = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [63.0, 100.0, 17.0], [7.5, 99.4285, 0.0]])
    cos, sin = defined_tables(positions, head_dim, convention)
    tables = jk.Rope3D(positions, convention=convention).tables(head_dim)
    assert tables.k_cos.dtype == torch.float32
    assert tables.k_cos.shape == (1, 4, head_dim)
    torch.testing.assert_close(tables.k_cos[0].double(), cos, atol=1e-7, rtol=0)
    torch.testing.assert_close(tables.k_sin[0].double(), sin, atol=1e-7, rtol=0)
    wide = jk.Rope3D(positions, convention=convention).tables(head_dim, torch.float64)
    torch.testing.assert_close(wide.k_cos[0], cos, atol=1e-12, rtol=0)
    torch.testing.assert_close(wide.k_sin[0], sin, atol=1e-12, rtol=0)


def test_position_zero_is_identity_and_rest_untouched():
    tables = jk.Rope3D(torch.tensor([[0.0, 0.0, 0.0], [5.0, 6.0, 7.0]])).tables(32)
    assert torch.equal(tables.k_cos[0, 0], torch.ones(32))
    assert torch.equal(tables.k_sin[0, 0].abs(), torch.zeros(32))
    assert torch.equal(tables.k_cos[0, :, 30:], torch.ones(2, 2))
    assert torch.equal(tables.k_sin[0, :, 30:], torch.zeros(2, 2))


def test_from_ids_names_frame_row_column():
    ids = torch.tensor([0, 5, 6, 29, 31])
    positions = jk.Rope3D.from_ids(ids, grid=(2, 3)).positions
    assert positions.tolist() == [[i // 6, i % 6 // 3, i % 3] for i in ids.tolist()]
    scaled = jk.Rope3D.from_ids(ids[None], grid=(2, 3), scale=(1.0, 0.5, 2.0), precision="native")
    assert scaled.positions[0].tolist() == [[i // 6, i % 6 // 3 * 0.5, i % 3 * 2.0] for i in ids.tolist()]
    assert scaled.precision == "native"


def original_tables(
    positions: torch.Tensor, d: int, dtype: torch.dtype, promote: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the original modules compute for integer positions (N,) of one axis: in dtype, or as CUDA autocast promotes pow."""
    exponent = torch.arange(d // 2, dtype=dtype)
    exponent /= d / 2.0
    omega = 1.0 / 10000 ** (exponent.float() if promote else exponent)
    theta = positions[:, None] * omega
    return theta.cos().repeat(1, 2).float(), theta.sin().repeat(1, 2).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [24, 32, 64, 80, 88])
@pytest.mark.parametrize("precision", ["amp_compat", "native"])
def test_low_precision_modes_equal_original(precision, head_dim, dtype):
    d = 2 * (head_dim // 3 // 2)
    steps = torch.arange(0, 101)
    cos, sin = original_tables(steps, d, dtype, promote=precision == "amp_compat")
    positions = torch.stack([steps, torch.zeros_like(steps), torch.zeros_like(steps)], 1).float()
    tables = jk.Rope3D(positions, precision=precision).tables(head_dim, dtype)
    # amp_compat: the original's angles are float32, ours float64. native: the same roundings, so the same numbers.
    tolerance = 2e-5 if precision == "amp_compat" else 0.0
    torch.testing.assert_close(tables.k_cos[0, :, :d], cos, atol=tolerance, rtol=0)
    torch.testing.assert_close(tables.k_sin[0, :, :d].abs(), sin.abs(), atol=tolerance, rtol=0)


def test_precisions_differ():
    positions = torch.tensor([[10.0, 20.0, 30.0]])
    cos = {
        p: jk.Rope3D(positions, precision=p).tables(64, torch.bfloat16).k_cos for p in ("fp32", "amp_compat", "native")
    }
    assert not torch.allclose(cos["fp32"], cos["amp_compat"], atol=1e-2)
    assert not torch.equal(cos["amp_compat"], cos["native"])
    # float32 queries under amp_compat use the bfloat16 frequencies, to run a checkpoint in full precision.
    assert torch.equal(jk.Rope3D(positions, precision="amp_compat").tables(64, torch.float32).k_cos, cos["amp_compat"])


def test_tables_are_built_once_until_positions_change():
    rope = jk.Rope3D(torch.ones(4, 3))
    first = rope.tables(24)
    assert rope.tables(24).k_cos is first.k_cos
    assert rope.tables(24, torch.float64).k_cos.dtype == torch.float64
    assert rope.tables(32).k_cos.shape[-1] == 32
    assert rope.tables(24).k_cos is first.k_cos
    rope.positions.add_(1.0)
    assert torch.equal(rope.tables(24).k_cos, jk.Rope3D(torch.full((4, 3), 2.0)).tables(24).k_cos)
    assert len(rope._cache) == 1


def test_query_positions_have_their_own_tables():
    rope = jk.Rope3D(torch.ones(4, 3), query_positions=torch.zeros(2, 3))
    tables = rope.tables(24)
    assert tables.q_cos.shape == (1, 2, 24) and tables.k_cos.shape == (1, 4, 24)
    assert torch.equal(tables.q_cos, torch.ones(1, 2, 24))


def test_tables_made_in_inference_mode_serve_training():
    rope = jk.Rope3D(torch.ones(4, 3))
    q = torch.randn(1, 1, 4, 24)
    with torch.inference_mode():
        jk.masked_attention(q, q, q, rope=rope)
        rope_of_inference = jk.Rope3D(torch.ones(4, 3))
    q.requires_grad_()
    for used in (rope, rope_of_inference):
        jk.masked_attention(q, q, q, rope=used).sum().backward()
    assert q.grad is not None and q.grad.isfinite().all()


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_keep_the_values(clone):
    rope = jk.Rope3D(torch.rand(4, 3), convention="rotation", precision="native")
    expected = rope.tables(24)
    twin = clone(rope)
    assert (twin.convention, twin.precision) == ("rotation", "native")
    assert torch.equal(twin.tables(24).k_sin, expected.k_sin)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: jk.Rope3D([1.0]), TypeError, "positions is a list"),
        (lambda: jk.Rope3D(torch.zeros(4, 3, dtype=torch.int64)), TypeError, "dtype torch.int64"),
        (lambda: jk.Rope3D(torch.zeros(4, 2)), ValueError, r"shape \(4, 2\)"),
        (lambda: jk.Rope3D(torch.zeros(3)), ValueError, r"shape \(3,\)"),
        (lambda: jk.Rope3D(torch.zeros(4, 3), torch.zeros(4)), ValueError, r"query_positions has shape \(4,\)"),
        (lambda: jk.Rope3D(torch.zeros(4, 3), torch.zeros(4, 3, device="meta")), ValueError, "on meta"),
        (lambda: jk.Rope3D(torch.zeros(4, 3), convention="timm"), ValueError, "convention is 'timm'"),
        (lambda: jk.Rope3D(torch.zeros(4, 3), precision="bf16"), ValueError, "precision is 'bf16'"),
        (lambda: jk.Rope3D.from_ids(torch.zeros(4), grid=(2, 2)), TypeError, "dtype torch.float32"),
        (
            lambda: jk.Rope3D.from_ids(torch.zeros(1, 1, 1, dtype=torch.int64), grid=(2, 2)),
            ValueError,
            r"shape \(1, 1, 1\)",
        ),
        (lambda: jk.Rope3D.from_ids(torch.arange(4), grid=(0, 2)), ValueError, r"grid is \(0, 2\)"),
    ],
)
def test_bad_values_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()

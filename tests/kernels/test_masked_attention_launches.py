"""What the launchers of the Triton attention decide in Python: segments, stride units, checks, no recompiling for new shapes."""

import pytest
import torch

pytest.importorskip("triton")

from jepa_kernels.kernels import masked_attention
from jepa_kernels.kernels.launch import ASSUMED_MULTIPROCESSORS, stride_unit
from jepa_kernels.kernels.masked_attention import Extras, backward_launches, forward, forward_launches
from jepa_kernels.kernels.segments import head_dim_segments


def tensors(tokens=40, head_dim=24, dtype=torch.bfloat16):
    q, k, v = torch.empty(2, tokens, 3, 4, head_dim, dtype=dtype, device="meta").permute(2, 0, 3, 1, 4)
    out = torch.empty(2, tokens, 4, head_dim, dtype=dtype, device="meta").transpose(1, 2)
    return q, k, v, out, torch.empty(2, 4, tokens, device="meta")


def launches(tokens, **extras):
    q, k, v, out, lse = tensors(tokens)
    table = torch.empty(1, tokens, 24, device="meta")
    given = Extras(scale=0.2, q_cos=table, q_sin=table, k_cos=table, k_sin=table, **extras)
    gradients = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    return forward_launches(q, k, v, out, lse, given) + backward_launches(out, q, k, v, out, lse, *gradients, given)


@pytest.mark.parametrize("head_dim", range(2, 257, 2))
def test_segments_cover_the_head_dim_without_overlap(head_dim):
    for narrow in (False, True):
        segments = head_dim_segments(head_dim, narrow)
        assert [start for start, _ in segments] == [
            sum(width for _, width in segments[:i]) for i in range(len(segments))
        ]
        assert all(width >= 16 and width & (width - 1) == 0 for _, width in segments)
        assert head_dim <= sum(width for _, width in segments) < 2 * max(head_dim, 16)


@pytest.mark.parametrize("head_dim", [0, 7, 258])
def test_segments_refuse_other_head_dims(head_dim):
    with pytest.raises(ValueError, match=f"got {head_dim}"):
        head_dim_segments(head_dim)


def test_lengths_and_strides_never_compile_another_kernel():
    """No integer is specialised on its value, and the compile-time values of two lengths are equal."""
    for first, second in zip(launches(70), launches(1806), strict=True):
        for parameter in first.kernel.params:
            if parameter.is_constexpr:
                assert first.arguments[parameter.name] == second.arguments[parameter.name], parameter.name
            elif isinstance(first.arguments[parameter.name], int):
                assert parameter.do_not_specialize, f"{first.kernel.__name__}: {parameter.name}"


def ragged_launches(tokens=1806, sequences=24, max_seqlen=0):
    """Forward, dQ, and dK and dV of 3 heads in bfloat16."""
    q, k, v, out = torch.empty(4, 1, 3, tokens, 64, dtype=torch.bfloat16, device="meta")
    extras = Extras(
        scale=0.125, cu_seqlens=torch.empty(sequences + 1, dtype=torch.int32, device="meta"), max_seqlen=max_seqlen
    )
    lse = torch.empty(1, 3, tokens, device="meta")
    return forward_launches(q, k, v, out, lse, extras) + backward_launches(out, q, k, v, out, lse, q, k, v, extras)


@pytest.mark.parametrize("max_seqlen", [0, 65, 1806, 10**6])
def test_ragged_programs_are_counted_from_tokens_and_sequences_alone(max_seqlen):
    for launch, rows in zip(ragged_launches(max_seqlen=max_seqlen), ("BLOCK_M", "BLOCK_M", "BLOCK_N"), strict=True):
        assert launch.grid == 3 * (1806 // launch.arguments[rows] + 24 + 1) == 3 * launch.arguments["num_tiles"]
        assert not launch.arguments["PERSISTENT"]


def test_a_table_of_tiles_makes_ragged_launches_persistent(monkeypatch):
    """As many programs as the GPU holds, never more than items; other masks keep a program a tile."""
    resident, choose = {"forward": 1, "query_gradient": 2, "key_gradient": 1000}, masked_attention.choose
    monkeypatch.setattr(masked_attention, "choose", lambda name, *x: choose(name, *x)._replace(resident=resident[name]))
    found = ragged_launches(tokens=20_000)
    items = [3 * launch.arguments["num_tiles"] for launch in found]
    assert [launch.grid for launch in found] == [ASSUMED_MULTIPROCESSORS, 2 * ASSUMED_MULTIPROCESSORS, items[2]]
    assert all(launch.arguments["PERSISTENT"] for launch in found)
    assert not any(launch.arguments.get("PERSISTENT") for launch in launches(70))


def test_stride_unit_divides_every_stride_of_a_real_axis():
    assert stride_unit(torch.empty(2, 5, 3, 88)) == 8
    assert stride_unit(torch.empty(2, 5, 3, 26)) == 2
    assert stride_unit(torch.empty(1, 24).expand(7, 24)) == 8
    assert stride_unit(torch.empty(1, 13)) == 8  # the stride of one row is never used
    assert stride_unit(None) == 8


def test_a_mask_broadcast_over_keys_is_copied_only_where_it_is_distinct():
    q, k, v, out, lse = (torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in tensors())
    rows = torch.rand(2, 1, 40, 1) < 0.5
    launch = forward_launches(q, k, v, out, lse, Extras(scale=1.0, bool_mask=rows.expand(2, 4, 40, 40)))[-1]
    mask = launch.arguments["mask_ptr"]
    assert mask.stride()[1] == 0 and mask.stride()[-1] == 1
    assert torch.equal(mask.bool(), rows.expand(2, 4, 40, 40))


def test_layouts_that_the_kernels_cannot_read_are_refused():
    q, k, v, out, lse = tensors()
    with pytest.raises(ValueError, match="k has strides"):
        forward(q, k.transpose(2, 3).contiguous().transpose(2, 3), v, out, lse, scale=1.0)
    with pytest.raises(ValueError, match="v has dtype torch.float16"):
        forward(q, k, v.half(), out, lse, scale=1.0)
    with pytest.raises(ValueError, match="q has dtype torch.float64"):
        forward(q.double(), k, v, out, lse, scale=1.0)
    with pytest.raises(ValueError, match="lse must be contiguous float32"):
        forward(q, k, v, out, lse.half(), scale=1.0)

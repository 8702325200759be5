"""What the launchers of the Triton attention decide in Python: segments, stride units, checks, no recompiling for new shapes."""

import pytest
import torch

pytest.importorskip("triton")

from jepa_kernels.kernels.launch import stride_unit
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

"""masked_attention refuses bad input with an error that names the value."""

from __future__ import annotations

import pytest
import torch

import jepa_kernels as jk

Q = torch.zeros(2, 4, 6, 8)
PACKED = torch.zeros(2, 6, 3, 4, 8)
TOKENS = torch.zeros(6, 4, 8)


def offsets(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def ragged(*values: int, longest: int = 6, x: torch.Tensor = TOKENS) -> torch.Tensor:
    return jk.masked_attention(x, x, x, mask=jk.Ragged(offsets(*values), longest))


def rope(*shape: int, device: str = "cpu", **rest) -> jk.Rope3D:
    return jk.Rope3D(torch.zeros(*shape, device=device), **rest)


CASES = {
    "not_a_tensor": (lambda: jk.masked_attention([1.0]), TypeError, "q is a list"),
    "integers": (lambda: jk.masked_attention(Q.int(), Q, Q), TypeError, "q has dtype torch.int32"),
    "only_k": (lambda: jk.masked_attention(Q, Q), TypeError, "only one of k and v"),
    "only_v": (lambda: jk.masked_attention(Q, v=Q), TypeError, "only one of k and v"),
    "dtypes_differ": (
        lambda: jk.masked_attention(Q, Q, Q.bfloat16()),
        TypeError,
        "v has dtype torch.bfloat16, q torch.float32",
    ),
    "devices_differ": (lambda: jk.masked_attention(Q, Q.to("meta"), Q), ValueError, "k is on meta, q on cpu"),
    "three_dimensions": (
        lambda: jk.masked_attention(Q[0], Q, Q),
        ValueError,
        r"q has shape \(4, 6, 8\); it must be \(B, H, N, D\)",
    ),
    "batches_differ": (lambda: jk.masked_attention(Q, Q[:1], Q), ValueError, "batch size of k is 1, that of q 2"),
    "heads_differ": (lambda: jk.masked_attention(Q, Q, Q[:, :2]), ValueError, "head count of v is 2, that of q 4"),
    "head_dims_differ": (lambda: jk.masked_attention(Q, Q[..., :4], Q), ValueError, "head dim of k is 4, that of q 8"),
    "keys_and_values_differ": (lambda: jk.masked_attention(Q, Q, Q[:, :, :5]), ValueError, "6 keys but 5 values"),
    "head_dim_zero": (lambda: jk.masked_attention(Q[..., :0], Q[..., :0], Q[..., :0]), ValueError, "head dim is 0"),
    "packed_shape": (
        lambda: jk.masked_attention(Q),
        ValueError,
        r"\(2, 4, 6, 8\).*packed qkv of shape \(B, N, 3, H, D\)",
    ),
    "packed_parts": (lambda: jk.masked_attention(PACKED[:, :, :2]), ValueError, r"\(2, 6, 2, 4, 8\).*packed"),
    "packed_ragged": (
        lambda: jk.masked_attention(PACKED, mask=jk.Ragged(offsets(0, 6), 6)),
        ValueError,
        r"packed qkv of shape \(total, 3, H, D\)",
    ),
    "scale_nan": (lambda: jk.masked_attention(Q, Q, Q, scale=float("nan")), ValueError, "scale is nan"),
    "scale_infinite": (lambda: jk.masked_attention(Q, Q, Q, scale=-float("inf")), ValueError, "scale is -inf"),
    "scale_tensor": (lambda: jk.masked_attention(Q, Q, Q, scale=torch.ones(())), TypeError, "scale is a Tensor"),
    "mask_float": (
        lambda: jk.masked_attention(Q, Q, Q, mask=torch.zeros(6, 6)),
        TypeError,
        "mask has dtype torch.float32",
    ),
    "mask_shape": (
        lambda: jk.masked_attention(Q, Q, Q, mask=torch.ones(6, 5, dtype=torch.bool)),
        ValueError,
        r"shape \(6, 5\) does not broadcast to \(B, H, Nq, Nk\) = \(2, 4, 6, 6\)",
    ),
    "mask_rank": (
        lambda: jk.masked_attention(Q, Q, Q, mask=torch.ones(1, 2, 4, 6, 6).bool()),
        ValueError,
        "does not broadcast",
    ),
    "mask_device": (
        lambda: jk.masked_attention(Q, Q, Q, mask=torch.ones(6, 6, device="meta").bool()),
        ValueError,
        "mask is on meta",
    ),
    "mask_kind": (lambda: jk.masked_attention(Q, Q, Q, mask="causal"), TypeError, "mask is a str"),
    "frames_of_keys": (
        lambda: jk.masked_attention(Q, Q, Q, mask=jk.FrameCausal(4)),
        ValueError,
        "tokens_per_frame 4 does not divide the 6 queries",
    ),
    "frames_of_queries": (
        lambda: jk.masked_attention(Q[:, :, :2], Q[:, :, :5], Q[:, :, :5], mask=jk.FrameCausal(2)),
        ValueError,
        "tokens_per_frame 2 does not divide the 5 keys",
    ),
    "padding_count": (
        lambda: jk.masked_attention(Q, Q, Q, mask=jk.KeyPadding(offsets(6))),
        ValueError,
        "1 lengths for batch size 2",
    ),
    "padding_long": (
        lambda: jk.masked_attention(Q, Q, Q, mask=jk.KeyPadding(offsets(6, 7))),
        ValueError,
        r"lengths\[1\] is 7",
    ),
    "padding_negative": (
        lambda: jk.masked_attention(Q, Q, Q, mask=jk.KeyPadding(offsets(-1, 6))),
        ValueError,
        r"lengths\[0\] is -1",
    ),
    "padding_wraps": (
        lambda: jk.masked_attention(Q, Q, Q, mask=jk.KeyPadding(torch.tensor([6, 2**32 + 1]))),
        ValueError,
        r"lengths\[1\] is 2147483647",
    ),
    "padding_device": (
        lambda: jk.masked_attention(Q, Q, Q, mask=jk.KeyPadding(offsets(6, 6).to("meta"))),
        ValueError,
        "KeyPadding.lengths is on meta",
    ),
    "ragged_start": (lambda: ragged(1, 6), ValueError, "cu_seqlens run from 1 to 6"),
    "ragged_sum": (lambda: ragged(0, 2, 5), ValueError, "cu_seqlens run from 0 to 5; they must run from 0 to 6"),
    "ragged_order": (lambda: ragged(0, 4, 2, 6), ValueError, "falls from 4 to 2 at index 2"),
    "ragged_longest": (
        lambda: ragged(0, 4, 6, longest=3),
        ValueError,
        "sequence 0 has 4 tokens, more than Ragged.max_seqlen = 3",
    ),
    "ragged_shape": (lambda: ragged(0, 6, x=Q), ValueError, r"q has shape \(2, 4, 6, 8\); it must be \(total, H, D\)"),
    "ragged_lengths": (
        lambda: jk.masked_attention(TOKENS, TOKENS[:5], TOKENS[:5], mask=jk.Ragged(offsets(0, 6), 6)),
        ValueError,
        "6 queries but 5 keys",
    ),
    "rope_kind": (lambda: jk.masked_attention(Q, Q, Q, rope=torch.zeros(6, 3)), TypeError, "rope is a Tensor"),
    "rope_rows": (
        lambda: jk.masked_attention(Q, Q, Q, rope=rope(5, 3)),
        ValueError,
        "Rope3D.positions has 5 rows for 6 keys",
    ),
    "rope_batch": (
        lambda: jk.masked_attention(Q, Q, Q, rope=rope(3, 6, 3)),
        ValueError,
        "Rope3D.positions has batch size 3, q 2",
    ),
    "rope_odd": (lambda: jk.masked_attention(*[Q[..., :7]] * 3, rope=rope(6, 3)), ValueError, "head dim 7 is odd"),
    "rope_queries": (
        lambda: jk.masked_attention(Q[:, :, :2], Q, Q, rope=rope(6, 3)),
        ValueError,
        "2 queries and 6 keys, but one set of positions",
    ),
    "rope_query_rows": (
        lambda: jk.masked_attention(Q[:, :, :2], Q, Q, rope=rope(6, 3, query_positions=torch.zeros(3, 3))),
        ValueError,
        "query_positions has 3 rows for 2 queries",
    ),
    "rope_device": (
        lambda: jk.masked_attention(Q, Q, Q, rope=rope(6, 3, device="meta")),
        ValueError,
        "positions is on meta",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_error_names_the_value(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()


def test_values_are_checked_in_compiled_graphs():
    @torch.compile(fullgraph=True)
    def attention(q, lengths):
        return jk.masked_attention(q, q, q, mask=jk.KeyPadding(lengths))

    assert attention(Q, offsets(1, 6)).shape == Q.shape
    with pytest.raises(ValueError, match=r"lengths\[1\] is 9"):
        attention(Q, offsets(1, 9))


def test_forced_backend_says_why_it_cannot_run():
    with jk.backend("cuda"), pytest.raises(jk.BackendError, match="cuda kernels need CUDA tensors, got cpu"):
        jk.masked_attention(Q, Q, Q)
    with jk.backend("cpu"), pytest.raises(jk.BackendError, match="float64 runs on the reference backend"):
        jk.masked_attention(Q.double(), Q.double(), Q.double())
    wide = torch.zeros(1, 1, 2, 258)
    with (
        jk.backend("cpu"),
        pytest.raises(jk.BackendError, match="head dim 258: the kernels take even sizes up to 256"),
    ):
        jk.masked_attention(wide, wide, wide)
    with jk.backend(None):
        assert jk.masked_attention(wide, wide, wide).shape == wide.shape


def test_explain_takes_packed_input(capsys):
    with jk.backend("reference"):
        decision = jk.explain("masked_attention", PACKED, mask=jk.FrameCausal(3))
    assert decision.chosen == "reference"
    assert "cuda kernels need CUDA tensors, got cpu" in capsys.readouterr().out

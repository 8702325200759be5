"""Masks: the dense matrix that each stands for, and the refusal of bad values."""

from __future__ import annotations

import pytest
import torch

import jepa_kernels as jk


def test_frame_causal_by_pairs():
    dense = jk.FrameCausal(3, query_frame_offset=1).to_dense(6, 9)
    for i in range(6):
        for j in range(9):
            assert dense[i, j] == (j // 3 <= 1 + i // 3)


def test_frame_causal_equals_block_triangle():
    blocks = torch.ones(4, 4).tril().bool()
    assert torch.equal(jk.FrameCausal(5).to_dense(20, 20), blocks.repeat_interleave(5, 0).repeat_interleave(5, 1))


def test_key_padding_by_pairs():
    dense = jk.KeyPadding(torch.tensor([0, 2, 4])).to_dense(4)
    assert dense.shape == (3, 1, 1, 4)
    assert dense[:, 0, 0].sum(1).tolist() == [0, 2, 4]
    assert dense[1, 0, 0].tolist() == [True, True, False, False]


def test_ragged_by_pairs():
    lengths = [2, 0, 3, 1]
    owner = [s for s, length in enumerate(lengths) for _ in range(length)]
    dense = jk.Ragged.from_lengths(lengths).to_dense(6)
    assert dense.tolist() == [[a == b for b in owner] for a in owner]


def test_ragged_from_lengths():
    ragged = jk.Ragged.from_lengths([4, 2])
    assert ragged.cu_seqlens.tolist() == [0, 4, 6]
    assert ragged.cu_seqlens.dtype == torch.int32
    assert ragged.max_seqlen == 4
    assert jk.Ragged.from_lengths([]).cu_seqlens.tolist() == [0]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: jk.FrameCausal(0), ValueError, "tokens_per_frame is 0"),
        (lambda: jk.FrameCausal(2.0), TypeError, "tokens_per_frame is a float"),
        (lambda: jk.FrameCausal(True), TypeError, "tokens_per_frame is a bool"),
        (lambda: jk.FrameCausal(2, -1), ValueError, "query_frame_offset is -1"),
        (lambda: jk.FrameCausal(4).to_dense(8, 7), ValueError, "4 does not divide the 7 keys"),
        (lambda: jk.Ragged([0, 2], 2), TypeError, "cu_seqlens is a list"),
        (lambda: jk.Ragged(torch.tensor([0, 2]), 2), TypeError, "dtype torch.int64"),
        (lambda: jk.Ragged(torch.zeros(1, 2, dtype=torch.int32), 2), ValueError, r"shape \(1, 2\)"),
        (lambda: jk.Ragged(torch.zeros(0, dtype=torch.int32), 2), ValueError, r"shape \(0,\)"),
        (lambda: jk.Ragged(torch.zeros(2, dtype=torch.int32), -1), ValueError, "max_seqlen is -1"),
        (lambda: jk.Ragged.from_lengths([3, -2]), ValueError, "length -2"),
        (lambda: jk.KeyPadding([2]), TypeError, "lengths is a list"),
        (lambda: jk.KeyPadding(torch.tensor([2.0])), TypeError, "dtype torch.float32"),
        (lambda: jk.KeyPadding(torch.tensor(2)), ValueError, r"shape \(\)"),
    ],
)
def test_bad_values_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()

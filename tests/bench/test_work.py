"""FLOP and byte formulas against counts made another way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import jepa_kernels as jk
from jepa_kernels.bench import work
from jepa_kernels.bench.cases.masks import keep_block
from jepa_kernels.bench.eager_vjepa2 import Block


def counted(run: Callable[[], object]) -> int:
    # The counter knows the matrix products of the unfused form; the CPU's fused attention is none of its operators.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def test_patch_embed_flops_are_those_of_the_linear_layer() -> None:
    patches, weight = torch.rand(2, 10, 96), torch.rand(32, 96)
    assert work.patch_embed_flops(20, 96, 32) == counted(lambda: functional.linear(patches, weight))


def test_patch_embed_flops_are_those_of_the_convolution() -> None:
    pixels, weight = torch.rand(2, 3, 4, 16, 16), torch.rand(8, 3, 2, 8, 8)
    assert work.patch_embed_flops(2 * 2 * 4, 3 * 2 * 64, 8) == counted(
        lambda: functional.conv3d(pixels, weight, stride=(2, 8, 8))
    )


def test_dense_attention_flops_are_those_of_sdpa() -> None:
    q, k, v = torch.rand(3, 2, 4, 24, 16, requires_grad=True).unbind()
    assert work.attention_flops(2 * 24 * 24, 4, 16) == counted(
        lambda: functional.scaled_dot_product_attention(q, k, v)
    )


@pytest.mark.parametrize(("frames", "per_frame"), [(1, 5), (3, 4), (7, 258)])
def test_frame_causal_pairs_are_the_true_entries_of_the_mask(frames: int, per_frame: int) -> None:
    frame = torch.arange(frames * per_frame) // per_frame
    assert work.frame_causal_pairs(frames, per_frame) == int((frame[:, None] >= frame[None, :]).sum())


def test_ragged_pairs_are_the_true_entries_of_the_block_diagonal() -> None:
    lengths = (3, 1, 5)
    sample = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    assert work.ragged_pairs(lengths) == int((sample[:, None] == sample[None, :]).sum())


@pytest.mark.parametrize("backward", [False, True])
def test_attention_bytes_are_those_of_the_tensors(backward: bool) -> None:
    tensor = torch.empty(2, 4, 24, 16, dtype=torch.bfloat16)
    one, lse = tensor.nbytes, 2 * 4 * 24 * 4
    forward = 4 * one + lse
    assert work.attention_bytes(48, 4, 16, value_bytes=2) == forward
    # Backward reads q, k, v, o, dO and the log-sum-exp, and writes dq, dk, dv.
    assert work.attention_bytes(48, 4, 16, value_bytes=2, backward=True) == forward + 8 * one + lse


def test_patch_embed_bytes_are_those_of_the_tensors() -> None:
    pixels = torch.empty(1, 2, 8, 8, 3, dtype=torch.uint8)
    weight, bias = torch.empty(5, 3, 2, 4, 4), torch.empty(5)
    out = torch.empty(1, 4, 5)
    found = work.patch_embed_bytes(4, 96, 5, pixel_bytes=1, weight_bytes=4, out_bytes=4)
    assert found == pixels.nbytes + weight.nbytes + bias.nbytes + out.nbytes


def test_ema_moves_twelve_bytes_an_element() -> None:
    assert (work.ema_bytes(100), work.ema_flops(100)) == (1200, 300)


@pytest.mark.parametrize("backward", [False, True])
def test_transformer_flops_are_those_of_a_block(backward: bool) -> None:
    block = Block(dim=32, heads=2, grid=(2, 3, 3), mlp_ratio=4.0)
    x = torch.rand(2, 18, 32, requires_grad=True)

    def linear_and_attention() -> None:
        with torch.set_grad_enabled(backward):
            out = block(x, None)
        if backward:
            out.sum().backward()

    expected = work.transformer_flops(2 * 18, 2 * 18 * 18, 32, 1, backward=backward)
    if backward:  # our 2.5 includes the scores that a fused backward computes again; the unfused one kept them
        expected -= 0.5 * work.attention_flops(2 * 18 * 18, 2, 16)
    assert expected == pytest.approx(counted(linear_and_attention), rel=1e-12)


def test_kept_block_is_a_rectangle_on_every_frame() -> None:
    ids = keep_block(torch.Generator().manual_seed(1), 3, 2, 8, 10, 0.1)
    assert ids.shape == (3, 2 * 3 * 3)  # 3 rows of 3 columns are the nearest to a tenth of 8 x 10
    for row in ids:
        assert torch.equal(row, row.unique())
        assert int(row.min()) >= 0 and int(row.max()) < 2 * 80
        first, second = row[row < 80], row[row >= 80] - 80
        assert torch.equal(first, second)
        rows, columns = (first // 10).unique(), (first % 10).unique()
        assert first.numel() == rows.numel() * columns.numel()


class Bytes(TorchDispatchMode):
    """Bytes that the operators of the official patch embedding read and write, weights left out."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "clone", "convolution"):
            self.total += args[0].nbytes + out.nbytes
        elif name == "gather":  # of the tokens only what is kept; the ids are one column, seen many times
            self.total += 2 * out.nbytes + args[2].untyped_storage().nbytes()
        return out


def test_step_bytes_of_the_official_form_are_those_of_its_operators() -> None:
    batch, dim, kept = 2, 24, (5, 3)
    pixels = torch.rand(batch, 3, 4, 16, 24)
    weight, bias = torch.rand(dim, 3, 2, 8, 8).bfloat16(), torch.rand(dim).bfloat16()
    masks = [torch.randint(0, 12, (batch, k)) for k in kept]
    with Bytes() as counted_bytes:
        for mask in (None, *masks):
            embedded = functional.conv3d(pixels.to(torch.bfloat16), weight, bias, stride=(2, 8, 8))
            found = embedded.flatten(2).transpose(1, 2)
            if mask is None:
                found.contiguous()
            else:
                torch.gather(found, 1, mask.unsqueeze(-1).expand(-1, -1, dim))
    assert work.patch_embed_step_bytes(batch, 12, kept, 3 * 2 * 64, dim, fused=False) == counted_bytes.total


def test_step_bytes_of_the_fused_form_are_those_of_its_tensors() -> None:
    batch, dim, kept = 2, 24, (5, 3)
    pixels = torch.zeros(batch, 3, 4, 16, 24, dtype=torch.uint8)
    masks = [torch.randint(0, 12, (batch, k)) for k in kept]
    every, contexts = jk.patch_embed_pair(
        pixels, *[torch.rand(shape).bfloat16() for shape in ((dim, 3, 2, 8, 8), (dim,)) * 2], keep=masks
    )
    moved = pixels.nbytes * (1 + sum(kept) / 12) + every.nbytes + sum(t.nbytes for t in (*contexts, *masks))
    assert work.patch_embed_step_bytes(batch, 12, kept, 3 * 2 * 64, dim, fused=True) == moved


def test_a_step_of_vjepa2_vitl_moves_a_tenth_of_the_official_bytes() -> None:
    """16 frames of 256 x 256, the mean numbers of context tokens that its two masks keep; at any batch size."""
    for batch in (1, 24):
        shape = (batch, 2048, (501, 138), 1536, 1024)
        fused = work.patch_embed_step_bytes(*shape, fused=True)
        assert work.patch_embed_step_bytes(*shape, fused=False) >= 10 * fused
        assert work.patch_embed_step_bytes(*shape, fused=False, normalise=True) >= 11.5 * fused

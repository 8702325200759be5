"""Ragged attention kernels in Triton's interpreter: which items a program finds, and results whatever the number of programs."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from jepa_kernels.kernels import masked_attention
from jepa_kernels.kernels.masked_attention import Extras, backward_launches, forward_launches
from jepa_kernels.kernels.ragged_items import ragged_item, ragged_slots

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from masked_attention_worker import F16, F32, POISON, dense_results, guarded

HEADS = 2
TOLERANCE = {F32: 1e-5, F16: 4e-3}  # how far from the definition in float64; test_masked_attention_interpreter.py looks closer
# name -> (lengths of sequences, tokens after the last of them)
BATCHES = {
    "mixed": ([37, 0, 1, 22], 0),
    "single": ([41], 0),
    "ones": ([1, 1, 1, 1, 1], 0),
    "empty": ([0, 0, 7, 0], 0),
    "leftover": ([20, 35, 0, 0, 0], 19),
    "many": ([index % 9 == 0 for index in range(40)], 3),  # a second round of the search
}
CASES = [(name, F16) for name in BATCHES] + [("mixed", F32), ("leftover", F32)]


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@triton.jit
def items_kernel(found_ptr, cu_seqlens_ptr, num_sequences, num_heads, total, items, step, BLOCK: tl.constexpr):
    item = tl.program_id(0) * step
    values = ragged_item(item, cu_seqlens_ptr, num_sequences, num_heads, total, BLOCK)
    for i in tl.static_range(5):
        tl.store(found_ptr + item * 5 + i, values[i])


def items_of(cu_seqlens, total, block, step=1):
    """(head, first, row, rows, keys) of every step-th item, also where it has no rows to compute."""
    sequences = cu_seqlens.shape[0] - 1
    items = ragged_slots(total, sequences, block) * HEADS
    found = torch.full((items, 5), -1, dtype=torch.int32)
    items_kernel[(triton.cdiv(items, step),)](found, cu_seqlens, sequences, HEADS, total, items, step, BLOCK=block)
    return [tuple(values) for values in found[::step].tolist()]


@pytest.mark.parametrize("sequences", [0, 1, 31, 32])
@pytest.mark.parametrize("block", [16, 128])
def test_every_tile_is_found_once(sequences, block):
    """From 32 sequences on, the search takes another round."""
    generator = torch.Generator().manual_seed(sequences)
    lengths = torch.randint(0, 2 * block, (sequences,), generator=generator).tolist()
    wanted, first = [], 0
    for index, length in enumerate([*lengths, 11]):  # the last ones are in no sequence and see no key
        keys = length if index < sequences else 0
        wanted += [(head, first, row, length, keys) for head in range(HEADS) for row in range(0, length, block)]
        first += length
    assert [item for item in items_of(offsets(lengths), first, block) if item[2] < item[3]] == wanted


@pytest.mark.parametrize("sequences", [1023, 1024, 40_000])
def test_many_sequences_are_searched_in_rounds(sequences):
    """The last sequence whose first slot is not past the item's; up to 32, 1024 and 32768 candidates take a round more each."""
    lengths = torch.randint(0, 9, (sequences,), generator=torch.Generator().manual_seed(0))
    cu_seqlens, block = offsets(lengths.tolist()), 16
    total = int(cu_seqlens[-1])
    first_slots = cu_seqlens // block + torch.arange(sequences + 1)
    step = ragged_slots(total, sequences, block) * HEADS // 150 + 1  # odd or even, so that both heads come
    found = items_of(cu_seqlens, total, block, step)
    slots = torch.arange(0, ragged_slots(total, sequences, block) * HEADS, step) // HEADS
    wanted = cu_seqlens[torch.searchsorted(first_slots, slots, right=True) - 1]
    assert [item[1] for item in found] == wanted.tolist()


@pytest.mark.parametrize(
    "bounds", [[0, 40, 10, 60], [0, -7, 900, 60], [50, 20, 10, 0], [0, 2**31 - 1, -(2**31), 60], [0, 100, 0, 15], [0, 48, 64, 0]]
)
def test_offsets_that_are_wrong_lead_nowhere_outside(bounds):
    for head, first, row, rows, keys in items_of(torch.tensor(bounds, dtype=torch.int32), 100, 16):
        if row < rows:
            assert head in range(HEADS) and min(first, row) >= 0 and first + rows <= 100 and keys in (0, rows)


def inputs(lengths, leftover, dtype, head_dim):
    total = sum(lengths) + leftover
    q, k, v, dout = torch.randn(1, total, 4, HEADS, head_dim).to(dtype).permute(2, 0, 3, 1, 4)
    return q, k, v, dout


def shared(launch, programs):
    """The launch, or its items among that many programs."""
    return launch if programs is None else replace(launch, grid=programs, arguments={**launch.arguments, "PERSISTENT": True})


def launched(tensors, cu_seqlens, programs=None, max_seqlen=0):
    """out, lse, dq, dk and dv, with that many persistent programs a launch, or as the launcher chooses."""
    q, k, v, dout = tensors
    _, heads, total, head_dim = q.shape
    _, (out, dq, dk, dv) = guarded(1, total, 4, heads, head_dim, q.dtype)
    lse = torch.full((1, heads, total), POISON)
    extras = Extras(scale=head_dim**-0.5, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
    for launch in forward_launches(q, k, v, out, lse, extras):
        shared(launch, programs).run()
    for launch in backward_launches(dout, q, k, v, out, lse, dq, dk, dv, extras):
        shared(launch, programs).run()
    return [out, lse, dq, dk, dv]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_agrees_with_dense_attention_for_any_number_of_programs(name, dtype):
    """Two programs share the items, or each has its own: the same bits. max_seqlen = 0 tells them nothing."""
    torch.manual_seed(0)
    lengths, leftover = BATCHES[name]
    tensors = inputs(lengths, leftover, dtype, 24)
    total, cu_seqlens = sum(lengths) + leftover, offsets(lengths)
    inside = torch.arange(total) < sum(lengths)
    sequence = torch.bucketize(torch.arange(total), cu_seqlens, right=True)
    mask = (sequence[:, None] == sequence) & inside[:, None]
    rest = (mask, None, None, 24**-0.5)
    exact = dense_results(*tensors, torch.float64, *rest)
    poisoned = [x.masked_fill(~inside[:, None], POISON) for x in tensors[:3]] + [tensors[3]]
    two, each = (launched(poisoned, cu_seqlens, programs) for programs in (2, None))
    assert all(torch.equal(a, b) for a, b in zip(two, each, strict=True))
    for result, wanted in zip(each, exact, strict=True):
        torch.testing.assert_close(result.double(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_tokens_without_a_sequence_get_zeros():
    tensors = inputs([], 40, F16, 24)
    tensors = [x.fill_(POISON) for x in tensors]
    out, lse, *gradients = launched(tensors, offsets([]))
    assert bool((lse == float("-inf")).all())
    assert all(bool((x == 0).all()) for x in (out, *gradients))


def test_offsets_padded_with_empty_sequences_change_no_bit():
    lengths = [23, 41, 8]
    tensors = inputs(lengths, 0, F16, 32)
    cu_seqlens = offsets(lengths)
    padded = torch.cat([cu_seqlens, cu_seqlens[-1:].expand(13)])
    results = [launched(tensors, bounds, 2) for bounds in (cu_seqlens, padded)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_persistent_programs_and_repeated_runs_change_no_bit(monkeypatch):
    """Two multiprocessors, of which each holds two programs of the forward, one of the others."""
    lengths = [70, 12, 0, 33]
    tensors = inputs(lengths, 5, F16, 64)
    results = [launched(tensors, offsets(lengths), max_seqlen=70) for _ in range(2)]
    grids = []
    monkeypatch.setattr(masked_attention, "multiprocessors", lambda device: 2)
    resident, choose = {"forward": 2, "query_gradient": 1, "key_gradient": 1}, masked_attention.choose
    monkeypatch.setattr(masked_attention, "choose", lambda name, *x: choose(name, *x)._replace(resident=resident[name]))
    run = masked_attention.Launch.run
    monkeypatch.setattr(masked_attention.Launch, "run", lambda launch: (grids.append(launch.grid), run(launch)))
    results.append(launched(tensors, offsets(lengths), max_seqlen=70))
    assert grids == [4, 2, 2]
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))

"""Work items of a ragged batch: which tile of which sequence and head a program takes, found from cu_seqlens on the device.

The host knows the number of sequences S and of tokens, but no length. Sequence i, of tokens [c_i, c_(i+1)), owns the slots
    first_slot(i) = c_i // BLOCK + i  up to  first_slot(i + 1).
These are c_(i+1) // BLOCK - c_i // BLOCK + 1, which is ceil(length / BLOCK), or one more: that one is empty. The tokens after
the last sequence (there are some when cu_seqlens is padded for graph replay) count as sequence S, which ends at the last token.
So there are
    total // BLOCK + S + 1
slots, whatever the lengths. first_slot needs no sum over the sequences before and rises with i, so the sequence of a slot is
found by a search in cu_seqlens itself, and nothing has to be prepared.

Items number the slots of every head: the tiles of one head side by side, so that its keys and values stay in L2, then the heads
of one sequence, then the sequences in the order given. All items of a sequence stream all its keys, so within it none is longer
than another; longer sequences first would need a sort.
"""

import triton
import triton.language as tl

# One warp's lanes: every warp searches for itself, without shared memory or a barrier. Each round is one load and one sum over
# the warp (one instruction), and leaves 1/32 of the sequences: one round up to 31 of them, two up to 1023, three up to 32767.
LANES = tl.constexpr(32)


def ragged_slots(total: int, sequences: int, block: int) -> int:
    """Slots of each head, enough for the tiles of so many sequences and the tokens after them, `total` tokens together."""
    return total // block + sequences + 1


@triton.jit
def _first_token(sequence, cu_seqlens_ptr, num_sequences, total):
    """Where a sequence starts, clamped to the tensor: the first at 0, the tokens after the last where that one ends."""
    start = tl.load(cu_seqlens_ptr + sequence, mask=sequence <= num_sequences, other=total)
    return tl.where(sequence == 0, 0, tl.minimum(tl.maximum(start, 0), total))


@triton.jit
def _sequence_of(slot, cu_seqlens_ptr, num_sequences, total, BLOCK: tl.constexpr):
    """The last sequence whose first slot is at most `slot`."""
    lanes = tl.arange(0, LANES)
    found = 0
    candidates = num_sequences + 1  # found, found + 1, ...
    while candidates > 1:
        step = tl.cdiv(candidates, LANES)
        sequences = found + lanes * step
        first_slots = _first_token(sequences, cu_seqlens_ptr, num_sequences, total) // BLOCK + sequences
        found += step * tl.sum(((first_slots <= slot) & (lanes > 0)).to(tl.int32), axis=0)
        candidates = step
    return found


@triton.jit
def ragged_item(item, cu_seqlens_ptr, num_sequences, num_heads, total, BLOCK: tl.constexpr):
    """(head, first token, row in the sequence, its rows, its keys) of an item. Nothing to do where row is not below rows.

    Offsets that fall from one to the next, which no valid batch has, give items without rows, and never rows outside the tensor.
    """
    sequence = _sequence_of(item // num_heads, cu_seqlens_ptr, num_sequences, total, BLOCK)
    first = _first_token(sequence, cu_seqlens_ptr, num_sequences, total)
    end = _first_token(sequence + 1, cu_seqlens_ptr, num_sequences, total)
    slots = tl.maximum(end // BLOCK - first // BLOCK + 1, 1)
    place = item - (first // BLOCK + sequence) * num_heads
    head = place // slots
    rows = tl.where((place >= 0) & (head < num_heads), end - first, 0)
    keys = tl.where(sequence < num_sequences, rows, 0)
    return head, first, tl.maximum(place, 0) % slots * BLOCK, rows, keys

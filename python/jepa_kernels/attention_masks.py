"""Structured attention masks: they describe which keys a query sees in a few numbers, never as a matrix.

Each class turns into arguments of the operator (`op_arguments`) and, for the reference and for tests, into the
dense boolean mask that it stands for (`to_dense`, True = attend).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


def frame_causal_mask(
    tokens_per_frame: int, query_frame_offset: int, q_len: int, k_len: int, device: torch.device | None = None
) -> torch.Tensor:
    """(q_len, k_len): query i sees key j when frame(j) <= query_frame_offset + frame(i)."""
    query_frames = torch.arange(q_len, device=device) // tokens_per_frame + query_frame_offset
    key_frames = torch.arange(k_len, device=device) // tokens_per_frame
    return key_frames[None, :] <= query_frames[:, None]


def key_padding_mask(lengths: torch.Tensor, k_len: int) -> torch.Tensor:
    """(B, 1, 1, k_len): the first lengths[b] keys are visible."""
    return (torch.arange(k_len, device=lengths.device)[None, :] < lengths[:, None])[:, None, None, :]


def ragged_mask(cu_seqlens: torch.Tensor, total: int) -> torch.Tensor:
    """(total, total): tokens of one sequence see each other."""
    token = torch.arange(total, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    sequence = torch.searchsorted(cu_seqlens, token, right=True)
    return sequence[:, None] == sequence[None, :]


@dataclass(frozen=True)
class FrameCausal:
    """Every query sees the keys of its own frame and of all earlier frames (V-JEPA 2-AC).

    Query i belongs to frame `query_frame_offset + i // tokens_per_frame`, key j to frame `j // tokens_per_frame`;
    i attends to j when j's frame is not later. Inside a frame attention is bidirectional. Both token counts must be
    whole numbers of frames. `query_frame_offset` is the frame of the first query: with a cache of earlier keys, the
    number of frames that were cached.

    Raises: TypeError for values that are not integers, ValueError for tokens_per_frame < 1 or a negative offset.

    >>> FrameCausal(2).to_dense(4, 4).int()
    tensor([[1, 1, 0, 0],
            [1, 1, 0, 0],
            [1, 1, 1, 1],
            [1, 1, 1, 1]], dtype=torch.int32)
    """

    tokens_per_frame: int
    query_frame_offset: int = 0

    def __post_init__(self) -> None:
        _require_int("FrameCausal", "tokens_per_frame", self.tokens_per_frame)
        _require_int("FrameCausal", "query_frame_offset", self.query_frame_offset)
        if self.tokens_per_frame < 1:
            raise ValueError(f"FrameCausal: tokens_per_frame is {self.tokens_per_frame}; give at least 1")
        if self.query_frame_offset < 0:
            raise ValueError(f"FrameCausal: query_frame_offset is {self.query_frame_offset}; give 0 or more")

    def check(self, q_len: int, k_len: int) -> None:
        """Raises ValueError unless both lengths are whole numbers of frames."""
        for name, length in (("queries", q_len), ("keys", k_len)):
            if length % self.tokens_per_frame != 0:
                raise ValueError(
                    f"FrameCausal: tokens_per_frame {self.tokens_per_frame} does not divide the {length} {name}; "
                    "pass whole frames"
                )

    def op_arguments(self) -> dict[str, Any]:
        return {"tokens_per_frame": self.tokens_per_frame, "query_frame_offset": self.query_frame_offset}

    def to_dense(self, q_len: int, k_len: int, device: torch.device | None = None) -> torch.Tensor:
        """The boolean mask (q_len, k_len) that this object stands for."""
        self.check(q_len, k_len)
        return frame_causal_mask(self.tokens_per_frame, self.query_frame_offset, q_len, k_len, device)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of different lengths stored one after another, without padding; each attends within itself.

    `cu_seqlens` is int32 (S + 1,): sequence s holds tokens cu_seqlens[s] up to cu_seqlens[s + 1]; it starts at 0,
    ascends (an empty sequence repeats a value) and ends at the token count. `max_seqlen` is the longest length, or
    any upper bound of it; launches on a GPU are sized by it, or by the token count, so no value has to be read back from the
    device.

    Raises: TypeError for a tensor of another type or dtype, ValueError for another shape or a negative max_seqlen.
    The values are checked where the operator runs: always on a CPU, on a GPU with JEPA_KERNELS_CHECK=1.

    >>> Ragged.from_lengths([1, 2]).cu_seqlens
    tensor([0, 1, 3], dtype=torch.int32)
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int

    def __post_init__(self) -> None:
        if not isinstance(self.cu_seqlens, torch.Tensor):
            raise TypeError(f"Ragged: cu_seqlens is a {type(self.cu_seqlens).__name__}; give an int32 tensor (S + 1,)")
        if self.cu_seqlens.dtype != torch.int32:
            raise TypeError(f"Ragged: cu_seqlens has dtype {self.cu_seqlens.dtype}; convert it with .to(torch.int32)")
        if self.cu_seqlens.dim() != 1 or self.cu_seqlens.shape[0] < 1:
            raise ValueError(f"Ragged: cu_seqlens has shape {tuple(self.cu_seqlens.shape)}; give (S + 1,)")
        _require_int("Ragged", "max_seqlen", self.max_seqlen)
        if self.max_seqlen < 0:
            raise ValueError(f"Ragged: max_seqlen is {self.max_seqlen}; give the longest sequence length")

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str | None = None) -> Ragged:
        """From the lengths of the sequences."""
        for length in lengths:
            if length < 0:
                raise ValueError(f"Ragged: a sequence has length {length}; give 0 or more")
        ends = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
        return cls(ends.to(device=device, dtype=torch.int32), max(lengths, default=0))

    def op_arguments(self) -> dict[str, Any]:
        return {"cu_seqlens": self.cu_seqlens, "max_seqlen": self.max_seqlen}

    def to_dense(self, total: int) -> torch.Tensor:
        """The boolean mask (total, total) that this object stands for."""
        return ragged_mask(self.cu_seqlens, total)


@dataclass(frozen=True, eq=False)
class KeyPadding:
    """Batch element b attends to its first lengths[b] keys; what the later keys hold never matters.

    `lengths` is int32 or int64 (B,), each between 0 and the number of keys. Length 0 gives zeros.

    Raises: TypeError for a tensor of another type or dtype, ValueError for another shape. The values are checked where
    the operator runs: always on a CPU, on a GPU with JEPA_KERNELS_CHECK=1.

    >>> KeyPadding(torch.tensor([1, 3])).to_dense(3)[:, 0, 0].int()
    tensor([[1, 0, 0],
            [1, 1, 1]], dtype=torch.int32)
    """

    lengths: torch.Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.lengths, torch.Tensor):
            raise TypeError(f"KeyPadding: lengths is a {type(self.lengths).__name__}; give an int32 tensor (B,)")
        if self.lengths.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"KeyPadding: lengths has dtype {self.lengths.dtype}; give int32 or int64")
        if self.lengths.dim() != 1:
            raise ValueError(f"KeyPadding: lengths has shape {tuple(self.lengths.shape)}; give (B,)")

    def op_arguments(self) -> dict[str, Any]:
        # Clamped, so that no 64-bit length wraps around into the valid range.
        return {"key_lengths": self.lengths.clamp(-1, 2**31 - 1).to(torch.int32)}

    def to_dense(self, k_len: int) -> torch.Tensor:
        """The boolean mask (B, 1, 1, k_len) that this object stands for."""
        return key_padding_mask(self.lengths, k_len)


AttentionMask = torch.Tensor | FrameCausal | Ragged | KeyPadding


def _require_int(owner: str, name: str, value: object) -> None:
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{owner}: {name} is a {type(value).__name__}; give an integer")

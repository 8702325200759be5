"""Kept token ids of different number for each element of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RaggedIds:
    """Token ids of a whole batch in one tensor; element b of the batch keeps `ids[cu_seqlens[b]:cu_seqlens[b + 1]]`.

    Shapes: ids (total,), cu_seqlens (B + 1,), starting at 0 and ending at total.

    Dtypes: ids int64, cu_seqlens int32, on one device.

    Example:
        >>> import torch, jepa_kernels as jk
        >>> kept = jk.RaggedIds.from_list([torch.tensor([0, 5]), torch.tensor([3])])
        >>> kept.ids, kept.cu_seqlens
        (tensor([0, 5, 3]), tensor([0, 2, 3], dtype=torch.int32))
    """

    ids: Tensor
    cu_seqlens: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RaggedIds:
        """Both tensors on another device."""
        return RaggedIds(
            self.ids.to(device, non_blocking=non_blocking), self.cu_seqlens.to(device, non_blocking=non_blocking)
        )

    @classmethod
    def from_list(cls, ids: Sequence[Tensor]) -> RaggedIds:
        """Joins one int64 (K_b,) tensor an element of the batch."""
        lengths = torch.tensor([0, *(entry.numel() for entry in ids)], dtype=torch.int32, device=ids[0].device)
        return cls(torch.cat(list(ids)), lengths.cumsum(0, dtype=torch.int32))

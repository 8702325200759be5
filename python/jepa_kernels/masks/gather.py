"""`apply_masks`: the tokens that a mask names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor


@overload
def apply_masks(x: Tensor, masks: Tensor | Sequence[Tensor], concat: Literal[True] = True) -> Tensor: ...
@overload
def apply_masks(x: Tensor, masks: Tensor | Sequence[Tensor], concat: bool) -> Tensor | list[Tensor]: ...
def apply_masks(x: Tensor, masks: Tensor | Sequence[Tensor], concat: bool = True) -> Tensor | list[Tensor]:
    """Gathers the tokens with the given ids, mask after mask.

    Formula: `out[m * B + b, k] = x[b, masks[m][b, k]]`.

    Shapes: `x` (B, N, D), `masks` one int64 (B, K) or a list of M of them; returns (M * B, K, D), mask-major on the batch
    axis, or the list of M tensors (B, K, D) when `concat` is False (then the K may differ).

    Dtypes: any, copied unchanged.

    Raises:
        ValueError: a mask that does not fit `x`, or (on a CPU, where looking costs no synchronisation) an id outside 0..N-1.
        TypeError: ids that are not int64.

    Cost: reads and writes M B K D elements, reads 8 M B K bytes of ids; no FLOPs. The index is a view, where the official code
    repeats it D times in memory.

    Deterministic: yes; the backward pass on a GPU adds repeated ids in an order that may vary.

    Source: the function of this name in the official V-JEPA 2 code.

    Example:
        >>> x = torch.arange(6.0).reshape(1, 3, 2)
        >>> apply_masks(x, [torch.tensor([[0, 2]])]).tolist()
        [[[0.0, 1.0], [4.0, 5.0]]]
    """
    gathered = []
    for mask in [masks] if isinstance(masks, Tensor) else masks:
        _check_ids(x, mask)
        gathered.append(torch.gather(x, 1, mask.unsqueeze(-1).expand(-1, -1, x.shape[-1])))
    return torch.cat(gathered, dim=0) if concat else gathered


def _check_ids(x: Tensor, mask: Tensor) -> None:
    if x.ndim != 3:
        raise ValueError(f"x must be (B, N, D); got shape {tuple(x.shape)}")
    if mask.dtype != torch.int64:
        raise TypeError(f"mask ids must be int64; got {mask.dtype}")
    if mask.ndim != 2 or mask.shape[0] != x.shape[0]:
        raise ValueError(f"mask must be (B, K) with B = {x.shape[0]}; got shape {tuple(mask.shape)}")
    if mask.device.type == "cpu" and mask.numel() and not torch.compiler.is_compiling():
        low, high = int(mask.min()), int(mask.max())
        if low < 0 or high >= x.shape[1]:
            raise ValueError(f"mask ids must lie in 0..{x.shape[1] - 1}; got {low}..{high}")

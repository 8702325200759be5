"""Which tokens the context encoder sees and which the predictor must fill in: V-JEPA 2's mask sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from .patch_grid import patch_count

# A block that fills the grid leaves no context whatever its corner, so redrawing corners would never end.
_MAX_DRAWS = 1000


@dataclass(frozen=True)
class BlockMask:
    """One mask of a multi-block configuration; the field names are those of V-JEPA 2's `mask:` entries.

    A fraction of the grid's rows times columns (`spatial_scale`) and of its frames (`temporal_scale`), and a
    height-to-width ratio (`aspect_ratio`), are drawn uniformly from these ranges, independently, once a batch.
    `num_blocks` such blocks, at corners drawn for each sample, together form the prediction target.
    """

    spatial_scale: tuple[float, float]
    num_blocks: int
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    max_temporal_keep: float = 1.0
    """Fraction of the frames, from the first, that the context may span; the rest joins the target."""
    max_keep: int | None = None
    """Upper limit on the number of context tokens."""
    full_complement: bool = False
    """Target = every token outside the (truncated) context."""
    pred_full_complement: bool = False
    """Context = every token outside the (truncated) target."""
    inv_block: bool = False
    """Exchange context and target."""


VJEPA2_MASKS = (BlockMask((0.15, 0.15), num_blocks=8), BlockMask((0.7, 0.7), num_blocks=2))


class MultiBlockMask3D:
    """Draws context and target token ids with V-JEPA 2's multi-block 3-D sampler.

    Formula: for every `BlockMask` and batch, draw the scales t, s and the aspect ratio a independently and set

        frames = max(1, floor(t T)),  h = min(H, round(sqrt(s H W a))),  w = min(W, round(sqrt(s H W / a)));

    for every sample draw `num_blocks` corners, uniform over all that keep the block inside the grid. The target is the union of
    the blocks and the context its complement; a sample without context is drawn again. Ids ascend, and both sets are cut to the
    smallest count in the batch, so that they stack: the tokens cut off are in neither.

    Shapes: `sampler(batch_size)` returns `(masks_enc, masks_pred)`, two lists with one int64 CPU tensor (B, K) for each mask; K
    differs from mask to mask and from batch to batch. Token id = t * H * W + r * W + c.

    Args:
        grid: tokens of a clip, (T, H, W); `from_clip` counts them from frames and pixels.
        masks: one `BlockMask` for each mask; V-JEPA 2's are 8 blocks of 15 % and 2 blocks of 70 %.
        generator: source of every draw; one with seed 0 when None.

    Raises:
        ValueError: an empty grid, an impossible range, or blocks that leave no context in 1000 draws.

    Deterministic: yes, equal seeds give equal masks. They are not those of the official code, which takes sizes and corners
    from two random streams; the distributions are the same.

    Source: V-JEPA (Bardes et al., 2024) and V-JEPA 2 (Assran et al., 2025).

    Example:
        >>> sampler = MultiBlockMask3D((8, 16, 16), generator=torch.Generator().manual_seed(7))
        >>> masks_enc, masks_pred = sampler(4)
        >>> len(masks_enc), masks_enc[0].shape[0], masks_enc[0].dtype
        (2, 4, torch.int64)
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        masks: Sequence[BlockMask] = VJEPA2_MASKS,
        generator: torch.Generator | None = None,
    ) -> None:
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"grid is (frames, rows, columns) of tokens, each at least 1; got {tuple(grid)}")
        self.grid = (int(grid[0]), int(grid[1]), int(grid[2]))
        self.masks = tuple(masks)
        for mask in self.masks:
            _check_block_mask(mask)
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)

    @classmethod
    def from_clip(
        cls,
        num_frames: int,
        size: int | tuple[int, int],
        patch_size: int = 16,
        tubelet_size: int = 2,
        masks: Sequence[BlockMask] = VJEPA2_MASKS,
        generator: torch.Generator | None = None,
    ) -> MultiBlockMask3D:
        """The sampler for clips of `num_frames` frames of `size` pixels (height, width, or one number for both).

        Raises:
            ValueError: `tubelet_size` does not divide `num_frames`, or `patch_size` the height or the width.
        """
        height, width = (size, size) if isinstance(size, int) else size
        grid = (
            patch_count("num_frames", num_frames, "tubelet_size", tubelet_size),
            patch_count("height", height, "patch_size", patch_size),
            patch_count("width", width, "patch_size", patch_size),
        )
        return cls(grid, masks=masks, generator=generator)

    def __call__(self, batch_size: int) -> tuple[list[Tensor], list[Tensor]]:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        pairs = [self._draw(mask, batch_size) for mask in self.masks]
        return [context for context, _ in pairs], [target for _, target in pairs]

    def _draw(self, mask: BlockMask, batch_size: int) -> tuple[Tensor, Tensor]:
        block = self._block_size(mask)
        context = self._context(mask, block, batch_size)  # [B, N] bool
        for _ in range(_MAX_DRAWS):
            empty = ~context.any(dim=1)
            if not empty.any():
                break
            context[empty] = self._context(mask, block, int(empty.sum()))
        else:
            raise ValueError(
                f"{mask.num_blocks} blocks of {block} tokens left no context on the grid {self.grid} in {_MAX_DRAWS} "
                "draws; lower spatial_scale, temporal_scale or num_blocks"
            )
        context_ids = _first_ids(context, mask.max_keep)
        target_ids = _first_ids(~context)
        if mask.full_complement:
            target_ids = _complement(context_ids, context.shape[1])
        elif mask.pred_full_complement:
            context_ids = _complement(target_ids, context.shape[1])
        return (target_ids, context_ids) if mask.inv_block else (context_ids, target_ids)

    def _uniform(self, bounds: tuple[float, float]) -> float:
        low, high = bounds
        return low + torch.rand(1, generator=self.generator).item() * (high - low)

    def _block_size(self, mask: BlockMask) -> tuple[int, int, int]:
        frames, rows, columns = self.grid
        t = max(1, int(frames * self._uniform(mask.temporal_scale)))
        area = int(rows * columns * self._uniform(mask.spatial_scale))
        aspect = self._uniform(mask.aspect_ratio)
        # On very small grids the side rounds to zero; one token is the smallest block that predicts anything.
        h = min(rows, max(1, round(math.sqrt(area * aspect))))
        w = min(columns, max(1, round(math.sqrt(area / aspect))))
        return t, h, w

    def _context(self, mask: BlockMask, block: tuple[int, int, int], batch_size: int) -> Tensor:
        covered = torch.zeros((batch_size, *self.grid), dtype=torch.bool)
        for _ in range(mask.num_blocks):
            inside = [
                self._inside(size, side, batch_size) for size, side in zip(self.grid, block, strict=True)
            ]  # three of [B, size]
            covered |= inside[0][:, :, None, None] & inside[1][:, None, :, None] & inside[2][:, None, None, :]
        keep_frames = max(1, int(self.grid[0] * mask.max_temporal_keep))
        covered[:, keep_frames:] = True
        return ~covered.flatten(1)

    def _inside(self, size: int, side: int, batch_size: int) -> Tensor:
        """For each sample, which of `size` positions lie in a run of `side` that starts at a random place. [B, size]"""
        start = torch.randint(0, size - side + 1, (batch_size, 1), generator=self.generator)
        position = torch.arange(size)
        return (position >= start) & (position < start + side)


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


def _first_ids(member: Tensor, limit: int | None = None) -> Tensor:
    """Ids of the members of each row, ascending, cut to the smallest row (and to `limit`). [B, N] bool -> [B, K]"""
    count = int(member.sum(dim=1).min())
    if limit is not None:
        count = min(count, limit)
    kept = member & (member.cumsum(dim=1) <= count)
    return kept.nonzero()[:, 1].view(member.shape[0], count)  # nonzero goes row by row, ids ascending


def _complement(ids: Tensor, num_tokens: int) -> Tensor:
    outside = torch.ones((ids.shape[0], num_tokens), dtype=torch.bool).scatter_(1, ids, False)
    return _first_ids(outside)


def _check_block_mask(mask: BlockMask) -> None:
    for name in ("spatial_scale", "temporal_scale"):
        low, high = getattr(mask, name)
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"{name} must satisfy 0 < low <= high <= 1; got {(low, high)}")
    if not 0.0 < mask.aspect_ratio[0] <= mask.aspect_ratio[1]:
        raise ValueError(f"aspect_ratio must satisfy 0 < low <= high; got {mask.aspect_ratio}")
    if mask.num_blocks < 1:
        raise ValueError(f"num_blocks must be at least 1; got {mask.num_blocks}")
    if mask.max_keep is not None and mask.max_keep < 1:
        raise ValueError(f"max_keep must be None or at least 1; got {mask.max_keep}")
    if not 0.0 < mask.max_temporal_keep <= 1.0:
        raise ValueError(f"max_temporal_keep must be in (0, 1]; got {mask.max_temporal_keep}")


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

"""The multi-block mask sampler of V-JEPA and V-JEPA 2: blocks of a clip to predict, the rest as context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..patch_grid import clip_grid
from .keep import MAX_DRAWS, Masks, Sampler, check_budget, check_keep, check_range, complement, joined, subset, uniform


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


class MultiBlockMask3D(Sampler):
    """Draws context and target token ids with V-JEPA's multi-block 3-D sampler, draw for draw.

    Formula: for every `BlockMask`, batch number i seeds a generator, from which the scales t, s and the aspect ratio a are drawn
    independently, and

        frames = max(1, floor(t T)),  h = min(H, round(sqrt(s H W a))),  w = min(W, round(sqrt(s H W / a)));

    for every sample `generator` draws `num_blocks` corners, uniform over all that keep the block inside the grid. The target is
    the union of the blocks and the context its complement; a sample without context is drawn again.

    `keep` says what becomes of sets of different size. "batch", the official way, cuts both to the smallest count in the batch,
    so that they stack: as ids ascend, what is cut off, and is then in neither set, lies at the end of the clip. "ragged" keeps
    all. "budget" draws as many tokens as `budget` says from each set, each token as likely as any other, so that shapes never
    change; a sample with fewer is drawn again.

    Shapes: `sampler(batch_size)` returns `(masks_enc, masks_pred)`, two lists with one int64 CPU tensor (B, K) for each mask; K
    differs from mask to mask, and with keep="batch" from batch to batch. With keep="ragged" they hold `jk.RaggedIds`. Token id =
    t * H * W + r * W + c, ascending in each row.

    Args:
        grid: tokens of a clip, (T, H, W); `from_clip` counts them from frames and pixels.
        masks: one `BlockMask` for each mask; V-JEPA's are 8 blocks of 15 % and 2 blocks of 70 %.
        generator: source of the corners; one with seed 0 when None. Seeded alike, the masks are those of the official collator,
            whose corners come from torch's global generator.
        keep, budget: see above; the budget is one pair (context, target) of token counts for each mask.

    Raises:
        ValueError: an empty grid, an impossible range, or blocks that leave no context, or less than the budget, in 1000 draws.

    Deterministic: yes. `step`, the batch number, and the generator's state are all the state there is.

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
        keep: str = "batch",
        budget: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"grid is (frames, rows, columns) of tokens, each at least 1; got {tuple(grid)}")
        self.grid = (int(grid[0]), int(grid[1]), int(grid[2]))
        self.masks = tuple(masks)
        for mask in self.masks:
            _check_block_mask(mask)
        check_keep(keep)
        self.keep = keep
        self.budget = check_budget(keep, budget, len(self.masks))
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self.step = 0

    @classmethod
    def from_clip(
        cls,
        num_frames: int,
        size: int | tuple[int, int],
        patch_size: int = 16,
        tubelet_size: int = 2,
        masks: Sequence[BlockMask] = VJEPA2_MASKS,
        generator: torch.Generator | None = None,
        keep: str = "batch",
        budget: Sequence[tuple[int, int]] | None = None,
    ) -> MultiBlockMask3D:
        """The sampler for clips of `num_frames` frames of `size` pixels (height, width, or one number for both).

        Raises:
            ValueError: `tubelet_size` does not divide `num_frames`, or `patch_size` the height or the width.
        """
        grid = clip_grid(num_frames, size, patch_size, tubelet_size)
        return cls(grid, masks, generator, keep, budget)

    def draw(self, step: int, generators: Sequence[torch.Generator]) -> tuple[Masks, Masks]:
        """The masks of batch number `step`, the corners of sample b from `generators[b]`; changes nothing but these."""
        pairs = [self._mask(place, step, generators) for place in range(len(self.masks))]
        return [context for context, _ in pairs], [target for _, target in pairs]

    def _mask(self, place: int, step: int, generators: Sequence[torch.Generator]) -> tuple[Any, Any]:
        mask = self.masks[place]
        block = self._block_size(mask, torch.Generator().manual_seed(step))
        sets = [self._sample(place, block, generator) for generator in generators]
        contexts, targets = [context for context, _ in sets], [target for _, target in sets]
        tokens = math.prod(self.grid)
        if self.keep == "batch":
            context, target = joined(contexts, "batch", mask.max_keep), joined(targets, "batch")
            contexts, targets = list(context), list(target)
        if mask.full_complement:
            targets = [complement(ids, tokens) for ids in contexts]
        elif mask.pred_full_complement:
            contexts = [complement(ids, tokens) for ids in targets]
        found = joined(contexts, self.keep), joined(targets, self.keep)
        return (found[1], found[0]) if mask.inv_block else found

    def _sample(self, place: int, block: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Context and target of one sample, in ascending order; cut only where `keep` is not "batch"."""
        mask = self.masks[place]
        for _ in range(MAX_DRAWS):
            covered = self._covered(mask, block, generator).flatten()
            context, target = (~covered).nonzero().flatten(), covered.nonzero().flatten()
            if not len(context):
                continue
            if self.keep != "batch" and mask.max_keep is not None:
                context = subset(context, mask.max_keep, generator)
            if self.budget is None:
                return context, target
            sizes = self.budget[place]
            if len(context) >= sizes[0] and len(target) >= sizes[1]:
                return subset(context, sizes[0], generator), subset(target, sizes[1], generator)
        what = "no context" if self.budget is None else f"less than the budget {self.budget[place]}"
        raise ValueError(
            f"{mask.num_blocks} blocks of {block} tokens left {what} on the grid {self.grid} in {MAX_DRAWS} draws; "
            "lower spatial_scale, temporal_scale or num_blocks" + ("" if self.budget is None else ", or the budget")
        )

    def _block_size(self, mask: BlockMask, sizes: torch.Generator) -> tuple[int, int, int]:
        frames, rows, columns = self.grid
        # In this order: the official sampler draws the frames first, then the area, then the aspect ratio.
        t = max(1, int(frames * uniform(mask.temporal_scale, torch.rand(1, generator=sizes).item())))
        area = int(rows * columns * uniform(mask.spatial_scale, torch.rand(1, generator=sizes).item()))
        aspect = uniform(mask.aspect_ratio, torch.rand(1, generator=sizes).item())
        # On very small grids the side rounds to zero; one token is the smallest block that predicts anything.
        h = min(rows, max(1, round(math.sqrt(area * aspect))))
        w = min(columns, max(1, round(math.sqrt(area / aspect))))
        return t, h, w

    def _covered(self, mask: BlockMask, block: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Which tokens the blocks of one sample cover. bool [T, H, W]"""
        (frames, rows, columns), (t, h, w) = self.grid, block
        covered = torch.zeros(self.grid, dtype=torch.bool)
        for _ in range(mask.num_blocks):
            # The official order: row, column, then frame.
            top = int(torch.randint(0, rows - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, columns - w + 1, (1,), generator=generator))
            start = int(torch.randint(0, frames - t + 1, (1,), generator=generator))
            covered[start : start + t, top : top + h, left : left + w] = True
        covered[max(1, int(frames * mask.max_temporal_keep)) :] = True
        return covered


def _check_block_mask(mask: BlockMask) -> None:
    check_range("spatial_scale", mask.spatial_scale)
    check_range("temporal_scale", mask.temporal_scale)
    check_range("aspect_ratio", mask.aspect_ratio, upper=None)
    if mask.num_blocks < 1:
        raise ValueError(f"num_blocks must be at least 1; got {mask.num_blocks}")
    if mask.max_keep is not None and mask.max_keep < 1:
        raise ValueError(f"max_keep must be None or at least 1; got {mask.max_keep}")
    if not 0.0 < mask.max_temporal_keep <= 1.0:
        raise ValueError(f"max_temporal_keep must be in (0, 1]; got {mask.max_temporal_keep}")

"""I-JEPA's mask sampler: rectangles to predict, and a large rectangle without them as context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..patch_grid import patch_count
from .keep import MAX_DRAWS, Masks, Sampler, check_budget, check_keep, check_range, joined, subset, uniform

# Draws after which one more of the target rectangles may overlap the context, as the official sampler has it.
_PATIENCE = 20


@dataclass(frozen=True)
class RectangleMasks:
    """I-JEPA's multi-block configuration; the field names are those of its `mask:` entries."""

    enc_mask_scale: tuple[float, float] = (0.85, 1.0)
    """Area of a context rectangle as a fraction of the grid; its aspect ratio is 1."""
    pred_mask_scale: tuple[float, float] = (0.15, 0.2)
    """Area of a target rectangle."""
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    """Height over width of a target rectangle."""
    num_enc_masks: int = 1
    num_pred_masks: int = 4
    min_keep: int = 10
    """A mask holds more tokens than this."""
    allow_overlap: bool = False
    """Leave the target tokens in the context."""


IJEPA_MASKS = RectangleMasks()


class MultiBlockMask2D(Sampler):
    """Draws context and target token ids with I-JEPA's multi-block sampler, draw for draw.

    Formula: batch number i seeds a generator, from which one uniform u1 gives the size of all target rectangles of the batch
    and u2 that of the context,

        s = low + u (high - low) of the scale,  a likewise of the aspect ratio (1 for the context),
        h = round(sqrt(int(s H W) a)),  w = round(sqrt(int(s H W) / a)),  each lowered until it is below H and W;

    the same u gives scale and aspect ratio. For every sample `generator` draws the corners of `num_pred_masks` rectangles, then
    of `num_enc_masks` context rectangles, from which the targets are taken out. A context of `min_keep` tokens or fewer is
    drawn again; after 20 such draws one more target stays in it. Corners lie in [0, H - h) and [0, W - w): the last row and
    column are never reached.

    `keep` says what becomes of contexts of different size. "batch", the official way, cuts all to the smallest of the batch;
    as ids ascend, what is cut off lies at the bottom of the image. "ragged" keeps all. "budget" draws `budget` = (context,
    target) tokens of each set, each token as likely as any other, so that shapes never change; a sample with fewer is drawn
    again.

    Shapes: `sampler(batch_size)` returns `(masks_enc, masks_pred)`, a list of `num_enc_masks` and one of `num_pred_masks` int64
    CPU tensors (B, K); contexts are `jk.RaggedIds` with keep="ragged". Token id = r * W + c, ascending in each row.

    Args:
        grid: tokens of an image, (H, W).
        masks: scales, aspect ratio and counts.
        generator: source of the corners, one with seed 0 when None. Seeded alike, the masks are those of the official collator
            whose corners come from torch's global generator.

    Raises:
        ValueError: an empty grid, impossible settings, rectangles that cannot hold more than `min_keep` tokens, a budget that
            no sample of 1000 holds.

    Deterministic: yes. `step`, the batch number, and the generator's state are all the state there is.

    Source: I-JEPA (Assran et al., 2023).

    Example:
        >>> sampler = MultiBlockMask2D((14, 14), generator=torch.Generator().manual_seed(7))
        >>> masks_enc, masks_pred = sampler(4)
        >>> len(masks_enc), len(masks_pred), masks_pred[0].shape
        (1, 4, torch.Size([4, 36]))
    """

    def __init__(
        self,
        grid: tuple[int, int],
        masks: RectangleMasks = IJEPA_MASKS,
        generator: torch.Generator | None = None,
        keep: str = "batch",
        budget: tuple[int, int] | None = None,
    ) -> None:
        if len(grid) != 2 or min(grid) < 2:
            raise ValueError(f"grid is (rows, columns) of tokens, each at least 2; got {tuple(grid)}")
        self.grid = (int(grid[0]), int(grid[1]))
        self.masks = masks
        _check(masks)
        check_keep(keep)
        self.keep = keep
        pairs = check_budget(keep, None if budget is None else [budget], 1)
        self.budget = None if pairs is None else pairs[0]
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self.step = 0

    @classmethod
    def from_image(
        cls, size: int | tuple[int, int], patch_size: int = 16, masks: RectangleMasks = IJEPA_MASKS,
        generator: torch.Generator | None = None, keep: str = "batch", budget: tuple[int, int] | None = None,
    ) -> MultiBlockMask2D:  # fmt: skip
        """The sampler for images of `size` pixels (height, width, or one number for both).

        Raises:
            ValueError: `patch_size` does not divide the height or the width.
        """
        height, width = (size, size) if isinstance(size, int) else size
        grid = (patch_count("height", height, "patch_size", patch_size), patch_count("width", width, "patch_size", patch_size))
        return cls(grid, masks, generator, keep, budget)

    def draw(self, step: int, generators: Sequence[torch.Generator]) -> tuple[Masks, Masks]:
        """The masks of batch number `step`, the corners of sample b from `generators[b]`; changes nothing but these."""
        sizes = torch.Generator().manual_seed(step)
        target_size = self._block_size(sizes, self.masks.pred_mask_scale, self.masks.aspect_ratio)
        context_size = self._block_size(sizes, self.masks.enc_mask_scale, (1.0, 1.0))
        samples = [self._sample(target_size, context_size, generator) for generator in generators]
        contexts, targets = (list(zip(*sets, strict=True)) for sets in zip(*samples, strict=True))  # mask by mask
        limit = min(len(ids) for mask in contexts for ids in mask)  # one length for all contexts, as the official code has it
        return (
            [joined(mask, self.keep, limit) for mask in contexts],
            [joined(mask, "batch") for mask in targets],
        )

    def _block_size(
        self, sizes: torch.Generator, scale: tuple[float, float], aspect_ratio: tuple[float, float]
    ) -> tuple[int, int]:
        draw = torch.rand(1, generator=sizes).item()
        area = int(self.grid[0] * self.grid[1] * uniform(scale, draw))
        aspect = uniform(aspect_ratio, draw)
        height = min(round(math.sqrt(area * aspect)), self.grid[0] - 1)
        width = min(round(math.sqrt(area / aspect)), self.grid[1] - 1)
        if height * width <= self.masks.min_keep:
            raise ValueError(
                f"a rectangle of {height}x{width} tokens on the grid {self.grid} cannot hold more than min_keep = "
                f"{self.masks.min_keep} tokens; lower min_keep, or raise the scale or the size of the input"
            )
        return height, width

    def _sample(
        self, target_size: tuple[int, int], context_size: tuple[int, int], generator: torch.Generator
    ) -> tuple[list[Tensor], list[Tensor]]:
        for _ in range(MAX_DRAWS):
            blocks = [self._block(target_size, generator) for _ in range(self.masks.num_pred_masks)]
            forbidden = [] if self.masks.allow_overlap else blocks
            contexts = [self._context(context_size, forbidden, generator) for _ in range(self.masks.num_enc_masks)]
            targets = [block.flatten().nonzero().flatten() for block in blocks]
            if self.budget is None:
                return contexts, targets
            if min(map(len, contexts)) >= self.budget[0] and min(map(len, targets)) >= self.budget[1]:
                return (
                    [subset(ids, self.budget[0], generator) for ids in contexts],
                    [subset(ids, self.budget[1], generator) for ids in targets],
                )
        raise ValueError(
            f"no sample in {MAX_DRAWS} on the grid {self.grid} held the budget (context, target) {self.budget}; target "
            f"rectangles have {math.prod(target_size)} tokens: lower the budget"
        )

    def _block(self, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """A rectangle at a random place. bool [H, W]"""
        top, left = (
            int(torch.randint(0, whole - side, (1,), generator=generator))
            for whole, side in zip(self.grid, size, strict=True)
        )
        covered = torch.zeros(self.grid, dtype=torch.bool)
        covered[top : top + size[0], left : left + size[1]] = True
        return covered

    def _context(self, size: tuple[int, int], forbidden: list[Tensor], generator: torch.Generator) -> Tensor:
        """Ids of a context rectangle without the target blocks, or without as many of them as leave enough tokens."""
        for obeyed in range(len(forbidden), -1, -1):
            for _ in range(_PATIENCE):
                region = self._block(size, generator)
                for block in forbidden[:obeyed]:
                    region &= ~block
                ids = region.flatten().nonzero().flatten()
                if len(ids) > self.masks.min_keep:
                    return ids
        raise AssertionError("a rectangle without constraints holds more than min_keep tokens")


def _check(masks: RectangleMasks) -> None:
    check_range("enc_mask_scale", masks.enc_mask_scale)
    check_range("pred_mask_scale", masks.pred_mask_scale)
    check_range("aspect_ratio", masks.aspect_ratio, upper=None)
    for name in ("num_enc_masks", "num_pred_masks", "min_keep"):
        if getattr(masks, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(masks, name)}")

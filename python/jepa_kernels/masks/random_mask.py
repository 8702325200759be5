"""The masks of MAE and VideoMAE: patches hidden at random, in a clip the same places of every frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..patch_grid import clip_grid
from .keep import Masks, Sampler, complement


class RandomMask(Sampler):
    """Hides a share of the places of a frame, each as likely as any other; with more than one frame as tubes through all of them.

    Formula: of P places, MAE keeps floor(P (1 - ratio)), VideoMAE hides floor(P ratio); a token is kept where its place is.

    Shapes: `draw(step, generators)` and `sampler(batch_size)` return ([kept], [hidden]), int64 (B, K) and (B, N - K), ascending.

    Raises:
        ValueError: a grid without tokens, or a ratio that keeps or hides nothing.

    Deterministic: sample b depends on its generator alone.

    Source: He et al., MAE (2022); Tong et al., VideoMAE (2022), tube masking.

    Example:
        >>> kept, hidden = RandomMask((8, 14, 14), ratio=0.9)(2)
        >>> kept[0].shape, hidden[0].shape
        (torch.Size([2, 160]), torch.Size([2, 1408]))
    """

    def __init__(self, grid: tuple[int, int, int], ratio: float = 0.75, generator: torch.Generator | None = None) -> None:
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"grid is (frames, rows, columns) of tokens, each at least 1; got {tuple(grid)}")
        self.frames, self.places = int(grid[0]), int(grid[1] * grid[2])
        # Just under a whole number is that number: 1 - 0.9 is a little less than 0.1 in binary.
        self.kept = int(self.places * (1 - ratio) + 1e-9) if self.frames == 1 else self.places - int(self.places * ratio + 1e-9)
        if not 0 < self.kept < self.places:
            raise ValueError(f"ratio must keep and hide at least one of {self.places} places; got {ratio}")
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self.step = 0

    @classmethod
    def from_clip(
        cls,
        num_frames: int,
        size: int | tuple[int, int],
        patch_size: int = 16,
        tubelet_size: int = 2,
        ratio: float = 0.9,
        generator: torch.Generator | None = None,
    ) -> RandomMask:
        """The sampler for clips of `num_frames` frames of `size` pixels, or for images where that is 1.

        Raises:
            ValueError: `tubelet_size` does not divide `num_frames`, or `patch_size` the height or the width.
        """
        return cls(clip_grid(num_frames, size, patch_size, tubelet_size if num_frames > 1 else 1), ratio, generator)

    def draw(self, step: int, generators: Sequence[torch.Generator]) -> tuple[Masks, Masks]:
        """The masks of a batch, those of sample b from `generators[b]`; `step` changes nothing, as all batches are alike."""
        places = [torch.randperm(self.places, generator=generator)[: self.kept].sort().values for generator in generators]
        kept = torch.stack([self._tubes(each) for each in places])
        hidden = torch.stack([self._tubes(complement(each, self.places)) for each in places])
        return [kept], [hidden]

    def _tubes(self, places: Tensor) -> Tensor:
        """The tokens of these places in every frame, ascending."""
        return (torch.arange(self.frames)[:, None] * self.places + places).flatten()

"""Masks of forecasting: the first frames of a clip are seen, those that follow are to be predicted."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..patch_grid import clip_grid
from .keep import Masks, Sampler


class ForecastMask(Sampler):
    """Context is the first frames of a clip, target the frames right behind it; one mask for each pair of such lengths.

    Formula: with P = H W tokens a frame of tokens, the pair (c, n) gives the context 0 .. c P - 1 and the target
    c P .. (c + n) P - 1. Tokens behind the target are in neither set; the target encoder still sees them.

    Nothing is drawn: all samples of a batch, and all batches, have the same masks. Blocks hide places in space and time, which
    trains filling in; these train what `jk.surprise` asks of a predictor.

    Shapes: `draw(step, generators)` and `sampler(batch_size)` return (masks_enc, masks_pred), two lists with one int64 CPU tensor
    (B, c P) and (B, n P) for each pair. Token id = t * H * W + r * W + c, ascending.

    Args:
        grid: tokens of a clip, (T, H, W); `from_clip` counts them, and the pairs, from frames and pixels.
        spans: one pair (context, target) for each mask, in frames of tokens.
        generator: kept for `state_dict` alone.

    Raises:
        ValueError: an empty grid, no pair, or one that is empty or longer than the clip.

    Deterministic: yes.

    Source: the masks under which V-JEPA's surprise is measured (Garrido et al., 2025).

    Example:
        >>> (seen,), (unseen,) = ForecastMask((4, 1, 2), [(2, 1)])(1)
        >>> seen.tolist(), unseen.tolist()
        ([[0, 1, 2, 3]], [[4, 5]])
    """

    def __init__(
        self, grid: tuple[int, int, int], spans: Sequence[Sequence[int]], generator: torch.Generator | None = None
    ) -> None:
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"grid is (frames, rows, columns) of tokens, each at least 1; got {tuple(grid)}")
        fits = [len(span) == 2 and min(span) > 0 and sum(span) <= grid[0] for span in spans]
        if not fits or not all(fits):
            raise ValueError(
                f"spans holds pairs (context, target) of frames of tokens, 1 or more each and {grid[0]} together at most; "
                f"got {[tuple(span) for span in spans]}"
            )
        self.place_count, self.spans = int(grid[1] * grid[2]), [(int(span[0]), int(span[1])) for span in spans]
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self.step = 0

    @classmethod
    def from_clip(
        cls,
        num_frames: int,
        size: int | tuple[int, int],
        patch_size: int = 16,
        tubelet_size: int = 2,
        spans: Sequence[Sequence[int]] = ((8, 8),),
        generator: torch.Generator | None = None,
    ) -> ForecastMask:
        """The sampler for clips of `num_frames` frames of `size` pixels; `spans` are in frames of the clip.

        Raises:
            ValueError: `tubelet_size` does not divide `num_frames` or a span, or `patch_size` the height or the width.
        """
        grid = clip_grid(num_frames, size, patch_size, tubelet_size)
        if any(frames % tubelet_size for span in spans for frames in span):
            raise ValueError(f"spans must be multiples of {tubelet_size} frames; got {[tuple(span) for span in spans]}")
        return cls(grid, [[frames // tubelet_size for frames in span] for span in spans], generator)

    def draw(self, step: int, generators: Sequence[torch.Generator]) -> tuple[Masks, Masks]:
        """The masks of a batch of as many samples as `generators`; neither they nor `step` change anything."""
        ends = [(context * self.place_count, (context + target) * self.place_count) for context, target in self.spans]
        seen = [torch.arange(start).repeat(len(generators), 1) for start, _ in ends]
        unseen = [torch.arange(start, end).repeat(len(generators), 1) for start, end in ends]
        return seen, unseen

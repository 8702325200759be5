"""Pixels of the benchmark: a decoded video clip, cut and resized to what a case needs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .errors import BenchInputError


@dataclass(frozen=True)
class Clip:
    """Decoded frames, uint8 (T, H, W, 3), and where they come from."""

    frames: Tensor
    source: str

    @property
    def sha256(self) -> str:
        """Digest of the decoded pixels, so that two runs can tell whether they saw the same input."""
        return hashlib.sha256(self.frames.contiguous().numpy().tobytes()).hexdigest()

    def cut(self, batch: int, frames: int, size: int) -> Tensor:
        """uint8 (batch, frames, size, size, 3): clips that start at different frames, wrapping at the end."""
        total = self.frames.shape[0]
        height, width = self.frames.shape[1:3]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = self.frames[:, top : top + side, left : left + side]
        used = torch.arange(min(total, batch * frames))
        resized = functional.interpolate(
            square[used].permute(0, 3, 1, 2).float(), size=(size, size), mode="bilinear", antialias=True
        )
        pixels = resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        order = (torch.arange(batch)[:, None] * frames + torch.arange(frames)) % used.numel()
        return pixels[order]


def load_clip(path: Path | None) -> Clip:
    """Decode `path`, or the sample clip that ships with the package.

    Raises `BenchInputError` when the file is missing or is not a video that can be decoded.
    """
    from .. import data

    if path is None:
        return Clip(_frames(data.sample_video()), "sample")
    if not path.is_file():
        raise BenchInputError(f"input video {path} is not a file")
    try:
        frames = data.read_video(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise BenchInputError(f"input video {path} cannot be decoded: {error}") from error
    return Clip(_frames(frames), str(path))


def _frames(frames: Tensor) -> Tensor:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] == 0:
        raise BenchInputError(
            f"a video must decode to uint8 (T, H, W, 3), got {frames.dtype} {tuple(frames.shape)}"
        )
    return frames

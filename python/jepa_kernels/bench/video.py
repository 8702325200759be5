"""Pixels of the benchmark: a decoded video clip, cut and resized to what a case needs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .errors import BenchInputError

SIZE = 256  # pixels of the square that is decoded; cases that need another size resize it
MAX_FRAMES = 128


@dataclass(frozen=True)
class Clip:
    """Decoded square frames, uint8 (T, S, S, 3), and where they come from."""

    frames: Tensor
    source: str

    @property
    def sha256(self) -> str:
        """Digest of the decoded pixels, so that two runs can tell whether they saw the same input."""
        return hashlib.sha256(self.frames.contiguous().numpy().tobytes()).hexdigest()

    def cut(self, batch: int, frames: int, size: int) -> Tensor:
        """uint8 (batch, frames, size, size, 3): consecutive clips, wrapping at the video's end."""
        pixels = self.frames[: batch * frames]
        if pixels.shape[1:3] != (size, size):
            planes = pixels.permute(0, 3, 1, 2).float()
            planes = functional.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
            pixels = planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        order = (torch.arange(batch)[:, None] * frames + torch.arange(frames)) % pixels.shape[0]
        return pixels[order]


def load_clip(path: Path | None) -> Clip:
    """Decode the first frames of `path`, or of the package's sample video.

    Raises `BenchInputError` when the file is missing or no video, or a package that decoding needs is missing.
    """
    from .. import data

    try:
        video = data.sample_video() if path is None else path
        frames = torch.cat(list(islice(data.iterate_clips(video, num_frames=1, size=SIZE), MAX_FRAMES)))
    except data.DataError as error:
        raise BenchInputError(f"input video: {error}") from error
    return Clip(frames, "sample" if path is None else path.name)

"""Pixels of the benchmark: decoded frames of a video or an image, cut and resized to what a case needs."""

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
        """uint8 (batch, frames, size, size, 3): consecutive clips, wrapping at the video's end; an image repeats."""
        pixels = self.frames[: batch * frames]
        if pixels.shape[1:3] != (size, size):
            planes = pixels.permute(0, 3, 1, 2).float()
            planes = functional.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
            pixels = planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        order = (torch.arange(batch)[:, None] * frames + torch.arange(frames)) % pixels.shape[0]
        return pixels[order]


def load_clip(path: Path | None) -> Clip:
    """Decode the first frames of a video, an image, the first readable file of a folder, or the package's sample video.

    Raises `BenchInputError` when the path is missing, nothing there can be read, or a package that decoding needs is
    missing.
    """
    from .. import data
    from ..data.clips import clip_files

    try:
        if path is None:
            return Clip(_first_frames(data.sample_video()), "sample")
        files = clip_files(path)
    except data.DataError as error:
        raise BenchInputError(f"input: {error}") from error
    first_error: data.DataError | None = None
    for file in files:
        try:
            # The name tells which file of a folder was taken.
            return Clip(_first_frames(file), path.name if file == path else str(file.relative_to(path.parent)))
        except data.DataError as error:
            first_error = first_error or error
    of_all = f"none of the {len(files)} files in {path} can be read; the first: " if len(files) > 1 else ""
    raise BenchInputError(f"input: {of_all}{first_error}") from first_error


def _first_frames(file: Path) -> Tensor:
    from ..data import open_clips

    return torch.cat(list(islice(open_clips(file, num_frames=1, size=SIZE), MAX_FRAMES)))

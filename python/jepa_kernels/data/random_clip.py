"""A clip from a random place of a video, as V-JEPA's loader takes it; only what is needed is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .video import _decode, _open_video, check_counts


def random_clip(
    path: str | Path, num_frames: int, frame_step: int, draw: Callable[[int], int], fps: int = 0
) -> Tensor:
    """Decodes `num_frames` frames of a window of the first video stream.

    Formula: the window has L = num_frames * step frames, step = `frame_step` or, with `fps`, ceil(frame rate) // fps; it starts
    at s = draw(n - L + 1) of the n frames; the frames are s + floor(i L / (num_frames - 1)) for i = 0, 1, ..., the last at most
    s + L - 1.

    Shapes: returns uint8 (num_frames, height, width, 3), RGB, as large as the video. `draw(k)` returns a number from 0..k-1.

    Raises:
        DataError: PyAV is missing; the file is missing, no video, damaged, or shorter than L frames.
        ValueError: a count below 1.

    Cost: decodes from the last key frame before the window.

    Deterministic: yes, for one build of FFmpeg and equal draws.

    Source: the video loader of V-JEPA and V-JEPA 2; where theirs repeats the last frame of short videos, this refuses them.

    Example:
        >>> from jepa_kernels.data import sample_video
        >>> random_clip(sample_video(), 4, 8, draw=lambda k: k - 1).shape
        torch.Size([4, 256, 384, 3])
    """
    check_counts(num_frames, frame_step, None)
    with _open_video(path) as stream:
        total = _frame_count(stream)
        return _frames(path, stream, _drawn(path, total, stream.average_rate, num_frames, frame_step, draw, fps))


@dataclass(frozen=True)
class WholeVideo:
    """All frames of a video, uint8 (T, height, width, 3), and its frame rate: for clips that are cut without decoding again."""

    path: str | Path
    frames: Tensor
    rate: Fraction | None

    @classmethod
    def read(cls, path: str | Path) -> WholeVideo:
        """Decodes the whole video.

        Raises:
            DataError: PyAV is missing; the file is missing, no video, or damaged.
        """
        with _open_video(path) as stream:
            frames = [frame.to_ndarray(format="rgb24") for frame in _decode(path, stream)]
            if not frames:
                raise DataError(f"{path} has no frames; leave it out")
            return cls(path, torch.from_numpy(np.stack(frames)), stream.average_rate)

    def random_clip(self, num_frames: int, frame_step: int, draw: Callable[[int], int], fps: int = 0) -> Tensor:
        """What the function of this name gives for a video whose header tells its number of frames truly."""
        check_counts(num_frames, frame_step, None)
        return self.frames[_drawn(self.path, len(self.frames), self.rate, num_frames, frame_step, draw, fps)]


def _drawn(
    path: str | Path, total: int, rate: Fraction | None, num_frames: int, frame_step: int, draw: Callable[[int], int], fps: int
) -> list[int]:
    """The numbers of a clip's frames, ascending."""
    if fps > 0:
        if not rate:
            raise DataError(f"{path} tells no frame rate; use frame_step instead of fps")
        frame_step = max(1, -(-rate.numerator // rate.denominator) // fps)
    length = num_frames * frame_step
    if total < length:
        raise DataError(
            f"{path} has {total} frames, too few: {num_frames} frames every {frame_step} need {length}; use a longer "
            "video, a smaller frame_step or fewer frames"
        )
    start = draw(total - length + 1)
    offsets = np.linspace(0, length, num_frames).clip(0, length - 1).astype(int)
    return [start + int(offset) for offset in offsets]


def _frame_count(stream: Any) -> int:
    """Frames as the container tells; counted by its packets where it does not."""
    if stream.frames:
        return int(stream.frames)
    count = sum(1 for packet in stream.container.demux(stream) if packet.size)
    stream.container.seek(0)
    return count


def _frames(path: str | Path, stream: Any, wanted: list[int]) -> Tensor:
    """The frames of these numbers, ascending."""
    first, unit = stream.start_time or 0, stream.time_base * (stream.average_rate or 0)
    seeks = bool(unit) and stream.frames > 0 and wanted[0] > 0
    if seeks:
        stream.container.seek(first + int(wanted[0] / unit), stream=stream)
    found: list[np.ndarray[Any, Any]] = []
    for count, frame in enumerate(_decode(path, stream)):
        # After a jump only the time stamp tells which frame this is.
        number = round((frame.pts - first) * unit) if seeks and frame.pts is not None else count
        if number < wanted[len(found)]:
            continue
        picture = frame.to_ndarray(format="rgb24")
        while len(found) < len(wanted) and number >= wanted[len(found)]:
            found.append(picture)
        if len(found) == len(wanted):
            return torch.from_numpy(np.stack(found))
    raise DataError(f"{path} ends before frame {wanted[-1]}, which its header promises; copy or download it again")

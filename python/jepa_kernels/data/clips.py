"""Clips from one video or from a folder of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from .errors import DataError
from .video import iterate_clips

VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm")


def open_clips(
    path: str | Path, num_frames: int = 16, frame_step: int = 1, size: int | None = 256
) -> Iterator[Tensor]:
    """Iterates over the clips of a video file, or of all the videos in a folder and its subfolders, in path order.

    Shapes: each clip is uint8 (num_frames, height, width, 3), cut and resized as by `read_video`; a file gives its consecutive
    clips without overlap. The path is checked at the call, files are opened one after another.

    Raises:
        DataError: a missing path, a folder without videos; and, while iterating, any file that `read_video` would refuse. One
        bad
            file ends the iteration: what cannot be read is not left out unsaid.

    Deterministic: yes.

    Example:
        >>> from jepa_kernels.data import sample_video
        >>> len(list(open_clips(sample_video(), num_frames=16, frame_step=4, size=32)))
        3
    """
    videos = _videos(Path(path))
    return (clip for video in videos for clip in iterate_clips(video, num_frames, frame_step, size))


def _videos(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist; give a video file or a folder of videos")
    videos = sorted(entry for entry in path.rglob("*") if entry.suffix.lower() in VIDEO_SUFFIXES and entry.is_file())
    if not videos:
        raise DataError(f"{path} holds no video; put files ending in {', '.join(VIDEO_SUFFIXES)} there")
    return videos

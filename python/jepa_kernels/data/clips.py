"""Clips from a video, from an image, or from a folder of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from .errors import DataError
from .image import read_image
from .video import check_counts, iterate_clips

VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def open_clips(
    path: str | Path, num_frames: int = 16, frame_step: int = 1, size: int | None = 256
) -> Iterator[Tensor]:
    """Iterates over the clips of a video or image file, or of all those in a folder and its subfolders, in path order.

    Shapes: each clip is uint8 (num_frames, height, width, 3), cut and resized as by `read_video`. A video gives its
    consecutive clips without overlap; an image gives one clip of `num_frames` equal frames. A file is an image if its
    name ends as one of IMAGE_SUFFIXES, else a video. The arguments are checked at the call, files are opened one after
    another.

    Raises:
        DataError: a missing path, a folder without videos and images; and, while iterating, any file that `read_video`
            or `read_image` would refuse. One bad file ends the iteration: what cannot be read is not left out unsaid.
        ValueError: a count below 1.

    Deterministic: yes.

    Example:
        >>> from jepa_kernels.data import sample_video
        >>> len(list(open_clips(sample_video(), num_frames=16, frame_step=4, size=32)))
        3
    """
    check_counts(num_frames, frame_step, size)
    files = clip_files(path)
    return (clip for file in files for clip in _clips_of(file, num_frames, frame_step, size))


def clip_files(path: str | Path) -> list[Path]:
    """The file itself, or the videos and images of a folder and its subfolders, in path order.

    Raises:
        DataError: the path is missing, or the folder holds none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist; give a video, an image, or a folder of them")
    suffixes = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
    files = sorted(entry for entry in path.rglob("*") if entry.suffix.lower() in suffixes and entry.is_file())
    if not files:
        raise DataError(f"{path} holds no video and no image; put files ending in {', '.join(suffixes)} there")
    return files


def _clips_of(file: Path, num_frames: int, frame_step: int, size: int | None) -> Iterator[Tensor]:
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        yield from iterate_clips(file, num_frames, frame_step, size)
        return
    yield read_image(file, size).repeat(num_frames, 1, 1, 1)

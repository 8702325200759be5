"""Video files to uint8 clips, through PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, require


def read_video(
    path: str | Path, num_frames: int = 16, frame_step: int = 1, size: int | None = 256, start: int = 0
) -> Tensor:
    """Decode one clip: frames start, start + frame_step, ... of the first video stream.

    Shapes: returns a contiguous uint8 CPU tensor (num_frames, height, width, 3), RGB 0..255. With `size` the shorter side is
    resized to it (bicubic) and the centre square is cut out; None keeps the frames as they are.

    Raises:
        DataError: PyAV is missing; the file is missing, no video, or damaged; or it has too few frames.
        ValueError: a count below 1, or a negative start.

    Cost: decodes the file from its beginning, so it grows with `start`.

    Deterministic: yes, for one build of FFmpeg.

    Example:
        >>> from jepa_kernels.data import sample_video
        >>> read_video(sample_video(), num_frames=4, frame_step=2, size=64).shape
        torch.Size([4, 64, 64, 3])
    """
    return next(iterate_clips(path, num_frames, frame_step, size, start))


def iterate_clips(
    path: str | Path, num_frames: int = 16, frame_step: int = 1, size: int | None = 256, start: int = 0
) -> Iterator[Tensor]:
    """The consecutive clips of one video, each as `read_video` returns it, decoded in one pass.

    A clip spans (num_frames - 1) * frame_step + 1 frames and the next begins right behind it; frames left over at the end are
    dropped. Containers without an index, such as Matroska, do not tell where they should have ended: cut short, they end
    earlier.

    Raises:
        DataError, ValueError: as `read_video`, when the video has no whole clip or breaks off.
    """
    check_counts(num_frames, frame_step, size)
    if start < 0:
        raise ValueError(f"start must be at least 0; got {start}")
    span = (num_frames - 1) * frame_step + 1
    clip: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    decoded = clips = 0
    with _open_video(path) as stream:
        for frame in _decode(path, stream):
            offset = decoded - start
            decoded += 1
            if offset >= 0 and offset % span % frame_step == 0:
                clip.append(_to_rgb(frame, size))
            if len(clip) == num_frames:
                yield torch.from_numpy(np.stack(clip))
                clip, clips = [], clips + 1
    if clips == 0:
        raise DataError(
            f"{path} has {decoded} frames, too few: {num_frames} frames every {frame_step} from frame {start} on need "
            f"{start + span}; use a longer video, a smaller frame_step or fewer frames"
        )


def check_counts(num_frames: int, frame_step: int, size: int | None) -> None:
    """The counts that describe a clip are at least 1."""
    for name, value in (("num_frames", num_frames), ("frame_step", frame_step), ("size", size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")


@contextmanager
def _open_video(path: str | Path) -> Iterator[Any]:
    """The first video stream of a file. PyAV's errors, also those raised while decoding, leave as DataError."""
    av = require("av", "reading video")
    if not Path(path).is_file():
        raise DataError(f"{path} is not a file; give the path of a video")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream; give a video file such as .mp4, .webm or .mkv")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield stream
    except av.FFmpegError as error:
        raise DataError(
            f"{path} cannot be read as video ({error.strerror}); it is damaged, truncated or no video: copy or "
            "download it again, or convert it with `ffmpeg -i IN OUT.mp4`"
        ) from None


def _decode(path: str | Path, stream: Any) -> Iterator[Any]:
    for packet in stream.container.demux(stream):
        # The decoder would make a grey-patched picture of half a packet and then stop as if all were well.
        if packet.is_corrupt:
            raise DataError(
                f"{path} breaks off or is damaged {packet.pos} bytes into the file; copy or download it again, or "
                "keep what is whole with `ffmpeg -i IN OUT.mp4`"
            )
        yield from packet.decode()


def _to_rgb(frame: Any, size: int | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A frame as RGB [height, width, 3]; with `size`, the centre square of the frame whose shorter side is `size`."""
    if size is None:
        return frame.to_ndarray(format="rgb24")
    scale = size / min(frame.width, frame.height)
    width, height = max(size, round(frame.width * scale)), max(size, round(frame.height * scale))
    # Scaling and colour conversion in one pass would darken the picture by up to 2 of 255 (libswscale truncates).
    array = frame.reformat(width, height, interpolation="BICUBIC").to_ndarray(format="rgb24")
    top, left = (height - size) // 2, (width - size) // 2
    return array[top : top + size, left : left + size]

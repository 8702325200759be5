"""A sample video that needs no download: a camera path over a photograph that scikit-image ships."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from .errors import DataError, require

NUM_FRAMES = 192
FRAMES_PER_SECOND = 24
WIDTH, HEIGHT = 384, 256
_FILE_NAME = f"sample-coffee-{WIDTH}x{HEIGHT}-{NUM_FRAMES}f.mp4"


def sample_video(cache_dir: str | Path | None = None) -> Path:
    """Path of the sample video, made on first use: 192 frames of 384x256 pixels, 24 a second, MPEG-4.

    The camera pans and zooms over "coffee", a 600x400 photograph (CC0) inside the scikit-image wheel. The file lies
    in `cache_dir`, by default `jepa-kernels` in the user's cache directory (`XDG_CACHE_HOME`, else `~/.cache`), and
    appears there by one rename, so that processes that start together never read half a file.

    Raises:
        DataError: PyAV, Pillow or scikit-image is missing, or the directory cannot be written.

    Example:
        >>> sample_video().suffix
        '.mp4'
    """
    folder = Path(cache_dir) if cache_dir is not None else _cache_dir()
    path = folder / _FILE_NAME
    if path.is_file():
        return path
    # Asked for before anything is written, so that a missing package leaves nothing behind.
    av = require("av", "making the sample video")
    frames = _camera_path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".mp4", dir=folder)
        os.close(handle)
    except OSError as error:
        raise DataError(
            f"the sample video cannot be written to {folder} ({error.strerror}); pass cache_dir=, or set "
            "XDG_CACHE_HOME to a directory that can be written"
        ) from None
    partial = Path(name)
    try:
        _encode(av, partial, frames)
        partial.replace(path)
    except OSError as error:  # a full disk, above all; PyAV's errors for the file system are OSErrors too
        raise DataError(
            f"the sample video cannot be written to {folder} ({error.strerror}); free some space, pass cache_dir=, "
            "or set XDG_CACHE_HOME"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "jepa-kernels"


def _camera_path() -> Iterator[Any]:
    """The frames as Pillow images: a window that drifts along a Lissajous curve while it breathes in and out."""
    skimage_data = require("skimage.data", "making the sample video")
    require("PIL", "making the sample video")
    from PIL import Image

    photograph = Image.fromarray(skimage_data.coffee())
    width, height = photograph.size
    aspect = WIDTH / HEIGHT

    def frame(index: int) -> Any:
        angle = 2.0 * math.pi * index / NUM_FRAMES
        window_height = height * (0.7 + 0.2 * math.cos(2.0 * angle))
        window_width = min(width, window_height * aspect)
        left = (width - window_width) * (0.5 + 0.5 * math.sin(3.0 * angle))
        top = (height - window_height) * (0.5 + 0.5 * math.cos(angle))
        # A box in fractions of a pixel: whole ones would make the camera jerk.
        box = (left, top, left + window_width, top + window_height)
        return photograph.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)

    return (frame(index) for index in range(NUM_FRAMES))


def _encode(av: Any, path: Path, frames: Iterator[Any]) -> None:
    with av.open(str(path), mode="w", format="mp4") as container:
        # FFmpeg's own MPEG-4 encoder is in every build; H.264 encoders are not.
        stream = container.add_stream("mpeg4", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 2_000_000
        stream.time_base = Fraction(1, FRAMES_PER_SECOND)
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())  # flush what the encoder holds back

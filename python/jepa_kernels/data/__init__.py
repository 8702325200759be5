"""Reading videos and images into uint8 tensors. Needs the extra `jepa-kernels[data]`."""

from .clips import open_clips
from .errors import DataError
from .image import read_image
from .sample import sample_video
from .video import iterate_clips, read_video

__all__ = ["DataError", "iterate_clips", "open_clips", "read_image", "read_video", "sample_video"]

"""Reading videos and images into uint8 tensors. Needs the extra `jepa-kernels[data]`."""

from jepa_kernels.data.clips import open_clips
from jepa_kernels.data.errors import DataError
from jepa_kernels.data.image import read_image
from jepa_kernels.data.sample import sample_video
from jepa_kernels.data.video import iterate_clips, read_video

__all__ = ["DataError", "iterate_clips", "open_clips", "read_image", "read_video", "sample_video"]

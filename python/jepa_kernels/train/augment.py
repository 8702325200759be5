"""The official augmentation: a random crop of random size and aspect ratio, resized, and a flip if asked for."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TRIES = 10


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop.

    Formula: area = height width u, u uniform in `scale`; log of width over height uniform in log `ratio`; the place uniform.
    After ten draws that do not fit, the largest centred crop with an aspect ratio inside `ratio`.

    >>> crop_box(10, 10, (1.0, 1.0), (1.0, 1.0), torch.Generator())
    (0, 0, 10, 10)
    """
    logs = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        area = height * width * _between(*scale, generator)
        aspect = math.exp(_between(*logs, generator))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return top, left, h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def augment(
    frames: Tensor, size: int, scale: tuple[float, float], ratio: tuple[float, float], flip: bool, generator: torch.Generator
) -> Tensor:
    """One random crop for all frames, resized to `size` squared, and mirrored every second time if `flip`.

    Shapes: uint8 (T, height, width, 3) -> uint8 (T, size, size, 3). Clips are resized bilinearly without antialiasing, a single
    image by Pillow's bilinear filter with it, as V-JEPA and I-JEPA do; clips are then rounded to bytes, which V-JEPA keeps as
    fractions.

    Deterministic: equal generators give equal crops.
    """
    top, left, height, width = crop_box(frames.shape[1], frames.shape[2], scale, ratio, generator)
    cropped = frames[:, top : top + height, left : left + width]
    resized = _resized_image(cropped, size) if len(frames) == 1 else _resized_clip(cropped, size)
    if flip and _between(0.0, 1.0, generator) < 0.5:
        resized = resized.flip(2)
    return resized.contiguous()


def centred(frames: Tensor, size: int) -> Tensor:
    """The centre square of the frames whose shorter side is `size`: (T, height, width, 3) -> (T, size, size, 3)."""
    side = min(frames.shape[1:3])
    top, left = (frames.shape[1] - side) // 2, (frames.shape[2] - side) // 2
    square = frames[:, top : top + side, left : left + side]
    return torch.cat([_resized_image(frame[None], size) for frame in square])


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + torch.rand(1, generator=generator).item() * (high - low)


def _resized_image(image: Tensor, size: int) -> Tensor:
    from PIL import Image

    resized: Any = Image.fromarray(image[0].numpy()).resize((size, size), Image.Resampling.BILINEAR)
    return torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(1, size, size, 3)


def _resized_clip(clip: Tensor, size: int) -> Tensor:
    if clip.shape[1:3] == (size, size):  # the interpolation would give the same numbers
        return clip
    pixels = clip.permute(0, 3, 1, 2).float()
    resized = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

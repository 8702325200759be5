"""The colour augmentations of objectives over views: jitter, grey, blur and solarisation of one image, by Pillow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SOLARIZE_FROM = 128
_BLUR_SIGMA = (0.1, 2.0)  # pixels


def recoloured(
    image: Tensor,
    jitter: tuple[float, float, float, float],
    jitter_probability: float,
    grayscale: float,
    blur: float,
    solarize: float,
    generator: torch.Generator,
) -> Tensor:
    """Each change with its probability, in the order jitter, grey, blur, solarisation.

    Formula: jitter scales brightness, contrast and saturation by factors uniform in [max(0, 1 - s), 1 + s] and turns the hue by a
    share of the circle uniform in [-s, s], s the four strengths, in random order. Blur is Gaussian, sigma uniform in [0.1, 2]
    pixels; solarisation inverts values from 128 on.

    Shapes: uint8 (height, width, 3) -> the same.

    Deterministic: equal generators give equal images; as many numbers are drawn whatever happens.

    Source: SimCLR (Chen et al., 2020) and BYOL (Grill et al., 2020), whose settings DINO, VICReg and LeJEPA vary.
    """
    from PIL import Image, ImageFilter, ImageOps

    order = torch.randperm(4, generator=generator).tolist()
    draws = torch.rand(9, generator=generator).tolist()
    picture: Any = Image.fromarray(image.numpy())
    if draws[0] < jitter_probability:
        for which in order:
            picture = _jittered(picture, which, jitter[which], 2.0 * draws[1 + which] - 1.0)
    if draws[5] < grayscale:
        picture = ImageOps.grayscale(picture).convert("RGB")
    if draws[6] < blur:
        low, high = _BLUR_SIGMA
        picture = picture.filter(ImageFilter.GaussianBlur(low + draws[7] * (high - low)))
    if draws[8] < solarize:
        picture = ImageOps.solarize(picture, _SOLARIZE_FROM)
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(image.shape)


def _jittered(picture: Any, which: int, strength: float, draw: float) -> Any:
    """One change of `recoloured`; `draw` is uniform in [-1, 1]."""
    from PIL import Image, ImageEnhance

    if which < 3:
        low, high = max(0.0, 1.0 - strength), 1.0 + strength
        enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
        return enhance(picture).enhance(low + 0.5 * (draw + 1.0) * (high - low))
    hue, saturation, value = picture.convert("HSV").split()
    turned = hue.point([(level + round(draw * strength * 255)) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")

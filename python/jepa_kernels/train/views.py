"""The views of an image that LeJEPA, DINO and VICReg compare: large and small crops, recoloured."""

from __future__ import annotations

import torch
from torch import Tensor

from .augment import augment
from .colour import recoloured
from .config import Config


def make_views(image: Tensor, config: Config, generator: torch.Generator) -> list[Tensor]:
    """The global views of the model's size, then the local ones: uint8 (1, height, width, 3) -> (size, size, 3) each.

    `data.crop_scale` is that of global views. Probabilities of blur and solarisation are those of the first global view, of the
    others, and of local views.

    Deterministic: equal generators give equal views.
    """
    data, views = config.data, config.views
    found = []
    for number in range(views.global_crops + views.local_crops):
        local = number >= views.global_crops
        size = views.local_size if local else config.model.img_size
        scale = views.local_scale if local else data.crop_scale
        cut = augment(image, size, scale, data.crop_ratio, data.horizontal_flip, generator)[0]
        kind = 2 if local else min(number, 1)
        found.append(
            recoloured(
                cut, views.jitter, views.jitter_probability, views.grayscale, views.blur[kind], views.solarize[kind], generator
            )
        )
    return found

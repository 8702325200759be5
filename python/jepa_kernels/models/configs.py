"""The named encoder sizes, and the settings with which V-JEPA 2 was trained."""

from __future__ import annotations

from dataclasses import dataclass

# ImageNet's channel means and standard deviations on the byte scale 0..255, on which decoded frames arrive.
PIXEL_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
PIXEL_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

LEARNING_RATE = 5.25e-4
WEIGHT_DECAY = 0.04
MOMENTUM = 0.99925


@dataclass(frozen=True)
class EncoderSize:
    """Width, depth, heads and MLP ratio of a vision transformer. Head dim = embed_dim / num_heads."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0


ENCODER_SIZES = {
    "vit_tiny": EncoderSize(192, 12, 3),
    "vit_small": EncoderSize(384, 12, 6),
    "vit_base": EncoderSize(768, 12, 12),
    "vit_large": EncoderSize(1024, 24, 16),
    "vit_huge": EncoderSize(1280, 32, 16),
    # The size that V-JEPA 2 trains; its model file calls it vit_giant_xformers (head dim 64, MLP width 6144).
    "vit_giant": EncoderSize(1408, 40, 22, mlp_ratio=48 / 11),
}


def encoder_size(name: str) -> EncoderSize:
    """The size of that name. Errors: ValueError that lists the known names.

    >>> encoder_size("vit_large").embed_dim
    1024
    """
    if name not in ENCODER_SIZES:
        raise ValueError(f"unknown encoder {name!r}; known are {', '.join(ENCODER_SIZES)}")
    return ENCODER_SIZES[name]

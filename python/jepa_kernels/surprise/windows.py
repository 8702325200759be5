"""Which frames a surprise score looks at, and the patch embeddings that overlapping windows share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import VJEPA2


@dataclass(frozen=True)
class Windows:
    """Windows of `length` frames, one every `stride` frames; in each, the first frames of every one of `contexts` are seen and
    the rest is predicted. The defaults are the published ones."""

    contexts: tuple[int, ...] = (2, 4, 6, 8, 10)
    length: int = 16
    stride: int = 2

    def check(self, model: VJEPA2) -> None:
        """Raises ValueError where the model cannot score such windows."""
        encoder = model.encoder
        tubelet = encoder.tubelet_size
        if self.length < 1 or self.length % tubelet or self.length > encoder.num_frames:
            raise ValueError(
                f"the window must be a multiple of {tubelet} frames, at most the {encoder.num_frames} that the model was built "
                f"for; got {self.length}"
            )
        if self.stride < 1 or self.stride % tubelet:
            raise ValueError(f"the stride must be a multiple of the model's tubelet of {tubelet} frames; got {self.stride}")
        bad = [context for context in self.contexts if not 0 < context < self.length or context % tubelet]
        if bad or not self.contexts:
            raise ValueError(
                f"contexts must be multiples of {tubelet} frames, more than 0 and less than the window's {self.length}; "
                f"got {list(self.contexts)}"
            )

    def starts(self, frames: int) -> range:
        """First frames of the windows that fit into so many frames."""
        return range(0, frames - self.length + 1, self.stride)


def check_frames(model: VJEPA2, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raises ValueError unless (..., H, W, C) uint8 frames have the size that the model was built for."""
    encoder = model.encoder
    wanted = (encoder.img_height, encoder.img_width, encoder.in_chans)
    if tuple(shape[-3:]) != wanted or dtype != torch.uint8:
        raise ValueError(
            f"frames must be uint8 of {wanted} (height, width, channels), as the model was built for; got {dtype} of "
            f"{tuple(shape[-3:])}. Resize them first"
        )


def embed_tubelets(model: VJEPA2, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Patch embeddings of each tubelet, without positions, by the context encoder and by the target encoder.

    Shapes: uint8 (T, H, W, C), T a multiple of the tubelet size -> twice (T / tubelet, rows * columns, D)."""
    encoder = model.encoder
    clip = frames.to(encoder.patch_embed.proj.weight.device).permute(3, 0, 1, 2)[None]
    tubelets = clip.shape[2] // encoder.tubelet_size
    own, target = (part.tokenizer(clip)(clip) for part in (encoder, model.target_encoder))
    return own.view(tubelets, -1, encoder.embed_dim), target.view(tubelets, -1, encoder.embed_dim)


def gather_windows(tubelets: Tensor, starts: list[int], length: int) -> Tensor:
    """(tubelets, n, D) -> (windows, length * n, D), all in tubelets; window w begins at starts[w]."""
    return torch.stack([tubelets[start : start + length].flatten(0, 1) for start in starts])

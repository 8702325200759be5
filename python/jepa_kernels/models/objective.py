"""What a training step, the training command and its checkpoints need of a model, whatever its objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of the parameter-free LayerNorm on targets and on examined features: torch's default, where the layers of the model use 1e-6.
TARGET_NORM_EPS = 1e-5


class Objective(nn.Module):
    """A model with a loss. `PARTS` names the modules of a checkpoint; `TRAINED` those of them that the optimiser moves.

    A subclass has these modules as attributes, `encoder` among them, and a `forward(inputs, masks_enc, masks_pred)` that returns
    the scalar loss and a dict of stats. With a target it overrides `pair` and `update_target`.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("encoder",)
    TRAINED: ClassVar[tuple[str, ...]] = ("encoder",)
    # Whether the inputs are a list of views of each sample, and not one tensor.
    OVER_VIEWS: ClassVar[bool] = False

    encoder: Any

    def trained(self) -> list[nn.Module]:
        """The modules that the optimiser moves."""
        return [getattr(self, name) for name in self.TRAINED]

    def pair(self) -> tuple[nn.Module, nn.Module] | None:
        """The online module and the target that follows it; None for an objective without a target."""
        return None

    def begin_step(self, epoch: float) -> None:
        """Told before each step of the training command how many epochs are done; for losses that change over a run."""

    def update_target(self, momentum: float) -> None:
        """One step of the target towards the online module, where there is a target."""

    def examined(self, pixels: Tensor) -> Tensor:
        """The features whose collapse is watched, pixels -> (B, N, D) float32 without gradient: the encoder's tokens, each at
        mean 0 and variance 1."""
        with torch.no_grad():
            return normalised(self.encoder(pixels))


def normalised(h: Tensor) -> Tensor:
    """Every token's features at mean 0 and variance 1, in float32."""
    return F.layer_norm(h.float(), (h.shape[-1],), eps=TARGET_NORM_EPS)


def exact(x: Tensor) -> Tensor:
    """In float32, in which losses are taken under any autocast; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def refuse_masks(name: str, masks_enc: Sequence[Any], masks_pred: Sequence[Any]) -> None:
    """Raises ValueError where masks are given to an objective over whole views."""
    if masks_enc or masks_pred:
        raise ValueError(f"{name} hides no tokens; got {len(masks_enc)} and {len(masks_pred)} masks, leave them out")

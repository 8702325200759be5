"""VICReg: two views agree, every feature of their embeddings varies, and features do not repeat each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional.vicreg_loss import vicreg_loss
from ..nn import Projector
from ._common import seeded_weights
from .lejepa import build_image_encoder
from .objective import Objective, exact, refuse_masks
from .views import check_views, pooled_views
from .vision_transformer import VisionTransformer

WEIGHTS = (25.0, 25.0, 1.0)


class VICReg(Objective):
    """Invariance, variance and covariance of the expanded embeddings of two views.

    Formula: with z and z' the projector's images of the mean tokens of the two views,

        loss = w0 mse(z, z') + w1 (hinge(z) + hinge(z')) / 2 + w2 (offdiagonal(z) + offdiagonal(z')),

    the terms of `jk.vicreg_loss` in the convention of the paper.

    Shapes: `model(views)` takes a list of two views, (B, H, W, C) or (B, C, H, W) each. It returns the scalar loss and a dict:
    `invariance`, `variance`, `covariance` without weights, and `embedding_std`, the mean over features of the standard deviation
    of the embeddings, which the hinge lifts to 1.

    Dtypes: views are uint8, or floating-point and normalised. The loss is taken in float32 under any autocast.

    Raises:
        ValueError: not two views, masks, or a single sample (no variance).

    Deterministic: as its operators are.

    Distributed: each process takes the statistics of its own samples; the official code gathers the embeddings of all.

    Source: Bardes et al., VICReg (2022). The published encoders are ResNets; this one is read out as the mean of its tokens.

    Example:
        >>> model = build_vicreg("vit_tiny", img_size=32, patch_size=8, hidden_dim=32, proj_dim=32, encoder={"depth": 1}, seed=0)
        >>> loss, stats = model([torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8) for _ in range(2)])
        >>> loss.shape, sorted(stats)
        (torch.Size([]), ['covariance', 'embedding_std', 'invariance', 'variance'])
    """

    PARTS = ("encoder", "projector")
    TRAINED = ("encoder", "projector")
    OVER_VIEWS = True

    def __init__(
        self, encoder: VisionTransformer, projector: Projector, weights: tuple[float, float, float] = WEIGHTS
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.weights = encoder, projector, weights

    def forward(
        self, views: Sequence[Tensor], masks_enc: Sequence[Any] = (), masks_pred: Sequence[Any] = ()
    ) -> tuple[Tensor, dict[str, Any]]:
        refuse_masks("VICReg", masks_enc, masks_pred)
        check_views("VICReg", views, 2)
        if len(views) != 2:
            raise ValueError(f"VICReg takes two views; got {len(views)}")
        # Each view by itself: batch norm must not mix them, or it would tell them apart.
        first, second = (exact(self.projector(pooled)) for pooled in pooled_views(self.encoder, views))
        with torch.autocast(first.device.type, enabled=False):
            terms = vicreg_loss(first, second, weights=self.weights)
        spread = torch.cat([first, second]).detach().std(dim=0).mean()
        stats = {"invariance": terms.invariance, "variance": terms.variance, "covariance": terms.covariance}
        return terms.loss, {**stats, "embedding_std": spread}


def build_vicreg(
    name: str = "vit_base",
    *,
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 16,
    hidden_dim: int = 8192,
    proj_dim: int = 8192,
    weights: tuple[float, float, float] = WEIGHTS,
    use_activation_checkpointing: bool = False,
    encoder: dict[str, Any] | None = None,
    seed: int | None = None,
) -> VICReg:
    """VICReg with an encoder of a named size; `encoder` holds further keyword arguments for it.

    With `seed` the weights depend on it alone, and torch's global generator is left as it was.

    Raises:
        ValueError: the name is unknown, or `patch_size` does not divide the size.

    Example:
        >>> model = build_vicreg("vit_tiny", img_size=32, patch_size=8, hidden_dim=64, proj_dim=64, encoder={"depth": 1})
        >>> model.projector.layers[2].bias is None
        True
    """
    with seeded_weights(seed):
        built = build_image_encoder(name, img_size, patch_size, use_activation_checkpointing, encoder)
        projector = Projector(built.embed_dim, hidden_dim, proj_dim, last_bias=False)
    return VICReg(built, projector, weights)

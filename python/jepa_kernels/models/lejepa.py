"""LeJEPA: views of an image predict their common centre, and a statistic keeps the embeddings normal. No teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..nn import Projector, SIGReg
from ._common import frame_size, seeded_weights
from .objective import Objective, exact, refuse_masks
from .views import check_views, pooled_views
from .vision_transformer import VisionTransformer, build_encoder


class LeJEPA(Objective):
    """Embeddings of views drawn together, and to an isotropic normal distribution.

    Formula: with z_v[n] = projector(mean token of view v of image n) and c[n] the mean of z_v[n] over the first `num_global`
    views,

        prediction = mean over v, n and features of (c[n] - z_v[n])^2,
        sigreg = mean over v of jk.sigreg(z_v),
        loss = (1 - sigreg_weight) prediction + sigreg_weight sigreg.

    The gradient goes through c, too: there is no teacher, no stop-gradient and no predictor.

    Shapes: `model(views)` takes a list of views, (B, H, W, C) or (B, C, H, W) each, the `num_global` global ones first; local
    ones may be smaller, and all run in one packed call. It returns the scalar loss and a dict: `prediction`, `sigreg`, and
    `embedding_std`, the mean over features of the standard deviation of the embeddings, 1 where SIGReg has its way.

    Dtypes: views are uint8, or floating-point and normalised. Both terms are taken in float32 under any autocast.

    Raises:
        ValueError: fewer views than `num_global`, fewer than two, or masks.

    Deterministic: as its operators are; SIGReg's directions of step i come from seed i (`regulariser.global_step`).

    Distributed: SIGReg joins the processes; batch norm of the projector and `embedding_std` are each process's own.

    Source: Balestriero and LeCun, LeJEPA (2025). The published encoders read out a class token; this one the mean of the tokens.

    Example:
        >>> model = build_lejepa("vit_tiny", img_size=32, patch_size=8, hidden_dim=32, proj_dim=16, encoder={"depth": 1}, seed=0)
        >>> views = [torch.randint(0, 256, (4, size, size, 3), dtype=torch.uint8) for size in (32, 32, 16)]
        >>> loss, stats = model(views)
        >>> loss.shape, sorted(stats)
        (torch.Size([]), ['embedding_std', 'prediction', 'sigreg'])
    """

    PARTS = ("encoder", "projector", "regulariser")
    TRAINED = ("encoder", "projector")
    OVER_VIEWS = True

    def __init__(
        self,
        encoder: VisionTransformer,
        projector: Projector,
        num_global: int = 2,
        sigreg_weight: float = 0.02,
        num_slices: int = 1024,
    ) -> None:
        super().__init__()
        if num_global < 1 or not 0.0 <= sigreg_weight <= 1.0:
            raise ValueError(
                f"num_global must be at least 1 and sigreg_weight in [0, 1]; got {num_global} and {sigreg_weight}"
            )
        self.encoder, self.projector = encoder, projector
        self.regulariser = SIGReg(num_slices)
        self.num_global, self.sigreg_weight = num_global, sigreg_weight

    def forward(
        self, views: Sequence[Tensor], masks_enc: Sequence[Any] = (), masks_pred: Sequence[Any] = ()
    ) -> tuple[Tensor, dict[str, Any]]:
        refuse_masks("LeJEPA", masks_enc, masks_pred)
        check_views("LeJEPA", views, max(2, self.num_global))
        pooled = pooled_views(self.encoder, views)
        z = exact(self.projector(pooled.flatten(0, 1))).view(*pooled.shape[:2], -1)
        with torch.autocast(z.device.type, enabled=False):
            prediction = (z[: self.num_global].mean(dim=0) - z).square().mean()
            sigreg = self.regulariser(z)
            loss = (1 - self.sigreg_weight) * prediction + self.sigreg_weight * sigreg
        spread = z.detach().flatten(0, 1).std(dim=0).mean()
        return loss, {"prediction": prediction.detach(), "sigreg": sigreg.detach(), "embedding_std": spread}


def build_lejepa(
    name: str = "vit_large",
    *,
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 14,
    hidden_dim: int = 2048,
    proj_dim: int = 64,
    num_global: int = 2,
    sigreg_weight: float = 0.02,
    num_slices: int = 1024,
    use_activation_checkpointing: bool = False,
    encoder: dict[str, Any] | None = None,
    seed: int | None = None,
) -> LeJEPA:
    """LeJEPA with an encoder of a named size; `encoder` holds further keyword arguments for it.

    With `seed` the weights depend on it alone, and torch's global generator is left as it was.

    Raises:
        ValueError: the name is unknown, or `patch_size` does not divide the size.

    Example:
        >>> build_lejepa("vit_tiny", img_size=32, patch_size=8, encoder={"depth": 1}).projector.layers[2].out_features
        64
    """
    with seeded_weights(seed):
        built = build_image_encoder(name, img_size, patch_size, use_activation_checkpointing, encoder)
        projector = Projector(built.embed_dim, hidden_dim, proj_dim)
    return LeJEPA(built, projector, num_global, sigreg_weight, num_slices)


def build_image_encoder(
    name: str,
    img_size: int | tuple[int, int],
    patch_size: int,
    use_activation_checkpointing: bool,
    encoder: dict[str, Any] | None,
) -> VisionTransformer:
    """I-JEPA's encoder, a sine-cosine table for positions, of a named size."""
    settings = {"use_rope": False, "use_activation_checkpointing": use_activation_checkpointing, **(encoder or {})}
    return build_encoder(name, img_size=frame_size(img_size), patch_size=patch_size, **settings)

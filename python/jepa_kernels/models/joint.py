"""What the JEPA models share: an encoder, a predictor, and a target encoder that follows the encoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.ema_update import ema_update_
from ..functional.patch_embed_pair import patch_embed_pair
from .objective import Objective, normalised
from .packed import Mask, encode
from .vision_transformer import VisionTransformer


class JointEmbedding(Objective):
    """Encoder, predictor and target encoder; a subclass adds the prediction and the loss.

    The target encoder starts as a copy of the encoder, takes no gradient, and follows it in `update_target`.
    """

    PARTS = ("encoder", "predictor", "target_encoder")
    TRAINED = ("encoder", "predictor")

    def __init__(self, encoder: VisionTransformer, predictor: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)

    @torch.no_grad()
    def targets(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """What the predictor has to predict, for every token: pixels -> (B, N, D) float32, no gradient.

        `tokens`, if given, are the target's patch embedding of the pixels."""
        h = self.target_encoder(x, tokens=tokens)  # ends in the affine LayerNorm of the encoder
        return normalised(h)

    def embed(self, x: Tensor, masks_enc: Sequence[Mask]) -> tuple[Tensor, Tensor]:
        """Patch embeddings: of all tokens by the target (B, N, D), and of all masks by the encoder, packed (total, D). Dense
        masks read the pixels once."""
        grid, own, target = self.encoder.grid(x), self.encoder.tokenizer(x), self.target_encoder.tokenizer(x)
        positions, target_positions = self.encoder.positions(grid), self.target_encoder.positions(grid)
        uint8 = x.dtype == torch.uint8  # floating-point pixels have been normalised
        statistics: dict[str, Any] = {"mean": own.mean if uint8 else None, "std": own.std if uint8 else None}
        if all(isinstance(mask, Tensor) for mask in masks_enc):
            every, kept = patch_embed_pair(
                x,
                target.proj.weight,
                target.proj.bias,
                own.proj.weight,
                own.proj.bias,
                keep=list(masks_enc),  # type: ignore[arg-type]
                target_pos_embed=target_positions,
                context_pos_embed=positions,
                **statistics,
            )
            return every, torch.cat([part.flatten(0, 1) for part in kept])
        every = target(x, pos_embed=target_positions)
        return every, torch.cat([own(x, keep=mask, pos_embed=positions) for mask in masks_enc])

    def embed_and_encode(self, x: Tensor, masks_enc: Sequence[Mask]) -> tuple[Tensor, Tensor]:
        """The targets (B, N, D), and the encoded context of all masks, packed (total, D)."""
        every, tokens = self.embed(x, masks_enc)
        return self.targets(x, every), encode(self.encoder, tokens, masks_enc, self.encoder.grid(x)[1:])

    def pair(self) -> tuple[nn.Module, nn.Module]:
        return self.encoder, self.target_encoder

    def examined(self, pixels: Tensor) -> Tensor:
        """The targets: see `Objective`."""
        return self.targets(pixels)

    def update_target(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * encoder, parameter by parameter; see `jk.ema_update_`."""
        ema_update_(list(self.target_encoder.parameters()), list(self.encoder.parameters()), momentum)


def redraw_linear_weights(module: nn.Module, std: float = 0.02) -> None:
    """Draws every linear weight anew. The official I-JEPA and V-JEPA scripts do so after building their models, which takes
    back the division by sqrt(2 l) that their constructors, as V-JEPA 2's, apply to layer l."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=std)

"""V-JEPA: blocks of a clip predicted from the rest of it, with two masks of different extent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional.jepa_loss import share_of_loss
from ._common import seeded_weights
from .joint import JointEmbedding, redraw_linear_weights
from .packed import predict, stats_of, unpack
from .predictor import VisionTransformerPredictor
from .vision_transformer import VisionTransformer, build_encoder
from .vjepa2 import channels_first


class VJEPA(JointEmbedding):
    """Predicts the target encoder's view of hidden tokens of a clip, with fixed positions and one mask token for each mask.

    Formula: with h = LN(target_encoder(clips)), LN without affine parameters and with eps 1e-5, and for each mask m
    z_m = predictor(encoder(clips, masks_enc[m]), masks_enc[m], masks_pred[m], mask token m),

        loss = mean over m of mean |z_m - h[masks_pred[m]]|^p / p,  p = `loss_exp`.

    Shapes: `model(clips, masks_enc, masks_pred)` takes clips (B, C, T, H, W) or (B, T, H, W, C), and lists of masks, each int64
    (B, K) or `jk.RaggedIds`. It returns the scalar loss and a dict: `loss_per_mask` (M,); `target_std`, the mean over channels
    of the targets' standard deviation over tokens, which goes to 0 when the representation collapses; `context_tokens` and
    `target_tokens`, the (mean) counts of each mask.

    Dtypes: clips are uint8, or floating-point and normalised. The loss is taken in float32 under any autocast.

    Raises:
        ValueError: clips without the channels, or masks that do not pair up.

    Cost: nothing here waits for the device. All masks of a batch run as one packed call, where the official code runs the
    encoder and the predictor once a mask. Its variance regulariser, whose coefficient is 0, is left out.

    Deterministic: as its operators are.

    Source: V-JEPA (Bardes et al., 2024).

    Example:
        >>> model = build_vjepa("vit_tiny", img_size=32, num_frames=4, pred_depth=1, encoder={"depth": 1}, seed=0)
        >>> clips = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
        >>> loss, stats = model(clips, [torch.tensor([[0, 1, 4]])], [torch.tensor([[2, 7]])])
        >>> loss.shape, stats["target_tokens"]
        (torch.Size([]), [2])
    """

    predictor: VisionTransformerPredictor

    def __init__(
        self, encoder: VisionTransformer, predictor: VisionTransformerPredictor, loss_exp: float = 1.0
    ) -> None:
        super().__init__(encoder, predictor)
        self.loss_exp = loss_exp

    def forward(
        self, clips: Tensor, masks_enc: list[Any], masks_pred: list[Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        if not masks_enc or len(masks_enc) != len(masks_pred):
            raise ValueError(
                f"masks_enc and masks_pred must pair up; got {len(masks_enc)} and {len(masks_pred)} masks"
            )
        clips = channels_first(clips, self.encoder.in_chans)
        targets, context = self.embed_and_encode(clips, masks_enc)
        mask_tokens = self.predictor.mask_tokens
        tokens = torch.cat(
            [
                mask_tokens[index % len(mask_tokens)][0].expand(
                    mask.numel() if isinstance(mask, Tensor) else mask.ids.numel(), -1
                )
                for index, mask in enumerate(masks_pred)
            ]
        )
        predicted = predict(self.predictor, context, masks_enc, masks_pred, tokens, self.encoder.num_patches)
        losses = [
            share_of_loss(part, targets, mask, 1 / len(masks_pred), power=self.loss_exp, normalize=False)
            for part, mask in zip(unpack(predicted, masks_pred), masks_pred, strict=True)
        ]
        parts = torch.stack(losses)
        return parts.sum(), stats_of(parts * len(masks_pred), targets, masks_enc, masks_pred)


def build_vjepa(
    name: str = "vit_large",
    *,
    img_size: int | tuple[int, int] = 224,
    num_frames: int = 16,
    patch_size: int = 16,
    tubelet_size: int = 2,
    pred_depth: int = 12,
    pred_embed_dim: int = 384,
    pred_num_heads: int | None = None,
    num_mask_tokens: int = 2,
    loss_exp: float = 1.0,
    use_activation_checkpointing: bool = False,
    encoder: dict[str, Any] | None = None,
    seed: int | None = None,
) -> VJEPA:
    """V-JEPA with an encoder of a named size; the defaults are its ViT-L/16 with 16 frames of 224 pixels.

    `pred_num_heads` is the encoder's where None, as in the official code; `encoder` holds further keyword arguments for the
    encoder. With `seed` the weights depend on it alone, and torch's global generator is left as it was.

    Raises:
        ValueError: the name is unknown, or the sizes do not divide.

    Example:
        >>> build_vjepa("vit_tiny", img_size=32, num_frames=4, pred_depth=1, encoder={"depth": 1}).encoder.num_patches
        8
    """
    shared: dict[str, Any] = {
        "img_size": img_size,
        "num_frames": num_frames,
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "use_activation_checkpointing": use_activation_checkpointing,
        "uniform_power": True,
        "use_rope": False,
    }
    with seeded_weights(seed):
        context_encoder = build_encoder(name, **shared, **(encoder or {}))
        predictor = VisionTransformerPredictor(
            **shared,
            embed_dim=context_encoder.embed_dim,
            predictor_embed_dim=pred_embed_dim,
            depth=pred_depth,
            num_heads=pred_num_heads or context_encoder.num_heads,
            num_mask_tokens=num_mask_tokens,
        )
        redraw_linear_weights(context_encoder)
        redraw_linear_weights(predictor)
    return VJEPA(context_encoder, predictor, loss_exp)

"""V-JEPA 2 whole: context encoder, predictor and target encoder, and the loss that ties them."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional.ema_update import ema_update_
from ..masks import apply_masks
from .predictor import VisionTransformerPredictor
from .vision_transformer import VisionTransformer, build_encoder

# Of the parameter-free LayerNorm on the targets: the default of torch, where the layers of the model use 1e-6.
TARGET_NORM_EPS = 1e-5


class VJEPA2(nn.Module):
    """Predicts the target encoder's view of hidden tokens from the context encoder's view of the visible ones.

    Formula: with h = LN(target_encoder(clips)), LN without affine parameters and with eps 1e-5, and for each mask m
    z_m = predictor(encoder(clips, masks_enc[m]), masks_enc[m], masks_pred[m]),

        loss = mean over m of mean |z_m - h[masks_pred[m]]|.

    The target encoder starts as a copy of the encoder, takes no gradient, and follows it in `update_target`.

    Shapes: `model(clips, masks_enc, masks_pred)` takes clips (B, C, T, H, W) or (B, T, H, W, C), and lists of int64 (B, K),
    which may differ in K. It returns the scalar loss and a dict: `loss_per_mask` (M,); `target_std`, the mean over channels
    of the targets' standard deviation over tokens, which goes to 0 when the representation collapses; `context_tokens` and
    `target_tokens`, the counts of each mask.

    Dtypes: clips are uint8, or floating-point and normalised. The loss is taken in float32 under any autocast.

    Raises:
        ValueError: clips without the channels, or masks that do not pair up.

    Cost: nothing here waits for the device. The encoder and the predictor run once a mask, the target encoder once.

    Deterministic: as its operators are.

    Source: V-JEPA 2 (Assran et al., 2025).

    Example:
        >>> model = build_vjepa2("vit_tiny", img_size=32, num_frames=4, pred_depth=1, encoder={"depth": 1}, seed=0)
        >>> clips = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
        >>> loss, stats = model(clips, [torch.tensor([[0, 1, 4]])], [torch.tensor([[2, 7]])])
        >>> loss.shape, stats["target_tokens"]
        (torch.Size([]), [2])
    """

    def __init__(self, encoder: VisionTransformer, predictor: VisionTransformerPredictor) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)

    def forward(
        self, clips: Tensor, masks_enc: list[Tensor], masks_pred: list[Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        if not masks_enc or len(masks_enc) != len(masks_pred):
            raise ValueError(
                f"masks_enc and masks_pred must pair up; got {len(masks_enc)} and {len(masks_pred)} masks"
            )
        clips = channels_first(clips, self.encoder.in_chans)
        targets = self.targets(clips)
        losses = []
        for context_ids, target_ids in zip(masks_enc, masks_pred, strict=True):
            context = self.encoder(clips, masks=context_ids)
            # Token 0: the index is that of the clip length, and all clips of a batch have one.
            predicted = self.predictor(context, context_ids, target_ids, mask_index=0)
            losses.append((predicted.float() - apply_masks(targets, [target_ids])).abs().mean())
        per_mask = torch.stack(losses)
        stats = {
            "loss_per_mask": per_mask.detach(),
            "target_std": targets.flatten(0, 1).std(dim=0).mean(),
            "context_tokens": [ids.shape[1] for ids in masks_enc],
            "target_tokens": [ids.shape[1] for ids in masks_pred],
        }
        return per_mask.mean(), stats

    @torch.no_grad()
    def targets(self, clips: Tensor) -> Tensor:
        """What the predictor has to predict, for every token: (B, C, T, H, W) -> (B, N, D) float32, no gradient."""
        h = self.target_encoder(clips)  # ends in the affine LayerNorm of the encoder
        return F.layer_norm(h.float(), (h.shape[-1],), eps=TARGET_NORM_EPS)

    def update_target(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * encoder, parameter by parameter; see `jk.ema_update_`."""
        ema_update_(list(self.target_encoder.parameters()), list(self.encoder.parameters()), momentum)


def channels_first(clips: Tensor, in_chans: int = 3) -> Tensor:
    """(B, T, H, W, C), as frames are decoded, to a (B, C, T, H, W) view; the latter passes through.

    Raises:
        ValueError: neither axis has `in_chans` channels.
    """
    if clips.ndim == 5 and clips.shape[-1] == in_chans:  # no clip is as narrow as it has channels
        return clips.permute(0, 4, 1, 2, 3)
    if clips.ndim == 5 and clips.shape[1] == in_chans:
        return clips
    raise ValueError(
        f"clips must be (B, C, T, H, W) or (B, T, H, W, C) with C = {in_chans}; got shape {tuple(clips.shape)}"
    )


def build_vjepa2(
    name: str = "vit_large",
    *,
    img_size: int | tuple[int, int] = 256,
    num_frames: int = 16,
    patch_size: int = 16,
    tubelet_size: int = 2,
    pred_depth: int = 12,
    pred_embed_dim: int = 384,
    pred_num_heads: int = 12,
    num_mask_tokens: int = 10,
    use_activation_checkpointing: bool = False,
    encoder: dict[str, Any] | None = None,
    seed: int | None = None,
) -> VJEPA2:
    """V-JEPA 2 with an encoder of a named size; the defaults are its 16-frame, 256-pixel pretraining.

    `num_mask_tokens` is 10 as in the released checkpoints, though training uses one; `encoder` holds further keyword
    arguments for the encoder. With `seed` the weights depend on it alone, and torch's global generator is left as it was.

    Raises:
        ValueError: the name is unknown.
    """
    shared: dict[str, Any] = {
        "img_size": img_size,
        "num_frames": num_frames,
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "use_activation_checkpointing": use_activation_checkpointing,
    }
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.random.default_generator.manual_seed(seed)
        context_encoder = build_encoder(name, **shared, **(encoder or {}))
        predictor = VisionTransformerPredictor(
            **shared,
            embed_dim=context_encoder.embed_dim,
            predictor_embed_dim=pred_embed_dim,
            depth=pred_depth,
            num_heads=pred_num_heads,
            num_mask_tokens=num_mask_tokens,
        )
    return VJEPA2(context_encoder, predictor)

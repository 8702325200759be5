"""V-JEPA 2 whole: context encoder, predictor and target encoder, and the loss that ties them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.jepa_loss import share_of_loss
from ..functional.patch_embed_pair import patch_embed_pair
from ..ragged import RaggedIds
from ._common import seeded_weights
from .joint import JointEmbedding
from .objective import TARGET_NORM_EPS, normalised
from .packed import Mask, encode, predict, stats_of, unpack
from .predictor import VisionTransformerPredictor
from .vision_transformer import VisionTransformer, build_encoder


class VJEPA2(JointEmbedding):
    """Predicts the target encoder's view of hidden tokens from the context encoder's view of the visible ones.

    Formula: with h = LN(target_encoder(clips)), LN without affine parameters and with eps 1e-5, and for each mask m
    z_m = predictor(encoder(clips, masks_enc[m]), masks_enc[m], masks_pred[m]),

        loss = mean over m of mean |z_m - h[masks_pred[m]]|^p / p,  p = `loss_exp`, 1 as published.

    The target encoder starts as a copy of the encoder, takes no gradient, and follows it in `update_target`.

    Shapes: `model(clips, masks_enc, masks_pred)` takes clips (B, C, T, H, W) or (B, T, H, W, C), and lists of int64 (B, K),
    which may differ in K, or of `jk.RaggedIds`. It returns the scalar loss and a dict: `loss_per_mask` (M,); `target_std`, the
    mean over channels of the targets' standard deviation over tokens, which goes to 0 when the representation collapses;
    `context_tokens` and `target_tokens`, the (mean) counts of each mask.

    Dtypes: clips are uint8, or floating-point and normalised. The loss is taken in float32 under any autocast.

    Raises:
        ValueError: clips without the channels, or masks that do not pair up.

    Cost: nothing here waits for the device. The encoder, the predictor and the target encoder run once each, over all masks.

    Deterministic: as its operators are.

    Source: V-JEPA 2 (Assran et al., 2025).

    Example:
        >>> model = build_vjepa2("vit_tiny", img_size=32, num_frames=4, pred_depth=1, encoder={"depth": 1}, seed=0)
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
        self, clips: Tensor, masks_enc: list[Tensor], masks_pred: list[Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        if not masks_enc or len(masks_enc) != len(masks_pred):
            raise ValueError(
                f"masks_enc and masks_pred must pair up; got {len(masks_enc)} and {len(masks_pred)} masks"
            )
        if any(isinstance(mask, RaggedIds) for mask in [*masks_enc, *masks_pred]):
            return self._ragged(channels_first(clips, self.encoder.in_chans), masks_enc, masks_pred)
        for name, masks in (("masks_enc", masks_enc), ("masks_pred", masks_pred)):
            if empty := [index for index, ids in enumerate(masks) if not ids.numel()]:
                raise ValueError(f"{name}[{empty[0]}] has no tokens; draw masks that keep and hide at least one each")
        clips = channels_first(clips, self.encoder.in_chans)
        target_tokens, context_tokens = self._embed(clips, masks_enc)
        with torch.no_grad():
            h = self.target_encoder(clips, tokens=target_tokens)  # ends in the affine LayerNorm of the encoder
            spread = normalised(h).flatten(0, 1).std(dim=0).mean()
        # All masks in one pass: sequences attend within themselves, and all else in a block acts on each token alone.
        context = self.encoder(clips, masks=masks_enc, tokens=context_tokens, pack=True)
        # Token 0: the index is that of the clip length, and all clips of a batch have one.
        predicted = self.predictor(context, masks_enc, masks_pred, mask_index=0)
        rows = predicted.split([ids.numel() for ids in masks_pred])
        count = len(masks_pred)
        losses = [
            share_of_loss(z.view(*ids.shape, -1), h, ids, 1 / count, power=self.loss_exp, eps=TARGET_NORM_EPS)
            for z, ids in zip(rows, masks_pred, strict=True)
        ]
        parts = torch.stack(losses)
        stats = {
            "loss_per_mask": parts.detach() * count,
            "target_std": spread,
            "context_tokens": [ids.shape[1] for ids in masks_enc],
            "target_tokens": [ids.shape[1] for ids in masks_pred],
        }
        return parts.sum(), stats

    def _ragged(
        self, clips: Tensor, masks_enc: Sequence[Mask], masks_pred: Sequence[Mask]
    ) -> tuple[Tensor, dict[str, Any]]:
        """The same with masks of which some are `RaggedIds`: every sample keeps all of its tokens."""
        grid, encoder = self.encoder.grid(clips), self.encoder
        positions = encoder.positions(grid)
        tokens = torch.cat([encoder.patch_embed(clips, keep=mask, pos_embed=positions).flatten(0, -2) for mask in masks_enc])
        targets = self.targets(clips)
        context = encode(encoder, tokens, masks_enc, grid[1:])
        token = self.predictor.mask_tokens[0][0]
        predicted = predict(self.predictor, context, masks_enc, masks_pred, token, encoder.num_patches)
        parts = torch.stack(
            [
                share_of_loss(z, targets, mask, 1 / len(masks_pred), power=self.loss_exp, normalize=False)
                for z, mask in zip(unpack(predicted, masks_pred), masks_pred, strict=True)
            ]
        )
        return parts.sum(), stats_of(parts * len(masks_pred), targets, masks_enc, masks_pred)

    def _embed(self, clips: Tensor, masks_enc: list[Tensor]) -> tuple[Tensor | None, Sequence[Tensor] | None]:
        """All tokens by the target's patch embedding, the kept ones of each mask by the encoder's; pixels are read once.

        Nothing where parameters are sharded: they are whole only inside their encoder, which then embeds for itself."""
        grid, own, target = self.encoder.grid(clips), self.encoder.patch_embed, self.target_encoder.patch_embed
        if any(type(weight) is not nn.Parameter for weight in (own.proj.weight, target.proj.weight)):
            return None, None
        uint8 = clips.dtype == torch.uint8  # floating-point clips have been normalised
        found = patch_embed_pair(
            clips,
            target.proj.weight,
            target.proj.bias,
            own.proj.weight,
            own.proj.bias,
            keep=masks_enc,
            target_pos_embed=self.target_encoder.positions(grid),
            context_pos_embed=self.encoder.positions(grid),
            mean=own.mean if uint8 else None,
            std=own.std if uint8 else None,
        )
        return found[0], list(found[1])


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
    loss_exp: float = 1.0,
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
    with seeded_weights(seed):
        context_encoder = build_encoder(name, **shared, **(encoder or {}))
        predictor = VisionTransformerPredictor(
            **shared,
            embed_dim=context_encoder.embed_dim,
            predictor_embed_dim=pred_embed_dim,
            depth=pred_depth,
            num_heads=pred_num_heads,
            num_mask_tokens=num_mask_tokens,
        )
    return VJEPA2(context_encoder, predictor, loss_exp)

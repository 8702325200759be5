"""I-JEPA: rectangles of an image predicted from the rest of it, in the space of a target encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.jepa_loss import share_of_loss
from ..nn import Block, Linear, get_2d_sincos_pos_embed
from ..nn.block import LAYER_NORM_EPS
from ..patch_grid import patch_count
from ._common import frame_size, init_weights, seeded_weights
from .joint import JointEmbedding, redraw_linear_weights
from .packed import Mask, predict, stats_of, unpack
from .vision_transformer import VisionTransformer, build_encoder


class IJEPAPredictor(nn.Module):
    """A narrow transformer that fills in each target rectangle from the context, one rectangle at a time.

    Formula: `predictor_embed` of the context plus positions, joined by a mask token plus position for each token of one target;
    `depth` blocks; LayerNorm and `predictor_proj` of the target tokens. The context is run once for each target, as it attends to
    the mask tokens.

    Shapes: `x` (E * B, Kx, D) context tokens of E masks; `masks_x` and `masks` their ids and the targets' (int64 (B, K), or lists
    of E and of M of them); returns (M * E * B, K, D), target-major.

    Dtypes: follow autocast; the residual stream is then float32, as the mask token is.

    State dict: the official keys, `predictor_embed.*`, `mask_token`, `predictor_pos_embed`, `predictor_blocks.i.*`,
    `predictor_norm.*`, `predictor_proj.*`.

    Raises:
        ValueError: context tokens that the masks do not name.

    Deterministic: as its operators are.

    Source: I-JEPA (Assran et al., 2023).

    Example:
        >>> predictor = IJEPAPredictor((4, 4), embed_dim=64, predictor_embed_dim=48, depth=1, num_heads=2)
        >>> targets = [torch.tensor([[1, 2, 7]]), torch.tensor([[3, 8, 9]])]
        >>> predictor(torch.zeros(1, 2, 64), torch.tensor([[0, 5]]), targets).shape
        torch.Size([2, 3, 64])
    """

    def __init__(
        self,
        grid_size: tuple[int, int],
        embed_dim: int = 768,
        predictor_embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        init_std: float = 0.02,
        use_activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.use_activation_checkpointing = use_activation_checkpointing
        self.predictor_embed = Linear(embed_dim, predictor_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, predictor_embed_dim))
        table = torch.from_numpy(get_2d_sincos_pos_embed(predictor_embed_dim, grid_size)).float()
        self.predictor_pos_embed = nn.Parameter(table[None], requires_grad=False)
        self.predictor_blocks = nn.ModuleList(
            Block(predictor_embed_dim, num_heads, mlp_ratio, qkv_bias=True) for _ in range(depth)
        )
        self.predictor_norm = nn.LayerNorm(predictor_embed_dim, eps=LAYER_NORM_EPS)
        self.predictor_proj = Linear(predictor_embed_dim, embed_dim)
        nn.init.trunc_normal_(self.mask_token, std=init_std)
        init_weights(self, self.predictor_blocks, init_std)

    def forward(self, x: Tensor, masks_x: Tensor | list[Tensor], masks: Tensor | list[Tensor]) -> Tensor:
        contexts = [masks_x] if isinstance(masks_x, Tensor) else masks_x
        targets = [masks] if isinstance(masks, Tensor) else masks
        if x.shape[:2] != (sum(ids.shape[0] for ids in contexts), contexts[0].shape[1]):
            raise ValueError(
                f"masks_x must name each context token of x {tuple(x.shape)}; got shapes "
                f"{', '.join(str(tuple(ids.shape)) for ids in contexts)}"
            )
        predicted = self.fill_in(x.flatten(0, 1), contexts, targets)
        return predicted.view(len(targets) * x.shape[0], -1, predicted.shape[-1])

    def fill_in(self, x: Tensor, contexts: Sequence[Mask], targets: Sequence[Mask]) -> Tensor:
        """The same for packed context tokens (total, D) and masks of any kind; returns packed tokens (total', D)."""
        repeated, tokens = [mask for mask in targets for _ in contexts], self.predictor_pos_embed.shape[1]
        return predict(self, x.repeat(len(targets), 1), list(contexts) * len(targets), repeated, self.mask_token[0], tokens)


class IJEPA(JointEmbedding):
    """Predicts the target encoder's view of rectangles of an image from the context encoder's view of the rest.

    Formula: with h = LN(target_encoder(images)), LN without affine parameters and with eps 1e-5, c the context and t_j the
    targets,

        loss = mean over j of smooth_l1(predictor(encoder(images, c), c, t_j), h[t_j]),  beta = 1.

    Shapes: `model(images, masks_enc, masks_pred)` takes images (B, C, H, W) or (B, H, W, C), and lists of masks, each int64
    (B, K) or `jk.RaggedIds`. It returns the scalar loss and a dict: `loss_per_mask` (one a target), `target_std`, the mean over
    channels of the targets' standard deviation over tokens, which goes to 0 when the representation collapses; `context_tokens`
    and `target_tokens`, the (mean) counts of each mask.

    Dtypes: images are uint8, or floating-point and normalised. The loss is taken in float32 under any autocast.

    Raises:
        ValueError: images without the channels, or an empty list of masks.

    Cost: nothing here waits for the device. The contexts of a batch run as one packed call, whatever their lengths.

    Deterministic: as its operators are.

    Source: I-JEPA (Assran et al., 2023).

    Example:
        >>> model = build_ijepa("vit_tiny", img_size=32, patch_size=8, pred_depth=1, encoder={"depth": 1}, seed=0)
        >>> images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
        >>> loss, stats = model(images, [torch.tensor([[0, 1, 4]])], [torch.tensor([[2, 7]]), torch.tensor([[8, 9]])])
        >>> loss.shape, stats["target_tokens"]
        (torch.Size([]), [2, 2])
    """

    predictor: IJEPAPredictor

    def forward(
        self, images: Tensor, masks_enc: list[Any], masks_pred: list[Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        images = images_channels_first(images, self.encoder.in_chans)
        targets, context = self.embed_and_encode(images, masks_enc)
        predicted = self.predictor.fill_in(context, masks_enc, masks_pred)
        repeated = [mask for mask in masks_pred for _ in masks_enc]
        losses = [
            share_of_loss(part, targets, mask, 1 / len(repeated), kind="smooth_l1", normalize=False)
            for part, mask in zip(unpack(predicted, repeated), repeated, strict=True)
        ]
        parts = torch.stack(losses)
        per_mask = parts.view(len(masks_pred), len(masks_enc)).sum(dim=1) * len(masks_pred)
        return parts.sum(), stats_of(per_mask, targets, masks_enc, masks_pred)


def images_channels_first(images: Tensor, in_chans: int = 3) -> Tensor:
    """(B, H, W, C), as images are decoded, to a (B, C, H, W) view; the latter passes through.

    Raises:
        ValueError: neither axis has `in_chans` channels.
    """
    if images.ndim == 4 and images.shape[-1] == in_chans:  # no image is as narrow as it has channels
        return images.permute(0, 3, 1, 2)
    if images.ndim == 4 and images.shape[1] == in_chans:
        return images
    raise ValueError(f"images must be (B, C, H, W) or (B, H, W, C) with C = {in_chans}; got shape {tuple(images.shape)}")


def build_ijepa(
    name: str = "vit_huge",
    *,
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 14,
    pred_depth: int = 12,
    pred_embed_dim: int = 384,
    pred_num_heads: int | None = None,
    use_activation_checkpointing: bool = False,
    encoder: dict[str, Any] | None = None,
    seed: int | None = None,
) -> IJEPA:
    """I-JEPA with an encoder of a named size; the defaults are its ViT-H/14 on ImageNet.

    `pred_num_heads` is the encoder's where None, as in the official code; `encoder` holds further keyword arguments for the
    encoder. With `seed` the weights depend on it alone, and torch's global generator is left as it was.

    Raises:
        ValueError: the name is unknown, or `patch_size` does not divide the size.

    Example:
        >>> build_ijepa("vit_tiny", img_size=32, patch_size=8, pred_depth=1, encoder={"depth": 1}).encoder.num_patches
        16
    """
    height, width = frame_size(img_size)
    grid = (patch_count("height", height, "patch_size", patch_size), patch_count("width", width, "patch_size", patch_size))
    with seeded_weights(seed):
        context_encoder: VisionTransformer = build_encoder(
            name,
            img_size=img_size,
            patch_size=patch_size,
            use_rope=False,
            use_activation_checkpointing=use_activation_checkpointing,
            **(encoder or {}),
        )
        predictor = IJEPAPredictor(
            grid,
            embed_dim=context_encoder.embed_dim,
            predictor_embed_dim=pred_embed_dim,
            depth=pred_depth,
            num_heads=pred_num_heads or context_encoder.num_heads,
            use_activation_checkpointing=use_activation_checkpointing,
        )
        redraw_linear_weights(context_encoder)
        redraw_linear_weights(predictor)
    return IJEPA(context_encoder, predictor)

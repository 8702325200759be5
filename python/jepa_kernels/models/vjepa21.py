"""V-JEPA 2.1: clips and images, a loss on the visible tokens as well, and targets at several depths of the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..attention_masks import Ragged
from ..functional.jepa_loss import share_of_loss
from ..nn import Linear, PatchEmbed, PatchEmbed3D
from ..nn.block import LAYER_NORM_EPS
from ..patch_grid import patch_count
from ..rope import Rope3D
from ._common import run_blocks, seeded_weights
from .configs import PIXEL_MEAN, PIXEL_STD, encoder_size
from .ijepa import images_channels_first
from .joint import JointEmbedding
from .objective import normalised
from .packed import longest, pack, predict_both, unpack
from .predictor import VisionTransformerPredictor
from .vision_transformer import VisionTransformer
from .vjepa2 import channels_first

CLIP, IMAGE = 0, 1  # rows of the modality tokens
CONTEXT_WEIGHT = 0.5


class MultiLevelEncoder(VisionTransformer):
    """V-JEPA 2's encoder with a second tokenizer, for images, and outputs after several blocks.

    Formula: tokens = patch embedding of the clip, or a 2-D patch embedding of the image, plus the learned modality token of
    either; blocks with 3-D RoPE, where an image is frame 0; a LayerNorm of each level's own after the blocks it names.

    Shapes: clips (B, C, T, H, W) or images (B, C, H, W); returns the last level (B, N, D), or (M * B, K, D) with `masks`.
    `levels(...)` returns all of them.

    Args:
        levels: after how many blocks an output is taken, ascending; the last is the depth.
        Others as for `VisionTransformer`.

    State dict: that of `VisionTransformer` (`norm.*` is the last level's), `image_patch_embed.proj.*`, `modality_tokens` (2, D),
    `level_norms.i.*` of the levels before the last.

    Raises:
        ValueError: levels that do not ascend to the depth; a model of single frames; pixels that do not fit.

    Deterministic: as its operators are.

    Source: V-JEPA 2.1 (Mur-Labadia et al., 2026), from its description; names of parameters that V-JEPA 2 lacks are ours.

    Example:
        >>> sizes = {"img_size": 32, "num_frames": 4, "embed_dim": 48, "depth": 2, "num_heads": 2}
        >>> encoder = MultiLevelEncoder(levels=(1, 2), use_rope=True, **sizes)
        >>> encoder(torch.zeros(1, 3, 32, 32)).shape, encoder(torch.zeros(1, 3, 4, 32, 32)).shape
        (torch.Size([1, 4, 48]), torch.Size([1, 8, 48]))
    """

    def __init__(
        self,
        levels: Sequence[int],
        *,
        pixel_mean: Sequence[float] | None = PIXEL_MEAN,
        pixel_std: Sequence[float] | None = PIXEL_STD,
        init_std: float = 0.02,
        **options: Any,
    ) -> None:
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std, init_std=init_std, **options)
        depth = len(self.blocks)
        if not levels or list(levels) != sorted(set(levels)) or levels[0] < 1 or levels[-1] != depth:
            raise ValueError(f"levels must ascend from at least 1 to the depth, {depth}; got {tuple(levels)}")
        if not self.is_video or not self.use_rope:
            raise ValueError("a multi-level encoder takes clips and images by RoPE: num_frames > 1 and use_rope=True")
        self.level_ends = tuple(levels)
        self.image_patch_embed = PatchEmbed(self.patch_size, self.in_chans, self.embed_dim, pixel_mean, pixel_std)
        self.modality_tokens = nn.Parameter(torch.zeros(2, self.embed_dim))
        self.level_norms = nn.ModuleList(nn.LayerNorm(self.embed_dim, eps=LAYER_NORM_EPS) for _ in levels[:-1])
        nn.init.trunc_normal_(self.image_patch_embed.proj.weight, std=init_std)
        nn.init.zeros_(self.image_patch_embed.proj.bias)  # type: ignore[arg-type]
        nn.init.trunc_normal_(self.modality_tokens, std=init_std)

    def forward(self, x: Tensor, masks: Any = None, tokens: Any = None, pack: bool = False) -> Tensor:
        if pack:
            raise ValueError("pack=True is not for this encoder; VJEPA21 packs its masks itself")
        depth, rows, columns = self.grid(x)
        ids = torch.arange(depth * rows * columns, device=x.device)
        if masks is not None:
            ids = masks if isinstance(masks, Tensor) else torch.cat(masks)
        if tokens is None:
            tokens = self.tokenizer(x)(x, keep=masks) + self.modality(x)
        return self.levels(tokens, Rope3D.from_ids(ids, grid=(rows, columns)))[-1]

    def levels(self, tokens: Tensor, rope: Rope3D, sequences: Ragged | None = None) -> list[Tensor]:
        """Normalised outputs of all levels, for tokens with their modality: (B, N, D), or packed (total, D)."""
        found, begin = [], 0
        for end, norm in zip(self.level_ends, [*self.level_norms, self.norm], strict=True):
            tokens = run_blocks(self.blocks[begin:end], tokens, rope, self.use_activation_checkpointing, sequences)
            found.append(norm(tokens))
            begin = end
        return found

    def modality(self, x: Tensor) -> Tensor:
        """The token (D,) that these pixels' patch embeddings are added to."""
        return self.modality_tokens[IMAGE if x.ndim == 4 else CLIP]

    def tokenizer(self, x: Tensor) -> PatchEmbed | PatchEmbed3D:
        return self.image_patch_embed if x.ndim == 4 else self.patch_embed

    def grid(self, x: Tensor) -> tuple[int, int, int]:
        if x.ndim != 4:
            return super().grid(x)
        if x.shape[1] != self.in_chans:
            raise ValueError(f"images must be (B, C, H, W) with C = {self.in_chans}; got shape {tuple(x.shape)}")
        rows = patch_count("height", x.shape[-2], "patch_size", self.patch_size)
        return 1, rows, patch_count("width", x.shape[-1], "patch_size", self.patch_size)


class MultiLevelPredictor(VisionTransformerPredictor):
    """V-JEPA 2's predictor for several levels at once: an MLP fuses those of the context, one map gives those of every token.

    Formula: `predictor_embed` = Linear(L D, D), GELU, Linear(D, width) of the concatenated levels; mask tokens and blocks as in
    `VisionTransformerPredictor`; `predictor_proj` to L D.

    Example:
        >>> sizes = {"img_size": 32, "num_frames": 4, "embed_dim": 64, "predictor_embed_dim": 48, "depth": 1, "num_heads": 2}
        >>> predictor = MultiLevelPredictor(2, **sizes)
        >>> predictor.predictor_proj.out_features
        128
    """

    def __init__(
        self, num_levels: int, *, embed_dim: int, predictor_embed_dim: int, init_std: float = 0.02, **options: Any
    ) -> None:
        super().__init__(embed_dim=embed_dim, predictor_embed_dim=predictor_embed_dim, init_std=init_std, **options)
        fuse = [Linear(num_levels * embed_dim, embed_dim), Linear(embed_dim, predictor_embed_dim)]
        self.predictor_embed = nn.Sequential(fuse[0], nn.GELU(), fuse[1])  # type: ignore[assignment]
        self.predictor_proj = Linear(predictor_embed_dim, num_levels * embed_dim)
        for layer in (*fuse, self.predictor_proj):
            nn.init.trunc_normal_(layer.weight, std=init_std)
            nn.init.zeros_(layer.bias)


class VJEPA21(JointEmbedding):
    """Predicts every token at several depths of the target encoder: the hidden ones, and, with less weight, the visible ones.

    Formula: with h_l = LN(level l of target_encoder(x)), LN without affine parameters, and for mask m the predictions z_lm of the
    targets and c_lm of the context,

        loss = mean over m and l of ( mean |z_lm - h_l[targets]| + mean over i of w_i |c_lm[i] - h_l[context i]| ),
        w_i = context_weight / sqrt(d_i),

    where d_i is the distance, in tokens, of context token i to the nearest target of its sample. As published, `context_weight`
    can rise from 0 over the first epochs, `context_warmup_epochs`, to let the hidden tokens lead; `begin_step(epoch)` sets it.

    Shapes: `model(x, masks_enc, masks_pred)` takes clips (B, C, T, H, W) or (B, T, H, W, C), or images (B, C, H, W) or
    (B, H, W, C), and lists of int64 (B, K), which may differ in K. It returns the scalar loss and a dict: `loss_per_mask` (M,),
    both terms; `context_loss`; `target_std` of the last level; `context_tokens`, `target_tokens`.

    Dtypes: uint8, or floating-point and normalised pixels. The loss is taken in float32 under any autocast.

    Raises:
        ValueError: pixels without the channels, masks that do not pair up or are ragged.

    Cost: one pass over all masks of encoder, predictor and target encoder; nothing waits for the device. Distances take
    8 FLOPs for each pair of a context and a target token.

    Deterministic: as its operators are.

    Source: V-JEPA 2.1 (Mur-Labadia et al., 2026), from its description.

    Example:
        >>> sizes = {"img_size": 32, "num_frames": 4, "pred_depth": 1, "encoder": {"depth": 2}}
        >>> model = build_vjepa21("vit_tiny", levels=(1, 2), seed=0, **sizes)
        >>> image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
        >>> loss, stats = model(image, [torch.tensor([[0, 1]])], [torch.tensor([[2, 3]])])
        >>> loss.shape, stats["target_tokens"]
        (torch.Size([]), [2])
    """

    encoder: MultiLevelEncoder
    target_encoder: MultiLevelEncoder
    predictor: MultiLevelPredictor

    def __init__(
        self,
        encoder: MultiLevelEncoder,
        predictor: MultiLevelPredictor,
        context_weight: float = CONTEXT_WEIGHT,
        context_warmup_epochs: float = 0.0,
    ) -> None:
        super().__init__(encoder, predictor)
        for name, value in (("context_weight", context_weight), ("context_warmup_epochs", context_warmup_epochs)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0; got {value}")
        self.full_context_weight, self.context_warmup_epochs = context_weight, context_warmup_epochs
        self.begin_step(0.0)

    def begin_step(self, epoch: float) -> None:
        share = min(1.0, epoch / self.context_warmup_epochs) if self.context_warmup_epochs else 1.0
        self.context_weight = share * self.full_context_weight

    def forward(
        self, x: Tensor, masks_enc: list[Tensor], masks_pred: list[Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        if not masks_enc or len(masks_enc) != len(masks_pred):
            raise ValueError(f"masks_enc and masks_pred must pair up; got {len(masks_enc)} and {len(masks_pred)} masks")
        if not all(isinstance(mask, Tensor) and mask.numel() for mask in [*masks_enc, *masks_pred]):
            raise ValueError("V-JEPA 2.1 takes masks (B, K) with at least one token; ragged ones are not supported")
        channels = self.encoder.in_chans
        x = images_channels_first(x, channels) if x.ndim == 4 else channels_first(x, channels)
        targets, context = self._levels(x, masks_enc)
        token = self.predictor.mask_tokens[0][0]
        visible, hidden = predict_both(
            self.predictor, torch.cat(context, -1), masks_enc, masks_pred, token, self.encoder.num_patches
        )
        seen = self._losses(visible, targets, masks_enc, self._weights(x, masks_enc, masks_pred))
        parts = self._losses(hidden, targets, masks_pred, None) + seen
        stats = {
            "loss_per_mask": parts.detach() * len(masks_pred),
            "context_loss": seen.detach().sum(),
            "target_std": targets[-1].flatten(0, 1).std(dim=0).mean(),
            "context_tokens": [ids.shape[1] for ids in masks_enc],
            "target_tokens": [ids.shape[1] for ids in masks_pred],
        }
        return parts.sum(), stats

    def _levels(self, x: Tensor, masks_enc: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The targets of all levels (B, N, D), and the levels of the context of all masks, packed (total, D)."""
        depth, rows, columns = self.encoder.grid(x)
        every, tokens = self.embed(x, masks_enc)
        with torch.no_grad():
            place = Rope3D.from_ids(torch.arange(depth * rows * columns, device=x.device), grid=(rows, columns))
            found = self.target_encoder.levels(every + self.target_encoder.modality(x), place)
            targets = [normalised(level) for level in found]
        packed = pack(masks_enc)
        sequences = Ragged(packed.cu_seqlens, longest(masks_enc, self.encoder.num_patches))
        rope = Rope3D.from_ids(packed.ids, grid=(rows, columns))
        return targets, self.encoder.levels(tokens + self.encoder.modality(x), rope, sequences)

    def _losses(
        self, predicted: Tensor, targets: list[Tensor], masks: list[Tensor], weights: list[Tensor] | None
    ) -> Tensor:
        """The share of each mask (M,) in the mean over masks, itself a mean over levels."""
        losses, share = [], 1 / (len(masks) * len(targets))
        for index, (part, ids) in enumerate(zip(unpack(predicted, masks), masks, strict=True)):
            weight = None if weights is None else weights[index]
            levels = part.chunk(len(targets), dim=-1)
            each = [
                share_of_loss(z, h, ids, share, normalize=False, weights=weight) for z, h in zip(levels, targets, strict=True)
            ]
            losses.append(torch.stack(each).sum())
        return torch.stack(losses)

    def _weights(self, x: Tensor, masks_enc: list[Tensor], masks_pred: list[Tensor]) -> list[Tensor]:
        _, rows, columns = self.encoder.grid(x)
        return [
            self.context_weight * distances(context, target, (rows, columns)).rsqrt()
            for context, target in zip(masks_enc, masks_pred, strict=True)
        ]

    @torch.no_grad()
    def targets(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The targets of the last level; see `JointEmbedding`."""
        return normalised(self.target_encoder(x, tokens=tokens))


def distances(context: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
    """How far each context token (B, K) is from the nearest target (B, K') of its sample, in tokens; `grid` is (rows, columns).

    >>> distances(torch.tensor([[0, 3]]), torch.tensor([[1]]), (2, 2))
    tensor([[1., 1.]])
    """

    def place(ids: Tensor) -> Tensor:
        plane = grid[0] * grid[1]
        return torch.stack([ids // plane, ids % plane // grid[1], ids % grid[1]], -1).float()

    apart = torch.cdist(place(context), place(target), compute_mode="donot_use_mm_for_euclid_dist")
    return apart.amin(-1).clamp_min(1.0)  # a context token that is a target, too, counts as beside one


def build_vjepa21(
    name: str = "vit_large",
    *,
    img_size: int | tuple[int, int] = 256,
    num_frames: int = 16,
    patch_size: int = 16,
    tubelet_size: int = 2,
    levels: Sequence[int] | None = None,
    context_weight: float = CONTEXT_WEIGHT,
    context_warmup_epochs: float = 0.0,
    pred_depth: int = 12,
    pred_embed_dim: int = 384,
    pred_num_heads: int = 12,
    use_activation_checkpointing: bool = False,
    encoder: dict[str, Any] | None = None,
    seed: int | None = None,
) -> VJEPA21:
    """V-JEPA 2.1 with an encoder of a named size. `levels` None takes an output after each quarter of the blocks.

    `encoder` holds further keyword arguments for the encoder. With `seed` the weights depend on it alone, and torch's global
    generator is left as it was.

    Raises:
        ValueError: the name is unknown, or the levels do not fit the depth.
    """
    shared: dict[str, Any] = {
        "img_size": img_size,
        "num_frames": num_frames,
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "use_activation_checkpointing": use_activation_checkpointing,
    }
    chosen = {**asdict(encoder_size(name)), **(encoder or {})}
    depth = chosen["depth"]
    ends = tuple(levels) if levels is not None else tuple(sorted({max(1, depth * part // 4) for part in (1, 2, 3, 4)}))
    with seeded_weights(seed):
        context_encoder = MultiLevelEncoder(ends, use_rope=True, **shared, **chosen)
        predictor = MultiLevelPredictor(
            len(ends),
            **shared,
            embed_dim=context_encoder.embed_dim,
            predictor_embed_dim=pred_embed_dim,
            depth=pred_depth,
            num_heads=pred_num_heads,
            num_mask_tokens=1,
        )
    return VJEPA21(context_encoder, predictor, context_weight, context_warmup_epochs)

"""The predictor of V-JEPA 2: context tokens and mask tokens in, predicted target tokens out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..masks import apply_masks
from ..nn import Block, Linear, get_3d_sincos_pos_embed
from ..nn.block import LAYER_NORM_EPS
from ..rope import Rope3D
from ._common import frame_size, init_weights, packed, packed_lengths, run_blocks, token_grid


class VisionTransformerPredictor(nn.Module):
    """A narrow transformer that fills in the representations of the target tokens from those of the context.

    Formula: `predictor_embed` of the context, joined by one mask token for each target; `depth` blocks with positions from
    the ids of both; LayerNorm and `predictor_proj` of the target tokens.

    Shapes: `x` (M * B, Kx, D) context tokens; `masks_x` and `masks_y` their ids and the targets' (int64 (B, K), or two lists
    of M of them); returns (M * B, Ky, D). Lists of masks that differ in K go with packed rows, as the encoder's `pack=True`
    gives them: x (total_x, D), all masks in one pass, returns (total_y, D). `mask_index`, modulo their number, chooses the mask
    token: V-JEPA 2 trains index 0 for all masks of its first clip length. Ids count tokens on the grid of `img_size`, whatever
    the size of the clip.

    Dtypes: follow autocast; the residual stream is then float32, as the mask tokens are.

    State dict: the official keys, `predictor_embed.*`, `mask_tokens.i`, `predictor_blocks.i.*`, `predictor_norm.*`,
    `predictor_proj.*` (and `predictor_pos_embed` without RoPE).

    Raises:
        ValueError: masks and tokens that do not fit each other; a size that `patch_size`, or frames that
            `tubelet_size`, does not divide.

    Deterministic: as its operators are.

    Source: V-JEPA 2 (Assran et al., 2025).

    Example:
        >>> predictor = VisionTransformerPredictor(32, 16, 4, embed_dim=64, predictor_embed_dim=48, depth=1, num_heads=2)
        >>> predictor(torch.zeros(1, 2, 64), torch.tensor([[0, 5]]), torch.tensor([[1, 2, 7]])).shape
        torch.Size([1, 3, 64])
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = (224, 224),
        patch_size: int = 16,
        num_frames: int = 16,
        tubelet_size: int = 2,
        embed_dim: int = 768,
        predictor_embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_std: float = 0.02,
        uniform_power: bool = False,
        num_mask_tokens: int = 2,
        zero_init_mask_tokens: bool = True,
        use_rope: bool = True,
        use_activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        height, width = frame_size(img_size)
        self.grid_depth, self.grid_height, self.grid_width = token_grid(
            num_frames, height, width, tubelet_size, patch_size
        )
        self.use_rope = use_rope
        self.use_activation_checkpointing = use_activation_checkpointing

        self.predictor_embed = Linear(embed_dim, predictor_embed_dim)
        self.mask_tokens = nn.ParameterList(
            nn.Parameter(torch.zeros(1, 1, predictor_embed_dim)) for _ in range(num_mask_tokens)
        )
        self.predictor_pos_embed: nn.Parameter | None = None
        if not use_rope:
            table = get_3d_sincos_pos_embed(
                predictor_embed_dim,
                (self.grid_height, self.grid_width),
                self.grid_depth,
                uniform_power=uniform_power,
            )
            self.predictor_pos_embed = nn.Parameter(torch.from_numpy(table).float()[None], requires_grad=False)
        self.predictor_blocks = nn.ModuleList(
            Block(
                predictor_embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias,
                grid_size=self.grid_height,
                use_rope=use_rope,
            )
            for _ in range(depth)
        )
        self.predictor_norm = nn.LayerNorm(predictor_embed_dim, eps=LAYER_NORM_EPS)
        self.predictor_proj = Linear(predictor_embed_dim, embed_dim)

        if not zero_init_mask_tokens:
            for token in self.mask_tokens:
                nn.init.trunc_normal_(token, std=init_std)
        init_weights(self, self.predictor_blocks, init_std)

    def forward(
        self,
        x: Tensor,
        masks_x: Tensor | list[Tensor],
        masks_y: Tensor | list[Tensor],
        mask_index: int = 1,
    ) -> Tensor:
        if x.ndim == 2:
            return self._packed(x, list(masks_x), list(masks_y), mask_index)
        context_ids, target_ids = _stack(masks_x), _stack(masks_y)
        sequences, num_context = context_ids.shape
        if x.shape[:2] != (sequences, num_context) or target_ids.shape[0] != sequences:
            raise ValueError(
                f"masks_x {tuple(context_ids.shape)} must name each context token of x {tuple(x.shape)}, and masks_y "
                f"{tuple(target_ids.shape)} have one row for each row of x"
            )
        mask_token = self.mask_tokens[mask_index % len(self.mask_tokens)]
        x = self.predictor_embed(x)
        targets = mask_token.expand(sequences, target_ids.shape[1], -1)
        # The official code sorts the tokens by id here and inverts the sort before the slice below. Attention, with
        # positions taken from the ids, commutes with any permutation of the tokens, and all else in a block acts on
        # each token alone; so the sort changes nothing but the time it takes.
        ids = torch.cat([context_ids, target_ids], dim=1)
        x = torch.cat([x, targets], dim=1)
        rope = None
        if self.use_rope:
            rope = Rope3D.from_ids(ids, grid=(self.grid_height, self.grid_width))
        elif self.predictor_pos_embed is not None:
            x = x + apply_masks(self.predictor_pos_embed.expand(sequences, -1, -1), ids)
        x = run_blocks(self.predictor_blocks, x, rope, self.use_activation_checkpointing)
        # LayerNorm acts on each token alone, so only the tokens that leave are normalised.
        return self.predictor_proj(self.predictor_norm(x[:, num_context:]))

    def _packed(self, x: Tensor, masks_x: list[Tensor], masks_y: list[Tensor], mask_index: int) -> Tensor:
        fits = all(a.shape[0] == b.shape[0] for a, b in zip(masks_x, masks_y, strict=True))
        if not fits or x.shape[0] != sum(ids.numel() for ids in masks_x):
            kept, hidden = [tuple(ids.shape) for ids in masks_x], [tuple(ids.shape) for ids in masks_y]
            raise ValueError(
                f"masks_x {kept} and masks_y {hidden} must have as many rows each, and masks_x name the {x.shape[0]} rows of x"
            )
        mask_token = self.mask_tokens[mask_index % len(self.mask_tokens)]
        rows = self.predictor_embed(x).split([ids.numel() for ids in masks_x])
        sequences = [
            torch.cat([context.view(*kept.shape, -1), mask_token.expand(*hidden.shape, -1)], dim=1)
            for context, kept, hidden in zip(rows, masks_x, masks_y, strict=True)
        ]
        ids = packed([torch.cat(pair, dim=1) for pair in zip(masks_x, masks_y, strict=True)])
        shapes = [(part.shape[0], part.shape[1]) for part in sequences]
        x, rope = packed(sequences), None
        if self.use_rope:
            rope = Rope3D.from_ids(ids, grid=(self.grid_height, self.grid_width))
        elif self.predictor_pos_embed is not None:
            x = x + self.predictor_pos_embed[0, ids]
        lengths = packed_lengths(shapes, x.device)
        x = run_blocks(self.predictor_blocks, x, rope, self.use_activation_checkpointing, lengths)
        parts = x.split([batch * tokens for batch, tokens in shapes])
        targets = [
            part.view(*shape, -1)[:, kept.shape[1] :] for part, shape, kept in zip(parts, shapes, masks_x, strict=True)
        ]
        return self.predictor_proj(self.predictor_norm(packed(targets)))


def _stack(masks: Tensor | list[Tensor]) -> Tensor:
    return masks if isinstance(masks, Tensor) else torch.cat(masks, dim=0)

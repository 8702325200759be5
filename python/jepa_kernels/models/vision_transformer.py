"""The encoder of V-JEPA 2: patch embedding of the kept tokens, transformer blocks, a final LayerNorm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import Block, PatchEmbed, PatchEmbed3D, get_2d_sincos_pos_embed, get_3d_sincos_pos_embed, make_norm
from ..patch_grid import patch_count
from ..rope import Rope3D
from ._common import frame_size, init_weights, packed, packed_lengths, run_blocks, token_grid
from .configs import PIXEL_MEAN, PIXEL_STD, encoder_size


class VisionTransformer(nn.Module):
    """Vision transformer over images or clips that computes nothing for the tokens masked away.

    Formula: patch embedding of the kept tokens, `depth` blocks, LayerNorm (`normalization="dynamic_tanh"`: `jk.nn.DynamicTanh` in
    the place of each LayerNorm). Positions are 3-D RoPE by the original token ids
    with `use_rope`, otherwise a frozen sine-cosine table that the patch embedding adds.

    Shapes: pixels (B, C, H, W), or (B, C, T, H, W) when `num_frames` > 1, of any strides; returns (B, N, D), or (M * B, K, D),
    mask-major, with `masks` (one int64 (B, K), or a list of M of equal K). With `pack=True` the M masks may differ in K: all run
    in one pass, and their tokens come packed, (total, D), mask after mask and clip after clip.

    Dtypes: uint8 pixels are normalised inside the patch embedding with `pixel_mean` and `pixel_std` (units of 0..255);
    floating-point pixels are taken as normalised. The rest follows autocast.

    State dict: the official keys, `patch_embed.proj.*`, `blocks.i.*`, `norm.*` (and `pos_embed` without RoPE).

    Raises:
        ValueError: pixels that do not fit the model; a size that `patch_size`, or frames that `tubelet_size`, does not
            divide.

    Deterministic: as its operators are.

    Source: V-JEPA 2 (Assran et al., 2025).

    Example:
        >>> encoder = build_encoder("vit_tiny", img_size=32, num_frames=4, depth=1)
        >>> encoder(torch.zeros(1, 3, 4, 32, 32), masks=torch.tensor([[0, 3, 5]])).shape
        torch.Size([1, 3, 192])
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = (224, 224),
        patch_size: int = 16,
        num_frames: int = 1,
        tubelet_size: int = 2,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_std: float = 0.02,
        uniform_power: bool = False,
        use_rope: bool = False,
        use_activation_checkpointing: bool = False,
        normalization: str = "layer_norm",
        pixel_mean: Sequence[float] | None = PIXEL_MEAN,
        pixel_std: Sequence[float] | None = PIXEL_STD,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.in_chans = embed_dim, num_heads, in_chans
        self.img_height, self.img_width = frame_size(img_size)
        self.patch_size, self.num_frames, self.tubelet_size = patch_size, num_frames, tubelet_size
        self.is_video = num_frames > 1
        self.use_rope = use_rope
        self.use_activation_checkpointing = use_activation_checkpointing

        depth_patches, rows, columns = token_grid(
            num_frames, self.img_height, self.img_width, tubelet_size, patch_size
        )
        self.patch_embed: PatchEmbed | PatchEmbed3D
        if self.is_video:
            self.patch_embed = PatchEmbed3D(patch_size, tubelet_size, in_chans, embed_dim, pixel_mean, pixel_std)
        else:
            self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, pixel_mean, pixel_std)
        self.num_patches = depth_patches * rows * columns

        self.pos_embed: nn.Parameter | None = None
        if not use_rope:
            if self.is_video:
                table = get_3d_sincos_pos_embed(embed_dim, (rows, columns), depth_patches, uniform_power=uniform_power)
            else:
                table = get_2d_sincos_pos_embed(embed_dim, (rows, columns))
            self.pos_embed = nn.Parameter(torch.from_numpy(table).float().unsqueeze(0), requires_grad=False)

        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, grid_size=rows, use_rope=use_rope, normalization=normalization)
            for _ in range(depth)
        )
        self.norm = make_norm(embed_dim, normalization)
        init_weights(self, self.blocks, init_std)

    def forward(
        self,
        x: Tensor,
        masks: Tensor | list[Tensor] | None = None,
        tokens: Tensor | Sequence[Tensor] | None = None,
        pack: bool = False,
    ) -> Tensor:
        """`tokens`, if given, are what the patch embedding would make of `x` and `masks`, positions added; with `pack` one
        tensor for each mask."""
        depth, rows, columns = grid = self.grid(x)
        if pack:
            if not isinstance(masks, list):
                raise ValueError(f"pack=True needs a list of masks, one int64 (B, K) each; got {type(masks).__name__}")
            return self._packed(x, masks, tokens)
        rope = None
        if self.use_rope:
            # A kept token keeps the position of its place in the clip, not of its place among the kept tokens.
            ids: Tensor
            if masks is None:
                ids = torch.arange(depth * rows * columns, device=x.device)
            else:
                ids = masks if isinstance(masks, Tensor) else torch.cat(masks, dim=0)
            rope = Rope3D.from_ids(ids, grid=(rows, columns))
        if tokens is None:
            tokens = self.patch_embed(x, keep=masks, pos_embed=self.positions(grid))
        assert isinstance(tokens, Tensor)
        return self.norm(run_blocks(self.blocks, tokens, rope, self.use_activation_checkpointing))

    def _packed(self, x: Tensor, masks: list[Tensor], tokens: Tensor | Sequence[Tensor] | None) -> Tensor:
        grid = self.grid(x)
        if tokens is None:
            tokens = [self.patch_embed(x, keep=ids, pos_embed=self.positions(grid)) for ids in masks]
        rope = Rope3D.from_ids(packed(masks), grid=grid[1:]) if self.use_rope else None
        lengths = packed_lengths([(ids.shape[0], ids.shape[1]) for ids in masks], x.device)
        return self.norm(run_blocks(self.blocks, packed(list(tokens)), rope, self.use_activation_checkpointing, lengths))

    def grid(self, x: Tensor) -> tuple[int, int, int]:
        """Tokens of these pixels along frame, row and column; raises where they do not fit the model."""
        dims = 5 if self.is_video else 4
        if x.ndim != dims or x.shape[1] != self.in_chans:
            shape = "(B, C, T, H, W)" if self.is_video else "(B, C, H, W)"
            raise ValueError(f"pixels must be {shape} with C = {self.in_chans}; got shape {tuple(x.shape)}")
        depth = patch_count("frames", x.shape[2], "tubelet_size", self.tubelet_size) if self.is_video else 1
        rows = patch_count("height", x.shape[-2], "patch_size", self.patch_size)
        return depth, rows, patch_count("width", x.shape[-1], "patch_size", self.patch_size)

    def tokenizer(self, x: Tensor) -> PatchEmbed | PatchEmbed3D:
        """The patch embedding that these pixels go through."""
        return self.patch_embed

    def positions(self, grid: tuple[int, int, int]) -> Tensor | None:
        """The position table for a grid of tokens; None with RoPE."""
        depth, rows, columns = grid
        if self.pos_embed is None:
            return None
        height, width = rows * self.patch_size, columns * self.patch_size
        tokens = depth * rows * columns
        if (height, width) != (self.img_height, self.img_width) or tokens > self.num_patches:
            raise ValueError(
                f"the position table is for {self.num_frames} frames of {self.img_height}x{self.img_width} pixels; "
                f"got {depth * rows * columns} tokens of {height}x{width} frames. Use use_rope=True, or the size of "
                "the table; jk.nn.interpolate_pos_embed makes one for another"
            )
        return self.pos_embed[:, :tokens]  # the table of a shorter clip is the first part of this one


def build_encoder(name: str, **overrides: Any) -> VisionTransformer:
    """The encoder of a named size (`ENCODER_SIZES`), with RoPE; keyword arguments as for `VisionTransformer`.

    Weights are random, from torch's global generator.

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> sum(p.numel() for p in build_encoder("vit_tiny", img_size=64, num_frames=8).parameters())
        5633856
    """
    return VisionTransformer(**{**asdict(encoder_size(name)), "use_rope": True, **overrides})

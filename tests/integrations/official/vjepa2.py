"""vjepa2's signatures and habits: full patch convolution, elementwise rotary embedding, sorted predictor, dense AC mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .common import MLP, AttentionBase, gather_masks, sincos_table


def rotate_queries_or_keys(x: Tensor, pos: Tensor) -> Tensor:
    width = x.shape[-1]
    omega = 1.0 / 10000 ** (torch.arange(width // 2, dtype=x.dtype, device=x.device) / (width / 2.0))
    angle = pos.unsqueeze(-1) * omega
    sine, cosine = angle.sin().repeat(1, 1, 1, 2), angle.cos().repeat(1, 1, 1, 2)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cosine + torch.stack([-odd, even], -1).flatten(-2) * sine


def rotate_segments(x: Tensor, positions: list[Tensor]) -> Tensor:
    width = 2 * (x.shape[-1] // 3 // 2)
    parts = [rotate_queries_or_keys(x[..., i * width : (i + 1) * width], axis) for i, axis in enumerate(positions)]
    return torch.cat([*parts, x[..., len(positions) * width :]], -1)


def separate(ids: Tensor, rows: int, columns: int) -> list[Tensor]:
    frame = ids // (rows * columns)
    row = (ids - rows * columns * frame) // columns
    return [frame, row, ids - rows * columns * frame - columns * row]


class Attention(AttentionBase):
    def forward(self, x: Tensor, mask: Any = None, attn_mask: Any = None) -> Tensor:
        return self.merge(self.attend(*self.split(x), attn_mask))


class RoPEAttention(AttentionBase):
    def __init__(self, dim: int, num_heads: int, grid_size: int, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        self.grid_size = grid_size

    def forward(
        self, x: Tensor, mask: Any = None, attn_mask: Any = None, T: Any = None, H_patches: Any = None, W_patches: Any = None
    ) -> Tensor:
        q, k, v = self.split(x)
        every = torch.arange(x.shape[1], device=x.device)
        ids = every if mask is None else mask.unsqueeze(1).repeat(1, self.num_heads, 1)
        grid = (self.grid_size, self.grid_size) if H_patches is None else (H_patches, W_patches)
        positions = separate(ids, *grid)
        return self.merge(self.attend(rotate_segments(q, positions), rotate_segments(k, positions), v, attn_mask))


class ACRoPEAttention(RoPEAttention):
    def forward(
        self,
        x: Tensor,
        mask: Any = None,
        attn_mask: Any = None,
        T: int = 0,
        H: int = 0,
        W: int = 0,
        action_tokens: int = 0,
    ) -> Tensor:
        batch, _, width = x.shape
        positions = [1.0 * axis for axis in separate(torch.arange(T * H * W, device=x.device), H, W)]
        positions[1] = positions[1] * (self.grid_size / H)
        positions[2] = positions[2] * (self.grid_size / W)
        x = x.view(batch, T, action_tokens + H * W, width)
        merged = []
        for index in range(action_tokens):
            q, k, v = self.split(x[:, :, index])
            frames = [torch.arange(T, device=x.device)]
            merged.append([part[:, :, :, None] for part in (rotate_segments(q, frames), rotate_segments(k, frames), v)])
        q, k, v = self.split(x[:, :, action_tokens:].flatten(1, 2))
        patches = (rotate_segments(q, positions), rotate_segments(k, positions), v)
        merged.append([part.unflatten(2, (T, H * W)) for part in patches])
        q, k, v = (torch.cat(parts, 3).flatten(2, 3) for parts in zip(*merged, strict=True))
        return self.merge(self.attend(q, k, v, attn_mask))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, grid_size: int, use_rope: bool, **kwargs: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RoPEAttention(dim, num_heads, grid_size, **kwargs) if use_rope else Attention(dim, num_heads, **kwargs)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, 4 * dim)

    def forward(
        self, x: Tensor, mask: Any = None, attn_mask: Any = None, T: Any = None, H_patches: Any = None, W_patches: Any = None
    ) -> Tensor:
        if isinstance(self.attn, RoPEAttention):
            y = self.attn(self.norm1(x), mask=mask, attn_mask=attn_mask, T=T, H_patches=H_patches, W_patches=W_patches)
        else:
            y = self.attn(self.norm1(x), mask=mask, attn_mask=attn_mask)
        x = x + y
        return x + self.mlp(self.norm2(x))


class ACBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, grid_size: int, **kwargs: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ACRoPEAttention(dim, num_heads, grid_size, **kwargs)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, 4 * dim)

    def forward(
        self,
        x: Tensor,
        mask: Any = None,
        attn_mask: Any = None,
        T: Any = None,
        H: Any = None,
        W: Any = None,
        action_tokens: int = 0,
    ) -> Tensor:
        y = self.attn(self.norm1(x), mask=mask, attn_mask=attn_mask, T=T, H=H, W=W, action_tokens=action_tokens)
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchEmbed3D(nn.Module):
    def __init__(self, patch_size: int, tubelet_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size, self.tubelet_size = patch_size, tubelet_size
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(3, dim, kernel_size=kernel, stride=kernel)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 16,
        num_frames: int = 4,
        tubelet_size: int = 2,
        embed_dim: int = 64,
        depth: int = 2,
        num_heads: int = 2,
        use_rope: bool = True,
        out_layers: list[int] | None = None,
        use_activation_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.embed_dim, self.out_layers, self.handle_nonsquare_inputs = embed_dim, out_layers, True
        self.patch_size, self.tubelet_size = patch_size, tubelet_size
        self.use_activation_checkpointing, self.use_rope = use_activation_checkpointing, use_rope
        side = img_size // patch_size
        self.patch_embed = PatchEmbed3D(patch_size, tubelet_size, embed_dim)
        self.pos_embed = None if use_rope else sincos_table(num_frames // tubelet_size * side * side, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, side, use_rope, **kwargs) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)

    def interpolate_pos_encoding(self, x: Tensor, pos_embed: Tensor) -> Tensor:
        return pos_embed

    def forward(self, x: Tensor, masks: Any = None) -> Any:
        if masks is not None and not isinstance(masks, list):
            masks = [masks]
        frames, rows, columns = (x.shape[2] // self.tubelet_size, x.shape[3] // self.patch_size, x.shape[4] // self.patch_size)
        positions = None if self.use_rope else self.interpolate_pos_encoding(x, self.pos_embed)
        x = self.patch_embed(x)
        if positions is not None:
            x += positions
        if masks is not None:
            x = gather_masks(x, masks)
            masks = torch.cat(masks)
        outs = []
        for index, block in enumerate(self.blocks):
            if self.use_activation_checkpointing:
                x = checkpoint(block, x, masks, None, T=frames, H_patches=rows, W_patches=columns, use_reentrant=False)
            else:
                x = block(x, mask=masks, attn_mask=None, T=frames, H_patches=rows, W_patches=columns)
            if self.out_layers is not None and index in self.out_layers:
                outs.append(self.norm(x))
        return self.norm(x) if self.out_layers is None else outs


class VisionTransformerPredictor(nn.Module):
    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 16,
        num_frames: int = 4,
        tubelet_size: int = 2,
        embed_dim: int = 64,
        predictor_embed_dim: int = 48,
        depth: int = 2,
        num_heads: int = 2,
        num_mask_tokens: int = 3,
        use_rope: bool = True,
        chop_last_n_tokens: int = 0,
        use_activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        side = img_size // patch_size
        self.num_patches = num_frames // tubelet_size * side * side
        self.return_all_tokens, self.chop_last_n_tokens, self.num_mask_tokens = False, chop_last_n_tokens, num_mask_tokens
        self.use_rope, self.use_activation_checkpointing = use_rope, use_activation_checkpointing
        self.predictor_embed = nn.Linear(embed_dim, predictor_embed_dim)
        tokens = [nn.Parameter(torch.randn(1, 1, predictor_embed_dim) * 0.02) for _ in range(num_mask_tokens)]
        self.mask_tokens = nn.ParameterList(tokens)
        self.predictor_pos_embed = None if use_rope else sincos_table(self.num_patches, predictor_embed_dim)
        self.predictor_blocks = nn.ModuleList(Block(predictor_embed_dim, num_heads, side, use_rope) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(predictor_embed_dim, eps=1e-6)
        self.predictor_proj = nn.Linear(predictor_embed_dim, embed_dim)

    def forward(self, x: Tensor, masks_x: Any, masks_y: Any, mask_index: int = 1, has_cls: bool = False) -> Tensor:
        masks_x = masks_x if isinstance(masks_x, list) else [masks_x]
        masks_y = masks_y if isinstance(masks_y, list) else [masks_y]
        batch = len(x) // len(masks_x)
        x = self.predictor_embed(x)
        context = x.shape[1]
        targets = gather_masks(self.mask_tokens[mask_index % self.num_mask_tokens].repeat(batch, self.num_patches, 1), masks_y)
        if not self.use_rope:
            x += gather_masks(self.predictor_pos_embed.repeat(batch, 1, 1), masks_x)
            targets += gather_masks(self.predictor_pos_embed.repeat(batch, 1, 1), masks_y)
        x = torch.cat([x, targets], 1)
        ids = torch.cat([torch.cat(masks_x), torch.cat(masks_y)], 1)
        order = ids.argsort(1)
        ids = torch.stack([row[place] for row, place in zip(ids, order, strict=True)])
        x = torch.stack([row[place] for row, place in zip(x, order, strict=True)])
        if self.chop_last_n_tokens:
            x, ids = x[:, : -self.chop_last_n_tokens], ids[:, : -self.chop_last_n_tokens]
        for block in self.predictor_blocks:
            if self.use_activation_checkpointing:
                x = checkpoint(block, x, ids, None, use_reentrant=False)
            else:
                x = block(x, mask=ids, attn_mask=None)
        x = self.predictor_norm(x)
        if not self.return_all_tokens:
            x = torch.stack([row[place] for row, place in zip(x, order.argsort(1), strict=True)])[:, context:]
        return self.predictor_proj(x)


class VisionTransformerPredictorAC(nn.Module):
    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 16,
        num_frames: int = 8,
        tubelet_size: int = 2,
        embed_dim: int = 64,
        predictor_embed_dim: int = 48,
        depth: int = 2,
        num_heads: int = 2,
        use_extrinsics: bool = False,
    ) -> None:
        super().__init__()
        self.grid_height = self.grid_width = side = img_size // patch_size
        self.num_frames, self.tubelet_size, self.use_extrinsics = num_frames, tubelet_size, use_extrinsics
        self.use_rope, self.use_activation_checkpointing = True, False
        self.predictor_embed = nn.Linear(embed_dim, predictor_embed_dim)
        self.action_encoder = nn.Linear(7, predictor_embed_dim)
        self.state_encoder = nn.Linear(7, predictor_embed_dim)
        self.extrinsics_encoder = nn.Linear(6, predictor_embed_dim)
        self.predictor_blocks = nn.ModuleList(ACBlock(predictor_embed_dim, num_heads, side) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(predictor_embed_dim, eps=1e-6)
        self.predictor_proj = nn.Linear(predictor_embed_dim, embed_dim)
        per_frame = side * side + (3 if use_extrinsics else 2)
        frame = torch.arange(num_frames // tubelet_size * per_frame) // per_frame
        self.attn_mask = frame[None, :] <= frame[:, None]

    def forward(self, x: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None) -> Tensor:
        x = self.predictor_embed(x)
        in_frame = self.grid_height * self.grid_width
        x = x.unflatten(1, (-1, in_frame))
        frames = x.shape[1]
        conditioning = [self.action_encoder(actions), self.state_encoder(states)]
        if self.use_extrinsics:
            conditioning.append(self.extrinsics_encoder(extrinsics))
        count = len(conditioning)
        x = torch.cat([*(tokens.unsqueeze(2) for tokens in conditioning), x], 2).flatten(1, 2)
        mask = self.attn_mask[: x.size(1), : x.size(1)].to(x.device, non_blocking=True)
        for block in self.predictor_blocks:
            sizes = {"T": frames, "H": self.grid_height, "W": self.grid_width}
            x = block(x, mask=None, attn_mask=mask, **sizes, action_tokens=count)
        x = x.unflatten(1, (frames, count + in_frame))[:, :, count:].flatten(1, 2)
        return self.predictor_proj(self.predictor_norm(x))


class MultiSeqWrapper(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: list[Tensor], masks: Any = None) -> list[Any]:
        if masks is None:
            return [self.backbone(clips) for clips in x]
        return [[self.backbone(clips, masks=ids) for ids in group] for clips, group in zip(x, masks, strict=True)]


class PredictorMultiSeqWrapper(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Any, masks_x: Any, masks_y: Any, has_cls: bool = False) -> list[list[Tensor]]:
        return [
            [self.backbone(z, mx, my, mask_index=index, has_cls=has_cls) for z, mx, my in zip(*group, strict=True)]
            for index, group in enumerate(zip(x, masks_x, masks_y, strict=True))
        ]

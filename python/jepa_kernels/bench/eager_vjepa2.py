"""V-JEPA 2 in plain PyTorch, in the form of its official training code: what the train-step case compares with.

Written from the description of that code, with the same state-dict keys as `jepa_kernels.models`. It keeps the
official habits that cost time: the patch convolution runs over all tokens before the kept ones are gathered, RoPE
angles are rebuilt elementwise for each call and head, the predictor sorts its tokens sample by sample, the optimiser
is AdamW with its defaults, and the EMA is a foreach multiplication followed by a foreach addition. Left out, in its
favour: activation checkpointing (which the official configurations use), the gradient scaler that runs even for
bfloat16, and mask tokens made for all places before those of the targets are gathered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

TARGET_NORM_EPS = 1e-5
LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True)
class EagerConfig:
    """Sizes of the encoder and the predictor; `grid` is (frames, rows, columns) of tokens."""

    dim: int
    depth: int
    heads: int
    grid: tuple[int, int, int]
    patch: int = 16
    tubelet: int = 2
    predictor_dim: int = 384
    predictor_depth: int = 12
    predictor_heads: int = 12
    mask_tokens: int = 10
    mlp_ratio: float = 4.0


def rotate_queries_or_keys(x: Tensor, positions: Tensor, *, promote: bool = True) -> Tensor:
    """V-JEPA 2's 3-D RoPE, elementwise: x (..., N, d), positions (..., N, 3) of frame, row, column.

    Each axis takes s = 2 * floor(floor(d / 3) / 2) channels; the frequencies are tiled over the halves of a segment
    while the partners are adjacent channels, as in the released checkpoints. Angles are computed in at least float32.
    With `promote` so is the rotation, as CUDA autocast has it; without, it is in the dtype of x, as under CPU autocast.
    """
    segment = 2 * (x.shape[-1] // 3 // 2)
    dtype = torch.promote_types(x.dtype, torch.float32)
    exponent = torch.arange(segment // 2, dtype=dtype, device=x.device) / (segment / 2)
    omega = 10000.0**-exponent
    rotated = []
    for axis in range(3):
        part = x[..., axis * segment : (axis + 1) * segment]
        angle = positions[..., axis, None].to(dtype) * omega
        sine, cosine = angle.sin(), angle.cos()
        if not promote:
            sine, cosine = sine.to(x.dtype), cosine.to(x.dtype)
        sine, cosine = torch.cat([sine, sine], -1), torch.cat([cosine, cosine], -1)
        partner = torch.stack([-part[..., 1::2], part[..., ::2]], -1).flatten(-2)
        rotated.append(part * cosine + partner * sine)
    return torch.cat([*rotated, x[..., 3 * segment :].to(rotated[0].dtype)], -1)


class Attention(nn.Module):
    """RoPE on split heads, then scaled dot-product attention."""

    def __init__(self, dim: int, heads: int, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.heads, self.grid = heads, grid
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, ids: Tensor | None) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]  # three indexings: the backward pass fills and adds three whole gradients
        ids = torch.arange(tokens, device=x.device) if ids is None else ids.unsqueeze(1).repeat(1, self.heads, 1)
        plane, columns = self.grid[1] * self.grid[2], self.grid[2]
        positions = torch.stack([ids // plane, ids % plane // columns, ids % columns], -1)
        promote = x.device.type != "cpu"  # CPU autocast leaves the rotation in bfloat16
        q, k = (rotate_queries_or_keys(part, positions, promote=promote).to(v.dtype) for part in (q, k))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, dim))


class MLP(nn.Module):
    """Two linear layers with the exact GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, grid: tuple[int, int, int], mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, heads, grid)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, ids: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), ids)
        return x + self.mlp(self.norm2(x))


class PatchEmbed3D(nn.Module):
    """Convolution with kernel = stride over every patch of normalised pixels."""

    def __init__(self, config: EagerConfig) -> None:
        super().__init__()
        kernel = (config.tubelet, config.patch, config.patch)
        self.proj = nn.Conv3d(3, config.dim, kernel_size=kernel, stride=kernel)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """x (B, N, D), ids (B, K) -> (B, K, D), with the index repeated over the channels in memory."""
    return torch.gather(x, 1, ids.unsqueeze(-1).repeat(1, 1, x.shape[-1]))


class Encoder(nn.Module):
    """Embeds all patches, then keeps those of the mask."""

    def __init__(self, config: EagerConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed3D(config)
        blocks = [Block(config.dim, config.heads, config.grid, config.mlp_ratio) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)

    def forward(self, pixels: Tensor, ids: Tensor | None = None) -> Tensor:
        x = self.patch_embed(pixels)
        if ids is not None:
            x = gather_tokens(x, ids)
        for block in self.blocks:
            x = block(x, ids)
        return self.norm(x)


class Predictor(nn.Module):
    """Sorts context and mask tokens by id, sample by sample, and undoes the sort at the end."""

    def __init__(self, config: EagerConfig) -> None:
        super().__init__()
        width = config.predictor_dim
        self.predictor_embed = nn.Linear(config.dim, width)
        tokens = [nn.Parameter(torch.zeros(1, 1, width)) for _ in range(config.mask_tokens)]
        self.mask_tokens = nn.ParameterList(tokens)
        blocks = [Block(width, config.predictor_heads, config.grid, 4.0) for _ in range(config.predictor_depth)]
        self.predictor_blocks = nn.ModuleList(blocks)
        self.predictor_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.predictor_proj = nn.Linear(width, config.dim)

    def forward(self, context: Tensor, context_ids: Tensor, target_ids: Tensor) -> Tensor:
        x = self.predictor_embed(context)
        targets = self.mask_tokens[0].repeat(*target_ids.shape, 1)
        x, ids = torch.cat([x, targets], 1), torch.cat([context_ids, target_ids], 1)
        order = torch.argsort(ids, dim=1)
        ids = torch.stack([row[place] for row, place in zip(ids, order, strict=True)])
        x = torch.stack([row[place] for row, place in zip(x, order, strict=True)])
        for block in self.predictor_blocks:
            x = block(x, ids)
        x = self.predictor_norm(x)
        back = torch.argsort(order, dim=1)
        x = torch.stack([row[place] for row, place in zip(x, back, strict=True)])
        return self.predictor_proj(x[:, context_ids.shape[1] :])


def decay_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups that decay matrices and leave biases and 1-D parameters alone; frozen ones are in none."""
    decayed: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                (other if "bias" in name or parameter.ndim == 1 else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]


class EagerVJEPA2(nn.Module):
    """Context encoder, predictor and target encoder; `train_step` runs one step of pretraining."""

    def __init__(self, config: EagerConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.predictor = Predictor(config)
        self.target_encoder = Encoder(config).requires_grad_(False)

    def forward(self, pixels: Tensor, masks_enc: list[Tensor], masks_pred: list[Tensor]) -> Tensor:
        """Mean L1 distance to the normalised target representation, averaged over the masks."""
        with torch.no_grad():
            h = self.target_encoder(pixels)
            h = functional.layer_norm(h, (h.shape[-1],), eps=TARGET_NORM_EPS)
        losses = []
        for context_ids, target_ids in zip(masks_enc, masks_pred, strict=True):
            context = self.encoder(pixels, context_ids)
            predicted = self.predictor(context, context_ids, target_ids)
            losses.append((predicted - gather_tokens(h, target_ids)).abs().mean())
        return torch.stack(losses).mean()

    def make_optimizer(self, lr: float, weight_decay: float, *, fused: bool = False) -> torch.optim.AdamW:
        """AdamW with its defaults, or fused; biases and 1-D parameters are not decayed."""
        groups = decay_groups((self.encoder, self.predictor), weight_decay)
        return torch.optim.AdamW(groups, lr=lr, fused=fused or None)

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * encoder."""
        targets: list[Tensor] = list(self.target_encoder.parameters())
        online: list[Tensor] = list(self.encoder.parameters())
        torch._foreach_mul_(targets, momentum)
        torch._foreach_add_(targets, online, alpha=1 - momentum)


def train_step(
    model: EagerVJEPA2,
    clips: Tensor,
    masks_enc: list[Tensor],
    masks_pred: list[Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    mean: Tensor,
    std: Tensor,
    momentum: float,
    autocast_dtype: torch.dtype | None = None,
) -> Tensor:
    """Normalise uint8 clips (B, T, H, W, 3), then loss, backward, optimiser and EMA; returns the loss."""
    dtype = next(model.parameters()).dtype
    pixels = ((clips.to(dtype) - mean.to(dtype)) / std.to(dtype)).permute(0, 4, 1, 2, 3)
    with torch.autocast(clips.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        loss = model(pixels, masks_enc, masks_pred)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.update_target(momentum)
    return loss.detach()

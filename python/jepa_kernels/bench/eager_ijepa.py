"""I-JEPA in plain PyTorch, in the form of its official training code: what its train-step case compares with.

Written from the description of that code, with the same state-dict keys as `jepa_kernels.models`. It keeps the official
habits that cost time: the patch convolution runs over all tokens before the kept ones are gathered, attention makes its
scores and drops them out with probability 0, the predictor repeats context and positions in memory for each target, the
optimiser is AdamW with its defaults, and the target follows parameter by parameter, three passes each. Left out, in its
favour, is the gradient scaler that runs even for bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .eager_vjepa2 import LAYER_NORM_EPS, MLP, TARGET_NORM_EPS, decay_groups, gather_tokens


@dataclass(frozen=True)
class EagerConfig:
    """Sizes of the encoder and the predictor; `grid` is (rows, columns) of tokens."""

    dim: int
    depth: int
    heads: int
    grid: tuple[int, int]
    patch: int
    predictor_dim: int = 384
    predictor_depth: int = 12
    predictor_heads: int = 12
    mlp_ratio: float = 4.0

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


class Attention(nn.Module):
    """Scores of all pairs, softmax, product."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = self.attn_drop(((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1))
        return self.proj_drop(self.proj((scores @ v).transpose(1, 2).reshape(batch, tokens, dim)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Convolution with kernel = stride over every patch of normalised pixels."""

    def __init__(self, config: EagerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, kernel_size=config.patch, stride=config.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Embeds all patches, adds positions, then keeps the tokens of the masks, mask after mask."""

    def __init__(self, config: EagerConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.dim), requires_grad=False)
        self.blocks = nn.ModuleList([Block(config.dim, config.heads, config.mlp_ratio) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)

    def forward(self, pixels: Tensor, masks: list[Tensor] | None = None) -> Tensor:
        x = self.patch_embed(pixels) + self.pos_embed
        if masks is not None:
            x = torch.cat([gather_tokens(x, ids) for ids in masks])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Predictor(nn.Module):
    """The context once for each target, followed by the target's mask tokens."""

    def __init__(self, config: EagerConfig) -> None:
        super().__init__()
        width = config.predictor_dim
        self.predictor_embed = nn.Linear(config.dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.predictor_pos_embed = nn.Parameter(torch.zeros(1, config.tokens, width), requires_grad=False)
        blocks = [Block(width, config.predictor_heads, 4.0) for _ in range(config.predictor_depth)]
        self.predictor_blocks = nn.ModuleList(blocks)
        self.predictor_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.predictor_proj = nn.Linear(width, config.dim)

    def forward(self, context: Tensor, masks_enc: list[Tensor], masks_pred: list[Tensor]) -> Tensor:
        """Context (E * B, K, D) of E masks -> (M * E * B, K', D)."""
        batch = context.shape[0] // len(masks_enc)
        positions = self.predictor_pos_embed.repeat(batch, 1, 1)
        x = self.predictor_embed(context)
        x = x + torch.cat([gather_tokens(positions, ids) for ids in masks_enc])
        kept = x.shape[1]
        targets = torch.cat([gather_tokens(positions, ids).repeat(len(masks_enc), 1, 1) for ids in masks_pred])
        x = torch.cat([x.repeat(len(masks_pred), 1, 1), self.mask_token.repeat(*targets.shape[:2], 1) + targets], dim=1)
        for block in self.predictor_blocks:
            x = block(x)
        return self.predictor_proj(self.predictor_norm(x)[:, kept:])


class EagerIJEPA(nn.Module):
    """Context encoder, predictor and target encoder; `train_step` runs one step of pretraining."""

    def __init__(self, config: EagerConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.predictor = Predictor(config)
        self.target_encoder = Encoder(config).requires_grad_(False)

    def forward(self, pixels: Tensor, masks_enc: list[Tensor], masks_pred: list[Tensor]) -> Tensor:
        """Smooth L1 distance to the normalised target representation."""
        with torch.no_grad():
            h = self.target_encoder(pixels)
            h = functional.layer_norm(h, (h.shape[-1],), eps=TARGET_NORM_EPS)
            h = torch.cat([gather_tokens(h, ids).repeat(len(masks_enc), 1, 1) for ids in masks_pred])
        predicted = self.predictor(self.encoder(pixels, masks_enc), masks_enc, masks_pred)
        return functional.smooth_l1_loss(predicted, h)

    def make_optimizer(self, lr: float, weight_decay: float, *, fused: bool = False) -> torch.optim.AdamW:
        """AdamW with its defaults, or fused; biases and 1-D parameters are not decayed."""
        groups = decay_groups((self.encoder, self.predictor), weight_decay)
        return torch.optim.AdamW(groups, lr=lr, fused=fused or None)

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * encoder, one parameter after the other."""
        for target, online in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
            target.mul_(momentum).add_((1.0 - momentum) * online)


def train_step(
    model: EagerIJEPA,
    images: Tensor,
    masks_enc: list[Tensor],
    masks_pred: list[Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    mean: Tensor,
    std: Tensor,
    momentum: float,
    autocast_dtype: torch.dtype | None = None,
) -> Tensor:
    """Normalise uint8 images (B, H, W, 3), then loss, backward, optimiser and EMA; returns the loss."""
    dtype = next(model.parameters()).dtype
    pixels = ((images.to(dtype) - mean.to(dtype)) / std.to(dtype)).permute(0, 3, 1, 2)
    with torch.autocast(images.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        loss = model(pixels, masks_enc, masks_pred)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.update_target(momentum)
    return loss.detach()

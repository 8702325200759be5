"""MAE and VideoMAE: the pixels of hidden patches from the visible ones, the baseline of prediction in representation space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.jepa_loss import jepa_loss
from ..functional.patch_embed import channel_values
from ..masks import apply_masks
from ..nn import Block, Linear, get_2d_sincos_pos_embed, get_3d_sincos_pos_embed
from ..nn.block import LAYER_NORM_EPS
from ._common import frame_size, init_weights, run_blocks, seeded_weights, token_grid
from .ijepa import images_channels_first
from .objective import Objective, exact
from .vision_transformer import VisionTransformer, build_encoder
from .vjepa2 import channels_first

PATCH_EPS = 1e-6


class MAEDecoder(nn.Module):
    """A narrow transformer from visible tokens to the pixels of hidden patches.

    Formula: `decoder_embed` of the visible tokens plus positions, joined by the mask token plus position for each hidden one;
    `depth` blocks over both; LayerNorm and `decoder_pred` of the hidden tokens. Positions are a frozen sine-cosine table.

    Shapes: x (B, K, D) tokens, `kept` (B, K) and `hidden` (B, N - K) their ids and those wanted -> (B, N - K, patch values).

    State dict: the keys of the official MAE, `decoder_embed.*`, `mask_token`, `decoder_pos_embed` (without its class token),
    `decoder_blocks.i.*`, `decoder_norm.*`, `decoder_pred.*`.

    Source: He et al., MAE (2022).

    Example:
        >>> decoder = MAEDecoder((1, 4, 4), 64, patch_values=192, decoder_embed_dim=48, depth=1, num_heads=2)
        >>> decoder(torch.zeros(1, 2, 64), torch.tensor([[0, 5]]), torch.tensor([[1, 2, 7]])).shape
        torch.Size([1, 3, 192])
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        embed_dim: int,
        patch_values: int,
        decoder_embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        init_std: float = 0.02,
        use_activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.use_activation_checkpointing = use_activation_checkpointing
        self.decoder_embed = Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        if grid[0] > 1:
            table = get_3d_sincos_pos_embed(decoder_embed_dim, grid[1:], grid[0], uniform_power=True)
        else:
            table = get_2d_sincos_pos_embed(decoder_embed_dim, grid[1:])
        self.decoder_pos_embed = nn.Parameter(torch.from_numpy(table).float()[None], requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, num_heads, mlp_ratio, qkv_bias=True) for _ in range(depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=LAYER_NORM_EPS)
        self.decoder_pred = Linear(decoder_embed_dim, patch_values)
        init_weights(self, self.decoder_blocks, init_std)
        nn.init.trunc_normal_(self.mask_token, std=init_std)

    def forward(self, x: Tensor, kept: Tensor, hidden: Tensor) -> Tensor:
        table = self.decoder_pos_embed[0]
        both = torch.cat([self.decoder_embed(x) + table[kept], self.mask_token + table[hidden]], dim=1)
        both = run_blocks(self.decoder_blocks, both, None, self.use_activation_checkpointing)
        # LayerNorm acts on each token alone, so only the tokens that leave are normalised.
        return self.decoder_pred(self.decoder_norm(both[:, kept.shape[1] :]))


class MAE(Objective):
    """Reconstructs the normalised pixels of hidden patches; the encoder computes nothing for them.

    Formula: with y the values of a hidden patch, t = (y - mean(y)) / sqrt(var(y) + 1e-6), var unbiased, over the patch (MAE,
    images) or over each channel of the tubelet (VideoMAE, clips), and z = decoder(encoder(kept patches)),

        loss = mean over hidden patches and values of (z - t)^2;  t = y with `normalize_patches` False.

    Shapes: `model(inputs, masks_enc, masks_pred)` takes images (B, C, H, W) or (B, H, W, C), or clips (B, C, T, H, W) or
    (B, T, H, W, C), and two lists of one int64 mask each, the kept and the hidden ids, as `jk.masks.RandomMask` draws them. A
    patch's values are ordered (frame, row, column, channel). It returns the scalar loss and a dict: `prediction_std`, the
    standard deviation of the predicted values; `context_tokens` and `target_tokens`.

    Dtypes: pixels are uint8, or floating-point and normalised. Targets and loss are float32 under any autocast.

    Raises:
        ValueError: pixels without the channels, or not one mask on each side.

    Deterministic: as its operators are.

    Source: He et al., MAE (2022); Tong et al., VideoMAE (2022). Without class token; VideoMAE adds 1e-6 to the standard
    deviation.

    Example:
        >>> from jepa_kernels.masks import RandomMask
        >>> model = build_mae("vit_tiny", img_size=32, patch_size=8, pred_depth=1, encoder={"depth": 1}, seed=0)
        >>> loss, stats = model(torch.zeros(2, 32, 32, 3, dtype=torch.uint8), *RandomMask((1, 4, 4))(2))
        >>> loss.shape, stats["context_tokens"], stats["target_tokens"]
        (torch.Size([]), [4], [12])
    """

    PARTS = ("encoder", "decoder")
    TRAINED = ("encoder", "decoder")

    def __init__(self, encoder: VisionTransformer, decoder: MAEDecoder, normalize_patches: bool = True) -> None:
        super().__init__()
        self.encoder, self.decoder, self.normalize_patches = encoder, decoder, normalize_patches

    def forward(
        self, inputs: Tensor, masks_enc: Sequence[Tensor], masks_pred: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        if len(masks_enc) != 1 or len(masks_pred) != 1:
            raise ValueError(f"MAE takes one mask of kept and one of hidden ids; got {len(masks_enc)} and {len(masks_pred)}")
        kept, hidden = masks_enc[0], masks_pred[0]
        first = channels_first if self.encoder.is_video else images_channels_first
        pixels = first(inputs, self.encoder.in_chans)
        predicted = self.decoder(self.encoder(pixels, masks=kept), kept, hidden)
        loss = jepa_loss(predicted, self.patches(pixels, hidden), kind="l2", normalize=False)
        stats = {
            "prediction_std": predicted.detach().float().std(),
            "context_tokens": [kept.shape[1]],
            "target_tokens": [hidden.shape[1]],
        }
        return loss, stats

    @torch.no_grad()
    def patches(self, pixels: Tensor, hidden: Tensor) -> Tensor:
        """What is to be reconstructed: pixels channels first, ids (B, K) -> (B, K, patch values), no gradient."""
        encoder, p = self.encoder, self.encoder.patch_size
        frames, rows, columns = encoder.grid(pixels)
        batch, channels = pixels.shape[:2]
        depth = encoder.tubelet_size if encoder.is_video else 1
        cells = pixels.reshape(batch, channels, frames, depth, rows, p, columns, p)
        cells = cells.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(batch, frames * rows * columns, -1)
        values = exact(apply_masks(cells, hidden)).unflatten(-1, (-1, channels))  # bytes are gathered as bytes
        mean, std = encoder.patch_embed.mean, encoder.patch_embed.std
        if pixels.dtype == torch.uint8 and mean is not None and std is not None:
            # Kept on the device: a copy at every step would wait for it.
            mean, std = (channel_values(name, of, pixels, values.dtype) for name, of in (("mean", mean), ("std", std)))
            values = (values - mean) / std
        if self.normalize_patches:
            over = (-2,) if encoder.is_video else (-2, -1)
            centred = values - values.mean(dim=over, keepdim=True)
            values = centred / (values.var(dim=over, keepdim=True) + PATCH_EPS).sqrt()
        return values.flatten(-2)


def build_mae(
    name: str = "vit_large",
    *,
    img_size: int | tuple[int, int] = 224,
    num_frames: int = 1,
    patch_size: int = 16,
    tubelet_size: int = 2,
    pred_depth: int = 8,
    pred_embed_dim: int = 512,
    pred_num_heads: int = 16,
    normalize_patches: bool = True,
    use_activation_checkpointing: bool = False,
    encoder: dict[str, Any] | None = None,
    seed: int | None = None,
) -> MAE:
    """MAE, or VideoMAE where `num_frames` is more than 1, with an encoder of a named size; the defaults are MAE's ViT-L/16.

    `pred_*` are the decoder's; `encoder` holds further keyword arguments for the encoder, which is I-JEPA's (a sine-cosine table)
    for images and V-JEPA 2's (3-D RoPE) for clips. With `seed` the weights depend on it alone, and torch's global generator
    is left as it was.

    Raises:
        ValueError: the name is unknown, `patch_size` does not divide the size, or `tubelet_size` the frames.

    Example:
        >>> clip = build_mae("vit_tiny", img_size=32, num_frames=4, patch_size=16, encoder={"depth": 1})
        >>> clip.decoder.decoder_pred.out_features
        1536
    """
    height, width = frame_size(img_size)
    shared: dict[str, Any] = {
        "img_size": (height, width),
        "num_frames": num_frames,
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "use_activation_checkpointing": use_activation_checkpointing,
    }
    with seeded_weights(seed):
        built = build_encoder(name, **shared, **{"use_rope": num_frames > 1, **(encoder or {})})
        decoder = MAEDecoder(
            token_grid(num_frames, height, width, tubelet_size, patch_size),
            built.embed_dim,
            built.in_chans * (tubelet_size if num_frames > 1 else 1) * patch_size**2,
            pred_embed_dim,
            pred_depth,
            pred_num_heads,
            use_activation_checkpointing=use_activation_checkpointing,
        )
    return MAE(built, decoder, normalize_patches)

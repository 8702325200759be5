"""The action-conditioned predictor of V-JEPA 2-AC: from the frames so far, and what is done in each, to the next frame."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention_masks import FrameCausal
from ..nn import Block
from ..nn.block import LAYER_NORM_EPS
from ..patch_grid import patch_count
from ..rope import Rope3D
from ._common import frame_size, init_weights
from .kv_cache import KVCache, attend_cached


class VisionTransformerPredictorAC(nn.Module):
    """A frame-causal transformer that predicts each next frame's tokens from the frames, actions and states so far.

    Formula: each frame becomes [action, state, (extrinsics,) patches], all embedded linearly; `depth` blocks in which a token
    sees its own and all earlier frames; LayerNorm and `predictor_proj` of the patches. The output at frame t is the
    prediction of frame t + 1. Patches turn by (frame, row, column), conditioning tokens by their frame alone; columns are
    scaled by grid_height / grid_width, as the official code snaps both axes to one grid.

    Shapes: `x` (B, T * P, D) with P = rows * columns patches a frame, `actions` and `states` (B, T, A), `extrinsics`
    (B, T, A - 1) with `use_extrinsics`; returns (B, T * P, D). Any T: nothing here is sized by `num_frames`, which is kept for
    the official signature. No mask is built; the attention skips what a frame cannot see.

    Dtypes: follow autocast; accumulation as in the operators.

    State dict: the official keys, `predictor_embed.*`, `action_encoder.*`, `state_encoder.*`, `extrinsics_encoder.*` (always
    there), `predictor_blocks.i.*`, `predictor_norm.*`, `predictor_proj.*`.

    Raises:
        ValueError: tokens, actions, states or extrinsics that do not fit each other; a size that `patch_size` does not divide.

    Cost: per block and frame of N tokens, width W, frame t (from 1): 24 N W^2 + 4 t N^2 W FLOPs.

    Deterministic: as its operators are.

    Source: V-JEPA 2 (Assran et al., 2025), arXiv:2506.09985.

    Example:
        >>> predictor = VisionTransformerPredictorAC(32, 16, embed_dim=64, predictor_embed_dim=48, depth=1, num_heads=2)
        >>> predictor(torch.zeros(1, 3 * 4, 64), torch.zeros(1, 3, 7), torch.zeros(1, 3, 7)).shape
        torch.Size([1, 12, 64])
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = (224, 224),
        patch_size: int = 16,
        num_frames: int = 1,
        tubelet_size: int = 2,
        embed_dim: int = 768,
        predictor_embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_std: float = 0.02,
        use_activation_checkpointing: bool = False,
        action_embed_dim: int = 7,
        use_extrinsics: bool = False,
    ) -> None:
        super().__init__()
        height, width = frame_size(img_size)
        self.grid_height = patch_count("height", height, "patch_size", patch_size)
        self.grid_width = patch_count("width", width, "patch_size", patch_size)
        self.num_frames, self.tubelet_size = num_frames, tubelet_size
        self.embed_dim, self.action_embed_dim = embed_dim, action_embed_dim
        self.use_extrinsics = use_extrinsics
        self.use_activation_checkpointing = use_activation_checkpointing

        self.predictor_embed = nn.Linear(embed_dim, predictor_embed_dim)
        self.action_encoder = nn.Linear(action_embed_dim, predictor_embed_dim)
        self.state_encoder = nn.Linear(action_embed_dim, predictor_embed_dim)
        self.extrinsics_encoder = nn.Linear(action_embed_dim - 1, predictor_embed_dim)
        self.predictor_blocks = nn.ModuleList(
            Block(predictor_embed_dim, num_heads, mlp_ratio, qkv_bias, grid_size=self.grid_height, use_rope=True)
            for _ in range(depth)
        )
        self.predictor_norm = nn.LayerNorm(predictor_embed_dim, eps=LAYER_NORM_EPS)
        self.predictor_proj = nn.Linear(predictor_embed_dim, embed_dim)
        init_weights(self, self.predictor_blocks, init_std)

    @property
    def patches_per_frame(self) -> int:
        return self.grid_height * self.grid_width

    @property
    def conditioning_tokens(self) -> int:
        return 3 if self.use_extrinsics else 2

    @property
    def tokens_per_frame(self) -> int:
        """Patches and conditioning tokens."""
        return self.patches_per_frame + self.conditioning_tokens

    def forward(self, x: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None) -> Tensor:
        x = self._interleave(x, actions, states, extrinsics)
        frames = range(x.shape[1] // self.tokens_per_frame)
        mask, rope = FrameCausal(self.tokens_per_frame), self.rope(frames, frames, x.device)
        recompute = self.use_activation_checkpointing and torch.is_grad_enabled()
        for block in self.predictor_blocks:
            if recompute:
                x = checkpoint(block, x, attn_mask=mask, rope=rope, use_reentrant=False)
            else:
                x = block(x, attn_mask=mask, rope=rope)
        return self._patches_out(x)

    @torch.no_grad()
    def extend(
        self, cache: KVCache, x: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None
    ) -> Tensor:
        """`forward` for the frames that follow those in `cache`, whose keys and values are not computed again.

        Shapes: `x` (B, t * P, D), actions, states and extrinsics of these t frames alone; any of them may have batch size 1
        and is then shared by the cache's batch. Returns their predictions (B, t * P, D), equal to the last t frames of
        `forward` over all frames up to rounding, and leaves their keys and values in `cache`. Without gradient.

        Raises:
            ValueError: as `forward`, or frames beyond the capacity of the cache.
        """
        x = self._interleave(x, actions, states, extrinsics, batch=cache.batch)
        frames = x.shape[1] // self.tokens_per_frame
        first = cache.shared_frames
        queries = range(first + cache.frames, first + cache.frames + frames)
        cache.reserve(frames)
        own = self.rope(range(first, queries.stop), queries, x.device)
        shared = self.rope(range(first), queries, x.device) if first else None
        for layer, module in enumerate(self.predictor_blocks):
            block = cast(Block, module)
            x = x + attend_cached(block.attn, block.norm1(x), cache, layer, frames, own, shared)
            x = x + block.mlp(block.norm2(x))
        cache.commit(frames)
        return self._patches_out(x)

    def new_cache(self, batch: int, frames: int, shared: KVCache | None = None) -> KVCache:
        """An empty cache for `frames` frames of `batch` sequences, which all continue the one sequence in `shared`."""
        return KVCache(len(self.predictor_blocks), self.tokens_per_frame, batch, frames, shared)

    def rope(self, key_frames: range, query_frames: range, device: torch.device) -> Rope3D:
        """Positions of the tokens of these frames, conditioning tokens at (frame, 0, 0)."""
        layout = (self.grid_height, self.grid_width, self.conditioning_tokens, key_frames, query_frames, device)
        if torch.compiler.is_compiling():
            return _rope(*layout)
        with torch.inference_mode(False):  # positions made in inference mode could not be kept for training
            return _kept_rope(*layout)

    def _interleave(
        self, x: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None, batch: int | None = None
    ) -> Tensor:
        """Embedded tokens (B, T * N, W), each frame [action, state, (extrinsics,) patches]."""
        frames = self._check(x, actions, states, extrinsics)
        conditioning = [self.action_encoder(actions), self.state_encoder(states)]
        if self.use_extrinsics:
            conditioning.append(self.extrinsics_encoder(extrinsics))
        patches = self.predictor_embed(x).unflatten(1, (frames, self.patches_per_frame))  # [B, T, P, W]
        parts = [*(tokens.unsqueeze(2) for tokens in conditioning), patches]
        size = max(part.shape[0] for part in parts) if batch is None else batch
        for part in parts:
            if part.shape[0] not in (1, size):
                raise ValueError(f"tokens, actions, states and extrinsics must have batch size {size} or 1; got {part.shape[0]}")
        return torch.cat([part.expand(size, -1, -1, -1) for part in parts], dim=2).flatten(1, 2)

    def _check(self, x: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None) -> int:
        """The number of frames; raises ValueError where the arguments do not fit each other."""
        if x.ndim != 3 or x.shape[2] != self.embed_dim or x.shape[1] % self.patches_per_frame or x.shape[1] == 0:
            raise ValueError(
                f"x must be (B, T * {self.patches_per_frame}, {self.embed_dim}), whole frames of {self.grid_height} x "
                f"{self.grid_width} patches; got {tuple(x.shape)}"
            )
        if (extrinsics is None) == self.use_extrinsics:
            raise ValueError("extrinsics must be given where use_extrinsics is set, and only there")
        frames = x.shape[1] // self.patches_per_frame
        wanted = (("actions", actions, 0), ("states", states, 0), ("extrinsics", extrinsics, 1))
        for name, tensor, less in wanted:
            if tensor is not None and (tensor.ndim != 3 or tensor.shape[1:] != (frames, self.action_embed_dim - less)):
                raise ValueError(
                    f"{name} must be (B, {frames}, {self.action_embed_dim - less}), one row for each of {frames} frames; "
                    f"got {tuple(tensor.shape)}"
                )
        return frames

    def _patches_out(self, x: Tensor) -> Tensor:
        # Conditioning tokens leave here, before the LayerNorm, which acts on each token alone.
        patches = x.unflatten(1, (-1, self.tokens_per_frame))[:, :, self.conditioning_tokens :].flatten(1, 2)
        return self.predictor_proj(self.predictor_norm(patches))


def _rope(
    rows: int, columns: int, conditioning: int, key_frames: range, query_frames: range, device: torch.device
) -> Rope3D:
    keys = _positions(rows, columns, conditioning, key_frames, device)
    if key_frames == query_frames:
        return Rope3D(keys)
    return Rope3D(keys, query_positions=_positions(rows, columns, conditioning, query_frames, device))


# A planner asks for the same few ranges of frames in every iteration of every decision.
_kept_rope = lru_cache(maxsize=64)(_rope)


def _positions(rows: int, columns: int, conditioning: int, frames: range, device: torch.device) -> Tensor:
    ids = torch.arange(frames.start * rows * columns, frames.stop * rows * columns, device=device)
    patches = Rope3D.from_ids(ids, grid=(rows, columns), scale=(1.0, 1.0, rows / columns)).positions
    positions = torch.zeros(len(frames), conditioning + rows * columns, 3, device=device)
    positions[:, conditioning:] = patches.view(len(frames), rows * columns, 3)
    positions[:, :conditioning, 0] = torch.arange(frames.start, frames.stop, device=device, dtype=torch.float32)[:, None]
    return positions.flatten(0, 1)

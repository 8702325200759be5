"""Keys and values of the frames that a frame-causal model has seen, some of them shared by all sequences of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention_masks import FrameCausal
from ..functional.masked_attention import masked_attention, prepare
from ..nn import Attention
from ..ops.masked_attention import masked_attention as attention_operator
from ..rope import Rope3D


class KVCache:
    """Per layer, the keys and values (before rotary embedding) of up to `capacity` frames of `batch` sequences.

    With `shared`, a cache of batch size 1, every sequence continues the frames in it: they are stored once, read by all through
    a stride of 0, and never copied.

    Bytes: 2 * layers * tokens * width elements for each own frame of each sequence; allocated by the first frames that come,
    in their dtype and on their device.

    Raises:
        ValueError: a `shared` cache of another batch size than 1, or one that itself continues another.
    """

    def __init__(
        self, layers: int, tokens_per_frame: int, batch: int, capacity: int, shared: KVCache | None = None
    ) -> None:
        if shared is not None and (shared.batch != 1 or shared.shared is not None):
            raise ValueError(f"a shared cache must hold one sequence of its own; it has batch size {shared.batch}")
        self.tokens_per_frame: int = tokens_per_frame
        self.batch: int = batch
        self.capacity: int = capacity
        self.shared: KVCache | None = shared if shared is not None and shared.frames else None
        self.frames: int = 0
        self._buffers: list[Tensor | None] = [None] * layers

    @property
    def shared_frames(self) -> int:
        return 0 if self.shared is None else self.shared.frames

    def reserve(self, frames: int) -> None:
        """Raises ValueError unless `frames` more fit."""
        if self.frames + frames > self.capacity:
            raise ValueError(f"the cache holds {self.frames} of {self.capacity} frames; {frames} more do not fit")

    def commit(self, frames: int) -> None:
        """Counts frames that every layer has appended."""
        self.frames += frames

    def rewind(self) -> None:
        """Forgets the own frames and keeps their memory for others."""
        self.frames = 0

    def append(self, layer: int, kv: Tensor) -> None:
        """Stores the keys and values (B, n, 2, H, D) of whole frames behind the committed ones."""
        buffer = self._buffers[layer]
        if buffer is None or buffer.dtype != kv.dtype or buffer.device != kv.device:
            buffer = kv.new_empty(self.batch, self.capacity * self.tokens_per_frame, *kv.shape[2:])
            self._buffers[layer] = buffer
        start = self.frames * self.tokens_per_frame
        buffer[:, start : start + kv.shape[1]] = kv

    def read(self, layer: int, frames: int) -> tuple[Tensor, Tensor]:
        """Views (B, H, n, D) of the keys and values of the first `frames` frames."""
        buffer = self._buffers[layer]
        if buffer is None:
            raise ValueError(f"the cache of layer {layer} is empty; append to it first")
        keys, values = buffer[:, : frames * self.tokens_per_frame].unbind(2)
        return keys.transpose(1, 2), values.transpose(1, 2)


def attend_cached(
    attention: Attention, x: Tensor, cache: KVCache, layer: int, frames: int, own: Rope3D, shared: Rope3D | None
) -> Tensor:
    """Attention of `frames` new frames (B, n, W) over themselves and what `cache` holds; their keys and values join it.

    `own` has the positions of the own frames and the queries, `shared` those of the shared frames and the queries.
    """
    batch, tokens, width = x.shape
    qkv = attention.qkv(x).view(batch, tokens, 3, attention.num_heads, attention.head_dim)
    cache.append(layer, qkv[:, :, 1:])
    q = qkv[:, :, 0].transpose(1, 2)
    k, v = cache.read(layer, cache.frames + frames)
    mask = FrameCausal(cache.tokens_per_frame, query_frame_offset=cache.frames)
    if cache.shared is None:
        y = masked_attention(q, k, v, mask=mask, rope=own, scale=attention.scale)
    else:
        older_k, older_v = (part.expand(batch, -1, -1, -1) for part in cache.shared.read(layer, cache.shared.frames))
        y = _merged(
            attention_operator(**prepare(q, k, v, mask=mask, rope=own, scale=attention.scale)),
            attention_operator(**prepare(q, older_k, older_v, rope=shared, scale=attention.scale)),
        )
    return attention.proj(y.transpose(1, 2).reshape(batch, tokens, width))


def _merged(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """One softmax over two sets of keys, from the output and log-sum-exp over each.

    With w = exp(lse_2) / (exp(lse_1) + exp(lse_2)) = sigmoid(lse_2 - lse_1): y = y_1 + w (y_2 - y_1).
    """
    (out, lse), (other, other_lse) = first, second
    weight = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    return torch.lerp(out, other, weight.to(out.dtype))

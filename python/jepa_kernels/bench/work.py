"""FLOP and byte formulas, one per operator and shared by all providers.

Bytes are the least that must move: every input read once and every output written once.
"""

from __future__ import annotations

from collections.abc import Sequence


def patch_embed_flops(tokens: int, patch_values: int, dim: int) -> int:
    """2 * tokens * (C * pt * ph * pw) * D."""
    return 2 * tokens * patch_values * dim


def patch_embed_bytes(
    tokens: int, patch_values: int, dim: int, *, pixel_bytes: int, weight_bytes: int, out_bytes: int
) -> int:
    """Pixels of the kept patches + weight and bias + output."""
    pixels = tokens * patch_values * pixel_bytes
    return pixels + (patch_values + 1) * dim * weight_bytes + tokens * dim * out_bytes


def attention_flops(
    visible_pairs: int, heads: int, head_dim: int, *, forward: bool = True, backward: bool = False
) -> float:
    """4 * d * visible query-key pairs * heads for the forward, 2.5 times that for the backward."""
    return 4 * head_dim * visible_pairs * heads * ((1 if forward else 0) + (2.5 if backward else 0))


def attention_bytes(
    queries: int,
    heads: int,
    head_dim: int,
    *,
    value_bytes: int,
    forward: bool = True,
    backward: bool = False,
    keys: int | None = None,
    visible_keys: int | None = None,
) -> int:
    """Q + O + fp32 log-sum-exp of the queries, K + V of the keys that any of them sees; backward reads them and dO again and
    writes dQ, and dK and dV of all keys. As many keys as queries, all visible, unless told otherwise."""
    keys = queries if keys is None else keys
    visible = keys if visible_keys is None else visible_keys
    row = head_dim * value_bytes
    moved = queries * (2 * row + 4) + visible * 2 * row if forward else 0
    return heads * (moved + (queries * (4 * row + 4) + (visible + keys) * 2 * row if backward else 0))


def frame_causal_pairs(frames: int, tokens_per_frame: int) -> int:
    """Visible pairs when a query sees the keys of its own and of earlier frames."""
    return tokens_per_frame**2 * frames * (frames + 1) // 2


def ragged_pairs(lengths: Sequence[int]) -> int:
    """Visible pairs of sequences that attend within themselves."""
    return sum(n * n for n in lengths)


def ema_flops(elements: int) -> int:
    """3 per element: difference, product, sum."""
    return 3 * elements


def ema_bytes(elements: int, *, online_bytes: int = 4, target_bytes: int = 4) -> int:
    """Target read and written, online read: 12 bytes per fp32 element."""
    return elements * (2 * target_bytes + online_bytes)


def adamw_ema_flops(elements: int) -> int:
    """20 per element: norm 2, scaling 1, moments 7, bias correction, root and quotient 5, decay and step 2, EMA 3."""
    return 20 * elements


def adamw_ema_bytes(elements: int) -> int:
    """Gradient read; parameter, two moments and target read and written; two bf16 copies written: 40 bytes per element."""
    return elements * (4 + 4 * 8 + 2 * 2)


def transformer_flops(
    tokens: int, pairs: int, dim: int, depth: int, *, mlp_ratio: float = 4.0, backward: bool = False
) -> float:
    """Blocks of attention and MLP: (8 + 4r) * tokens * D^2 + 4 * pairs * D per layer; backward doubles the linear
    layers and costs 2.5 times the attention products."""
    linear = (8 + 4 * mlp_ratio) * tokens * dim * dim
    attention = 4 * pairs * dim
    return depth * (linear * (3 if backward else 1) + attention * (3.5 if backward else 1))


def transformer_bytes(
    tokens: int, dim: int, depth: int, *, mlp_ratio: float = 4.0, value_bytes: int, backward: bool = False
) -> float:
    """Blocks whose norms, activations and residuals are fused into the products beside them. Values of a token, forward: x, qkv
    written and read, attention's output likewise, residual read and written, read by the MLP, hidden written and read,
    residual again: (14 + 2r) D. Backward 2.5 times that: every value read again, its gradient written and read. And the
    weights of the products, (4 + 2r) D^2: read, and in backward read and their gradient written."""
    values = tokens * (14 + 2 * mlp_ratio) * dim * (3.5 if backward else 1)
    weights = (4 + 2 * mlp_ratio) * dim * dim * (3 if backward else 1)
    return depth * (values + weights) * value_bytes


def jepa_loss_flops(tokens: int, dim: int, *, backward: bool = False) -> int:
    """8 per element: two sums of the norm (4), the normalised value (2), difference, sum of the penalty; backward has the
    norm and the difference again, and a factor. Absolute values and signs are no FLOPs."""
    return (8 + (8 if backward else 0)) * tokens * dim


def jepa_loss_bytes(tokens: int, dim: int, *, value_bytes: int, backward: bool = False) -> int:
    """Predictions and gathered targets, 8 bytes of id a token; backward writes the gradient. Each input counts once."""
    return tokens * (2 * dim * value_bytes + 8) + (tokens * dim * value_bytes if backward else 0)


def sigreg_flops(sets: int, samples: int, dim: int, slices: int, points: int) -> int:
    """Forward and backward: two matrix products, and per sample and slice 2 x 30 for the sine and cosine of the first angle and,
    a point after the first, 6 and 6 to turn by that angle, 2 for the sums and 4 for the gradient."""
    projections = sets * samples * slices
    return projections * (4 * dim + 18 * (points - 1) + 60)


def sigreg_bytes(sets: int, samples: int, dim: int, slices: int, *, value_bytes: int) -> int:
    """x, its gradient, and the directions, once each."""
    return (2 * sets * samples * dim + dim * slices) * value_bytes


def patch_embed_step_bytes(
    batch: int, tokens: int, kept: Sequence[int], patch_values: int, dim: int, *, fused: bool, normalise: bool = False
) -> int:
    """Bytes that the forward patch embeddings of one JEPA step read and write: all tokens for the target, `kept[m]` an element
    for each mask m of the context. Pixels, tokens and ids count; the weights, the same on both sides, do not.

    Official form, on float32 pixels under bfloat16 autocast: each of its 1 + M calls casts all pixels (4 read, 2 written),
    convolves all patches (2 read) and writes all tokens, channels first. The target's are copied to token order by its
    first LayerNorm (read, written); each mask's are gathered (read, written, 8 bytes of id a token). With `normalise`,
    also the float32 pixels themselves, made from bytes once (1 read, 4 written).
    Fused: the bytes of the pixels, those of kept patches a second time as if no cache held them, and the tokens that are
    kept, with 8 bytes of id each.
    """
    pixels, all_tokens, kept_tokens = batch * tokens * patch_values, batch * tokens * dim * 2, batch * sum(kept)
    if fused:
        return pixels + kept_tokens * patch_values + all_tokens + kept_tokens * (dim * 2 + 8)
    calls = (1 + len(kept)) * (pixels * (4 + 2 + 2) + all_tokens)
    return calls + 2 * all_tokens + kept_tokens * (2 * dim * 2 + 8) + (pixels * (1 + 4) if normalise else 0)

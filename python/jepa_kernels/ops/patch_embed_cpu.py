"""The CPU implementation of `patch_embed`: the native packer makes rows, torch multiplies them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _native
from .patch_embed_shapes import Gradients, result_dtype, token_count

# Rows that are packed and multiplied at a time: 24 MiB of bf16 for a tubelet of 2 x 16 x 16, so that a whole batch is never
# unfolded in memory. Smaller blocks, down to the L2 cache, measured no faster: each product prepares the weight anew.
CPU_ROWS = 8192
# torch sends a 1 x 1 convolution to oneDNN from this batch size on, whatever the number of threads; see `_product`.
_CPU_IMAGES = 16


def supports(pixels, weight, bias, rows, pos_embed, mean, std) -> str | None:
    if pixels.device.type != "cpu":
        return f"cpu kernels need CPU tensors, got {pixels.device}"
    return _native.why_no_cpu()


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    """float16 products run in float32 on CPUs: without float16 arithmetic, oneDNN's float16 product measured 4 times slower."""
    return torch.float32 if dtype == torch.float16 else dtype


def _pack(
    pixels: Tensor,
    weight: Tensor,
    rows: Tensor | None,
    first: int,
    mean: Tensor | None,
    std: Tensor | None,
    out: Tensor,
) -> None:
    """Writes the normalised pixels of `len(out)` patches, beginning at place `first` of `rows`, as rows of `out`."""
    _native.cpu().pack_patches(
        _native.view(pixels.detach()),
        _native.view(None if rows is None else rows[first : first + len(out)]),
        first,
        _native.view(mean),
        _native.view(std),
        *weight.shape[2:],
        _native.view(out),
        torch.get_num_threads(),
    )


def forward(pixels, weight, bias, rows, pos_embed, mean, std) -> Tensor:
    dtype = _product_dtype(weight.dtype)
    matrix = weight.to(dtype).reshape(weight.shape[0], -1)  # [D, K]
    bias = None if bias is None else bias.to(dtype)
    tokens = token_count(pixels, weight)
    count = pixels.shape[0] * tokens if rows is None else rows.shape[0]
    if count <= CPU_ROWS:
        result = _product(_packed(pixels, weight, rows, 0, count, mean, std, dtype), matrix, bias)
    else:
        blocks = ((first, min(count - first, CPU_ROWS)) for first in range(0, count, CPU_ROWS))
        result = torch.cat(
            [_product(_packed(pixels, weight, rows, *block, mean, std, dtype), matrix, bias) for block in blocks]
        )
    return _add_positions(result.to(weight.dtype), rows, pos_embed, tokens)


def forward_pair(
    pixels, weight, bias, pos_embed, kept_weight, kept_bias, kept_pos_embed, rows, mean, std
) -> tuple[Tensor, Tensor]:
    """Packs every patch once, in blocks; the rows that `kept_weight` multiplies are copied out of the packed ones."""
    dtype, kept_dtype = _product_dtype(weight.dtype), _product_dtype(kept_weight.dtype)
    tokens = token_count(pixels, weight)
    count = pixels.shape[0] * tokens
    if dtype != kept_dtype or count > CPU_ROWS:
        # More patches than stay packed: the kept ones are packed again, a twentieth of the time of their product.
        return (
            forward(pixels, weight, bias, None, pos_embed, mean, std),
            forward(pixels, kept_weight, kept_bias, rows, kept_pos_embed, mean, std),
        )
    packed = _packed(pixels, weight, None, 0, count, mean, std, dtype)
    results = []
    for own, own_bias, chosen, positions in (
        (weight, bias, None, pos_embed),
        (kept_weight, kept_bias, rows, kept_pos_embed),
    ):
        own_rows = packed if chosen is None else packed.index_select(0, chosen)
        own_bias = None if own_bias is None else own_bias.to(dtype)
        tokens_of = _product(own_rows, own.to(dtype).reshape(own.shape[0], -1), own_bias)
        results.append(_add_positions(tokens_of.to(own.dtype), chosen, positions, tokens))
    return results[0], results[1]


def _packed(pixels, weight, rows, first, count, mean, std, dtype) -> Tensor:
    """Normalised rows [count, K] of `count` patches, from place `first` of `rows` on."""
    packed = pixels.new_empty((count, weight[0].numel()), dtype=dtype)
    _pack(pixels, weight, rows, first, mean, std, packed)
    return packed


def _product(packed: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """packed [R, K] @ matrix [D, K]^T + bias.

    In float32 as a 1 x 1 convolution over images of one column: torch gives that to oneDNN, a float32 linear to MKL, which on the
    AVX-512 processors of other makers than its own reaches half the speed.
    """
    count, missing = len(packed), -len(packed) % _CPU_IMAGES
    if packed.dtype != torch.float32 or count == 0 or not torch.backends.mkldnn.is_available():
        return F.linear(packed, matrix, bias)
    if missing:
        packed = F.pad(packed, (0, 0, 0, missing))
    images = packed.view(_CPU_IMAGES, -1, 1, packed.shape[1]).permute(0, 3, 1, 2)  # [16, K, R / 16, 1]
    out = F.conv2d(images, matrix[:, :, None, None], bias)  # channels last, as its input
    return out.permute(0, 2, 3, 1).reshape(len(packed), -1)[:count]


def _add_positions(result: Tensor, rows: Tensor | None, pos_embed: Tensor | None, tokens: int) -> Tensor:
    if pos_embed is None or not len(result):
        return result.to(result_dtype(result, pos_embed))
    if rows is None:
        by_element = result.unflatten(0, (-1, tokens))
        return (
            (by_element + pos_embed).flatten(0, 1)
            if result.dtype != pos_embed.dtype
            else by_element.add_(pos_embed).flatten(0, 1)
        )
    return result + pos_embed.index_select(0, rows % tokens)


def backward(grad, pixels, weight, rows, mean, std, pos_dtype, needs) -> Gradients:
    dtype = _product_dtype(weight.dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    dy = grad.to(weight.dtype)  # [R, D]
    tokens = token_count(pixels, weight)
    grad_weight, grad_bias, grad_pos, grad_pixels = (grad.new_empty(0) for _ in needs)
    if needs[0]:
        grad_weight = _weight_gradient(dy.to(dtype), pixels, weight, rows, mean, std)
    if needs[1]:
        grad_bias = dy.sum(0, dtype=exact).to(weight.dtype)
    if needs[2]:
        grad_pos = _position_gradient(grad.to(exact), rows, tokens).to(pos_dtype)
    if needs[3]:
        grad_pixels = torch.empty_like(pixels)
        packed = torch.mm(dy.to(dtype), weight.to(dtype).flatten(1))  # [R, K]
        _native.cpu().unpack_patches(
            _native.view(packed),
            _native.view(rows),
            _native.view(std),
            *weight.shape[2:],
            _native.view(grad_pixels),
            torch.get_num_threads(),
        )
    return grad_weight, grad_bias, grad_pos, grad_pixels


def _weight_gradient(dy, pixels, weight, rows, mean, std) -> Tensor:
    """dY^T X over the kept rows. X is packed again: a thirtieth of the product's time, and only the pixels are kept for it."""
    size = weight[0].numel()
    packed = pixels.new_empty((min(len(dy), CPU_ROWS), size), dtype=dy.dtype)
    if len(dy) <= CPU_ROWS:
        _pack(pixels, weight, rows, 0, mean, std, packed)
        return torch.mm(dy.t(), packed).view(weight.shape).to(weight.dtype)
    exact = torch.promote_types(dy.dtype, torch.float32)
    total = dy.new_zeros((dy.shape[1], size), dtype=exact)
    for first in range(0, len(dy), CPU_ROWS):
        part = dy[first : first + CPU_ROWS]
        block = packed[: len(part)]
        _pack(pixels, weight, rows, first, mean, std, block)
        total += torch.mm(part.t(), block)
    return total.view(weight.shape).to(weight.dtype)


def _position_gradient(grad: Tensor, rows: Tensor | None, tokens: int) -> Tensor:
    """Sum of the rows of each token id; on CPUs index_add_ adds them in order."""
    if rows is None:
        return grad.unflatten(0, (-1, tokens)).sum(0) if len(grad) else grad.new_zeros(tokens, grad.shape[1])
    return grad.new_zeros(tokens, grad.shape[1]).index_add_(0, rows % max(tokens, 1), grad)

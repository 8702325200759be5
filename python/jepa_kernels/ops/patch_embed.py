"""The operator `patch_embed`: schema, fake, autograd and backends.

Pixels are always (B, C, T, H, W), with T = 1 and a weight of pt = 1 for images; `rows` are indices into the B * N patches of the
batch, in the order of the result, below 0 for an id that was out of range; None stands for all patches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _native, backends
from ..reference.patch_embed import embed_rows, embed_rows_backward
from ._library import define
from .registry import Backend, Operator, register

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]  # weight, bias, pos_embed, pixels; empty where not needed
# Rows that the CPU path packs and multiplies at a time: 24 MiB of bf16 for a tubelet of 2 x 16 x 16, so that a whole batch is
# never unfolded in memory. Smaller blocks, down to the L2 cache, measured no faster: each product prepares the weight anew.
_CPU_ROWS = 8192
# torch sends a 1 x 1 convolution to oneDNN from this batch size on, whatever the number of threads; see `_product`.
_CPU_IMAGES = 16


def _tokens(pixels: Tensor, weight: Tensor) -> int:
    """Patches an element of the batch."""
    return math.prod(size // step for size, step in zip(pixels.shape[2:], weight.shape[2:], strict=True))


def _result_dtype(weight: Tensor, pos_embed: Tensor | None) -> torch.dtype:
    return weight.dtype if pos_embed is None else torch.promote_types(weight.dtype, pos_embed.dtype)


def _supports_reference(pixels, weight, bias, rows, pos_embed, mean, std) -> str | None:
    return None


def _supports_cpu(pixels, weight, bias, rows, pos_embed, mean, std) -> str | None:
    if pixels.device.type != "cpu":
        return f"cpu kernels need CPU tensors, got {pixels.device}"
    return _native.why_no_cpu()


def _supports_triton(pixels, weight, bias, rows, pos_embed, mean, std) -> str | None:
    dtypes = {tensor.dtype for tensor in (pixels, weight, pos_embed) if tensor is not None}
    if torch.float64 in dtypes:
        return "the triton kernel computes in float32; float64 tensors run on the reference or cpu backend"
    reach = sum(
        (size - 1) * stride
        for size, stride in zip((pixels.shape[1], *weight.shape[2:]), pixels.stride()[1:], strict=True)
    )
    if max(reach, _tokens(pixels, weight) * weight.shape[0]) >= 2**31:
        return "the triton kernel counts pixels inside a patch, and pos_embed, in 32 bits"
    return backends.why_no_triton(pixels.device, tuple(dtypes))


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


def _cpu_forward(pixels, weight, bias, rows, pos_embed, mean, std) -> Tensor:
    dtype = _product_dtype(weight.dtype)
    matrix = weight.to(dtype).reshape(weight.shape[0], -1)  # [D, K]
    bias = None if bias is None else bias.to(dtype)
    tokens = _tokens(pixels, weight)
    count = pixels.shape[0] * tokens if rows is None else rows.shape[0]
    packed = pixels.new_empty((_padded(min(count, _CPU_ROWS)), matrix.shape[1]), dtype=dtype)
    parts = []
    for first in range(0, count, _CPU_ROWS):
        kept = min(count - first, _CPU_ROWS)
        _pack(pixels, weight, rows, first, mean, std, packed[:kept])
        packed[kept:].zero_()
        parts.append(_product(packed[: _padded(kept)], matrix, bias)[:kept])
    result = parts[0] if len(parts) == 1 else torch.cat([packed.new_empty(0, len(matrix)), *parts])
    return _add_positions(result.to(weight.dtype), rows, pos_embed, tokens)


def _padded(count: int) -> int:
    return -(-count // _CPU_IMAGES) * _CPU_IMAGES


def _product(packed: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """packed [R, K] @ matrix [D, K]^T + bias.

    In float32 as a 1 x 1 convolution over images of one column: torch gives that to oneDNN, a float32 linear to MKL, which on the
    AVX-512 processors of other makers than its own reaches half the speed.
    """
    if packed.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return F.linear(packed, matrix, bias)
    images = packed.view(_CPU_IMAGES, -1, 1, packed.shape[1]).permute(0, 3, 1, 2)  # [16, K, R / 16, 1]
    out = F.conv2d(images, matrix[:, :, None, None], bias)  # channels last, as its input
    return out.permute(0, 2, 3, 1).reshape(packed.shape[0], -1)


def _add_positions(result: Tensor, rows: Tensor | None, pos_embed: Tensor | None, tokens: int) -> Tensor:
    if pos_embed is None or not len(result):
        return result.to(_result_dtype(result, pos_embed))
    if rows is None:
        by_element = result.unflatten(0, (-1, tokens))
        return (
            (by_element + pos_embed).flatten(0, 1)
            if result.dtype != pos_embed.dtype
            else by_element.add_(pos_embed).flatten(0, 1)
        )
    return result + pos_embed.index_select(0, rows % tokens)


def _cpu_backward(grad, pixels, weight, rows, mean, std, pos_dtype, needs) -> Gradients:
    dtype = _product_dtype(weight.dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    dy = grad.to(weight.dtype)  # [R, D]
    tokens = _tokens(pixels, weight)
    grad_weight, grad_bias, grad_pos, grad_pixels = (grad.new_empty(0) for _ in needs)
    if needs[0]:
        grad_weight = _cpu_weight_gradient(dy.to(dtype), pixels, weight, rows, mean, std)
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


def _cpu_weight_gradient(dy, pixels, weight, rows, mean, std) -> Tensor:
    """dY^T X over the kept rows. X is packed again: a thirtieth of the product's time, and only the pixels are kept for it."""
    size = weight[0].numel()
    packed = pixels.new_empty((min(len(dy), _CPU_ROWS), size), dtype=dy.dtype)
    if len(dy) <= _CPU_ROWS:
        _pack(pixels, weight, rows, 0, mean, std, packed)
        return torch.mm(dy.t(), packed).view(weight.shape).to(weight.dtype)
    exact = torch.promote_types(dy.dtype, torch.float32)
    total = dy.new_zeros((dy.shape[1], size), dtype=exact)
    for first in range(0, len(dy), _CPU_ROWS):
        part = dy[first : first + _CPU_ROWS]
        block = packed[: len(part)]
        _pack(pixels, weight, rows, first, mean, std, block)
        total += torch.mm(part.t(), block)
    return total.view(weight.shape).to(weight.dtype)


def _position_gradient(grad: Tensor, rows: Tensor | None, tokens: int) -> Tensor:
    """Sum of the rows of each token id; on CPUs index_add_ adds them in order."""
    if rows is None:
        return grad.unflatten(0, (-1, tokens)).sum(0) if len(grad) else grad.new_zeros(tokens, grad.shape[1])
    return grad.new_zeros(tokens, grad.shape[1]).index_add_(0, rows % max(tokens, 1), grad)


def _triton_forward(pixels, weight, bias, rows, pos_embed, mean, std) -> Tensor:
    from ..kernels import patch_embed as kernel

    count = pixels.shape[0] * _tokens(pixels, weight) if rows is None else rows.shape[0]
    result = pixels.new_empty((count, weight.shape[0]), dtype=_result_dtype(weight, pos_embed))
    bias, pos_embed, mean, std = (_contiguous(values) for values in (bias, pos_embed, mean, std))
    kernel.forward(pixels, weight.contiguous(), bias, rows, pos_embed, mean, std, result)
    return result


def _contiguous(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.contiguous()


def _triton_backward(grad, pixels, weight, rows, mean, std, pos_dtype, needs) -> Gradients:
    from ..kernels import patch_embed as kernel

    tokens = _tokens(pixels, weight)
    grad = grad.contiguous()
    dy = grad.to(weight.dtype)  # [R, D]
    grad_weight, grad_bias, grad_pos, grad_pixels = (grad.new_empty(0) for _ in needs)
    if needs[0]:
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        kernel.backward_weight(dy, pixels, rows, _contiguous(mean), _contiguous(std), grad_weight)
    if needs[1]:
        # The tokens of ids out of range are NaN, and with them often their gradients: filled, not multiplied by zero.
        kept = dy if rows is None else dy.masked_fill((rows < 0).unsqueeze(1), 0)
        grad_bias = kept.sum(0, dtype=torch.float32).to(weight.dtype)
    if needs[2]:
        sums = grad.new_empty((tokens, weight.shape[0]), dtype=torch.float32)
        if rows is None:
            torch.sum(grad.view(-1, tokens, weight.shape[0]), 0, dtype=torch.float32, out=sums)
        else:
            kernel.sum_rows(grad, torch.where(rows >= 0, rows % max(tokens, 1), -1), sums)
        grad_pos = sums.to(pos_dtype)
    if needs[3]:
        grad_pixels = torch.empty_like(pixels)
        if rows is not None:  # repeated ids first add up, in a fixed order, so that each patch is written once
            sums = grad.new_empty((pixels.shape[0] * tokens, weight.shape[0]), dtype=torch.float32)
            dy = kernel.sum_rows(dy, rows, sums).to(weight.dtype)
        kernel.backward_pixels(dy, weight.contiguous(), _contiguous(std), grad_pixels)
    return grad_weight, grad_bias, grad_pos, grad_pixels


OPERATOR = register(
    Operator(
        "patch_embed",
        {
            "reference": Backend(
                "reference", _supports_reference, {"forward": embed_rows, "backward": embed_rows_backward}
            ),
            "cpu": Backend("cpu", _supports_cpu, {"forward": _cpu_forward, "backward": _cpu_backward}),
            "triton": Backend("triton", _supports_triton, {"forward": _triton_forward, "backward": _triton_backward}),
        },
        dtypes={"reference": (torch.float64, *_FLOATS), "cpu": (torch.float64, *_FLOATS), "triton": _FLOATS},
    )
)


def looks_at_values(device: torch.device) -> bool:
    """Whether values are checked: always on a CPU; on a GPU this waits for the device, so only when asked to."""
    return device.type == "cpu" or os.environ.get("JEPA_KERNELS_CHECK") == "1"


def _check_rows(rows: Tensor | None) -> None:
    """Under torch.compile `functional` sees no values: the last look at the ids is here."""
    if rows is not None and looks_at_values(rows.device) and bool((rows < 0).any()):
        raise ValueError(
            f"patch_embed: kept id {int((rows < 0).nonzero()[0])}, counted over all of keep, is out of range; "
            "or keep is RaggedIds whose cu_seqlens do not rise from 0 to the number of ids"
        )


def _forward(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    pos_embed: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
) -> Tensor:
    _check_rows(rows)
    arguments = (pixels, weight, bias, rows, pos_embed, mean, std)
    return backends.resolve(OPERATOR, pixels.device, arguments).functions["forward"](*arguments)


def _fake_forward(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    pos_embed: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
) -> Tensor:
    count = pixels.shape[0] * _tokens(pixels, weight) if rows is None else rows.shape[0]
    return pixels.new_empty((count, weight.shape[0]), dtype=_result_dtype(weight, pos_embed))


def _backward(
    grad: Tensor,
    pixels: Tensor,
    weight: Tensor,
    rows: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    pos_dtype: torch.dtype,
    needs: Sequence[bool],
) -> Gradients:
    backend = backends.resolve(OPERATOR, pixels.device, (pixels, weight, None, rows, None, mean, std))
    return backend.functions["backward"](grad, pixels, weight, rows, mean, std, pos_dtype, needs)


def _fake_backward(
    grad: Tensor,
    pixels: Tensor,
    weight: Tensor,
    rows: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    pos_dtype: torch.dtype,
    needs: Sequence[bool],
) -> Gradients:
    return (
        weight.new_empty(weight.shape) if needs[0] else grad.new_empty(0),
        weight.new_empty(weight.shape[0]) if needs[1] else grad.new_empty(0),
        grad.new_empty(
            (_tokens(pixels, weight), weight.shape[0]) if needs[2] else 0, dtype=pos_dtype if needs[2] else grad.dtype
        ),
        torch.empty_like(pixels) if needs[3] else grad.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pixels, weight, bias, rows, pos_embed, mean, std = inputs
    ctx.save_for_backward(pixels, weight, rows, mean, std)
    ctx.pos_dtype = weight.dtype if pos_embed is None else pos_embed.dtype
    ctx.backend = backends.forced_by_context()


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    pixels, weight, rows, mean, std = ctx.saved_tensors
    needs = [ctx.needs_input_grad[place] for place in (1, 2, 4, 0)]  # weight, bias, pos_embed, pixels
    with backends.reentered(ctx.backend):
        gradients = _patch_embed_backward(grad, pixels, weight, rows, mean, std, ctx.pos_dtype, needs)
    of_weight, of_bias, of_pos, of_pixels = (
        value if needed else None for value, needed in zip(gradients, needs, strict=True)
    )
    return of_pixels, of_weight, of_bias, None, of_pos, None, None


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        "patch_embed: second derivatives are not implemented; use jk.reference.patch_embed for them"
    )


_patch_embed_backward = define(
    "patch_embed_backward(Tensor grad, Tensor pixels, Tensor weight, Tensor? rows, Tensor? mean, Tensor? std, "
    "ScalarType pos_dtype, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    backward=_no_second_derivative,
)
patch_embed = define(
    "patch_embed(Tensor pixels, Tensor weight, Tensor? bias, Tensor? rows, Tensor? pos_embed, Tensor? mean, "
    "Tensor? std) -> Tensor",
    _forward,
    _fake_forward,
    backward=_autograd,
    setup_context=_setup_context,
)

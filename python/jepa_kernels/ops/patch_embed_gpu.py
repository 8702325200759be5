"""The GPU implementations of `patch_embed`: Triton forward and backward; CUDA C++ forward, whose gradients Triton computes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native, backends
from .cuda_paths import path_code
from .patch_embed_shapes import Gradients, patch_reach, result_dtype, token_count

_HALVES = (torch.bfloat16, torch.float16)
# Columns that the CUDA kernel steps by, and of which its table has whole steps.
_CUDA_STEP = 64


def supports_triton(pixels, weight, bias, rows, pos_embed, mean, std) -> str | None:
    dtypes = {tensor.dtype for tensor in (pixels, weight, pos_embed) if tensor is not None}
    if torch.float64 in dtypes:
        return "the triton kernel computes in float32; float64 tensors run on the reference or cpu backend"
    if max(patch_reach(pixels, weight), token_count(pixels, weight) * weight.shape[0]) >= 2**31:
        return "the triton kernel counts pixels inside a patch, and pos_embed, in 32 bits"
    return backends.why_no_triton(pixels.device, tuple(dtypes))


def supports_cuda(pixels, weight, bias, rows, pos_embed, mean, std) -> str | None:
    if pixels.device.type != "cuda":
        return f"cuda kernels need CUDA tensors, got {pixels.device}"
    if weight.dtype not in _HALVES:
        return f"the cuda kernel multiplies in bfloat16 or float16; a {weight.dtype} weight runs on triton"
    if torch.float64 in (pixels.dtype, None if pos_embed is None else pos_embed.dtype):
        return "the cuda kernel computes in float32; float64 pixels and positions run on the reference backend"
    if patch_reach(pixels, weight) >= 2**31:
        return "the cuda kernel counts pixels inside a patch in 32 bits"
    if torch.cuda.get_device_capability(pixels.device) < (8, 0):
        return "the cuda kernel needs compute capability 8.0 or later"
    return _native.why_no_cuda()


def triton_forward(pixels, weight, bias, rows, pos_embed, mean, std) -> Tensor:
    from ..kernels import patch_embed as kernel

    count = pixels.shape[0] * token_count(pixels, weight) if rows is None else rows.shape[0]
    result = pixels.new_empty((count, weight.shape[0]), dtype=result_dtype(weight, pos_embed))
    bias, pos_embed, mean, std = (_contiguous(values) for values in (bias, pos_embed, mean, std))
    kernel.forward(pixels, weight.contiguous(), bias, rows, pos_embed, mean, std, result)
    return result


def _contiguous(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.contiguous()


def triton_backward(grad, pixels, weight, rows, mean, std, pos_dtype, needs) -> Gradients:
    from ..kernels import patch_embed as kernel

    tokens = token_count(pixels, weight)
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


def cuda_forward(pixels, weight, bias, rows, pos_embed, mean, std) -> Tensor:
    count = pixels.shape[0] * token_count(pixels, weight) if rows is None else rows.shape[0]
    result = pixels.new_empty((count, weight.shape[0]), dtype=result_dtype(weight, pos_embed))
    interleaved = _is_interleaved(pixels)
    matrix = _cuda_matrix(weight, interleaved)
    steps = -(-weight[0].numel() // _CUDA_STEP)
    table = torch.empty((steps * _CUDA_STEP, 4), dtype=torch.int32, device=pixels.device)
    # Named, so that contiguous copies live until the launch.
    bias, rows, pos_embed, mean, std = (_contiguous(values) for values in (bias, rows, pos_embed, mean, std))
    _native.cuda().patch_embed(
        *(_native.view(tensor) for tensor in (pixels, matrix, bias, rows, pos_embed, mean, std, table, result)),
        *weight.shape[2:],
        interleaved,
        path_code("patch_embed", pixels.device),
        torch.cuda.current_stream(pixels.device).cuda_stream,
    )
    return result


def _is_interleaved(pixels: Tensor) -> bool:
    """Whether the channels of a pixel are adjacent, as decoders write them: then whole lines of a patch are."""
    channels = pixels.shape[1]
    return channels > 1 and pixels.stride(1) == 1 and pixels.stride(4) == channels


def _cuda_matrix(weight: Tensor, interleaved: bool) -> Tensor:
    """The weight as [D, K], columns in the pixels' order, padded to rows of whole 16 bytes: a copy only where one is needed."""
    matrix = (weight.movedim(1, -1) if interleaved else weight).flatten(1)
    padding = -matrix.shape[1] % 8
    if padding:
        return torch.nn.functional.pad(matrix, (0, padding))
    matrix = matrix.contiguous()
    return matrix.clone() if matrix.data_ptr() % 16 else matrix  # a view into a flat buffer of parameters


def cuda_backward(grad, pixels, weight, rows, mean, std, pos_dtype, needs) -> Gradients:
    """There is no CUDA C++ weight gradient: a forced backend that falls back in silence would be timed as what it is not, so
    the hand-over to Triton is part of this backend's definition, and where Triton is absent it says so."""
    reason = backends.why_no_triton(pixels.device, (pixels.dtype, weight.dtype))
    if reason is not None:
        raise backends.BackendError(f"patch_embed: gradients of the cuda backend are computed by triton: {reason}")
    return triton_backward(grad, pixels, weight, rows, mean, std, pos_dtype, needs)

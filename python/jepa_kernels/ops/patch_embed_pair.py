"""The operator `patch_embed_pair`: tokens of all patches by one set of weights and of kept patches by another, in one call.

Arguments are those of `patch_embed` (see there), the weights twice. Gradients are those of two patch embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..reference.patch_embed import embed_rows
from . import patch_embed_cpu as on_cpu
from . import patch_embed_gpu as on_gpu
from ._library import define
from .patch_embed import FLOATS, check_rows, patch_embed_backward
from .patch_embed_shapes import result_dtype, token_count
from .registry import Backend, Operator, register


def _supports_reference(*arguments: Any) -> str | None:
    return None


def _supports_cpu(pixels, weight, bias, pos_embed, kept_weight, kept_bias, kept_pos_embed, rows, mean, std) -> str | None:
    return on_cpu.supports(pixels, weight, bias, None, pos_embed, mean, std)


def _supports_triton(pixels, weight, bias, pos_embed, kept_weight, kept_bias, kept_pos_embed, rows, mean, std) -> str | None:
    if kept_weight.dtype != weight.dtype:
        return f"the triton kernel multiplies by two weights of one type, got {weight.dtype} and {kept_weight.dtype}"
    return on_gpu.supports_triton(pixels, weight, bias, None, pos_embed, mean, std) or on_gpu.supports_triton(
        pixels, kept_weight, kept_bias, rows, kept_pos_embed, mean, std
    )


def _reference(
    pixels, weight, bias, pos_embed, kept_weight, kept_bias, kept_pos_embed, rows, mean, std
) -> tuple[Tensor, Tensor]:
    return (
        embed_rows(pixels, weight, bias, None, pos_embed, mean, std),
        embed_rows(pixels, kept_weight, kept_bias, rows, kept_pos_embed, mean, std),
    )


def _triton(
    pixels, weight, bias, pos_embed, kept_weight, kept_bias, kept_pos_embed, rows, mean, std
) -> tuple[Tensor, Tensor]:
    from ..kernels import patch_embed_pair as kernel

    patches = pixels.shape[0] * token_count(pixels, weight)
    every = pixels.new_empty((patches, weight.shape[0]), dtype=result_dtype(weight, pos_embed))
    kept = pixels.new_empty((rows.shape[0], kept_weight.shape[0]), dtype=result_dtype(kept_weight, kept_pos_embed))
    values = (weight, bias, pos_embed, kept_weight, kept_bias, kept_pos_embed, mean, std)
    dense = [None if tensor is None else tensor.contiguous() for tensor in values]
    kernel.forward(pixels, *dense[:3], every, *dense[3:6], rows, kept, *dense[6:])
    return every, kept


OPERATOR = register(
    Operator(
        "patch_embed_pair",
        {
            "reference": Backend("reference", _supports_reference, {"forward": _reference}),
            "cpu": Backend("cpu", _supports_cpu, {"forward": on_cpu.forward_pair}),
            "triton": Backend("triton", _supports_triton, {"forward": _triton}),
        },
        dtypes={"reference": (torch.float64, *FLOATS), "cpu": (torch.float64, *FLOATS), "triton": FLOATS},
        native="patch_embed",
    )
)


def _forward(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pos_embed: Tensor | None,
    kept_weight: Tensor,
    kept_bias: Tensor | None,
    kept_pos_embed: Tensor | None,
    rows: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
) -> tuple[Tensor, Tensor]:
    check_rows(rows)
    arguments = (pixels, weight, bias, pos_embed, kept_weight, kept_bias, kept_pos_embed, rows, mean, std)
    return backends.resolve(OPERATOR, pixels.device, arguments).functions["forward"](*arguments)


def _fake_forward(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pos_embed: Tensor | None,
    kept_weight: Tensor,
    kept_bias: Tensor | None,
    kept_pos_embed: Tensor | None,
    rows: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
) -> tuple[Tensor, Tensor]:
    patches = pixels.shape[0] * token_count(pixels, weight)
    return (
        pixels.new_empty((patches, weight.shape[0]), dtype=result_dtype(weight, pos_embed)),
        pixels.new_empty((rows.shape[0], kept_weight.shape[0]), dtype=result_dtype(kept_weight, kept_pos_embed)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    pixels, weight, _, pos_embed, kept_weight, _, kept_pos_embed, rows, mean, std = inputs
    ctx.save_for_backward(pixels, weight, kept_weight, rows, mean, std)
    ctx.pos_dtypes = [
        own.dtype if position is None else position.dtype
        for own, position in ((weight, pos_embed), (kept_weight, kept_pos_embed))
    ]
    ctx.backend = backends.forced_by_context()
    ctx.set_materialize_grads(False)  # a target encoder's tokens usually have no gradient


def _autograd(ctx: Any, grad: Tensor | None, kept_grad: Tensor | None) -> tuple[Tensor | None, ...]:
    pixels, weight, kept_weight, rows, mean, std = ctx.saved_tensors
    needs_pixels = ctx.needs_input_grad[0]
    found: list[Tensor | None] = [None] * 10
    parts = ((grad, weight, None, 1, ctx.pos_dtypes[0]), (kept_grad, kept_weight, rows, 4, ctx.pos_dtypes[1]))
    with backends.reentered(ctx.backend):
        for of_tokens, own, chosen, place, pos_dtype in parts:
            needs = [*ctx.needs_input_grad[place : place + 3], needs_pixels]
            if of_tokens is None or not any(needs):
                continue
            gradients = patch_embed_backward(of_tokens, pixels, own, chosen, mean, std, pos_dtype, needs)
            for offset in range(3):
                found[place + offset] = gradients[offset] if needs[offset] else None
            if needs_pixels:
                found[0] = gradients[3] if found[0] is None else found[0] + gradients[3]
    return tuple(found)


patch_embed_pair = define(
    "patch_embed_pair(Tensor pixels, Tensor weight, Tensor? bias, Tensor? pos_embed, Tensor kept_weight, "
    "Tensor? kept_bias, Tensor? kept_pos_embed, Tensor rows, Tensor? mean, Tensor? std) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    backward=_autograd,
    setup_context=_setup_context,
)

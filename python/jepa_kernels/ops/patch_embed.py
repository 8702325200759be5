"""The operator `patch_embed`: schema, fake, autograd and backends.

Pixels are always (B, C, T, H, W), with T = 1 and a weight of pt = 1 for images; `rows` are indices into the B * N patches of the
batch, in the order of the result, below 0 for an id that was out of range; None stands for all patches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..reference.patch_embed import embed_rows, embed_rows_backward
from . import patch_embed_cpu as on_cpu
from . import patch_embed_gpu as on_gpu
from ._library import define
from .patch_embed_shapes import Gradients, result_dtype, token_count
from .plans import needs_dispatcher
from .registry import Backend, Operator, register

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def _supports_reference(pixels, weight, bias, rows, pos_embed, mean, std) -> str | None:
    return None


OPERATOR = register(
    Operator(
        "patch_embed",
        {
            "reference": Backend(
                "reference", _supports_reference, {"forward": embed_rows, "backward": embed_rows_backward}
            ),
            "cpu": Backend("cpu", on_cpu.supports, {"forward": on_cpu.forward, "backward": on_cpu.backward}),
            "triton": Backend(
                "triton", on_gpu.supports_triton, {"forward": on_gpu.triton_forward, "backward": on_gpu.triton_backward}
            ),
            "cuda": Backend(
                "cuda", on_gpu.supports_cuda, {"forward": on_gpu.cuda_forward, "backward": on_gpu.cuda_backward}
            ),
        },
        dtypes={
            "reference": (torch.float64, *FLOATS),
            "cpu": (torch.float64, *FLOATS),
            "triton": FLOATS,
            "cuda": (torch.bfloat16, torch.float16),
        },
    )
)


def looks_at_values(device: torch.device) -> bool:
    """Whether values are checked: always on a CPU; on a GPU this waits for the device, so only when asked to."""
    return device.type == "cpu" or os.environ.get("JEPA_KERNELS_CHECK") == "1"


def check_rows(rows: Tensor | None) -> None:
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
    arguments = (pixels, weight, bias, rows, pos_embed, mean, std)
    backend = backends.resolve(OPERATOR, pixels.device, arguments)
    if backend.name != "cpu":  # whose packer looks at every id itself
        check_rows(rows)
    return backend.functions["forward"](*arguments)


def _fake_forward(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    pos_embed: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
) -> Tensor:
    count = pixels.shape[0] * token_count(pixels, weight) if rows is None else rows.shape[0]
    return pixels.new_empty((count, weight.shape[0]), dtype=result_dtype(weight, pos_embed))


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
            (token_count(pixels, weight), weight.shape[0]) if needs[2] else 0, dtype=pos_dtype if needs[2] else grad.dtype
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
        gradients = patch_embed_backward(grad, pixels, weight, rows, mean, std, ctx.pos_dtype, needs)
    of_weight, of_bias, of_pos, of_pixels = (
        value if needed else None for value, needed in zip(gradients, needs, strict=True)
    )
    return of_pixels, of_weight, of_bias, None, of_pos, None, None


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        "patch_embed: second derivatives are not implemented; use jk.reference.patch_embed for them"
    )


patch_embed_backward = define(
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


def embed(arguments: dict[str, Any]) -> Tensor:
    """The operator; past torch's dispatcher where nothing asks for it: on a CPU that is a tenth of the time of embedding a masked
    clip."""
    values = arguments.values()
    return patch_embed(*values) if needs_dispatcher(*values) else _forward(*values)

"""The operator `masked_attention`: schemas, fakes, autograd and backends, for separate and for packed q, k, v."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _native, backends
from ..reference.masked_attention import backward as reference_backward
from ..reference.masked_attention import forward as reference_forward
from . import masked_attention_cuda as on_cuda
from ._library import define
from .plans import needs_dispatcher
from .registry import Backend, Operator, register

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256


class Extras(NamedTuple):
    """What follows q, k and v in every schema. At most one kind of mask is set; the tables are all set, or none."""

    bool_mask: Tensor | None  # (B, H, Nq, Nk) by strides, True = attend
    key_lengths: Tensor | None  # int32 (B,)
    cu_seqlens: Tensor | None  # int32 (S + 1,), with B = 1
    max_seqlen: int
    tokens_per_frame: int  # 0: not frame-causal
    query_frame_offset: int
    q_cos: Tensor | None  # (P, Nq, D), P = 1 or B
    q_sin: Tensor | None
    k_cos: Tensor | None  # (P, Nk, D)
    k_sin: Tensor | None
    scale: float


_EXTRAS = (
    "Tensor? bool_mask, Tensor? key_lengths, Tensor? cu_seqlens, SymInt max_seqlen, SymInt tokens_per_frame, "
    "SymInt query_frame_offset, Tensor? q_cos, Tensor? q_sin, Tensor? k_cos, Tensor? k_sin, float scale"
)
_TENSOR_EXTRAS = tuple(index for index, entry in enumerate(_EXTRAS.split(", ")) if entry.startswith("Tensor"))


def _supports_reference(q, k, v, *extras) -> str | None:
    return None


def _supports_cpu(q, k, v, *extras) -> str | None:
    if q.device.type != "cpu":
        return f"cpu kernels need CPU tensors, got {q.device}"
    return _why_not_kernel(q) or _native.why_no_cpu()


def _supports_triton(q, k, v, *extras) -> str | None:
    return _why_not_kernel(q) or backends.why_no_triton(q.device, (q.dtype,))


def _why_not_kernel(q: Tensor) -> str | None:
    if q.dtype not in _FLOATS:
        return f"the kernels compute in float32; {q.dtype} runs on the reference backend"
    if q.shape[-1] % 2 != 0 or q.shape[-1] > MAX_HEAD_DIM:
        return f"head dim {q.shape[-1]}: the kernels take even sizes up to {MAX_HEAD_DIM}"
    return None


def _forward_reference(q, k, v, out, lse, extras) -> None:
    result, log_sum_exp = reference_forward(q, k, v, **extras._asdict())
    out.copy_(result)
    lse.copy_(log_sum_exp)


def _backward_reference(dout, q, k, v, out, lse, dq, dk, dv, extras) -> None:
    gradients = reference_backward(dout, q, k, v, out, lse, **extras._asdict())
    for written, gradient in zip((dq, dk, dv), gradients, strict=True):
        written.copy_(gradient)


def _forward_cpu(q, k, v, out, lse, extras) -> None:
    views = map(_native.view, (q, k, v, out, lse))
    _native.cpu().masked_attention_forward(*views, *_native_extras(extras), torch.get_num_threads())


def _backward_cpu(dout, q, k, v, out, lse, dq, dk, dv, extras) -> None:
    views = map(_native.view, (dout, q, k, v, out, lse, dq, dk, dv))
    _native.cpu().masked_attention_backward(*views, *_native_extras(extras), torch.get_num_threads())


def _native_extras(extras: Extras) -> list[Any]:
    values: tuple[Any, ...] = extras
    return [_native.view(value) if index in _TENSOR_EXTRAS else value for index, value in enumerate(values)]


def _forward_triton(q, k, v, out, lse, extras) -> None:
    from ..kernels import masked_attention as kernel

    kernel.forward(q, k, v, out, lse, **extras._asdict())


def _backward_triton(dout, q, k, v, out, lse, dq, dk, dv, extras) -> None:
    from ..kernels import masked_attention as kernel

    kernel.backward(dout, q, k, v, out, lse, dq, dk, dv, **extras._asdict())


OPERATOR = register(
    Operator(
        "masked_attention",
        {
            "reference": Backend(
                "reference", _supports_reference, {"forward": _forward_reference, "backward": _backward_reference}
            ),
            "cpu": Backend("cpu", _supports_cpu, {"forward": _forward_cpu, "backward": _backward_cpu}),
            "triton": Backend("triton", _supports_triton, {"forward": _forward_triton, "backward": _backward_triton}),
            "cuda": Backend(
                "cuda", on_cuda.supports, {"forward": on_cuda.forward, "backward": on_cuda.backward}
            ),
        },
        dtypes={"reference": (torch.float64, *_FLOATS), "cpu": _FLOATS, "triton": _FLOATS, "cuda": on_cuda.DTYPES},
    )
)


def _heads_last(x: Tensor) -> Tensor:
    """An empty tensor of x's shape (B, H, N, D) in the memory order B, N, H, D, so that merging the heads is a view."""
    batch, heads, tokens, channels = x.shape
    return x.new_empty(batch, tokens, heads, channels).transpose(1, 2)


def _new_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _heads_last(q), q.new_empty(q.shape[:3], dtype=lse_dtype)


def _new_gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _heads_last(q), _heads_last(k), _heads_last(v)


def _split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views (B, H, N, D) of packed (B, N, 3, H, D)."""
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    return q, k, v


def _unit_stride(x: Tensor) -> Tensor:
    """x with neighbouring channels side by side in memory, as kernels read them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _check_values(q: Tensor, k: Tensor, extras: Extras) -> None:
    """Raises ValueError for lengths that lead outside a tensor. On a GPU that would wait for the device: only on request."""
    if q.device.type != "cpu" and os.environ.get("JEPA_KERNELS_CHECK") != "1":
        return
    if extras.key_lengths is not None:
        for index, length in enumerate(extras.key_lengths.tolist()):
            if not 0 <= length <= k.shape[2]:
                raise ValueError(
                    f"masked_attention: KeyPadding.lengths[{index}] is {length}; it must lie in [0, {k.shape[2]}], the key count"
                )
    if extras.cu_seqlens is not None:
        _check_cu_seqlens(extras.cu_seqlens.tolist(), extras.max_seqlen, q.shape[2])


def _check_cu_seqlens(bounds: list[int], max_seqlen: int, total: int) -> None:
    if bounds[0] != 0 or bounds[-1] != total:
        raise ValueError(
            f"masked_attention: Ragged.cu_seqlens run from {bounds[0]} to {bounds[-1]}; they must run from 0 to {total}"
        )
    for index, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        if stop < start:
            raise ValueError(
                f"masked_attention: Ragged.cu_seqlens falls from {start} to {stop} at index {index + 1}; it must ascend"
            )
        if stop - start > max_seqlen:
            raise ValueError(
                f"masked_attention: sequence {index} has {stop - start} tokens, more than Ragged.max_seqlen = {max_seqlen}"
            )


def _run_forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, extras: Extras) -> None:
    _check_values(q, k, extras)
    implementation = backends.resolve(OPERATOR, q.device, (q, k, v, *extras))
    if out.numel() == 0 or k.numel() == 0:
        out.zero_()
        lse.fill_(float("-inf"))
        return
    implementation.functions["forward"](*map(_unit_stride, (q, k, v)), out, lse, extras)


def _run_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: tuple[Tensor, ...],
    extras: Extras,
) -> None:
    implementation = backends.resolve(OPERATOR, q.device, (q, k, v, *extras))
    if out.numel() == 0 or k.numel() == 0:
        for gradient in gradients:
            gradient.zero_()
        return
    read = map(_unit_stride, (dout, q, k, v, out))
    implementation.functions["backward"](*read, lse, *gradients, extras)


def _forward(q: Tensor, k: Tensor, v: Tensor, *extras: Any) -> tuple[Tensor, Tensor]:
    out, lse = _new_outputs(q)
    _run_forward(q, k, v, out, lse, Extras(*extras))
    return out, lse


def _forward_packed(qkv: Tensor, *extras: Any) -> tuple[Tensor, Tensor]:
    return _forward(*_split(qkv), *extras)


def _backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *extras: Any
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _new_gradients(q, k, v)
    _run_backward(dout, q, k, v, out, lse, gradients, Extras(*extras))
    return gradients


def _backward_packed(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, *extras: Any) -> Tensor:
    dqkv = qkv.new_empty(qkv.shape)
    _run_backward(dout, *_split(qkv), out, lse, _split(dqkv), Extras(*extras))
    return dqkv


def _fake(q: Tensor, k: Tensor, v: Tensor, *extras: Any) -> tuple[Tensor, Tensor]:
    return _new_outputs(q)


def _fake_packed(qkv: Tensor, *extras: Any) -> tuple[Tensor, Tensor]:
    return _new_outputs(_split(qkv)[0])


def _fake_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _new_gradients(q, k, v)


def _fake_backward_packed(dout: Tensor, qkv: Tensor, *rest: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    out, lse = output
    leading = inputs[: len(inputs) - len(Extras._fields)]
    extras = inputs[len(leading) :]
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*leading, out, lse, *(extras[index] for index in _TENSOR_EXTRAS))
    ctx.scalars = tuple(value for index, value in enumerate(extras) if index not in _TENSOR_EXTRAS)
    ctx.leading = len(leading)
    ctx.backend = backends.forced_by_context()


def _restore(ctx: Any) -> tuple[tuple[Tensor, ...], list[Any]]:
    """(leading inputs, out, lse) and the extras in schema order."""
    saved = ctx.saved_tensors
    tensors, scalars = iter(saved[ctx.leading + 2 :]), iter(ctx.scalars)
    extras = [next(tensors if index in _TENSOR_EXTRAS else scalars) for index in range(len(Extras._fields))]
    return saved[: ctx.leading + 2], extras


def _differentiate(ctx: Any, dout: Tensor | None, _: None) -> tuple[Any, ...]:
    tensors, extras = _restore(ctx)
    if dout is None:
        return (None,) * (ctx.leading + len(extras))
    backward = masked_attention_backward if ctx.leading == 3 else masked_attention_packed_backward
    with backends.reentered(ctx.backend):
        gradients = backward(dout, *tensors, *extras)
    if isinstance(gradients, Tensor):
        gradients = (gradients,)
    return (*gradients, *(None for _ in extras))


def _second_derivative(ctx: Any, *gradients: Any) -> Any:
    raise RuntimeError("masked_attention: second derivatives are not implemented; use jk.reference.masked_attention")


masked_attention = define(
    f"masked_attention(Tensor q, Tensor k, Tensor v, {_EXTRAS}) -> (Tensor out, Tensor lse)",
    _forward,
    _fake,
    backward=_differentiate,
    setup_context=_setup_context,
)
masked_attention_packed = define(
    f"masked_attention_packed(Tensor qkv, {_EXTRAS}) -> (Tensor out, Tensor lse)",
    _forward_packed,
    _fake_packed,
    backward=_differentiate,
    setup_context=_setup_context,
)
masked_attention_backward = define(
    "masked_attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_EXTRAS}) -> (Tensor dq, Tensor dk, Tensor dv)",
    _backward,
    _fake_backward,
    backward=_second_derivative,
)
masked_attention_packed_backward = define(
    f"masked_attention_packed_backward(Tensor dout, Tensor qkv, Tensor out, Tensor lse, {_EXTRAS}) -> Tensor",
    _backward_packed,
    _fake_backward_packed,
    backward=_second_derivative,
)


def attend(packed: Tensor | None, arguments: dict[str, Any]) -> Tensor:
    """The output of the operator for `packed` qkv, or, where that is None, for the arguments' q, k and v; past torch's dispatcher
    where nothing asks for it."""
    q, k, v, *extras = arguments.values()
    if not needs_dispatcher(q, k, v, *extras):
        return _forward(q, k, v, *extras)[0]
    return (masked_attention(q, k, v, *extras) if packed is None else masked_attention_packed(packed, *extras))[0]

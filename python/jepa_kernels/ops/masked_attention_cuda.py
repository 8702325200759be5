"""`masked_attention` in CUDA C++: the forward, in 16-bit types and the head dims it was compiled for; gradients are by Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _native, backends
from .cuda_paths import CUDA_PATHS, path_code

DTYPES = (torch.bfloat16, torch.float16)
HEAD_DIMS = (32, 64, 80, 88)  # csrc/cuda/masked_attention_launch.h instantiates these
_ALIGNMENT = 16  # bytes a load


def supports(q: Tensor, k: Tensor, v: Tensor, *extras: Any) -> str | None:
    if q.device.type != "cuda":
        return f"cuda kernels need CUDA tensors, got {q.device}"
    reason = why_not_kernel(q, bool_mask=extras[0]) or _native.why_no_cuda()
    if reason is not None:
        return reason
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return "the cuda kernel needs compute capability 8.0 or later"
    return why_no_gradient(q, k, v)


def why_not_kernel(q: Tensor, bool_mask: Tensor | None) -> str | None:
    """What the sources do not hold, on whatever device."""
    if q.dtype not in DTYPES:
        return f"the cuda kernel multiplies in bfloat16 or float16; {q.dtype} runs on triton"
    if q.shape[-1] not in HEAD_DIMS:
        return f"head dim {q.shape[-1]}: the cuda kernel is compiled for {', '.join(map(str, HEAD_DIMS))}; others run on triton"
    if bool_mask is not None:
        return "the cuda kernel has no boolean masks, which are no limit a query; they run on triton"
    return None


def why_no_gradient(*inputs: Tensor) -> str | None:
    """The reason why inputs that want a gradient would not get one."""
    if not any(x.requires_grad for x in inputs):
        return None
    reason = backends.why_no_triton(inputs[0].device, (inputs[0].dtype,))
    return None if reason is None else f"gradients of the cuda backend are computed by triton: {reason}"


def forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, extras: Any) -> None:
    if extras.cu_seqlens is not None:
        # Lengths on a GPU are not looked at: rows of a sequence beyond max_seqlen come out as NaN, since no block writes them.
        out.fill_(float("nan"))
        lse.fill_(float("nan"))
    # Named, so that copies live until the launch.
    path = path_code("masked_attention", q.device)
    q = _readable(q)
    # The copy engine's maps are documented for strides that leave no two elements in one place.
    k, v = (_readable(x, repeats=path == CUDA_PATHS["warp"]) for x in (k, v))
    masks = [_contiguous(x) for x in (extras.key_lengths, extras.cu_seqlens)]
    tables = [_contiguous(x) for x in (extras.q_cos, extras.q_sin, extras.k_cos, extras.k_sin)]
    rotated_k = None if extras.k_cos is None else k.new_empty(k.shape)
    _native.cuda().masked_attention_forward(
        *(_native.view(x) for x in (q, k, v, out, lse, rotated_k, *masks)),
        extras.max_seqlen,
        extras.tokens_per_frame,
        extras.query_frame_offset,
        *(_native.view(x) for x in tables),
        extras.scale,
        path,
        torch.cuda.current_stream(q.device).cuda_stream,
    )


def _readable(x: Tensor, repeats: bool = True) -> Tensor:
    """x, or a copy of it where a row does not start at a multiple of the 16 bytes that the kernel loads at once; and, unless the
    kernel takes `repeats`, where one row stands for many, as after `expand`."""
    step = _ALIGNMENT // x.element_size()
    rows = zip(x.shape[:-1], x.stride()[:-1], strict=True)
    readable = all(size == 1 or (stride % step == 0 and (repeats or stride > 0)) for size, stride in rows)
    return x if readable and x.data_ptr() % _ALIGNMENT == 0 else x.clone(memory_format=torch.contiguous_format)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def backward(dout, q, k, v, out, lse, dq, dk, dv, extras) -> None:
    """There is no CUDA C++ backward: that Triton computes it is part of this backend's definition, and no fallback."""
    reason = backends.why_no_triton(q.device, (q.dtype,))
    if reason is not None:
        raise backends.BackendError(f"masked_attention: gradients of the cuda backend are computed by triton: {reason}")
    from ..kernels import masked_attention as kernel

    kernel.backward(dout, q, k, v, out, lse, dq, dk, dv, **extras._asdict())

"""PyTorch's other attentions as providers: each backend of SDPA by itself, FlexAttention, and attention of unequal lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from ..backends import BackendError
from ..reference.masked_attention import rotate

if TYPE_CHECKING:
    from .cases.base import Provider

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def sdpa_backends(base: Provider, device: torch.device) -> list[Provider]:
    """On a GPU, the provider once for each backend that SDPA can be held to; on a CPU there is no choice."""
    if device.type != "cuda":
        return []
    return [
        replace(base, name=f"{base.name}-{name}", context=partial(forced, backend), about=f"SDPA held to {name}")
        for name, backend in BACKENDS.items()
    ]


@contextmanager
def forced(backend: SDPBackend) -> Iterator[None]:
    """Only this backend inside; where it cannot run the inputs, `BackendError` instead of SDPA's or cuDNN's RuntimeError."""
    with sdpa_kernel(backend):
        try:
            yield
        except RuntimeError as error:
            if "No available kernel" in str(error):
                raise BackendError(f"SDPA has no {backend.name} kernel for these inputs") from error
            if backend == SDPBackend.CUDNN_ATTENTION and "cudnn_frontend" in str(error):
                raise BackendError(f"cuDNN has no plan for these inputs: {str(error)[:200]}") from error
            raise


def frame_causal_blocks(tokens: int, tokens_per_frame: int, device: torch.device) -> BlockMask:
    """The rule of `jk.FrameCausal` as FlexAttention takes it: a query sees its own and earlier frames."""

    def visible(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key // tokens_per_frame <= query // tokens_per_frame

    return create_block_mask(visible, None, None, tokens, tokens, device=str(device))


def document_blocks(lengths: Sequence[int], device: torch.device) -> BlockMask:
    """The rule of `jk.Ragged` as FlexAttention takes it: tokens of one sequence see each other."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)

    def visible(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return document[query] == document[key]

    return create_block_mask(visible, None, None, len(document), len(document), device=str(device))


def varlen_attention() -> Callable[..., Any] | None:
    """PyTorch's attention over sequences of unequal lengths, or None where this version has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return cast("Callable[..., Any]", varlen_attn)


def varlen_runs(device: torch.device) -> str | None:
    """Why `varlen_attn` is not measured here, or None."""
    if varlen_attention() is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    return None if device.type == "cuda" else "varlen_attn has kernels for GPUs alone"


@lru_cache
def compiled_rotation() -> Callable[..., Any]:
    """RoPE of q and k from tables of cosines and sines, fused by the compiler."""
    return torch.compile(rotate_both, dynamic=False)


def rotate_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k (B, H, N, D), rotated by one pair of tables."""
    return rotate(q, cos, sin), rotate(k, cos, sin)


@lru_cache
def compiled_flex() -> Callable[..., Any]:
    """FlexAttention is meant to be compiled: uncompiled it builds all scores."""
    return torch.compile(flex_attention, dynamic=False)


def flex(q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask | None, *, compiled: bool = True) -> Tensor:
    """FlexAttention on (B, H, N, D) views."""
    run = compiled_flex() if compiled else cast("Callable[..., Any]", flex_attention)
    out: Tensor = run(q, k, v, block_mask=blocks)
    return out


def flex_runs(device: torch.device) -> str | None:
    """Why FlexAttention is not measured on this device, or None."""
    return None if device.type == "cuda" else "FlexAttention has no backward on CPUs; it is measured on GPUs"

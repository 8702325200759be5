"""EMA target update in plain PyTorch: the definition of what is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def ema_update_(
    targets: Sequence[Tensor],
    online: Sequence[Tensor],
    momentum: float | Tensor,
    *,
    shadows: Sequence[Tensor] | None = None,
    stochastic_rounding: bool = False,
    seed: int | Tensor | None = None,
) -> None:
    """The unfused twin of `jepa_kernels.ema_update_`: same arguments, same result bit for bit."""
    weight = 1.0 - (momentum.double() if isinstance(momentum, Tensor) else momentum)
    if stochastic_rounding and seed is None:
        seed = int(torch.randint(2**62, ()))
    with torch.no_grad():
        for index, (target, source) in enumerate(zip(targets, online, strict=True)):
            accumulate = torch.float64 if target.dtype == torch.float64 else torch.float32
            step = weight.to(accumulate) if isinstance(weight, Tensor) else weight
            value = torch.lerp(target.to(accumulate), source.to(accumulate), step)
            if stochastic_rounding and target.dtype == torch.bfloat16:
                assert seed is not None
                target.copy_(round_stochastically(value, seed, index))
            else:
                target.copy_(value)
            if shadows is not None:
                shadows[index].copy_(value.to(torch.float32))


def round_stochastically(value: Tensor, seed: int | Tensor, index: int) -> Tensor:
    """Rounds float32 to bfloat16 up or down with probabilities that keep the expectation; infinities and NaN stay.

    Element e, counted along memory, of the tensor at place `index` uses 16 bits of Philox4x32-10 with key `seed` and
    counter (e // 8, index): lane e % 8, counted from the low half of the first word. Source: Salmon et al., SC 2011.
    """
    dense = torch.empty_like(value).copy_(value)  # without gaps, dimensions in the order of value's strides
    along_memory = dense.as_strided((dense.numel(),), (1,))
    blocks = torch.arange((dense.numel() + 7) // 8, device=value.device)
    bits = along_memory.view(torch.int32).to(torch.int64) & _WORD
    truncated = (bits + random16(blocks, seed, index)[: dense.numel()]) & 0xFFFF0000
    signed = torch.where(truncated >= 2**31, truncated - 2**32, truncated).to(torch.int32)
    finite = (bits & 0x7F800000) != 0x7F800000
    rounded = torch.where(finite, signed.view(torch.float32), along_memory).to(torch.bfloat16)
    return rounded.as_strided(dense.shape, dense.stride())


def random16(blocks: Tensor, seed: int | Tensor, index: int) -> Tensor:
    """The eight 16-bit values of each Philox block, as int64 of shape (8 * blocks,)."""
    words = torch.stack(_philox(seed, blocks, index), dim=1)  # [blocks, 4]
    return torch.stack((words & 0xFFFF, words >> 16), dim=2).reshape(-1)


def _philox(key: int | Tensor, low: Tensor, high: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 on int64 tensors that hold 32-bit words."""
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    c0, c1 = low & _WORD, (low >> 32) & _WORD
    c2, c3 = torch.full_like(low, high & _WORD), torch.zeros_like(low)
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wrap modulo 2^64: the bits are those of the unsigned product
        high0, high1 = (p0 >> 32) & _WORD, (p1 >> 32) & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _WORD, high0 ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3

"""Checks of the Triton EMA update; run by test_ema_update_interpreter.py under TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

import jepa_kernels as jk
from jepa_kernels.kernels.ema_update import _random16
from jepa_kernels.reference.ema_update import random16

SIZES = (0, 1, 7, 2048, 20_001)  # the last one spans two chunks


def update(targets, online, momentum, **options):
    with jk.backend("triton"):
        jk.ema_update_(targets, online, momentum, **options)


@pytest.mark.parametrize("target_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("online_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("momentum", [0.25, 0.996])
def test_equals_reference(target_dtype, online_dtype, momentum):
    targets = [torch.randn(size, dtype=target_dtype) for size in SIZES]
    online = [torch.randn(size, dtype=online_dtype) for size in SIZES]
    shadows = [torch.full((size,), float("nan"), dtype=torch.float16) for size in SIZES]
    expected, expected_shadows = [t.clone() for t in targets], [s.clone() for s in shadows]
    jk.reference.ema_update_(expected, online, momentum, shadows=expected_shadows)
    update(targets, online, momentum, shadows=shadows)
    for got, want in zip([*targets, *shadows], [*expected, *expected_shadows], strict=True):
        torch.testing.assert_close(got, want, rtol=2e-7 if got.dtype == torch.float32 else 1e-3, atol=1e-7)


def test_unaligned_views():
    target, online = torch.randn(3001), torch.randn(3001)
    expected = torch.lerp(target, online, 0.1)[1:]
    update([target[1:]], [online[1:]], 0.9)
    torch.testing.assert_close(target[1:], expected, rtol=2e-7, atol=1e-7)


@triton.jit
def bits_kernel(out, first, seed, index, BLOCK: tl.constexpr):
    values = _random16(tl.load(first), tl.load(seed), tl.load(index), BLOCK)
    tl.store(out + tl.arange(0, BLOCK), values.to(tl.int32))


@pytest.mark.parametrize(("seed", "index", "first"), [(0, 0, 0), (2**40 + 3, 5, 4096), (7, 2**20, 2**35)])
def test_random_bits_are_those_of_the_reference(seed, index, first):
    """The interpreter computes bfloat16 wrongly, so the kernel's random bits are checked apart from its bfloat16 store."""
    out = torch.zeros(64, dtype=torch.int32)
    bits_kernel[(1,)](out, torch.tensor([first]), torch.tensor([seed]), torch.tensor([index]), BLOCK=64)
    expected = random16(torch.arange(first // 8, first // 8 + 8), seed, index)
    assert torch.equal(out.to(torch.int64), expected)


def test_bfloat16_is_refused():
    with pytest.raises(jk.BackendError, match="interpreter computes bfloat16 wrongly"):
        update([torch.zeros(2, dtype=torch.bfloat16)], [torch.zeros(2)], 0.5)

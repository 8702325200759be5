"""SIGReg: sums of cosines and sines of projections at equally spaced points, one thread a slice.

One sine and cosine a sample give the first point, angle addition the others. All sums of a slice live in one thread's
registers, so nothing is exchanged between threads; the samples are split over programs in fixed parts, whose sums are
added up in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import AotCase

BLOCK = 128  # slices of a program
_MIN_SPLIT = 32  # samples of a program, at least: each writes a sum for every slice and point
_MAX_SPLITS = 64


@triton.jit
def _sine_cosine(x, step):
    """sin and cos of step * x: Cephes polynomials on [-pi/4, pi/4] after a reduction by pi/2 in three parts.

    Errors up to 1.2e-7 where |step * x| <= 1e4; beyond, digits are lost, but both stay within [-1.1, 1.1].
    """
    q = tl.floor(x * (step * 0.6366197723675814) + 0.5)
    r = tl.fma(x, tl.zeros_like(x) + step, q * -1.5703125)
    r = tl.fma(q, tl.zeros_like(x) - 4.837512969970703125e-4, r)
    r = tl.fma(q, tl.zeros_like(x) - 7.54978995489188216e-8, r)
    r = tl.where(r > 1.0, 1.0, tl.where(r < -1.0, -1.0, r))  # NaN stays
    r2 = r * r
    s = r + r * r2 * (-1.6666654611e-1 + r2 * (8.3321608736e-3 - 1.9515295891e-4 * r2))
    c = 1.0 - 0.5 * r2 + r2 * r2 * (4.166664568298827e-2 + r2 * (-1.388731625493765e-3 + 2.443315711809948e-5 * r2))
    # quadrant = q mod 4, in floating point: q may exceed any integer type
    quadrant = q - 4.0 * tl.floor(q * 0.25)
    odd = (quadrant == 1.0) | (quadrant == 3.0)
    sine = tl.where(odd, c, s)
    cosine = tl.where(odd, s, c)
    return tl.where(quadrant >= 2.0, -sine, sine), tl.where((quadrant == 1.0) | (quadrant == 2.0), -cosine, cosine)


@triton.jit
def _turn(cosine, sine, c1, s1):
    """(cosine, sine) turned by the angle of (c1, s1)."""
    return cosine * c1 - sine * s1, sine * c1 + cosine * s1


@triton.jit
def sigreg_forward_kernel(
    projected, partial, step, samples, slices: tl.int64, split, MOVING: tl.constexpr, BLOCK: tl.constexpr
):
    """partial[split, set, 2, MOVING, slice]: the sums at the points after the first, where all cosines are 1."""
    part = tl.program_id(1).to(tl.int64)
    set_ = tl.program_id(2).to(tl.int64)
    slice_ = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = slice_ < slices
    cosines = ()
    sines = ()
    for _ in tl.static_range(MOVING):
        cosines = cosines + (tl.zeros([BLOCK], tl.float32),)
        sines = sines + (tl.zeros([BLOCK], tl.float32),)
    begin = part * split
    end = tl.minimum(begin + split, samples)
    for n in range(begin, end):
        x = tl.load(projected + (set_ * samples + n) * slices + slice_, mask=inside, other=0.0).to(tl.float32)
        s1, c1 = _sine_cosine(x, step)
        cosine, sine = c1, s1
        new_cosines = ()
        new_sines = ()
        for j in tl.static_range(MOVING):
            new_cosines = new_cosines + (cosines[j] + cosine,)
            new_sines = new_sines + (sines[j] + sine,)
            cosine, sine = _turn(cosine, sine, c1, s1)
        cosines = new_cosines
        sines = new_sines
    to = partial + (part * tl.num_programs(2) + set_) * (2 * MOVING) * slices + slice_
    for j in tl.static_range(MOVING):
        tl.store(to + j * slices, cosines[j], mask=inside)
        tl.store(to + (MOVING + j) * slices, sines[j], mask=inside)


@triton.jit
def sigreg_backward_kernel(
    grad_sums, projected, step, samples, slices: tl.int64, split, MOVING: tl.constexpr, BLOCK: tl.constexpr
):
    """Overwrites z by step * sum over j of j * (grad_sine[j] cos - grad_cosine[j] sin), by Horner's rule."""
    part = tl.program_id(1).to(tl.int64)
    set_ = tl.program_id(2).to(tl.int64)
    slice_ = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = slice_ < slices
    gradients = grad_sums + set_ * (2 * (MOVING + 1)) * slices + slice_
    reals = ()
    imaginaries = ()
    for j in tl.static_range(MOVING):
        cosine_place = (j + 1) * slices
        sine_place = (MOVING + 2 + j) * slices
        reals = reals + (tl.load(gradients + sine_place, mask=inside, other=0.0) * (step * (j + 1)),)
        imaginaries = imaginaries + (tl.load(gradients + cosine_place, mask=inside, other=0.0) * (step * (j + 1)),)
    begin = part * split
    end = tl.minimum(begin + split, samples)
    for n in range(begin, end):
        place = (set_ * samples + n) * slices + slice_
        s1, c1 = _sine_cosine(tl.load(projected + place, mask=inside, other=0.0).to(tl.float32), step)
        real, imaginary = _turn(reals[MOVING - 1], imaginaries[MOVING - 1], c1, s1)
        for j in tl.static_range(1, MOVING):
            real, imaginary = _turn(real + reals[MOVING - 1 - j], imaginary + imaginaries[MOVING - 1 - j], c1, s1)
        tl.store(projected + place, real.to(projected.dtype.element_ty), mask=inside)


def _split(samples: int) -> int:
    """Samples of a program: from their number alone, so that sums do not depend on the device."""
    return max(_MIN_SPLIT, triton.cdiv(samples, _MAX_SPLITS))


def forward(projected: torch.Tensor, sums: torch.Tensor, step: float) -> None:
    """Writes float32 `sums` (V, 2, T, K), of any strides, over the samples of the contiguous `projected` (V, N, K)."""
    sets, samples, slices = projected.shape
    split, moving = _split(samples), sums.shape[2] - 1
    splits = triton.cdiv(samples, split)
    partial = projected.new_empty((splits, sets, 2, moving, slices), dtype=torch.float32)
    grid = (triton.cdiv(slices, BLOCK), splits, sets)
    sigreg_forward_kernel[grid](
        projected, partial, step, samples, slices, split, MOVING=moving, BLOCK=BLOCK, num_warps=4
    )
    sums[:, 0, 0] = samples
    sums[:, 1, 0] = 0
    torch.sum(partial, 0, out=sums[:, :, 1:])


def backward(grad_sums: torch.Tensor, projected: torch.Tensor, step: float) -> None:
    """Overwrites `projected` (V, N, K) by its gradient; both contiguous."""
    sets, samples, slices = projected.shape
    split = _split(samples)
    grid = (triton.cdiv(slices, BLOCK), triton.cdiv(samples, split), sets)
    sigreg_backward_kernel[grid](
        grad_sums,
        projected,
        step,
        samples,
        slices,
        split,
        MOVING=grad_sums.shape[2] - 1,
        BLOCK=BLOCK,
        num_warps=4,
    )


_SCALARS = {"step": "fp32", "samples": "i32", "slices": "i64", "split": "i32"}


def aot_cases(quick: bool = False) -> list[AotCase]:
    """Configurations of the compile gate: the published number of points, and the most that the kernel takes."""
    cases = []
    for dtype, points in [("fp32", 17)] if quick else [("fp32", 17), ("bf16", 17), ("fp16", 2), ("fp32", 33)]:
        constants = {"MOVING": points - 1, "BLOCK": BLOCK}
        forward_signature = {"projected": f"*{dtype}", "partial": "*fp32", **_SCALARS}
        backward_signature = {
            "grad_sums": "*fp32",
            "projected": f"*{dtype}",
            **_SCALARS,
        }
        cases += [
            AotCase(f"sigreg_forward-{dtype}-{points}", sigreg_forward_kernel, forward_signature, constants),
            AotCase(f"sigreg_backward-{dtype}-{points}", sigreg_backward_kernel, backward_signature, constants),
        ]
    return cases

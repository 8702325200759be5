"""Checks of the Triton SIGReg; run by test_sigreg_interpreter.py under TRITON_INTERPRET=1."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

import jepa_kernels as jk
from jepa_kernels.kernels.sigreg import _sine_cosine
from jepa_kernels.ops import sigreg as operator
from jepa_kernels.reference.sigreg import unit_directions


@triton.jit
def angles_kernel(x, sine, cosine, step, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    s, c = _sine_cosine(tl.load(x + place), tl.load(step))
    tl.store(sine + place, s)
    tl.store(cosine + place, c)


def sine_cosine(x, step):
    sine, cosine = torch.empty_like(x), torch.empty_like(x)
    angles_kernel[(1,)](x, sine, cosine, torch.tensor([step]), COUNT=x.numel())
    return sine, cosine


def test_sine_and_cosine_have_the_stated_error():
    step = 0.1875
    x = torch.cat([torch.linspace(-3, 3, 2048), torch.linspace(-5e4, 5e4, 2048)])
    sine, cosine = sine_cosine(x, step)
    exact = x.double() * step
    assert float((sine - exact.sin()).abs().max()) < 1.2e-7
    assert float((cosine - exact.cos()).abs().max()) < 1.2e-7


def test_sine_and_cosine_of_any_number_stay_bounded():
    sine, cosine = sine_cosine(torch.tensor([1e10, -1e30, 3e38, 0.0]), 0.1875)
    assert torch.all(sine.abs() < 1.1) and torch.all(cosine.abs() < 1.1)
    assert torch.all(torch.isnan(torch.stack(sine_cosine(torch.tensor([math.inf, math.nan]), 0.1875))))


@pytest.mark.parametrize(("dtype", "shape", "slices", "points"), [
    (torch.float32, (70, 8), 200, 17),
    (torch.float32, (2, 33, 5), 7, 3),
    (torch.float16, (3, 40, 8), 130, 5),
    (torch.float32, (1, 4), 3, 2),
])  # fmt: skip
def test_equals_reference(dtype, shape, slices, points):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    options = {"num_slices": slices, "num_points": points, "seed": 5}
    with jk.backend("triton"):
        loss = jk.sigreg(x, **options)
        (gradient,) = torch.autograd.grad(loss, x)
    if dtype == torch.float16:  # the projection is float16; the kernel is compared on the same projections
        directions = unit_directions(x, slices, 5).to(dtype)
        projected = (x @ directions).detach().double().requires_grad_()
        expected = jk.reference.sigreg(projected, directions=torch.eye(slices, dtype=torch.float64), num_points=points)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
        (of_projected,) = torch.autograd.grad(expected, projected)
        expected_gradient = of_projected @ directions.double().t()
        assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 2e-3
        return
    exact = x.detach().double().requires_grad_()
    expected = jk.reference.sigreg(exact, **options)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 1e-5


@pytest.mark.parametrize("elements", [1, 90, 1500])
def test_blocks_give_what_the_whole_gives(elements, monkeypatch):
    """Blocks of one row or of few, that end inside a set, and that hold two of three sets."""
    x = torch.randn(3, 5, 6, requires_grad=True)
    directions = unit_directions(x.detach(), 130, 0)

    def run():
        with jk.backend("triton"):
            loss = jk.sigreg(x, directions=directions, num_points=4)
            return loss, torch.autograd.grad(loss, x)[0]

    whole = run()
    monkeypatch.setattr(operator, "_BLOCK_ELEMENTS", elements)
    blocks = run()
    torch.testing.assert_close(blocks[0], whole[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(blocks[1], whole[1], rtol=1e-5, atol=1e-6)


def test_non_finite_input_gives_nan():
    x = torch.randn(5, 4)
    x[2, 1] = math.inf
    with jk.backend("triton"):
        assert math.isnan(float(jk.sigreg(x, num_slices=4, seed=0)))


def test_too_many_points_are_refused():
    with pytest.raises(jk.BackendError, match="at most 33 points, got 34"), jk.backend("triton"):
        jk.sigreg(torch.randn(5, 4), num_points=34)

"""The native bfloat16 products of linear layers: values, gradients, every element written, no other memory touched."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import assert_guards_intact, guarded, instruction_set
from jepa_kernels import _native
from jepa_kernels.ops import linear as products

pytestmark = pytest.mark.skipif(
    _native.why_no_cpu() is not None or _native.cpu().detected_isa() != "avx512_bf16", reason="no AVX512_BF16"
)
# rows, inputs, outputs: tiles and panels cut at every place, one and several blocks of the inner axis
SIZES = [(16, 16, 16), (17, 48, 80), (37, 64, 48), (50, 768, 112), (61, 3072, 32), (300, 1552, 96)]


def layer(inputs, outputs, dtype, bias=True):
    found = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(parameter.bfloat16())  # so that the rounding of parameters is no part of an error
    return found.to(dtype)


def gradients(run, x, layers, dy):
    x = x.detach().clone().requires_grad_()
    for each in layers:
        each.zero_grad()
    y = run(x, *layers)
    y.backward(dy.to(y.dtype))
    return [y.detach(), x.grad, *(p.grad for each in layers for p in each.parameters())]


def assert_rule(ours, theirs, exact):
    """RMS error at most twice torch's own, plus one part in a thousand of a bfloat16 rounding."""
    for mine, other, right in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == other.dtype and mine.shape == right.shape
        scale = right.square().mean().sqrt()
        errors = [((value.double() - right) / scale).square().mean().sqrt() for value in (mine, other)]
        assert errors[0] <= 2 * errors[1] + 2.0**-18


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_mlp_follow_the_error_rule(size, dtype, bias):
    rows, inputs, outputs = size
    first, second = layer(inputs, outputs, dtype, bias), layer(outputs, inputs, dtype, bias)
    x, dy = torch.randn(rows, inputs).bfloat16().to(dtype), torch.randn(rows, inputs).bfloat16()
    exact = [copy.deepcopy(each).double() for each in (first, second)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        assert products.why_not(x, first, second) is None
        for ours, theirs in (
            (products.mlp, lambda t, a, b: b(F.gelu(a(t)))),
            (lambda t, a, b: products.linear(products.linear(t, a), b), lambda t, a, b: b(a(t))),
        ):
            mine, other = (gradients(run, x, (first, second), dy) for run in (ours, theirs))
            with torch.autocast("cpu", enabled=False):
                assert_rule(mine, other, gradients(theirs, x.double(), exact, dy))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_do_not_depend_on_the_number_of_threads(threads):
    first, second = layer(96, 400, torch.float32), layer(400, 96, torch.float32)
    x, dy = torch.randn(67, 96), torch.randn(67, 96)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            with torch.autocast("cpu", torch.bfloat16):
                found.append(gradients(products.mlp, x, (first, second), dy))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_without_gradients_the_mlp_is_in_blocks_of_rows_and_equal():
    first, second = layer(32, 64, torch.bfloat16), layer(64, 32, torch.bfloat16)
    x = torch.randn(2, 1100, 32).bfloat16()  # more than are kept at a time
    expected = products.mlp(x, first, second)
    with torch.no_grad():
        assert torch.equal(products.mlp(x, first, second), expected)
        assert torch.equal(products.linear_gelu(x, first), products.linear_gelu(x.clone(), first))
        torch.testing.assert_close(products.linear_gelu(x, first), F.gelu(first(x)), rtol=2.0**-7, atol=2.0**-9)


def test_every_element_is_written_and_nothing_else():
    native, view = _native.cpu(), _native.view
    for rows, inputs, outputs in SIZES:
        x, dy = torch.randn(rows, inputs).bfloat16(), torch.randn(rows, outputs).bfloat16()
        weight = torch.randn(outputs, inputs)
        for dtype in (torch.float32, torch.bfloat16):
            for shape, name, given in (
                ((rows, outputs), "linear_forward", (view(x), view(weight), None, True, None)),
                ((rows, inputs), "linear_input_gradient", (view(dy), view(weight), None)),
                ((outputs, inputs), "linear_weight_gradient", (view(dy), view(x))),
            ):
                out, whole = guarded(torch.full(shape, float("nan"), dtype=dtype))
                last = (view(out), None, 2) if name == "linear_weight_gradient" else (view(out), 2)
                getattr(native, name)(*given, *last)
                assert out.isfinite().all()
                assert_guards_intact(whole)


def test_gelu_and_its_derivative_are_exact_far_out():
    points = torch.cat([torch.linspace(-12, 12, 4096 - 3), torch.tensor([-1e4, 1e4, 0.0])]).bfloat16()[:, None]
    x = points.repeat(1, 16)
    one = nn.Linear(16, 16).bfloat16()
    with torch.no_grad():
        one.weight.copy_(torch.eye(16))
        one.bias.zero_()
        values = products.linear_gelu(x, one).double()
    right = x.double().requires_grad_()
    F.gelu(right).sum().backward()
    assert ((values - F.gelu(right.detach())).abs() <= 2.0**-8 * F.gelu(right.detach()).abs() + 1e-6).all()
    dx, dy = torch.empty_like(x, dtype=torch.float32), torch.ones_like(x)
    _native.cpu().linear_input_gradient(*map(_native.view, (dy, one.weight, x, dx)), 1)
    assert (dx.double() - right.grad).abs().max() < 1e-6


def test_nan_and_infinity_stay_in_their_rows():
    one, x = layer(32, 48, torch.float32), torch.randn(20, 32)
    x[3, 5], x[7, 0] = float("nan"), float("inf")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = products.linear(x, one)
    bad = ~y.isfinite().all(1)
    assert bad.nonzero().flatten().tolist() == [3, 7]


@pytest.mark.parametrize(
    ("x", "widths", "reason"),
    [
        (torch.randn(20, 32, dtype=torch.float64), (32, 16), "products are in torch.float64"),
        (torch.randn(20, 32), (32, 16), "products are in torch.float32"),
        (torch.randn(3, 32).bfloat16(), (32, 16), "few rows"),
        (torch.randn(20, 32).bfloat16(), (32, 17), "multiple of 16"),
        (torch.randn(20, 32).bfloat16(), (48, 16), "does not fit"),
        (torch.randn(20, 32, device="meta").bfloat16(), (32, 16), "not on a CPU"),
    ],
)
def test_what_it_leaves_to_torch(x, widths, reason):
    assert reason in products.why_not(x, nn.Linear(*widths).bfloat16())


def test_lower_instruction_sets_are_refused():
    x, one = torch.randn(20, 32).bfloat16(), nn.Linear(32, 16).bfloat16()
    with instruction_set("avx512"):
        assert "AVX512_BF16" in products.why_not(x, one)
        with pytest.raises(ValueError, match="has no AVX512_BF16"):
            products.linear(x, one)


def test_the_binding_checks_again():
    native, view = _native.cpu(), _native.view
    x, weight, y = torch.zeros(4, 32).bfloat16(), torch.zeros(16, 32), torch.zeros(4, 16).bfloat16()
    for given, message in (
        ((x.float(), weight, y), "x: expected"),
        ((x, weight[:, :30], y), "weight: expected size 32"),
        ((x, weight.double(), y), "weight: expected"),
        ((x, weight[:15], y[:, :15]), "output width is 15"),
        ((x, weight.t(), y), "weight: "),
        ((x, weight, y[:3]), "y: expected size 4"),
    ):
        with pytest.raises(ValueError, match=message):
            native.linear_forward(view(given[0]), view(given[1]), None, False, None, view(given[2]), 1)

"""vicreg_loss: the paper's and eb_jepa's forms, gradients, edge cases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import jepa_kernels as jk


def paper(x, y):
    """The loss of the paper's published code with its weights."""
    total = 25 * F.mse_loss(x, y)
    centred = [z - z.mean(0) for z in (x, y)]
    for z in centred:
        total = total + 25 * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2
        covariance = z.T @ z / (len(z) - 1)
        total = total + (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]
    return total


def eb_jepa(x, y):
    """eb_jepa's loss: sums over views, mean over off-diagonal pairs."""
    total = F.mse_loss(x, y)
    for z in (x, y):
        total = total + F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
        covariance = torch.cov(z.T)
        total = total + covariance[~torch.eye(z.shape[1], dtype=torch.bool)].square().mean()
    return total


@pytest.mark.parametrize(("convention", "published"), [("paper", paper), ("eb_jepa", eb_jepa)])
@pytest.mark.parametrize("function", [jk.vicreg_loss, jk.reference.vicreg_loss])
def test_is_the_published_loss(convention, published, function):
    x, y = (torch.randn(40, 12) * 0.8).requires_grad_(), (torch.randn(40, 12) + 1).requires_grad_()
    loss = function(x, y, convention=convention).loss
    exact = [z.detach().double().requires_grad_() for z in (x, y)]
    expected = published(*exact)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for got, want in zip(torch.autograd.grad(loss, (x, y)), torch.autograd.grad(expected, exact), strict=True):
        assert float((got.double() - want).norm() / want.norm()) < 1e-5


@pytest.mark.parametrize("convention", ["paper", "eb_jepa"])
def test_gradcheck(convention):
    x, y = (torch.randn(7, 4, dtype=torch.float64).mul_(0.7).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: jk.vicreg_loss(a, b, convention=convention).loss, (x, y))


def test_one_view_has_no_invariance():
    x = torch.randn(30, 6, requires_grad=True)
    terms = jk.vicreg_loss(x, weights=(9.0, 2.0, 3.0))
    torch.testing.assert_close(terms.loss, 2 * terms.variance + 3 * terms.covariance)
    assert float(terms.invariance) == 0 and not terms.variance.requires_grad
    torch.testing.assert_close(terms.loss, jk.reference.vicreg_loss(x, weights=(9.0, 2.0, 3.0)).loss)


def test_zero_variance_and_one_feature():
    x = torch.full((6, 1), 3.0, requires_grad=True)
    terms = jk.vicreg_loss(x)
    assert abs(float(terms.variance) - 0.99) < 1e-6 and float(terms.covariance) == 0
    (gradient,) = torch.autograd.grad(terms.loss, x)
    assert torch.all(gradient == 0)


def test_low_precision_gradients_and_autocast():
    x = torch.randn(64, 16).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = jk.vicreg_loss(x)
    expected = jk.reference.vicreg_loss(x.detach().double())
    torch.testing.assert_close(terms.loss.double(), expected.loss, rtol=1e-5, atol=0)
    assert torch.autograd.grad(terms.loss, x)[0].dtype == torch.bfloat16


def test_non_finite_input_shows():
    x = torch.randn(8, 3)
    x[0, 0] = math.inf
    assert math.isnan(float(jk.vicreg_loss(x).loss))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_in_one_graph():
    x = torch.randn(16, 4, requires_grad=True)
    compiled = torch.compile(lambda z: jk.vicreg_loss(z).loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), jk.vicreg_loss(x).loss)


@pytest.mark.parametrize(("x", "y", "options", "error", "message"), [
    ([1.0], None, {}, TypeError, "x is list"),
    (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int64), {}, TypeError, "y has dtype torch.int64"),
    (torch.zeros(1, 3), None, {}, ValueError, "at least two samples"),
    (torch.zeros(4, 3), torch.zeros(4, 2), {}, ValueError, r"y is \(4, 2\)"),
    (torch.zeros(4, 3), None, {"convention": "barlow"}, ValueError, "unknown convention 'barlow'"),
])  # fmt: skip
def test_errors(x, y, options, error, message):
    with pytest.raises(error, match=message):
        jk.vicreg_loss(x, y, **options)

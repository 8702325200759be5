"""sigreg on every backend: the published statistic, its gradient, seeding, dtypes, determinism, compile."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jepa_kernels as jk
from conftest import assert_guards_intact, backend_parameters, guarded, instruction_set, instruction_sets
from jepa_kernels.ops import sigreg as operator


@pytest.fixture(params=backend_parameters())
def place(request):
    """(device, backend)"""
    if request.param[1] == "cuda":
        pytest.skip("sigreg has no CUDA C++ kernel")
    return request.param


def run(place, x, **options):
    with jk.backend(place[1]):
        loss = jk.sigreg(x, **options)
        return loss, torch.autograd.grad(loss, x)[0]


def published(x, directions, t_max=3.0, points=17):
    """The statistic as LeJEPA's code computes it, in x's dtype."""
    t = torch.linspace(0, t_max, points, dtype=x.dtype, device=x.device)
    step = t_max / (points - 1)
    weights = torch.full_like(t, 2 * step)
    weights[[0, -1]] = step
    phi = (-0.5 * t**2).exp()
    angles = (x @ directions).unsqueeze(-1) * t
    error = (angles.cos().mean(-3) - phi).square() + angles.sin().mean(-3).square()
    return ((error @ (weights * phi)) * x.shape[-2]).mean()


def unit(width, slices, seed, device="cpu"):
    """Directions as published: normal columns from a seeded generator of the device, normalised."""
    drawn = torch.randn(width, slices, device=device, generator=torch.Generator(device).manual_seed(seed))
    return drawn / drawn.norm(p=2, dim=0)


def relative(got, want):
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm())


@pytest.mark.parametrize(
    ("shape", "slices"), [((512, 64), 1024), ((8, 64, 16), 256), ((2, 3, 17, 5), 33), ((65, 3), 1)]
)
def test_is_the_published_statistic(place, shape, slices):
    x = torch.randn(shape, device=place[0], requires_grad=True)
    loss, gradient = run(place, x, num_slices=slices, seed=11)
    exact = x.detach().double().requires_grad_()
    expected = published(exact, unit(shape[-1], slices, 11, place[0]).double())
    assert relative(loss, expected) < 1e-5
    assert relative(gradient, torch.autograd.grad(expected, exact)[0]) < 1e-4
    assert loss.dtype == torch.float32 and loss.shape == ()


def test_unseeded_directions_come_from_the_default_generator(place):
    x = torch.randn(40, 8, device=place[0], requires_grad=True)
    torch.manual_seed(3)
    loss, _ = run(place, x, num_slices=50)
    torch.manual_seed(3)
    drawn = torch.randn(8, 50, device=place[0])
    expected = published(x.detach().double(), (drawn / drawn.norm(p=2, dim=0)).double())
    assert relative(loss, expected) < 1e-5
    assert not torch.equal(loss, run(place, x, num_slices=50)[0])


@pytest.mark.parametrize(("points", "t_max"), [(2, 1.0), (3, 5.0), (10, 3.0), (18, 2.5), (33, 8.0)])
def test_points(place, points, t_max):
    x = torch.randn(70, 8, device=place[0], requires_grad=True)
    directions = unit(8, 40, 0, place[0])
    loss, gradient = run(place, x, directions=directions, num_points=points, t_max=t_max)
    exact = x.detach().double().requires_grad_()
    expected = published(exact, directions.double(), t_max, points)
    assert relative(loss, expected) < 1e-5
    assert relative(gradient, torch.autograd.grad(expected, exact)[0]) < 1e-4


def test_collapse_costs_and_a_normal_does_not(place):
    normal = torch.randn(2000, 8, device=place[0], requires_grad=True)
    point = torch.zeros(2000, 8, device=place[0], requires_grad=True)
    assert float(run(place, normal, seed=0, num_slices=128)[0].detach()) < 2
    loss, gradient = run(place, point, seed=0, num_slices=128)
    assert float(loss.detach()) > 500 and torch.all(gradient == 0)


def test_one_sample_and_zero_variance(place):
    for x in (torch.full((1, 4), 0.5), torch.full((9, 4), 2.0)):
        x = x.to(place[0]).requires_grad_()
        loss, gradient = run(place, x, num_slices=16, seed=0)
        expected = published(x.detach().double(), unit(4, 16, 0, place[0]).double())
        assert relative(loss, expected) < 1e-5 and torch.all(torch.isfinite(gradient))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_input_gives_nan(place, value):
    x = torch.randn(9, 4, device=place[0])
    x[3, 2] = value
    assert math.isnan(float(run(place, x.requires_grad_(), num_slices=8, seed=0)[0].detach()))


def test_large_projections(place):
    if place[1] == "triton":
        pytest.skip("loses digits there, as documented")
    x = (torch.randn(64, 4, device=place[0]) * 1e6).requires_grad_()
    directions = torch.eye(4, device=place[0])  # so that the projections are exact
    loss, _ = run(place, x, directions=directions)
    exact = published(x.detach().double(), directions.double())
    assert (
        abs(float(loss.detach()) - float(exact)) < 1.0
    )  # the angles of the later points are rounded by all float32 forms
    assert math.isfinite(float(loss.detach()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_pytorch(place, dtype):
    x = torch.randn(256, 32, device=place[0]).to(dtype).requires_grad_()
    directions = unit(32, 128, 0, place[0]).to(dtype)
    loss, gradient = run(place, x, directions=directions)
    assert gradient.dtype == dtype
    exact = x.detach().double().requires_grad_()
    expected = published(exact, directions.double())
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    low = x.detach().requires_grad_()
    # PyTorch under autocast: the projection is rounded, all else is float32
    t = torch.linspace(0, 3, 17, device=place[0])
    with torch.enable_grad():
        projected = (low @ directions).float()
        of_eager = published(projected, torch.eye(128, device=place[0]))
    (torch_gradient,) = torch.autograd.grad(of_eager, low)
    assert len(t) == 17
    assert (
        abs(float(loss.detach()) - float(expected.detach()))
        <= 2 * abs(float(of_eager.detach()) - float(expected.detach())) + 1e-6
    )
    assert relative(gradient, expected_gradient) <= 2 * relative(torch_gradient, expected_gradient)


def test_gradcheck(place):
    x = torch.randn(2, 5, 3, dtype=torch.float64, device=place[0], requires_grad=True)
    directions = unit(3, 4, 0, place[0]).double()
    with jk.backend(place[1]):
        if place[1] == "triton":
            with pytest.raises(jk.BackendError, match="float64"):
                jk.sigreg(x, directions=directions)
            return
        assert torch.autograd.gradcheck(lambda z: jk.sigreg(z, directions=directions, num_points=6), x)


@pytest.mark.parametrize("level", instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_instruction_set(level, dtype):
    x = torch.randn(3, 131, 12).to(dtype).requires_grad_()
    directions = unit(12, 37, 0).to(dtype)
    with instruction_set(level):
        loss, gradient = run(("cpu", "cpu"), x, directions=directions)
    other, other_gradient = run(("cpu", "reference"), x, directions=directions)
    assert relative(loss, other.double()) < 1e-5
    assert (
        relative(gradient, other_gradient.double())
        < {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    )


def native_sums(x, directions, sums, step, threads=2):
    operator._native.cpu().sigreg_forward(*map(operator._native.view, (x, directions, sums)), step, threads)


def native_gradient(sums, x, directions, gradient, step, threads=2):
    views = map(operator._native.view, (sums, x, directions, gradient))
    operator._native.cpu().sigreg_backward(*views, step, threads)


def native_fit(x, directions, gradient, step, threads=2, points=17):
    dtype = operator.sums_dtype(x)
    phi, weights = operator.quadrature(points, (points - 1) * step, dtype, x.device)
    views = map(operator._native.view, (x, directions, phi, weights, gradient))
    return operator._native.cpu().sigreg_fit(*views, step, threads)


@pytest.mark.parametrize("level", instruction_sets())
@pytest.mark.parametrize(("largest", "allowed"), [(0.2, (1.5e-7, 8e-7)), (1e4, (9e-7, 1.4e-5))])
def test_sine_and_cosine_have_the_stated_error(level, largest, allowed):
    """One sample and one feature: the sums at point j are the cosine and sine of j times the directions."""
    angles = torch.linspace(-largest, largest, 20_001)
    if largest == 1e4:
        angles = torch.cat([torch.linspace(-4, 4, 20_001), angles, torch.tensor([1e5, -1e9, 3e37])])
    sums = torch.full((1, 2, 17, len(angles)), math.nan)
    with instruction_set(level):
        native_sums(torch.ones(1, 1, 1), angles.unsqueeze(0), sums, 1.0)
    exact = torch.arange(17).double().unsqueeze(1) * angles.double()
    errors = torch.stack((sums[0, 0] - exact.cos(), sums[0, 1] - exact.sin())).abs().amax((0, 2))
    assert float(errors[1:5].max()) < allowed[0] and float(errors.max()) < allowed[1]
    assert torch.all(sums[0, 0, 0] == 1) and torch.all(sums[0, 1, 0] == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_writes_every_element_and_nothing_outside(dtype):
    x, directions = torch.randn(2, 70, 11).to(dtype), torch.randn(11, 37).to(dtype)
    sums, whole = guarded(torch.full((2, 2, 5, 37), math.nan, dtype=operator.sums_dtype(x)))
    gradient, gradient_whole = guarded(torch.full((2, 70, 11), math.nan, dtype=dtype))
    native_sums(x, directions, sums, 0.5)
    native_gradient(sums, x, directions, gradient, 0.5)
    fitted, fitted_whole = guarded(torch.full((2, 70, 11), math.nan, dtype=operator.sums_dtype(x)))
    native_fit(x, directions, fitted, 0.5, points=5)
    for memory in (whole, gradient_whole, fitted_whole):
        assert_guards_intact(memory)
    assert all(bool(torch.isfinite(written).all()) for written in (sums, gradient, fitted))


def test_one_sample_that_is_not_finite_spoils_only_its_own_gradient():
    x, sums, gradient = torch.randn(1, 70, 5), torch.randn(1, 2, 5, 37), torch.empty(1, 70, 5)
    x[0, 31, 2] = math.nan
    native_gradient(sums, x, torch.randn(5, 37), gradient, 0.5)
    assert torch.all(torch.isnan(gradient[0, 31]))
    assert int(torch.isnan(gradient).sum()) == 5


@pytest.mark.parametrize(("of", "made", "message"), [
    (0, torch.randn(2, 9, 8)[..., ::2], "x: must be contiguous"),
    (1, torch.randn(5, 7), "directions: expected size 4 in dimension 0, got 5"),
    (1, torch.randn(4, 7, dtype=torch.float64), "directions: expected float32, got float64"),
    (2, torch.randn(2, 2, 3, 6), "sums: expected size 7 in dimension 3, got 6"),
    (2, torch.randn(2, 2, 3, 7, dtype=torch.float64), "sums: expected float32, got float64"),
])  # fmt: skip
def test_the_binding_refuses_what_does_not_fit(of, made, message):
    tensors = [torch.randn(2, 9, 4), torch.randn(4, 7), torch.randn(2, 2, 3, 7)]
    tensors[of] = made
    with pytest.raises(ValueError, match=message):
        native_sums(*tensors, 0.5)


def test_the_binding_refuses_another_gradient():
    x, directions, sums = torch.randn(2, 9, 4), torch.randn(4, 7), torch.randn(2, 2, 3, 7)
    with pytest.raises(ValueError, match="grad_x: expected size 9 in dimension 1, got 8"):
        native_gradient(sums, x, directions, torch.empty(2, 8, 4), 0.5)
    with pytest.raises(ValueError, match="grad_x: expected float32, got bfloat16"):
        native_fit(x, directions, torch.empty(2, 9, 4, dtype=torch.bfloat16), 0.5)
    with pytest.raises(ValueError, match="at least one sample, feature and slice"):
        native_fit(torch.empty(2, 0, 4), directions, torch.empty(2, 0, 4), 0.5)


@pytest.mark.parametrize("level", instruction_sets())
def test_more_slices_than_are_taken_at_a_time(level):
    """5000 samples: 16 panels at a time, of 8 to 32 slices."""
    x, directions = torch.randn(1, 5000, 3), unit(3, 1100, 0)
    gradient = torch.empty(1, 5000, 3)
    with instruction_set(level):
        value = native_fit(x, directions, gradient, 3 / 16)
    exact = x.double().requires_grad_()
    expected = published(exact, directions.double())
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert relative(gradient, torch.autograd.grad(expected, exact)[0]) < 1e-4


def test_result_depends_neither_on_threads_nor_on_the_run():
    x = torch.randn(2, 300, 16, requires_grad=True)
    before = torch.get_num_threads()
    directions, results = unit(16, 200, 0), []
    for threads in (1, 2, 3, 40, 2):
        sums, gradient = torch.empty(2, 2, 17, 200), torch.empty(2, 300, 16)
        native_sums(x.detach(), directions, sums, 0.2, threads)
        native_gradient(sums, x.detach(), directions, gradient, 0.2, threads)
        fitted = torch.empty(2, 300, 16)
        value = native_fit(x.detach(), directions, fitted, 0.2, threads)
        results.append((sums, gradient, fitted, torch.tensor(value)))
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))
    assert torch.get_num_threads() == before
    assert torch.equal(run(("cpu", "cpu"), x, seed=1)[1], run(("cpu", "cpu"), x, seed=1)[1])


@given(st.integers(1, 3), st.integers(1, 150), st.integers(1, 40), st.integers(1, 70), st.integers(2, 30))
def test_any_shape(sets, samples, width, slices, points):
    x = torch.randn(sets, samples, width, requires_grad=True)
    directions = unit(width, slices, 0)
    loss, gradient = run(("cpu", "cpu"), x, directions=directions, num_points=points)
    exact = x.detach().double().requires_grad_()
    expected = published(exact, directions.double(), points=points)
    assert relative(loss, expected) < 1e-5
    assert relative(gradient, torch.autograd.grad(expected, exact)[0]) < 1e-4


def test_autocast_projects_in_its_dtype():
    x = torch.randn(64, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = run(("cpu", "cpu"), x, seed=0, num_slices=32)
    low, _ = run(("cpu", "cpu"), x.detach().bfloat16().requires_grad_(), seed=0, num_slices=32)
    assert torch.equal(loss, low) and gradient.dtype == torch.float32


def test_opcheck():
    x = torch.randn(2, 9, 4, requires_grad=True)
    arguments = (x, unit(4, 6, 0), 5, 3.0)
    torch.library.opcheck(torch.ops.jepa_kernels.sigreg, arguments)
    torch.library.opcheck(torch.ops.jepa_kernels.sigreg_statistic, (*arguments, True))
    torch.library.opcheck(torch.ops.jepa_kernels.sigreg_statistic, (x.detach(), *arguments[1:], False))
    torch.library.opcheck(
        torch.ops.jepa_kernels.unit_directions,
        (x.detach(), 6, torch.tensor(3)),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_in_one_graph_without_recompiling_as_the_seed_changes():
    compiled = torch.compile(
        lambda x, seed: jk.sigreg(x, seed=seed, num_slices=32), fullgraph=True, backend="aot_eager"
    )
    x = torch.randn(64, 16, requires_grad=True)
    for seed in range(3):
        with torch._dynamo.config.patch(error_on_recompile=seed > 0):
            loss = compiled(x, torch.tensor(seed))
        torch.testing.assert_close(loss, jk.sigreg(x, seed=seed, num_slices=32))
        torch.testing.assert_close(
            torch.autograd.grad(loss, x)[0], run(("cpu", "cpu"), x, seed=seed, num_slices=32)[1]
        )


def test_second_derivatives_are_refused():
    x = torch.randn(9, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(jk.sigreg(x, seed=0, num_slices=8), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        gradient.sum().backward()


@pytest.mark.parametrize(("x", "options", "error", "message"), [
    ([1.0], {}, TypeError, "x is list, not a tensor"),
    (torch.zeros(4, 4, dtype=torch.int64), {}, TypeError, "x has dtype torch.int64"),
    (torch.zeros(4), {}, ValueError, r"x has shape \(4,\); expected \(\*, N, D\)"),
    (torch.zeros(0, 4), {}, ValueError, "at least one sample"),
    (torch.zeros(4, 4), {"num_points": 1}, ValueError, "num_points at least 2, got 1024 and 1"),
    (torch.zeros(4, 4), {"num_slices": 0}, ValueError, "num_slices must be at least 1"),
    (torch.zeros(4, 4), {"t_max": math.inf}, ValueError, "t_max must be positive and finite, got inf"),
    (torch.zeros(4, 4), {"seed": 1.5}, TypeError, "seed is float"),
    (torch.zeros(4, 4), {"seed": torch.zeros(2, dtype=torch.int64)}, TypeError, r"seed is a tensor of shape \(2,\)"),
    (torch.zeros(4, 4), {"seed": 1, "directions": torch.eye(4)}, ValueError, "seed or directions, not both"),
    (torch.zeros(4, 4), {"directions": torch.eye(3)}, ValueError, r"directions have shape \(3, 3\)"),
    (torch.zeros(4, 4), {"directions": torch.eye(4, requires_grad=True)}, ValueError, "directions require grad"),
    (torch.zeros(4, 4), {"group": object()}, ValueError, "same directions; pass a seed"),
])  # fmt: skip
def test_errors(x, options, error, message):
    with pytest.raises(error, match=message):
        jk.sigreg(x, **options)

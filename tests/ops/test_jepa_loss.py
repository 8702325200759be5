"""jepa_loss on every backend: the published formulas, ids in every form, dtypes, memory safety, compile."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import jepa_kernels as jk
from conftest import assert_guards_intact, backend_parameters, guarded, instruction_set, instruction_sets
from jepa_kernels.functional.jepa_loss import prepare

KINDS = (
    {},
    {"power": 1.5},
    {"power": 2.0},
    {"kind": "smooth_l1"},
    {"kind": "smooth_l1", "beta": 0.25},
    {"kind": "smooth_l1", "beta": 0.0},
    {"kind": "l2"},
    {"normalize": False},
)


@pytest.fixture(params=backend_parameters())
def place(request):
    """(device, backend)"""
    if request.param[1] == "cuda":
        pytest.skip("jepa_loss has no CUDA C++ kernel")
    return request.param


def some_ids(batch, tokens, kept, device="cpu"):
    return torch.stack([torch.randperm(tokens)[:kept].sort().values for _ in range(batch)]).to(device)


def inputs(place, batch=3, tokens=17, kept=6, width=72, dtype=torch.float32):
    pred = torch.randn(batch, kept, width, dtype=torch.float64).to(place[0], dtype).requires_grad_()
    target = (torch.randn(batch, tokens, width, dtype=torch.float64) * 2 + 0.5).to(place[0], dtype)
    return pred, target, some_ids(batch, tokens, kept, place[0])


def run(place, pred, target, ids=None, **options):
    """(loss, gradient of each prediction)"""
    with jk.backend(place[1]):
        loss = jk.jepa_loss(pred, target, ids, **options)
        return loss, torch.autograd.grad(loss, pred)


def official(pred, target, ids, loss_exp=1.0):
    """The published V-JEPA form, for lists of masks."""
    h = F.layer_norm(target, (target.shape[-1],))
    total = 0.0
    for z, mask in zip(pred, ids, strict=True):
        total = (
            total
            + torch.mean(torch.abs(z - h.gather(1, mask.unsqueeze(-1).expand(-1, -1, h.shape[-1]))) ** loss_exp)
            / loss_exp
        )
    return total / len(ids)


def assert_close(got, want, rtol=1e-6):
    """Relative to the largest value: small entries of a gradient carry the rounding of the difference."""
    scale = max(float(want.detach().abs().max()), 1e-30)
    assert float((got.detach().double() - want.detach()).abs().max()) <= rtol * scale


@pytest.mark.parametrize("options", KINDS)
def test_equals_reference_in_float64(place, options):
    pred, target, ids = inputs(place)
    loss, (gradient,) = run(place, pred, target, ids, **options)
    exact = pred.detach().double().requires_grad_()
    expected = jk.reference.jepa_loss(exact, target.double(), ids, **options)
    assert_close(loss, expected)
    assert_close(gradient, torch.autograd.grad(expected, exact)[0], 1e-5)
    assert loss.dtype == torch.float32 and gradient.dtype == pred.dtype


@pytest.mark.parametrize("loss_exp", [1.0, 2.0])
def test_is_the_published_vjepa_loss_of_several_masks(place, loss_exp):
    target = torch.randn(2, 30, 64, device=place[0])
    ids = [some_ids(2, 30, 11, place[0]), some_ids(2, 30, 4, place[0])]
    pred = [torch.randn(2, k, 64, device=place[0], requires_grad=True) for k in (11, 4)]
    loss, gradients = run(place, pred, target, ids, power=loss_exp)
    exact = [z.detach().double().requires_grad_() for z in pred]
    expected = official(exact, target.double(), ids, loss_exp)
    assert_close(loss, expected)
    for got, want in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        assert_close(got, want, 1e-5)


def test_is_the_published_ijepa_loss_of_one_tensor_for_all_masks(place):
    target = torch.randn(2, 30, 64, device=place[0])
    ids = [some_ids(2, 30, 7, place[0]) for _ in range(4)]
    pred = torch.randn(8, 7, 64, device=place[0], requires_grad=True)
    loss, (gradient,) = run(place, pred, target, ids, kind="smooth_l1")
    exact = pred.detach().double().requires_grad_()
    h = F.layer_norm(target.double(), (64,))
    expected = F.smooth_l1_loss(exact, torch.cat([h.gather(1, mask.unsqueeze(-1).expand(-1, -1, 64)) for mask in ids]))
    assert_close(loss, expected)
    assert_close(gradient, torch.autograd.grad(expected, exact)[0], 1e-5)


@pytest.mark.parametrize("as_module", [True, False])
def test_final_affine_norm(place, as_module):
    pred, target, ids = inputs(place)
    module = torch.nn.LayerNorm(72, eps=1e-6).to(place[0]).requires_grad_(False)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    norm = module if as_module else (module.weight, None, 1e-6)
    loss, _ = run(place, pred, target, ids, norm=norm)
    h = F.layer_norm(target.double(), (72,), module.weight.double(), module.bias.double() if as_module else None, 1e-6)
    h = F.layer_norm(h, (72,)).gather(1, ids.unsqueeze(-1).expand(-1, -1, 72))
    assert_close(loss, (pred.double() - h).abs().mean())


def test_weights_scale_tokens_and_not_the_count(place):
    pred, target, ids = inputs(place)
    weights = torch.rand(3, 6, device=place[0])
    loss, (gradient,) = run(place, pred, target, ids, weights=weights)
    h = F.layer_norm(target.double(), (72,)).gather(1, ids.unsqueeze(-1).expand(-1, -1, 72))
    exact = pred.detach().double().requires_grad_()
    expected = ((exact - h).abs() * weights.double().unsqueeze(-1)).mean()
    assert_close(loss, expected)
    assert_close(gradient, torch.autograd.grad(expected, exact)[0], 1e-5)


def test_padding_counts_nowhere(place):
    pred, target, ids = inputs(place)
    padded = ids.clone()
    padded[0, 4:] = -1
    padded[2, :] = -1
    loss, (gradient,) = run(place, pred, target, padded)
    kept = padded != -1
    h = F.layer_norm(target.double(), (72,)).gather(1, padded.clamp(min=0).unsqueeze(-1).expand(-1, -1, 72))
    assert_close(loss, (pred.double() - h)[kept].abs().mean())
    assert torch.all(gradient[~kept] == 0) and torch.all(gradient[kept] != 0)


def test_padding_of_one_of_several_masks_keeps_their_equal_shares(place):
    target = torch.randn(2, 30, 64, device=place[0])
    ids = [some_ids(2, 30, 5, place[0]), some_ids(2, 30, 5, place[0])]
    ids[1][0, 2:] = -1
    pred = torch.randn(4, 5, 64, device=place[0], requires_grad=True)
    joint, (gradient,) = run(place, pred, target, ids)
    parts = [z.detach().requires_grad_() for z in pred.chunk(2)]
    separate, gradients = run(place, parts, target, ids)
    assert_close(joint, separate.double())
    assert_close(gradient, torch.cat(gradients).double(), 1e-6)


def test_ragged_ids(place):
    target = torch.randn(3, 12, 40, device=place[0])
    lists = [torch.tensor([0, 5, 11]), torch.tensor([], dtype=torch.int64), torch.tensor([7])]
    ids = jk.RaggedIds.from_list([part.to(place[0]) for part in lists])
    pred = torch.randn(4, 40, device=place[0], requires_grad=True)
    loss, _ = run(place, pred, target, ids)
    h = F.layer_norm(target.double(), (40,))
    rows = torch.stack([h[0, 0], h[0, 5], h[0, 11], h[2, 7]])
    assert_close(loss, (pred.double() - rows).abs().mean())
    two, gradients = run(place, [pred, pred.detach().requires_grad_()], target, [ids, ids])
    assert_close(two, loss.double())
    assert len(gradients) == 2


def test_no_tokens_give_zero(place):
    target = torch.randn(2, 5, 16, device=place[0])
    pred = torch.randn(2, 0, 16, device=place[0], requires_grad=True)
    loss, (gradient,) = run(place, pred, target, torch.zeros(2, 0, dtype=torch.int64, device=place[0]))
    assert float(loss) == 0 and gradient.shape == pred.shape
    padded = torch.full((2, 3), -1, device=place[0])
    loss, (gradient,) = run(place, torch.randn(2, 3, 16, device=place[0], requires_grad=True), target, padded)
    assert float(loss) == 0 and torch.all(gradient == 0)


def test_batch_of_one_and_one_channel(place):
    pred, target, ids = inputs(place, batch=1, tokens=1, kept=1, width=1)
    loss, _ = run(place, pred, target, ids)
    assert_close(loss, pred.double().abs().mean())  # the norm of one channel is zero


def test_features_of_zero_variance(place):
    pred, target, ids = inputs(place)
    loss, (gradient,) = run(place, pred, torch.full_like(target, 3.0), ids)
    assert_close(loss, pred.double().abs().mean(), 1e-5)
    assert torch.all(torch.isfinite(gradient))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_values_show(place, value):
    pred, target, ids = inputs(place)
    broken = target.clone()
    broken[0, int(ids[0, 0])] = value
    loss, (gradient,) = run(place, pred, broken, ids)
    assert not math.isfinite(float(loss.detach()))
    assert torch.all(torch.isnan(gradient[0, 0])) and torch.all(torch.isfinite(gradient[1:]))
    unused = target.clone()
    unused[0, [token for token in range(17) if token not in ids[0].tolist()]] = value
    assert math.isfinite(float(run(place, pred, unused, ids)[0].detach()))


def test_strided_views_need_no_copy(place):
    levels = torch.randn(2, 9, 3 * 48, device=place[0])
    ids = some_ids(2, 9, 4, place[0])
    wide = torch.randn(2, 4, 2 * 48, device=place[0])
    pred = wide[..., 48:].requires_grad_()
    loss, (gradient,) = run(place, pred, levels[..., 48:96], ids)
    again, (expected,) = run(place, pred.detach().clone().requires_grad_(), levels[..., 48:96].contiguous(), ids)
    assert torch.equal(loss, again) and torch.equal(gradient, expected)
    swapped = torch.randn(2, 48, 9, device=place[0]).transpose(1, 2)
    loss, _ = run(place, pred, swapped, ids)
    assert_close(loss, run(place, pred, swapped.contiguous(), ids)[0].double())


@pytest.mark.parametrize("pred_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"kind": "smooth_l1"}])
def test_low_precision_is_no_worse_than_pytorch(place, pred_dtype, target_dtype, options):
    pred = torch.randn(3, 9, 200, device=place[0]).to(pred_dtype).requires_grad_()
    target, ids = (torch.randn(3, 20, 200, device=place[0]) * 3).to(target_dtype), some_ids(3, 20, 9, place[0])
    loss, (gradient,) = run(place, pred, target, ids, **options)
    assert gradient.dtype == pred_dtype
    exact = pred.detach().double().requires_grad_()
    expected = jk.reference.jepa_loss(exact, target.double(), ids, **options)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    assert_close(loss, expected)
    with torch.enable_grad():
        low = pred.detach().requires_grad_()
        h = F.layer_norm(target.float(), (200,)).gather(1, ids.unsqueeze(-1).expand(-1, -1, 200))
        penalty = F.smooth_l1_loss if options else F.l1_loss
        (torch_gradient,) = torch.autograd.grad(penalty(low.float(), h), low)
    error = float((gradient.double() - expected_gradient).abs().max())
    torch_error = float((torch_gradient.double() - expected_gradient).abs().max())
    assert error <= 2 * torch_error + 1e-12


def test_gradcheck(place):
    if place[1] == "triton":
        with pytest.raises(jk.BackendError, match="float64"):
            run(place, *inputs(place, dtype=torch.float64))
        return
    pred, target, ids = inputs(place, batch=2, tokens=5, kept=3, width=7, dtype=torch.float64)
    ids[0, 1] = -1
    for options in KINDS:
        with jk.backend(place[1]):
            assert torch.autograd.gradcheck(lambda z, options=options: jk.jepa_loss(z, target, ids, **options), pred)


def test_writes_every_element_and_nothing_outside():
    pred, target, ids = inputs(("cpu", "cpu"), width=37)
    from jepa_kernels.ops import jepa_loss as operator

    flat, rows = pred.detach().flatten(0, 1), (ids + torch.arange(3).unsqueeze(1) * 17).flatten()
    rows[4] = -1
    inside, whole = guarded(torch.full((18, 37), math.nan))
    tensors = (torch.ones(()), flat, target.flatten(0, 1), rows, None, None, None, inside)
    views = [operator._native.view(tensor) for tensor in tensors]
    options = operator._native_options(None, "absolute", 1.0, 1e-5, 1.0)
    operator._native.cpu().jepa_loss_backward(*views, options)
    assert_guards_intact(whole)
    assert torch.all(torch.isfinite(inside)) and torch.all(inside[4] == 0)
    separate = inside.clone()
    inside.fill_(math.nan)
    loss = torch.zeros(())  # held: views hold addresses alone
    operator._native.cpu().jepa_loss_fit(*views[1:-1], operator._native.view(loss), views[-1], options)
    assert_guards_intact(whole)
    assert torch.equal(inside, separate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", KINDS)
def test_one_pass_gives_the_bits_of_two(dtype, options):
    pred, target, ids = inputs(("cpu", "cpu"), dtype=dtype)
    ids[0, 1] = -1
    arguments = prepare(pred, target, ids, **options).values()
    separate = torch.ops.jepa_kernels.jepa_loss(*arguments)
    (expected,) = torch.autograd.grad(separate, pred)
    loss = jk.jepa_loss(pred, target, ids, **options)
    assert type(loss.grad_fn).__name__ == "_FitBackward"
    (gradient,) = torch.autograd.grad(loss, pred)
    assert torch.equal(loss, separate) and torch.equal(gradient, expected)


def test_a_share_of_the_loss_brings_an_incoming_gradient_of_one(monkeypatch):
    from jepa_kernels.functional.jepa_loss import share_of_loss
    from jepa_kernels.ops.jepa_loss import OPERATOR

    calls = []
    backward = OPERATOR.backends["cpu"].functions["backward"]
    monkeypatch.setitem(OPERATOR.backends["cpu"].functions, "backward", lambda *a: calls.append(a) or backward(*a))
    pred, target, ids = inputs(("cpu", "cpu"))
    (gradient,) = torch.autograd.grad(share_of_loss(pred, target, ids, 1 / 3), pred)
    assert not calls
    (outside,) = torch.autograd.grad(jk.jepa_loss(pred, target, ids) / 3, pred)
    assert len(calls) == 1
    torch.testing.assert_close(gradient, outside)


@pytest.mark.parametrize("factor", [3.7, 0.0, math.nan])
def test_another_incoming_gradient_is_multiplied_in_before_rounding(factor):
    pred, target, ids = inputs(("cpu", "cpu"), dtype=torch.bfloat16)
    separate = torch.ops.jepa_kernels.jepa_loss(*prepare(pred, target, ids).values())
    (expected,) = torch.autograd.grad(separate * factor, pred)
    (gradient,) = torch.autograd.grad(jk.jepa_loss(pred, target, ids) * factor, pred)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0, equal_nan=True)


def test_the_gradient_of_the_first_pass_is_handed_out_once():
    pred, target, ids = inputs(("cpu", "cpu"))
    loss = jk.jepa_loss(pred, target, ids)
    (first,) = torch.autograd.grad(loss, pred, retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, pred)
    assert torch.equal(second, kept) and second.abs().max() > 0


def test_inputs_written_before_backward_are_noticed():
    pred, target, ids = inputs(("cpu", "cpu"))
    z = pred * 1
    loss = jk.jepa_loss(z, target, ids)
    z.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_native_binding_refuses_rows_outside_the_target():
    from jepa_kernels.ops import jepa_loss as operator

    for row in (5, -2):
        tensors = (torch.zeros(1, 4), torch.zeros(5, 4), torch.tensor([row]), None, None, None, torch.zeros(()))
        views = [operator._native.view(tensor) for tensor in tensors]
        with pytest.raises(ValueError, match=f"row {row} is outside"):
            operator._native.cpu().jepa_loss_forward(
                *views, operator._native_options(None, "absolute", 1.0, 1e-5, 1.0)
            )


@pytest.mark.parametrize("level", instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [5, 16, 100, 1024])
def test_every_instruction_set(level, dtype, width):
    pred, target, ids = inputs(("cpu", "cpu"), width=width, dtype=dtype)
    with instruction_set(level):
        loss, (gradient,) = run(("cpu", "cpu"), pred, target, ids, kind="smooth_l1")
    exact = pred.detach().double().requires_grad_()
    expected = jk.reference.jepa_loss(exact, target.double(), ids, kind="smooth_l1")
    assert_close(loss, expected)
    assert_close(
        gradient,
        torch.autograd.grad(expected, exact)[0],
        {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype],
    )


def test_result_depends_neither_on_threads_nor_on_the_run():
    pred, target, ids = inputs(("cpu", "cpu"), batch=4, tokens=200, kept=150, width=128)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(run(("cpu", "cpu"), pred, target, ids))
    torch.set_num_threads(before)
    assert all(torch.equal(loss, results[0][0]) and torch.equal(g[0], results[0][1][0]) for loss, g in results)


@given(
    st.integers(1, 4), st.integers(1, 20), st.integers(0, 9), st.integers(1, 70), st.booleans(), st.sampled_from(KINDS)
)
def test_any_shape(batch, tokens, kept, width, padded, options):
    ids = torch.randint(-1 if padded else 0, tokens, (batch, kept))
    pred = torch.randn(batch, kept, width, requires_grad=True)
    target = torch.randn(batch, tokens, width)
    loss, (gradient,) = run(("cpu", "cpu"), pred, target, ids, **options)
    exact = pred.detach().double().requires_grad_()
    expected = jk.reference.jepa_loss(exact, target.double(), ids, **options)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert gradient.shape == pred.shape and torch.all(torch.isfinite(gradient))


def test_opcheck():
    pred, target, ids = inputs(("cpu", "cpu"))
    arguments = (pred, target.flatten(0, 1)[:18], None, None, None, None, None, "smooth_l1", 1.0, 1e-5, 0.1)
    flat = (pred.detach().flatten(0, 1).requires_grad_(), *arguments[1:])
    torch.library.opcheck(torch.ops.jepa_kernels.jepa_loss, flat)
    torch.library.opcheck(torch.ops.jepa_kernels.jepa_loss_fit, (flat[0].detach(), *flat[1:]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_in_one_graph_without_recompiling_as_ids_change():
    pred, target, _ = inputs(("cpu", "cpu"))
    compiled = torch.compile(lambda z, h, ids: jk.jepa_loss(z, h, ids), fullgraph=True, backend="aot_eager")
    for repeat in range(3):
        ids = some_ids(3, 17, 6)
        ids[0, repeat:] = -1
        with torch._dynamo.config.patch(error_on_recompile=repeat > 0):
            torch.testing.assert_close(compiled(pred, target, ids), jk.jepa_loss(pred, target, ids), rtol=1e-6, atol=0)


def test_autocast_changes_nothing():
    pred, target, ids = inputs(("cpu", "cpu"))
    expected, _ = run(("cpu", "cpu"), pred, target, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = jk.jepa_loss(pred, target, ids)
    assert torch.equal(loss, expected)


def test_second_derivatives_are_refused():
    pred, target, ids = inputs(("cpu", "cpu"))
    (gradient,) = torch.autograd.grad(jk.jepa_loss(pred, target, ids, kind="l2"), pred, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        gradient.sum().backward()

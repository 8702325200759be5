"""`jk.nn.Linear`: the numbers of `nn.Linear`, by copies under autocast and by oneDNN in float32."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from jepa_kernels.nn import MLP, Linear, attach_copies

# Relative to the largest value: what two orders of a float32 sum, or one rounding to bfloat16, may differ by.
FLOOR = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-9}


def with_copies(module):
    attach_copies(module)
    return module


def results(module, x, dy, dtype):
    """Output, and the gradients of input and parameters."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = module(x)
    y.backward(dy.to(y.dtype))
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(7,), (2, 5), (600,), (0,)])
@pytest.mark.parametrize(("wide", "narrow"), [(48, 16), (16, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_error_is_at_most_twice_torchs(dtype, rows, wide, narrow, bias):
    torch.manual_seed(0)
    ours = with_copies(Linear(wide, narrow, bias=bias))
    plain = torch.nn.Linear(wide, narrow, bias=bias)
    plain.load_state_dict(ours.state_dict())
    # Values that bfloat16 holds, so that the rounding of inputs is no part of either error.
    x, dy = torch.randn(*rows, wide).bfloat16().float(), torch.randn(*rows, narrow).bfloat16().float()
    exact = copy.deepcopy(plain)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.to(dtype))
    wanted = results(exact.double(), x.double(), dy.double(), torch.float64)
    for out, low, want in zip(results(ours, x, dy, dtype), results(plain, x, dy, dtype), wanted, strict=True):
        assert out.dtype == low.dtype and out.shape == want.shape
        scale = want.abs().max() if want.numel() else 1.0
        allowed = 2 * torch.dist(low.double(), want, float("inf")) if want.numel() else 0.0
        assert not want.numel() or torch.dist(out.double(), want, float("inf")) <= allowed + FLOOR[dtype] * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_in_the_product_is_the_gelu_of_the_product(dtype):
    module, x = with_copies(Linear(32, 64)), torch.randn(3, 700, 32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        fused = module.then_gelu(x)
        assert fused.dtype == dtype
        torch.testing.assert_close(fused, F.gelu(module(x)), rtol=2 * 2.0**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_mlp_without_gradients_equals_mlp_with_them():
    module, x = MLP(32, 64), torch.randn(3, 5, 32)
    expected = module(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)


def test_a_copy_follows_whoever_writes_its_parameter():
    module, x = with_copies(Linear(8, 4)), torch.randn(3, 8)
    for write in (
        lambda: torch.nn.init.constant_(module.weight, 0.5),
        lambda: module.load_state_dict({"weight": torch.ones(4, 8), "bias": torch.full((4,), 2.0)}),
        lambda: torch.optim.SGD([module.bias], lr=1.0).step(lambda: module.bias.sum().backward()),
    ):
        with torch.enable_grad():
            write()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(module(x), F.linear(x, module.weight, module.bias))


def test_parameters_put_in_the_place_of_others_are_read_themselves():
    module, x = with_copies(Linear(8, 4, bias=False)), torch.randn(3, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        doubled = torch.func.functional_call(module, {"weight": 2 * module.weight}, (x,))
        torch.testing.assert_close(doubled, 2 * module(x))
        module.weight = torch.nn.Parameter(torch.zeros(4, 8))
        assert not module(x).any()


def test_transforms_and_tracing_take_the_usual_way():
    module, x = with_copies(Linear(8, 4)), torch.randn(3, 8)
    per_row = torch.func.vmap(torch.func.grad(lambda row: module(row).square().sum()))(x)
    whole = x.clone().requires_grad_()
    module(whole).square().sum().backward()
    torch.testing.assert_close(per_row, whole.grad)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            torch.testing.assert_close(compiled(x), F.linear(x, module.weight, module.bias), rtol=1e-5, atol=1e-6)


def test_second_derivatives_raise():
    x = torch.randn(3, 8, requires_grad=True)
    (dx,) = torch.autograd.grad(Linear(8, 4)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_given_copies_are_taken_and_the_others_made():
    module = torch.nn.Sequential(Linear(3, 2), Linear(2, 2, bias=False))
    given = torch.zeros(2, 3, dtype=torch.bfloat16)
    found = attach_copies(module, torch.bfloat16, {module[0].weight: given})
    assert found.keys() == set(module.parameters()) and found[module[0].weight] is given
    for parameter, kept in found.items():
        assert torch.equal(kept, parameter.bfloat16()) and not kept.requires_grad


def test_copies_stay_behind_when_a_module_is_copied():
    module, x = with_copies(Linear(8, 4)), torch.randn(3, 8)
    twin = copy.deepcopy(module)
    assert not twin._copies and module._copies
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(twin(x), module(x))


def test_copies_are_rewritten_only_when_the_step_did_not():
    """A writer that counts both versions up, as AdamWEMA does, leaves nothing to refresh."""
    module, x = with_copies(Linear(8, 4)), torch.randn(3, 8)
    kept = module._copies
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for entry in kept:
            entry.parameter.mul_(2)
            entry.copy.mul_(2)
        module(x)
        assert module._copies is kept
        module.weight.mul_(2)
        module(x)
        assert module._copies is not kept

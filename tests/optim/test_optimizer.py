"""AdamWEMA: equality with AdamW then EMA, groups, schedulers, scalers, shadows, skipped steps, interchange of state."""

from __future__ import annotations

import copy
import math
import weakref

import pytest
import torch
from torch import nn

import jepa_kernels as jk
from jepa_kernels import _native


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(37, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 5))


def grads(module: nn.Module, step: int, scale: float = 1.0) -> None:
    module.zero_grad()
    x = torch.randn(8, 37, generator=torch.Generator().manual_seed(step))
    (module(x).square().mean() * scale).backward()


def largest_difference(a, b) -> float:
    return max(float((x.detach() - y.detach()).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equals_adamw_then_ema_after_100_steps(clip, backend):
    ours, theirs = model(), model()
    target = jk.EMATarget(ours, jk.optim.LinearMomentum(0.9, 1.0, 100))
    follower = copy.deepcopy(theirs).requires_grad_(False)
    optimizer = jk.AdamWEMA(jk.optim.parameter_groups(ours, 0.1), lr=3e-3, target=target, max_grad_norm=clip)
    official = torch.optim.AdamW(jk.optim.parameter_groups(theirs, 0.1), lr=3e-3)
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 100) for o in (optimizer, official)]
    for step in range(100):
        grads(ours, step)
        grads(theirs, step)
        with jk.backend(backend):
            optimizer.step()
        if clip is not None:
            norm = nn.utils.clip_grad_norm_(theirs.parameters(), clip)
            assert float(optimizer.grad_norm) == pytest.approx(float(norm), rel=1e-4)
        official.step()
        momentum = 0.9 + step * 0.1 / 100
        for k, q in zip(follower.parameters(), theirs.parameters(), strict=True):
            k.lerp_(q.detach(), 1 - momentum)
        for scheduler in schedulers:
            scheduler.step()
    assert largest_difference(ours.parameters(), theirs.parameters()) < 1e-6
    assert largest_difference(target.module.parameters(), follower.parameters()) < 1e-6
    assert target.step == 100 and optimizer.param_groups[0]["lr"] == official.param_groups[0]["lr"]


def test_groups_leave_biases_and_one_dimensional_parameters_undecayed():
    groups = jk.optim.parameter_groups(model(), 0.04)
    assert [group["weight_decay"] for group in groups] == [0.04, 0.0]
    assert all(p.ndim == 2 for p in groups[0]["params"]) and all(p.ndim == 1 for p in groups[1]["params"])


def test_state_dict_is_interchangeable_with_adamw():
    ours, theirs = model(), model()
    first = jk.AdamWEMA(ours.parameters(), lr=1e-2)
    second = torch.optim.AdamW(theirs.parameters(), lr=1e-2)
    for step in range(3):
        grads(ours, step)
        grads(theirs, step)
        first.step()
        second.step()
    assert set(first.state_dict()["param_groups"][0]) == set(second.state_dict()["param_groups"][0])
    assert set(first.state_dict()["state"][0]) == set(second.state_dict()["state"][0])
    swapped = torch.optim.AdamW(ours.parameters()), jk.AdamWEMA(theirs.parameters())
    swapped[0].load_state_dict(first.state_dict())
    swapped[1].load_state_dict(second.state_dict())
    for step in range(3, 6):
        grads(ours, step)
        grads(theirs, step)
        for optimizer in swapped:
            optimizer.step()
    assert largest_difference(ours.parameters(), theirs.parameters()) < 1e-6
    assert float(swapped[1].state[next(theirs.parameters())]["step"]) == 6.0


def test_a_state_with_amsgrad_is_refused_and_nothing_is_loaded():
    ours, theirs = model(), model()
    official = torch.optim.AdamW(theirs.parameters(), amsgrad=True)
    grads(theirs, 0)
    official.step()
    optimizer = jk.AdamWEMA(ours.parameters())
    with pytest.raises(ValueError, match="group 0 of the loaded state has amsgrad=True"):
        optimizer.load_state_dict(official.state_dict())
    assert not optimizer.state


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_gradients_are_skipped_and_counted(bad):
    ours = model()
    ours[0].bias.requires_grad_(False)  # a target outside the fused pass stays, too
    target = jk.EMATarget(ours, 0.5, buffers=True, shadow_dtype=torch.bfloat16)
    optimizer = jk.AdamWEMA([p for p in ours.parameters() if p.requires_grad], target=target)
    grads(ours, 0)
    optimizer.step()
    with torch.no_grad():
        ours[0].bias.add_(1.0)
    grads(ours, 1)
    ours[3].weight.grad[2, 3] = bad
    kept = [*ours.parameters(), *target.module.parameters(), *target.shadow.parameters()]
    kept += [value for state in optimizer.state.values() for value in state.values()]
    before = [x.detach().clone() for x in kept]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
    assert optimizer.skipped_steps == 1 and target.step == 2
    grads(ours, 2)
    optimizer.step()
    assert optimizer.skipped_steps == 1 and float(optimizer.state[ours[3].weight]["step"]) == 2.0
    assert not torch.equal(target.module[0].bias, before[len(list(ours.parameters()))])


def test_parameters_without_gradient_keep_still_and_their_targets_follow():
    ours = model()
    frozen = ours[0].weight.requires_grad_(False)
    target = jk.EMATarget(ours, 0.5)
    optimizer = jk.AdamWEMA(ours.parameters(), target=target)
    with torch.no_grad():
        frozen.add_(1.0)
    expected = torch.lerp(target.module[0].weight, frozen, 0.5)
    grads(ours, 0)
    optimizer.step()
    assert torch.equal(target.module[0].weight, expected) and frozen not in optimizer.state
    optimizer.zero_grad()
    before = ours[3].weight.detach().clone()
    optimizer.step()  # no gradient anywhere: only the target moves
    assert torch.equal(ours[3].weight, before) and target.step == 2
    assert torch.equal(target.module[0].weight, torch.lerp(expected, frozen, 0.5))


def test_trains_a_low_precision_twin():
    master = model()
    twin = jk.optim.shadow_module(master)
    target = jk.EMATarget(master, 0.9, shadow_dtype=torch.bfloat16)
    optimizer = jk.AdamWEMA(master.parameters(), lr=1e-2, target=target, shadows=jk.optim.shadows_of(master, twin))
    losses = []
    x = torch.randn(32, 37).bfloat16()
    for _ in range(30):
        optimizer.zero_grad()
        loss = (twin(x).float() - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert next(twin.parameters()).grad is not None
    optimizer.zero_grad()
    assert next(twin.parameters()).grad is None
    for pair in ((twin, master), (target.shadow, target.module)):
        assert all(torch.equal(a, b.bfloat16()) for a, b in zip(*(m.parameters() for m in pair), strict=True))


def test_scale_and_found_inf_of_a_scaler_are_taken_into_the_step():
    ours, theirs = model(), model()
    optimizer, plain = jk.AdamWEMA(ours.parameters()), jk.AdamWEMA(theirs.parameters())
    grads(ours, 0, scale=1024.0)
    grads(theirs, 0)
    optimizer.grad_scale, optimizer.found_inf = (
        torch.tensor(1024.0),
        torch.tensor(0.0),
    )  # as torch.amp.GradScaler.step sets them
    optimizer.step()
    plain.step()
    assert largest_difference(ours.parameters(), theirs.parameters()) < 1e-6
    before = [p.detach().clone() for p in ours.parameters()]
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert largest_difference(ours.parameters(), before) == 0.0 and optimizer.skipped_steps == 1


def test_grad_scaler_end_to_end():
    ours, theirs = model(), model()
    optimizer, plain = jk.AdamWEMA(ours.parameters()), jk.AdamWEMA(theirs.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(3):
        ours.zero_grad()
        x = torch.randn(8, 37, generator=torch.Generator().manual_seed(step))
        scaler.scale(ours(x).square().mean()).backward()
        if step == 1:
            ours[0].weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update(256.0)
        if step != 1:
            grads(theirs, step)
            plain.step()
    assert optimizer.skipped_steps == 1
    assert largest_difference(ours.parameters(), theirs.parameters()) < 1e-6


def test_gradients_that_move_or_change_their_dtype_are_followed():
    ours, theirs = model(), model()
    optimizer, official = jk.AdamWEMA(ours.parameters()), torch.optim.AdamW(theirs.parameters())
    keep = []
    for step in range(4):
        grads(ours, step)
        grads(theirs, step)
        keep.append([p.grad for p in ours.parameters()])
        for p in ours.parameters():
            p.grad = p.grad.clone()
        if step == 2:
            ours[0].weight.grad = None
            theirs[0].weight.grad = None
        optimizer.step()
        official.step()
    assert largest_difference(ours.parameters(), theirs.parameters()) < 1e-6


def test_lr_tensor_closure_and_add_param_group():
    ours = model()
    optimizer = jk.AdamWEMA(ours[0].parameters(), lr=torch.tensor(0.1))
    optimizer.add_param_group({"params": list(ours[3].parameters()), "lr": 0.0})
    before = [p.detach().clone() for p in ours.parameters()]

    def closure():
        grads(ours, 0)
        return torch.tensor(7.0)

    assert float(optimizer.step(closure)) == 7.0
    assert not torch.equal(ours[0].weight, before[0]) and torch.equal(ours[3].weight, before[4])
    with pytest.raises(ValueError, match="betas"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "betas": (0.9, 1.5)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be finite"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"eps": -1.0}, "eps"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be positive"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        jk.AdamWEMA(model().parameters(), **options)


def test_bad_momentum_leaves_everything_untouched():
    ours = model()
    target = jk.EMATarget(ours)
    optimizer = jk.AdamWEMA(ours.parameters(), target=target)
    grads(ours, 0)
    before = [p.detach().clone() for p in ours.parameters()]
    with pytest.raises(ValueError, match="momentum must lie"):
        optimizer.step(momentum=math.nan)
    assert largest_difference(ours.parameters(), before) == 0.0 and not optimizer.state and target.step == 0


def test_no_gradient_outlives_its_step_on_the_cpu():
    """Gradients kept by a plan would lie in memory beside those of the next backward pass."""
    if (reason := _native.why_no_cpu()) is not None:
        pytest.skip(reason)
    module = torch.nn.Linear(8, 4)
    optimizer = jk.AdamWEMA(module.parameters(), target=jk.EMATarget(module))
    with jk.backend("cpu"):
        for _ in range(3):
            module(torch.ones(2, 8)).sum().backward()
            gradients = [weakref.ref(parameter.grad) for parameter in module.parameters()]
            optimizer.step()
            optimizer.zero_grad()
            assert all(gradient() is None for gradient in gradients)

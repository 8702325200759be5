"""EMATarget: the update, schedules, buffers, shadows, checkpoints, wrappers, divergence."""

from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

import jepa_kernels as jk


def encoder(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(stem=nn.Linear(5, 8), norm=nn.BatchNorm1d(8), head=nn.Linear(8, 3, bias=False)))


def disturb(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


def ulps(a: torch.Tensor, b: torch.Tensor) -> int:
    """Largest distance in units in the last place."""
    ordered = [torch.where((bits := x.view(torch.int32).long()) < 0, -(2**31) - bits, bits) for x in (a, b)]
    return int((ordered[0] - ordered[1]).abs().max())


def test_follows_all_parameters_and_stays_within_one_ulp_of_the_official_loop():
    online = encoder()
    online.stem.weight.requires_grad_(False)  # a frozen parameter follows, too
    target = jk.EMATarget(online, 0.99925)
    disturb(online)
    expected = [p.clone() for p in target.module.parameters()]
    target.update()
    for ours, before, source in zip(target.module.parameters(), expected, online.parameters(), strict=True):
        assert torch.equal(ours, torch.lerp(before, source.detach(), 1 - 0.99925))
        official = before.double().mul(0.99925).add((1 - 0.99925) * source.detach().double()).float()
        assert ulps(ours, official) <= 1
    assert not any(p.requires_grad for p in target.module.parameters()) and target.step == 1


@pytest.mark.parametrize("steps", [0, 1, 500, 1000, 2000])
def test_linear_schedule_is_the_official_one(steps):
    official = [0.996 + i * (1.0 - 0.996) / 1000 for i in range(1001)]
    assert jk.optim.LinearMomentum(0.996, 1.0, 1000)(steps) == pytest.approx(official[min(steps, 1000)], abs=1e-15)


def test_schedule_advances_and_a_given_momentum_replaces_it():
    online = nn.Linear(1, 1, bias=False)
    target = jk.EMATarget(online, jk.optim.LinearMomentum(0.0, 1.0, 2))
    with torch.no_grad():
        online.weight.fill_(1.0)
        target.module.weight.zero_()
    target.update(momentum=0.75)
    assert float(target.module.weight) == 0.25
    target.update()  # step 1 of the schedule: 0.5
    assert float(target.module.weight) == 0.625
    target.update()  # at its end: stays
    assert float(target.module.weight) == 0.625
    target.update(torch.tensor(0.0))
    assert float(target.module.weight) == 1.0


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_bad_momentum_is_named_and_changes_nothing(bad):
    online = encoder()
    with pytest.raises(ValueError, match="momentum"):
        jk.EMATarget(online, bad)
    target = jk.EMATarget(online, lambda step: bad)
    disturb(online)
    before = [p.clone() for p in target.module.parameters()]
    for momentum in (None, torch.tensor(bad)):
        with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\]"):
            target.update(momentum)
    assert all(torch.equal(a, b) for a, b in zip(target.module.parameters(), before, strict=True)) and target.step == 0


@pytest.mark.parametrize("copied", [False, True])
def test_buffers_stay_unless_asked_for(copied):
    online = encoder()
    target = jk.EMATarget(online, 0.9, buffers=copied, shadow_dtype=torch.bfloat16)
    online(torch.randn(16, 5))
    target.update()
    assert torch.equal(target.module.norm.running_mean, online.norm.running_mean) is copied
    assert int(target.module.norm.num_batches_tracked) == int(copied)
    if copied:
        assert torch.equal(target.shadow.norm.running_mean, online.norm.running_mean.bfloat16())


def test_shadow_is_the_rounded_target_and_runs_the_forward():
    online = encoder().eval()
    target = jk.EMATarget(online, 0.9, shadow_dtype=torch.bfloat16)
    for _ in range(3):
        disturb(online)
        target.update()
    for shadow, value in zip(target.shadow.parameters(), target.module.parameters(), strict=True):
        assert torch.equal(shadow, value.bfloat16())
    out = target(torch.randn(4, 5).bfloat16())
    assert out.dtype == torch.bfloat16 and not out.requires_grad


def test_state_dict_round_trip_continues_bit_for_bit():
    online = encoder()
    target = jk.EMATarget(online, jk.optim.LinearMomentum(0.9, 1.0, 10), shadow_dtype=torch.bfloat16)
    disturb(online)
    target.update()
    other = jk.EMATarget(online, jk.optim.LinearMomentum(0.9, 1.0, 10), shadow_dtype=torch.bfloat16)
    other.load_state_dict(target.state_dict())
    disturb(online)
    for each in (target, other):
        each.update()
    assert other.step == 2
    for a, b in zip(
        [*target.module.parameters(), *target.shadow.parameters()],
        [*other.module.parameters(), *other.shadow.parameters()],
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
@pytest.mark.parametrize("nested", [False, True])
def test_loads_official_target_encoders(prefix, nested):
    source = encoder(seed=5)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    target = jk.EMATarget(encoder(), shadow_dtype=torch.bfloat16)
    target.load_state_dict({"target_encoder": state, "epoch": 3} if nested else state)
    assert all(torch.equal(a, b) for a, b in zip(target.module.parameters(), source.parameters(), strict=True))
    assert all(
        torch.equal(a, b.bfloat16()) for a, b in zip(target.shadow.parameters(), source.parameters(), strict=True)
    )
    with pytest.raises(RuntimeError, match="Missing key"):
        target.load_state_dict({"target_encoder": {}})


def test_divergence_of_structure_is_named_and_changes_nothing():
    online = encoder()
    target = jk.EMATarget(online, 0.9)
    target.update()
    before = [p.clone() for p in target.module.parameters()]
    disturb(online)
    online.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"the online module has 'extra\.\w+', the target does not"):
        target.update()
    del online.extra
    old = online.head
    online.head = nn.Linear(8, 4, bias=False)
    with pytest.raises(ValueError, match=r"'head.weight' has shape \(3, 8\) in the target, \(4, 8\)"):
        target.update()
    online.head = old
    online.norm.bias = None
    with pytest.raises(ValueError, match="the target has 'norm.bias'"):
        target.update()
    assert all(torch.equal(a, b) for a, b in zip(target.module.parameters(), before, strict=True)) and target.step == 1


def test_replaced_parameters_and_moved_data_are_followed():
    online = encoder()
    target = jk.EMATarget(online, 0.0)
    target.update()
    online.head.weight = nn.Parameter(torch.full((3, 8), 2.0))  # another object
    target.update()
    assert bool((target.module.head.weight == 2).all())
    online.head.weight.data = torch.full((3, 8), 3.0)  # the same object elsewhere
    target.update()
    assert bool((target.module.head.weight == 3).all())
    target.module.to(torch.bfloat16)
    target.update()
    assert target.module.stem.weight.dtype == torch.bfloat16
    assert torch.equal(target.module.stem.weight, online.stem.weight.bfloat16())


def test_autograd_learns_of_the_update():
    online = nn.Linear(3, 3)
    target = jk.EMATarget(online, 0.5)
    target.update()
    x = torch.randn(2, 3, requires_grad=True)
    out = target.module(x).sum()
    disturb(online)
    target.update()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_forced_backends_and_threads_give_the_same_bits():
    results = []
    for name in ("reference", "cpu", None):
        online = encoder()
        target = jk.EMATarget(online, 0.97)
        torch.manual_seed(3)
        for _ in range(3):
            disturb(online)
            with jk.backend(name):
                target.update()
        results.append([p.clone() for p in target.module.parameters()])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_compiled_module_is_unwrapped():
    online = encoder()
    target = jk.EMATarget(torch.compile(online, backend="eager"), 0.0)
    disturb(online)
    target.update()
    assert torch.equal(target.module.stem.weight, online.stem.weight)


def test_bfloat16_target_follows_where_nearest_rounding_stands_still():
    """2,000 steps at momentum 0.99925 towards fixed weights: the float32 target covers 78 % of the way."""
    torch.manual_seed(0)
    start = (torch.randn(20_000).abs() + 0.5).bfloat16()
    goal = start.float() * (1 + 0.05 * torch.randn(20_000))  # a step is far below half a unit in the last place
    kinds = {"exact": torch.float32, "nearest": torch.bfloat16, "random": torch.bfloat16}
    targets = {name: [start.to(dtype, copy=True)] for name, dtype in kinds.items()}
    first = targets["nearest"][0].clone()
    for step in range(2000):
        jk.ema_update_(targets["exact"], [goal], 0.99925)
        jk.ema_update_(targets["nearest"], [goal], 0.99925)
        jk.ema_update_(targets["random"], [goal], 0.99925, stochastic_rounding=True, seed=step)
    exact, random = targets["exact"][0], targets["random"][0].float()
    assert torch.equal(targets["nearest"][0], first)
    assert float((exact - start).norm() / exact.norm()) > 0.035
    assert float((random - exact).mean().abs() / exact.mean()) < 0.001
    assert float((random - exact).norm() / exact.norm()) < 0.01


def test_stochastic_rounding_is_unbiased_over_many_seeds():
    """Mean of 400,000 roundings of one value; false alarm below 6e-7 (five standard deviations, normal
    approximation)."""
    count, seeds, weight = 2000, 200, 0.00075
    online = torch.full((count,), 1.3)
    total = 0.0
    for seed in range(seeds):
        target = torch.ones(count, dtype=torch.bfloat16)
        jk.ema_update_([target], [online], 1 - weight, stochastic_rounding=True, seed=seed)
        total += float(target.double().sum())
    share = weight * 0.3 / 2**-7  # of the way to the next bfloat16
    deviation = 2**-7 * math.sqrt(share * (1 - share) / (count * seeds))
    assert abs(total / (count * seeds) - (1 + weight * 0.3)) < 5 * deviation

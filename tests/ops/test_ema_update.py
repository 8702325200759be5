"""ema_update_ on every backend: the formula, dtypes, shadows, stochastic rounding, memory safety, compile."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jepa_kernels as jk
from conftest import assert_guards_intact, backend_parameters, guarded, instruction_set, instruction_sets

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (0, 1, 7, 8, 9, 1000, 70_001)


@pytest.fixture(params=backend_parameters())
def place(request):
    """(device, backend)"""
    return request.param


def pair(shape, target_dtype, online_dtype, device):
    return torch.randn(shape, dtype=torch.float64).to(device, target_dtype), torch.randn(shape, dtype=torch.float64).to(device, online_dtype)


def run(place, targets, online, momentum, **options):
    with jk.backend(place[1]):
        jk.ema_update_(targets, online, momentum, **options)


def unsupported(place, target_dtype, online_dtype):
    mixed = torch.float64 in (target_dtype, online_dtype)
    return mixed and (place[1] == "triton" or (place[1] == "cuda" and target_dtype != online_dtype))


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.996, 1.0])
def test_equals_formula_in_float64(place, momentum):
    targets, online = zip(*(pair((size,), torch.float32, torch.float32, place[0]) for size in SIZES), strict=True)
    expected = [momentum * t.double() + (1 - momentum) * o.double() for t, o in zip(targets, online, strict=True)]
    run(place, targets, online, momentum)
    for target, value in zip(targets, expected, strict=True):
        torch.testing.assert_close(target.double(), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target_dtype", DTYPES)
@pytest.mark.parametrize("online_dtype", DTYPES)
def test_bit_equal_to_reference_in_mixed_dtypes(place, target_dtype, online_dtype):
    if unsupported(place, target_dtype, online_dtype):
        with pytest.raises(jk.BackendError, match="float64"):
            run(place, *([x] for x in pair((3,), target_dtype, online_dtype, place[0])), 0.9)
        return
    targets, online = zip(*(pair((size,), target_dtype, online_dtype, place[0]) for size in SIZES), strict=True)
    expected = [target.clone() for target in targets]
    jk.reference.ema_update_(expected, online, 0.99)
    run(place, targets, online, 0.99)
    for target, value in zip(targets, expected, strict=True):
        assert torch.equal(target, value)


def test_float32_is_torch_lerp_bit_for_bit(place):
    target, online = pair((10_000,), torch.float32, torch.float32, place[0])
    expected = torch.lerp(target, online, 1 - 0.998)
    run(place, [target], [online], 0.998)
    assert torch.equal(target, expected)


@pytest.mark.parametrize("shadow_dtype", [torch.bfloat16, torch.float16])
def test_shadow_is_rounded_from_the_unrounded_value(place, shadow_dtype):
    target, online = pair((4099,), torch.float32, torch.float32, place[0])
    shadow = torch.full((4099,), math.nan, dtype=shadow_dtype, device=place[0])
    run(place, [target], [online], 0.9, shadows=[shadow])
    assert torch.equal(shadow, target.to(shadow_dtype))


def test_stochastic_rounding_same_bits_as_reference_and_seeded(place):
    target, online = pair((5003,), torch.bfloat16, torch.float32, place[0])
    other, result, again, reseeded = (target.clone() for _ in range(4))
    jk.reference.ema_update_([other, other.clone()], [online, online], 0.99925, stochastic_rounding=True, seed=2**40 + 3)
    run(place, [result], [online], 0.99925, stochastic_rounding=True, seed=2**40 + 3)
    run(place, [again], [online], 0.99925, stochastic_rounding=True, seed=2**40 + 3)
    run(place, [reseeded], [online], 0.99925, stochastic_rounding=True, seed=4)
    assert torch.equal(result, other)
    assert torch.equal(result, again)
    assert not torch.equal(result, reseeded)


def test_random_bits_depend_on_the_place_in_the_list(place):
    target, online = pair((999,), torch.bfloat16, torch.float32, place[0])
    first, second = target.clone(), target.clone()
    run(place, [first, second], [online, online], 0.99925, stochastic_rounding=True, seed=1)
    assert not torch.equal(first, second)


def test_stochastic_rounding_is_unbiased_where_nearest_freezes(place):
    count = 200_000
    target = torch.ones(count, dtype=torch.bfloat16, device=place[0])
    online = torch.full((count,), 1.5, device=place[0])
    frozen = target.clone()
    run(place, [frozen], [online], 0.999)
    assert torch.equal(frozen, target), "to nearest, the step of 5e-4 is lost"
    run(place, [target], [online], 0.999, stochastic_rounding=True, seed=7)
    # 1.0005 lies a share 0.064 of the way to the next bfloat16; five standard deviations: false alarms at 6e-7
    share = float((target > 1).double().mean())
    expected = 0.0005 / 2**-7
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / count)


def test_non_finite_values_pass_through(place):
    values = torch.tensor([math.inf, -math.inf, math.nan, 1.0], device=place[0])
    for dtype in (torch.float32, torch.bfloat16):
        target = values.to(dtype, copy=True)
        run(place, [target], [values], 0.5, stochastic_rounding=dtype == torch.bfloat16, seed=0)
        expected = torch.lerp(values.to(dtype).float(), values, 0.5)
        assert torch.equal(torch.isnan(target), torch.isnan(expected))
        assert float(target[3]) == 1.0


def test_writes_nothing_outside(place):
    inside, whole = guarded(torch.zeros(4097, device=place[0]))
    shadow, shadow_whole = guarded(torch.zeros(4097, dtype=torch.bfloat16, device=place[0]))
    run(place, [inside], [torch.ones(4097, device=place[0])], 0.5, shadows=[shadow])
    assert_guards_intact(whole)
    assert_guards_intact(shadow_whole)
    assert torch.all(inside == 0.5) and torch.all(shadow == 0.5)


def test_unaligned_tensors(place):
    target, online = pair((1001,), torch.float32, torch.float32, place[0])
    expected = torch.lerp(target, online, 0.25)[1:]
    run(place, [target[1:]], [online[1:]], 0.75)
    assert torch.equal(target[1:], expected)


def test_dense_layouts_and_transposed_online(place):
    target = torch.randn(4, 6, 5, 7, device=place[0]).to(memory_format=torch.channels_last)
    online = torch.randn(4, 6, 5, 7, device=place[0])
    expected = torch.lerp(target, online, 0.1)
    run(place, [target], [online], 0.9)
    torch.testing.assert_close(target, expected, rtol=0, atol=1e-7)


def test_target_with_gaps_runs_on_reference_and_is_refused_when_forced(place):
    target = torch.zeros(4, 8, device=place[0])[:, :3]
    online = torch.ones(4, 3, device=place[0])
    if place[1] != "reference":
        with pytest.raises(jk.BackendError, match="gaps in memory"):
            run(place, [target], [online], 0.5)
    jk.ema_update_([target], [online], 0.5)
    assert torch.all(target == 0.5)


def test_empty_list_and_zero_elements(place):
    run(place, [], [], 0.5)
    run(place, [torch.empty(0, device=place[0])], [torch.empty(0, device=place[0])], 0.5)


def test_repeat_runs_are_bitwise_equal(place):
    target, online = pair((100_003,), torch.float32, torch.float32, place[0])
    results = []
    for _ in range(3):
        copy = target.clone()
        run(place, [copy], [online], 0.123)
        results.append(copy)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("level", instruction_sets())
@pytest.mark.parametrize("target_dtype", DTYPES)
def test_every_instruction_set_gives_the_same_bits(level, target_dtype):
    target, online = pair((3001,), target_dtype, torch.float32, "cpu")
    expected = target.clone()
    jk.reference.ema_update_([expected], [online], 0.9)
    with instruction_set(level):
        run(("cpu", "cpu"), [target], [online], 0.9)
    assert torch.equal(target, expected)


@pytest.mark.parametrize("level", instruction_sets())
def test_half_conversions_of_every_bit_pattern(level):
    for dtype in (torch.float16, torch.bfloat16):
        values = torch.from_numpy(np.arange(65536, dtype=np.uint16).view(np.int16).copy()).view(dtype)
        kept, moved = values.clone(), torch.zeros(65536)
        with instruction_set(level):
            run(("cpu", "cpu"), [moved], [values], 0.0)  # converts every pattern to float32
            run(("cpu", "cpu"), [kept], [moved], 0.0)  # and back
        number = torch.isfinite(values)
        assert torch.equal(moved[number], values.float()[number])
        assert torch.equal(kept[number], values[number])
        assert torch.all(torch.isnan(moved[~number]))  # as torch.lerp: infinity times zero


@pytest.mark.parametrize("level", instruction_sets())
def test_rounding_to_half_at_ties_and_overflow(level):
    values = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 65520.0, 1e30, 2**-25, 1.5 * 2**-25, 6e-5, -2.0**-24, 0.0, -0.0])
    for dtype in (torch.float16, torch.bfloat16):
        target = torch.zeros(len(values), dtype=dtype)
        with instruction_set(level):
            run(("cpu", "cpu"), [target], [values], 0.0)
        assert torch.equal(target, values.to(dtype))


@given(st.lists(st.integers(0, 300), max_size=12), st.floats(0, 1), st.booleans())
def test_any_list_of_sizes(sizes, momentum, with_shadows):
    targets = [torch.randn(size) for size in sizes]
    online = [torch.randn(size) for size in sizes]
    shadows = [torch.empty(size, dtype=torch.bfloat16) for size in sizes] if with_shadows else None
    expected = [target.clone() for target in targets]
    jk.reference.ema_update_(expected, online, momentum)
    run(("cpu", "cpu"), targets, online, momentum, shadows=shadows)
    assert all(torch.equal(a, b) for a, b in zip(targets, expected, strict=True))


def test_opcheck():
    target, online = torch.randn(9), torch.randn(9)
    torch.library.opcheck(torch.ops.jepa_kernels.ema_update_, ([target], [online], [], 0.9, None, False, 0, None))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_in_one_graph_without_recompiling_as_values_change():
    def update(targets, online):
        jk.ema_update_(targets, online, 0.9)
        return targets[0] + 1

    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    for repeat in range(3):
        target, online = torch.randn(5), torch.randn(5)
        expected = torch.lerp(target, online, 1 - 0.9) + 1
        with torch._dynamo.config.patch(error_on_recompile=repeat > 0):
            assert torch.equal(compiled([target], [online]), expected)


def test_autocast_does_not_change_the_result():
    target, online = torch.randn(33), torch.randn(33)
    expected = torch.lerp(target, online, 1 - 0.9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        jk.ema_update_([target], [online], 0.9)
    assert torch.equal(target, expected)


@pytest.mark.gpu
def test_graph_capture_and_replay():
    target, online = torch.randn(1000, device="cuda"), torch.randn(1000, device="cuda")
    for name in ("triton", "cuda"):
        with jk.backend(name):
            jk.ema_update_([target], [online], 0.5)  # compiles, and uploads the table of addresses
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                jk.ema_update_([target], [online], 0.5)
        expected = torch.lerp(target, online, 0.5)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(target, expected)


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements():
    count = 2**31 + 9
    for name in ("triton", "cuda"):
        target = torch.zeros(count, dtype=torch.bfloat16, device="cuda")
        online = torch.ones(count, dtype=torch.bfloat16, device="cuda")
        with jk.backend(name):
            jk.ema_update_([target], [online], 0.5)
        assert float(target.min()) == float(target.max()) == 0.5

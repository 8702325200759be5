"""adamw_ema_ on every backend: the formula, shadows, clipping, skipping, memory safety."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jepa_kernels as jk
from conftest import assert_guards_intact, backend_parameters, guarded, instruction_set, instruction_sets

SIZES = (0, 1, 7, 33, 1000, 70_001)


@pytest.fixture(params=backend_parameters())
def place(request):
    """(device, backend)"""
    return request.param


def problem(device="cpu", sizes=SIZES, grad_dtype=torch.float32, shadow_dtype=torch.bfloat16):
    def draw(dtype=torch.float32):
        return [torch.randn(size).to(device, dtype) for size in sizes]

    return {
        "params": draw(),
        "grads": draw(grad_dtype),
        "exp_avgs": draw(),
        "exp_avg_sqs": [x.square() for x in draw()],
        "steps": [torch.tensor(float(index), device=device) for index in range(len(sizes))],
        "targets": draw(),
        "param_shadows": draw(shadow_dtype),
        "target_shadows": draw(shadow_dtype),
    }


def clone(lists, dtype=None):
    wide = {"params", "grads", "exp_avgs", "exp_avg_sqs", "targets"}
    return {
        name: [x.clone() if dtype is None or name not in wide else x.to(dtype) for x in tensors]
        for name, tensors in lists.items()
    }


def run(backend, lists, **options):
    with jk.backend(backend):
        return jk.adamw_ema_(**lists, **options)


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options", [{}, {"max_grad_norm": 1.0, "grad_scale": 8.0}, {"betas": (0.3, 0.6), "weight_decay": 0.0}]
)
def test_error_is_within_twice_that_of_torch(place, grad_dtype, options):
    lists = problem(place[0], grad_dtype=grad_dtype)
    exact, plain = clone(lists, torch.float64), clone(lists)
    common = {"lr": 0.01, "momentum": 0.9, **options}
    jk.reference.adamw_ema_(**exact, **common)
    jk.reference.adamw_ema_(**plain, **common)
    status = run(place[1], lists, **common)
    for name in ("params", "exp_avgs", "exp_avg_sqs", "targets"):
        for ours, theirs, truth in zip(lists[name], plain[name], exact[name], strict=True):
            bound = 2 * (theirs.double() - truth).abs().max().item() if truth.numel() else 0.0
            floor = 2**-23 * (truth.abs().max().item() if truth.numel() else 0.0)
            assert truth.numel() == 0 or (ours.double() - truth).abs().max().item() <= bound + floor, name
    for name, source in (("param_shadows", "params"), ("target_shadows", "targets")):
        assert all(
            torch.equal(shadow, value.to(shadow.dtype))
            for shadow, value in zip(lists[name], lists[source], strict=True)
        )
    assert [float(step) for step in lists["steps"]] == [index + 1.0 for index in range(len(SIZES))]
    expected = math.sqrt(sum(float(g.double().square().sum()) for g in lists["grads"])) / common.get("grad_scale", 1.0)
    assert float(status[0]) == pytest.approx(expected, rel=1e-5) and status[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_gradients_skip_the_step_and_change_nothing(place, bad):
    lists = problem(place[0])
    lists["grads"][-1][12_345] = bad
    before = clone(lists)
    status = run(place[1], lists, momentum=0.9)
    assert status[1:].tolist() == [1.0, 1.0]
    for name in lists:
        if name != "grads":
            assert all(torch.equal(a, b) for a, b in zip(lists[name], before[name], strict=True)), name


def test_found_inf_skips_and_unchecked_gradients_pass(place):
    lists = problem(place[0])
    before = clone(lists)
    assert float(run(place[1], lists, found_inf=torch.ones(1, device=place[0]))[1]) == 1.0
    assert all(torch.equal(a, b) for a, b in zip(lists["params"], before["params"], strict=True))
    lists["grads"][1][0] = math.nan
    status = run(place[1], lists, skip_nonfinite=False)
    assert status.tolist() == [0.0, 0.0, 0.0]
    assert bool(lists["params"][1].isnan()) and not bool(lists["params"][2].isnan().any())


def test_without_targets_and_shadows_equals_torch_adamw(place):
    lists = problem(place[0])
    parameters = [torch.nn.Parameter(p.clone()) for p in lists["params"]]
    optimizer = torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.3)
    for name in ("exp_avgs", "exp_avg_sqs", "steps"):
        for x in lists[name]:
            x.zero_()
    for _ in range(3):
        for parameter, grad in zip(parameters, lists["grads"], strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
        with jk.backend(place[1]):
            jk.adamw_ema_(
                *[lists[n] for n in ("params", "grads", "exp_avgs", "exp_avg_sqs", "steps")], lr=0.02, weight_decay=0.3
            )
    for ours, theirs in zip(lists["params"], parameters, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=2e-6, atol=2e-6)


def test_writes_nothing_outside(place):
    lists = problem(place[0], sizes=(4097,))
    names = ("params", "exp_avgs", "exp_avg_sqs", "targets", "param_shadows", "target_shadows")
    expected = clone(lists)
    run(place[1], expected, momentum=0.5)
    wholes = {}
    for name in names:
        lists[name][0], wholes[name] = guarded(lists[name][0])
    run(place[1], lists, momentum=0.5)
    for name in names:
        assert_guards_intact(wholes[name])
        torch.testing.assert_close(lists[name][0], expected[name][0], rtol=0, atol=0)


def test_unaligned_and_channels_last(place):
    lists = problem(place[0], sizes=(1001,))
    expected = clone(lists)
    run(place[1], expected, momentum=0.5)
    shifted = {
        n: [torch.empty(1002, dtype=x.dtype, device=x.device)[1:].copy_(x) if x.numel() > 1 else x for x in ts]
        for n, ts in lists.items()
    }
    run(place[1], shifted, momentum=0.5)
    assert torch.equal(shifted["params"][0], expected["params"][0]) and torch.equal(
        shifted["targets"][0], expected["targets"][0]
    )
    image = torch.randn(3, 4, 5, 6, device=place[0])
    flat = [image.clone() for _ in range(2)]
    last = [x.to(memory_format=torch.channels_last) for x in flat]
    moments = [[torch.zeros_like(x)] for x in (last[0], last[0])]
    with jk.backend(place[1]):  # the gradient comes in another memory order than its parameter
        jk.adamw_ema_([last[0]], [image.contiguous()], *moments, [torch.zeros((), device=place[0])])
        jk.adamw_ema_(
            [flat[0]],
            [image],
            [torch.zeros_like(image)],
            [torch.zeros_like(image)],
            [torch.zeros((), device=place[0])],
        )
    assert torch.equal(last[0].contiguous(), flat[0])


def test_repeat_runs_are_bitwise_equal(place):
    results = []
    lists = problem(place[0])
    for _ in range(2):
        fresh = clone(lists)
        run(place[1], fresh, momentum=0.9, max_grad_norm=0.5)
        results.append(fresh)
    assert all(torch.equal(a, b) for name in lists for a, b in zip(results[0][name], results[1][name], strict=True))


@pytest.mark.parametrize("level", instruction_sets())
@pytest.mark.parametrize("threads", [1, 2])
def test_every_instruction_set_and_thread_count_gives_the_same_bits(level, threads):
    lists = problem(sizes=(5, 3001, 2_200_000), grad_dtype=torch.bfloat16)
    expected = clone(lists)
    with instruction_set("baseline"):
        wanted = run("cpu", expected, momentum=0.9, max_grad_norm=1.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with instruction_set(level):
            status = run("cpu", lists, momentum=0.9, max_grad_norm=1.0)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(status, wanted)
    assert all(torch.equal(a, b) for name in lists for a, b in zip(lists[name], expected[name], strict=True))


@given(st.lists(st.integers(0, 300), min_size=1, max_size=8), st.floats(0, 1), st.booleans(), st.booleans())
def test_any_list_of_sizes(sizes, momentum, with_target, with_shadow):
    lists = problem(sizes=sizes)
    if not with_target:
        lists["targets"] = lists["target_shadows"] = [None] * len(sizes)
    if not with_shadow:
        lists["param_shadows"] = [None] * len(sizes)
    expected = {n: [None if x is None else x.clone() for x in ts] for n, ts in lists.items()}
    jk.reference.adamw_ema_(**expected, momentum=momentum)
    run("cpu", lists, momentum=momentum)
    for name in ("params", "targets"):
        for ours, theirs in zip(lists[name], expected[name], strict=True):
            assert ours is None or torch.allclose(ours, theirs, rtol=2e-6, atol=2e-6)


def test_native_backends_refuse_other_state_and_automatic_runs_the_reference():
    lists = problem(sizes=(9,))
    lists["exp_avgs"] = [x.double() for x in lists["exp_avgs"]]
    with pytest.raises(jk.BackendError, match=r"exp_avgs\[0\] is torch.float64"):
        run("cpu", lists)
    before = lists["params"][0].clone()
    jk.adamw_ema_(**lists)
    assert not torch.equal(lists["params"][0], before)


def test_opcheck():
    lists = problem(sizes=(9,))
    scalars = [
        torch.tensor([[0.1, 0.9, 0.99, 1e-8, 0.1]], dtype=torch.float64),
        torch.tensor([0.9, math.inf, 1.0, 0.0], dtype=torch.float64),
    ]
    arguments = (
        *lists.values(),
        [0],
        *scalars,
        torch.empty(0, dtype=torch.float64),
        torch.zeros(3, dtype=torch.float64),
        True,
    )
    torch.library.opcheck(torch.ops.jepa_kernels.adamw_ema_, arguments)


@pytest.mark.gpu
def test_graph_capture_and_replay():
    for name in ("triton", "cuda"):
        parameters = [torch.nn.Parameter(torch.randn(1000, device="cuda"))]
        parameters[0].grad = torch.randn(1000, device="cuda")
        momentum = torch.tensor(0.9, dtype=torch.float64, device="cuda")
        holder = torch.nn.ParameterList(parameters)
        target = jk.EMATarget(holder)
        with jk.backend(name):
            optimizer = jk.AdamWEMA(holder.parameters(), target=target, capturable=True, max_grad_norm=1.0)
            optimizer.step(momentum=momentum)  # compiles, and uploads the tables
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step(momentum=momentum)
            before = parameters[0].detach().clone()
            graph.replay()
            torch.cuda.synchronize()
        assert not torch.equal(parameters[0], before)
        assert float(optimizer.state[parameters[0]]["step"]) == 2.0

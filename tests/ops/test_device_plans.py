"""What GPU plans keep, where they launch, and what a captured CUDA graph may rely on; no kernel runs here."""

from __future__ import annotations

import contextlib
import types
import weakref

import pytest
import torch

from jepa_kernels.ops import _library, ema_update, plans
from jepa_kernels.ops.adamw_ema import Scalars, Tensors
from jepa_kernels.ops.adamw_ema_device import DevicePlan

GPU = torch.device("cuda", 1)


def step_of(grads):
    def like(values):
        return [torch.zeros(value.shape) for value in values]

    absent = [torch.empty(0) for _ in grads]
    steps = [torch.zeros(()) for _ in grads]
    return Tensors(like(grads), grads, like(grads), like(grads), steps, absent, absent, absent, [0] * len(grads))


@pytest.fixture
def plan(monkeypatch):
    """A plan whose launches do nothing, and its gradients."""
    monkeypatch.setattr(DevicePlan, "_update_triton", lambda self, scalars: None)
    grads = [torch.ones(9), torch.ones(4, 6).t()]  # the second in another memory order than its parameter
    return DevicePlan(step_of(list(grads)), "triton"), grads


def update(plan):
    plan.update(Scalars(*[torch.empty(0)] * 4))


def test_a_plan_keeps_no_gradient_beyond_its_step(plan):
    plan, grads = plan
    kept = [weakref.ref(grad) for grad in grads]
    grads.clear()
    assert kept[0]() is not None  # until the step is over
    update(plan)
    assert kept[0]() is None and kept[1]() is None
    later = [torch.ones(9), torch.ones(6, 4)]
    kept = [weakref.ref(grad) for grad in later]
    plan.set_grads(later)
    later.clear()
    update(plan)
    assert kept[0]() is None and kept[1]() is None


def test_a_captured_graph_keeps_the_addresses_of_its_own_gradients(plan, monkeypatch):
    plan, _ = plan
    monkeypatch.setattr("jepa_kernels.ops.adamw_ema_device.captured", lambda tables, device: True)
    update(plan)
    monkeypatch.setattr("jepa_kernels.ops.adamw_ema_device.captured", lambda tables, device: False)
    table, addresses = plan._grad_table, plan._grad_table.tolist()
    moved = [torch.ones(9), torch.ones(6, 4)]
    plan.set_grads(moved)
    assert table.tolist() == addresses and plan._grad_table.tolist() == [grad.data_ptr() for grad in moved]
    again, moved = plan._grad_table, [torch.ones(9), torch.ones(6, 4)]
    plan.set_grads(moved)
    assert plan._grad_table is again and again.tolist() == [grad.data_ptr() for grad in moved]


@pytest.mark.parametrize("capturing", [False, True])
def test_tables_of_a_captured_graph_stay(monkeypatch, capturing):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(plans, "_captured", {})
    tables = (torch.empty(1),)
    alive = weakref.ref(tables[0])
    assert plans.captured(tables, GPU) is capturing and not plans.captured(tables, torch.device("cpu"))
    del tables
    assert (alive() is not None) is capturing


def test_prepared_calls_launch_on_the_gpu_of_their_tensors(monkeypatch):
    kernel = pytest.importorskip("jepa_kernels.kernels.ema_update", exc_type=ImportError)
    seen = []

    @contextlib.contextmanager
    def on_device(device):
        seen.append(device)
        yield
        seen.append("left")

    monkeypatch.setattr(ema_update, "on_device", on_device)
    monkeypatch.setattr(kernel, "launch", lambda *arguments, **options: seen.append("triton"))
    monkeypatch.setattr(ema_update._native, "cuda", lambda: types.SimpleNamespace(ema_update=lambda *a: seen.append("cuda")))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=0))
    for make, name in ((ema_update._plan_triton, "triton"), (ema_update._plan_cuda, "cuda")):
        make([torch.zeros(3)], [torch.ones(3)], [])(0.5, False, 0)
        assert seen == [torch.device("cpu"), name, "left"]
        seen.clear()


def test_a_step_launches_on_the_gpu_of_its_tensors(plan, monkeypatch):
    plan, _ = plan
    inside = []

    @contextlib.contextmanager
    def on_device(device):
        inside.append(device)
        yield
        inside.pop()

    monkeypatch.setattr("jepa_kernels.ops.adamw_ema_device.on_device", on_device)
    monkeypatch.setattr(DevicePlan, "_update_triton", lambda self, scalars: calls.append(list(inside)))
    monkeypatch.setattr(DevicePlan, "_sum_squares", lambda self: calls.append(list(inside)))
    calls: list[list[torch.device]] = []
    plan.sum_of_squares()
    update(plan)
    assert calls == [[torch.device("cpu")]] * 2 and not inside


def test_only_gpus_are_made_current(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: ("current", device))
    assert _library.on_device(GPU) == ("current", GPU)
    for device in (None, torch.device("cpu"), torch.device("meta")):
        assert isinstance(_library.on_device(device), contextlib.nullcontext)
    assert _library._device_of(([torch.empty(2, device="meta")], 3)) == torch.device("meta")
    assert _library._device_of(([], 3)) is None


def test_numbers_go_to_a_gpu_without_waiting_for_it(monkeypatch):
    made, copied = [], []
    monkeypatch.setattr(plans.torch, "tensor", lambda values, **options: made.append(options) or values)
    for is_cuda in (True, False):
        destination = types.SimpleNamespace(
            is_cuda=is_cuda, dtype=torch.int64, copy_=lambda source, non_blocking: copied.append((source, non_blocking))
        )
        plans.upload([3, 5], destination)
    assert [options["pin_memory"] for options in made] == [True, False]
    assert copied == [([3, 5], True), ([3, 5], False)]

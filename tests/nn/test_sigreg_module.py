"""The SIGReg module: seeds by step, state, and two processes that equal one with the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import jepa_kernels as jk


def test_each_call_uses_the_next_seed():
    x = torch.randn(50, 8)
    module = jk.nn.SIGReg(num_slices=64)
    assert torch.equal(module(x), jk.sigreg(x, num_slices=64, seed=0))
    assert torch.equal(module(x), jk.sigreg(x, num_slices=64, seed=1))


def test_state_dict_resumes_the_seeds():
    x = torch.randn(50, 8)
    model = torch.nn.ModuleDict({"regulariser": jk.nn.SIGReg(num_slices=64)})
    model["regulariser"](x)
    state = model.state_dict()
    assert list(state) == ["regulariser.global_step"]
    expected = model["regulariser"](x)
    assert int(state["regulariser.global_step"]) == 1, "a state dict must not follow the module"
    resumed = torch.nn.ModuleDict({"regulariser": jk.nn.SIGReg(num_slices=64)})
    resumed.load_state_dict(state)
    assert torch.equal(resumed["regulariser"](x), expected)
    with pytest.raises(RuntimeError, match="global_step"):
        resumed.load_state_dict({})


def test_unseeded_follows_the_default_generator():
    x = torch.randn(50, 8)
    module = jk.nn.SIGReg(num_slices=64, seeded=False)
    torch.manual_seed(1)
    first = module(x)
    torch.manual_seed(1)
    assert torch.equal(module(x), first) and not torch.equal(module(x), first)
    assert int(module.global_step) == 0


def test_moving_the_module_leaves_the_counter_on_the_host():
    module = jk.nn.SIGReg().to("meta")
    assert module.global_step.device.type == "cpu"


def test_a_group_needs_seeds():
    with pytest.raises(ValueError, match="seeded=True"):
        jk.nn.SIGReg(seeded=False, group=object())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_module_does_not_recompile():
    module = jk.nn.SIGReg(num_slices=32)
    eager = jk.nn.SIGReg(num_slices=32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(20, 4)
    for step in range(3):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            torch.testing.assert_close(compiled(x), eager(x))


def _joined_batch(rank: int, sizes: list[int], backend: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{results}/store", rank=rank, world_size=len(sizes))
    torch.set_num_threads(1)
    x = torch.randn(2, sum(sizes), 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = sum(sizes[:rank])
    mine = x[:, start : start + sizes[rank]].contiguous().float().requires_grad_()
    with jk.backend(backend):
        loss = jk.nn.SIGReg(num_slices=64)(mine)
        loss.backward()
    torch.save((loss.detach(), mine.grad), f"{results}/{rank}.pt")
    del loss  # its graph holds the group
    dist.destroy_process_group()
    left = [name for name in _threads() if "gloo" in name]
    assert not left, f"{left} outlive the group and may abort the process while the interpreter ends"


def _threads() -> list[str]:
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


@pytest.mark.parametrize("sizes", [[24, 24], [30, 11]])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_two_processes_equal_one_with_the_joined_batch(tmp_path, sizes, backend):
    mp.spawn(_joined_batch, (sizes, backend, str(tmp_path)), nprocs=len(sizes))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))]
    x = (
        torch.randn(2, sum(sizes), 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        .float()
        .requires_grad_()
    )
    expected = jk.sigreg(x, num_slices=64, seed=0)
    expected.backward()
    for loss, _ in parts:
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
    # Each rank adds the gradients of both ranks' losses; DDP's mean over ranks takes the factor out again.
    gradient = torch.cat([part for _, part in parts], 1) / len(sizes)
    assert float((gradient - x.grad).norm() / x.grad.norm()) < 1e-4

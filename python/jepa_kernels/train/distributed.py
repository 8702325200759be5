"""Several processes: torch's process group, DDP and FSDP2, and whole tensors out of sharded ones."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..nn import Block


@dataclass(frozen=True)
class World:
    """This process among those that torchrun started; one process where it did not."""

    rank: int
    size: int
    device: torch.device
    hosts: Any = None  # a group that exchanges numbers between hosts, so that asking does not wait for the GPUs

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean(self, values: list[float]) -> list[float]:
        """Each value averaged over the processes; all of them must call this."""
        return [total / self.size for total in self._reduced(values, dist.ReduceOp.SUM)]

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all of them must call this."""
        return self._reduced([float(flag)], dist.ReduceOp.MAX)[0] > 0

    def union(self, entries: dict[str, str]) -> dict[str, str]:
        """The entries of all processes; all of them must call this."""
        if self.size == 1:
            return entries
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, entries, group=self.hosts)
        return {key: value for part in gathered for key, value in part.items()}

    def _reduced(self, values: list[float], operation: Any) -> list[float]:
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, operation, group=self.hosts)
        return tensor.tolist()


def join(device: str = "auto") -> World:
    """The process group of torchrun, if this process is of one: NCCL on GPUs, gloo on CPUs."""
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World(0, 1, torch.device("cuda" if on_gpu else "cpu"))
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(local)
    # Ahead of the group: imported later, as FSDP2 does, its default arguments hold the group for good, see `leave`.
    import_module("torch.distributed.nn.functional")

    dist.init_process_group("nccl" if on_gpu else "gloo")
    return World(dist.get_rank(), dist.get_world_size(), local, dist.new_group(backend="gloo"))


def leave() -> None:
    """Ends the process group, if there is one.

    A group lives as long as anything holds it, and with it Gloo's threads, which may abort the process while the interpreter
    ends: models and optimisers, which hold it, are in cycles, and go first. FSDP2's caches keep theirs; there the wait leaves
    the threads time to let go of the last tensors.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
        time.sleep(0.1)


def sharded(model: nn.Module, world: World) -> nn.Module:
    """Cuts every parameter over the processes with FSDP2: each block by itself, the rest together."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in (model.encoder, model.target_encoder, model.predictor):
        for block in (child for child in part.modules() if isinstance(child, Block)):  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "examined")  # the diagnostics call it
    return model


def replicated(model: nn.Module) -> nn.Module:
    """The model under DDP. Mask tokens that no mask uses have no gradient in any step: hence the static graph."""
    return nn.parallel.DistributedDataParallel(model, static_graph=True)


def gathered(value: Any, keep: bool = True) -> Any:
    """Nested dicts and lists with every sharded tensor made whole, on the CPU; all processes must call this.

    Where `keep` is False, tensors are None: a process that writes nothing takes part in the exchange and holds no copy."""
    if isinstance(value, dict):
        return {key: gathered(entry, keep) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(entry, keep) for entry in value)
    if isinstance(value, Tensor):
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        return whole.detach().to("cpu", copy=True) if keep else None
    return value


def shard_as(whole: Tensor, like: Any) -> Tensor:
    """A whole tensor cut as `like` is, or itself where that is not sharded."""
    if not hasattr(like, "placements"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)

"""Worker of test_distributed.py: a few steps of training as one process, or as one of two under DDP or FSDP2."""

from __future__ import annotations

import copy
import math
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import jepa_kernels as jk
from jepa_kernels.train.distributed import leave

STEPS, BATCH = 6, 8


def encoder() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 19), nn.LayerNorm(19), nn.GELU(), nn.Linear(19, 5))  # odd sizes: uneven shards
    model[1].weight.requires_grad_(False)  # its target follows outside the fused pass
    return model


def wrap(kind: str, online: nn.Module) -> tuple[nn.Module, jk.EMATarget]:
    momentum = jk.optim.LinearMomentum(0.9, 1.0, 10)
    if kind == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(online)
        return wrapped, jk.EMATarget(wrapped, momentum)
    if kind == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        twin = copy.deepcopy(online)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()  # EMATarget overwrites it with the online values
        for model in (online, twin):
            fully_shard(model[0], mesh=mesh)
            fully_shard(model, mesh=mesh)
        return online, jk.EMATarget(online, momentum, target=twin)
    return online, jk.EMATarget(online, momentum)


def full(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()
        for name, value in state.items()
    }


def train(kind: str) -> dict[str, Any]:
    rank, world = (dist.get_rank(), dist.get_world_size()) if kind != "single" else (0, 1)
    model, target = wrap(kind, encoder())
    optimizer = jk.AdamWEMA(jk.optim.parameter_groups(model, 0.1), lr=1e-2, target=target, max_grad_norm=0.05)
    norms = []
    for step in range(STEPS):
        x = torch.randn(BATCH, 7, generator=torch.Generator().manual_seed(step))
        if step == 3:
            x[0, 0] = math.nan  # one process sees it, all must skip
        share = x.chunk(world)[rank]
        optimizer.zero_grad()
        (model(share) - target(share.nan_to_num())).square().mean().add(model(share).mean()).backward()
        optimizer.step()
        if step != 3:
            norms.append(float(optimizer.grad_norm))
    inner = model.module if kind == "ddp" else model
    if kind == "fsdp2":
        for module in (model, target.module):
            module.reshard()
    return {
        "online": full(inner.state_dict()),
        "target": full(target.module.state_dict()),
        "norm": norms,
        "skipped": optimizer.skipped_steps,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    torch.save(train(sys.argv[1]), sys.argv[2])
    leave()

"""Worker of test_ddp.py: two steps of training in one process, or as one of two, patched before or after DDP, or not at all."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.integrations.official import vjepa2

import jepa_kernels as jk
from jepa_kernels.train.distributed import leave


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "vjepa2":
        return vjepa2.VisionTransformer()
    transformers = importlib.import_module("transformers")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    return transformers.IJepaModel(transformers.IJepaConfig(**sizes, image_size=32, patch_size=8))


def available(kind: str) -> bool:
    return kind == "vjepa2" or importlib.util.find_spec("transformers") is not None


def train(kind: str, order: str) -> dict[str, torch.Tensor]:
    """State after two steps of SGD; `order`: single, none, before, after."""
    rank, world = (0, 1) if order == "single" else (dist.get_rank(), 2)
    model = build(kind)
    if order == "before":
        assert jk.patch(model)
    wrapped = model if order == "single" else nn.parallel.DistributedDataParallel(model)
    if order == "after":
        assert all(entry.name.startswith("module") for entry in jk.patch(wrapped).replaced)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    shape = (4, 3, 4, 32, 32) if kind == "vjepa2" else (4, 3, 32, 32)
    for step in range(2):
        batch = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        out = wrapped(batch[rank * 4 // world : (rank + 1) * 4 // world])
        out = out if isinstance(out, torch.Tensor) else out.last_hidden_state
        out.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


if __name__ == "__main__":
    dist.init_process_group("gloo")
    results = {
        (kind, order): train(kind, order) for kind in ("vjepa2", "ijepa") if available(kind) for order in ("before", "after")
    }
    torch.save(results, sys.argv[1])
    leave()

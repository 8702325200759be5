"""Settings small enough for a test, and two checkpoints compared bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SMALL = (
    "model.img_size=32", "model.patch_size=4", "model.encoder_depth=1", "model.encoder_width=48", "model.encoder_heads=2",
    "model.pred_depth=1", "model.pred_embed_dim=24", "model.pred_num_heads=1", "data.batch_size=4", "data.num_workers=0",
    "optimization.epochs=3", "optimization.iterations_per_epoch=4", "optimization.warmup_epochs=1.0",
    "masks.rectangles.min_keep=4", "run.log_every=1", "run.diagnostics_every=2",
)  # fmt: skip


def load(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_bit_equal(first: Any, second: Any, name: str = "") -> None:
    assert type(first) is type(second), name
    if isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first:
            assert_bit_equal(first[key], second[key], f"{name}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), name
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_bit_equal(*pair, f"{name}[{index}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), name
    else:
        assert first == second, name

"""Two processes of torchrun with gloo: DDP and FSDP2 train what one process trains on the joined batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_helpers import SMALL, load

from jepa_kernels import cli

# Budgets give every process masks of one length, so that the mean of two means is the mean of all.
SETTINGS = (
    *SMALL, "run.dtype='float32'", "optimization.epochs=2", "optimization.iterations_per_epoch=2",
    "optimization.warmup_epochs=0.0", "optimization.lr=1e-4", "optimization.clip_grad=0.05", "masks.keep='budget'",
)  # fmt: skip
FAMILIES = {
    "ijepa_tiny": ("masks.budget=[[8, 6]]",),
    "dino_tiny": ("head.hidden_dim=32", "head.out_dim=16", "head.prototypes=32"),
    "vjepa2_tiny": ("model.patch_size=8", "masks.budget=[[8, 8], [4, 16]]"),
}


def arguments(config, data, output, *settings):
    sets = [word for setting in (*SETTINGS, *FAMILIES[config], *settings) for word in ("--set", setting)]
    return ["train", "--config", config, "--data", str(data), "--output", str(output), *sets]


def told(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("config", "kind"), [("ijepa_tiny", "ddp"), ("dino_tiny", "ddp"), ("vjepa2_tiny", "fsdp2")])
def test_two_processes_equal_one(config, kind, photographs, tmp_path):
    # FSDP2's caches keep the group; under DDP nothing may be left of it.
    program = ["-m", "jepa_kernels.cli"] if kind == "fsdp2" else [str(Path(__file__).with_name("leaving.py"))]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *program]
    settings = arguments(config, photographs, tmp_path / kind, "data.batch_size=2", f"run.distributed='{kind}'")
    result = subprocess.run(
        [sys.executable, *torchrun, *settings, *(["--stop-after", "3"] if kind == "fsdp2" else [])],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert f"2 processes ({kind})" in result.stdout
    if kind == "fsdp2":  # one process takes over
        assert load(tmp_path / kind)["step"] == 3
        assert cli.main([*arguments(config, photographs, tmp_path / kind), "--resume"]) == 0
    assert cli.main(arguments(config, photographs, tmp_path / "single")) == 0

    single, both = load(tmp_path / "single"), load(tmp_path / kind)
    assert both["step"] == single["step"] == 4
    assert told(tmp_path / kind) == pytest.approx(told(tmp_path / "single"), rel=1e-5)
    parts = [name for name in single if name in ("encoder", "target_encoder", "predictor", "head", "target_head", "centring")]
    assert len(parts) >= 3
    for part in parts:
        assert both[part].keys() == single[part].keys()
        for key, value in single[part].items():
            torch.testing.assert_close(both[part][key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    first, second = (torch.cat([e["exp_avg"].flatten() for e in s["opt"]["state"].values()]) for s in (single, both))
    assert first.norm() > 1e-3 and (first - second).norm() < 1e-4 * first.norm()  # the gradients, clipped where they were

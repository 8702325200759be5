"""Two processes of torchrun with gloo: DDP and FSDP2 train what one process trains on the joined batch."""

import os
import subprocess
import sys

import pytest
import torch
from train_helpers import SMALL, load

# Budgets give every process masks of one length, so that the mean of two means is the mean of all.
SETTINGS = (
    *SMALL, "run.dtype='float32'", "optimization.epochs=2", "optimization.iterations_per_epoch=2",
    "optimization.warmup_epochs=0.0", "optimization.clip_grad=0.05", "masks.keep='budget'",
)  # fmt: skip
FAMILIES = {
    "ijepa_tiny": ("masks.budget=[[8, 6]]",),
    "vjepa2_tiny": ("model.patch_size=8", "masks.budget=[[8, 8], [4, 16]]"),
}


def command(config, data, output, *settings):
    sets = [word for setting in (*SETTINGS, *FAMILIES[config], *settings) for word in ("--set", setting)]
    return ["-m", "jepa_kernels.cli", "train", "--config", config, "--data", str(data), "--output", str(output), *sets]


def run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


@pytest.mark.parametrize(("config", "kind"), [("ijepa_tiny", "ddp"), ("ijepa_tiny", "fsdp2"), ("vjepa2_tiny", "fsdp2")])
def test_two_processes_equal_one(config, kind, photographs, tmp_path, command_single):
    single = command_single(config)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    out = run(*torchrun, *command(config, photographs, tmp_path / kind, "data.batch_size=2", f"run.distributed='{kind}'"))
    assert f"2 processes ({kind})" in out
    both = load(tmp_path / kind)
    assert both["step"] == single["step"] == 4
    moved = 0.0
    for part in ("encoder", "predictor", "target_encoder"):
        assert both[part].keys() == single[part].keys()
        for key, value in single[part].items():
            torch.testing.assert_close(both[part][key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    for index, entry in single["opt"]["state"].items():
        torch.testing.assert_close(both["opt"]["state"][index]["exp_avg"], entry["exp_avg"], rtol=1e-3, atol=1e-5)
        moved = max(moved, entry["exp_avg"].abs().max().item())
    assert moved > 1e-4  # what was compared is not zero


@pytest.fixture(scope="module")
def command_single(photographs, tmp_path_factory):
    """The run of one process on the joined batch, once for each configuration."""
    found = {}

    def single(config):
        if config not in found:
            folder = tmp_path_factory.mktemp("single")
            run(*command(config, photographs, folder))
            found[config] = load(folder)
        return found[config]

    return single

"""Checkpoints: training resumes bit for bit, and a killed write leaves the old file whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import jepa_kernels as jk
from jepa_kernels.optim import save_checkpoint


class Run:
    """A tiny training run whose state is a checkpoint."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 2))
        self.target = jk.EMATarget(self.model, jk.optim.LinearMomentum(0.9, 1.0, 20), shadow_dtype=torch.bfloat16)
        groups = jk.optim.parameter_groups(self.model, 0.1)
        self.optimizer = jk.AdamWEMA(groups, lr=1e-2, target=self.target, max_grad_norm=0.5)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            (self.model(x) - self.target(x.bfloat16()).float()).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()

    def parts(self):
        return {"model": self.model, "target": self.target, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def weights(self):
        return [*self.model.parameters(), *self.target.module.parameters(), *self.target.shadow.parameters()]


def test_training_resumes_bit_for_bit(tmp_path):
    whole = Run(0)
    whole.train(0, 7)
    save_checkpoint({name: part.state_dict() for name, part in whole.parts().items()}, tmp_path / "last.pt")
    whole.train(7, 15)
    resumed = Run(1)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    for name, part in resumed.parts().items():
        part.load_state_dict(state[name])
    resumed.train(7, 15)
    assert all(torch.equal(a, b) for a, b in zip(whole.weights(), resumed.weights(), strict=True))
    assert os.listdir(tmp_path) == ["last.pt"]


KILLED = """
import sys, torch
from jepa_kernels.optim import save_checkpoint
class Slow:
    def __reduce__(self):
        print("writing", flush=True)
        import time
        time.sleep(60)
        return (int, ())
save_checkpoint({"tensor": torch.zeros(1000000), "slow": Slow()}, sys.argv[1])
"""


def test_a_killed_write_leaves_the_old_checkpoint_whole(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint({"step": 1}, path)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert torch.load(path) == {"step": 1}
    save_checkpoint({"step": 2}, path)
    assert torch.load(path) == {"step": 2}


def test_a_failing_write_leaves_the_old_checkpoint_and_no_litter(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint({"step": lambda: None}, path)
    assert torch.load(path) == {"step": 1} and os.listdir(tmp_path) == ["last.pt"]
    with pytest.raises(FileNotFoundError):
        save_checkpoint({}, tmp_path / "missing" / "last.pt")

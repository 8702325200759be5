"""Two processes with gloo: DDP and FSDP2 give the target, the weights and the gradient norm of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import two_processes

WORKER = Path(__file__).with_name("two_processes.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_equal_one(kind, tmp_path):
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), kind, str(tmp_path / f"{rank}.pt")],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), "\n".join(outputs)
    single = two_processes.train("single")
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        assert state["skipped"] == single["skipped"] == 1
        assert state["norm"] == pytest.approx(single["norm"], rel=1e-5)
        for part in ("online", "target"):
            assert list(state[part]) == list(single[part])
            for name, value in single[part].items():
                torch.testing.assert_close(
                    state[part][name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
                )

"""Two processes with gloo: DDP around a patched model, and a patch inside DDP, give the weights of one unpatched process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from . import ddp_worker


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(Path(ddp_worker.__file__)), str(tmp_path / f"{rank}.pt")],
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
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert len(results) >= 2
        for (kind, _), state in results.items():
            torch.testing.assert_close(state, ddp_worker.train(kind, "single"), rtol=1e-5, atol=1e-6)

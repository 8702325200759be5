"""The command line with toy ceilings and no video, for tests that need a process of its own."""

from __future__ import annotations

import sys

import torch

from jepa_kernels import cli
from jepa_kernels.bench import environment, session
from jepa_kernels.bench.video import Clip

from .toys import CEILINGS

if __name__ == "__main__":
    session.measure_ceilings = lambda device, quick: CEILINGS
    session.load_clip = lambda path: Clip(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "toy")
    # A commit between two processes of a test would make them different programs, which a resumed run refuses.
    environment.commit = lambda: {"id": None, "dirty": None, "reason": "a test"}
    sys.exit(cli.main())

"""Run folders made of numbers: what a run would have stored, without anything having run."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jepa_kernels.bench.statistics import paired_ratio, summarise
from jepa_kernels.bench.store import ENVIRONMENT, RESULTS, SCHEMA
from jepa_kernels.bench.suite import FULL

from .toys import CEILINGS

PEER = "torch-a"
Seconds = Mapping[str, Mapping[str, float]]  # case -> provider -> seconds
EQUAL: Seconds = {
    f"toy/case{i}-fp32": {"jk-cpu": 1e-3, "torch-a": 2e-3, "torch-b": 3e-3, "torch-c": 1.5e-3} for i in range(6)
}


def environment(**changes: Any) -> dict[str, Any]:
    """As a run on a CPU describes itself."""
    return {
        "schema": SCHEMA,
        "datetime": "2026-01-02T03:04:05+00:00",
        "argv": ["bench", "run"],
        "suite": asdict(FULL),
        "input": {"source": "sample", "sha256": "0", "shape": [1], "path": None},
        "device": "cpu",
        "hardware": {"cpu": {"name": "Toy", "instruction_set": "avx2"}, "gpus": []},
        "system": {"threads": 2},
        "versions": {"torch": "2.13", "python": "3.11", "triton": None, "cuda": None, "jepa-kernels": "0.1"},
        "commit": {"id": "a" * 40, "dirty": False},
        "ceilings": CEILINGS.as_dict(),
        **changes,
    }


def record(case_id: str, provider: str, seconds: list[float], peer: list[float], **changes: Any) -> dict[str, Any]:
    """One timed cell."""
    ratio = paired_ratio(dict(enumerate(seconds)), dict(enumerate(peer)))
    median = summarise(seconds)
    return {
        "case_id": case_id, "operator": "toy", "dtype": "fp32", "shape": {"elements": 8}, "provider": provider,
        "about": "", "yardstick": False, "peer": PEER, "status": "ok", "flags": [], "error": None, "clock": "wall",
        "cache": {"state": "warm", "touched_bytes": 0, "last_level_cache_bytes": 1 << 25, "reason": None},
        "first_call_s": 0.1, "correctness": None,
        "work": {"flops": 8, "bytes": 64, "samples": 1, "tokens": 8},
        "samples": {"seconds": seconds, "round": list(range(len(seconds))), "position": [0] * len(seconds),
                    "calls_per_sample": 1, "warmup_s": 0.1},
        "stats": asdict(median), "ratios": {PEER: asdict(ratio)} if ratio and provider != PEER else {},
        "rates": {"flops_per_s": 8e9, "bytes_per_s": 6.4e10, "compute_fraction": 0.1, "copy_fraction": 0.2,
                  "samples_per_s": 1 / median.median},
        "memory": {"peak_bytes": 1 << 20, "reason": None},
        "energy": {"joules_per_call": None, "reason": "no counter"},
        **changes,
    }  # fmt: skip


def records(
    seconds: Seconds, *, seed: int, noise: float = 0.02, drift: float = 0.0, shift: float = 1.0, rounds: int = 30
) -> list[dict[str, Any]]:
    """Cells of a run on a machine that is noisy, slows down over the rounds, and is slower by `shift` as a whole."""
    draw = random.Random(seed)
    found = []
    for case_id, providers in seconds.items():
        samples: dict[str, list[float]] = {name: [] for name in providers}
        for index in range(rounds):
            slow = shift * (1 + drift * index / rounds)
            for name, value in providers.items():
                samples[name].append(value * slow * draw.lognormvariate(0, noise))
        found += [record(case_id, name, samples[name], samples[PEER]) for name in providers]
    return found


def write(folder: Path, cells: list[dict[str, Any]], **changes: Any) -> Path:
    """A finished run's folder."""
    folder.mkdir(parents=True)
    finished = {"finished": "2026-01-02T03:14:05+00:00"}
    (folder / ENVIRONMENT).write_text(json.dumps(environment(**finished, **changes)))
    (folder / RESULTS).write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    return folder

"""The final document of a run: a superset of pytest-benchmark's JSON, so that its `compare` reads it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from .store import Record


def build(records: Sequence[Record], environment: dict[str, Any], run_id: str, status: str) -> dict[str, Any]:
    """One document from the records of a run. Seconds throughout; cells that were not timed appear under `jepa`."""
    commit = environment["commit"]
    return {
        "machine_info": _machine(environment),
        "commit_info": {
            "id": commit["id"],
            "dirty": commit["dirty"],
            "branch": None,
            "project": "jepa-kernels",
        },
        "benchmarks": [_entry(record) for record in records if record["stats"] is not None],
        "datetime": environment["datetime"],
        "version": "5.1.0",  # of the pytest-benchmark format that is followed here
        "jepa": {
            "schema": environment["schema"],
            "run_id": run_id,
            "status": status,
            "environment": environment,
            "untimed": [record for record in records if record["stats"] is None],
        },
    }


def _machine(environment: dict[str, Any]) -> dict[str, Any]:
    return {
        "node": "",
        "processor": environment["hardware"]["cpu"]["name"],
        "machine": platform.machine(),
        "python_implementation": platform.python_implementation(),
        "python_version": environment["versions"]["python"],
        "system": platform.system(),
        "release": platform.release(),
        "cpu": {"brand_raw": environment["hardware"]["cpu"]["name"]},
    }


def _entry(record: Record) -> dict[str, Any]:
    name = f"{record['case_id']}[{record['provider']}]"
    samples = record["samples"]
    return {
        "group": record["case_id"],
        "name": name,
        "fullname": name,
        "params": {"provider": record["provider"]},
        "param": record["provider"],
        "extra_info": {"jepa": {k: v for k, v in record.items() if k != "samples"} | {"samples": _order(samples)}},
        "options": {"timer": record["clock"], "warmup": True},
        "stats": _stats(np.asarray(samples["seconds"]), samples["calls_per_sample"]),
    }


def _order(samples: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in samples.items() if key != "seconds"}


def _stats(seconds: np.ndarray[Any, np.dtype[np.float64]], iterations: int) -> dict[str, Any]:
    q1, median, q3 = (float(v) for v in np.quantile(seconds, [0.25, 0.5, 0.75]))
    mean, deviation = float(seconds.mean()), float(seconds.std(ddof=1)) if seconds.size > 1 else 0.0
    inside = seconds[(seconds >= q1 - 1.5 * (q3 - q1)) & (seconds <= q3 + 1.5 * (q3 - q1))]
    iqr_outliers = int(seconds.size - inside.size)
    far = int((np.abs(seconds - mean) > deviation).sum())
    return {
        "min": float(seconds.min()),
        "max": float(seconds.max()),
        "mean": mean,
        "stddev": deviation,
        "rounds": int(seconds.size),
        "median": median,
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": iqr_outliers,
        "stddev_outliers": far,
        "outliers": f"{far};{iqr_outliers}",
        "ld15iqr": float(inside.min()),
        "hd15iqr": float(inside.max()),
        "ops": 1 / mean,
        "total": float(seconds.sum()),
        "iterations": iterations,
        "data": seconds.tolist(),
    }

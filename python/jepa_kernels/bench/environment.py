"""Where and how a run was made: hardware, versions, commit, threads and the options given."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import hardware
from .ceilings import Ceilings, last_level_cache_bytes
from .store import SCHEMA
from .suite import Suite
from .video import Clip

SOURCE_FOLDERS = ("python", "kernels", "csrc", "configs")
SOURCE_SUFFIXES = (".py", ".json", ".toml", ".j2", ".h", ".cpp", ".cu")
PACKAGES = ("jepa-kernels", "torch", "triton", "numpy", "scipy", "nvidia-ml-py", "pytest-benchmark")


def describe(
    *,
    device: torch.device,
    suite: Suite,
    argv: Sequence[str],
    clip: Clip,
    ceilings: Ceilings,
    energy: dict[str, Any],
) -> dict[str, Any]:
    """Everything that a reader needs to judge or repeat a run. A part that is unknown is None."""
    return {
        "schema": SCHEMA,
        "datetime": now(),
        "argv": list(argv),
        "suite": asdict(suite),
        "input": {"source": clip.source, "sha256": clip.sha256, "shape": list(clip.frames.shape)},
        "device": str(device),
        "hardware": hardware.describe(),
        "system": system(),
        "versions": hardware.versions(PACKAGES),
        "commit": commit(),
        "flags": {
            "allow_tf32": torch.backends.cuda.matmul.allow_tf32,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
        "ceilings": ceilings.as_dict(),
        "energy": energy,
    }


def now() -> str:
    """This instant, to the second, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def system() -> dict[str, Any]:
    """Operating system, threads and the processors they may use, clock governor, and load when the run began."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "platform": platform.platform(),
        "virtualised": "hypervisor" in _cpu_flags(),
        "governor": governor.read_text().strip() if governor.is_file() else None,
        "last_level_cache_bytes": last_level_cache_bytes(),
        "threads": torch.get_num_threads(),
        "processors": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "container": container(),
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def container(root: Path = Path("/")) -> bool:
    """Whether this looks like a container: the marks that Docker and Podman leave, or PID 1 in a control group of one."""
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return True
    try:
        groups = (root / "proc/1/cgroup").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(word in groups for word in ("docker", "kubepods", "containerd", "libpod", "lxc"))


def commit() -> dict[str, Any]:
    """Commit of the source tree that the package runs from, and the digest of its sources, which also tells what ran where a
    copy of the tree came without its history; None for an installed package."""
    package = Path(__file__).resolve().parents[1]
    top = _git(package, "rev-parse", "--show-toplevel")
    root = package.parents[1]
    digest = sources(root) if package == root / "python" / "jepa_kernels" and (root / "pyproject.toml").is_file() else None
    if top is None or package != Path(top) / "python" / "jepa_kernels":
        return {"id": None, "dirty": None, "sources": digest, "reason": "not run from a source tree"}
    changes = _git(package, "status", "--porcelain")
    return {
        "id": _git(package, "rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes), "sources": digest,
    }  # fmt: skip


@functools.cache
def sources(root: Path) -> str:
    """SHA-256 over the names and contents of what the package is built and run from."""
    digest = hashlib.sha256()
    files = [path for folder in SOURCE_FOLDERS for path in (root / folder).rglob("*") if path.suffix in SOURCE_SUFFIXES]
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return set(next(lines, "").split())

"""What `gpu-check` runs: its stages with their shares of the time, and the commands of each."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import hardware

Command = tuple[str, ...]
CLI = (sys.executable, "-m", "jepa_kernels.cli")
# The sanitizer slows kernels down by an order of magnitude: it gets the smallest parity tests.
SANITIZED = "not two_to_the_31 and not graph_capture"
TOOLS = ("memcheck", "racecheck")
PROBE = "import torch; torch.ones(8, device='{device}').sum().item()"
# CUDA targets by the major compute capability; code for one is built in a quarter of the time that all of them take.
TARGETS = {8: "80-real", 9: "90a-real", 10: "100-real", 12: "120-real"}
TARGETS_VARIABLE = "JEPA_KERNELS_CUDA_ARCHITECTURES"
MOST_WORKERS = 8  # processes of tests side by side: most of their time is compilation
FIRST = "masked_attention"  # of the test files, those whose name has it
FINISHING_S = 30.0  # a benchmark that is told to end needs this for its last case and its report


@dataclass(frozen=True)
class Piece:
    """One command, the unit in which the check is resumed. `needed` says that without it the rest of its stage is void."""

    name: str
    command: Command
    needed: bool = False
    tests: bool = False  # a pytest run: it must have run at least one test
    benchmark: bool = False  # ends by itself within --time-budget, and goes on with --resume
    environment: tuple[tuple[str, str], ...] = ()  # variables of the command


@dataclass(frozen=True)
class Stage:
    """Pieces that share a log and a share of the time; `pieces` is asked when the stage begins."""

    name: str
    share: float
    log: str
    pieces: Callable[[], Sequence[Piece] | str]  # or why there are none


@dataclass(frozen=True)
class Plan:
    """Where the check runs and on what; tests rehearse it with other values than a GPU's."""

    root: Path
    work: Path
    device: str = "cuda"
    marker: str = "gpu"
    suite: str = "gpu"
    sanitizer: str | None = field(
        default_factory=lambda: shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    )

    capability: tuple[int, int] | None = field(
        default_factory=lambda: torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    )
    workers: int = field(default_factory=lambda: _workers())

    def stages(self) -> list[Stage]:
        """Most important first; what a stage leaves of its time goes to those after it."""
        return [
            Stage("environment", 0.06, "build.log", self._environment),
            Stage("build", 0.15, "build.log", self._build),
            Stage("tests", 0.27, "tests.log", self._tests),
            Stage("benchmark", 0.40, "benchmark.log", self._benchmark),
            Stage("sanitizer", 0.12, "sanitizer.log", self._sanitize),
        ]

    def _environment(self) -> Sequence[Piece]:
        return [Piece("info", (*CLI, "info", "--json")), Piece("doctor", (*CLI, "doctor", "--json"))]

    def _build(self) -> Sequence[Piece]:
        command = ("-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-v", "-e", str(self.root))
        target = TARGETS.get(self.capability[0]) if self.capability is not None else None
        narrow = () if target is None or TARGETS_VARIABLE in os.environ else ((TARGETS_VARIABLE, target),)
        return [Piece("native modules", (sys.executable, *command), environment=narrow)]

    def _pytest(self, *arguments: str) -> Command:
        # Without the project's own options, some of which belong to plug-ins that a bare machine lacks.
        options = ("-o", "addopts=", "-p", "no:cacheprovider", "-p", "jepa_kernels.bench.broken_device", "-m", self.marker)
        return (sys.executable, "-m", "pytest", *options, *arguments)

    def _test_files(self, folder: Path) -> list[Path]:
        """Test files that name the mark, or parameters that carry it."""
        words = re.compile(rf"mark\.{self.marker}\b|backend_parameters")
        found = [path for path in folder.rglob("test_*.py") if words.search(path.read_text(encoding="utf-8"))]
        return sorted(found, key=lambda path: (FIRST not in path.name, path))

    def _tests(self) -> Sequence[Piece] | str:
        files = self._test_files(self.root / "tests")
        if not files:
            return f"no test of {self.root / 'tests'} is marked {self.marker}"
        if self.workers < 2:
            return [self._tests_of(str(path.relative_to(self.root)), [path]) for path in files]
        # Side by side, and with one start for many files; -v, so that a run that is stopped has told what it had done.
        groups = {FIRST: [path for path in files if FIRST in path.name], "others": [p for p in files if FIRST not in p.name]}
        return [self._tests_of(name, group, "-n", str(self.workers)) for name, group in groups.items() if group]

    def _tests_of(self, name: str, files: Sequence[Path], *options: str) -> Piece:
        return Piece(name, self._pytest("-v", "--tb=short", *options, *map(str, files)), tests=True)

    def _sanitize(self) -> Sequence[Piece] | str:
        if self.sanitizer is None:
            return "compute-sanitizer was not found"
        probe = (sys.executable, "-c", PROBE.format(device=self.device))
        # --error-exitcode: without it the tool hides what it found behind the program's own exit code.
        run = {tool: (self.sanitizer, "--tool", tool, "--error-exitcode", "86") for tool in TOOLS}
        found = [Piece("probe", (*run["memcheck"], *probe), needed=True)]
        for tool in TOOLS:
            for path in self._test_files(self.root / "tests" / "ops"):
                command = (*run[tool], *self._pytest("-q", "-x", "--tb=short", "-k", SANITIZED, str(path)))
                found.append(Piece(f"{tool} {path.name}", command, tests=True))
        return found

    def _benchmark(self) -> Sequence[Piece]:
        begun = sorted(path for path in self.work.glob("*") if (path / "environment.json").is_file())
        if begun:
            return [Piece("suite", (*CLI, "bench", "run", "--resume", str(begun[-1])), benchmark=True)]
        suite = self.root / "benchmarks" / "suites" / f"{self.suite}.toml"
        command = (*CLI, "bench", "run", "--suite", str(suite), "--device", self.device, "--output", str(self.work))
        return [Piece("suite", (*command, *_input()), benchmark=True)]


def _workers() -> int:
    """Processes of tests, where the plug-in is there that runs them side by side; else 1."""
    if importlib.util.find_spec("xdist") is None:
        return 1
    return max(min(hardware.available_cpus() // 2, MOST_WORKERS), 1)


def _input() -> Command:
    """The sample video, or where PyAV is missing a picture that scikit-image brings."""
    if importlib.util.find_spec("av") is not None or importlib.util.find_spec("skimage") is None:
        return ()
    import skimage

    picture = Path(skimage.__file__).parent / "data" / "astronaut.png"
    return ("--input", str(picture)) if picture.is_file() else ()

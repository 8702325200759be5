"""What `gpu-check` runs: its stages with their shares of the time, and the commands of each."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Command = tuple[str, ...]
CLI = (sys.executable, "-m", "jepa_kernels.cli")
# The sanitizer slows kernels down by an order of magnitude: it gets the smallest parity tests.
SANITIZED = "not two_to_the_31 and not graph_capture"
TOOLS = ("memcheck", "racecheck")
PROBE = "import torch; torch.ones(8, device='{device}').sum().item()"
FINISHING_S = 20.0  # a benchmark that is told to end needs this for its last case and its report


@dataclass(frozen=True)
class Piece:
    """One command, the unit in which the check is resumed. `needed` says that without it the rest of its stage is void."""

    name: str
    command: Command
    needed: bool = False
    tests: bool = False  # a pytest run: it must have run at least one test
    benchmark: bool = False  # ends by itself within --time-budget, and goes on with --resume


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

    def stages(self) -> list[Stage]:
        """Most important first; what a stage leaves of its time goes to those after it."""
        return [
            Stage("environment", 0.06, "build.log", self._environment),
            Stage("build", 0.19, "build.log", self._build),
            Stage("tests", 0.30, "tests.log", self._tests),
            Stage("benchmark", 0.30, "benchmark.log", self._benchmark),
            Stage("sanitizer", 0.15, "sanitizer.log", self._sanitize),
        ]

    def _environment(self) -> Sequence[Piece]:
        return [Piece("info", (*CLI, "info", "--json")), Piece("doctor", (*CLI, "doctor", "--json"))]

    def _build(self) -> Sequence[Piece]:
        command = ("-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-v", "-e", str(self.root))
        return [Piece("native modules", (sys.executable, *command))]

    def _pytest(self, *arguments: str) -> Command:
        # Without the project's own options, some of which belong to plug-ins that a bare machine lacks.
        options = ("-o", "addopts=", "-p", "no:cacheprovider", "-m", self.marker)
        return (sys.executable, "-m", "pytest", *options, *arguments)

    def _test_files(self, folder: Path) -> list[Path]:
        """Test files that name the mark, or parameters that carry it."""
        words = re.compile(rf"mark\.{self.marker}\b|backend_parameters")
        return sorted(path for path in folder.rglob("test_*.py") if words.search(path.read_text(encoding="utf-8")))

    def _tests(self) -> Sequence[Piece] | str:
        files = self._test_files(self.root / "tests")
        if not files:
            return f"no test of {self.root / 'tests'} is marked {self.marker}"
        named = [(str(path.relative_to(self.root)), path) for path in files]
        return [Piece(name, self._pytest("-q", "--tb=short", str(path)), tests=True) for name, path in named]

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


def _input() -> Command:
    """The sample video, or where PyAV is missing a picture that scikit-image brings."""
    if importlib.util.find_spec("av") is not None or importlib.util.find_spec("skimage") is None:
        return ()
    import skimage

    picture = Path(skimage.__file__).parent / "data" / "astronaut.png"
    return ("--input", str(picture)) if picture.is_file() else ()

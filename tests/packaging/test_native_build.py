"""What setup.py builds, leaves out or refuses for each pair of switches; the tools are stand-ins: nothing compiles."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]
NO_HEADERS = "Could NOT find Python (missing: Python_INCLUDE_DIRS\n  Development.Module)"
OLD_COMPILER = "g++: error: unrecognized command-line option '-std=c++17'"
CLANG = "CMake Error at CMakeLists.txt:1:\n  whose code runs on the OpenMP that\n  torch brings; found Clang."

# Fails for the modules that FAIL_CPU and FAIL_CUDA name an output for; otherwise installs an empty file as the module.
CMAKE = """
import os, sys
from pathlib import Path
if "-B" in sys.argv:
    build = Path(sys.argv[sys.argv.index("-B") + 1])
    options = dict(a[2:].split("=", 1) for a in sys.argv if a.startswith("-D"))
    wanted = [name for name in ("CPU", "CUDA") if options["JEPA_KERNELS_" + name] == "ON"]
    for name in wanted:
        if "FAIL_" + name in os.environ:
            sys.exit(os.environ["FAIL_" + name])
    (build / "wanted").write_text(options["CMAKE_INSTALL_PREFIX"] + " " + " ".join(wanted))
elif "--install" in sys.argv:
    prefix, *wanted = (Path(sys.argv[2]) / "wanted").read_text().split()
    Path(prefix).mkdir(parents=True, exist_ok=True)
    for name in wanted:
        (Path(prefix) / f"_{name.lower()}.so").write_text("new")
"""


@dataclasses.dataclass
class Workshop:
    """A Python whose folder, the first that setup.py searches, holds the stand-ins."""

    folder: Path

    @property
    def tools(self) -> Path:
        return self.folder / "bin"

    def build(self, cpu: str, cuda: str, **environment: str) -> tuple[int, set[str], str]:
        """The exit status, the modules that were installed, and everything that was said."""
        package = self.folder / "lib-out" / "jepa_kernels"
        package.mkdir(parents=True, exist_ok=True)
        for name in ("_cpu.so", "_cuda.so"):
            (package / name).write_text("of an earlier build")
        variables = {name: value for name, value in os.environ.items() if name not in ("CXX", "CUDACXX")}
        variables |= {
            "PATH": "/nonexistent",
            "CUDA_HOME": "/nonexistent",
            "PYTHONPATH": str(Path(setuptools.__file__).parents[1]),
            "JEPA_KERNELS_BUILD_CPU": cpu,
            "JEPA_KERNELS_BUILD_CUDA": cuda,
        }
        options = ["--build-lib", str(package.parent), "--build-temp", str(self.folder / "temp")]
        finished = subprocess.run(
            [str(self.tools / "python"), "setup.py", "build_ext", *options],
            env={**variables, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        installed = {path.stem for path in package.glob("*.so") if path.read_text() == "new"}
        return finished.returncode, installed, finished.stdout + finished.stderr


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True, timeout=300)
    for name, text in (("cmake", CMAKE), ("g++", ""), ("nvcc", "")):
        program = tmp_path / "bin" / name
        program.write_text(f"#!{sys.executable}\n{text}")
        program.chmod(0o755)
    return Workshop(tmp_path)


@pytest.mark.parametrize(
    ("cpu", "cuda", "expected"),
    [
        ("auto", "auto", {"_cpu", "_cuda"}),
        ("on", "on", {"_cpu", "_cuda"}),
        ("off", "on", {"_cuda"}),
        ("off", "auto", {"_cuda"}),
        ("on", "off", {"_cpu"}),
        ("off", "off", set()),
    ],
)
def test_each_switch_decides_its_own_module(workshop, cpu, cuda, expected):
    status, installed, said = workshop.build(cpu, cuda)
    assert (status, installed) == (0, expected), said
    assert "installs without" not in said


@pytest.mark.parametrize("other", ["auto", "on", "off"])
@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (NO_HEADERS, "install python3-dev"),
        (OLD_COMPILER, "the C++ compiler is too old"),
        (CLANG, "the CPU kernels need GCC"),
        ("what\n/a/b.cpp:3:1: error: something new", "b.cpp:3:1: error: something new"),
    ],
    ids=["no headers", "old compiler", "Clang", "unknown"],
)
def test_an_automatic_module_that_fails_is_left_out_alone(workshop, other, output, cause):
    status, installed, said = workshop.build("auto", other, FAIL_CPU=output)
    assert (status, installed) == (0, set() if other == "off" else {"_cuda"}), said
    assert "installs without the CPU kernels: its build failed: " in said
    assert cause in said.split("its build failed: ")[1]


@pytest.mark.parametrize("other", ["auto", "on", "off"])
def test_an_automatic_cuda_failure_is_never_fatal(workshop, other):
    status, installed, said = workshop.build(other, "auto", FAIL_CUDA="error: unsupported GNU version! gcc 15")
    assert (status, installed) == (0, set() if other == "off" else {"_cpu"}), said
    assert "installs without the CUDA kernels" in said and "set CUDAHOSTCXX" in said


@pytest.mark.parametrize("case", [("CPU", "on", "auto"), ("CUDA", "auto", "on"), ("CUDA", "off", "on")], ids="-".join)
def test_a_required_module_that_fails_stops_the_install_with_the_reason(workshop, case):
    module, cpu, cuda = case
    status, _, said = workshop.build(cpu, cuda, **{f"FAIL_{module}": NO_HEADERS})
    assert status != 0
    assert f"JEPA_KERNELS_BUILD_{module}=on but its build failed: the headers of Python were not found" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("tool", "reason", "left"),
    [
        ("nvcc", "nvcc was not found: install the CUDA toolkit", {"_cpu"}),
        ("g++", "no C++ compiler was found: install g++", set()),
        ("cmake", "cmake was not found: install it with", set()),
    ],
)
def test_a_missing_tool_is_named(workshop, tool, reason, left):
    (workshop.tools / tool).unlink()
    status, installed, said = workshop.build("auto", "auto")
    assert (status, installed) == (0, left), said
    assert f"installs without the CUDA kernels: {reason}" in said
    status, _, said = workshop.build("off", "on")
    assert status != 0 and f"JEPA_KERNELS_BUILD_CUDA=on but {reason}" in said and "Traceback" not in said


def test_a_compiler_that_was_named_and_is_missing_is_not_replaced(workshop):
    _, installed, said = workshop.build("auto", "off", CXX="/nonexistent/clang++")
    assert installed == set() and "CXX=/nonexistent/clang++ was not found" in said


def test_an_unknown_value_of_a_switch_is_refused(workshop):
    status, _, said = workshop.build("yes", "auto")
    assert status != 0 and "JEPA_KERNELS_BUILD_CPU='yes' is not one of on, off, auto" in said

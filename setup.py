"""Builds the native modules with CMake and lists the packages; everything else is in pyproject.toml.

JEPA_KERNELS_BUILD_CPU and JEPA_KERNELS_BUILD_CUDA are `on` (built, or the install fails with the reason), `off`, or
`auto` (the default: built where that works, and otherwise left out with a warning).
JEPA_KERNELS_CUDA_ARCHITECTURES narrows the GPUs built for.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# cmake and ninja come as Python packages, whose programs may not be on the PATH of an environment that is not active.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

# Package -> its folder. The Triton sources and the training configurations live at the top level, where a reader looks.
PACKAGES = {
    "jepa_kernels": "python/jepa_kernels",
    "jepa_kernels.bench": "python/jepa_kernels/bench",
    "jepa_kernels.bench.cases": "python/jepa_kernels/bench/cases",
    "jepa_kernels.bench.energy": "python/jepa_kernels/bench/energy",
    "jepa_kernels.data": "python/jepa_kernels/data",
    "jepa_kernels.envs": "python/jepa_kernels/envs",
    "jepa_kernels.functional": "python/jepa_kernels/functional",
    "jepa_kernels.integrations": "python/jepa_kernels/integrations",
    "jepa_kernels.masks": "python/jepa_kernels/masks",
    "jepa_kernels.models": "python/jepa_kernels/models",
    "jepa_kernels.nn": "python/jepa_kernels/nn",
    "jepa_kernels.optim": "python/jepa_kernels/optim",
    "jepa_kernels.planning": "python/jepa_kernels/planning",
    "jepa_kernels.ops": "python/jepa_kernels/ops",
    "jepa_kernels.reference": "python/jepa_kernels/reference",
    "jepa_kernels.static": "python/jepa_kernels/static",
    "jepa_kernels.train": "python/jepa_kernels/train",
    "jepa_kernels.train.configs": "configs",
    "jepa_kernels.tune": "python/jepa_kernels/tune",
    "jepa_kernels.kernels": "kernels/jepa_triton",
}

# Module -> its switch, and what to call it. Each is decided and built alone, so that neither takes the other down.
MODULES = {
    "_cpu": ("JEPA_KERNELS_BUILD_CPU", "the CPU kernels"),
    "_cuda": ("JEPA_KERNELS_BUILD_CUDA", "the CUDA kernels"),
}

# What a failed build says -> what to do about it.
CAUSES = {
    r"missing: [^)]*(Development\.Module|Python_INCLUDE_DIR)|Python\.h: No such file":
        "the headers of Python were not found: install python3-dev",
    r"No module named '?pybind11": "pybind11 was not found: install it with `pip install pybind11`",
    r"OpenMP that torch brings": "the CPU kernels need GCC: install g++ or set CXX",
    r"is not able to compile a simple|No CMAKE_CXX_COMPILER": "the compiler does not work: install g++ or set CXX",
    r"unsupported GNU version": "nvcc refuses this g++: set CUDAHOSTCXX to an older one",
    r"error: unrecognized command.line option|[Nn]o known features for|C\+\+17|CXX17":
        "the C++ compiler is too old: install g++ 9 or newer, or set CXX",
    r"needs CUDA 12": "nvcc is too old: install CUDA 12.0 or newer",
    r"CMake \S+ or higher is required": "cmake is too old: install one with `pip install cmake`",
}  # fmt: skip


def switch(name: str) -> str:
    """The value of a build switch, checked."""
    value = os.environ.get(name, "auto").lower()
    if value not in ("on", "off", "auto"):
        sys.exit(f"{name}={value!r} is not one of on, off, auto")
    return value


def shown(command: list[str]) -> tuple[int, str]:
    """Runs a command with its output both shown and returned."""
    environment = {**os.environ, "CXX": compiler() or ""}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            sys.stdout.write(line)
            lines.append(line)
    return process.returncode, "".join(lines)


def version() -> str:
    text = (ROOT / "python/jepa_kernels/__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert match is not None
    return match.group(1)


def compiler() -> str | None:
    """The C++ compiler to build with. GCC before whatever `c++` is: the CPU kernels use the OpenMP that torch loads."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        return os.environ["CXX"] if shutil.which(named[0]) else None
    return shutil.which("g++") or shutil.which("c++")


def nvcc() -> str | None:
    """nvcc on the PATH, or where CUDA_HOME or the usual prefix keeps it."""
    for candidate in (os.environ.get("CUDACXX"), "nvcc", f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc"):
        if candidate and (path := shutil.which(candidate)):
            return path
    return None


def missing(module: str) -> str | None:
    """The first tool that a module's build lacks and how to get it, or None."""
    if compiler() is None:
        named = os.environ.get("CXX")
        return f"CXX={named} was not found" if named else "no C++ compiler was found: install g++ or set CXX"
    if shutil.which("cmake") is None:
        return "cmake was not found: install it with `pip install cmake ninja`"
    if module == "_cuda" and nvcc() is None:
        return "nvcc was not found: install the CUDA toolkit or set CUDA_HOME"
    return None


def likely_cause(output: str) -> str:
    """What a failed build says in one line: a known cause with its remedy, otherwise its first error."""
    flat = " ".join(output.split())  # CMake breaks its messages into lines
    for pattern, cause in CAUSES.items():
        if re.search(pattern, flat):
            return cause
    errors = re.findall(r"^.*(?:CMake Error|error:|Error:).*(?:\n +.*)?", output, re.MULTILINE)
    return " ".join((errors or output.strip().splitlines()[-1:] or ["no output"])[0].split())


class CMakeBuild(build_ext):
    """Runs CMake for each module alone and leaves the module where setuptools expects an extension."""

    def run(self) -> None:
        wanted = {module: switch(name) for module, (name, _) in MODULES.items()}
        for module, setting in wanted.items():
            name, what = MODULES[module]
            # A module of an earlier build would be installed, or found in the source tree, as if it were this one's.
            for old in self.target_directory().glob(f"{module}.*so"):
                old.unlink()
            if setting == "off":
                continue
            reason = missing(module) or self.failure(module)
            if reason is not None and setting == "on":
                sys.exit(f"{name}=on but {reason}")
            if reason is not None:
                print(f"warning: jepa-kernels installs without {what}: {reason}", file=sys.stderr)

    def failure(self, module: str) -> str | None:
        """Builds one module; the reason where that fails, otherwise None."""
        build_directory = Path(self.build_temp).resolve() / module
        build_directory.mkdir(parents=True, exist_ok=True)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        for command in (
            self.configure(module, build_directory),
            ["cmake", "--build", str(build_directory), "--parallel", jobs],
            ["cmake", "--install", str(build_directory)],
        ):
            status, output = shown(command)
            if status != 0:
                return f"its build failed: {likely_cause(output)}"
        return None

    def configure(self, module: str, build_directory: Path) -> list[str]:
        command = [
            "cmake", "-S", str(ROOT), "-B", str(build_directory), "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_INSTALL_PREFIX={self.target_directory()}",
            f"-DJEPA_KERNELS_CPU={'ON' if module == '_cpu' else 'OFF'}",
            f"-DJEPA_KERNELS_CUDA={'ON' if module == '_cuda' else 'OFF'}",
        ]  # fmt: skip
        if ninja := shutil.which("ninja"):
            # Its path is named because an isolated build's cache may hold one that is gone.
            command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        if module == "_cuda":
            command.append(f"-DCMAKE_CUDA_COMPILER={nvcc()}")
            if architectures := os.environ.get("JEPA_KERNELS_CUDA_ARCHITECTURES"):
                command.append(f"-DJEPA_KERNELS_CUDA_ARCHITECTURES={architectures}")
        return command

    def target_directory(self) -> Path:
        """Beside the Python files: in the source tree for an editable install, otherwise in the build tree."""
        if self.inplace or getattr(self, "editable_mode", False):
            return ROOT / PACKAGES["jepa_kernels"]
        return Path(self.build_lib).resolve() / "jepa_kernels"

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self.target_directory().glob("_c*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(
    version=version(),
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "jepa_kernels": ["py.typed"],
        "jepa_kernels.bench": ["templates/*.j2"],
        "jepa_kernels.kernels": ["configs/*.json"],
        "jepa_kernels.train.configs": ["*.toml"],
    },
    # A name only: CMake decides what is built. Its presence makes the wheel specific to the platform.
    ext_modules=[Extension("jepa_kernels._cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

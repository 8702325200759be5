"""Builds the native modules with CMake and lists the packages; everything else is in pyproject.toml.

JEPA_KERNELS_BUILD_CPU and JEPA_KERNELS_BUILD_CUDA are `on` (fail without a compiler), `off`, or `auto` (the default: build what
the machine has the compiler for, and say what was left out). JEPA_KERNELS_CUDA_ARCHITECTURES narrows the GPUs built for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# cmake and ninja come as Python packages, whose programs may not be on the PATH of an environment that was not activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

# Package -> its folder. The Triton sources live at the top level, where a reader looks for kernels.
PACKAGES = {
    "jepa_kernels": "python/jepa_kernels",
    "jepa_kernels.bench": "python/jepa_kernels/bench",
    "jepa_kernels.bench.cases": "python/jepa_kernels/bench/cases",
    "jepa_kernels.data": "python/jepa_kernels/data",
    "jepa_kernels.functional": "python/jepa_kernels/functional",
    "jepa_kernels.models": "python/jepa_kernels/models",
    "jepa_kernels.nn": "python/jepa_kernels/nn",
    "jepa_kernels.ops": "python/jepa_kernels/ops",
    "jepa_kernels.reference": "python/jepa_kernels/reference",
    "jepa_kernels.kernels": "kernels/jepa_triton",
}


def switch(name: str) -> str:
    """The value of a build switch, checked."""
    value = os.environ.get(name, "auto").lower()
    if value not in ("on", "off", "auto"):
        sys.exit(f"{name}={value!r} is not one of on, off, auto")
    return value


def version() -> str:
    text = (ROOT / "python/jepa_kernels/__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert match is not None
    return match.group(1)


def found(*programs: str | None) -> bool:
    return any(program and shutil.which(program) for program in programs)


def nvcc() -> str | None:
    """nvcc on the PATH, or where CUDA_HOME or the usual prefix keeps it."""
    for candidate in (os.environ.get("CUDACXX"), "nvcc", f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc"):
        if candidate and (path := shutil.which(candidate)):
            return path
    return None


class CMakeBuild(build_ext):
    """Runs CMake once for both modules and leaves them where setuptools expects extensions."""

    def run(self) -> None:
        cpu, cuda = switch("JEPA_KERNELS_BUILD_CPU"), switch("JEPA_KERNELS_BUILD_CUDA")
        modules = []
        if cpu != "off":
            if found(os.environ.get("CXX"), "g++", "c++", "clang++"):
                modules.append("_cpu")
            elif cpu == "on":
                sys.exit("JEPA_KERNELS_BUILD_CPU=on but no C++ compiler was found: install g++ or set CXX")
            else:
                self.left_out("the CPU kernels", "no C++ compiler was found (install g++ or set CXX)")
        if cuda != "off" and "_cpu" in modules:
            if nvcc() is not None:
                modules.append("_cuda")
            elif cuda == "on":
                sys.exit("JEPA_KERNELS_BUILD_CUDA=on but nvcc was not found: install the CUDA toolkit or set CUDA_HOME")
        if modules:
            self.build(modules, optional=set() if "on" in (cpu, cuda) else {"_cuda"})

    def build(self, modules: list[str], optional: set[str]) -> None:
        try:
            self.cmake(modules)
        except subprocess.CalledProcessError as error:
            remaining = [module for module in modules if module not in optional]
            if remaining == modules:
                sys.exit(f"building {', '.join(modules)} failed: {error}")
            self.left_out("the CUDA kernels", f"their build failed ({error})")
            self.cmake(remaining)

    def cmake(self, modules: list[str]) -> None:
        build_directory = Path(self.build_temp).resolve()
        build_directory.mkdir(parents=True, exist_ok=True)
        target = self.target_directory()
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build_directory), "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}", f"-DJEPA_KERNELS_CUDA={'ON' if '_cuda' in modules else 'OFF'}",
            f"-DCMAKE_INSTALL_PREFIX={target}",
        ]  # fmt: skip
        if found("ninja"):
            configure += ["-G", "Ninja"]
        if "_cuda" in modules:
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc()}")
        if architectures := os.environ.get("JEPA_KERNELS_CUDA_ARCHITECTURES"):
            configure.append(f"-DJEPA_KERNELS_CUDA_ARCHITECTURES={architectures}")
        subprocess.run(configure, check=True)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", str(build_directory), "--parallel", jobs], check=True)
        subprocess.run(["cmake", "--install", str(build_directory)], check=True)

    def target_directory(self) -> Path:
        """Beside the package's Python files: in the source tree for an editable install, in the build tree otherwise."""
        if self.inplace or getattr(self, "editable_mode", False):
            return ROOT / PACKAGES["jepa_kernels"]
        return Path(self.build_lib).resolve() / "jepa_kernels"

    def left_out(self, what: str, why: str) -> None:
        self.announce(f"jepa-kernels: installing without {what}: {why}", level=3)
        print(f"warning: jepa-kernels installs without {what}: {why}", file=sys.stderr)

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
    },
    # A name only: CMake decides what is built. Its presence makes the wheel specific to the platform.
    ext_modules=[Extension("jepa_kernels._cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

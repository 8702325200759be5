"""Where the disassembler and the CUDA compiler are: on the PATH, under CUDA_HOME, in the usual prefix, or in Triton's package."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from .errors import ToolMissingError


def _folders() -> list[Path]:
    """Triton's package comes first: its disassembler knows every instruction of the assembler beside it."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    found = importlib.util.find_spec("triton")
    if found is not None and found.submodule_search_locations:
        folders.insert(0, Path(found.submodule_search_locations[0]) / "backends" / "nvidia" / "bin")
    return folders


@functools.cache
def find(name: str) -> str | None:
    """The path of a tool of the CUDA toolkit, such as cuobjdump, or None."""
    return shutil.which(name, path=os.pathsep.join([*map(str, _folders()), os.environ.get("PATH", "")]))


def require(name: str) -> str:
    """The path of a tool.

    Raises:
        ToolMissingError: it is not here; the message says what brings it.
    """
    path = find(name)
    if path is None:
        raise ToolMissingError(
            f"{name} was not found: Triton's package brings one (pip install 'jepa-kernels[triton]'), and so does the CUDA "
            "toolkit, whose folder CUDA_HOME names"
        )
    return path


def output(name: str, *arguments: str, folder: str | None = None) -> str:
    """What a tool prints, run in a folder. cuobjdump finds nvdisasm on the PATH only."""
    path = require(name)
    environment = {**os.environ, "PATH": f"{Path(path).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    finished = subprocess.run([path, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise ToolMissingError(
            f"{path} {' '.join(arguments)} failed with code {finished.returncode}: {finished.stderr.strip()[-300:]}; "
            "an older one does not know newer GPUs: update Triton or the CUDA toolkit"
        )
    return finished.stdout


@functools.cache
def release(name: str) -> str:
    """The version of a tool of the CUDA toolkit, such as 13.1.80."""
    found = re.search(r"\bV(\d+(?:\.\d+)+)", output(name, "--version"))
    return found[1] if found else "unknown"

"""The CUDA C++ kernels of the built module: which machine code it holds for an architecture, and the block size of each kernel.

A kernel's shared memory that its launcher asks for is not in the machine code, so it is not counted here.
"""

from __future__ import annotations

import importlib.util
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import tools
from .machine_code import Instructions, Usage, instructions, usage

# Attributes of a kernel in its section .nv.info.NAME: the launch bound, and the block size that is required.
_MAX_THREADS, _REQUIRED_THREADS = 0x05, 0x10
_BYTES_FOLLOW = 0x04
_SOURCE = re.compile(r"_GLOBAL__N__[0-9a-f]{8}_\d+_(\w+?)_cu_")


@dataclass(frozen=True)
class CudaKernel:
    """A kernel of a source file, such as patch_embed_sm90; threads a block are those of its launch bounds, or None."""

    source: str
    name: str
    threads: int | None
    usage: Usage
    instructions: Instructions


def module_path() -> Path | None:
    """The file of the built module, or None."""
    found = importlib.util.find_spec("jepa_kernels._cuda")
    return Path(found.origin) if found is not None and found.origin else None


def kernels(module: Path, operator: str, architecture: int) -> list[CudaKernel]:
    """The kernels of an operator's sources that a GPU of that architecture would run."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        tools.output("cuobjdump", "--extract-elf", "all", str(module.resolve()), folder=folder)
        for path in _of_architecture(sorted(Path(folder).glob("*.cubin")), architecture):
            cubin = path.read_bytes()
            threads = block_sizes(cubin)
            sources = {name: match[1] for name in threads if (match := _SOURCE.search(name)) and match[1].startswith(operator)}
            if not sources:
                continue
            code, needs = instructions(cubin), usage(cubin, architecture)
            for name, source in sources.items():
                found.append(CudaKernel(source, _readable(name), threads[name], needs[name], code[name]))
    return sorted(found, key=lambda kernel: (kernel.source, kernel.name))


def _of_architecture(paths: list[Path], architecture: int) -> list[Path]:
    """Machine code runs on its own architecture, and on later ones of the same major number; sm_90a only on its own."""
    numbers = {}
    for path in paths:
        found = re.search(r"\.sm_(\d+)([af]?)\.cubin$", path.name)
        if found and (not found[2] or int(found[1]) == architecture):
            numbers[path] = int(found[1])
    runnable = [number for number in numbers.values() if number // 10 == architecture // 10 and number <= architecture]
    return [path for path, number in numbers.items() if runnable and number == max(runnable)]


def block_sizes(cubin: bytes) -> dict[str, int | None]:
    """Kernel -> threads a block, from an ELF file's sections .nv.info.NAME; None where the kernel sets no bound."""
    return {
        name.removeprefix(".nv.info."): _threads(body)
        for name, body in _sections(cubin)
        if name.startswith(".nv.info.")
    }  # fmt: skip


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + size * index) for index in range(count)]
    start = headers[names][4]
    for name, _, _, _, offset, length in headers:
        begin = start + name
        yield elf[begin : elf.index(b"\0", begin)].decode(), elf[offset : offset + length]


def _threads(attributes: bytes) -> int | None:
    position = 0
    while position + 4 <= len(attributes):
        kind, name, size = struct.unpack_from("<BBH", attributes, position)
        position += 4
        if kind == _BYTES_FOLLOW:
            if name in (_MAX_THREADS, _REQUIRED_THREADS):
                x, y, z = struct.unpack_from("<III", attributes, position)
                return int(x * y * z)
            position += size
    return None


def _readable(name: str) -> str:
    """The kernel's name and template arguments, where a demangler is here."""
    demangler = tools.find("cu++filt") or tools.find("c++filt")
    if demangler is None:
        return name
    text = subprocess.run([demangler, name], capture_output=True, text=True, check=True).stdout.strip()
    text = re.sub(r"\(anonymous namespace\)::|\bjepa::|^void ", "", text)
    return _without_parameters(text)


def _without_parameters(text: str) -> str:
    """The text up to the first parenthesis that stands outside template arguments."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return text[:index].rstrip()
    return text

"""The static report: one row a compiled kernel and architecture, as Markdown and as JSON."""

from __future__ import annotations

import contextlib
import fnmatch
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import hardware
from . import cuda_module, machine_code, tools, triton_cases
from .errors import StaticError
from .occupancy import ARCHITECTURES, BLOCK_WARPS, WARP_THREADS, occupancy

LARGEST_BLOCK = BLOCK_WARPS * WARP_THREADS
DEFAULT_ARCHITECTURE = 90  # where there is no GPU
CUDA_NOTE = ", CUDA C++ as built here (without the shared memory that launchers ask for: blocks are the most there can be)"
COLUMNS = (
    "kernel and case", "registers", "spill, bytes", "shared, bytes", "warps", "stages", "blocks an SM", "warps an SM",
    "limited by", "matrix instructions", "global loads, by bits", "compiled in, s",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One kernel of a backend on one architecture. Registers and spilled bytes are those of a thread, shared bytes those of a
    block; spill_instructions: loads and stores of the stack; matrix, global_loads: counts in the machine code, loops once;
    compile_seconds: from source to machine code, where nothing came from a cache. Of CUDA C++ kernels the shared memory that
    their launchers ask for is not known: shared_bytes lacks it, and the resident blocks are the most that there can be."""

    operator: str
    backend: str
    case: str
    architecture: str
    registers: int
    spilled_bytes: int
    spill_instructions: int
    shared_bytes: int
    tensor_memory_columns: int
    warps: int
    stages: int | None
    blocks_per_sm: int
    warps_per_sm: int
    most_warps_per_sm: int
    limited_by: tuple[str, ...]
    instructions: int
    matrix: dict[str, int]
    global_loads: dict[int, int]
    compile_seconds: float | None

    def cells(self) -> tuple[str, ...]:
        matrix = ", ".join(f"{count} {name}" for name, count in self.matrix.items()) or "none"
        loads = ", ".join(f"{count} x {bits}" for bits, count in self.global_loads.items()) or "none"
        return (
            self.case, str(self.registers), str(self.spilled_bytes), str(self.shared_bytes), str(self.warps),
            str(self.stages or "-"), str(self.blocks_per_sm), f"{self.warps_per_sm} of {self.most_warps_per_sm}",
            ", ".join(self.limited_by), matrix, loads, *([] if self.compile_seconds is None else [f"{self.compile_seconds:.1f}"]),
        )  # fmt: skip


def architectures(text: str | None) -> list[int]:
    """The architectures that --arch names: `sm_90,sm_100`, or `all`; without it those of this machine's GPUs, or sm_90.

    Raises:
        StaticError: a name is unknown.
    """
    known = {f"sm_{number}": number for number in ARCHITECTURES}
    if text == "all":
        return list(ARCHITECTURES)
    if text is None:
        here = {hardware.architecture(index) for index in range(torch.cuda.device_count())}
        return sorted(known[name] for name in here if name in known) or [DEFAULT_ARCHITECTURE]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise StaticError(f"--arch {name!r} is not one of {', '.join(known)} or all; join several with commas")
    return [known[name] for name in dict.fromkeys(names)]


def chosen_cases(operator: str, quick: bool, patterns: Sequence[str], architecture: int | None = None) -> list[Any]:
    """The operator's compile cases for an architecture whose name, without the operator's, matches a pattern.

    Raises:
        StaticError: none does, or the operator has none.
    """
    cases = triton_cases.cases(operator, quick, architecture)
    chosen = [case for case in cases if not patterns or any(fnmatch.fnmatch(_short(case, operator), p) for p in patterns)]
    if not chosen:
        names = ", ".join(_short(case, operator) for case in cases[:4])
        raise StaticError(f"--filter {' '.join(patterns)} matches no case of {operator}; cases are {names}, ...")
    return chosen


def rows(
    operator: str,
    work: Sequence[tuple[int, Any]],
    progress: Callable[[str], None] = lambda line: None,
    cold: bool = False,
) -> list[Row]:
    """Compiles every (architecture, case) and reads what comes out. progress gets a line before each; cold leaves
    Triton's cache aside and takes the time."""
    tools.require("cuobjdump")
    tools.require("nvdisasm")
    found = []
    with triton_cases.empty_cache() if cold else contextlib.nullcontext():
        for number, (architecture, case) in enumerate(work):
            progress(f"{number + 1}/{len(work)} {_short(case, operator)} for sm_{architecture}")
            found.append(_row(operator, case, architecture, cold))
    return found


def _row(operator: str, case: Any, architecture: int, timed: bool) -> Row:
    begin = time.perf_counter()
    compiled = triton_cases.compile_case(case, architecture)
    seconds = time.perf_counter() - begin
    needs = triton_cases.resources(compiled)
    code = machine_code.instructions(compiled.asm["cubin"])[compiled.metadata.name]
    resident = needs.occupancy(architecture)
    return Row(
        operator=operator,
        backend="triton",
        case=_short(case, operator),
        architecture=f"sm_{architecture}",
        registers=needs.registers,
        spilled_bytes=needs.spilled,
        spill_instructions=code.local_memory,
        shared_bytes=needs.shared,
        tensor_memory_columns=needs.tensor_columns,
        warps=needs.warps,
        stages=case.num_stages,
        blocks_per_sm=resident.blocks,
        warps_per_sm=resident.warps,
        most_warps_per_sm=resident.most_warps,
        limited_by=resident.limits,
        instructions=code.total,
        matrix=code.matrix,
        global_loads=code.global_loads,
        compile_seconds=seconds if timed else None,
    )


def cuda_rows(operator: str, targets: Sequence[int]) -> list[Row]:
    """The operator's kernels in the built CUDA module; none where it was not built."""
    module = cuda_module.module_path()
    if module is None:
        return []
    return [_cuda_row(operator, kernel, target) for target in targets for kernel in cuda_module.kernels(module, operator, target)]


def _cuda_row(operator: str, kernel: cuda_module.CudaKernel, architecture: int) -> Row:
    warps = (kernel.threads or LARGEST_BLOCK) // WARP_THREADS
    resident = occupancy(architecture, kernel.usage.registers, kernel.usage.shared, warps)
    return Row(
        operator=operator,
        backend="cuda",
        case=f"{kernel.source}: {kernel.name}",
        architecture=f"sm_{architecture}",
        registers=kernel.usage.registers,
        spilled_bytes=kernel.usage.stack + kernel.usage.local,
        spill_instructions=kernel.instructions.local_memory,
        shared_bytes=kernel.usage.shared,
        tensor_memory_columns=0,
        warps=warps,
        stages=None,
        blocks_per_sm=resident.blocks,
        warps_per_sm=resident.warps,
        most_warps_per_sm=resident.most_warps,
        limited_by=resident.limits,
        instructions=kernel.instructions.total,
        matrix=kernel.instructions.matrix,
        global_loads=kernel.instructions.global_loads,
        compile_seconds=None,
    )


def _short(case: Any, operator: str) -> str:
    return str(case.name).removeprefix(f"{operator}-")


def versions() -> dict[str, str]:
    """Of what compiled and disassembled."""
    return {"triton": triton_cases.require_triton(), **triton_cases.assemblers(), "nvdisasm": tools.release("nvdisasm")}


def as_json(operator: str, found: Sequence[Row]) -> dict[str, Any]:
    """The report as a JSON document."""
    return {"operator": operator, "versions": versions(), "rows": [asdict(row) for row in found]}


def markdown(operator: str, found: Sequence[Row]) -> str:
    """The report for people: a table an architecture and backend."""
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [f"{operator}, compiled ahead of time ({made}); nothing here was measured on a GPU"]
    for architecture, backend in dict.fromkeys((row.architecture, row.backend) for row in found):
        chosen = [row.cells() for row in found if (row.architecture, row.backend) == (architecture, backend)]
        table = [COLUMNS[: len(chosen[0])], *chosen]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["", f"**{architecture}**{CUDA_NOTE if backend == 'cuda' else ''}", ""]
        for number, cells in enumerate(table):
            lines.append("| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |")
            if number == 0:
                lines.append("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)

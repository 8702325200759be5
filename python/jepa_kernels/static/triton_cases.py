"""Compile the Triton kernels for GPUs that are not here: the cases that each kernel's module lists in `aot_cases`."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import kernels
from ..ops import registry
from . import machine_code
from .errors import CompileError, StaticError, ToolMissingError
from .occupancy import Occupancy, occupancy


@dataclass(frozen=True)
class Resources:
    """Static needs of one compiled kernel.

    registers a thread; stack and local: bytes a thread, where spilled registers lie; shared: bytes a block, static and dynamic;
    tensor_columns: columns of tensor memory a block; warps a block, those that the compiler adds included;
    tensor_core: instruction family of the PTX (wgmma, tcgen05, mma) -> count.
    """

    registers: int
    stack: int
    local: int
    shared: int
    tensor_columns: int
    warps: int
    tensor_core: dict[str, int]

    @property
    def spilled(self) -> int:
        """Bytes a thread."""
        return self.stack + self.local

    def occupancy(self, architecture: int) -> Occupancy:
        return occupancy(architecture, self.registers, self.shared, self.warps, self.tensor_columns)


def require_triton() -> str:
    """The version of Triton.

    Raises:
        ToolMissingError: it is not installed, or runs as an interpreter.
    """
    try:
        import triton
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ToolMissingError("triton is not installed; install it with: pip install 'jepa-kernels[triton]'") from error
    if triton.knobs.runtime.interpret:
        raise ToolMissingError("with TRITON_INTERPRET=1 Triton compiles nothing: unset it")
    return str(triton.__version__)


def assemblers() -> dict[str, str]:
    """Name and version of Triton's assemblers. The second is for newer architectures; from which on depends on the version."""
    import triton

    tools = [getattr(triton.knobs.nvidia, name, None) for name in ("ptxas", "ptxas_blackwell")]
    return {Path(tool.path).name: str(tool.version) for tool in tools if tool is not None}


@contextlib.contextmanager
def empty_cache() -> Iterator[None]:
    """Inside, Triton compiles as if it had never run here, and leaves nothing behind."""
    import triton

    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        yield


def operators() -> Iterator[tuple[str, Any]]:
    """(operator, `aot_cases` of one of its modules) for every module of Triton kernels that has compile cases."""
    for info in pkgutil.iter_modules(kernels.__path__):
        module = importlib.import_module(f"{kernels.__name__}.{info.name}")
        function = getattr(module, "aot_cases", None)
        if inspect.isfunction(function) and function.__module__ == module.__name__:
            owners = [name for name in registry.OPERATOR_NAMES if info.name.startswith(name)]
            yield max(owners, key=len), function  # patch_embed_pair_cases also starts with patch_embed


def cases(operator: str | None = None, quick: bool = False, architecture: int | None = None) -> list[Any]:
    """The compile cases (`AotCase`) of one operator, or of all, with the tiles that an architecture's tuned table gives them.

    Raises:
        StaticError: the operator has none.
    """
    require_triton()
    if operator is not None and operator not in registry.OPERATOR_NAMES:
        raise StaticError(f"unknown operator {operator!r}: one of {', '.join(registry.OPERATOR_NAMES)}")
    from ..kernels.tuned_tiles import compiling_for

    with contextlib.nullcontext() if architecture is None else compiling_for(f"sm_{architecture}"):
        found = [case for owner, listed in operators() if operator in (None, owner) for case in listed(quick=quick)]
    if not found:
        raise StaticError(f"{operator} has no Triton kernel to compile")
    return found


def compile_case(case: Any, architecture: int, **more_options: Any) -> Any:
    """The compiled kernel of an `AotCase` for an architecture such as 90. more_options go to the compiler.

    Raises:
        CompileError: it does not compile, or needs more shared memory than the architecture has.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.errors import TritonError

    signature = {name: case.signature.get(name, "constexpr") for name in case.kernel.arg_names}
    positions = {name: (index,) for index, name in enumerate(case.kernel.arg_names)}
    source = ASTSource(
        fn=case.kernel,
        signature=signature,
        constexprs={positions[name]: value for name, value in case.constants.items()},
        attrs={positions[name]: [["tt.divisibility", 16]] for name in case.divisible_by_16},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.max_registers}
    options |= {"enable_fp_fusion": True, **more_options}
    try:
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    except (TritonError, RuntimeError) as error:
        raise CompileError(f"{case.name} does not compile for sm_{architecture}: {error}") from error


def resources(compiled: Any) -> Resources:
    """What a compiled kernel needs, from its machine code and the compiler's notes."""
    architecture = compiled.metadata.target.arch
    used = machine_code.usage(compiled.asm["cubin"], architecture)[compiled.metadata.name]
    families = re.findall(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\b", compiled.asm["ptx"])
    threads = re.search(r"\.reqntid (\d+)", compiled.asm["ptx"])
    if threads is None:
        raise CompileError(f"the PTX of {compiled.metadata.name} names no block size: this version of Triton is unknown here")
    return Resources(
        registers=used.registers,
        stack=used.stack,
        local=used.local,
        shared=used.shared + compiled.metadata.shared,
        tensor_columns=getattr(compiled.metadata, "tmem_size", None) or 0,
        warps=int(threads[1]) // 32,
        tensor_core=dict(Counter(family.partition(".")[0] for family in families)),
    )

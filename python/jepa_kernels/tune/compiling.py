"""Compile candidates in processes side by side, and say why one is no candidate. Launches find in the cache what was compiled."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from .. import hardware
from ..kernels.masked_attention_tiles import Tile
from ..static import tools
from .candidates import DTYPE, Entry

MOST_PROCESSES = 16
# As it is timed, and the form with every code path of the kernel but the boolean mask.
TIMED, WHOLE = ("dense", False), ("frame_causal", True)


def why_not(entry: Entry, tile: Tile, architecture: int, form: tuple[str, bool]) -> str | None:
    """Compile a candidate for an architecture; None, or why it is not used."""
    from ..kernels import masked_attention_cases, tuned_tiles
    from ..static.errors import CompileError
    from ..static.occupancy import MULTIPROCESSORS
    from ..static.triton_cases import compile_case, resources

    mask, rope = form
    with tuned_tiles.forcing(entry.kernel, tile):
        launches = masked_attention_cases.launches(entry.head_dim, DTYPE, mask, rope, entry.tokens)
    (case,) = (launch.aot_case() for launch in launches if launch.kernel.__name__ == f"{entry.kernel}_kernel")
    try:
        used = resources(compile_case(case, architecture))
    except CompileError as error:
        return str(error)[:300]
    most = MULTIPROCESSORS[architecture].shared_block
    if used.shared > most:
        return f"{used.shared} bytes of shared memory, of {most}"
    return f"{used.spilled} bytes of registers a thread spill" if used.spilled else None


class Compiler:
    """The pool of processes. Raises `StaticError` where Triton or the disassembler is missing."""

    def __init__(self, architecture: int) -> None:
        tools.require("cuobjdump")
        self._architecture = architecture
        count = max(min(hardware.available_cpus() - 1, MOST_PROCESSES), 1)
        self._pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
        self._begun: dict[str, dict[Tile, Future[str | None]]] = {}

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def start(self, entry: Entry, tiles: Sequence[Tile]) -> None:
        """Begin to compile an entry's candidates as they are timed."""
        if entry.name not in self._begun:
            self._begun[entry.name] = self._submit(entry, tiles, TIMED)

    def rejected(self, entry: Entry, tiles: Sequence[Tile]) -> dict[Tile, str]:
        """The candidates that are not to be timed, and why."""
        self.start(entry, tiles)
        return _reasons(self._begun.pop(entry.name))

    def rejected_whole(self, entry: Entry, tiles: Sequence[Tile]) -> dict[Tile, str]:
        """The candidates that do not serve with every mask and rotation, and why."""
        return _reasons(self._submit(entry, tiles, WHOLE))

    def _submit(self, entry: Entry, tiles: Sequence[Tile], form: tuple[str, bool]) -> dict[Tile, Any]:
        return {tile: self._pool.submit(why_not, entry, tile, self._architecture, form) for tile in tiles}


def _reasons(futures: dict[Tile, Future[str | None]]) -> dict[Tile, str]:
    found = {tile: future.result() for tile, future in futures.items()}
    return {tile: reason for tile, reason in found.items() if reason is not None}

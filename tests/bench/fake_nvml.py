"""A pretended NVML library for the real bindings of nvidia-ml-py: boards on a virtual clock, and every error code.

`install` puts it where the bindings keep the loaded library, so that their structures, type tags and error classes are
the real ones. A board draws a power that the test sets; its counter is refreshed every `update_s`, at a phase.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest

UUID = "GPU-11111111-2222-3333-4444-555555555555"


@dataclass
class VirtualTime:
    """Seconds that pass only when somebody spends them."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def spend(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class FakeBoard:
    """Power follows `draw`; energy is its exact integral, told in steps of `update_s` and multiplied by `gain`."""

    time: VirtualTime
    watts: float = 60.0
    update_s: float = 0.1
    phase_s: float = 0.0
    gain: float = 1.0
    uuid: str = UUID
    mig: bool = False
    module_only: bool = False
    events: int = 0
    sm_mhz: int = 1980
    pids: tuple[int, ...] = ()
    codes: dict[str, int] = field(default_factory=dict)  # function or "field:<id>" -> error code
    throttle_ns: dict[int, int] = field(default_factory=dict)
    offset_mj: float = 5e6
    _steps: list[tuple[float, float, float]] = field(default_factory=list)  # instant, joules until then, watts after

    def __post_init__(self) -> None:
        self._steps = [(self.time(), 0.0, self.watts)]

    def draw(self, watts: float) -> None:
        """Change the power from now on."""
        self._steps.append((self.time(), self.joules(self.time()), watts))
        self.watts = watts

    def joules(self, instant: float) -> float:
        """True energy from the beginning until an instant."""
        for begin, joules, watts in reversed(self._steps):
            if instant >= begin:
                return joules + watts * (instant - begin)
        return 0.0

    def counter_mj(self) -> int:
        periods = (self.time() - self.phase_s) // self.update_s
        return int(self.offset_mj + self.gain * 1e3 * self.joules(periods * self.update_s + self.phase_s))


class FakeLibrary:
    """The C functions that the bindings look up. A name that is not here gives the bindings' FunctionNotFound."""

    def __init__(self, *boards: FakeBoard, init_code: int = 0) -> None:
        self.boards, self.init_code = boards, init_code
        self._handles = {board.uuid: pynvml.struct_c_nvmlDevice_t() for board in boards}
        self._by_address = {ctypes.addressof(self._handles[board.uuid]): board for board in boards}

    def __getattr__(self, name: str) -> Callable[..., int]:
        method = getattr(type(self), "do_" + name, None)
        if method is None:
            raise AttributeError(name)

        def function(*arguments: Any) -> int:  # a function, for the bindings set attributes on it
            board = self._board(arguments[0]) if arguments else None
            if board is None:
                return method(self, *arguments)  # type: ignore[no-any-return]
            return board.codes.get(name, 0) or method(self, board, *arguments[1:])

        return function

    def _board(self, argument: Any) -> FakeBoard | None:
        """The board behind a handle: the bindings hold a pointer to a structure that they never look into."""
        if not isinstance(argument, pynvml.c_nvmlDevice_t):
            return None
        return self._by_address[ctypes.addressof(argument.contents)]

    def _point(self, pointer: Any, board: FakeBoard) -> int:
        pointer._obj.contents = self._handles[board.uuid]
        return 0

    def do_nvmlDeviceGetHandleByUUID(self, uuid: Any, pointer: Any) -> int:
        found = next((b for b in self.boards if b.uuid.encode() == uuid.value), None)
        return 6 if found is None else self._point(pointer, found)

    def do_nvmlDeviceGetHandleByIndex_v2(self, index: Any, pointer: Any) -> int:
        return self._point(pointer, self.boards[index.value])

    def do_nvmlDeviceGetCount_v2(self, value: Any) -> int:
        value._obj.value = len(self.boards)
        return 0

    def do_nvmlInitWithFlags(self, _flags: int) -> int:
        return self.init_code

    def do_nvmlErrorString(self, code: int) -> bytes:
        return f"error {code}".encode()

    def do_nvmlSystemGetDriverVersion(self, buffer: Any, _size: Any) -> int:
        buffer.value = b"999.01"
        return 0

    def do_nvmlDeviceGetTotalEnergyConsumption(self, board: FakeBoard, value: Any) -> int:
        if board.module_only:
            return 3
        value._obj.value = board.counter_mj()
        return 0

    def do_nvmlDeviceGetPowerUsage(self, board: FakeBoard, value: Any) -> int:
        value._obj.value = round(board.watts * 1e3)
        return 0

    def do_nvmlDeviceGetFieldValues(self, board: FakeBoard, count: Any, values: Any) -> int:
        for entry in list(values._obj)[: count.value]:
            entry.valueType, entry.nvmlReturn = 3, board.codes.get(f"field:{entry.fieldId}", 0)
            if entry.fieldId in (83, 186):
                entry.nvmlReturn = entry.nvmlReturn or (3 if board.module_only != (entry.scopeId == 1) else 0)
                entry.value.ullVal = board.counter_mj() if entry.fieldId == 83 else round(board.watts * 1e3)
            elif entry.fieldId in board.throttle_ns:
                entry.value.ullVal = board.throttle_ns[entry.fieldId]
            else:
                entry.nvmlReturn = 3
        return 0

    def do_nvmlDeviceGetMigMode(self, board: FakeBoard, current: Any, _pending: Any) -> int:
        current._obj.value = int(board.mig)
        return 0

    def do_nvmlDeviceGetClockInfo(self, board: FakeBoard, kind: Any, value: Any) -> int:
        value._obj.value = board.sm_mhz if kind.value == 1 else 2619
        return 0

    def do_nvmlDeviceGetTemperature(self, _board: FakeBoard, _sensor: Any, value: Any) -> int:
        value._obj.value = 45
        return 0

    def do_nvmlDeviceGetCurrentClocksEventReasons(self, board: FakeBoard, value: Any) -> int:
        value._obj.value = board.events
        return 0

    def do_nvmlDeviceGetUUID(self, board: FakeBoard, buffer: Any, _size: Any) -> int:
        buffer.value = board.uuid.encode()
        return 0

    def do_nvmlDeviceGetComputeRunningProcesses_v3(self, board: FakeBoard, count: Any, array: Any) -> int:
        if array is None:
            count._obj.value = len(board.pids)
            return 7 if board.pids else 0
        count._obj.value = len(board.pids)
        for entry, pid in zip(array, board.pids, strict=False):
            entry.pid = pid
        return 0


def install(monkeypatch: pytest.MonkeyPatch, library: FakeLibrary) -> None:
    """Put the library under the real bindings."""
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    def by_uuid(uuid: str) -> FakeBoard:
        for board in library.boards:
            if board.uuid == uuid:
                return board
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

"""One GPU board through NVML: what it is, and its energy, power, clocks and throttling. An absent value has a reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from .errors import Unavailable

# Field numbers of nvml.h, so that an older nvidia-ml-py without their names works too.
ENERGY, POWER_INSTANT = 83, 186
POWER_CAP_TIME, THERMAL_POLICY_TIME, SW_THERMAL_TIME, HW_THERMAL_TIME, POWER_BRAKE_TIME = 74, 75, 269, 270, 271
SCOPES = {0: "GPU board", 1: "GPU module (GPU and CPU)"}
SM_CLOCK, MEMORY_CLOCK = 1, 2
# Bits of nvmlDeviceGetCurrentClocksEventReasons that slow a kernel down.
EVENTS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
# What an NVML return code means for the user, and what mends it.
MEANINGS = {
    2: ("NVML refuses the request (invalid argument)", "update the NVIDIA driver"),
    3: ("this GPU does not offer it (the energy counter needs Volta or newer)", None),
    4: ("reading it is not permitted", "ask the administrator of the machine or of the container"),
    6: ("NVML does not know this GPU", "make it visible to the container (--gpus all)"),
    9: ("the NVIDIA kernel driver is not loaded", "sudo modprobe nvidia, or reboot"),
    12: (
        "libnvidia-ml.so.1 is not there",
        "install the NVIDIA driver, or give the container the `utility` capability "
        "(NVIDIA_DRIVER_CAPABILITIES=compute,utility)",
    ),
    13: ("the NVIDIA driver is too old for it", "update the driver"),
    15: ("the GPU has fallen off the bus", "reset it or reboot"),
    17: ("the operating system refuses: /dev/nvidiactl is missing or not readable", "start the container with --gpus all"),
    18: ("the driver's library and its kernel module have different versions", "reboot to load the new module"),
    999: ("NVML failed with an unknown error", "see dmesg for a message of the NVIDIA driver"),
}


def load() -> ModuleType:
    """The initialised bindings. Raises `Unavailable` naming what is missing and what mends it."""
    try:
        import pynvml
    except ModuleNotFoundError:
        raise Unavailable("nvidia-ml-py is not installed", "no_nvml", "pip install 'jepa-kernels[bench]'") from None
    if not hasattr(pynvml, "nvmlDeviceGetFieldValues"):
        fix = "pip uninstall pynvml, then pip install nvidia-ml-py"
        raise Unavailable("the module pynvml is not NVIDIA's", "no_nvml", fix)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise failure(error, "NVML cannot be used: ", "no_nvml") from error
    return pynvml


def failure(error: Any, prefix: str = "", flag: str | None = None) -> Unavailable:
    """What an NVMLError means and what mends it."""
    what, fix = MEANINGS.get(error.value, (f"NVML error {error.value}: {error}", None))
    return Unavailable(prefix + what, flag, fix)


def open_board(uuid: str) -> Board:
    """The board of a GPU by the UUID that CUDA gives, which no CUDA_VISIBLE_DEVICES renumbers.

    Raises `Unavailable` where NVML is missing, does not know the UUID, or the device is a MIG instance.
    """
    nvml = load()
    bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
    try:
        if not uuid.startswith("MIG-"):
            return Board(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{bare}"))
    except nvml.NVMLError as error:
        if error.value not in (nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_INVALID_ARGUMENT):
            raise failure(error, f"GPU {uuid}: ") from error
        if not _is_instance(nvml, bare):
            raise failure(error, f"GPU {uuid}: ") from error
    raise Unavailable(MIG_REASON.format(f"MIG-{bare}"), "mig")


MIG_REASON = "{} is a MIG instance: NVML counts the energy of the whole board and cannot split it among instances"


def _is_instance(nvml: ModuleType, bare: str) -> bool:
    try:
        nvml.nvmlDeviceGetHandleByUUID(f"MIG-{bare}")
    except nvml.NVMLError:
        return False
    return True


def boards() -> list[Board]:
    """Every board that NVML shows. Raises `Unavailable` where NVML is missing."""
    nvml = load()
    try:
        return [Board(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        raise failure(error, "the GPUs cannot be listed: ") from error


class Board:
    """One GPU. A method raises `Unavailable`; `snapshot` and `describe` give None for what cannot be read."""

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._power_scope: int | None = self._find_power_scope()

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, name)(self._handle, *arguments)
        except self._nvml.NVMLError as error:
            raise failure(error) from error

    def _or_none(self, read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except Unavailable:
            return None

    def fields(self, wanted: Sequence[int | tuple[int, int]]) -> list[int | float | None]:
        """Field values in one driver call; None where the driver does not offer a field."""
        names = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
        values = self._call("nvmlDeviceGetFieldValues", [(f, 0) if isinstance(f, int) else f for f in wanted])
        return [getattr(v.value, names[v.valueType]) if v.nvmlReturn == 0 else None for v in values]

    def _find_power_scope(self) -> int | None:
        """The narrowest scope in which the instantaneous power can be read."""
        try:
            found = self.fields([(POWER_INSTANT, scope) for scope in SCOPES])
        except Unavailable:
            return None
        return next((scope for scope, value in zip(SCOPES, found, strict=True) if value), None)

    def energy_counter(self) -> tuple[str, Callable[[], float]]:
        """Scope and reader of the energy counter, in joules since the driver was loaded.

        Raises `Unavailable` in MIG mode and where the driver has or gives no counter.
        """
        if self.mig():
            raise Unavailable(MIG_REASON.format(self.uuid()), "mig")
        try:
            self._call("nvmlDeviceGetTotalEnergyConsumption")
        except Unavailable:
            if self._or_none(self._module_energy_j) is None:
                raise
            return SCOPES[1], self._module_energy_j
        return SCOPES[0], lambda: self._call("nvmlDeviceGetTotalEnergyConsumption") * 1e-3

    def _module_energy_j(self) -> float:
        (value,) = self.fields([(ENERGY, 1)])
        if value is None:
            raise Unavailable("no energy counter of the module")
        return value * 1e-3

    def power_scope(self) -> str:
        """What the power reading covers."""
        return SCOPES[self._power_scope or 0]

    def power_kind(self) -> str:
        """`instant`, or `driver default`: a 1-second average on Ampere and newer, but for GA100."""
        return "driver default" if self._power_scope is None else "instant"

    def power_w(self) -> float:
        """Power now, in watts, in the scope of `power_scope`."""
        if self._power_scope is None:
            return float(self._call("nvmlDeviceGetPowerUsage")) * 1e-3
        (value,) = self.fields([(POWER_INSTANT, self._power_scope)])
        if value is None:
            raise Unavailable("the power reading has gone")
        return value * 1e-3

    def throttle_ns(self) -> dict[str, int | None]:
        """Time spent slowed down since the driver was loaded, by cause; None where the driver does not count it."""
        names = {
            "power_cap": POWER_CAP_TIME,
            "thermal_policy": THERMAL_POLICY_TIME,
            "software_thermal": SW_THERMAL_TIME,
            "hardware_thermal": HW_THERMAL_TIME,
            "power_brake": POWER_BRAKE_TIME,
        }
        found = self._or_none(self.fields, list(names.values())) or [None] * len(names)
        return {name: None if value is None else int(value) for name, value in zip(names, found, strict=True)}

    def snapshot(self) -> dict[str, float | int | None]:
        """Power, clocks, temperature, utilisation and the event bits now."""
        utilisation = self._or_none(self._call, "nvmlDeviceGetUtilizationRates")
        return {
            "power_w": self._or_none(self.power_w),
            "sm_mhz": self._or_none(self._call, "nvmlDeviceGetClockInfo", SM_CLOCK),
            "memory_mhz": self._or_none(self._call, "nvmlDeviceGetClockInfo", MEMORY_CLOCK),
            "temperature_c": self._or_none(self._call, "nvmlDeviceGetTemperature", 0),
            "utilisation": None if utilisation is None else utilisation.gpu / 100,
            "events": self._or_none(self.events),
        }

    def events(self) -> int:
        """Bits of the reasons why the clocks are below their maximum now; see `EVENTS`."""
        try:
            return int(self._call("nvmlDeviceGetCurrentClocksEventReasons"))
        except Unavailable:  # the name before driver 535
            return int(self._call("nvmlDeviceGetCurrentClocksThrottleReasons"))

    def mig(self) -> bool:
        """Whether the board is split into instances. Boards without MIG answer with an error."""
        mode = self._or_none(self._call, "nvmlDeviceGetMigMode")
        return mode is not None and mode[0] == 1

    def uuid(self) -> str:
        return str(self._call("nvmlDeviceGetUUID"))

    def other_processes(self, *, computing: bool = False) -> int | None:
        """Processes besides this one that compute on the board; None where they are hidden.

        `computing` says that this process has a CUDA context there. In a container it may be listed under the
        host's number for it: then one of the listed processes is this one all the same.
        """
        found = self._or_none(self._call, "nvmlDeviceGetComputeRunningProcesses")
        if found is None:
            return None
        pids = {process.pid for process in found}
        listed = os.getpid() in pids or (computing and bool(pids))
        return len(pids) - listed

    def describe(self) -> dict[str, Any]:
        """What a reader of a result must know of the board; None for what the driver does not tell."""
        ecc = self._or_none(self._call, "nvmlDeviceGetEccMode")
        enforced = self._or_none(self._call, "nvmlDeviceGetEnforcedPowerLimit")
        default = self._or_none(self._call, "nvmlDeviceGetPowerManagementDefaultLimit")
        return {
            "name": self._or_none(self._call, "nvmlDeviceGetName"),
            "uuid": self._or_none(self.uuid),
            "pci": self._or_none(lambda: self._call("nvmlDeviceGetPciInfo").busId.decode()),
            "driver": self._driver(),
            "power_limit_w": None if enforced is None else enforced * 1e-3,
            "default_power_limit_w": None if default is None else default * 1e-3,
            "max_sm_mhz": self._or_none(self._call, "nvmlDeviceGetMaxClockInfo", SM_CLOCK),
            "application_sm_mhz": self._or_none(self._call, "nvmlDeviceGetApplicationsClock", SM_CLOCK),
            "persistence": _as_bool(self._or_none(self._call, "nvmlDeviceGetPersistenceMode")),
            "ecc": None if ecc is None else bool(ecc[0]),
            "mig": self.mig(),
            "power_scope": self.power_scope(),
            "power_kind": self.power_kind(),
        }

    def _driver(self) -> str | None:
        try:
            return str(self._nvml.nvmlSystemGetDriverVersion())
        except self._nvml.NVMLError:
            return None


def _as_bool(value: int | None) -> bool | None:
    return None if value is None else bool(value)

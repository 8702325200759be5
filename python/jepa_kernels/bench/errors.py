"""Errors of the harness that a user can mend: the command line prints them as one line and exits with their code."""

from __future__ import annotations

import importlib
from types import ModuleType

BROKEN = 86  # exit code of a process that left because its device no longer works


class BenchInputError(ValueError):
    """An argument, suite file, video or output folder cannot be used; the message says what to change."""

    exit_code = 2


class DeviceAbsentError(BenchInputError):
    """The run asks for a device or counter that this machine does not have."""

    exit_code = 5


def require(module: str, *, extra: str = "bench") -> ModuleType:
    """Import an optional module, or raise `BenchInputError` naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise BenchInputError(
            f"{package} is not installed; install it with: pip install 'jepa-kernels[{extra}]'"
        ) from error

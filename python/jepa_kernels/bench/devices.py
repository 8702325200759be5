"""The device that a command names."""

from __future__ import annotations

import torch

from .errors import BenchInputError, DeviceAbsentError


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one.

    Raises `DeviceAbsentError` for one that is absent, `BenchInputError` for one that is unknown.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BenchInputError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceAbsentError(f"device {name} is not there; torch sees {torch.cuda.device_count()} GPUs")
    if device.type not in ("cpu", "cuda"):
        raise BenchInputError(f"device {name} is not supported; use auto, cpu, cuda or cuda:N")
    return device

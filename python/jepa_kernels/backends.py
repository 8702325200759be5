"""Which implementation of an operator runs, and why.

Order of precedence: `with backend("triton"):`, then the environment (`JEPA_KERNELS_BACKEND_<OPERATOR>`, `JEPA_KERNELS_BACKEND`),
then automatic. A forced backend runs or raises; automatic takes the first that supports the call and logs once what it passed
over.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import resources, util
from typing import Any

import torch

from . import hardware
from .ops.registry import Backend, Operator

NAMES = ("reference", "cpu", "triton", "cuda")

_log = logging.getLogger("jepa_kernels")
_logged: set[str] = set()
_context: ContextVar[str | None] = ContextVar("jepa_kernels_backend", default=None)


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run the call; the message says why."""


@contextlib.contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Forces one backend for every operator called inside; `None` lifts what an outer `with` forces.

    Raises:
        ValueError: the name is not one of `reference`, `cpu`, `triton`, `cuda`.

    Example:
        >>> import torch, jepa_kernels as jk
        >>> target, online = torch.zeros(3), torch.ones(3)
        >>> with jk.backend("reference"):
        ...     jk.ema_update_([target], [online], 0.75)
        >>> target
        tensor([0.2500, 0.2500, 0.2500])
    """
    token = _context.set(None if name is None else _checked(name, "jk.backend"))
    try:
        yield
    finally:
        _context.reset(token)


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source}: unknown backend {name!r}: one of {', '.join(NAMES)}")
    return name


def forced(operator_name: str) -> str | None:
    """The backend that the context or the environment forces for this operator, or None."""
    name = _context.get()
    if name is not None:
        return name
    for variable in (f"JEPA_KERNELS_BACKEND_{operator_name.upper()}", "JEPA_KERNELS_BACKEND"):
        value = os.environ.get(variable)
        if value:
            return _checked(value, variable)
    return None


def forced_by_context() -> str | None:
    """What `with backend(...)` forces here. A backward pass re-enters it, as autograd may run outside the `with` block."""
    return _context.get()


def reentered(name: str | None) -> contextlib.AbstractContextManager[None]:
    """For a backward pass: what was forced around its forward, or, where nothing was, whatever holds now."""
    return contextlib.nullcontext() if name is None else backend(name)


@functools.cache
def tuned_table(architecture: str) -> dict[str, Any]:
    """The tuned table of a GPU architecture; empty where the package ships none.

    Raises:
        ValueError: the file is no JSON object; the message names it.
    """
    path = resources.files("jepa_kernels.kernels") / "configs" / f"{architecture}.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return found


def automatic_order(operator_name: str, device: torch.device) -> list[str]:
    """Backends that the automatic choice tries on a device, best first.

    On a GPU these are the ones that the architecture's tuned table lists under `automatic`: a backend enters that list only with
    checked results recorded under benchmarks/results.
    """
    if device.type == "cpu":
        return ["cpu", "reference"]
    if device.type == "cuda":
        table = tuned_table(hardware.architecture(device.index or 0))
        return [*table.get("automatic", {}).get(operator_name, []), "reference"]
    return ["reference"]


@dataclass(frozen=True)
class Decision:
    """Which backend was chosen for a call, and what speaks against each of the others."""

    operator: str
    chosen: str | None
    how: str  # "forced" or "automatic"
    reasons: dict[str, str]  # backend -> why it does not run, or "supported"

    def __str__(self) -> str:
        lines = [f"{self.operator}: {self.chosen or 'no backend'} ({self.how})"]
        lines += [
            f"  {name:<10}{'-> ' if name == self.chosen else '   '}{reason}" for name, reason in self.reasons.items()
        ]
        return "\n".join(lines)


def decide(operator: Operator, device: torch.device, arguments: Sequence[Any]) -> Decision:
    """The decision for one call with every backend's answer, for people to read; `resolve` is the quick form."""
    name = forced(operator.name)
    order = [name] if name else automatic_order(operator.name, device)
    reasons = {}
    for candidate in NAMES:
        implementation = operator.backends.get(candidate)
        reason = (
            implementation.supports(*arguments) if implementation else f"{operator.name} has no {candidate} kernel"
        )
        if reason is None and candidate not in order:
            reason = "supported, but another backend is forced" if name else _not_automatic(candidate, device)
        reasons[candidate] = reason or "supported"
    chosen = next((candidate for candidate in order if reasons[candidate] == "supported"), None)
    return Decision(operator.name, chosen, "forced" if name else "automatic", reasons)


def _not_automatic(candidate: str, device: torch.device) -> str:
    if device.type != "cuda":
        return "supported, but never chosen automatically on this device"
    architecture = hardware.architecture(device.index or 0)
    return (
        f"supported, but no checked result on {architecture} is recorded yet; force it with jk.backend({candidate!r})"
    )


def resolve(operator: Operator, device: torch.device, arguments: Sequence[Any]) -> Backend:
    """The backend that runs this call.

    Raises:
        BackendError: a forced backend does not support the call; the message carries its reason.
        ValueError: the environment names an unknown backend.
    """
    name = forced(operator.name)
    if name is not None:
        implementation = operator.backends.get(name)
        reason = implementation.supports(*arguments) if implementation else f"{operator.name} has no {name} kernel"
        if implementation is None or reason is not None:
            raise BackendError(f"{operator.name}: the backend {name!r} was forced and cannot run this call: {reason}")
        return implementation
    order = automatic_order(operator.name, device)
    if device.type == "cuda" and order == ["reference"]:
        _log_once(
            f"{operator.name}: no GPU backend is verified on {hardware.architecture(device.index or 0)} yet, running the "
            "reference; force one with jk.backend('triton')"
        )
    for candidate in order:
        implementation = operator.backends.get(candidate)
        reason = (
            implementation.supports(*arguments) if implementation else f"{operator.name} has no {candidate} kernel"
        )
        if implementation is not None and reason is None:
            return implementation
        _log_once(f"{operator.name}: not on {candidate}: {reason}")
    raise BackendError(f"{operator.name}: no backend supports this call")


def _log_once(message: str) -> None:
    if message not in _logged:
        _logged.add(message)
        _log.warning(message)


def interpreting() -> bool:
    """True where Triton kernels run in its interpreter, on CPU tensors (`TRITON_INTERPRET=1`)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_no_triton(device: torch.device, dtypes: Sequence[torch.dtype]) -> str | None:
    """None where Triton kernels can run on this device with these element types, otherwise the reason."""
    if util.find_spec("triton") is None:
        return "triton is not installed; pip install 'jepa-kernels[triton]'"
    if device.type == "cpu":
        if not interpreting():
            return "triton kernels need a CUDA tensor, got one on cpu"
        if torch.bfloat16 in dtypes:
            return "triton's interpreter computes bfloat16 wrongly; use float32 or float16 under TRITON_INTERPRET=1"
        return None
    if device.type != "cuda":
        return f"triton kernels need a CUDA tensor, got one on {device.type}"
    return None

"""The support table: operator x backend x element type x architecture, from the registry and the tuned tables."""

from __future__ import annotations

import torch

from . import backends
from .ops import registry

# Architectures for which tests/aot compiles every CUDA source and every Triton kernel (`pytest -m aot_full`; `make test` a part).
ARCHITECTURES = ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120")

BEGIN = "<!-- jepa-kernels support: begin -->"
END = "<!-- jepa-kernels support: end -->"

_COLUMNS = ("operator", "backend", "element types", "CPU", *ARCHITECTURES)


def rows() -> list[dict[str, str]]:
    """One row an operator and backend. On an architecture, `measured` means that results on such hardware are recorded under
    benchmarks/results, `compiled` that the kernel builds for it and has not run there."""
    return [
        _row(operator, name)
        for operator in registry.all_operators()
        for name in backends.NAMES
        if name in operator.backends
    ]


def _row(operator: registry.Operator, backend: str) -> dict[str, str]:
    row = {
        "operator": operator.name,
        "backend": backend,
        "element types": ", ".join(_short(dtype) for dtype in operator.dtypes[backend]),
        "CPU": {"reference": "tested", "cpu": "tested", "triton": "interpreter", "cuda": ""}[backend],
    }
    for architecture in ARCHITECTURES:
        row[architecture] = _on_architecture(operator.name, backend, architecture)
    return row


def _on_architecture(operator: str, backend: str, architecture: str) -> str:
    if backend == "cpu":
        return ""
    if backend == "reference":
        return "PyTorch"
    if backend in backends.tuned_table(architecture).get("automatic", {}).get(operator, []):
        return "measured"
    return "compiled"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.").replace("float", "fp").replace("bfp", "bf")


def markdown() -> str:
    """The table in Markdown, as the README shows it."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(row[column] for column in _COLUMNS) + " |" for row in rows()]
    return "\n".join(lines)

"""The benchmark cases, one module an operator, and their selection by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ..errors import BenchInputError
from . import adamw_ema, ema_update, jepa_loss, masked_attention, patch_embed, patch_embed_pair, sigreg, train_step
from .base import Case, Provider, Setting, Work
from .own import load_cases, model_case

__all__ = ["Case", "Provider", "Setting", "Work", "all_cases", "load_cases", "model_case", "select"]


def all_cases() -> list[Case]:
    """Every case, in the order of tables."""
    modules = (patch_embed, patch_embed_pair, masked_attention, ema_update, adamw_ema, jepa_loss, sigreg, train_step)
    return [case for module in modules for case in module.cases()]


def select(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """The cases whose id matches any of the globs, or all without a glob.

    Raises `BenchInputError` for a glob that matches nothing.
    """
    if not patterns:
        return list(cases)
    chosen = set()
    for pattern in patterns:
        matched = {case.id for case in cases if fnmatchcase(case.id, pattern)}
        if not matched:
            raise BenchInputError(f"no case matches {pattern!r}; `jepa-kernels bench list` names them")
        chosen |= matched
    return [case for case in cases if case.id in chosen]

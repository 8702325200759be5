"""The benchmark cases, one module an operator, and their selection by name."""

from __future__ import annotations

from collections.abc import Sequence

from .. import globs
from ..errors import BenchInputError
from . import (
    adamw_ema,
    attention_gpu,
    ema_update,
    encoder,
    jepa_loss,
    masked_attention,
    objectives,
    patch_embed,
    patch_embed_pair,
    sigreg,
    train_step,
    train_step_ijepa,
)
from .base import Case, Provider, Setting, Work
from .own import load_cases, model_case

WHOLE = ("train_step", "objectives", "model", "encoder")  # operators whose cases are whole steps or models

__all__ = ["WHOLE", "Case", "Provider", "Setting", "Work", "all_cases", "load_cases", "model_case", "select"]


def all_cases() -> list[Case]:
    """Every case, in the order of tables."""
    operators = (patch_embed, patch_embed_pair, masked_attention, attention_gpu, ema_update, adamw_ema, jepa_loss, sigreg)
    whole = (encoder, train_step, train_step_ijepa, objectives)
    return [case for module in (*operators, *whole) for case in module.cases()]


def select(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """The cases whose id the globs choose (see `globs`), or all without a glob.

    Raises `BenchInputError` for a glob that matches nothing, and where nothing is left.
    """
    stray = globs.unmatched(patterns, [case.id for case in cases])
    if stray is not None:
        raise BenchInputError(f"no case matches {stray!r}; `jepa-kernels bench list` names them")
    chosen = [case for case in cases if globs.matches(case.id, patterns)]
    if not chosen:
        raise BenchInputError(f"no case is left by {', '.join(map(repr, patterns))}")
    return chosen

"""The `adamw_ema` cases of `jepa_kernels.bench.cases.adamw_ema`."""

from __future__ import annotations

from jepa_kernels.bench.cases import Case, Provider

from .conftest import Measure

OPERATOR = "adamw_ema"


def test_adamw_ema(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)

"""The `ema_update` cases of `jepa_kernels.bench.cases.ema_update`."""

from __future__ import annotations

from jepa_kernels.bench.cases import Case, Provider

from .conftest import Measure

OPERATOR = "ema_update"


def test_ema_update(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)

"""The `jepa_loss` cases of `jepa_kernels.bench.cases.jepa_loss`."""

from __future__ import annotations

from jepa_kernels.bench.cases import Case, Provider

from .conftest import Measure

OPERATOR = "jepa_loss"


def test_jepa_loss(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)

"""The `objectives` cases of `jepa_kernels.bench.cases.objectives`."""

from __future__ import annotations

from jepa_kernels.bench.cases import Case, Provider

from .conftest import Measure

OPERATOR = "objectives"


def test_objectives(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)

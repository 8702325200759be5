"""The `sigreg` cases of `jepa_kernels.bench.cases.sigreg`."""

from __future__ import annotations

from jepa_kernels.bench.cases import Case, Provider

from .conftest import Measure

OPERATOR = "sigreg"


def test_sigreg(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)

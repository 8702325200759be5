"""The `masked_attention` cases of `jepa_kernels.bench.cases.masked_attention`."""

from __future__ import annotations

from jepa_kernels.bench.cases import Case, Provider

from .conftest import Measure

OPERATOR = "masked_attention"


def test_masked_attention(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)

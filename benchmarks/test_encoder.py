"""The `encoder` cases of `jepa_kernels.bench.cases.encoder`."""

from __future__ import annotations

from jepa_kernels.bench.cases import Case, Provider

from .conftest import Measure

OPERATOR = "encoder"


def test_encoder(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)

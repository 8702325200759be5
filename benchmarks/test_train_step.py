"""The `train_step` cases of `jepa_kernels.bench.cases.train_step`."""

from __future__ import annotations

from jepa_kernels.bench.cases import Case, Provider

from .conftest import Measure

OPERATOR = "train_step"


def test_train_step(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)

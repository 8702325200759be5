"""The `patch_embed` cases of `jepa_kernels.bench.cases.patch_embed`."""

from __future__ import annotations

from jepa_kernels.bench.cases import Case, Provider

from .conftest import Measure

OPERATOR = "patch_embed"


def test_patch_embed(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)

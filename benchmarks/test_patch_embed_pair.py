"""The `patch_embed_pair` cases of `jepa_kernels.bench.cases.patch_embed_pair`."""

from __future__ import annotations

from jepa_kernels.bench.cases import Case, Provider

from .conftest import Measure

OPERATOR = "patch_embed_pair"


def test_patch_embed_pair(case: Case, provider: Provider, measure: Measure) -> None:
    measure(case, provider)

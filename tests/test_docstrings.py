"""The examples in public docstrings run, and every public name has a docstring."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import jepa_kernels as jk
from jepa_kernels.ops.registry import all_operators

# Modules whose import needs more than the core, or that are Triton device code.
_SKIPPED = ("jepa_kernels.kernels", "jepa_kernels._cpu", "jepa_kernels._cuda")


def modules() -> list[str]:
    found = [info.name for info in pkgutil.walk_packages(jk.__path__, "jepa_kernels.")]
    return [name for name in found if not name.startswith(_SKIPPED)]


@pytest.mark.parametrize("name", modules())
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE, extraglobs={"jk": jk, "torch": torch})
    assert results.failed == 0


def test_the_public_functions_have_examples():
    for name in (
        "patch_embed",
        "patch_embed_pair",
        "masked_attention",
        "ema_update_",
        "jepa_loss",
        "sigreg",
        "vicreg_loss",
        "backend",
        "explain",
    ):
        assert ">>>" in (getattr(jk, name).__doc__ or ""), name


def test_every_public_name_resolves_and_is_documented():
    for name in jk.__all__:
        if not name.startswith("__"):
            assert getattr(jk, name).__doc__, name


def test_every_operator_has_its_file_in_every_folder():
    root = Path(__file__).resolve().parents[1]
    for operator in all_operators():
        expected = [
            f"python/jepa_kernels/{folder}/{operator.name}.py" for folder in ("functional", "ops", "reference")
        ]
        expected += [
            f"docs/{operator.name}.md",
            f"tests/ops/test_{operator.name}.py",
            f"benchmarks/test_{operator.name}.py",
        ]
        if "triton" in operator.backends:
            expected += [
                f"kernels/jepa_triton/{operator.name}.py",
                f"tests/kernels/test_{operator.name}_interpreter.py",
            ]
        if "cpu" in operator.backends:
            expected.append(f"csrc/cpu/{operator.native or operator.name}.cpp")
        if "cuda" in operator.backends:
            expected.append(f"csrc/cuda/{operator.native or operator.name}.cu")
        missing = [name for name in expected if not (root / name).is_file()]
        assert not missing, missing

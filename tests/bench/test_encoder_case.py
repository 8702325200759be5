"""The encoders of transformers as a case: every provider is right by the case's own rule, and absence is told, not failed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from jepa_kernels.bench import runner
from jepa_kernels.bench.cases import Case, encoder
from jepa_kernels.bench.energy_run import unit
from jepa_kernels.bench.store import read_results

from .conftest import Run
from .test_cases import CPU, SETTING

VIDEO = encoder.Shape(batch=2, frames=4, size=32, patch=8, tubelet=2, dim=32, depth=2, heads=2)
IMAGE = encoder.Shape(batch=2, frames=1, size=32, patch=8, tubelet=0, dim=32, depth=2, heads=2)
TOYS = [encoder.make_case("toy", shape, dtype, set()) for shape in (VIDEO, IMAGE) for dtype in ("bf16", "fp32")]
needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")


@needs_transformers
@pytest.mark.parametrize("case", TOYS, ids=lambda case: f"{case.shape['tubelet']}-{case.dtype}")
def test_plain_and_patched_models_pass_the_check_of_the_case(case: Case) -> None:
    inputs = case.make_inputs(SETTING)
    reference, low_precision = case.reference(inputs), case.low_precision(inputs)
    assert reference[0].dtype == torch.float64 and reference[0].shape[1] == VIDEO.tokens // (1 if case.shape["tubelet"] else 2)
    checked = set()
    for provider in case.providers(CPU):
        if provider.supports(inputs) is None:
            prepared = runner.prepare(case, provider, inputs, reference, low_precision, lambda: None)
            assert prepared.check.passed, (provider.name, prepared.check.message)
            checked.add(provider.name)
    assert {"jk-reference", "torch-transformers", "torch-transformers-eager"} <= checked
    work = case.work(inputs)
    assert work.tokens == reference[0].shape[0] * reference[0].shape[1] and work.flops > 0 < work.bytes


@needs_transformers
def test_model_that_falls_back_to_its_own_code_is_not_measured() -> None:
    inputs = TOYS[1].make_inputs(SETTING)
    patched = encoder._setup(inputs, patched=True)
    patched.model.set_attn_implementation("eager")
    patched.model.config.output_attentions = True  # the kernels have no weights to give
    with pytest.raises(RuntimeError, match="ran its own code instead of the kernels"):
        encoder._outputs(patched, encoder._run(patched))


def test_without_transformers_every_provider_is_unsupported(monkeypatch: pytest.MonkeyPatch, toy_run: Run) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else real(name))
    code, folder = toy_run([encoder.make_case("toy", VIDEO, "bf16", {"quick"})])
    found = read_results(folder)
    assert code == 0
    assert {r["status"] for r in found} == {"unsupported"}
    assert all("pip install 'jepa-kernels[integrations]'" in r["error"] for r in found)


def test_energy_is_told_per_clip_or_image() -> None:
    assert [unit(case) for case in (TOYS[0], TOYS[2])] == ["clip", "image"]

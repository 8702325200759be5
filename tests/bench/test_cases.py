"""Every kind of case at toy sizes: its peers and our plain reference are right by the case's own rule."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jepa_kernels.backends import BackendError
from jepa_kernels.bench import cases, runner, suite
from jepa_kernels.bench.cases import (
    Case,
    Setting,
    adamw_ema,
    ema_update,
    masked_attention,
    objectives,
    patch_embed,
    patch_embed_pair,
    train_step,
)
from jepa_kernels.bench.eager_vjepa2 import EagerVJEPA2, rotate_queries_or_keys
from jepa_kernels.bench.errors import BenchInputError
from jepa_kernels.bench.video import Clip
from jepa_kernels.ops.registry import OPERATOR_NAMES

CPU = torch.device("cpu")
CLIP = Clip(torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), "noise")
SETTING = Setting(0, CPU, lambda: CLIP)


def toy_cases() -> list[Case]:
    video = patch_embed.Shape(batch=2, frames=4, size=32, patch=8, tubelet=2, dim=24)
    image = patch_embed.Shape(batch=2, frames=1, size=28, patch=14, tubelet=0, dim=24)
    dense = masked_attention.Shape(batch=2, heads=2, head_dim=16, tokens=12)
    step = train_step.Shape("vit_tiny", 1, 2, 4, 32, predictor_dim=48, predictor_depth=1, predictor_heads=2, patch=8)
    heads = {"predictor": (48, 1, 4), "decoder": (48, 1, 4), "hidden": 32, "expander": 32, "prototypes": 64}
    images = objectives.Shape("vit_tiny", 3, 1, 32, depth=1, patch=4, local_size=16, **heads)
    clips = objectives.Shape("vit_tiny", 2, 4, 32, depth=1, patch=8, **heads)
    found = [ema_update.make_case("toy", [(3, 5), (7,)], set()), adamw_ema.make_case("toy", [(3, 5), (7,)], set())]
    found += [objectives.make_case(name, "toy", images, "fp32", {"full"}) for name in objectives.IMAGES]
    found += [objectives.make_case(name, "toy", clips, "fp32", {"full"}) for name in objectives.CLIPS]
    for dtype in ("fp32", "bf16"):
        found += [
            *(patch_embed.make_case("toy", s, dtype, set()) for s in (video, replace(video, kept=0.25), image)),
            *(
                patch_embed.make_case("toy", replace(video, kept=k, backward=True), dtype, set()) for k in (1.0, 0.25)
            ),
            patch_embed_pair.make_case("toy", video, (5, 3), dtype, set()),
            masked_attention.make_case("dense", dense, dtype, "torch-sdpa", set()),
            masked_attention.make_case("rope", replace(dense, grid=(3, 2, 2)), dtype, "torch-rope-sdpa", set()),
            masked_attention.make_case(
                "causal", replace(dense, causal_frames=3), dtype, "torch-sdpa-bool-mask", set()
            ),
            masked_attention.make_case("ragged", replace(dense, lengths=(3, 5)), dtype, "torch-sdpa-padded", set()),
            masked_attention.make_case(
                "back", replace(dense, lengths=(3, 5), backward=True), dtype, "torch-sdpa-padded", set()
            ),
            train_step.make_case("toy", step, dtype, {"quick"}),  # compiling a whole step takes minutes
        ]
    return found


TOYS = toy_cases()


@pytest.mark.parametrize("case", TOYS, ids=lambda case: case.id)
def test_peers_and_reference_pass_the_check_of_the_case(case: Case) -> None:
    inputs = case.make_inputs(SETTING)
    reference, low_precision = case.reference(inputs), case.low_precision(inputs)
    assert all(r.dtype == torch.float64 for r in reference)
    checked = set()
    for provider in case.providers(CPU):
        runs = provider.supports(inputs) is None
        if runs and (provider.name == "jk-reference" or provider.name.startswith("torch-")):
            prepared = runner.prepare(case, provider, inputs, reference, low_precision, lambda: None)
            assert prepared.check.passed, (provider.name, prepared.check.message)
            with provider.context():
                prepared.call()  # a second call must not fail on what the first left
            checked.add(provider.name)
    assert case.peer in checked and "jk-reference" in checked


@pytest.mark.parametrize("case", TOYS, ids=lambda case: case.id)
def test_work_is_positive_and_finite(case: Case) -> None:
    work = case.work(case.make_inputs(SETTING))
    assert all(math.isfinite(v) and v > 0 for v in (work.flops, work.bytes, work.samples, work.tokens))


def test_inputs_depend_on_the_seed_alone() -> None:
    case = next(c for c in TOYS if c.operator == "masked_attention")
    one, same, other = (case.make_inputs(replace(SETTING, seed=s)).qkv for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_every_case_has_a_name_of_its_own_and_knows_its_peer() -> None:
    listed = cases.all_cases()
    assert len({c.id for c in listed}) == len(listed)
    for case in listed:
        assert case.peer in {p.name for p in case.providers(CPU)}
        assert case.tags <= {"quick", "full", "gpu"} and case.tags


def test_quick_suite_covers_every_operator() -> None:
    operators = {c.operator for c in suite.QUICK.chosen()}
    assert operators == {*OPERATOR_NAMES, "train_step"}


def test_glob_that_matches_nothing_is_an_error() -> None:
    assert [c.id for c in cases.select(TOYS, ["ema*"])] == ["ema_update/toy-fp32"]
    with pytest.raises(BenchInputError, match="no case matches 'nothing'"):
        cases.select(TOYS, ["ema*", "nothing"])


def test_eager_model_has_the_state_dict_of_the_package_models() -> None:
    case = next(c for c in TOYS if c.id.startswith("train_step"))
    inputs = case.make_inputs(SETTING)
    eager = EagerVJEPA2(inputs.config).state_dict()
    assert {k: v.shape for k, v in eager.items()} == {k: v.shape for k, v in inputs.state.items()}


def test_rope_by_hand() -> None:
    """Head dim 8: two channels an axis, one frequency (1), so each pair turns by its position in radians."""
    x = torch.arange(1.0, 9.0).reshape(1, 8)
    out = rotate_queries_or_keys(x, torch.tensor([[0.0, 1.0, 2.0]]))[0]
    expected = [1.0, 2.0]
    for (a, b), angle in (((3.0, 4.0), 1.0), ((5.0, 6.0), 2.0)):
        expected += [a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)]
    assert torch.allclose(out, torch.tensor([*expected, 7.0, 8.0]))


def test_clip_is_cut_and_wraps_at_its_end() -> None:
    cut = CLIP.cut(batch=2, frames=4, size=32)
    assert cut.shape == (2, 4, 32, 32, 3)
    assert torch.equal(cut[1, 0], CLIP.frames[4]) and torch.equal(cut[1, 1], CLIP.frames[0])
    assert CLIP.cut(batch=1, frames=1, size=16).shape == (1, 1, 16, 16, 3)


def test_suite_of_the_objectives_is_found_by_its_name() -> None:
    found = suite.load_suite(Path("objectives")).chosen()
    assert {str(c.shape["objective"]) for c in found} == {*objectives.IMAGES, *objectives.CLIPS} and len(found) == 7
    for case in found:
        names = [p.name for p in case.providers(CPU)]
        assert names.count("ijepa-step") + names.count("vjepa2-step") == (case.shape["objective"] not in ("ijepa", "vjepa2"))
    with pytest.raises(BenchInputError, match=r"suite .*benchmarks.suites.nothing.toml cannot be read"):
        suite.load_suite(Path("nothing"))


def test_steps_of_large_encoders_are_left_to_gpus() -> None:
    large = next(c for c in cases.all_cases() if c.id.startswith("objectives/mae-vitl"))
    with pytest.raises(BackendError, match="ViT-L are measured on a GPU"):
        large.make_inputs(SETTING)

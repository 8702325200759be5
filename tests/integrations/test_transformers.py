"""transformers' V-JEPA 2 and I-JEPA: patched equals unpatched, and what its users do with a model still works."""

from __future__ import annotations

import copy

import pytest
import torch

import jepa_kernels as jk

from .helpers import assert_error_rule, assert_same, operators, optional

transformers = optional("transformers")
FIVE = transformers.__version__.split(".")[0] == "5"


def vjepa2(**changes):
    sizes = {"crop_size": 32, "frames_per_clip": 4, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"mlp_ratio": 2, "pred_hidden_size": 48, "pred_num_hidden_layers": 2, "pred_num_attention_heads": 2}
    return transformers.VJEPA2Model(transformers.VJEPA2Config(**(sizes | changes)))


def ijepa(**changes):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    sizes |= {"image_size": 32, "patch_size": 8}
    return transformers.IJepaModel(transformers.IJepaConfig(**(sizes | changes)))


CLIPS = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
CONTEXT = [torch.tensor([[0, 2, 5], [1, 3, 7]])]
TARGETS = [torch.tensor([[1, 3, 4, 6], [0, 2, 4, 5]])]


def predict(model):
    out = model(CLIPS.to(model.dtype), context_mask=CONTEXT, target_mask=TARGETS)
    return torch.cat([out.predictor_output.last_hidden_state, out.last_hidden_state], dim=1)


def predict_all(model):
    return model(CLIPS.to(model.dtype)).predictor_output.last_hidden_state


def embed(model):
    return model(IMAGES.to(model.dtype)).last_hidden_state


CASES = pytest.mark.parametrize(
    ("build", "forward"), [(vjepa2, predict), (vjepa2, predict_all), (ijepa, embed)], ids=["vjepa2", "vjepa2-all", "ijepa"]
)


@CASES
def test_equal_in_fp32_with_every_gradient(build, forward):
    report = assert_same(build(), forward)
    assert report.left == [] and report.fallbacks == {}
    expected = {"VJEPA2RopeAttention": 4, "VJEPA2PatchEmbeddings3D": 1, "VJEPA2PredictorEmbeddings": 1}
    if build is ijepa:
        expected = {"IJepaAttention" if FIVE else "IJepaSelfAttention": 2, "IJepaPatchEmbeddings": 1}
    names = [entry.class_name for entry in operators(report)]
    assert {name: names.count(name) for name in names} == expected


@CASES
def test_bfloat16_follows_the_error_rule(build, forward):
    assert_error_rule(build(), forward, forward)


@CASES
def test_save_load_copy_and_undo(build, forward, tmp_path):
    model = build().eval()
    expected = forward(model)
    report = jk.patch(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(forward(loaded), expected)
    assert jk.patch(loaded).replaced
    assert torch.equal(forward(loaded), forward(model))
    assert torch.equal(forward(copy.deepcopy(model)), forward(model))
    report.undo()
    assert torch.equal(forward(model), expected)


@pytest.mark.skipif(not FIVE, reason="transformers 4 breaks the graph in its own model code")
@CASES
def test_compiles_to_one_graph(build, forward):
    model = build().eval()
    expected = forward(model)
    jk.patch(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(forward(compiled), expected, rtol=0, atol=1e-5)


def test_attention_weights_come_from_the_original():
    model = vjepa2(attn_implementation="eager").eval()
    expected = model(CLIPS, output_attentions=True, skip_predictor=True)
    report = jk.patch(model)
    found = model(CLIPS, output_attentions=True, skip_predictor=True)
    assert len(found.attentions) == 2
    torch.testing.assert_close(found.attentions, expected.attentions, rtol=0, atol=1e-5)
    assert report.fallbacks["VJEPA2RopeAttention", "the attention weights were asked for"] == 2
    torch.testing.assert_close(model(CLIPS).last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5)


def test_hidden_states_are_those_of_the_original():
    model = vjepa2().eval()
    expected = model(CLIPS, context_mask=CONTEXT, target_mask=TARGETS, output_hidden_states=True)
    jk.patch(model)
    found = model(CLIPS, context_mask=CONTEXT, target_mask=TARGETS, output_hidden_states=True)
    for ours, theirs in ((found, expected), (found.predictor_output, expected.predictor_output)):
        assert (ours.hidden_states is None) == (theirs.hidden_states is None)
        torch.testing.assert_close(ours.hidden_states or (), theirs.hidden_states or (), rtol=0, atol=1e-5)
    assert len(found.hidden_states) == 3


def test_a_wrong_image_size_is_reported_by_the_original():
    model = ijepa()
    jk.patch(model)
    with pytest.raises(ValueError, match="Input image size"):
        model(torch.zeros(1, 3, 40, 32))
    torch.testing.assert_close(
        model(torch.ones(1, 3, 48, 32), interpolate_pos_encoding=True).last_hidden_state.isfinite().all(), torch.tensor(True)
    )


def test_the_classifier_is_patched_too():
    config = vjepa2().config
    config.num_labels = 3
    model = transformers.VJEPA2ForVideoClassification(config)
    report = assert_same(model, lambda module: module(CLIPS).logits)
    assert len(report.replaced) > 6 if FIVE else report.replaced


@pytest.mark.skipif(not FIVE, reason="the attention interface of transformers 5")
def test_attention_function():
    jk.integrations.transformers.register_attention()
    for build, forward in ((vjepa2, predict), (ijepa, embed)):
        model = build().eval()
        expected = forward(model)
        model.set_attn_implementation("jepa_kernels")
        torch.testing.assert_close(forward(model), expected, rtol=0, atol=1e-5)
    model = type(model)._from_config(model.config, attn_implementation="jepa_kernels")
    assert model.config._attn_implementation == "jepa_kernels"


def test_attention_function_hands_on_what_the_kernels_lack():
    optional("transformers.integrations.sdpa_attention")
    function = jk.integrations.transformers.attention_forward
    module = torch.nn.Module()
    module.is_causal = True
    q, k, v = (torch.randn(2, 4, 6, 8) for _ in range(3))
    bias, mask = torch.randn(2, 1, 6, 6), torch.rand(2, 1, 6, 6) < 0.8
    mask |= torch.eye(6, dtype=torch.bool)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    for given, options in ((None, {"is_causal": True}), (bias, {"attn_mask": bias}), (mask, {"attn_mask": mask})):
        out, weights = function(module, q, k, v, given, scaling=0.5)
        assert weights is None
        torch.testing.assert_close(out.transpose(1, 2), sdpa(q, k, v, scale=0.5, **options), rtol=0, atol=1e-5)
    module.num_key_value_groups = 2
    out, _ = function(module, q, k[:, :2], v[:, :2], None, is_causal=False)
    expected = sdpa(q, k[:, :2].repeat_interleave(2, 1), v[:, :2].repeat_interleave(2, 1))
    torch.testing.assert_close(out.transpose(1, 2), expected, rtol=0, atol=1e-5)

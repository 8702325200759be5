"""Re-creations of the official modules: patched equals unpatched, outputs and gradients, in every way they are called."""

from __future__ import annotations

import pytest
import torch

import jepa_kernels as jk

from .helpers import assert_error_rule, assert_same, operators
from .official import ijepa, jepa, vjepa2

CLIPS = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(3))
CONTEXT = torch.tensor([[0, 2, 5], [1, 3, 7]])
TARGETS = torch.tensor([[1, 3, 4, 6], [0, 2, 4, 5]])


def encode(masks=None, clips=CLIPS):
    return lambda model: model(clips.to(next(model.parameters()).dtype), masks)


@pytest.mark.parametrize("use_rope", [True, False], ids=["rope", "table"])
@pytest.mark.parametrize("masks", [None, CONTEXT, [CONTEXT, CONTEXT.flip(1)]], ids=["all", "one", "two"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_vjepa2_encoder(masks, use_rope, checkpointing):
    model = vjepa2.VisionTransformer(use_rope=use_rope, use_activation_checkpointing=checkpointing)
    report = assert_same(model, encode(masks))
    assert {entry.class_name for entry in report.replaced} >= {"VisionTransformer", "PatchEmbed3D"}
    assert report.fallbacks == {}


def test_vjepa2_encoder_of_another_size_and_with_out_layers():
    wide = torch.randn(1, 3, 2, 32, 64)
    report = assert_same(vjepa2.VisionTransformer(), encode(None, wide))
    assert report.fallbacks == {}
    report = assert_same(vjepa2.VisionTransformer(out_layers=[0, 1]), lambda model: torch.stack(model(CLIPS, CONTEXT)))
    assert report.fallbacks == {}


@pytest.mark.parametrize("use_rope", [True, False], ids=["rope", "table"])
def test_vjepa2_predictor_runs_without_the_sort(use_rope):
    model = vjepa2.VisionTransformerPredictor(use_rope=use_rope)
    context = torch.randn(2, 3, 64)
    report = assert_same(model, lambda module: module(context, CONTEXT, [TARGETS], mask_index=4))
    assert report.fallbacks == {}


def test_vjepa2_predictor_keeps_the_sort_where_the_order_matters():
    model = vjepa2.VisionTransformerPredictor(chop_last_n_tokens=2)
    model.return_all_tokens = True
    context = torch.randn(2, 3, 64)
    report = assert_same(model, lambda module: module(context, CONTEXT, TARGETS))
    reason = "return_all_tokens or chop_last_n_tokens, which see the sorted order"
    assert ("VisionTransformerPredictor", reason) in report.fallbacks


@pytest.mark.parametrize("extrinsics", [False, True])
def test_vjepa2_ac_predictor_runs_without_the_dense_mask(extrinsics):
    model = vjepa2.VisionTransformerPredictorAC(use_extrinsics=extrinsics)
    dense = model.attn_mask.clone()
    inputs = (torch.randn(2, 12, 64), torch.randn(2, 3, 7), torch.randn(2, 3, 7), torch.randn(2, 3, 6))
    report = assert_same(model, lambda module: module(*inputs))
    assert report.fallbacks == {}
    assert not isinstance(model.attn_mask, torch.Tensor)
    assert torch.equal(model.attn_mask[:5, :7], dense[:5, :7])
    report.undo()
    assert torch.equal(model.attn_mask, dense)


def test_vjepa2_ac_predictor_with_another_mask_is_left():
    model = vjepa2.VisionTransformerPredictorAC()
    model.attn_mask = model.attn_mask.clone()
    model.attn_mask[0, -1] = True
    report = jk.patch(model)
    assert [(entry.class_name, entry.text) for entry in report.left] == [
        ("VisionTransformerPredictorAC", "its mask is not the frame-causal one")
    ]


def test_vjepa2_ac_attention_without_actions_and_with_a_dense_mask():
    attention = vjepa2.ACRoPEAttention(48, 2, grid_size=4)
    x, dense = torch.randn(2, 12, 48), torch.rand(12, 12) < 0.7
    dense.fill_diagonal_(True)
    assert_same(attention, lambda module: module(x, T=3, H=2, W=2, attn_mask=dense))


def test_tokens_may_be_changed_in_place():
    embedding = ijepa.PatchEmbed(64, 16, 64)
    jk.patch(embedding)
    tokens = embedding(torch.ones(1, 3, 64, 64))
    tokens += 1.0
    tokens.sum().backward()
    assert embedding.proj.bias.grad is not None


def test_jepa_encoder():
    report = assert_same(jepa.VisionTransformer(), encode([CONTEXT]))
    assert {entry.code_base for entry in operators(report)} == {"jepa", "official"}
    assert report.fallbacks == {}


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))


def test_ijepa_encoder_and_predictor():
    report = assert_same(ijepa.VisionTransformer(), encode([CONTEXT, TARGETS[:, :3]], IMAGES))
    assert report.fallbacks == {}
    context = torch.randn(2, 3, 64)
    report = assert_same(ijepa.VisionTransformerPredictor(16), lambda model: model(context, [CONTEXT], [TARGETS, TARGETS + 8]))
    assert report.fallbacks == {} and report.left == []


def test_ijepa_gives_attention_weights_to_whom_asks():
    block = ijepa.VisionTransformer().blocks[0]
    x = torch.randn(2, 5, 64)
    weights = block(x, return_attention=True)
    report = jk.patch(block)
    torch.testing.assert_close(block(x, return_attention=True), weights, rtol=0, atol=1e-6)
    assert block.attn(x)[1] is None
    assert report.fallbacks == {("Attention", "the attention weights were asked for"): 1}


def autocast(forward):
    def call(model):
        with torch.autocast("cpu", torch.bfloat16):
            return forward(model).float()

    return call


@pytest.mark.parametrize("low", [True, False], ids=["bfloat16", "autocast"])
def test_low_precision_follows_the_error_rule(low):
    for model, forward in (
        (vjepa2.VisionTransformer(), encode(CONTEXT)),
        (vjepa2.VisionTransformer(use_rope=False), encode()),
        (jepa.VisionTransformer(), encode([CONTEXT])),
        (ijepa.VisionTransformer(), encode([CONTEXT], IMAGES)),
    ):
        assert_error_rule(model, forward if low else autocast(forward), forward, low)


def test_train_step_hooks_equal_the_closures():
    encoder = vjepa2.MultiSeqWrapper(vjepa2.VisionTransformer())
    target = vjepa2.MultiSeqWrapper(vjepa2.VisionTransformer()).requires_grad_(False)
    predictor = vjepa2.PredictorMultiSeqWrapper(vjepa2.VisionTransformerPredictor())
    hooks = jk.integrations.vjepa2.train_step_hooks(encoder, predictor, target, loss_exp=1.5)
    clips, contexts, targets = [CLIPS], [[CONTEXT, CONTEXT[:, :2]]], [[TARGETS, TARGETS[:, :1]]]

    h = hooks.forward_target(clips)
    z = hooks.forward_context(clips, contexts, targets)
    loss = hooks.loss_fn(z, h, targets)

    normal = torch.nn.functional.layer_norm(h[0], (64,))
    expected = 0.0
    for prediction, ids in zip(z[0], targets[0], strict=True):
        gathered = torch.gather(normal, 1, ids[..., None].expand(-1, -1, 64))
        expected = expected + (prediction - gathered).abs().pow(1.5).mean() / 1.5
    torch.testing.assert_close(loss, expected / 2, rtol=1e-5, atol=0)

    wanted = [0.9 * k + 0.1 * q for k, q in zip(target.parameters(), encoder.parameters(), strict=True)]
    hooks.momentum_update(0.9)
    torch.testing.assert_close(list(target.parameters()), wanted, rtol=1e-6, atol=1e-7, check_stride=False)


def test_train_step_hooks_refuse_other_modules():
    linear = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="loss_exp is 0.5"):
        jk.integrations.vjepa2.train_step_hooks(linear, linear, linear, loss_exp=0.5)
    with pytest.raises(ValueError, match="different parameters"):
        jk.integrations.vjepa2.train_step_hooks(linear, linear, torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match="holds no prediction"):
        jk.integrations.vjepa2.train_step_hooks(linear, linear, linear).loss_fn([[]], [torch.zeros(1, 1, 1)], [[]])

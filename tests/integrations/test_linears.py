"""Linear layers and MLPs that `jk.patch` replaces: only inside models it recognises, with their hooks, and never out of date."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import jepa_kernels as jk
from jepa_kernels.ops import linear as products

from .helpers import assert_error_rule, assert_same
from .official import ijepa, vjepa2

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))


def build(dim=64):
    return ijepa.VisionTransformer(dim=dim)


def names(report):
    return {entry.name for entry in report.replaced if entry.class_name in ("Linear", "MLP")}


def autocast(model, images=IMAGES):
    with torch.autocast("cpu", torch.bfloat16):
        return model(images).float()


@pytest.fixture
def counted(monkeypatch):
    """The calls of native products."""
    if products._native.why_no_cpu() or products._native.cpu().active_isa() != "avx512_bf16":
        pytest.skip("no AVX512_BF16")
    calls = []
    for name in ("_product", "_mlp", "_input_gradient"):
        original = getattr(products, name)
        monkeypatch.setattr(products, name, lambda *a, _f=original, _n=name, **k: (calls.append(_n), _f(*a, **k))[1])
    return calls


def test_only_layers_of_recognised_blocks_are_replaced():
    model = nn.Sequential(build(), nn.Linear(64, 64), nn.TransformerEncoderLayer(64, 2))
    report = jk.patch(model)
    block = {f"0.blocks.{i}.{name}" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp", "mlp.fc1", "mlp.fc2")}
    assert names(report) == block
    assert jk.patch(nn.Linear(64, 64)).replaced == []
    report.undo()
    assert {type(part) for part in model.modules() if isinstance(part, nn.Linear)} >= {nn.Linear}
    assert not any("_jepa_kernels" in name for part in model.modules() for name in vars(type(part)))


def test_the_predictors_ends_are_replaced_and_subclasses_left():
    predictor = vjepa2.VisionTransformerPredictor()
    assert {"predictor_embed", "predictor_proj"} <= names(jk.patch(predictor))

    class Mine(nn.Linear):
        def forward(self, input):
            return super().forward(input) + 1

    model = build()
    model.blocks[0].mlp.fc1 = Mine(64, 256)
    found = names(jk.patch(model))
    assert "blocks.0.mlp.fc1" not in found and "blocks.0.mlp" not in found and "blocks.0.mlp.fc2" in found


@pytest.mark.parametrize("training", [False, True])
def test_autocast_runs_the_native_products_within_the_error_rule(counted, training):
    model = build()
    with torch.set_grad_enabled(training):
        jk.patch(model)
        autocast(model)
    expected = {"_product"} if training else {"_product", "_mlp"}
    assert set(counted) == expected
    jk.unpatch(model)
    assert_error_rule(model, autocast, lambda module: module(IMAGES.double()), low=False)


def test_a_weight_written_through_data_is_seen(counted):
    """As the official I-JEPA writes its target encoder: no version counter moves."""
    model, online = build().requires_grad_(False), build()
    jk.patch(model)
    autocast(model)
    for target, source in zip(model.parameters(), online.parameters(), strict=True):
        target.data.mul_(0.5).add_(source.detach().data, alpha=0.5)
    fresh = build()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(autocast(model), autocast(fresh), rtol=0, atol=0.1)
    jk.patch(fresh)
    assert torch.equal(autocast(model), autocast(fresh))


def test_hooks_see_what_they_saw():
    model = build()
    seen = []
    handle = model.blocks[0].mlp.fc1.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    model.blocks[0].attn.qkv.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    report = jk.patch(model)
    autocast(model)
    assert sorted(shape[-1] for shape in seen) == [192, 256]
    assert report.fallbacks == {("MLP", "hooks on its layers"): 1}
    handle.remove()
    autocast(model)
    assert len(seen) == 3 and sum(report.fallbacks.values()) == 1


def test_dropout_and_another_activation_keep_the_mlps_forward():
    model = build()
    model.blocks[0].mlp.act = nn.GELU(approximate="tanh")
    model.blocks[1].mlp.drop = nn.Dropout(0.5)
    report = assert_same(model.eval(), lambda module: module(IMAGES))
    assert "blocks.0.mlp" not in names(report) and "blocks.1.mlp" in names(report) and report.fallbacks == {}
    model.train()(IMAGES)
    assert report.fallbacks == {("MLP", "dropout 0.5 in training"): 1}
    model.blocks[1].mlp.act = nn.ReLU()
    model(IMAGES)
    assert sum(report.fallbacks.values()) == 2


def test_a_layer_put_in_later_is_used():
    model = build()
    report = jk.patch(model)
    model.blocks[0].mlp.fc2 = nn.Sequential(nn.Linear(256, 64))
    model(IMAGES)
    assert report.fallbacks == {("MLP", "its layers are not plain linear layers"): 1}


def test_results_may_be_written_in_place_and_backward_runs_once():
    layer = vjepa2.VisionTransformerPredictor().predictor_embed
    holder = vjepa2.RoPEAttention(64, 2, grid_size=4)
    holder.proj = layer
    jk.patch(holder)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(torch.randn(2, 16, 64))
            y += 1.0
        y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_copies_pickles_and_frozen_layers():
    model = build()
    model.blocks[0].requires_grad_(False)
    model.blocks[1].mlp.fc1.bias.requires_grad_(False)
    jk.patch(model)
    expected = autocast(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(autocast(twin), expected)
        autocast(twin).sum().backward()
        assert twin.blocks[0].mlp.fc1.weight.grad is None and twin.blocks[1].mlp.fc1.bias.grad is None
        assert twin.blocks[1].mlp.fc1.weight.grad is not None and twin.patch_embed.proj.weight.grad is not None


def test_it_compiles_to_one_graph_and_checkpoints():
    model = build()
    expected = model(IMAGES)
    jk.patch(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IMAGES), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(autocast(compiled), autocast(model), rtol=0, atol=0.1)
    x = torch.randn(2, 16, 64, requires_grad=True)
    gradients = []
    for recomputed in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            run = model.blocks[0]
            y = torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False) if recomputed else run(x)
        gradients.append(torch.autograd.grad(y.float().square().sum(), [x, *run.parameters()]))
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)

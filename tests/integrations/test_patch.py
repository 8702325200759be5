"""`jk.patch` itself: what it matches and refuses, what survives it, and the way back."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import jepa_kernels as jk

from .helpers import operators
from .official import ijepa, jepa, vjepa2

CLIPS = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(3))
CONTEXT = torch.tensor([[0, 2, 5], [1, 3, 7]])


@pytest.fixture
def model():
    return vjepa2.VisionTransformer()


def test_undo_gives_everything_back(model):
    classes = [type(module) for module in model.modules()]
    attributes = [set(module.__dict__) for module in model.modules()]
    before = model(CLIPS)
    report = jk.patch(model)
    assert report
    model(CLIPS, [CONTEXT, CONTEXT[:, :2]][:1])
    report.undo()
    report.undo()
    assert not report
    assert [type(module) for module in model.modules()] == classes
    assert [set(module.__dict__) for module in model.modules()] == attributes
    assert torch.equal(model(CLIPS), before)


def test_patching_twice_changes_nothing_more(model):
    first = jk.patch(model)
    classes = [type(module) for module in model.modules()]
    second = jk.patch(model)
    assert [type(module) for module in model.modules()] == classes
    assert second.replaced == [] and len(second.already) == len(first.replaced)
    assert second
    second.undo()
    assert [type(module) for module in model.modules()] == classes


def test_undo_refuses_a_class_that_another_tool_has_set_since(model):
    report = jk.patch(model)
    attention = model.blocks[1].attn
    patched = type(attention)
    attention.__class__ = type("FSDPRoPEAttention", (patched,), {})
    for restore in (report.undo, lambda: jk.unpatch(model)):
        with pytest.raises(RuntimeError, match="blocks.1.attn was given the class FSDPRoPEAttention"):
            restore()
    assert type(model) is not vjepa2.VisionTransformer  # nothing was restored
    attention.__class__ = patched
    report.undo()
    assert type(model) is vjepa2.VisionTransformer


def test_a_class_that_another_tool_has_set_before_is_seen_through(model):
    sharded = type("FSDPRoPEAttention", (vjepa2.RoPEAttention,), {})
    model.blocks[0].attn.__class__ = sharded
    report = jk.patch(model)
    assert [entry.class_name for entry in report.replaced].count("FSDPRoPEAttention") == 1
    report.undo()
    assert type(model.blocks[0].attn) is sharded


def test_names_keys_and_isinstance_are_as_before(model):
    names = [type(module).__name__ for module in model.modules()]
    keys, text = list(model.state_dict()), repr(model)
    jk.patch(model)
    assert [type(module).__name__ for module in model.modules()] == names
    assert list(model.state_dict()) == keys and repr(model) == text
    assert isinstance(model.blocks[0].attn, vjepa2.RoPEAttention)
    unpatched = vjepa2.VisionTransformer()
    unpatched.load_state_dict(model.state_dict())
    torch.testing.assert_close(unpatched(CLIPS), model(CLIPS), rtol=0, atol=1e-5)


def test_copies_and_pickles_stay_patched(model):
    jk.patch(model)
    expected = model(CLIPS, CONTEXT)
    twin = copy.deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=False)
    for other in (twin, loaded, saved):
        assert torch.equal(other(CLIPS, CONTEXT), expected)
        assert type(other.blocks[0].attn) is type(model.blocks[0].attn)
        assert other.blocks[0].attn.qkv.weight is not model.blocks[0].attn.qkv.weight
    assert jk.unpatch(twin) == 4 + 2 * 5  # four linear layers and their MLP in each block
    assert type(twin.blocks[0].attn) is vjepa2.RoPEAttention
    assert type(model.blocks[0].attn) is not vjepa2.RoPEAttention


def test_the_ac_predictor_pickles_without_its_mask():
    model = vjepa2.VisionTransformerPredictorAC()
    inputs = (torch.randn(1, 8, 64), torch.randn(1, 2, 7), torch.randn(1, 2, 7))
    expected = model(*inputs)
    jk.patch(model)
    loaded = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(loaded(*inputs), expected, rtol=0, atol=1e-5)
    jk.unpatch(loaded)
    assert torch.equal(loaded(*inputs), expected)


def test_hooks_fire_and_those_on_the_embedding_see_all_tokens(model):
    seen = []
    model.blocks[0].attn.register_forward_hook(lambda *_: seen.append("attention"))
    model.blocks[0].attn.qkv.register_forward_pre_hook(lambda *_: seen.append("qkv"))
    report = jk.patch(model)
    before = model(CLIPS, CONTEXT)
    assert seen == ["qkv", "attention"]
    model.patch_embed.register_forward_hook(lambda _module, _inputs, out: seen.append(tuple(out.shape)))
    torch.testing.assert_close(model(CLIPS, CONTEXT), before, rtol=0, atol=1e-5)
    assert seen[2] == (2, 8, 64)
    assert report.fallbacks == {("VisionTransformer", "the patch embedding has hooks, which see all tokens"): 1}
    model.patch_embed.proj.register_forward_hook(lambda *_: seen.append("conv"))
    model(CLIPS, CONTEXT)
    assert "conv" in seen
    assert report.fallbacks["PatchEmbed3D", "the projection has hooks"] == 1


def test_to_and_train_work_after_the_patch(model):
    jk.patch(model)
    assert model.double()(CLIPS.double()).dtype == torch.float64
    model.to("meta")
    assert model(CLIPS.double().to("meta")).shape == (2, 8, 64)


def test_compiled_before_or_after(model):
    expected = model(CLIPS, CONTEXT).detach()
    before = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(before(CLIPS, CONTEXT), expected)
    report = jk.patch(before)
    assert {entry.name.split(".")[0] for entry in report.replaced} == {"_orig_mod"}
    torch.testing.assert_close(before(CLIPS, CONTEXT), expected, rtol=0, atol=1e-5)
    after = torch.compile(model, fullgraph=True, backend="aot_eager")
    out = after(CLIPS, CONTEXT)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    out.sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad is not None
    report.undo()
    torch.testing.assert_close(before(CLIPS, CONTEXT), expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: setattr(a, "proj_drop_prob", 0.1), "proj_drop is 0.1: the original drops attention weights"),
        (lambda a: setattr(a, "is_causal", True), "is_causal is set"),
        (lambda a: setattr(a, "forward", lambda x: x), "its forward was replaced on the instance"),
        (lambda a: a.qkv.to("meta"), "its parameters are on cpu and meta"),
        (lambda a: delattr(a, "use_sdpa"), "no known version of RoPEAttention: forward(x, mask"),
    ],
    ids=["proj_drop", "is_causal", "instance", "devices", "version"],
)
def test_unsafe_instances_are_left_with_the_reason(model, change, reason):
    change(model.blocks[1].attn)
    report = jk.patch(model)
    assert [entry.name for entry in report.left] == ["blocks.1.attn"]
    assert report.left[0].text.startswith(reason)
    assert reason in str(report)
    assert type(model.blocks[1].attn) is vjepa2.RoPEAttention


def test_a_subclass_with_its_own_forward_is_left():
    class Mine(vjepa2.RoPEAttention):
        def forward(self, x, mask=None, attn_mask=None, T=None, H_patches=None, W_patches=None):
            return x

    class Renamed(vjepa2.RoPEAttention):
        pass

    report = jk.patch(Mine(64, 2, grid_size=2))
    assert [entry.text for entry in report.left] == ["it is a RoPEAttention whose forward Mine overrides"]
    assert len(operators(jk.patch(Renamed(64, 2, grid_size=2)))) == 1


class PatchEmbed(nn.Module):
    """The name, signature and attributes of the official class, but another output."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_size = 4
        self.proj = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, x):
        return self.proj(x)


def test_another_class_of_the_same_name_is_left():
    report = jk.patch(PatchEmbed())
    assert report.left[0].text.startswith("it is not the official PatchEmbed: outputs were float32 (1, 8, 1, 2)")
    overlapping = ijepa.PatchEmbed(8, 4, 8)
    overlapping.proj = nn.Conv2d(3, 8, 4, stride=2)
    assert jk.patch(overlapping).left[0].text == "its kernel (4, 4) is not its stride (2, 2)"


def test_dropout_in_training_keeps_the_original_forward():
    attention = ijepa.VisionTransformer(attn_drop=0.5).blocks[0]
    report = jk.patch(attention)
    x = torch.randn(2, 5, 64)
    torch.manual_seed(7)
    first = attention(x)
    assert report.fallbacks == {("Attention", "attention dropout 0.5 in training"): 1}
    assert "1 calls of Attention kept the original forward" in str(report)
    report.undo()
    torch.manual_seed(7)
    torch.testing.assert_close(attention(x), first, rtol=0, atol=1e-5)  # in between its linear layers were not the original ones


def test_float_masks_and_uneven_frames_keep_the_original_forward(model):
    report = jk.patch(model)
    bias = torch.zeros(8, 8)
    model.blocks[0].attn(torch.randn(1, 8, 64), attn_mask=bias)
    assert report.fallbacks == {("RoPEAttention", "an attention mask of dtype torch.float32"): 1}
    with pytest.raises(RuntimeError):  # as the original does
        model(CLIPS.to(torch.uint8))
    assert report.fallbacks["PatchEmbed3D", "the pixels are no floating-point tensor on a CPU or GPU"] == 1


def test_bad_models():
    with pytest.raises(TypeError, match="model is a list"):
        jk.patch([nn.Linear(2, 2)])
    with pytest.raises(TypeError, match="model is a dict"):
        jk.unpatch({})
    report = jk.patch(nn.Linear(2, 2))
    assert not report and "nothing was changed" in str(report)


def test_a_quantised_projection_and_a_meta_model():
    model = vjepa2.VisionTransformer().eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    expected = quantised(CLIPS)
    assert len(jk.patch(quantised).replaced) == 4
    torch.testing.assert_close(quantised(CLIPS), expected, rtol=0, atol=0.1)
    meta = vjepa2.VisionTransformer().to("meta")
    assert len(operators(jk.patch(meta))) == 4
    meta.to_empty(device="cpu").load_state_dict(model.state_dict())
    torch.testing.assert_close(meta(CLIPS), model(CLIPS), rtol=0, atol=1e-5)


def test_verify(model):
    model.train()
    assert jk.patch(model, verify=CLIPS)
    assert model.training
    jk.unpatch(model)
    assert jk.patch(model, verify=(CLIPS, CONTEXT)).undo() is None
    assert jk.patch(model, verify={"x": CLIPS, "masks": CONTEXT})
    jk.unpatch(model)
    with pytest.raises(ValueError, match="no floating-point output"):
        jk.patch(nn.Flatten(), verify=torch.zeros(1, 2, dtype=torch.int64))


class Wrong(jepa.VisionTransformer):
    """Takes the embedding apart behind its back."""

    def interpolate_pos_encoding(self, x, pos_embed):
        return pos_embed * (1.0 if x.shape[1] == 3 and not hasattr(type(self), "_jepa_kernels_patch") else 2.0)


def test_verify_restores_a_model_that_differs():
    model = Wrong()
    with pytest.raises(ValueError, match="does not compute what it did, and was restored: output 0 has RMS"):
        jk.patch(model, verify=CLIPS)
    assert type(model) is Wrong and type(model.blocks[0].attn) is jepa.Attention


def test_positions_written_in_place_are_seen(model):
    jk.patch(model)
    ids = CONTEXT.clone()
    with torch.inference_mode():
        inference_ids = CONTEXT.clone()
        first = model(CLIPS, inference_ids)
        inference_ids.copy_(CONTEXT + 1 - 2 * (CONTEXT % 2))
        torch.testing.assert_close(model(CLIPS, inference_ids), model(CLIPS, inference_ids.clone()), rtol=0, atol=0)
        assert not torch.equal(model(CLIPS, inference_ids), first)
    attention = model.blocks[0].attn
    x = torch.randn(2, 3, 64)
    before = attention(x, mask=ids)
    ids += 1 - 2 * (ids % 2)
    assert not torch.equal(attention(x, mask=ids), before)
    assert torch.equal(attention(x, mask=ids), attention(x, mask=ids.clone()))


class PatchEmbedOfOneSize(PatchEmbed):
    """A foreign class with the name, signature and attributes of a known one, that asserts its image size."""

    def forward(self, x):
        assert x.shape[-1] == 224, f"input {x.shape[-1]} is not 224"
        return super().forward(x)


PatchEmbedOfOneSize.__name__ = "PatchEmbed"


def test_a_foreign_class_that_asserts_is_left_with_the_reason(model):
    holder = nn.ModuleList([model, PatchEmbedOfOneSize()])
    report = jk.patch(holder)
    assert report.replaced
    assert any(entry.module is holder[1] and "is not 224" in entry.text for entry in report.left)


def test_an_error_on_the_way_restores_what_was_patched(model, monkeypatch):
    from jepa_kernels.integrations import core

    classes, choose, calls = [type(module) for module in model.modules()], core._choose, []

    def fails_later(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return choose(*arguments)

    monkeypatch.setattr(core, "_choose", fails_later)
    with pytest.raises(KeyboardInterrupt):
        jk.patch(model)
    assert [type(module) for module in model.modules()] == classes


def test_undo_after_unpatch_does_nothing(model):
    classes = [type(module) for module in model.modules()]
    report = jk.patch(model)
    jk.unpatch(model)
    report.undo()
    assert [type(module) for module in model.modules()] == classes


def test_a_predictor_with_causal_attention_keeps_the_sorted_order():
    predictor = vjepa2.VisionTransformerPredictor()
    for block in predictor.predictor_blocks:
        block.attn.is_causal = True
    report = jk.patch(predictor)
    x = torch.randn(2, 3, predictor.predictor_embed.in_features)
    predictor(x, CONTEXT, (CONTEXT + 1) % 8)
    assert any("causal" in reason for _, reason in report.fallbacks)

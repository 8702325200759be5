"""timm's vision transformers and EVA: patched equals unpatched."""

from __future__ import annotations

import copy

import pytest
import torch

import jepa_kernels as jk

from .helpers import assert_error_rule, assert_same, optional

optional("timm")
vit = optional("timm.models.vision_transformer")
eva = optional("timm.models.eva")
layers = optional("timm.layers")

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def build_vit(**changes):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 5}
    return vit.VisionTransformer(**(sizes | changes))


def build_eva(**changes):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 5}
    return eva.Eva(**(sizes | {"use_rot_pos_emb": True} | changes))


def forward(model):
    return model(IMAGES.to(next(model.parameters()).dtype))


BUILDS = pytest.mark.parametrize(
    "build",
    [
        build_vit,
        lambda: build_vit(qk_norm=True),
        lambda: build_vit(dynamic_img_size=True),
        build_eva,
        lambda: build_eva(qkv_fused=False),
        lambda: build_eva(attn_type="rope"),
    ],
    ids=["vit", "vit-qk-norm", "vit-dynamic", "eva", "eva-unfused", "eva-attention-rope"],
)


@BUILDS
def test_equal_in_fp32_with_every_gradient(build):
    report = assert_same(build(), forward)
    assert report.fallbacks == {}
    assert sum("ttention" in entry.class_name for entry in report.replaced) == 2


@pytest.mark.parametrize("build", [build_vit, build_eva], ids=["vit", "eva"])
def test_bfloat16_follows_the_error_rule(build):
    assert_error_rule(build(), forward, forward)


def test_save_load_copy_undo_and_compile():
    model = build_vit().eval()
    expected = forward(model)
    report = jk.patch(model)
    twin = build_vit().eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(forward(twin), expected)
    assert torch.equal(forward(copy.deepcopy(model)), forward(model))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(forward(compiled), expected, rtol=0, atol=1e-5)
    report.undo()
    assert torch.equal(forward(model), expected)


@pytest.mark.parametrize("half", [False, True], ids=["interleaved", "half"])
def test_both_layouts_of_the_rotary_embedding(half):
    attention = layers.AttentionRope(64, num_heads=2, num_prefix_tokens=1, rotate_half=half)
    x, rope = torch.randn(2, 6, 64), torch.randn(5, 64)
    assert_same(attention, lambda module: module(x, rope=rope))


def test_masks_and_causal_attention():
    attention = layers.Attention(64, num_heads=2)
    x = torch.randn(2, 6, 64)
    mask = (torch.rand(6, 6) < 0.7) | torch.eye(6, dtype=torch.bool)
    for options in ({"attn_mask": mask}, {"is_causal": True}):
        assert_same(attention, lambda module, options=options: module(x, **options)).undo()
    bias = torch.randn(6, 6)
    report = assert_same(attention, lambda module: module(x, attn_mask=bias))
    assert report.fallbacks == {("Attention", "an attention mask of dtype torch.float32"): 1}


def test_what_the_patch_embedding_leaves():
    flat = layers.PatchEmbed(img_size=32, patch_size=8, embed_dim=16, flatten=False)
    assert jk.patch(flat).left[0].text == "its output is not flattened to tokens"
    strict = layers.PatchEmbed(img_size=32, patch_size=8, embed_dim=16)
    report = jk.patch(strict)
    with pytest.raises(AssertionError, match="Input height"):
        strict(torch.zeros(1, 3, 16, 16))
    assert report.fallbacks == {("PatchEmbed", "the image has another size than the model"): 1}
    padded = layers.PatchEmbed(img_size=None, patch_size=8, embed_dim=16, dynamic_img_pad=True)
    assert_same(padded, lambda module: module(torch.ones(1, 3, 12, 16)))

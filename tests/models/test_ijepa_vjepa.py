"""I-JEPA and V-JEPA: their losses written out in plain PyTorch, ragged masks, published keys, and the official code itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jepa_kernels as jk
from jepa_kernels.masks import MultiBlockMask2D, MultiBlockMask3D, RectangleMasks
from jepa_kernels.models import build_ijepa, build_vjepa, build_vjepa2, make_optimizer, train_step

WORKER = Path(__file__).with_name("official_family_worker.py")
SMALL = {"pred_depth": 2, "pred_embed_dim": 96, "encoder": {"depth": 2}, "seed": 0}


def ijepa(**overrides):
    return build_ijepa("vit_tiny", img_size=64, patch_size=8, **{**SMALL, **overrides})


def vjepa(**overrides):
    return build_vjepa("vit_tiny", img_size=64, num_frames=4, **{**SMALL, **overrides})


def rectangles(keep="batch", **settings):
    return MultiBlockMask2D((8, 8), RectangleMasks(min_keep=4, **settings), keep=keep)


def pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(x):
    """uint8, channels last -> float, channels first."""
    x = x.movedim(-1, 1) / 255.0
    shape = (3,) + (1,) * (x.ndim - 2)
    return (x - torch.tensor([0.485, 0.456, 0.406]).view(shape)) / torch.tensor([0.229, 0.224, 0.225]).view(shape)


def block(module, x):
    """A pre-norm block with dense attention, in words that share nothing with the package but the parameters."""
    heads = module.attn.num_heads
    q, k, v = module.attn.qkv(module.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
    x = x + module.attn.proj((weights @ v).transpose(1, 2).flatten(2))
    return x + module.mlp.fc2(F.gelu(module.mlp.fc1(module.norm2(x))))


def plain_encoder(encoder, x, ids=None):
    tokens = encoder.patch_embed.proj(x).flatten(2).transpose(1, 2) + encoder.pos_embed
    if ids is not None:
        tokens = torch.stack([row[kept] for row, kept in zip(tokens, ids, strict=True)])
    for module in encoder.blocks:
        tokens = block(module, tokens)
    return encoder.norm(tokens)


def plain_predictor(predictor, z, context, target, mask_token):
    table = predictor.predictor_pos_embed[0]
    both = torch.cat([predictor.predictor_embed(z) + table[context], mask_token + table[target]], dim=1)
    for module in predictor.predictor_blocks:
        both = block(module, both)
    return predictor.predictor_proj(predictor.predictor_norm(both)[:, context.shape[1] :])


def rows(h, ids):
    return torch.stack([row[kept] for row, kept in zip(h, ids, strict=True)])


def plain_ijepa(model, x, contexts, targets):
    with torch.no_grad():
        h = F.layer_norm(plain_encoder(model.target_encoder, x), (192,))
    losses = []
    for target in targets:
        for context in contexts:
            z = plain_encoder(model.encoder, x, context)
            z = plain_predictor(model.predictor, z, context, target, model.predictor.mask_token)
            losses.append(F.smooth_l1_loss(z, rows(h, target)))
    return sum(losses) / len(losses)


def plain_vjepa(model, x, contexts, targets):
    with torch.no_grad():
        h = F.layer_norm(plain_encoder(model.target_encoder, x), (192,))
    losses = []
    for index, (context, target) in enumerate(zip(contexts, targets, strict=True)):
        z = plain_encoder(model.encoder, x, context)
        z = plain_predictor(model.predictor, z, context, target, model.predictor.mask_tokens[index])
        losses.append((z - rows(h, target)).abs().pow(model.loss_exp).mean() / model.loss_exp)
    return sum(losses) / len(losses)


def assert_step_equals(model, plain, x, contexts, targets):
    """Loss and all gradients of the model are those of the plain form."""
    expected = plain(model, normalised(x), contexts, targets)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found, stats = model(x, contexts, targets)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert set(wanted) == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, gradient in model.named_parameters():
        if gradient.grad is not None:
            error = (gradient.grad - wanted[name]).abs().max()
            assert error <= 1e-4 * wanted[name].abs().max() + 1e-7, name
    return stats


@pytest.mark.parametrize("num_enc_masks", [1, 2])
def test_ijepa_is_its_formula(num_enc_masks):
    contexts, targets = rectangles(num_enc_masks=num_enc_masks)(3)
    stats = assert_step_equals(ijepa(), plain_ijepa, pixels(3, 64, 64, 3), contexts, targets)
    assert stats["context_tokens"] == [contexts[0].shape[1]] * num_enc_masks
    assert stats["target_tokens"] == [targets[0].shape[1]] * 4 and stats["loss_per_mask"].shape == (4,)


@pytest.mark.parametrize("loss_exp", [1.0, 2.0])
def test_vjepa_is_its_formula(loss_exp):
    contexts, targets = MultiBlockMask3D((2, 4, 4))(3)
    model = vjepa(loss_exp=loss_exp)
    with torch.no_grad():
        for index, token in enumerate(model.predictor.mask_tokens):
            token.fill_(0.1 * (index + 1))  # they start as zeros, and would not be told apart
    stats = assert_step_equals(model, plain_vjepa, pixels(3, 4, 64, 64, 3), contexts, targets)
    assert stats["target_tokens"] == [ids.shape[1] for ids in targets]


def vjepa2():
    return build_vjepa2("vit_tiny", img_size=64, num_frames=4, pred_num_heads=3, **SMALL)


@pytest.mark.parametrize("make", [vjepa, vjepa2])
def test_ragged_masks_give_the_mean_over_the_tokens_of_each_mask(make):
    x = pixels(3, 4, 64, 64, 3)
    model, (contexts, targets) = make(), MultiBlockMask3D((2, 4, 4), keep="ragged")(3)
    found, stats = model(x, contexts, targets)
    expected = []
    for context, target in zip(contexts, targets, strict=True):
        # Sample by sample, weighted by its number of target tokens.
        bounds = context.cu_seqlens.tolist(), target.cu_seqlens.tolist()
        for b in range(3):
            ids = context.ids[bounds[0][b] : bounds[0][b + 1]], target.ids[bounds[1][b] : bounds[1][b + 1]]
            single, _ = model(x[b : b + 1], [ids[0][None]], [ids[1][None]])
            expected.append(single * len(ids[1]) / len(target.ids))
    # The second mask has a mask token of its own, but both start alike.
    torch.testing.assert_close(found, sum(expected) / 2, rtol=1e-5, atol=1e-6)
    assert stats["context_tokens"] == [len(mask.ids) / 3 for mask in contexts]


def test_ragged_contexts_of_images():
    images, model = pixels(3, 64, 64, 3), ijepa()
    (context,), targets = rectangles(keep="ragged")(3)
    bounds, found = context.cu_seqlens.tolist(), model(images, [context], targets)[0]
    parts = [
        model(images[b : b + 1], [context.ids[bounds[b] : bounds[b + 1]][None]], [ids[b : b + 1] for ids in targets])[0]
        for b in range(3)
    ]
    torch.testing.assert_close(found, sum(parts) / 3, rtol=1e-5, atol=1e-6)
    found.backward()
    assert model.encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_the_predictor_takes_its_official_arguments():
    model, (contexts, targets) = ijepa(), rectangles()(3)
    x = normalised(pixels(3, 64, 64, 3))
    with torch.no_grad():
        z = plain_encoder(model.encoder, x, contexts[0])
        torch.testing.assert_close(model.encoder(x, contexts), z, rtol=1e-4, atol=1e-5)
        expected = [plain_predictor(model.predictor, z, contexts[0], t, model.predictor.mask_token) for t in targets]
        torch.testing.assert_close(model.predictor(z, contexts, targets), torch.cat(expected), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="masks_x must name each context token"):
        model.predictor(z[:, 1:], contexts, targets)


def test_the_keys_are_the_published_ones():
    model = ijepa(encoder={"depth": 1}, pred_depth=1)
    blocks = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    stems = ["patch_embed.proj", *(f"blocks.0.{name}" for name in blocks), "norm"]
    assert set(model.encoder.state_dict()) == {"pos_embed", *(f"{s}.{k}" for s in stems for k in ("weight", "bias"))}
    stems = ["predictor_embed", *(f"predictor_blocks.0.{name}" for name in blocks), "predictor_norm", "predictor_proj"]
    names = {f"{s}.{k}" for s in stems for k in ("weight", "bias")} | {"predictor_pos_embed"}
    assert set(model.predictor.state_dict()) == names | {"mask_token"}
    assert set(vjepa(pred_depth=1).predictor.state_dict()) == names | {"mask_tokens.0", "mask_tokens.1"}


def test_named_sizes_have_the_published_dimensions():
    with torch.device("meta"):
        model = nn.Module()
        model.ijepa = build_ijepa("vit_huge", encoder={"depth": 1}, pred_depth=1)
        model.vjepa = build_vjepa("vit_large", encoder={"depth": 1}, pred_depth=1)
    assert model.ijepa.encoder.pos_embed.shape == (1, 256, 1280) and model.ijepa.predictor.mask_token.shape == (1, 1, 384)
    assert model.ijepa.predictor.predictor_blocks[0].attn.head_dim == 24
    assert model.vjepa.encoder.pos_embed.shape == (1, 1568, 1024)
    assert model.vjepa.predictor.predictor_pos_embed.shape == (1, 1568, 384)


def test_linear_weights_keep_their_spread_with_depth():
    # The official scripts draw them again after the constructors divided those of layer l by sqrt(2 l).
    for model in (ijepa(encoder={"depth": 4}), vjepa(encoder={"depth": 4})):
        last = model.encoder.blocks[3].mlp.fc2.weight
        assert last.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(("model", "inputs", "masks"), [
    (ijepa, (4, 64, 64, 3), rectangles()), (vjepa, (4, 4, 64, 64, 3), MultiBlockMask3D((2, 4, 4))),
], ids=["ijepa", "vjepa"])  # fmt: skip
def test_a_few_steps_lower_the_loss(model, inputs, masks):
    model, x = model(), pixels(*inputs)
    optimizer = make_optimizer(model, lr=1e-3)
    losses = [train_step(model, x, *masks(4), optimizer, 0.99)[0].item() for _ in range(12)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert any(not torch.equal(a, b) for a, b in zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True))


def test_recomputation_changes_nothing():
    contexts, targets = rectangles()(2)
    gradients = []
    for recompute in (False, True):
        model = ijepa(use_activation_checkpointing=recompute)
        model(pixels(2, 64, 64, 3), contexts, targets)[0].backward()
        gradients.append(model.encoder.blocks[0].mlp.fc1.weight.grad)
    assert torch.equal(*gradients)


def test_bad_input_is_named():
    contexts, targets = rectangles()(2)
    with pytest.raises(ValueError, match=r"\(B, H, W, C\) with C = 3; got shape \(2, 64, 64, 4\)"):
        ijepa()(torch.zeros(2, 64, 64, 4), contexts, targets)
    with pytest.raises(ValueError, match="at least one mask"):
        jk.models.packed.pack([])
    with pytest.raises(ValueError, match="1 and 4 masks"):
        vjepa()(pixels(2, 4, 64, 64, 3), contexts, targets)


@pytest.mark.parametrize("repository", ["ijepa", "jepa"])
def test_a_step_of_the_official_code(repository):
    root = os.environ.get("JEPA_KERNELS_OFFICIAL")
    if root is None or not (Path(root) / repository).is_dir():
        pytest.skip("JEPA_KERNELS_OFFICIAL names no folder with this checkout")
    checkout = Path(root) / repository
    environment = {**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    result = subprocess.run(
        [sys.executable, str(WORKER), repository], cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0 and "equal" in result.stdout, result.stdout[-3000:] + result.stderr[-3000:]

"""V-JEPA 2.1: loss and every gradient against the formula in plain float64 torch, for clips and images; its training steps."""

import pytest
import torch
import torch.nn.functional as F

import jepa_kernels as jk
from jepa_kernels.models import build_vjepa21, make_adamw_ema, make_optimizer, train_step
from jepa_kernels.models.vjepa21 import distances

from . import plain_transformer as plain

HEADS, SIZE, PATCH, FRAMES = 2, 32, 8, 4
SIDE = SIZE // PATCH
CLIPS = torch.randint(0, 256, (2, FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGES = CLIPS[:, 0]


def build(**overrides):
    settings = {
        "img_size": SIZE, "patch_size": PATCH, "num_frames": FRAMES, "pred_depth": 2, "pred_embed_dim": 24, "pred_num_heads": 2,
        "encoder": {"depth": 3, "embed_dim": 32, "num_heads": HEADS}, "levels": (1, 3), "context_weight": 0.3, "seed": 0,
    }  # fmt: skip
    return build_vjepa21("vit_tiny", **{**settings, **overrides})


def draw_masks(tokens, sizes=((3, 5), (6, 2))):
    """(context, targets) of each mask: disjoint ids of both samples."""
    drawn = [torch.stack([torch.randperm(tokens)[: a + b] for _ in range(2)]) for a, b in sizes]
    pairs = [(ids[:, :a].contiguous(), ids[:, a:].contiguous()) for ids, (a, _) in zip(drawn, sizes, strict=True)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def places(ids):
    return torch.stack([ids // SIDE**2, ids % SIDE**2 // SIDE, ids % SIDE], -1)


def levels(state, tokens, ids, ends=(1, 3)):
    found, begin = [], 0
    for end, name in zip(ends, ("level_norms.0", "norm"), strict=True):
        tokens = plain.blocks(state, "blocks", tokens, HEADS, places(ids), range(begin, end))
        found.append(plain.norm(state, name, tokens))
        begin = end
    return found


def tokens_of(state, x):
    name, convolve, row = ("image_patch_embed", F.conv2d, 1) if x.ndim == 4 else ("patch_embed", F.conv3d, 0)
    weight = state[f"{name}.proj.weight"]
    maps = convolve(x, weight, state[f"{name}.proj.bias"], stride=weight.shape[2:])
    return maps.flatten(2).mT + state["modality_tokens"][row]


def gathered(x, ids):
    return torch.stack([row[kept] for row, kept in zip(x, ids, strict=True)])


def plain_loss(state, x, masks_enc, masks_pred, weight):
    encoder, target, predictor = (plain.part(state, f"{name}.") for name in ("encoder", "target_encoder", "predictor"))
    pixels = plain.from_bytes(x)
    every = tokens_of(target, pixels)
    with torch.no_grad():
        wanted = levels(target, every, torch.arange(every.shape[1]).expand(2, -1))
        wanted = [F.layer_norm(level, level.shape[-1:], eps=1e-5) for level in wanted]
    losses = []
    for context, targets in zip(masks_enc, masks_pred, strict=True):
        seen = torch.cat(levels(encoder, gathered(tokens_of(encoder, pixels), context), context), -1)
        fused = plain.linear(predictor, "predictor_embed.2", F.gelu(plain.linear(predictor, "predictor_embed.0", seen)))
        both = torch.cat([fused, predictor["mask_tokens.0"].expand(2, targets.shape[1], -1)], 1)
        both = plain.blocks(predictor, "predictor_blocks", both, 2, places(torch.cat([context, targets], 1)))
        out = plain.linear(predictor, "predictor_proj", plain.norm(predictor, "predictor_norm", both)).chunk(2, -1)
        apart = (places(context)[:, :, None] - places(targets)[:, None]).double().norm(dim=-1).amin(-1)
        kept = context.shape[1]
        for z, h in zip(out, wanted, strict=True):
            hidden = (z[:, kept:] - gathered(h, targets)).abs().mean()
            visible = ((z[:, :kept] - gathered(h, context)).abs().mean(-1) * weight / apart.sqrt()).mean()
            losses.append(hidden + visible)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("x", [CLIPS, IMAGES], ids=["clips", "images"])
def test_loss_and_gradients_are_those_of_the_formula(x):
    model = build()
    torch.nn.init.normal_(model.predictor.mask_tokens[0])
    masks = draw_masks(SIDE**2 * (1 if x.ndim == 4 else FRAMES // 2))
    loss, stats = model(x, *masks)
    loss.backward()
    state = plain.doubled(model)
    expected = plain_loss(state, x, *masks, 0.3)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert 0 < float(stats["context_loss"]) < float(loss)
    assert stats["context_tokens"] == [3, 6] and stats["target_tokens"] == [5, 2]
    for name, parameter in model.named_parameters():
        exact = state[name].grad
        if parameter.grad is None:  # of the target encoder, and of the other modality's tokenizer
            assert exact is None or not exact.any(), name
        else:
            assert (parameter.grad - exact).norm() <= 1e-4 * exact.norm() + 1e-9, name


def test_distance_is_to_the_nearest_target_in_space_and_time():
    ids = torch.tensor([[0, 5, 21]])
    assert torch.allclose(distances(ids, torch.tensor([[16, 7]]), (4, 4)), torch.tensor([[1.0, 3.0**0.5, 2.0**0.5]]))
    assert torch.equal(distances(ids, ids, (4, 4)), torch.ones(1, 3))


def test_the_context_weight_rises_over_its_epochs():
    model = build(context_warmup_epochs=4.0)
    found = []
    for epoch in (0.0, 1.0, 4.0, 9.0):
        model.begin_step(epoch)
        found.append(model.context_weight)
    assert found == pytest.approx([0.0, 0.075, 0.3, 0.3])
    model.begin_step(0.0)
    assert float(model(CLIPS, *draw_masks(32))[1]["context_loss"]) == 0


@pytest.mark.parametrize("optimizer", [make_optimizer, make_adamw_ema])
def test_training_steps_on_clips_and_images_lower_the_loss(optimizer):
    model = build()
    chosen = optimizer(model, lr=2e-3)
    torch.manual_seed(0)
    fixed = [(CLIPS, draw_masks(32)), (IMAGES, draw_masks(16))]
    losses = [float(train_step(model, x, *masks, chosen, 0.9)[0]) for _ in range(12) for x, masks in fixed]
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])


def test_bfloat16_autocast_stays_near_float32():
    model, masks = build(), draw_masks(32)
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = model(CLIPS, *masks)
    assert float(low) == pytest.approx(float(model(CLIPS, *masks)[0]), rel=2e-2)


def test_the_encoder_alone_gives_its_last_level_for_kept_tokens():
    encoder = build().encoder
    ids = torch.tensor([[0, 3, 9], [4, 5, 6]])
    state = plain.doubled(encoder)
    for x in (CLIPS, IMAGES):
        pixels = plain.from_bytes(x)
        expected = levels(state, gathered(tokens_of(state, pixels), ids), ids)[-1]
        got = encoder(x.movedim(-1, 1), masks=ids)
        assert (got - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(("settings", "message"), [
    ({"levels": (3, 1)}, "must ascend"), ({"levels": (1, 2)}, "to the depth, 3"), ({"levels": ()}, "must ascend"),
    ({"context_weight": -1.0}, "context_weight must be at least 0"), ({"num_frames": 1}, "num_frames > 1"),
])  # fmt: skip
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_masks_that_do_not_fit_are_refused():
    model, (enc, pred) = build(), draw_masks(32)
    with pytest.raises(ValueError, match="pair up"):
        model(CLIPS, enc, pred[:1])
    ragged = jk.RaggedIds(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 3], dtype=torch.int32))
    with pytest.raises(ValueError, match="ragged ones are not supported"):
        model(CLIPS, [ragged], pred[:1])
    with pytest.raises(ValueError, match="C = 3"):
        model(CLIPS[..., :2], enc, pred)

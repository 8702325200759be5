"""The encoder and the predictor: official keys, shapes, positions by original id, and initialisation."""

import math

import pytest
import torch

from jepa_kernels.masks import apply_masks
from jepa_kernels.models import (
    ENCODER_SIZES,
    MultiSeqWrapper,
    PredictorMultiSeqWrapper,
    VisionTransformer,
    VisionTransformerPredictor,
    build_encoder,
    load_official_checkpoint,
)

FRAMES, SIZE = 8, 64  # of the clips that the shared model takes: 64 tokens

BLOCK_KEYS = [
    f"{part}.{kind}"
    for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
]


def official_encoder_keys(depth):
    blocks = [f"blocks.{i}.{key}" for i in range(depth) for key in BLOCK_KEYS]
    return ["patch_embed.proj.weight", "patch_embed.proj.bias", *blocks, "norm.weight", "norm.bias"]


def official_predictor_keys(depth, num_mask_tokens):
    return [
        "predictor_embed.weight",
        "predictor_embed.bias",
        *(f"mask_tokens.{i}" for i in range(num_mask_tokens)),
        *(f"predictor_blocks.{i}.{key}" for i in range(depth) for key in BLOCK_KEYS),
        "predictor_norm.weight",
        "predictor_norm.bias",
        "predictor_proj.weight",
        "predictor_proj.bias",
    ]


def test_state_dict_keys_are_the_official_ones(model):
    assert list(model.encoder.state_dict()) == official_encoder_keys(3)
    assert list(model.predictor.state_dict()) == official_predictor_keys(2, 10)
    assert list(model.target_encoder.state_dict()) == official_encoder_keys(3)
    wrapped = MultiSeqWrapper(model.encoder).state_dict()
    assert list(wrapped) == [f"backbone.{key}" for key in official_encoder_keys(3)]


def test_position_tables_are_keys_without_rope():
    encoder = VisionTransformer(img_size=32, num_frames=4, embed_dim=48, depth=1, num_heads=2)
    assert encoder.state_dict()["pos_embed"].shape == (1, 8, 48)
    predictor = VisionTransformerPredictor(
        32, num_frames=4, embed_dim=48, predictor_embed_dim=24, depth=1, num_heads=1, use_rope=False
    )
    assert predictor.state_dict()["predictor_pos_embed"].shape == (1, 8, 24)


@pytest.mark.parametrize(("name", "millions"), [("vit_large", 303), ("vit_huge", 630), ("vit_giant", 1011)])
def test_named_sizes_have_the_published_parameter_counts(name, millions):
    with torch.device("meta"):
        encoder = build_encoder(name, img_size=256, num_frames=16)
    count = sum(p.numel() for p in encoder.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)
    size = ENCODER_SIZES[name]
    assert size.embed_dim // size.num_heads == (80 if name == "vit_huge" else 64)


def test_unknown_size_lists_the_known_ones():
    with pytest.raises(ValueError, match="vit_colossal.*vit_large"):
        build_encoder("vit_colossal")


def test_encoder_shapes(model):
    x = torch.randn(2, 3, FRAMES, SIZE, SIZE)
    assert model.encoder(x).shape == (2, 64, 192)
    mask = torch.tensor([[0, 5, 63], [1, 2, 3]])
    assert model.encoder(x, masks=mask).shape == (2, 3, 192)
    assert model.encoder(x, masks=[mask, mask + 0]).shape == (4, 3, 192)


def test_kept_tokens_keep_their_positions(model):
    # Keeping all tokens in another order permutes the output and changes nothing else: positions go by id.
    x = torch.randn(2, 3, FRAMES, SIZE, SIZE)
    order = torch.stack([torch.randperm(64), torch.randperm(64)])
    full = model.encoder(x)
    torch.testing.assert_close(model.encoder(x, masks=order), apply_masks(full, order), rtol=1e-4, atol=1e-4)
    # And positions matter: the first 32 tokens are not interchangeable with the same pixels later in the clip.
    twice = x[:, :, : FRAMES // 2].repeat(1, 1, 2, 1, 1)
    out = model.encoder(twice)
    assert (out[:, :32] - out[:, 32:]).abs().max() > 1e-3


def test_masked_tokens_have_no_influence(model):
    x = torch.randn(1, 3, FRAMES, SIZE, SIZE)
    mask = torch.arange(16).view(1, 16)  # the first two frames
    changed = x.clone()
    changed[:, :, 2:] += 100.0
    torch.testing.assert_close(model.encoder(changed, masks=mask), model.encoder(x, masks=mask))


def test_uint8_pixels_are_normalised(model):
    clips = torch.randint(0, 256, (1, 3, FRAMES, SIZE, SIZE), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1, 1)
    by_hand = (clips / 255.0 - mean) / std
    torch.testing.assert_close(model.encoder(clips), model.encoder(by_hand), rtol=1e-3, atol=1e-4)


def test_pixels_that_do_not_fit_are_named(model):
    with pytest.raises(ValueError, match=r"\(B, C, T, H, W\).*\(1, 3, 64, 64\)"):
        model.encoder(torch.zeros(1, 3, SIZE, SIZE))
    encoder = VisionTransformer(img_size=32, num_frames=4, embed_dim=48, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="position table.*32x32.*64x32"):
        encoder(torch.zeros(1, 3, 4, 64, 32))
    assert encoder(torch.zeros(1, 3, 2, 32, 32)).shape == (1, 4, 48)  # fewer frames use the first rows


def test_image_encoder():
    encoder = VisionTransformer(img_size=32, embed_dim=48, depth=1, num_heads=2)
    assert encoder(torch.randn(2, 3, 32, 32), masks=torch.tensor([[0, 3], [1, 2]])).shape == (2, 2, 48)


def test_initialisation_is_rescaled_with_depth():
    encoder = build_encoder("vit_small", img_size=32, num_frames=4, depth=4)
    for layer, block in enumerate(encoder.blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * layer), rel=0.02)
        for weight in (block.attn.qkv.weight, block.mlp.fc1.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not block.attn.qkv.bias.any()
    assert encoder.patch_embed.proj.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_activation_checkpointing_changes_no_gradient(make_model, make_masks, clips):
    (context, _), (target, _) = make_masks(2)
    gradients = []
    for recompute in (False, True):
        model = make_model(use_activation_checkpointing=recompute)
        loss, _ = model(clips, [context], [target])
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)


def sorted_predictor(predictor, x, masks_x, masks_y):
    """The predictor as the official code orders it: tokens sorted by id, the sort undone before the slice."""
    ids = torch.cat([masks_x, masks_y], dim=1)
    order = ids.argsort(dim=1)
    tokens = torch.cat([predictor.predictor_embed(x), predictor.mask_tokens[0].expand(*masks_y.shape, -1)], dim=1)
    tokens = torch.stack([row[permutation] for row, permutation in zip(tokens, order, strict=True)])
    for block in predictor.predictor_blocks:
        tokens = block(
            tokens,
            mask=ids.gather(1, order),
            H_patches=predictor.grid_height,
            W_patches=predictor.grid_width,
        )
    tokens = predictor.predictor_norm(tokens)
    back = order.argsort(dim=1)
    tokens = torch.stack([row[permutation] for row, permutation in zip(tokens, back, strict=True)])
    return predictor.predictor_proj(tokens[:, x.shape[1] :])


def test_predictor_equals_the_sorted_one(model, make_masks):
    torch.manual_seed(0)
    torch.nn.init.normal_(model.predictor.mask_tokens[0])
    for masks_x, masks_y in zip(*make_masks(3), strict=True):
        x = torch.randn(3, masks_x.shape[1], 192)
        expected = sorted_predictor(model.predictor, x, masks_x, masks_y)
        assert expected.shape == (3, masks_y.shape[1], 192)
        actual = model.predictor(x, masks_x, masks_y, mask_index=0)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def test_predictor_mask_index_wraps(model):
    predictor = model.predictor
    for index, token in enumerate(predictor.mask_tokens):
        torch.nn.init.constant_(token, float(index))
    x, masks = torch.randn(1, 2, 192), (torch.tensor([[0, 1]]), torch.tensor([[5, 9]]))
    assert torch.equal(predictor(x, *masks, mask_index=12), predictor(x, *masks, mask_index=2))
    assert torch.equal(predictor(x, *masks), predictor(x, *masks, mask_index=1))
    assert not torch.allclose(predictor(x, *masks, mask_index=2), predictor(x, *masks, mask_index=3))


def test_predictor_takes_lists_mask_major(model):
    masks_x = [torch.tensor([[0, 1], [2, 3]]), torch.tensor([[4, 5], [6, 7]])]
    masks_y = [torch.tensor([[8], [9]]), torch.tensor([[10], [11]])]
    x = torch.randn(4, 2, 192)
    both = model.predictor(x, masks_x, masks_y)
    torch.testing.assert_close(both[:2], model.predictor(x[:2], masks_x[0], masks_y[0]))
    torch.testing.assert_close(both[2:], model.predictor(x[2:], masks_x[1], masks_y[1]))


def test_predictor_without_rope_adds_positions():
    predictor = VisionTransformerPredictor(
        32, num_frames=4, embed_dim=48, predictor_embed_dim=24, depth=1, num_heads=1, use_rope=False
    )
    out = predictor(torch.zeros(1, 1, 48), torch.tensor([[0]]), torch.tensor([[1, 6]]))
    assert out.shape == (1, 2, 48) and not torch.allclose(out[0, 0], out[0, 1])


def test_predictor_rejects_masks_that_do_not_fit(model):
    with pytest.raises(ValueError, match="masks_x"):
        model.predictor(torch.zeros(1, 3, 192), torch.tensor([[0, 1]]), torch.tensor([[5]]))


@pytest.mark.parametrize("kind", [VisionTransformer, VisionTransformerPredictor])
@pytest.mark.parametrize(
    ("size", "frames", "message"),
    [
        (40, 4, "height = 40 is not a multiple of patch_size = 16; make it one, such as 32 or 48"),
        ((32, 40), 4, "width = 40 is not a multiple of patch_size = 16"),
        (32, 5, "num_frames = 5 is not a multiple of tubelet_size = 2; make it one, such as 4 or 6"),
    ],
)
def test_sizes_that_patches_do_not_divide_are_refused(kind, size, frames, message):
    with pytest.raises(ValueError, match=message):
        kind(size, num_frames=frames, embed_dim=48, depth=1, num_heads=2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 40, 32), "height = 40 is not a multiple of patch_size = 16"),
        ((1, 3, 4, 32, 40), "width = 40 is not a multiple of patch_size = 16"),
        ((1, 3, 3, 32, 32), "frames = 3 is not a multiple of tubelet_size = 2"),
    ],
)
def test_pixels_that_patches_do_not_divide_are_refused(shape, message):
    encoder = VisionTransformer(32, num_frames=4, embed_dim=48, depth=1, num_heads=2, use_rope=True)
    with pytest.raises(ValueError, match=message):
        encoder(torch.zeros(shape))


def test_wrappers_run_every_group_and_mask(model):
    clips = [torch.randn(1, 3, FRAMES, SIZE, SIZE), torch.randn(2, 3, FRAMES // 2, SIZE, SIZE)]
    masks_x = [[torch.tensor([[0, 1]])], [torch.tensor([[0], [1]]), torch.tensor([[2, 3], [4, 5]])]]
    masks_y = [[torch.tensor([[9]])], [torch.tensor([[7], [8]]), torch.tensor([[6], [7]])]]
    for index, token in enumerate(model.predictor.mask_tokens):
        torch.nn.init.constant_(token, float(index))
    encoder, predictor = MultiSeqWrapper(model.encoder), PredictorMultiSeqWrapper(model.predictor)
    assert [tuple(h.shape) for h in encoder(clips)] == [(1, 64, 192), (2, 32, 192)]
    z = predictor(encoder(clips, masks_x), masks_x, masks_y)
    assert [[tuple(p.shape) for p in group] for group in z] == [[(1, 1, 192)], [(2, 1, 192), (2, 1, 192)]]
    context = model.encoder(clips[1], masks=masks_x[1][1])
    torch.testing.assert_close(z[1][1], model.predictor(context, masks_x[1][1], masks_y[1][1], mask_index=1))


def test_official_checkpoint_loads(model, make_model):
    source = make_model(seed=5)
    checkpoint = {
        "encoder": {f"module.backbone.{k}": v for k, v in source.encoder.state_dict().items()},
        "predictor": {f"module.backbone.{k}": v for k, v in source.predictor.state_dict().items()},
        "target_encoder": {f"module.backbone.{k}": v + 1 for k, v in source.encoder.state_dict().items()},
    }
    load_official_checkpoint(model, checkpoint)
    assert torch.equal(model.encoder.norm.bias, source.encoder.norm.bias)
    assert torch.equal(model.predictor.predictor_proj.weight, source.predictor.predictor_proj.weight)
    assert torch.equal(model.target_encoder.norm.bias, source.encoder.norm.bias + 1)
    del checkpoint["target_encoder"]
    load_official_checkpoint(model, checkpoint)
    assert torch.equal(model.target_encoder.norm.bias, source.encoder.norm.bias)
    with pytest.raises(ValueError, match="no 'predictor' entry"):
        load_official_checkpoint(model, {"encoder": checkpoint["encoder"]})

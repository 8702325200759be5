"""LeJEPA, DINO, VICReg and MAE: loss and every gradient against the formulas in plain float64 torch, and their training steps."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F

import jepa_kernels as jk
from jepa_kernels.masks import RandomMask
from jepa_kernels.models import (
    build_dino,
    build_lejepa,
    build_mae,
    build_vicreg,
    encode_views,
    make_adamw_ema,
    make_optimizer,
    train_step,
)

from . import plain_transformer as plain

HEADS, SIZE, PATCH = 2, 32, 8
ENCODER = {"depth": 2, "embed_dim": 32, "num_heads": HEADS}
SHARED = {"img_size": SIZE, "patch_size": PATCH, "encoder": ENCODER, "seed": 0}


def lejepa(**overrides):
    settings = {"hidden_dim": 24, "proj_dim": 8, "num_slices": 16, "sigreg_weight": 0.3}
    return build_lejepa("vit_tiny", **{**SHARED, **settings, **overrides})


def vicreg(**overrides):
    return build_vicreg("vit_tiny", **{**SHARED, "hidden_dim": 24, "proj_dim": 12, **overrides})


def dino(**overrides):
    return build_dino("vit_tiny", **{**SHARED, "hidden_dim": 24, "bottleneck": 12, "prototypes": 20, **overrides})


def mae(**overrides):
    decoder = {"pred_depth": 2, "pred_embed_dim": 24, "pred_num_heads": 2}
    return build_mae("vit_tiny", **{**SHARED, **decoder, **overrides})


def video_mae(**overrides):
    return mae(num_frames=4, **{"encoder": {**ENCODER, "use_rope": False}, **overrides})


def views(*sizes, batch=6):
    """Bytes of images that differ: a random picture of four by four, enlarged, with noise."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, 3, 4, 4, generator=generator)
    found = []
    for size in sizes:
        smooth = F.interpolate(coarse, size=(size, size), mode="bilinear") * 200
        noise = torch.rand(batch, 3, size, size, generator=generator) * 55
        found.append((smooth + noise).to(torch.uint8).permute(0, 2, 3, 1).contiguous())
    return found


def clips():
    return torch.randint(0, 256, (3, 4, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def pooled(state, image):
    return plain.encode(state, plain.from_bytes(image), HEADS, table_grid=(SIZE // PATCH,) * 2).mean(1)


def plain_lejepa(model, state, images):
    encoder, projector = plain.part(state, "encoder."), plain.part(state, "projector.")
    rows = torch.cat([pooled(encoder, image) for image in images])
    z = plain.projector(projector, rows).view(len(images), -1, 8)
    prediction = ((z[:2].sum(0) / 2 - z) ** 2).mean()
    directions = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    directions = (directions / directions.norm(dim=0)).double()  # float32 as published
    total = 0.0
    for view in z:
        projected = view @ directions
        for j in range(17):
            t = 3.0 * j / 16
            weight = (2 if 0 < j < 16 else 1) * (3.0 / 16) * math.exp(-t * t / 2)
            real, imaginary = (t * projected).cos().mean(0) - math.exp(-t * t / 2), (t * projected).sin().mean(0)
            total = total + weight * len(view) * (real**2 + imaginary**2).mean()
    return 0.7 * prediction + 0.3 * total / len(z)


def plain_vicreg(model, state, images):
    encoder, projector = plain.part(state, "encoder."), plain.part(state, "projector.")
    a, b = (plain.projector(projector, pooled(encoder, image)) for image in images)
    loss = 25 * ((a - b) ** 2).mean()
    for z in (a, b):
        loss = loss + 25 * 0.5 * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
        covariance = torch.cov(z.T)
        loss = loss + (covariance - covariance.diagonal().diag()).square().sum() / z.shape[1]
    return loss


def plain_dino(model, state, images):
    def logits(network, image):
        head, x = plain.part(state, f"{network}.head."), pooled(plain.part(state, f"{network}.encoder."), image)
        for layer in (0, 2):
            x = F.gelu(plain.linear(head, f"mlp.{layer}", x))
        x = plain.linear(head, "mlp.4", x)
        prototypes = head["last_layer.weight_v"]
        return (x / x.norm(dim=1, keepdim=True)) @ (prototypes / prototypes.norm(dim=1, keepdim=True)).T

    losses = []
    for g in range(2):
        wanted = ((logits("teacher", images[g]).detach() - state["centring.center"][0]) / 0.04).softmax(-1)
        for v, image in enumerate(images):
            if v != g:
                losses.append(-(wanted * (logits("student", image) / 0.1).log_softmax(-1)).sum(-1).mean())
    return sum(losses) / len(losses)


def cells(x):
    """Patches (B, N, values, channels) of normalised images or clips, cut one by one."""
    x = x if x.ndim == 5 else x[:, :, None]
    depth = 2 if x.shape[2] > 1 else 1
    found = [
        x[:, :, t : t + depth, r : r + PATCH, c : c + PATCH].flatten(2).mT
        for t in range(0, x.shape[2], depth)
        for r in range(0, SIZE, PATCH)
        for c in range(0, SIZE, PATCH)
    ]
    return torch.stack(found, dim=1)


def plain_mae(model, state, inputs, kept, hidden):
    encoder, decoder = plain.part(state, "encoder."), plain.part(state, "decoder.")
    x = plain.from_bytes(inputs)
    tokens, table = plain.linear(decoder, "decoder_embed", plain.encode(encoder, x, HEADS, kept)), decoder["decoder_pos_embed"]
    # As the official code: all tokens in their places, mask tokens where nothing is known.
    rows = decoder["mask_token"].expand(len(x), table.shape[1], -1).clone()
    rows = rows.scatter(1, kept[..., None].expand_as(tokens), tokens) + table
    rows = plain.norm(decoder, "decoder_norm", plain.blocks(decoder, "decoder_blocks", rows, 2))
    rows = plain.linear(decoder, "decoder_pred", rows)
    wanted, over = cells(x), (-2, -1) if inputs.ndim == 4 else (-2,)
    wanted = (wanted - wanted.mean(over, keepdim=True)) / (wanted.var(over, keepdim=True) + 1e-6).sqrt()
    masked = torch.zeros(rows.shape[:2], dtype=torch.float64).scatter(1, hidden, 1.0)
    return (((rows - wanted.flatten(2)) ** 2).mean(-1) * masked).sum() / masked.sum()


def image_masks():
    return RandomMask((1, 4, 4), 0.75)(6)


def clip_masks():
    return RandomMask((2, 4, 4), 0.9)(3)


CASES = {
    "lejepa": (lejepa, lambda: (views(32, 32, 16, 24),), plain_lejepa),
    "vicreg": (vicreg, lambda: (views(32, 32),), plain_vicreg),
    "dino": (dino, lambda: (views(32, 32, 16, 24),), plain_dino),
    "mae": (mae, lambda: (views(32)[0], *image_masks()), plain_mae),
    "videomae": (video_mae, lambda: (clips(), *clip_masks()), plain_mae),
}


def flat(arguments):
    """Lists of one mask as the mask, for the plain forms."""
    return [entry[0] if position and isinstance(entry, list) else entry for position, entry in enumerate(arguments)]


@pytest.fixture(params=CASES)
def case(request):
    make, inputs, formula = CASES[request.param]
    return make, inputs(), formula


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("normalization", ["layer_norm", "dynamic_tanh"])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_the_formula(name, normalization, dtype):
    make, inputs, formula = CASES[name]
    encoder = {**ENCODER, "normalization": normalization, **({"use_rope": False} if name == "videomae" else {})}
    model, arguments = build_with(make, encoder), inputs()
    if name == "dino":  # a teacher and a centre of their own
        for p in model.teacher.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
        model.centring.center.normal_(generator=torch.Generator().manual_seed(4))
    if dtype == torch.float64:
        model.double()
    state = plain.doubled(model)
    expected = formula(model, state, *flat(arguments))
    expected.backward()
    exact, tolerance, floor = dtype == torch.float64, 3e-4, 0.1
    if exact:  # in which the operators' plain forms serve, and pixels arrive normalised
        tolerance, floor, (images, *masks) = 1e-9, 1e-3, arguments
        arguments = ([plain.from_bytes(i) for i in images] if isinstance(images, list) else plain.from_bytes(images), *masks)
    with jk.backend("reference") if exact else contextlib.nullcontext():
        loss, _ = model(*arguments)
        loss.backward()
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=tolerance / 10, atol=0)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    wanted = {n: value.grad for n, value in state.items() if value.grad is not None}
    assert gradients.keys() == wanted.keys() and len(gradients) > 25
    largest = max(float(value.abs().max()) for value in wanted.values())
    for n, gradient in gradients.items():
        # Relative to the tensor, or where that is all rounding (a shift before batch norm or softmax) to the model.
        scale = max(float(wanted[n].abs().max()), floor * largest)
        assert (gradient.double() - wanted[n]).abs().max() <= tolerance * scale, n


def build_with(make, encoder):
    with torch.no_grad():
        model = make(encoder=encoder)
        for n, p in model.named_parameters():  # zero biases and unit gains would hide mistakes
            if p.requires_grad and p.ndim == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n))))
    if hasattr(model, "teacher"):
        model.teacher.load_state_dict(model.student.state_dict())
    return model


@pytest.mark.parametrize("rope", [False, True])
def test_packed_views_are_the_views_one_by_one(rope):
    encoder = lejepa(encoder={**ENCODER, "use_rope": rope}).encoder
    images = views(32, 16, 16, 24, 32)
    together = encode_views(encoder, images)
    assert [tuple(tokens.shape) for tokens in together] == [(6, n, 32) for n in (16, 4, 4, 9, 16)]
    for image, tokens in zip(images, together, strict=True):
        torch.testing.assert_close(tokens, encode_views(encoder, [image])[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[0], encoder(images[0].permute(0, 3, 1, 2)), rtol=1e-5, atol=1e-5)


def test_rope_stretches_small_views_to_the_encoders_grid():
    encoder = lejepa(encoder={**ENCODER, "use_rope": True}).encoder
    half = views(16)[0]
    rope = jk.Rope3D(torch.tensor([[0.0, 0, 0], [0, 0, 2], [0, 2, 0], [0, 2, 2]]))
    tokens = encoder.patch_embed(half.permute(0, 3, 1, 2))
    for module in encoder.blocks:
        tokens = module(tokens, rope=rope)
    torch.testing.assert_close(encode_views(encoder, [half])[0], encoder.norm(tokens), rtol=1e-5, atol=1e-5)


def test_lejepa_of_global_views_is_the_published_minimal_form():
    model, images = lejepa(num_global=3, sigreg_weight=0.02), views(32, 32, 32)
    loss, stats = model(images)
    rows = torch.cat([tokens.mean(1) for tokens in encode_views(model.encoder, images)])
    z = model.projector(rows).view(3, 6, 8)
    expected = 0.98 * (z.mean(0) - z).square().mean() + 0.02 * jk.reference.sigreg(z, num_slices=16, seed=0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss, 0.98 * stats["prediction"] + 0.02 * stats["sigreg"])


def test_sigreg_draws_new_directions_at_every_step_and_repeats_them_after_loading():
    model, images = lejepa().eval(), views(32, 32)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        first, second = model(images)[0], model(images)[0]
        model.load_state_dict(state)
        again = model(images)[0]
    assert first != second and first == again


def test_dinos_centre_follows_the_teachers_mean():
    model, images = dino(), views(32, 32, 16)
    with torch.no_grad():
        logits = model.teacher(images[:2])
    model.eval()(images)
    assert not model.centring.center.any()  # moves only in training
    model.train()(images)
    torch.testing.assert_close(model.centring.center[0, 0], 0.1 * logits.mean(dim=(0, 1)))


def test_dinos_diagnostics_tell_collapse():
    model, images = dino(), views(32, 32)
    same = [images[0][:1].expand(6, -1, -1, -1).contiguous()] * 2
    assert float(model(same)[1]["teacher_divergence"]) == pytest.approx(0.0, abs=1e-5)
    stats = model(images)[1]
    assert float(stats["teacher_divergence"]) > 1e-3 and 0 < float(stats["teacher_entropy"]) < math.log(20)


def test_the_teacher_follows_by_both_optimisers(case):
    make, arguments, _ = case
    results = []
    for make_one in (make_optimizer, make_adamw_ema):
        model = make()
        inputs, masks = arguments[0], arguments[1:] or ([], [])
        optimizer = make_one(model, lr=1e-3)
        losses = [train_step(model, inputs, *masks, optimizer, 0.9)[0] for _ in range(3)]
        results.append((torch.stack(losses), dict(model.named_parameters())))
        assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-6)
    for name, parameter in results[1][1].items():
        if parameter.ndim == 1:  # some have no gradient but rounding, of which Adam makes whole steps
            continue
        torch.testing.assert_close(parameter, results[0][1][name], rtol=0, atol=1e-4, msg=name)
    if hasattr(model, "teacher"):
        assert not torch.equal(model.teacher.head.mlp[0].weight, make().teacher.head.mlp[0].weight)
        assert not torch.equal(model.teacher.head.mlp[0].weight, model.student.head.mlp[0].weight)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_training_lowers_the_loss_and_repeats(case, dtype):
    make, arguments, _ = case
    inputs, masks = arguments[0], arguments[1:] or ([], [])
    runs = []
    for _ in range(2):
        model = make()
        optimizer = make_adamw_ema(model, lr=2e-3, weight_decay=0.0, shadow_dtype=dtype)
        runs.append(torch.stack([train_step(model, inputs, *masks, optimizer, 0.99, autocast_dtype=dtype)[0] for _ in range(12)]))
    assert torch.equal(*runs) and runs[0].dtype == torch.float32
    assert runs[0][-3:].mean() < 0.97 * runs[0][:3].mean()


def test_seeded_weights_leave_the_global_generator_alone(case):
    make, _, _ = case
    before = torch.random.get_rng_state()
    first, second, other = make(), make(), make(seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert not torch.equal(first.encoder.blocks[0].attn.qkv.weight, other.encoder.blocks[0].attn.qkv.weight)


def test_parts_hold_the_whole_state(case):
    make, _, _ = case
    model = make()
    names = {f"{part}.{key}" for part in model.PARTS for key in getattr(model, part).state_dict()}
    assert len(names) == len(model.state_dict())
    trained = {id(p) for module in model.trained() for p in module.parameters() if p.requires_grad}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}


def test_mae_sees_nothing_of_the_hidden_patches():
    model, image = mae(), views(32)[0]
    kept, hidden = (masks[0] for masks in image_masks())
    changed = image.clone()
    for b, ids in enumerate(hidden):
        for token in ids.tolist():
            r, c = divmod(token, 4)
            changed[b, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH] = 7
    first, second = (model.encoder(x.permute(0, 3, 1, 2), masks=kept) for x in (image, changed))
    assert torch.equal(first, second)
    targets = model.patches(changed.permute(0, 3, 1, 2), hidden)
    assert not targets.requires_grad and targets.shape == (6, 12, 192)
    # A patch without contrast in its channels, which still differ from each other: normalised over all of its values.
    torch.testing.assert_close(targets.std(dim=-1), torch.ones(6, 12), rtol=1e-3, atol=0)


def test_pixels_as_they_are():
    model, image = mae(normalize_patches=False), views(32)[0]
    kept, hidden = (masks[0] for masks in image_masks())
    expected = cells(plain.from_bytes(image)).flatten(2)
    expected = torch.stack([row[ids] for row, ids in zip(expected, hidden, strict=True)])
    torch.testing.assert_close(model.patches(image.permute(0, 3, 1, 2), hidden).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lejepa()(views(32)), "at least 2 views"),
        (lambda: lejepa()(views(32)[0]), "a tensor of shape"),
        (lambda: lejepa()(views(32, 32), [torch.zeros(6, 2, dtype=torch.int64)]), "1 and 0 masks"),
        (lambda: lejepa()([views(32)[0], views(32)[0][:2]]), r"batches of \[6, 2\]"),
        (lambda: lejepa()(views(32, 30)), "multiple of patch_size"),
        (lambda: vicreg()(views(32, 32, 32)), "takes two views; got 3"),
        (lambda: vicreg()(views(32, 32, batch=1)), "more than 1 value per channel"),
        (lambda: dino()(views(32)), "at least 2 views"),
        (lambda: mae()(views(32)[0], [], []), "one mask of kept"),
        (lambda: mae()(torch.zeros(2, 5, 32, 32), *RandomMask((1, 4, 4))(2)), "C = 3"),
        (lambda: lejepa(sigreg_weight=1.5), "sigreg_weight"),
        (lambda: dino(teacher_temperature=0.0), "temperatures greater than 0"),
        (lambda: lejepa(encoder={**ENCODER, "normalization": "batch"}), "one of layer_norm, dynamic_tanh"),
        (lambda: jk.nn.Projector(4, 8, 4, depth=1), "at least 2 layers"),
    ],
)
def test_what_the_models_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()

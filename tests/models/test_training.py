"""The training step: its loss, its order, its target update, and thirty steps on the sample video."""

import pytest
import torch
import torch.nn.functional as F

import jepa_kernels as jk
from jepa_kernels import _native
from jepa_kernels.data import open_clips, sample_video
from jepa_kernels.masks import MultiBlockMask3D, apply_masks
from jepa_kernels.models import build_vjepa2, channels_first, make_adamw_ema, make_optimizer, train_step

STEPS = 30


@pytest.fixture(scope="module")
def video_clips(tmp_path_factory):
    """Eight clips of the sample video, uint8 (8, 8, 64, 64, 3)."""
    pytest.importorskip("av")
    pytest.importorskip("skimage")
    path = sample_video(tmp_path_factory.mktemp("cache"))
    return torch.stack(list(open_clips(path, num_frames=8, frame_step=3, size=64)))


def train(make_model, clips, steps=STEPS, momentum=0.99, seed=0, **options):
    """`steps` steps on batches of two clips; returns the losses, and the model."""
    model = make_model(seed=seed)
    optimizer = make_optimizer(model, lr=1e-3)
    sampler = MultiBlockMask3D.from_clip(8, 64, generator=torch.Generator().manual_seed(seed))
    losses = []
    for step in range(steps):
        batch = clips[torch.arange(2 * step, 2 * step + 2) % len(clips)]
        loss, _ = train_step(model, batch, *sampler(2), optimizer, momentum, **options)
        losses.append(loss.item())
    return torch.tensor(losses), model


@pytest.fixture(scope="module")
def reference_run(make_model, video_clips):
    with jk.backend("reference"):
        return train(make_model, video_clips)[0]


def test_loss_falls_on_the_sample_video(reference_run):
    assert reference_run[-5:].mean() < 0.8 * reference_run[:5].mean()


def test_cpu_backend_follows_the_reference(make_model, video_clips, reference_run):
    if (reason := _native.why_no_cpu()) is not None:
        pytest.skip(reason)
    with jk.backend("cpu"):
        losses, _ = train(make_model, video_clips)
    torch.testing.assert_close(losses[0], reference_run[0], rtol=1e-6, atol=0)
    # Adam's first steps make a whole step of a gradient that is nothing but rounding, so later losses part by more than that.
    torch.testing.assert_close(losses, reference_run, rtol=1e-3, atol=0)


def test_equal_seeds_give_equal_runs(make_model, video_clips):
    first, _ = train(make_model, video_clips, steps=3)
    second, _ = train(make_model, video_clips, steps=3)
    other, _ = train(make_model, video_clips, steps=3, seed=1)
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_target_follows_the_ema_formula(make_model, video_clips, make_masks):
    model = make_model()
    optimizer = make_optimizer(model, lr=1e-3)
    exact = [p.detach().double() for p in model.target_encoder.parameters()]
    for step in range(10):
        momentum = 0.9 + 0.01 * step
        train_step(model, video_clips[:2], *make_masks(2, seed=step), optimizer, momentum)
        for value, online in zip(exact, model.encoder.parameters(), strict=True):
            value.mul_(momentum).add_(online.detach().double(), alpha=1 - momentum)
    moved = 0.0
    for value, target, start in zip(
        exact, model.target_encoder.parameters(), make_model().target_encoder.parameters(), strict=True
    ):
        assert (target.double() - value).abs().max() < 1e-6
        moved = max(moved, (target - start).abs().max().item())
    assert moved > 1e-3  # the check above compared something that changes


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_loss_is_the_mean_over_masks_of_the_distance(make_model, clips, make_masks, power):
    model = make_model(loss_exp=power)
    masks_enc, masks_pred = make_masks(2)
    with torch.no_grad():
        # Clips normalised by hand, the target gathered by indexing: nothing here goes through the loss under test.
        x = clips.permute(0, 4, 1, 2, 3) / 255.0
        mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        x = (x - torch.tensor(mean).view(3, 1, 1, 1)) / torch.tensor(std).view(3, 1, 1, 1)
        h = F.layer_norm(model.target_encoder(x), (192,))
        expected = []
        for context, target in zip(masks_enc, masks_pred, strict=True):
            z = model.predictor(model.encoder(x, masks=context), context, target, mask_index=0)
            wanted = torch.stack([row[ids] for row, ids in zip(h, target, strict=True)])
            expected.append((z - wanted).abs().pow(power).mean() / power)
        loss, stats = model(clips, masks_enc, masks_pred)
    torch.testing.assert_close(stats["loss_per_mask"], torch.stack(expected), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(loss, stats["loss_per_mask"].mean())
    ragged = [jk.RaggedIds.from_list(list(ids)) for ids in masks_enc]
    torch.testing.assert_close(model(clips, ragged, masks_pred)[0], loss, rtol=1e-3, atol=1e-4)
    assert stats["context_tokens"] == [ids.shape[1] for ids in masks_enc]
    assert stats["target_tokens"] == [ids.shape[1] for ids in masks_pred]
    torch.testing.assert_close(stats["target_std"], h.flatten(0, 1).std(dim=0).mean(), rtol=1e-3, atol=1e-4)


def test_both_layouts_of_a_clip_are_one(model, clips, make_masks):
    masks = make_masks(2)
    loss, _ = model(clips, *masks)
    moved, _ = model(clips.permute(0, 4, 1, 2, 3).contiguous(), *masks)
    assert torch.equal(loss, moved)
    assert channels_first(clips).data_ptr() == clips.data_ptr()  # a view, not a copy
    with pytest.raises(ValueError, match="C = 3.*2, 8, 64, 64, 4"):
        channels_first(torch.zeros(2, 8, 64, 64, 4))


def test_target_gets_no_gradient_and_the_rest_does(model, clips, make_masks):
    loss, _ = model(clips, *make_masks(2))
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target_encoder.parameters())
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == {f"predictor.mask_tokens.{i}" for i in range(1, 10)}  # token 0 alone is in use


def test_step_leaves_no_gradients_and_a_detached_loss(model, clips, make_masks):
    before = model.encoder.norm.weight.detach().clone()
    loss, stats = train_step(model, clips, *make_masks(2), make_optimizer(model))
    assert not loss.requires_grad and loss.shape == ()
    assert all(p.grad is None for p in model.parameters())
    assert not torch.equal(model.encoder.norm.weight, before)
    assert not stats["loss_per_mask"].requires_grad


def test_bfloat16_autocast_stays_close(make_model, video_clips):
    plain, _ = train(make_model, video_clips, steps=5)
    low, model = train(make_model, video_clips, steps=5, autocast_dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    torch.testing.assert_close(low, plain, rtol=0.03, atol=0)
    assert not torch.equal(low, plain)


def test_float16_is_refused(model, clips, make_masks):
    with pytest.raises(ValueError, match="gradient scaler; use torch.bfloat16"):
        train_step(model, clips, *make_masks(2), make_optimizer(model), autocast_dtype=torch.float16)


def test_masks_must_pair_up(model, clips, make_masks):
    masks_enc, masks_pred = make_masks(2)
    with pytest.raises(ValueError, match="2 and 1 masks"):
        model(clips, masks_enc, masks_pred[:1])


def test_optimizer_groups_are_the_official_ones(model):
    groups = make_optimizer(model, weight_decay=0.1, betas=(0.8, 0.9)).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    members = [{names[id(p)] for p in group["params"]} for group in groups]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0, 0.0]
    assert groups[0]["betas"] == (0.8, 0.9)
    assert all(name.startswith("encoder.") for name in members[0] | members[2])
    assert all(name.startswith("predictor.") for name in members[1] | members[3])
    assert "encoder.patch_embed.proj.weight" in members[0] and "predictor.mask_tokens.0" in members[1]
    assert {"encoder.norm.weight", "encoder.patch_embed.proj.bias"} <= members[2]
    assert set().union(*members) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_seeded_weights_leave_the_global_generator_alone(make_model):
    before = torch.random.get_rng_state()
    first, second, other = make_model(seed=3), make_model(seed=3), make_model(seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.encoder.blocks[0].attn.qkv.weight, other.encoder.blocks[0].attn.qkv.weight)


def test_target_starts_as_a_copy():
    model = build_vjepa2("vit_tiny", img_size=32, num_frames=4, pred_depth=1, encoder={"depth": 1})
    for target, online in zip(model.target_encoder.parameters(), model.encoder.parameters(), strict=True):
        assert torch.equal(target, online) and target.data_ptr() != online.data_ptr()


# -- AdamWEMA and the kept low-precision weights


def several_steps(model, optimizer, clips, make_masks, steps=4, **options):
    losses = []
    for step in range(steps):
        loss, _ = train_step(model, clips, *make_masks(2, seed=step), optimizer, **options)
        losses.append(loss)
    return torch.stack(losses)


def test_adamw_ema_takes_the_steps_of_adamw_and_the_target_update(make_model, make_masks, clips):
    runs = []
    for make in (make_optimizer, make_adamw_ema):
        model = make_model()
        losses = several_steps(model, make(model, lr=1e-3), clips, make_masks, momentum=0.9)
        runs.append((losses, dict(model.named_parameters())))
    (expected, wanted), (losses, parameters) = runs
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter, wanted[name], rtol=0, atol=3e-5, msg=name)


def test_adamw_ema_keeps_the_targets_own_values(make_model):
    model, other = make_model(), make_model(seed=5)
    model.target_encoder.load_state_dict(other.target_encoder.state_dict())
    make_adamw_ema(model)
    for target, own in zip(model.target_encoder.parameters(), other.target_encoder.parameters(), strict=True):
        assert torch.equal(target, own)


def test_schedule_gives_the_momentum_unless_the_step_does(make_model, make_masks, clips):
    model = make_model()
    optimizer = make_adamw_ema(model, lr=1e-3, momentum=lambda step: 1.0)
    before = model.target_encoder.norm.weight.clone()
    train_step(model, clips, *make_masks(2), optimizer)
    assert torch.equal(model.target_encoder.norm.weight, before) and optimizer.target.step == 1
    train_step(model, clips, *make_masks(2), optimizer, 0.0)
    assert torch.equal(model.target_encoder.norm.weight, model.encoder.norm.weight)


def test_kept_weights_are_those_that_autocast_would_cast(make_model, make_masks, clips):
    """The same forward pass but for the roundings of one product, and gradients that reach the float32 parameters."""
    masks, results = make_masks(2), []
    for keep in (False, True):
        model = make_model()
        if keep:
            make_adamw_ema(model, narrow_gradients=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = model(clips, *masks)
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (expected, wanted), (loss, gradients) = results
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        # The gradient of |z - h| is a sign, which a rounding flips where z is close to h: so no bound on single elements.
        assert (gradient - wanted[name]).norm() <= 0.05 * wanted[name].norm(), name


@pytest.mark.parametrize("other", [make_optimizer, make_adamw_ema])
def test_kept_weights_follow_whoever_writes_the_parameters(make_model, make_masks, clips, other):
    model = make_model()
    make_adamw_ema(model, narrow_gradients=False)  # attaches copies; the optimiser of the steps is another
    several_steps(model, other(model, lr=1e-2), clips, make_masks, steps=2, autocast_dtype=torch.bfloat16)
    model.encoder.blocks[1].load_state_dict(make_model(seed=7).encoder.blocks[1].state_dict())
    fresh = make_model()
    fresh.load_state_dict(model.state_dict())
    make_adamw_ema(fresh)
    losses = []
    for each in (model, fresh):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(each(clips, *make_masks(2))[0])
    assert torch.equal(*losses)


@pytest.mark.parametrize("narrow", [True, False])
def test_narrow_gradients_are_the_same_numbers(make_model, make_masks, clips, narrow):
    model = make_model()
    make_adamw_ema(model, narrow_gradients=narrow)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model(clips, *make_masks(2))
    loss.backward()
    gradient = model.encoder.blocks[0].mlp.fc1.weight.grad
    assert gradient.dtype == (torch.bfloat16 if narrow else torch.float32)
    assert torch.equal(gradient, gradient.bfloat16().to(gradient.dtype))
    assert model.encoder.blocks[0].norm1.weight.grad.dtype == torch.float32
    model.zero_grad()
    model(clips, *make_masks(2))[0].backward()  # without autocast nothing is narrowed
    assert model.encoder.blocks[0].mlp.fc1.weight.grad.dtype == torch.float32


def per_mask_loss(model, clips, masks_enc, masks_pred):
    """The loss as the official code computes it: encoder and predictor once a mask, the target gathered."""
    x = channels_first(clips)
    h = model.targets(x)
    losses = []
    for context, target in zip(masks_enc, masks_pred, strict=True):
        z = model.predictor(model.encoder(x, masks=context), context, target, mask_index=0)
        losses.append((z - apply_masks(h, [target])).abs().mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("rope", [True, False])
def test_packed_masks_equal_one_pass_a_mask(make_model, make_masks, clips, rope):
    masks = make_masks(2)
    assert masks[0][0].shape != masks[0][1].shape
    results = []
    for loss_of in (lambda model: model(clips, *masks)[0], lambda model: per_mask_loss(model, clips, *masks)):
        model = make_model(encoder={"depth": 3, "use_rope": rope})
        loss = loss_of(model)
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (loss, gradients), (expected, wanted) = results
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert gradients.keys() == wanted.keys() and len(gradients) > 60
    for name, gradient in gradients.items():
        scale = wanted[name].abs().max()
        assert (gradient - wanted[name]).abs().max() <= 1e-5 * scale, name


def test_masks_without_tokens_are_refused(model, clips, make_masks):
    masks_enc, masks_pred = make_masks(2)
    empty = torch.empty(2, 0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"masks_enc\[1\] has no tokens"):
        model(clips, [masks_enc[0], empty], masks_pred)
    with pytest.raises(ValueError, match=r"masks_pred\[0\] has no tokens"):
        model(clips, masks_enc, [empty, masks_pred[1]])


def test_without_autocast_kept_weights_are_not_read(make_model, make_masks, clips):
    model = make_model()
    expected, _ = model(clips, *make_masks(2))
    make_adamw_ema(model)
    assert torch.equal(model(clips, *make_masks(2))[0], expected)


def test_kept_weights_are_no_part_of_the_state(make_model):
    model = make_model()
    keys = list(model.state_dict())
    make_adamw_ema(model)
    assert list(model.state_dict()) == keys
    assert all(p.dtype == torch.float32 for p in model.parameters())

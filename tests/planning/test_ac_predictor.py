"""The action-conditioned predictor: equal to the published form, its losses, and its cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jepa_kernels.models import VisionTransformerPredictorAC, ac_losses, normalize_tokens
from jepa_kernels.planning import LatentRollout, compose_pose

from .conftest import SIZES, pair_of_predictors

PATCHES, FRAMES = 4, 5


def inputs(batch: int = 2, frames: int = FRAMES, extrinsics: bool = False) -> tuple[Tensor, ...]:
    x = normalize_tokens(torch.randn(batch, frames * PATCHES, 24))
    rest = (torch.randn(batch, frames, 7), torch.randn(batch, frames, 7))
    return (x, *rest, torch.randn(batch, frames, 6)) if extrinsics else (x, *rest)


def test_equals_the_published_form_forward_and_backward(extrinsics: bool) -> None:
    ours, published = pair_of_predictors(extrinsics)
    arguments = inputs(extrinsics=extrinsics)
    first, second = ours(*arguments), published(*arguments)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    first.square().sum().backward()
    second.square().sum().backward()
    theirs = dict(published.named_parameters())
    for name, parameter in ours.named_parameters():
        if theirs[name].grad is None:  # the extrinsics encoder where there are none
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-3)


def test_checkpointing_changes_no_gradient() -> None:
    plain, _ = pair_of_predictors()
    recomputing = VisionTransformerPredictorAC(**SIZES, use_activation_checkpointing=True)
    recomputing.load_state_dict(plain.state_dict())
    arguments = inputs()
    for model in (plain, recomputing):
        model(*arguments).sum().backward()
    for first, second in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert (first.grad is None) == (second.grad is None)
        if first.grad is not None:
            torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize("split", [(5,), (1, 1, 1, 1, 1), (2, 3), (3, 1, 1)])
def test_cached_frames_equal_recomputation(split: tuple[int, ...], extrinsics: bool) -> None:
    ours, _ = pair_of_predictors(extrinsics)
    arguments = inputs(extrinsics=extrinsics)
    with torch.no_grad():
        whole = ours(*arguments)
    cache = ours.new_cache(2, FRAMES)
    start, parts = 0, []
    for frames in split:
        cut = [part[:, start : start + frames] for part in arguments[1:]]
        parts.append(ours.extend(cache, arguments[0][:, start * PATCHES : (start + frames) * PATCHES], *cut))
        start += frames
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("observed", [1, 3])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_rollout_with_a_shared_past_equals_recomputation(observed: int, batch_size: int | None) -> None:
    ours, _ = pair_of_predictors()
    tokens, actions, states = inputs(1, observed)
    future = torch.randn(5, 4, 7)
    rollout = LatentRollout(
        ours, tokens, states, actions[:, : observed - 1] if observed > 1 else None, next_state=compose_pose, batch_size=batch_size
    )
    found = rollout(future)
    z, poses = tokens.expand(5, -1, -1), states.expand(5, -1, -1)
    known = actions[:, : observed - 1].expand(5, -1, -1)
    with torch.no_grad():
        for step in range(4):
            predicted = ours(z, torch.cat([known, future[:, : step + 1]], 1), poses)[:, -PATCHES:]
            torch.testing.assert_close(found[:, step], normalize_tokens(predicted), rtol=1e-5, atol=1e-5)
            z = torch.cat([z, normalize_tokens(predicted)], 1)
            poses = torch.cat([poses, compose_pose(poses[:, -1], future[:, step])[:, None]], 1)
    torch.testing.assert_close(rollout(future), found, rtol=0, atol=0)  # a second call starts afresh


def test_rollouts_under_autocast_stay_near() -> None:
    """In bfloat16, past and own keys merged: no further from float32 than twice what recomputation is."""
    ours, _ = pair_of_predictors()
    tokens, actions, states = inputs(1, 3)
    future = torch.randn(4, 1, 7)
    exact = LatentRollout(ours, tokens, states, actions[:, :2])(future)[:, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        low = LatentRollout(ours, tokens, states, actions[:, :2])(future)[:, 0]
        known = torch.cat([actions[:, :2].expand(4, -1, -1), future], 1)
        again = normalize_tokens(ours(tokens.expand(4, -1, -1), known, states.expand(4, -1, -1))[:, -PATCHES:])
    assert 0 < (low - exact).abs().max() <= 2 * (again - exact).abs().max()


def test_a_shared_past_is_stored_once() -> None:
    ours, _ = pair_of_predictors()
    tokens, actions, states = inputs(1, 3)
    rollout = LatentRollout(ours, tokens, states, actions[:, :2])
    rollout(torch.zeros(6, 2, 7))
    cache = rollout._cache
    assert cache is not None and cache.shared is not None and cache.shared.batch == 1 and cache.shared_frames == 2
    shared, _ = cache.shared.read(0, 2)
    own, _ = cache.read(0, 2)
    assert shared.shape[0] == 1 and own.shape[0] == 6 and own.shape[2] == 2 * ours.tokens_per_frame


def test_losses_are_those_of_the_published_loop() -> None:
    ours, published = pair_of_predictors()
    h, actions, states = inputs()
    losses = ac_losses(ours, h, actions[:, :-1], states)

    def predict(z: Tensor, count: int) -> Tensor:
        return functional.layer_norm(published(z, actions[:, :count], states[:, :count]), (24,))

    forced = predict(h[:, :-PATCHES], FRAMES - 1)
    rolled = torch.cat([h[:, :PATCHES], forced[:, :PATCHES]], 1)
    rolled = torch.cat([rolled, predict(rolled, 2)[:, -PATCHES:]], 1)[:, PATCHES:]
    expected = (forced - h[:, PATCHES:]).abs().mean(), (rolled - h[:, PATCHES : 3 * PATCHES]).abs().mean()
    torch.testing.assert_close(losses.teacher_forcing, expected[0].detach())
    torch.testing.assert_close(losses.rollout, expected[1].detach())
    losses.loss.backward()
    sum(expected).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(
        ours.predictor_embed.weight.grad, published.predictor_embed.weight.grad, rtol=1e-3, atol=1e-4
    )


def test_targets_learn_where_asked() -> None:
    ours, _ = pair_of_predictors()
    x, actions, states = inputs()
    x.requires_grad_()
    values, gradients = [], []
    for train_targets in (False, True):
        losses = ac_losses(ours, x, actions[:, :-1], states, train_targets=train_targets)
        values.append(losses.loss.detach())
        gradients.append(torch.autograd.grad(losses.loss, x)[0])
    torch.testing.assert_close(values[0], values[1])
    # Only a target is the last frame: mean |z - h| over 4 frames gives each number a gradient of +-1 / count.
    last = gradients[1][:, -PATCHES:]
    assert gradients[0][:, -PATCHES:].abs().max() == 0
    torch.testing.assert_close(last.abs(), torch.full_like(last, 1 / (2 * 4 * PATCHES * 24)))


def test_no_frame_depends_on_a_later_one() -> None:
    ours, _ = pair_of_predictors()
    x, actions, states = inputs()
    with torch.no_grad():
        before = ours(x, actions, states)
        changed = actions.clone()
        changed[:, 3:] += 1.0
        after = ours(x, changed, states)
    torch.testing.assert_close(before[:, : 3 * PATCHES], after[:, : 3 * PATCHES], rtol=0, atol=0)
    assert (before[:, 3 * PATCHES :] - after[:, 3 * PATCHES :]).abs().max() > 1e-3


def test_trained_positions_snap_to_one_grid() -> None:
    wide = VisionTransformerPredictorAC((32, 64), 16, embed_dim=24, predictor_embed_dim=48, depth=1, num_heads=2)
    positions = wide.rope(range(1, 2), range(1, 2), torch.device("cpu")).positions
    assert positions[:2].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert positions[2:, 2].tolist() == [0, 0.5, 1, 1.5] * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 7, 24)}, "whole frames of 2 x 2"),
        ({"x": torch.zeros(2, 8, 23)}, "whole frames"),
        ({"actions": torch.zeros(2, 3, 7)}, "one row for each of 2 frames"),
        ({"states": torch.zeros(2, 2, 6)}, "states must be"),
        ({"extrinsics": torch.zeros(2, 2, 6)}, "use_extrinsics"),
        ({"actions": torch.zeros(3, 2, 7)}, "batch size 3 or 1"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Tensor], words: str) -> None:
    ours, _ = pair_of_predictors()
    arguments = {"x": torch.zeros(2, 8, 24), "actions": torch.zeros(2, 2, 7), "states": torch.zeros(2, 2, 7), **change}
    with pytest.raises(ValueError, match=words):
        ours(**arguments)


def test_a_full_cache_and_bad_losses_are_refused() -> None:
    ours, _ = pair_of_predictors()
    cache = ours.new_cache(1, 1)
    step = (torch.zeros(1, PATCHES, 24), torch.zeros(1, 1, 7), torch.zeros(1, 1, 7))
    ours.extend(cache, *step)
    with pytest.raises(ValueError, match="1 of 1 frames"):
        ours.extend(cache, *step)
    with pytest.raises(ValueError, match="batch size 3"):
        ours.new_cache(2, 1, shared=ours.new_cache(3, 1))
    with pytest.raises(ValueError, match="auto_steps"):
        ac_losses(ours, torch.zeros(1, 2 * PATCHES, 24), torch.zeros(1, 1, 7), torch.zeros(1, 2, 7), auto_steps=2)

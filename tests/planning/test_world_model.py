"""The world model: images in, plans out, files, and the mistakes it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jepa_kernels.models import VisionTransformer, VisionTransformerPredictorAC
from jepa_kernels.planning import (
    ActionSpace,
    CEMConfig,
    MPPIConfig,
    WorldConfig,
    WorldModel,
    build_world_model,
    load_world_model,
    save_world_model,
)

FRAME = torch.zeros(32, 32, 3, dtype=torch.uint8)
QUICK = CEMConfig(samples=8, iterations=2, horizon=3, topk=3)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_tokens_are_normalised(world: WorldModel) -> None:
    tokens = world.encode(noise(5, 32, 32, 3))
    assert tokens.shape == (5, 4, 64) and tokens.dtype == torch.float32
    torch.testing.assert_close(tokens.std(-1, unbiased=False), torch.ones(5, 4), rtol=0, atol=1e-2)


@pytest.mark.parametrize("hurry", [0.0, 0.5])
def test_the_cost_is_the_distance_to_the_goal_in_representation_space(world: WorldModel, hurry: float) -> None:
    world.hurry = hurry
    seen, goal = noise(32, 32, 3), noise(32, 32, 3)
    once = CEMConfig(samples=8, iterations=1, horizon=3, topk=2)
    plan = world.plan(seen, goal, once, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([torch.randn(8, 2, generator=generator) * 0.12 for _ in range(3)], 1).clamp(-0.12, 0.12)
    frames = world.rollout(seen)(drawn * world.action_scale)
    steps = (frames - world.encode(goal)[:, None]).abs().flatten(2).mean(2)  # [S, H]
    expected = steps[:, -1] + hurry * steps.mean(1)
    assert plan.elites[0] == expected.topk(2, largest=False).indices.tolist()
    assert plan.best_costs[0] == pytest.approx(float(expected.detach().min()), rel=1e-5)


def test_older_frames_and_their_actions_count(world: WorldModel) -> None:
    frames, actions = noise(3, 32, 32, 3), torch.full((2, 2), 0.1)
    future = torch.zeros(2, 2, 2)
    with_past = world.rollout(frames, past_actions=actions)(future)
    assert with_past.shape == (2, 2, 4, 64)
    assert (with_past - world.rollout(frames[2])(future)).abs().max() > 1e-5
    with pytest.raises(ValueError, match="3 observed frames need 2 past actions"):
        world.rollout(frames)


def test_plans_of_parts_are_plans_of_the_whole(world: WorldModel) -> None:
    seen, goal = noise(32, 32, 3), noise(32, 32, 3)
    plans = [
        world.plan(seen, goal, QUICK, generator=torch.Generator().manual_seed(0), batch_size=size) for size in (None, 3)
    ]
    torch.testing.assert_close(plans[0].actions, plans[1].actions, rtol=0, atol=1e-5)


def test_mppi_is_chosen_by_its_configuration(world: WorldModel) -> None:
    plan = world.plan(noise(32, 32, 3), noise(32, 32, 3), MPPIConfig(samples=8, iterations=2, horizon=3))
    assert plan.actions.shape == (3, 2) and len(plan.elites[0]) == 1


def test_a_clip_encoder_sees_each_image_twice() -> None:
    """And poses move the state: V-JEPA 2-AC's form at a tiny size."""
    size = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "num_heads": 2}
    encoder = VisionTransformer(**size, num_frames=2, tubelet_size=2, depth=1, use_rope=True)
    predictor = VisionTransformerPredictorAC(**size, predictor_embed_dim=48, depth=1)
    world = WorldModel(encoder, predictor, ActionSpace.end_effector(), poses=True).eval()
    image = noise(32, 32, 3)
    assert world.encode(image).shape == (1, 4, 24)
    plan = world.plan(image, noise(32, 32, 3), QUICK, state=torch.zeros(1, 7))
    assert plan.actions.shape == (3, 7) and (plan.actions[:, 3:6] == 0).all()


def test_weights_of_nan_drop_every_candidate(world: WorldModel) -> None:
    torch.nn.init.constant_(world.predictor.predictor_proj.bias, torch.nan)
    with pytest.raises(ValueError, match="no candidate had a finite cost"):
        world.plan(FRAME, FRAME, QUICK)


def test_saved_and_loaded_worlds_plan_alike(world: WorldModel, tmp_path: Path) -> None:
    save_world_model(tmp_path / "world.pt", world, WorldConfig.tiny())
    again = load_world_model(tmp_path / "world.pt")
    seen, goal = noise(32, 32, 3), noise(32, 32, 3)
    plans = [model.plan(seen, goal, QUICK, generator=torch.Generator().manual_seed(0)) for model in (world, again)]
    assert torch.equal(plans[0].actions, plans[1].actions)


@pytest.mark.parametrize(
    "image",
    [noise(48, 32, 3), noise(32, 32, 1), noise(3, 32, 32), torch.zeros(32, 32, 3), noise(64, 64, 3)],
    ids=["height", "channels", "channels-first", "float", "size"],
)
def test_a_goal_image_of_another_size_is_named(world: WorldModel, image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(32, 32, 3\), the size that this world model was trained on"):
        world.plan(FRAME, image, QUICK)


def test_actions_of_another_size_are_named(world: WorldModel) -> None:
    with pytest.raises(ValueError, match=r"\(candidates, horizon, 2\)"):
        world.rollout(FRAME)(torch.zeros(4, 3, 7))


def test_parts_that_do_not_fit_are_named(world: WorldModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="actions 7 numbers"):
        WorldModel(world.encoder, world.predictor, ActionSpace.end_effector())
    with pytest.raises(ValueError, match="poses and their actions have 7 numbers"):
        WorldModel(world.encoder, world.predictor, world.space, poses=True)
    with pytest.raises(ValueError, match="hurry must be finite"):
        WorldModel(world.encoder, world.predictor, world.space, hurry=-1.0)
    with pytest.raises(ValueError, match="lacks encoder, predictor, space"):
        build_world_model({"world": {}})
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save({"format": "other"}, tmp_path / "other.pt")
    mistakes = {"text.pt": "no checkpoint that torch can read", "other.pt": "no world model", "none.pt": "not a file"}
    for name, words in mistakes.items():
        with pytest.raises(ValueError, match=words):
            load_world_model(tmp_path / name)

"""The environment: seeds, walls, bounds, pixels."""

from __future__ import annotations

import numpy as np
import pytest

from jepa_kernels.envs import PointWalls


def test_a_seed_fixes_the_episode() -> None:
    first, second = PointWalls(), PointWalls()
    (one, info), (two, other) = first.reset(seed=3), second.reset(seed=3)
    assert np.array_equal(one, two) and np.array_equal(info["goal_image"], other["goal_image"])
    for _ in range(4):
        assert np.array_equal(first.step([0.1, 0.03])[0], second.step([0.1, 0.03])[0])
    assert not np.array_equal(first.reset(seed=4)[0], one)


def test_no_place_inside_a_wall_or_outside_is_reached() -> None:
    env = PointWalls()
    rng = np.random.default_rng(0)
    for seed in range(20):
        _, info = env.reset(seed=seed)
        assert np.linalg.norm(info["goal"] - info["position"]) >= env.min_distance
        for _ in range(30):
            _, _, _, _, info = env.step(rng.uniform(-0.12, 0.12, 2))
            assert env._is_free(info["position"])


def test_a_wall_stops_and_the_disc_slides_along_it() -> None:
    env = PointWalls(max_step=0.3)
    env.reset(options={"start": [0.3, 0.2], "goal": [0.9, 0.9]})
    _, _, _, _, info = env.step([0.3, 0.1])
    x, y = info["position"]
    assert 0.35 < x <= 0.46 - env.radius and y == pytest.approx(0.3)


def test_actions_beyond_the_bounds_are_clipped_and_counted() -> None:
    env = PointWalls()
    _, before = env.reset(options={"start": [0.2, 0.8], "goal": [0.9, 0.9]})
    _, _, _, _, info = env.step([5.0, -7.0])
    np.testing.assert_allclose(info["position"] - before["position"], [0.12, -0.12])
    assert info["clipped"] == 2
    assert env.step([0.01, 0.12])[4]["clipped"] == 2
    assert env.reset(seed=0)[1]["clipped"] == 0


@pytest.mark.parametrize("action", [[0.1], [0.1, float("nan")], [float("inf"), 0.0]])
def test_actions_that_are_none_are_refused(action: list[float]) -> None:
    env = PointWalls()
    with pytest.raises(ValueError, match="after reset"):
        env.step([0.0, 0.0])
    env.reset(seed=0)
    with pytest.raises(ValueError, match="two finite numbers"):
        env.step(action)


def test_an_episode_ends_at_the_goal_or_the_limit() -> None:
    env = PointWalls(max_episode_steps=3)
    env.reset(options={"start": [0.2, 0.8], "goal": [0.32, 0.8]})
    _, reward, terminated, truncated, info = env.step([0.1, 0.0])
    assert terminated and not truncated and reward == pytest.approx(-0.02) and info["distance"] == pytest.approx(0.02)
    env.reset(options={"start": [0.2, 0.8], "goal": [0.8, 0.2]})
    ends = [env.step([0.0, 0.0])[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_the_picture_moves_with_the_disc_by_less_than_a_pixel() -> None:
    env = PointWalls()
    image = env.observe([0.25, 0.75])
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    bright = image[..., 0] > 200
    rows, columns = np.nonzero(bright)
    assert abs(rows.mean() / 32 - 0.75) < 0.03 and abs(columns.mean() / 32 - 0.25) < 0.03
    assert not np.array_equal(image, env.observe([0.255, 0.75]))


def test_walls_that_leave_no_room_are_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        PointWalls(walls=((0.0, 0.0, 1.0, 1.0),)).reset(seed=0)
    with pytest.raises(ValueError, match="smaller min_distance"):
        PointWalls(min_distance=5.0).reset(seed=0)

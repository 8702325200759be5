"""A point that moves in a square with walls, seen as pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.uint8]
Point = NDArray[np.float64]
Wall = tuple[float, float, float, float]  # left, top, right, bottom

BACKGROUND, WALL, AGENT = (24, 28, 44), (128, 132, 148), (250, 196, 40)
_EDGE_PIXELS = 1.5  # width over which the disc fades, so that it moves by less than a pixel visibly


class PointWalls:
    """Move a disc in the unit square, around walls, to where a goal image shows it.

    An action (dx, dy) moves the disc by that much, along each axis as far as walls and borders let it; it slides along what
    it touches. Actions beyond `max_step` on an axis are clipped, non-finite ones refused; `info["clipped"]` counts the numbers
    clipped since `reset`.

    Interface: that of `gymnasium.Env`, by names alone. `reset(seed=...)` returns (observation, info), `step(action)` returns
    (observation, reward, terminated, truncated, info). Observations are uint8 (size, size, 3). The reward is minus the
    distance to the goal; an episode terminates within `tolerance` of it and is truncated after `max_episode_steps`.
    `info` has `goal_image` (an observation of the disc at the goal: all that a planner needs), and for measuring alone
    `position`, `goal` and `distance`.

    Start and goal are drawn uniformly from the free places, at least `min_distance` apart.

    Raises:
        ValueError: walls that leave no room, an action of another shape or not finite, `step` before `reset`.

    Deterministic: a seed fixes start, goal and everything after.

    Example:
        >>> env = PointWalls()
        >>> observation, info = env.reset(seed=0)
        >>> observation.shape, info["goal_image"].shape
        ((32, 32, 3), (32, 32, 3))
        >>> observation, reward, terminated, truncated, info = env.step([0.05, 0.5])
        >>> info["clipped"], terminated, truncated
        (1, False, False)
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        size: int = 32,
        walls: Sequence[Wall] = ((0.46, 0.0, 0.54, 0.3),),
        max_step: float = 0.12,
        radius: float = 0.08,
        tolerance: float = 0.1,
        min_distance: float = 0.4,
        max_episode_steps: int = 25,
    ) -> None:
        self.size, self.walls = size, tuple(walls)
        self.max_step, self.radius, self.tolerance = max_step, radius, tolerance
        self.min_distance, self.max_episode_steps = min_distance, max_episode_steps
        self.action_low = np.full(2, -max_step)
        self.action_high = np.full(2, max_step)
        self.clipped, self.steps = 0, 0
        self._rng = np.random.default_rng()
        self._position: Point | None = None
        self._goal: Point = np.zeros(2)
        self._backdrop = self._draw_backdrop()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Image, dict[str, Any]]:
        """A new episode; `options` may name its `start` and `goal`."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        options = options or {}
        for _ in range(1000):
            start = np.asarray(options.get("start", self._free_place()), dtype=np.float64)
            goal = np.asarray(options.get("goal", self._free_place()), dtype=np.float64)
            if {"start", "goal"} <= options.keys() or np.linalg.norm(goal - start) >= self.min_distance:
                break
        else:
            raise ValueError(f"no start and goal {self.min_distance} apart were found; choose a smaller min_distance")
        self._position, self._goal = start, goal
        self.clipped, self.steps = 0, 0
        return self.render(), {**self._info(), "goal_image": self.observe(goal)}

    def step(self, action: ArrayLike) -> tuple[Image, float, bool, bool, dict[str, Any]]:
        if self._position is None:
            raise ValueError("step comes after reset; call reset(seed=...) first")
        wanted = np.asarray(action, dtype=np.float64)
        if wanted.shape != (2,) or not np.isfinite(wanted).all():
            raise ValueError(f"an action is two finite numbers, (dx, dy); got {wanted.tolist()}")
        move = wanted.clip(self.action_low, self.action_high)
        self.clipped += int((np.abs(wanted - move) > 1e-6).sum())  # not what float32 rounds beyond a bound
        self._position = self._moved(self._position, move)
        self.steps += 1
        info = self._info()
        done = bool(info["distance"] <= self.tolerance)
        return self.render(), -info["distance"], done, self.steps >= self.max_episode_steps, info

    def render(self) -> Image:
        if self._position is None:
            raise ValueError("render comes after reset; call reset(seed=...) first")
        return self.observe(self._position)

    def observe(self, position: ArrayLike) -> Image:
        """The image of the disc at a place (x, y)."""
        x, y = np.asarray(position, dtype=np.float64)
        centres = (np.arange(self.size) + 0.5) / self.size
        distance = np.hypot(centres[None, :] - x, centres[:, None] - y)  # [size, size], rows are y
        cover = ((self.radius - distance) * self.size / _EDGE_PIXELS + 0.5).clip(0.0, 1.0)[..., None]
        return np.rint(self._backdrop * (1.0 - cover) + np.array(AGENT) * cover).astype(np.uint8)

    def close(self) -> None:
        """There is nothing to close; here for the interface."""

    def _info(self) -> dict[str, Any]:
        assert self._position is not None
        distance = float(np.linalg.norm(self._goal - self._position))
        return {"position": self._position.copy(), "goal": self._goal.copy(), "distance": distance, "clipped": self.clipped}

    def _moved(self, position: Point, move: Point) -> Point:
        # In steps shorter than a wall is thick, so that none is jumped over; each axis alone, so that the disc slides.
        count = max(1, int(np.ceil(np.abs(move).max() / 0.02)))
        for _ in range(count):
            for axis in (0, 1):
                tried = position.copy()
                tried[axis] += move[axis] / count
                if self._is_free(tried):
                    position = tried
        return position

    def _is_free(self, place: Point) -> bool:
        x, y = place
        r = self.radius
        if not (r <= x <= 1.0 - r and r <= y <= 1.0 - r):
            return False
        return not any(left - r < x < right + r and top - r < y < bottom + r for left, top, right, bottom in self.walls)

    def _free_place(self) -> Point:
        for _ in range(1000):
            place = self._rng.uniform(self.radius, 1.0 - self.radius, 2)
            if self._is_free(place):
                return place
        raise ValueError("the walls leave no room for the disc; make them or its radius smaller")

    def _draw_backdrop(self) -> NDArray[np.float64]:
        image = np.tile(np.array(BACKGROUND, dtype=np.float64), (self.size, self.size, 1))
        centres = (np.arange(self.size) + 0.5) / self.size
        for left, top, right, bottom in self.walls:
            inside = ((centres >= top) & (centres < bottom))[:, None] & ((centres >= left) & (centres < right))[None, :]
            image[inside] = WALL
        return image

"""Small scenes with an object that obeys physics, and pairs of clips of which one stops obeying it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Clip = NDArray[np.uint8]
Array = NDArray[np.float64]

KINDS = ("vanish", "teleport", "reshape", "float")
SHAPES = ("disc", "box", "triangle", "pillar")
COLOURS = ((236, 72, 60), (64, 196, 92), (72, 128, 244))
SKY, EARTH, PILLAR = (30, 34, 54), (84, 72, 52), (110, 104, 98)

# Lengths in units of the picture's side, times in frames, y downwards.
RADIUS, GROUND, GRAVITY, BOUNCE = 0.15, 0.9, 0.004, 0.5
OCCLUDER_WIDTH = 0.24  # less than the object, some of which always shows
SPEED = (0.02, 0.035)
EDGE_FRAMES = 8  # a violation leaves as many frames before and after it
LEAST_FALL, FALLING = 0.2, 0.03  # height above the ground, and speed, at which gravity may stop
JUMP = (0.3, 0.6)  # how far an object teleports
_EDGE_PIXELS = 1.2  # width over which an outline fades, so that motion below a pixel is visible
_TRIES = 10_000


@dataclass(frozen=True)
class Scene:
    """What there is to see: an object, its start, and perhaps a pillar behind which it passes.

    `rolls` says whether the object moves on the ground or is thrown. `occluder` is the centre of the one thing in front."""

    shape: str
    colour: tuple[int, int, int]
    start: tuple[float, float]
    velocity: tuple[float, float]
    rolls: bool
    occluder: float | None


@dataclass(frozen=True)
class Pair:
    """Two clips (T, size, size, 3) uint8 that are equal up to `frame`, where the impossible one breaks a rule.

    `kind` is one of `KINDS`."""

    possible: Clip
    impossible: Clip
    kind: str
    frame: int


def possible_clip(seed: int, frames: int = 32, size: int = 32) -> Clip:
    """A clip in which everything obeys physics: uint8 (frames, size, size, 3). Half of them have an occluder.

    Raises:
        ValueError: fewer than 1 frame, or a picture of less than 8 pixels.

    Deterministic: a function of its arguments.

    >>> possible_clip(0).shape
    (32, 32, 32, 3)
    """
    _check(frames, size)
    rng = np.random.default_rng([seed, 0])
    scene = _draw_scene(rng, rolls=bool(rng.random() < 0.5), occluded=bool(rng.random() < 0.5))
    return render(scene, path(scene, frames), [scene.shape] * frames, size)


def clip_pair(seed: int, kind: str, frames: int = 32, size: int = 32) -> Pair:
    """A possible and an impossible clip of one scene, equal until the violation.

    From a frame on the object is gone ("vanish"), moves on 0.3 to 0.6 of a picture further left or right ("teleport"), has
    another outline ("reshape"), or stops its fall and drifts on at its height ("float"). The frame is drawn from those in which
    the object is whole in the picture and clear of the occluder, so that the violation can be seen.

    Raises:
        ValueError: an unknown kind, fewer than 20 frames, a picture of less than 8 pixels.

    Deterministic: a function of its arguments. Scenes are drawn as for `possible_clip`, from other random numbers.

    >>> pair = clip_pair(0, "teleport")
    >>> bool((pair.possible[: pair.frame] == pair.impossible[: pair.frame]).all()), pair.possible.shape
    (True, (32, 32, 32, 3))
    """
    _check(frames, size)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if frames < 2 * EDGE_FRAMES + 4:
        raise ValueError(f"a pair needs at least {2 * EDGE_FRAMES + 4} frames; got {frames}")
    rng = np.random.default_rng([seed, 1, KINDS.index(kind)])
    for _ in range(_TRIES):
        occluded = bool(rng.random() < 0.5)
        scene = _draw_scene(rng, rolls=kind != "float" and bool(rng.random() < 0.5), occluded=occluded)
        places = path(scene, frames)
        broken, shapes, frame = _violated(rng, scene, places, kind)
        if frame:
            possible = render(scene, places, [scene.shape] * frames, size)
            return Pair(possible, render(scene, broken, shapes, size), kind, frame)
    raise AssertionError(f"no scene for {kind} in {_TRIES} draws")  # a matter of the constants above, not of arguments


def path(scene: Scene, frames: int) -> Array:
    """Where the object's centre is in every frame. [T, 2]"""
    places = np.empty((frames, 2))
    (x, y), (vx, vy) = scene.start, scene.velocity
    floor = GROUND - RADIUS
    for frame in range(frames):
        places[frame] = x, y
        x += vx
        if scene.rolls:
            continue
        vy += GRAVITY
        y += vy
        if y > floor:
            y, vy = floor - BOUNCE * (y - floor), -BOUNCE * vy
    return places


def render(scene: Scene, places: Array, shapes: list[str], size: int) -> Clip:
    """The pictures: sky, ground, object, occluder. A place that is NaN has no object. [T, size, size, 3]"""
    centres = (np.arange(size) + 0.5) / size
    picture = np.empty((size, size, 3))
    picture[:] = SKY
    below = ((centres - GROUND) * size + 0.5).clip(0.0, 1.0)[:, None, None]
    picture = picture * (1.0 - below) + np.array(EARTH) * below
    dx = centres[None, None, :] - places[:, 0, None, None]  # [T, 1, size]
    dy = centres[None, :, None] - places[:, 1, None, None]  # [T, size, 1]
    away = np.empty((len(places), size, size))  # distance from the outline, negative inside
    for shape in set(shapes):
        chosen = [frame for frame, name in enumerate(shapes) if name == shape]
        away[chosen] = _OUTLINES[shape](dx[chosen], dy[chosen])
    cover = np.nan_to_num((-away * size / _EDGE_PIXELS + 0.5).clip(0.0, 1.0))[..., None]
    clip = picture * (1.0 - cover) + np.array(scene.colour) * cover
    if scene.occluder is not None:
        front = ((OCCLUDER_WIDTH / 2 - np.abs(centres - scene.occluder)) * size + 0.5).clip(0.0, 1.0)[:, None]
        clip = clip * (1.0 - front) + np.array(PILLAR) * front
    return np.rint(clip).astype(np.uint8)


def _disc(dx: Array, dy: Array) -> Array:
    return np.hypot(dx, dy) - RADIUS


def _box(dx: Array, dy: Array) -> Array:
    return np.maximum(np.abs(dx), np.abs(dy)) - RADIUS


def _pillar(dx: Array, dy: Array) -> Array:
    return np.maximum(np.abs(dx) - 0.45 * RADIUS, np.abs(dy) - RADIUS)


def _triangle(dx: Array, dy: Array) -> Array:
    # Two slanted sides that meet at the top, and a base.
    return np.maximum((2.0 * np.abs(dx) - dy - RADIUS) / np.sqrt(5.0), dy - RADIUS)


_OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": _disc, "box": _box, "triangle": _triangle, "pillar": _pillar,
}  # fmt: skip


def _draw_scene(rng: np.random.Generator, rolls: bool, occluded: bool) -> Scene:
    direction = 1.0 if rng.random() < 0.5 else -1.0
    x = rng.uniform(RADIUS, 0.25)
    scene = Scene(
        shape=SHAPES[rng.integers(len(SHAPES))],
        colour=COLOURS[rng.integers(len(COLOURS))],
        start=(x if direction > 0 else 1.0 - x, GROUND - RADIUS if rolls else rng.uniform(RADIUS, 0.45)),
        velocity=(direction * rng.uniform(*SPEED), 0.0 if rolls else rng.uniform(-0.02, 0.02)),
        rolls=rolls,
        occluder=None,
    )
    return replace(scene, occluder=rng.uniform(0.45, 0.55)) if occluded else scene


def _violated(rng: np.random.Generator, scene: Scene, places: Array, kind: str) -> tuple[Array, list[str], int]:
    """Places and outlines of the impossible clip, and the frame of the violation; frame 0 if the scene offers none."""
    frames = len(places)
    broken, shapes = places.copy(), [scene.shape] * frames
    fit = [frame for frame in range(EDGE_FRAMES, frames - EDGE_FRAMES) if _fits(scene, places[frame])]
    if kind == "float":
        high = places[:, 1] < GROUND - RADIUS - LEAST_FALL
        fit = [frame for frame in fit if high[frame] and places[frame, 1] - places[frame - 1, 1] >= FALLING]
    if not fit:
        return broken, shapes, 0
    frame = int(rng.choice(fit))
    if kind == "vanish":
        broken[frame:] = np.nan
    elif kind == "reshape":
        others = [shape for shape in SHAPES if shape != scene.shape]
        shapes[frame:] = [others[rng.integers(len(others))]] * (frames - frame)
    elif kind == "float":
        broken[frame:, 1] = places[frame, 1]
    else:
        broken[frame:, 0] += rng.uniform(*JUMP) * (1.0 if rng.random() < 0.5 else -1.0)
        if not _fits(scene, broken[frame]):
            return broken, shapes, 0
    return broken, shapes, frame


def _fits(scene: Scene, place: Array) -> bool:
    """Whole in the picture, and clear of the occluder."""
    if not (RADIUS <= place[0] <= 1.0 - RADIUS and place[1] >= RADIUS):
        return False
    return scene.occluder is None or bool(abs(place[0] - scene.occluder) >= OCCLUDER_WIDTH / 2 + RADIUS)


def _check(frames: int, size: int) -> None:
    if frames < 1:
        raise ValueError(f"frames must be at least 1; got {frames}")
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels; got {size}")

"""Folders of generated clips as videos: possible ones to train on, pairs to score."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..data.errors import require
from .scenes import KINDS, Clip, clip_pair, possible_clip

RATE = 12  # frames a second of the written videos; nothing depends on it


def write_video(path: Path, clip: Clip) -> None:
    """Writes (T, H, W, 3) uint8 frames as a lossless RGB video (FFV1 in Matroska): what is read is what was rendered.

    Raises:
        DataError: PyAV is missing.
    """
    av: Any = require("av", "writing a video")
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=Fraction(RATE))
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], "bgr0"
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))


def write_possible(folder: Path, count: int, first_seed: int = 0, frames: int = 32, size: int = 32) -> list[Path]:
    """Writes possible clips of consecutive seeds as FOLDER/possible_SEED.mkv, which `jepa-kernels train` reads.

    Raises:
        ValueError: fewer than one clip, or a size that `possible_clip` refuses.
    """
    if count < 1:
        raise ValueError(f"the number of clips must be at least 1; got {count}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(first_seed, first_seed + count):
        paths.append(folder / f"possible_{seed:06d}.mkv")
        write_video(paths[-1], possible_clip(seed, frames, size))
    return paths


def write_pairs(folder: Path, count: int, first_seed: int = 0, frames: int = 32, size: int = 32) -> list[Path]:
    """Writes `count` pairs of every kind as FOLDER/KIND_SEED_{possible,impossible}.mkv, and FOLDER/pairs.json, which lists
    kind, seed and the first impossible frame of each.

    Raises:
        ValueError: fewer than one pair, or sizes that `clip_pair` refuses.
    """
    if count < 1:
        raise ValueError(f"the number of clips must be at least 1; got {count}")
    folder.mkdir(parents=True, exist_ok=True)
    paths, listed = [], []
    for kind in KINDS:
        for seed in range(first_seed, first_seed + count):
            pair = clip_pair(seed, kind, frames=frames, size=size)
            for name, clip in (("possible", pair.possible), ("impossible", pair.impossible)):
                paths.append(folder / f"{kind}_{seed:06d}_{name}.mkv")
                write_video(paths[-1], clip)
            listed.append({"kind": kind, "seed": seed, "frame": pair.frame})
    (folder / "pairs.json").write_text(json.dumps(listed, indent=1))
    return paths

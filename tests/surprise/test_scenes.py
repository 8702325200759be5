"""The generated clips: what a seed gives, what is equal, what is broken, and that videos hold them exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa_kernels.data import iterate_clips
from jepa_kernels.surprise import KINDS, clip_pair, pairwise_accuracy, pixel_scores, possible_clip, write_pairs, write_possible


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_equal_until_its_violation(kind: str) -> None:
    for seed in range(4):
        pair, again = clip_pair(seed, kind), clip_pair(seed, kind)
        assert np.array_equal(pair.impossible, again.impossible) and np.array_equal(pair.possible, again.possible)
        assert pair.possible.shape == pair.impossible.shape == (32, 32, 32, 3) and pair.possible.dtype == np.uint8
        assert np.array_equal(pair.possible[: pair.frame], pair.impossible[: pair.frame])
        differs = (pair.possible != pair.impossible).any(axis=(1, 2, 3))
        assert differs.any() and 8 <= pair.frame <= 24
        if kind != "float":  # gravity's absence shows a frame later
            assert differs[pair.frame]


def test_possible_clips_differ_by_seed_and_move() -> None:
    one, same, other = possible_clip(1), possible_clip(1), possible_clip(2)
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert (np.abs(np.diff(one.astype(int), axis=0)).max(axis=(1, 2, 3)) > 0).sum() > 15


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of vanish, teleport, reshape, float; got 'melt'"):
        clip_pair(0, "melt")
    with pytest.raises(ValueError, match="a pair needs at least 20 frames; got 16"):
        clip_pair(0, "vanish", frames=16)
    with pytest.raises(ValueError, match="size must be at least 8 pixels; got 4"):
        possible_clip(0, size=4)
    with pytest.raises(ValueError, match="frames must be at least 1; got 0"):
        possible_clip(0, frames=0)


def test_videos_hold_the_clips_exactly(tmp_path: Path) -> None:
    (path,) = write_possible(tmp_path / "train", 1, first_seed=5)
    (clip,) = iterate_clips(path, 32, size=32)
    assert torch.equal(clip, torch.from_numpy(possible_clip(5)))
    paths = write_pairs(tmp_path / "pairs", 1, first_seed=3, frames=24, size=16)
    listed = json.loads((tmp_path / "pairs" / "pairs.json").read_text())
    assert len(paths) == 8 and [entry["kind"] for entry in listed] == list(KINDS)
    (clip,) = iterate_clips(tmp_path / "pairs" / "teleport_000003_impossible.mkv", 24, size=None)
    assert torch.equal(clip, torch.from_numpy(clip_pair(3, "teleport", frames=24, size=16).impossible))
    for write in (write_possible, write_pairs):
        with pytest.raises(ValueError, match="the number of clips must be at least 1; got 0"):
            write(tmp_path, 0)


def test_pairwise_accuracy_counts_a_tie_as_half() -> None:
    pairs = [clip_pair(seed, "teleport") for seed in range(2)]
    assert pairwise_accuracy(pairs, lambda clip: {"constant": 1.0}) == {"constant": 0.5}
    found = pairwise_accuracy(pairs, pixel_scores)
    assert found["max pixels"] == 1.0
    with pytest.raises(ValueError, match="at least one pair"):
        pairwise_accuracy([], pixel_scores)

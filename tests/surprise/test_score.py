"""Shared windows score as windows on their own do; a stream as a whole clip does; what does not fit is refused."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jepa_kernels.models import VJEPA2
from jepa_kernels.surprise import StreamEnd, SurpriseStream, Windows, surprise, surprise_per_window

from .conftest import tiny_model


@pytest.mark.parametrize("use_rope", [True, False], ids=["rope", "table"])
@pytest.mark.parametrize(
    "windows", [Windows(), Windows((4,), 8, 4), Windows((10, 2), 12, 6)], ids=["published", "short", "sparse"]
)
def test_shared_equals_window_by_window(use_rope: bool, windows: Windows, frames: Tensor) -> None:
    model = tiny_model(use_rope)
    if not use_rope and windows.length < 16:
        windows = Windows(windows.contexts, 16, windows.stride)
    expected = surprise_per_window(model, frames, windows)
    assert expected.std(dim=0).min() > 1e-4  # windows differ, so that a mixed-up one would be seen
    for batch in (1, 3, 16):
        found = surprise(model, frames, windows, batch_windows=batch)
        assert found.starts == list(range(0, 31 - windows.length + 1, windows.stride))
        torch.testing.assert_close(found.scores, expected, rtol=0.0, atol=1e-5)


def test_aggregates(model: VJEPA2, frames: Tensor) -> None:
    found = surprise(model, frames)
    torch.testing.assert_close(found.filtered, found.scores.min(dim=1).values)
    assert found.of_clip("max", 4) == float(found.scores[:, 1].max()) > found.of_clip("mean", 4)
    assert found.of_clip() == pytest.approx(float(found.filtered.mean()))
    with pytest.raises(ValueError, match="aggregate must be one of mean, max; got 'sum'"):
        found.of_clip("sum")
    with pytest.raises(ValueError, match="context must be one of .*; got 3"):
        found.of_clip("mean", 3)


def test_frames_before_a_change_do_not_see_it(model: VJEPA2, frames: Tensor) -> None:
    changed = frames.clone()
    changed[20:] = 255 - changed[20:]
    before, after = surprise(model, frames).scores, surprise(model, changed).scores
    assert torch.equal(before[:3], after[:3]) and not torch.isclose(before[3:], after[3:]).any()


@pytest.mark.parametrize("windows", [Windows(), Windows((4, 2), 8, 4)], ids=["published", "short"])
def test_a_stream_scores_as_the_clip(model: VJEPA2, frames: Tensor, windows: Windows) -> None:
    stream, camera, scored = SurpriseStream(model, windows), torch.empty_like(frames[0]), []
    for place, frame in enumerate(frames):
        camera.copy_(frame)  # one buffer for all pictures, as cameras have it
        if (score := stream.push(camera)) is not None:
            assert score.start + windows.length == place + 1  # told with its last frame
            scored.append(score)
    expected = surprise(model, frames, windows)
    assert [score.start for score in scored] == expected.starts
    torch.testing.assert_close(torch.stack([score.scores for score in scored]), expected.scores, rtol=0.0, atol=1e-5)
    unscored = 31 - (expected.starts[-1] + windows.length)
    assert stream.close() == StreamEnd(31, len(scored), unscored)


@pytest.mark.parametrize("count", [0, 1, 15])
def test_a_source_that_stops_before_a_window_is_whole(model: VJEPA2, frames: Tensor, count: int) -> None:
    stream = SurpriseStream(model)
    assert all(stream.push(frame) is None for frame in frames[:count])
    assert stream.close() == StreamEnd(count, 0, count)
    with pytest.raises(ValueError, match="has been closed"):
        stream.push(frames[0])
    with pytest.raises(ValueError, match=f"the clip has {count} frames, less than one window of 16"):
        surprise(model, frames[:count])


def test_memory_of_a_long_stream_is_flat(model: VJEPA2, frames: Tensor) -> None:
    """10,000 frames, a window scored every 16."""
    stream = SurpriseStream(model, Windows((8,), 16, 16))

    def held() -> int:
        gc.collect()
        return sum(1 for thing in gc.get_objects() if type(thing) is Tensor)

    def resident() -> int:
        statm = Path("/proc/self/statm")  # where there is none, the count of tensors has to do
        return int(statm.read_text().split()[1]) * 4 if statm.exists() else 0

    for place in range(1_000):
        stream.push(frames[place % 31])
    tensors, before = held(), resident()
    for place in range(1_000, 10_000):
        stream.push(frames[place % 31])
    assert held() == tensors
    assert resident() - before < 4 * 1024  # KiB; 9,000 kept frames alone are 6.8 MiB
    assert stream.close() == StreamEnd(10_000, 625, 0)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (Windows((2,), 15), "the window must be a multiple of 2 frames, at most the 16 .*; got 15"),
        (Windows((2,), 18), "at most the 16"),
        (Windows((2,), 16, 3), "the stride must be a multiple of the model's tubelet of 2 frames; got 3"),
        (Windows((2,), 16, 0), "the stride must be a multiple"),
        (Windows((3,)), r"contexts must be multiples of 2 frames.*got \[3\]"),
        (Windows((2, 16)), "less than the window's 16"),
        (Windows(()), r"got \[\]"),
    ],
)
def test_windows_that_do_not_fit(model: VJEPA2, frames: Tensor, windows: Windows, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        surprise(model, frames, windows)
    with pytest.raises(ValueError, match=message):
        SurpriseStream(model, windows)


def test_frames_that_do_not_fit(model: VJEPA2, frames: Tensor) -> None:
    for wrong in (frames[:, :8], frames[..., :1], frames.float()):
        with pytest.raises(ValueError, match="Resize them first"):
            surprise(model, wrong)
        with pytest.raises(ValueError, match="Resize them first"):
            SurpriseStream(model).push(wrong[0])
    with pytest.raises(ValueError, match="frames must be"):
        surprise(model, frames[0])
    with pytest.raises(ValueError, match="a frame must be"):
        SurpriseStream(model).push(frames)
    with pytest.raises(ValueError, match="batch_windows must be at least 1; got 0"):
        surprise(model, frames, batch_windows=0)

"""Crops, clips and batches: the official distributions, and batches that depend on seed, step and place alone."""

import pytest
import torch

from jepa_kernels.data import DataError, read_video, sample_video
from jepa_kernels.data.random_clip import WholeVideo, random_clip
from jepa_kernels.train.augment import augment, crop_box
from jepa_kernels.train.build import build_sampler
from jepa_kernels.train.config import load_config
from jepa_kernels.train.dataset import batches, training_files

SMALL = ["model.img_size=32", "model.patch_size=4", "masks.rectangles.min_keep=4", "data.batch_size=2"]


def test_crops_are_uniform_in_area_and_aspect():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([crop_box(200, 200, (0.3, 1.0), (3 / 4, 4 / 3), generator) for _ in range(2000)]).double()
    top, left, height, width = boxes.unbind(1)
    assert (top + height <= 200).all() and (left + width <= 200).all() and min(top.min(), left.min()) == 0
    area = height * width / 200**2
    assert area.min() == pytest.approx(0.3, abs=0.02) and area.max() > 0.95
    assert area.mean() == pytest.approx(0.6, abs=0.02)  # not 0.65: what is too wide or too high is drawn again
    aspect = (width / height).log()
    assert aspect.mean().item() == pytest.approx(0.0, abs=0.02) and aspect.abs().max() <= 0.31
    # Where no draw fits, the largest centred crop whose aspect ratio is allowed.
    assert crop_box(10, 100, (1.0, 1.0), (1.0, 1.0), generator) == (0, 45, 10, 10)
    assert crop_box(100, 10, (1.0, 1.0), (1.0, 1.0), generator) == (45, 0, 10, 10)


def test_a_crop_of_everything_is_a_resize():
    frames = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    everything = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "generator": torch.Generator().manual_seed(1)}
    assert torch.equal(augment(frames, 4, flip=False, **everything), frames)
    assert torch.equal(augment(frames[:1], 4, flip=False, **everything), frames[:1])
    flipped = [torch.equal(augment(frames, 4, flip=True, **everything), frames.flip(2)) for _ in range(40)]
    assert 8 < sum(flipped) < 32


def test_random_clips_are_the_frames_of_the_video(tmp_path):
    pytest.importorskip("av")
    path = sample_video(tmp_path)
    # 192 frames; the window of 4 frames every 8 is 32 long, sampled at 0, 10, 21 and 31.
    whole = read_video(path, 192, 1, None)
    for start in (0, 1, 77, 160):
        clip = random_clip(path, 4, 8, draw=lambda count, start=start: min(start, count - 1))
        assert torch.equal(clip, whole[[start, start + 10, start + 21, start + 31]])
    # 24 frames a second at fps=4: every sixth.
    assert torch.equal(random_clip(path, 2, 1, lambda count: 5, fps=4), whole[[5, 16]])
    with pytest.raises(DataError, match="192 frames, too few: 64 frames every 4 need 256"):
        random_clip(path, 64, 4, draw=lambda count: 0)


def collect(files, config, first=0, steps=4, **place):
    return list(batches(files, build_sampler(config), config, first, steps, **place))


def assert_equal_batches(first, second):
    assert torch.equal(first.inputs, second.inputs)
    for one, two in zip(first.masks_enc + first.masks_pred, second.masks_enc + second.masks_pred, strict=True):
        assert torch.equal(one, two)


def test_a_batch_depends_on_seed_and_step_alone(photographs):
    files = training_files(photographs)
    config = load_config("ijepa_tiny", SMALL)
    through = collect(files, config)
    for batch, again in zip(through[2:], collect(files, config, first=2), strict=True):
        assert_equal_batches(batch, again)
    in_processes = collect(files, load_config("ijepa_tiny", [*SMALL, "data.num_workers=2"]))
    for batch, again in zip(through, in_processes, strict=True):
        assert_equal_batches(batch, again)
    other = collect(files, load_config("ijepa_tiny", [*SMALL, "run.seed=1"]))
    assert not torch.equal(through[0].inputs, other[0].inputs)


def test_processes_share_the_batches_of_one(photographs):
    files = training_files(photographs)
    settings = [*SMALL, "masks.keep='budget'", "masks.budget=[[8, 6]]"]
    joined = collect(files, load_config("ijepa_tiny", [*settings, "data.batch_size=4"]))
    config = load_config("ijepa_tiny", settings)
    parts = [collect(files, config, rank=rank, world=2) for rank in range(2)]
    for whole, *halves in zip(joined, *parts, strict=True):
        assert torch.equal(whole.inputs, torch.cat([half.inputs for half in halves]))
        assert torch.equal(whole.masks_pred[0], torch.cat([half.masks_pred[0] for half in halves]))


def test_a_pass_takes_every_file_once(photographs):
    files = training_files(photographs)
    seen = []
    for step_keys in batches(files, build_sampler(config := load_config("ijepa_tiny", SMALL)), config, 0, 9).batch_sampler:
        seen += [key.index for key in step_keys]
    assert [sorted(seen[start : start + 6]) for start in (0, 6, 12)] == [list(range(6))] * 3
    assert seen[:6] != seen[6:12]  # in another order


def test_images_stand_still_in_clips_and_videos_give_single_frames(photographs, videos):
    config = load_config("vjepa_tiny", ["data.batch_size=2"])
    (batch,) = collect(training_files(photographs), config, steps=1)
    assert batch.inputs.shape == (2, 8, 64, 64, 3) and torch.equal(batch.inputs[:, 0], batch.inputs[:, 7])
    (batch,) = collect([videos / "whole.mp4"], load_config("ijepa_tiny", SMALL), steps=1)
    assert batch.inputs.shape == (2, 32, 32, 3) and not torch.equal(batch.inputs[0], batch.inputs[1])


def test_videos_kept_in_memory_give_the_same_batches(videos):
    files = training_files(videos)
    decoded, kept = (
        collect(files, load_config("vjepa_tiny", ["data.batch_size=4", f"data.in_memory={word}"]), steps=3)
        for word in ("false", "true")
    )
    for batch, same in zip(decoded, kept, strict=True):
        assert_equal_batches(batch, same)
        assert batch.skipped.keys() == same.skipped.keys()
    assert len({reason for batch in kept for reason in batch.skipped.values()}) == 3  # broken, no video, too short
    path = videos / "whole.mp4"
    whole = WholeVideo.read(path)
    assert torch.equal(whole.random_clip(2, 1, lambda count: 3, fps=4), random_clip(path, 2, 1, lambda count: 3, fps=4))


def test_unreadable_videos_are_replaced_and_told(videos):
    config = load_config("vjepa_tiny", ["data.batch_size=4"])
    first, second = collect(training_files(videos), config, steps=2)
    assert first.inputs.shape == (4, 8, 64, 64, 3) and not first.error
    skipped = {**first.skipped, **second.skipped}
    assert {path.rsplit("/")[-1] for path in skipped} == {"broken.mp4", "text.mp4", "short.mp4"}
    assert "3 frames, too few" in skipped[str(videos / "short.mp4")]
    (batch,) = collect([videos / "broken.mp4"], config, steps=1)
    assert "could not be read" in batch.error and "broken.mp4" in batch.error

"""`jepa-kernels surprise` and `surprise-clips`: what they write, and the mistakes that end with code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from jepa_kernels import cli
from jepa_kernels.data import iterate_clips
from jepa_kernels.surprise import Windows, surprise
from jepa_kernels.surprise.command import load_trained

TINY = [
    "model.encoder_depth=1",
    "model.pred_depth=1",
    "optimization.iterations_per_epoch=1",
    "data.batch_size=2",
    "model.img_size=16",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, pairs, and a model that was trained on the clips for two steps."""
    folder = tmp_path_factory.mktemp("surprise")
    clips = ["surprise-clips", str(folder / "train"), "--count", "3", "--size", "16"]
    assert cli.main(clips) == 0
    assert (
        cli.main(["surprise-clips", str(folder / "pairs"), "--count", "1", "--pairs", "--size", "16", "--first-seed", "9"]) == 0
    )
    settings = [word for setting in TINY for word in ("--set", setting)]
    training = ["train", "--config", "vjepa2_surprise", "--data", str(folder / "train"), "--output", str(folder / "run")]
    assert cli.main([*training, *settings, "--stop-after", "2", "--device", "cpu"]) in (0, 130)
    return folder


def test_a_video_is_scored_and_plotted(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, checkpoint = run / "pairs" / "vanish_000009_impossible.mkv", run / "run" / "checkpoint.pt"
    output = tmp_path / "deep" / "out"
    command = ["surprise", str(video), "--checkpoint", str(checkpoint), "--output", str(output), "--device", "cpu"]
    assert cli.main(command) == 0
    assert "12 windows of 10 frames" in capsys.readouterr().out
    found = json.loads((output / "surprise.json").read_text())
    (frames,) = iterate_clips(video, 32, size=16)
    model, windows = load_trained(checkpoint)
    assert windows == Windows((6,), 10)  # what vjepa2_surprise trains on
    expected = surprise(model, frames, windows)
    assert found["starts"] == expected.starts and found["contexts"] == [6]
    torch.testing.assert_close(torch.tensor(found["scores"]), expected.scores)
    assert found["max"]["filtered"] == max(found["filtered"]) and found["mean"]["6"] == pytest.approx(expected.of_clip("mean", 6))
    with Image.open(output / "surprise.png") as picture:
        assert picture.size == (800, 400) and len(picture.convert("RGB").getcolors(1 << 20) or []) > 10
    other = ["--frame-step", "2", "--contexts", "4,2", "--window", "8", "--stride", "4"]
    assert cli.main([*command, *other]) == 0  # 16 of the 32 frames
    found = json.loads((output / "surprise.json").read_text())
    torch.testing.assert_close(torch.tensor(found["scores"]), surprise(model, frames[::2], Windows((4, 2), 8, 4)).scores)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--contexts", "2,x"], "--contexts must be numbers of frames"),
        (["--contexts", "3"], "contexts must be multiples of 2 frames"),
        (["--window", "16"], "at most the 10"),
        (["--window", "0"], "got 0"),
        (["--stride", "1"], "the stride must be a multiple"),
        (["--frame-step", "0"], "--frame-step must be at least 1; got 0"),
        (["--frame-step", "4"], "the clip has 8 frames, less than one window of 10"),
        (["--checkpoint", "none.pt"], "none.pt does not exist"),
        (["--checkpoint", "README"], "cannot be read as a checkpoint"),
        (["--output", "README"], "is a file; give a folder"),
    ],
)
def test_mistakes_end_with_code_2(
    run: Path, tmp_path: Path, change: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README").write_text("no checkpoint")
    video, checkpoint = run / "train" / "possible_000000.mkv", run / "run" / "checkpoint.pt"
    command = ["surprise", str(video), "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*command, *(str(tmp_path / word) if word == "README" else word for word in change)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "forecasts, windows",
    [
        ([], Windows()),  # trained on blocks: as published
        ([[6, 4]], Windows((6,), 10, 2)),
        ([[4, 2]], Windows((4,), 6, 2)),  # frames behind what was predicted were in no loss
        ([[2, 2], [6, 4], [8, 2]], Windows((6, 8), 10, 2)),
    ],
)
def test_windows_are_the_longest_forecasts_of_training(run: Path, tmp_path: Path, forecasts: list, windows: Windows) -> None:
    found = torch.load(run / "run" / "checkpoint.pt", weights_only=True)
    found["config"]["masks"]["forecasts"] = forecasts
    torch.save(found, tmp_path / "trained.pt")
    assert load_trained(tmp_path / "trained.pt")[1] == windows


def test_other_mistakes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(run / "run" / "checkpoint.pt")
    assert cli.main(["surprise", "none.mp4", "--checkpoint", checkpoint, "--output", str(tmp_path)]) == 2
    assert "none.mp4 is not a file" in capsys.readouterr().err
    found = torch.load(checkpoint, weights_only=True)
    for config, words in ((None, "tells no configuration"), ("vjepa", "is of the family vjepa; surprise needs")):
        other = {key: value for key, value in found.items() if key != "config"}
        if config is not None:
            other["config"] = {**found["config"], "model": {**found["config"]["model"], "family": config}}
        torch.save(other, tmp_path / "other.pt")
        command = ["surprise", "none.mp4", "--checkpoint", str(tmp_path / "other.pt"), "--output", str(tmp_path)]
        assert cli.main(command) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["surprise-clips", str(tmp_path / "clips"), "--count", "0"]) == 2
    assert "the number of clips must be at least 1; got 0" in capsys.readouterr().err

"""`--input` takes a video, an image or a folder of them, and says in one line why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jepa_kernels import cli
from jepa_kernels.bench.errors import BenchInputError
from jepa_kernels.bench.video import SIZE, load_clip

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")


def _video(path: Path, frames: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (32, 32), (90, 90, 90)))))
        container.mux(stream.encode())
    return path


def _image(path: Path) -> Path:
    Image.new("RGB", (60, 40), (10, 200, 30)).save(path)
    return path


def test_a_video(tmp_path: Path) -> None:
    clip = load_clip(_video(tmp_path / "a.mkv", 3))
    assert clip.frames.shape == (3, SIZE, SIZE, 3) and clip.source == "a.mkv"


def test_an_image_repeats(tmp_path: Path) -> None:
    clip = load_clip(_image(tmp_path / "a.png"))
    assert clip.frames.shape == (1, SIZE, SIZE, 3) and clip.source == "a.png"
    cut = clip.cut(batch=2, frames=4, size=16)
    assert cut.shape == (2, 4, 16, 16, 3) and torch.equal(cut, torch.tensor([10, 200, 30]).byte().expand_as(cut))


def test_a_folder_gives_its_first_readable_file(tmp_path: Path) -> None:
    folder = tmp_path / "pixels"
    folder.mkdir()
    (folder / "a.mp4").write_text("this is no video")
    _video(folder / "b.mkv", 2)
    _image(folder / "c.png")
    clip = load_clip(folder)
    assert clip.frames.shape[0] == 2 and clip.source == str(Path("pixels", "b.mkv"))


def test_nothing_readable_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BenchInputError, match="holds no video and no image"):
        load_clip(tmp_path)
    (tmp_path / "a.png").write_text("this is no image")
    with pytest.raises(BenchInputError, match=r"^input: .*a\.png cannot be read as an image") as error:
        load_clip(tmp_path)
    (tmp_path / "b.mp4").write_text("this is no video")
    with pytest.raises(BenchInputError, match=r"^input: none of the 2 files in .* the first: .*a\.png") as error:
        load_clip(tmp_path)
    assert "\n" not in str(error.value)


def test_command_line_says_so_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nowhere"
    assert cli.main(["bench", "run", "--quick", "--input", str(missing), "--output", str(tmp_path / "runs")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and f"{missing} does not exist; give a video, an image, or a folder of them" in lines[0]

"""A folder of real photographs, settings small enough for a test, and a way to run the command in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_helpers import SMALL

from jepa_kernels import cli


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Matrices this small gain nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """Six photographs that come with scikit-image, as files."""
    data = pytest.importorskip("skimage.data")
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "coffee", "chelsea", "rocket", "coins", "camera"):
        image.fromarray(getattr(data, name)()).reduce(2).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """The sample video, a part of it that breaks off, a file that is no video, and one that is too short."""
    av = pytest.importorskip("av")
    pytest.importorskip("skimage")
    from jepa_kernels.data import sample_video

    folder = tmp_path_factory.mktemp("videos")
    whole = sample_video(folder).rename(folder / "whole.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "text.mp4").write_text("no video")
    with av.open(str(folder / "short.mp4"), mode="w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode())
    return folder


@pytest.fixture
def command(capsys):
    """Runs `jepa-kernels ...` and returns its exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def train(command):
    """Trains a small model, by default the image model; further settings win over the small ones."""

    def run(data: Path, output: Path, *options: object, config: str = "ijepa_tiny", settings: tuple[str, ...] = ()):
        sets = [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
        return command("train", "--config", config, "--data", data, "--output", output, *sets, *options)

    return run

"""Decoding gives the frames that were asked for, and every unusable file ends in one clear line."""

import re
import shutil

import pytest
import torch

from jepa_kernels.data import DataError, open_clips, read_image, read_video, sample_video

av = pytest.importorskip("av")
pytest.importorskip("PIL")
pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return sample_video(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def indexed_first(sample, tmp_path_factory):
    """The sample with its index before the pictures, as videos for streaming have it: it opens even when cut."""
    path = tmp_path_factory.mktemp("video") / "faststart.mp4"
    with av.open(str(sample)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    return path


def counting_video(path, frames, width=48, height=32):
    """Frame i is a grey of value 4 * i, coded without loss: what is decoded tells which frame it was."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            grey = torch.full((height, width, 3), 4 * index, dtype=torch.uint8).numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def frame_numbers(clip):
    return (clip.float().mean(dim=(1, 2, 3)) / 4).round().int().tolist()


def message_of(error):
    text = str(error.value)
    assert "\n" not in text
    assert error.value.__cause__ is None and error.value.__suppress_context__ or error.value.__context__ is None
    return text


def test_sample_is_made_once(sample):
    before = sample.stat().st_mtime_ns
    assert sample_video(sample.parent) == sample and sample.stat().st_mtime_ns == before
    assert [entry.name for entry in sample.parent.iterdir()] == [sample.name]  # no temporary file stays


def test_sample_goes_to_the_cache_directory(monkeypatch, tmp_path, sample):
    # A copy instead of a second encoding: the path is what is under test.
    (tmp_path / "jepa-kernels").mkdir()
    shutil.copy(sample, tmp_path / "jepa-kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sample_video() == tmp_path / "jepa-kernels" / sample.name


def test_sample_has_its_promised_size_and_moves(sample):
    clip = read_video(sample, num_frames=4, frame_step=60, size=None)
    assert clip.shape == (4, 256, 384, 3) and clip.dtype == torch.uint8
    assert clip.float().std() > 30  # a photograph, not a blank
    assert ((clip[1:].float() - clip[:-1].float()).abs().mean(dim=(1, 2, 3)) > 5).all()


def test_sample_in_an_unwritable_place(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError) as error:
        sample_video(blocked)
    assert str(blocked) in message_of(error) and "cache_dir=" in str(error.value)


def test_read_video_takes_every_step_th_frame(tmp_path):
    path = counting_video(tmp_path / "count.mkv", 40)
    clip = read_video(path, num_frames=5, frame_step=3, size=None, start=2)
    assert frame_numbers(clip) == [2, 5, 8, 11, 14]
    assert clip.shape == (5, 32, 48, 3) and clip.is_contiguous()


def test_read_video_resizes_and_crops(tmp_path, sample):
    assert read_video(sample, num_frames=2, size=64).shape == (2, 64, 64, 3)
    whole, cropped = (read_video(sample, num_frames=1, size=size)[0] for size in (None, 256))
    assert torch.equal(cropped, whole[:, 64:320])  # 256 is its height: nothing to resize
    assert read_video(counting_video(tmp_path / "small.mkv", 2), 1, size=50).shape == (1, 50, 50, 3)


def test_open_clips_of_a_file_are_consecutive(tmp_path):
    path = counting_video(tmp_path / "count.mkv", 40)
    numbers = [frame_numbers(clip) for clip in open_clips(path, num_frames=3, frame_step=4, size=16)]
    assert numbers == [[0, 4, 8], [9, 13, 17], [18, 22, 26], [27, 31, 35]]


def test_open_clips_of_a_folder_go_in_path_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, frames in (("b.mkv", 5), ("a.mkv", 9), ("sub/c.MKV", 4)):
        counting_video(tmp_path / name, frames)
    (tmp_path / "notes.txt").write_text("not a video")
    clips = list(open_clips(tmp_path, num_frames=4, size=16))
    assert [frame_numbers(clip) for clip in clips] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_an_image_is_a_clip_of_equal_frames(tmp_path):
    from PIL import Image

    path = tmp_path / "wide.JPG"
    Image.effect_noise((60, 40), 50).convert("RGB").save(path)
    (clip,) = open_clips(path, num_frames=3, frame_step=5, size=32)
    assert clip.shape == (3, 32, 32, 3) and clip.dtype == torch.uint8 and clip.is_contiguous()
    assert all(torch.equal(frame, read_image(path, size=32)) for frame in clip)


def test_open_clips_of_a_folder_takes_videos_and_images(tmp_path):
    from PIL import Image

    counting_video(tmp_path / "b.mkv", 4)
    for name, grey in (("a.png", 40), ("c.webp", 80)):
        Image.new("RGB", (20, 16), (grey, grey, grey)).save(tmp_path / name, lossless=True)
    clips = list(open_clips(tmp_path, num_frames=2, size=16))
    assert [frame_numbers(clip) for clip in clips] == [[10, 10], [0, 1], [2, 3], [20, 20]]
    assert torch.stack(clips).shape == (4, 2, 16, 16, 3)  # what makes a batch


def test_a_bad_image_in_a_folder_ends_the_iteration(tmp_path):
    counting_video(tmp_path / "a.mkv", 2)
    (tmp_path / "b.png").write_text("this is no image")
    clips = open_clips(tmp_path, num_frames=2, size=16)
    assert frame_numbers(next(clips)) == [0, 1]
    with pytest.raises(DataError) as error:
        next(clips)
    assert f"{tmp_path / 'b.png'} cannot be read as an image" in message_of(error)


def test_too_short_names_the_counts(tmp_path):
    path = counting_video(tmp_path / "short.mkv", 12)
    with pytest.raises(DataError) as error:
        read_video(path, num_frames=16, frame_step=4)
    assert re.search(r"short\.mkv has 12 frames.*16 frames every 4.*need 61", message_of(error))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_video_with_its_index_at_the_end(sample, tmp_path, share):
    path = tmp_path / "cut.mp4"
    path.write_bytes(sample.read_bytes()[: int(sample.stat().st_size * share)])
    with pytest.raises(DataError) as error:
        read_video(path)
    assert str(path) in message_of(error) and "download it again" in str(error.value)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_truncated_video_with_its_index_at_the_start(indexed_first, tmp_path, share):
    path = tmp_path / "cut.mp4"
    path.write_bytes(indexed_first.read_bytes()[: int(indexed_first.stat().st_size * share)])
    clips = []
    with pytest.raises(DataError) as error:
        clips.extend(open_clips(path, num_frames=16, size=32))
    assert f"{path} breaks off" in message_of(error)
    assert read_video(path, num_frames=16, size=32).shape == (16, 32, 32, 3)  # what comes before is still good


def test_text_named_mp4(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("this is a text file, whatever its name says\n" * 50)
    with pytest.raises(DataError) as error:
        read_video(path)
    assert f"{path} cannot be read as video" in message_of(error)


def test_file_without_video(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(torch.zeros(1, 800, dtype=torch.int16).numpy(), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="no video stream"):
        read_video(path)


def test_missing_path_and_empty_folder(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_clips(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no video and no image.*\.mp4.*\.png"):
        open_clips(tmp_path)
    with pytest.raises(DataError, match="is not a file"):
        read_video(tmp_path)


@pytest.mark.parametrize("name", ["num_frames", "frame_step", "size"])
def test_counts_below_one_are_named(sample, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        read_video(sample, **{name: 0})
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        open_clips(sample, **{name: 0})


@pytest.mark.parametrize(("module", "package"), [("av", "PyAV"), ("PIL", "Pillow"), ("skimage.data", "scikit-image")])
def test_missing_package_names_the_extra(monkeypatch, tmp_path, module, package):
    monkeypatch.setitem(__import__("sys").modules, module, None)  # how Python marks what cannot be imported
    with pytest.raises(DataError) as error:
        sample_video(tmp_path)
    assert package in message_of(error) and "jepa-kernels[data]" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_read_image(tmp_path):
    from PIL import Image

    path = tmp_path / "wide.png"
    Image.new("RGB", (60, 40), (10, 200, 30)).save(path)
    assert read_image(path, size=None).shape == (40, 60, 3)
    image = read_image(path, size=32)
    assert image.shape == (32, 32, 3) and image.dtype == torch.uint8
    assert image[5, 5].tolist() == [10, 200, 30]


def test_read_image_turns_as_exif_says(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    Image.new("RGB", (60, 40)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg", size=None).shape == (60, 40, 3)


def test_unreadable_images(tmp_path):
    from PIL import Image

    path = tmp_path / "picture.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError) as error:
        read_image(path)
    assert f"{path} cannot be read as an image" in message_of(error)
    with pytest.raises(DataError, match="is not a file"):
        read_image(tmp_path)

"""Configurations: strict, found by name or path, with the published numbers."""

import dataclasses

import pytest
import torch

from jepa_kernels.train import config as configs
from jepa_kernels.train.build import build_sampler
from jepa_kernels.train.config import ConfigError, load_config


@pytest.mark.parametrize("name", configs.packaged_names())
def test_every_packaged_configuration_is_whole(name):
    config = load_config(name)
    assert configs.from_record(configs.as_record(config), name) == config
    assert config.model.family == name.partition("_")[0]
    build_sampler(config)


def test_the_published_numbers():
    image, clip, clip2 = load_config("ijepa_vith14"), load_config("vjepa_vitl16"), load_config("vjepa2_vitl16")
    assert (image.model.encoder, image.model.patch_size, image.data.batch_size) == ("vit_huge", 14, 128)
    assert image.optimization.ema == (0.996, 1.0) and image.optimization.final_weight_decay == 0.4
    assert not image.data.horizontal_flip and image.masks.rectangles.min_keep == 10
    assert (clip.optimization.ipe_scale, clip.optimization.clip_grad, clip.optimization.ema) == (1.25, 10.0, (0.998, 1.0))
    assert [(b.spatial_scale, b.num_blocks) for b in clip.masks.blocks] == [((0.15, 0.15), 8), ((0.7, 0.7), 2)]
    assert clip2.optimization.ema == (0.99925, 0.99925) and clip2.optimization.lr == 5.25e-4
    assert (clip2.data.fps, clip2.model.pred_num_heads, clip2.model.activation_checkpointing) == (4, 12, True)
    assert load_config("vjepa2_vitg16_64f").optimization.schedule == "linear"
    assert load_config("ijepa_vitg16_in22k").model.encoder_heads == 16  # V-JEPA 2's giant has 22


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimization.learning_rate=1e-3", "unknown key optimization.learning_rate"),
        ("optimization.warmup=1", "unknown key optimization.warmup; did you mean optimization.warmup_epochs?"),
        ("model.batch_size=3", "unknown key model.batch_size; did you mean data.batch_size?"),
        ("masks.rectangles.min_kep=3", "unknown key masks.rectangles.min_kep; did you mean masks.rectangles.min_keep?"),
        ("data.batch_size='8'", "data.batch_size must be int; got '8'"),
        ("data.batch_size=0", "data.batch_size must be greater than 0; got 0"),
        ("data.crop_scale=[0.5]", "data.crop_scale must be a list of 2 values"),
        ("data.crop_scale=[0.5, 0.2]", "data.crop_scale must satisfy"),
        ("optimization.ema=[1, true]", "optimization.ema[1] must be float; got True"),
        ("run.dtype='float16'", "run.dtype must be one of bfloat16, float32; got 'float16'"),
        ("model.family='simclr'", "model.family must be one of ijepa, lejepa, dino, vicreg, mae, vjepa, vjepa2, vjepa21, "),
        ("model.num_frames=4", "model.num_frames is 1 for ijepa"),
        ("model=3", "model must be a table"),
        ("masks.forecasts=[[2, 2]]", "masks.forecasts is for vjepa, vjepa2, vjepa21"),
        ("run.dtype=bfloat16", "strings need quotes"),
    ],
)
def test_a_bad_setting_is_named(setting, message):
    with pytest.raises(ConfigError) as caught:
        load_config("ijepa_tiny", [setting])
    assert message in str(caught.value)


def test_a_missing_file_or_name_tells_what_there_is(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'vjepa2_tiny'"):
        load_config("vjepa2_tyni")
    with pytest.raises(ConfigError, match=r"ijepa_tny.toml cannot be read: .*did you mean 'ijepa_tiny'"):
        load_config(tmp_path / "ijepa_tny.toml")
    (tmp_path / "half.toml").write_text('[model]\nfamily = "ijepa"\n')
    with pytest.raises(ConfigError, match="data, optimization must be given"):
        load_config(tmp_path / "half.toml")


def test_a_file_is_read_by_its_path(tmp_path):
    text = (configs.importlib.resources.files("jepa_kernels.train.configs") / "vjepa_tiny.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("seed = 0", "seed = 12"))
    assert load_config(tmp_path / "mine.toml").run.seed == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["masks.rectangles.min_keep=60"], "cannot hold more than min_keep = 60"),
        (["masks.keep='budget'", "masks.budget=[[60, 5]]"], "lower the budget"),
        (["masks.keep='budget'", "masks.budget=[[5, 5], [5, 5]]"], "one pair"),
        (["model.img_size=50"], "height = 50 is not a multiple of patch_size = 4"),
    ],
)
def test_masks_that_leave_no_context_are_told_before_the_first_step(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_sampler(load_config("ijepa_tiny", settings))


def test_forecasts_take_the_place_of_blocks():
    config = load_config("vjepa2_tiny", ["masks.forecasts=[[4, 2], [2, 2]]"])
    seen, unseen = build_sampler(config).draw(0, [torch.Generator()] * 2)
    frame = (config.model.img_size // config.model.patch_size) ** 2
    assert [mask.shape for mask in [*seen, *unseen]] == [(2, 2 * frame), (2, frame), (2, frame), (2, frame)]
    with pytest.raises(ConfigError, match="1 or more each and 4 together at most"):
        build_sampler(load_config("vjepa2_tiny", ["masks.forecasts=[[6, 4]]"]))
    with pytest.raises(ConfigError, match='with masks.keep = "batch"'):
        load_config("vjepa2_tiny", ["masks.forecasts=[[4, 2]]", "masks.keep='ragged'"])
    with pytest.raises(ConfigError, match="leave out masks.budget"):
        load_config("vjepa2_tiny", ["masks.forecasts=[[4, 2]]", "masks.budget=[[4, 2]]"])


def test_blocks_that_cover_the_clip_are_told():
    config = load_config("vjepa_tiny")
    block = dataclasses.replace(config.masks.blocks[0], spatial_scale=(1.0, 1.0), aspect_ratio=(1.0, 1.0))
    config = dataclasses.replace(config, masks=dataclasses.replace(config.masks, blocks=(block,)))
    with pytest.raises(ConfigError, match="left no context"):
        build_sampler(config)

"""LeJEPA, DINO, VICReg, MAE and VideoMAE by the training command: whole runs, going on, out again, and their views."""

import json

import pytest
import torch
from train_helpers import assert_bit_equal, load

from jepa_kernels.train import metrics
from jepa_kernels.train.colour import recoloured
from jepa_kernels.train.config import ConfigError, load_config
from jepa_kernels.train.dataset import generator_of
from jepa_kernels.train.views import make_views

VIEWS = ("head.hidden_dim=32", "head.out_dim=16", "head.sigreg_slices=16", "head.prototypes=32", "data.batch_size=8")
CLIP = ("model.patch_size=8", "model.num_frames=4", "data.batch_size=2")
RUNS = {
    "lejepa_tiny": (VIEWS, {"prediction", "sigreg", "embedding_std"}, "projector"),
    "dino_tiny": (VIEWS, {"teacher_entropy", "teacher_divergence", "momentum"}, "head"),
    "vicreg_tiny": (VIEWS, {"invariance", "variance", "covariance", "embedding_std"}, "projector"),
    "mae_tiny": (("data.batch_size=8",), {"prediction_std", "context_tokens"}, "decoder"),
    "videomae_tiny": (CLIP, {"prediction_std", "target_tokens"}, "decoder"),
}


def lines(folder):
    return [json.loads(line) for line in (folder / metrics.FILE).read_text().splitlines()]


@pytest.mark.parametrize("config", RUNS)
def test_a_run_stops_goes_on_bit_for_bit_and_comes_out_again(config, train, command, photographs, videos, tmp_path):
    settings, told, head = RUNS[config]
    data = videos if config == "videomae_tiny" else photographs
    code, out, err = train(data, tmp_path / "whole", config=config, settings=settings)
    assert code == 0 and "done after step 12" in out, err
    records = lines(tmp_path / "whole")
    assert records[-1]["step"] == 12 and told | {"effective_rank", "feature_std"} <= records[-1].keys()
    assert ("momentum" in records[-1]) == (config == "dino_tiny")
    if config != "dino_tiny":  # whose loss rises first, until the centre has settled
        assert sum(r["loss"] for r in records[-3:]) < sum(r["loss"] for r in records[:3])

    assert train(data, tmp_path / "parts", "--stop-after", 5, config=config, settings=settings)[0] == 0
    assert train(data, tmp_path / "parts", "--resume", config=config, settings=settings)[0] == 0
    whole, parts = load(tmp_path / "whole"), load(tmp_path / "parts")
    assert_bit_equal(whole, parts)
    assert [r["loss"] for r in records] == [r["loss"] for r in lines(tmp_path / "parts")]

    pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    output, checkpoint = tmp_path / "part.safetensors", tmp_path / "whole" / "checkpoint.pt"
    code, out, _ = command("export", "--checkpoint", checkpoint, "--output", output)
    name = "target_encoder" if config == "dino_tiny" else "encoder"
    assert code == 0 and f"tensors of {name} written" in out
    assert_bit_equal(load_file(output), whole[name])
    assert command("export", "--checkpoint", checkpoint, "--output", output, "--part", head)[0] == 0
    assert_bit_equal(load_file(output), whole[head])


def test_the_probe_reads_an_objective_without_a_target(train, command, photographs, tmp_path):
    assert train(photographs, tmp_path / "run", "--stop-after", 1, config="mae_tiny")[0] == 0
    for name in ("one", "two"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number, file in enumerate(sorted(photographs.iterdir())[:3]):
            (tmp_path / "classes" / name / f"{number}.png").write_bytes(file.read_bytes())
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    code, out, _ = command("probe", "--checkpoint", checkpoint, "--data", tmp_path / "classes")
    assert code == 0 and "2 classes" in out
    code, _, err = command("probe", "--checkpoint", checkpoint, "--data", tmp_path / "classes", "--part", "target_encoder")
    assert code == 2 and "has no 'target_encoder'; it has encoder, decoder" in err


def test_bfloat16_and_dynamic_tanh(train, photographs, tmp_path):
    settings = (*VIEWS, 'run.dtype="bfloat16"', 'model.normalization="dynamic_tanh"', "optimization.clip_grad=1.0")
    assert train(photographs, tmp_path / "run", config="dino_tiny", settings=settings)[0] == 0
    assert "blocks.0.norm1.alpha" in load(tmp_path / "run")["target_encoder"]
    assert torch.isfinite(torch.tensor(lines(tmp_path / "run")[-1]["loss"]))


def picture(size=64):
    rows = torch.arange(size * size * 3, dtype=torch.float32).view(size, size, 3)
    return ((rows.sin() * 0.5 + 0.5) * 255).to(torch.uint8)


def test_views_have_their_sizes_and_depend_on_the_generator_alone():
    config = load_config("dino_tiny")
    image = picture()[None]
    found = make_views(image, config, generator_of(1))
    assert [tuple(view.shape) for view in found] == [(32, 32, 3)] * 2 + [(16, 16, 3)] * 2
    assert all(view.dtype == torch.uint8 for view in found) and not torch.equal(found[0], found[1])
    assert all(torch.equal(a, b) for a, b in zip(found, make_views(image, config, generator_of(1)), strict=True))
    assert not torch.equal(found[0], make_views(image, config, generator_of(2))[0])


def colour(image, seed=0, jitter=(0.0, 0.0, 0.0, 0.0), **probabilities):
    chances = {"jitter_probability": 1.0, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0, **probabilities}
    return recoloured(image, jitter, generator=torch.Generator().manual_seed(seed), **chances)


def test_each_colour_change_is_what_it_says():
    image = picture()
    assert torch.equal(colour(image, jitter_probability=0.0), image)
    # Strengths of nothing: but for the way to hue and back, which rounds.
    assert (colour(image).int() - image.int()).abs().float().mean() < 3
    grey = colour(image, jitter_probability=0.0, grayscale=1.0)
    luma = (image.float() @ torch.tensor([0.299, 0.587, 0.114])).round()
    assert torch.equal(grey[..., 0], grey[..., 1]) and (grey[..., 0] - luma).abs().max() <= 1
    inverted = colour(image, jitter_probability=0.0, solarize=1.0)
    assert torch.equal(inverted, torch.where(image < 128, image, 255 - image))
    blurred = colour(image, jitter_probability=0.0, blur=1.0)
    assert blurred.float().std() < 0.9 * image.float().std()


@pytest.mark.parametrize("which", range(4))
def test_jitter_changes_one_quality_by_up_to_its_strength(which):
    image = picture(16)
    strengths = tuple(0.5 if place == which else 0.0 for place in range(4))
    plain = colour(image).float()
    ratios = []
    for seed in range(40):
        changed = colour(image, seed, jitter=strengths).float()
        if which == 0:
            ratios.append(float(changed.mean() / plain.mean()))
        elif which == 1:
            ratios.append(float(changed.std() / plain.std()))
        elif which == 2:
            spread = (changed.amax(-1) - changed.amin(-1)).mean() / (plain.amax(-1) - plain.amin(-1)).mean()
            ratios.append(float(spread))
        else:
            assert (changed.amax(-1) - plain.amax(-1)).abs().mean() < 4  # the value stays, whatever the hue
            ratios.append(float((changed - plain).abs().mean()))
    found = torch.tensor(ratios)
    if which < 3:  # clipping at 255 keeps the top below 1.5
        assert 0.45 < found.min() < 0.65 and 1.1 < found.max() < 1.55
    else:
        assert found.min() < 30 and found.max() > 50


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("lejepa_tiny", "views.local_crops=-1", "views.global_crops must be at least 1"),
        ("lejepa_tiny", "views.local_size=30", "views.local_size must be a multiple of model.patch_size = 4; got 30"),
        ("dino_tiny", "views.local_scale=[0.5, 0.2]", "views.local_scale must satisfy"),
        ("dino_tiny", "views.blur=[0.0, 2.0, 0.0]", "views.blur must lie in [0, 1]"),
        ("vicreg_tiny", "views.local_crops=2", "VICReg compares two views"),
        ("vicreg_tiny", "run.distributed='fsdp2'", "run.distributed must be one of ddp; got 'fsdp2'"),
        ("mae_tiny", "model.num_frames=4", "model.num_frames is 1 for"),
        ("mae_tiny", "model.normalization='batch'", "model.normalization must be one of layer_norm, dynamic_tanh"),
    ],
)
def test_a_bad_setting_is_named(name, setting, message):
    with pytest.raises(ConfigError) as caught:
        load_config(name, [setting])
    assert message in str(caught.value)


def test_a_ratio_that_hides_nothing_ends_before_the_first_step(train, photographs, tmp_path):
    code, _, err = train(photographs, tmp_path, config="mae_tiny", settings=("masks.ratio=0.999",))
    assert code == 2 and "masks: ratio must keep and hide at least one of 64 places" in err

"""The modules hand their pixel statistics on as they were given."""

from __future__ import annotations

import pytest
import torch

import jepa_kernels as jk
from jepa_kernels.nn import PatchEmbed, PatchEmbed3D

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.mark.parametrize("kind", [PatchEmbed, PatchEmbed3D])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_conversion_keeps_the_normalisation(kind, dtype):
    module = kind(patch_size=8, embed_dim=16, mean=MEAN, std=STD).to(dtype)
    size = (2, 3, 8, 16) if kind is PatchEmbed else (2, 3, 2, 8, 16)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8)
    want = jk.patch_embed(pixels, module.proj.weight, module.proj.bias, mean=MEAN, std=STD)
    assert torch.equal(module(pixels), want) and want.dtype == dtype
    rounded = [torch.tensor(value).bfloat16().float().tolist() for value in (MEAN, STD)]
    assert not torch.equal(
        jk.patch_embed(pixels, module.proj.weight, module.proj.bias, mean=rounded[0], std=rounded[1]), want
    )


def test_floating_point_pixels_are_taken_as_normalised():
    module = PatchEmbed(patch_size=8, embed_dim=16, mean=MEAN, std=STD)
    pixels = torch.rand(1, 3, 8, 8)
    assert torch.equal(module(pixels), jk.patch_embed(pixels, module.proj.weight, module.proj.bias))


def test_state_dict_has_the_official_keys():
    assert set(PatchEmbed3D(mean=MEAN, std=STD).state_dict()) == {"proj.weight", "proj.bias"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_in_one_graph():
    module = PatchEmbed(patch_size=8, embed_dim=16, mean=MEAN, std=STD)
    pixels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(pixels), module(pixels))


def test_bad_statistics_are_refused_at_construction():
    with pytest.raises(ValueError, match=r"std\[1\] is 0.0; give positive finite values"):
        PatchEmbed(std=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"mean has shape \(1,\); expected \(3,\)"):
        PatchEmbed3D(mean=(1.0,))

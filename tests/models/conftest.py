"""A model and masks small enough for a CPU, shared by the tests of the models."""

import pytest
import torch

from jepa_kernels.masks import MultiBlockMask3D
from jepa_kernels.models import build_vjepa2

FRAMES, SIZE = 8, 64  # 4 x 4 x 4 = 64 tokens


def small_model(seed=0, **overrides):
    settings = {"img_size": SIZE, "num_frames": FRAMES, "pred_depth": 2, "pred_embed_dim": 96, "pred_num_heads": 3}
    return build_vjepa2("vit_tiny", **{**settings, "encoder": {"depth": 3}, "seed": seed, **overrides})


def small_masks(batch_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return MultiBlockMask3D.from_clip(FRAMES, SIZE, generator=generator)(batch_size)


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)

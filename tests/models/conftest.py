"""A model and masks small enough for a CPU, shared by the tests of the models."""

import pytest
import torch

from jepa_kernels.masks import MultiBlockMask3D
from jepa_kernels.models import build_vjepa2

FRAMES, SIZE = 8, 64  # 4 x 4 x 4 = 64 tokens


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Matrices this small gain nothing from threads, and wait long for each other's where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_model():
    """Builds the small model: three encoder blocks of width 192 and two predictor blocks of width 96."""

    def make(seed=0, **overrides):
        settings = {"pred_depth": 2, "pred_embed_dim": 96, "pred_num_heads": 3, "encoder": {"depth": 3}}
        return build_vjepa2("vit_tiny", img_size=SIZE, num_frames=FRAMES, seed=seed, **{**settings, **overrides})

    return make


@pytest.fixture(scope="session")
def make_masks():
    """Draws V-JEPA 2's two masks for the small model's clips."""

    def make(batch_size, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return MultiBlockMask3D.from_clip(FRAMES, SIZE, generator=generator)(batch_size)

    return make


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)

"""A predictor of this package and the published one with the same weights, and a world model small enough to run in a test."""

from __future__ import annotations

import pytest
import torch

from integrations.official import vjepa2 as official
from jepa_kernels.models import VisionTransformerPredictorAC
from jepa_kernels.planning import WorldConfig, WorldModel, build_world_model

SIZES = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "predictor_embed_dim": 48, "depth": 2, "num_heads": 2}


@pytest.fixture(params=[False, True], ids=["plain", "extrinsics"])
def extrinsics(request: pytest.FixtureRequest) -> bool:
    return request.param


def pair_of_predictors(
    use_extrinsics: bool = False,
) -> tuple[VisionTransformerPredictorAC, official.VisionTransformerPredictorAC]:
    """Ours, then the published form, loaded strictly from its state dict; weights large enough to matter."""
    published = official.VisionTransformerPredictorAC(**SIZES, num_frames=16, use_extrinsics=use_extrinsics)
    for parameter in published.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = VisionTransformerPredictorAC(**SIZES, use_extrinsics=use_extrinsics)
    ours.load_state_dict(published.state_dict())
    return ours.eval(), published.eval()


@pytest.fixture
def world() -> WorldModel:
    torch.manual_seed(1)
    return build_world_model(WorldConfig.tiny()).eval()

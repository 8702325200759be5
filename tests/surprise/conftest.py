"""A V-JEPA 2 that scores in milliseconds, its weights large enough that predictions differ."""

from __future__ import annotations

import pytest
import torch

from jepa_kernels.models import VJEPA2, build_vjepa2


def tiny_model(use_rope: bool = True) -> VJEPA2:
    sizes = {"depth": 1, "embed_dim": 24, "num_heads": 2, "use_rope": use_rope}
    model = build_vjepa2(
        "vit_tiny", img_size=16, patch_size=8, pred_depth=1, pred_embed_dim=24, pred_num_heads=2, encoder=sizes, seed=0
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in (model.encoder, model.target_encoder, model.predictor):  # the target's weights differ from the encoder's
            for name, parameter in part.named_parameters():
                if "pos_embed" not in name:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def model() -> VJEPA2:
    return tiny_model()


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (31, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))

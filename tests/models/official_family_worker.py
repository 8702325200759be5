"""Worker of test_ijepa_vjepa.py, run inside a checkout of I-JEPA or V-JEPA: one step of theirs and of ours, compared."""

from __future__ import annotations

import copy
import sys
import types

import torch
import torch.nn.functional as F

sys.modules.setdefault("yaml", types.ModuleType("yaml"))  # imported by their helpers, not used here

from jepa_kernels.masks import MultiBlockMask2D, MultiBlockMask3D, RectangleMasks  # noqa: E402
from jepa_kernels.models import build_ijepa, build_vjepa, load_official_checkpoint  # noqa: E402


def ijepa():
    from src.helper import init_model
    from src.masks.multiblock import MaskCollator
    from src.masks.utils import apply_masks
    from src.utils.tensors import repeat_interleave_batch

    encoder, predictor = init_model("cpu", patch_size=8, model_name="vit_tiny", crop_size=64, pred_depth=2, pred_emb_dim=96)
    model = build_ijepa("vit_tiny", img_size=64, patch_size=8, pred_depth=2, pred_embed_dim=96)
    images = torch.randn(3, 3, 64, 64)
    torch.manual_seed(11)
    theirs = MaskCollator(
        (64, 64), 8, enc_mask_scale=(0.85, 1.0), pred_mask_scale=(0.15, 0.2), aspect_ratio=(0.75, 1.5), npred=4, min_keep=4
    )
    _, *official = theirs([torch.zeros(1)] * 3)
    masks = MultiBlockMask2D((8, 8), RectangleMasks(min_keep=4), torch.Generator().manual_seed(11))(3)

    def loss(target):
        h = F.layer_norm(target(images), (192,))
        h = repeat_interleave_batch(apply_masks(h, masks[1]), 3, repeat=1)
        return F.smooth_l1_loss(predictor(encoder(images, masks[0]), *masks), h)

    return encoder, predictor, model, images, masks, official, loss


def jepa():
    from app.vjepa.utils import init_video_model
    from src.masks.multiblock3d import MaskCollator
    from src.masks.utils import apply_masks

    encoder, predictor = init_video_model(
        "cpu", num_frames=4, model_name="vit_tiny", crop_size=64, pred_depth=2, pred_embed_dim=96,
        uniform_power=True, use_mask_tokens=True, zero_init_mask_tokens=False, use_sdpa=True,
    )  # fmt: skip
    model = build_vjepa("vit_tiny", img_size=64, num_frames=4, pred_depth=2, pred_embed_dim=96)
    clips = torch.randn(3, 3, 4, 64, 64)
    torch.manual_seed(11)
    entry = {"aspect_ratio": (0.75, 1.5), "temporal_scale": (1.0, 1.0)}
    theirs = MaskCollator(
        [{**entry, "num_blocks": 8, "spatial_scale": (0.15, 0.15)}, {**entry, "num_blocks": 2, "spatial_scale": (0.7, 0.7)}],
        (64, 64), 4, 16, 2,
    )  # fmt: skip
    _, *official = theirs([torch.zeros(1)] * 3)
    masks = MultiBlockMask3D((2, 4, 4), generator=torch.Generator().manual_seed(11))(3)

    def loss(target):
        h = apply_masks(F.layer_norm(target(clips), (192,)), masks[1], concat=False)
        z = predictor(encoder(clips, masks[0]), h, *masks)
        return sum((a - b).abs().mean() for a, b in zip(z, h, strict=True)) / len(z)

    return encoder, predictor, model, clips, masks, official, loss


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder, predictor, model, inputs, masks, official, loss_of = globals()[sys.argv[1]]()
    for ours, theirs in zip(masks, official, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), "masks"
    parts = {"encoder": encoder, "predictor": predictor}
    load_official_checkpoint(
        model,
        {name: {f"module.{key}": value for key, value in part.state_dict().items()} for name, part in parts.items()},
    )
    target = copy.deepcopy(encoder).requires_grad_(False)
    expected = loss_of(target)
    expected.backward()
    found, _ = model(inputs, *masks)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for name, part in parts.items():
        gradients = {key.removeprefix("backbone."): p.grad for key, p in part.named_parameters()}
        for key, parameter in getattr(model, name).named_parameters():
            wanted = gradients.pop(key)
            assert (wanted is None) == (parameter.grad is None), key
            if wanted is not None:
                assert (parameter.grad - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-8, key
        assert not gradients
    print("equal")


if __name__ == "__main__":
    main()

"""Models of other code bases before and after `jk.patch`, in interleaved rounds: `python benchmarks/drop_in.py [CASE ...]`.

Run it from the root of the source tree: the official training steps are re-creations that live with the tests.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.integrations.official import ijepa, vjepa2
from tests.integrations.official.common import gather_masks

import jepa_kernels as jk

ROUNDS, CALLS = 5, 3
Case = tuple[nn.Module, Callable[[], object]]


def transformers_vjepa2(skip_predictor: bool = False) -> Case:
    """Base size, 16 frames of 128 x 128, bfloat16, inference."""
    import transformers

    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "mlp_ratio": 4}
    config = transformers.VJEPA2Config(crop_size=128, frames_per_clip=16, **sizes)
    model = transformers.VJEPA2Model(config).eval().bfloat16()
    clip = torch.randn(1, 16, 3, 128, 128, dtype=torch.bfloat16)
    return model, torch.inference_mode()(lambda: model(clip, skip_predictor=skip_predictor))


def transformers_ijepa() -> Case:
    """Base size, 2 images of 224 x 224, bfloat16, inference."""
    import transformers

    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    model = transformers.IJepaModel(transformers.IJepaConfig(image_size=224, patch_size=16, **sizes)).eval().bfloat16()
    images = torch.randn(2, 3, 224, 224, dtype=torch.bfloat16)
    return model, torch.inference_mode()(lambda: model(images))


def timm_vit() -> Case:
    """ViT-B/16, 2 images of 224 x 224, bfloat16, inference."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer().eval().bfloat16()
    images = torch.randn(2, 3, 224, 224, dtype=torch.bfloat16)
    return model, torch.inference_mode()(lambda: model(images))


def vjepa2_step(batch: int = 2) -> Case:
    """A training step in the official form: ViT-S encoder, its predictor, clips of 16 x 128 x 128, bf16 autocast, AdamW."""
    sizes = {"img_size": 128, "num_frames": 16, "embed_dim": 384}
    encoder = vjepa2.MultiSeqWrapper(vjepa2.VisionTransformer(**sizes, depth=12, num_heads=6))
    target = copy.deepcopy(encoder).requires_grad_(False)
    predictor = vjepa2.VisionTransformerPredictor(
        **sizes, predictor_embed_dim=384, depth=12, num_heads=12, num_mask_tokens=10
    )
    predictor = vjepa2.PredictorMultiSeqWrapper(predictor)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=1e-4)
    contexts, targets = jk.masks.MultiBlockMask3D((8, 8, 8))(batch)
    clips = [torch.randn(batch, 3, 16, 128, 128)]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                h = [functional.layer_norm(x, (x.shape[-1],)) for x in target(clips)]
            z = predictor(encoder(clips, [contexts]), [contexts], [targets])
            pairs = zip(z[0], targets, strict=True)
            loss = sum((prediction - gather_masks(h[0], [ids])).abs().mean() for prediction, ids in pairs) / len(targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_mul_(list(target.parameters()), 0.999)
            torch._foreach_add_(list(target.parameters()), list(encoder.parameters()), alpha=0.001)

    return nn.ModuleList([encoder, target, predictor]), step


def ijepa_step(width: int = 768, heads: int = 12, batch: int = 4) -> Case:
    """A training step in the official form: 224 x 224, patch 16, four targets, bf16 autocast, AdamW."""
    encoder = ijepa.VisionTransformer(224, 16, width, 12, heads)
    target = copy.deepcopy(encoder).requires_grad_(False)
    predictor = ijepa.VisionTransformerPredictor(196, width, 384, 6, 12)
    trained = [p for module in (encoder, predictor) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    images = torch.randn(batch, 3, 224, 224)

    def draw(tokens: int) -> torch.Tensor:
        return torch.stack([torch.randperm(196)[:tokens].sort()[0] for _ in range(batch)])

    contexts, targets = [draw(70)], [draw(36) for _ in range(4)]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                h = target(images)
                h = gather_masks(functional.layer_norm(h, (h.shape[-1],)), targets)
            loss = functional.smooth_l1_loss(predictor(encoder(images, contexts), contexts, targets), h)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for q, k in zip(encoder.parameters(), target.parameters(), strict=True):
                k.mul_(0.999).add_(q, alpha=0.001)

    return nn.ModuleList([encoder, target, predictor]), step


CASES: dict[str, Callable[[], Case]] = {
    "transformers-vjepa2": transformers_vjepa2,
    "transformers-vjepa2-encoder": lambda: transformers_vjepa2(skip_predictor=True),
    "transformers-ijepa": transformers_ijepa,
    "timm-vit": timm_vit,
    "vjepa2-step": vjepa2_step,
    "ijepa-step-base": ijepa_step,
    "ijepa-step-small": lambda: ijepa_step(384, 6),
    "ijepa-step-small-16": lambda: ijepa_step(384, 6, 16),
    "ijepa-step-base-16": lambda: ijepa_step(768, 12, 16),
}


def measured(case: Case) -> Iterator[tuple[float, float]]:
    """Seconds before and after, a pair for each round."""
    model, run = case
    for _ in range(ROUNDS):
        before = seconds(run)
        report = jk.patch(model)
        if not report.replaced:
            raise RuntimeError(f"nothing was replaced: {report}")
        after = seconds(run)
        if report.fallbacks:
            raise RuntimeError(f"not what this measures: {report.fallbacks}")
        report.undo()
        yield before, after


def seconds(run: Callable[[], object]) -> float:
    """The fastest of a few calls, so that a disturbance of the machine does not decide a round."""
    samples = []
    for _ in range(CALLS):
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return min(samples)


def main(names: list[str]) -> None:
    torch.set_num_threads(2)
    for name in names or list(CASES):
        torch.manual_seed(0)
        before, after = zip(*measured(CASES[name]()), strict=True)
        ratios = sorted(old / new for old, new in zip(before, after, strict=True))
        times = f"{statistics.median(before) * 1e3:7.0f} -> {statistics.median(after) * 1e3:7.0f} ms"
        print(f"{name:28s} {times}   {statistics.median(ratios):.2f}x [{ratios[0]:.2f}, {ratios[-1]:.2f}]", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

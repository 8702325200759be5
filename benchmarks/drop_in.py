"""Models of other code bases before and after `jk.patch`, as cases of the harness.

`jepa-kernels bench run --suite benchmarks/suites/drop_in.toml`, from the root of the source tree: the official training steps are
re-creations of module forms that live with the tests. AdamW, the momentum update and the loss stay as the code bases have them,
written through `.data` where they do that.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.integrations.official import ijepa, vjepa2
from tests.integrations.official.common import gather_masks

import jepa_kernels as jk
from jepa_kernels.bench import work as formulas
from jepa_kernels.bench.cases.base import Case, Provider, Setting, Work
from jepa_kernels.bench.correctness import Tolerance
from jepa_kernels.bench.providers import kernel_providers

OPERATORS = ("patch_embed", "masked_attention")
CHECKED_STEPS = 2
LOW, EXACT = torch.bfloat16, torch.float64


class Built:
    """A model, the call that is timed, calls whose results are checked beside the first, and what `jk.patch` did."""

    def __init__(self, model: nn.Module, run: Callable[[], Tensor], later: Sequence[Callable[[], Tensor]] = ()) -> None:
        self.model, self.run, self.later = model, run, later
        self.report: Any = None


Build = Callable[[torch.dtype], Built]


def transformers_vjepa2(dtype: torch.dtype, skip_predictor: bool = False) -> Built:
    """Base size, 16 frames of 128 x 128, bfloat16, inference."""
    import transformers

    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "mlp_ratio": 4}
    config = transformers.VJEPA2Config(crop_size=128, frames_per_clip=16, **sizes)
    model = transformers.VJEPA2Model(config).eval().bfloat16().to(dtype)
    clip = torch.randn(1, 16, 3, 128, 128).bfloat16().to(dtype)

    def run() -> Tensor:
        out = model(clip, skip_predictor=skip_predictor)
        return out.last_hidden_state if skip_predictor else out.predictor_output.last_hidden_state

    return Built(model, torch.inference_mode()(run))


def transformers_ijepa(dtype: torch.dtype) -> Built:
    """Base size, 2 images of 224 x 224, bfloat16, inference."""
    import transformers

    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    model = transformers.IJepaModel(transformers.IJepaConfig(image_size=224, patch_size=16, **sizes))
    model = model.eval().bfloat16().to(dtype)
    images = torch.randn(2, 3, 224, 224).bfloat16().to(dtype)
    return Built(model, torch.inference_mode()(lambda: model(images).last_hidden_state))


def timm_vit(dtype: torch.dtype) -> Built:
    """ViT-B/16, 2 images of 224 x 224, bfloat16, inference."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer().eval().bfloat16().to(dtype)
    images = torch.randn(2, 3, 224, 224).bfloat16().to(dtype)
    return Built(model, torch.inference_mode()(lambda: model(images)))


def vjepa2_step(dtype: torch.dtype, batch: int = 2) -> Built:
    """A training step in the official form: ViT-S encoder, its predictor, clips of 16 x 128 x 128, bf16 autocast, AdamW."""
    sizes = {"img_size": 128, "num_frames": 16, "embed_dim": 384}
    encoder = vjepa2.MultiSeqWrapper(vjepa2.VisionTransformer(**sizes, depth=12, num_heads=6)).to(_wide(dtype))
    target = copy.deepcopy(encoder).requires_grad_(False)
    predictor = vjepa2.VisionTransformerPredictor(
        **sizes, predictor_embed_dim=384, depth=12, num_heads=12, num_mask_tokens=10
    )
    predictor = vjepa2.PredictorMultiSeqWrapper(predictor).to(_wide(dtype))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    contexts, targets = jk.masks.MultiBlockMask3D((8, 8, 8), generator=generator)(batch)
    clips = [torch.randn(batch, 3, 16, 128, 128).to(_wide(dtype))]

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == LOW):
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
        return loss.detach()

    return Built(nn.ModuleList([encoder, target, predictor]), step, later=[step] * (CHECKED_STEPS - 1))


def ijepa_step(dtype: torch.dtype, width: int = 768, heads: int = 12, batch: int = 4) -> Built:
    """A training step in the official form: 224 x 224, patch 16, four targets, bf16 autocast, AdamW."""
    encoder = ijepa.VisionTransformer(224, 16, width, 12, heads).to(_wide(dtype))
    target = copy.deepcopy(encoder).requires_grad_(False)
    predictor = ijepa.VisionTransformerPredictor(196, width, 384, 6, 12).to(_wide(dtype))
    trained = [p for module in (encoder, predictor) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    images = torch.randn(batch, 3, 224, 224).to(_wide(dtype))

    def draw(tokens: int) -> Tensor:
        return torch.stack([torch.randperm(196)[:tokens].sort()[0] for _ in range(batch)])

    contexts, targets = [draw(70)], [draw(36) for _ in range(4)]

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == LOW):
            with torch.no_grad():
                h = target(images)
                h = gather_masks(functional.layer_norm(h, (h.shape[-1],)), targets)
            loss = functional.smooth_l1_loss(predictor(encoder(images, contexts), contexts, targets), h)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for q, k in zip(encoder.parameters(), target.parameters(), strict=True):
                k.data.mul_(0.999).add_(q.detach().data, alpha=0.001)
        return loss.detach()

    return Built(nn.ModuleList([encoder, target, predictor]), step, later=[step] * (CHECKED_STEPS - 1))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of parameters and pixels: autocast has them in float32."""
    return torch.float32 if dtype == LOW else dtype


def _built(build: Build, seed: int, dtype: torch.dtype = LOW) -> Built:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(dtype)


def _patched(build: Build, seed: int) -> Built:
    built = _built(build, seed)
    built.report = jk.patch(built.model)
    if not built.report.replaced:
        raise RuntimeError(f"nothing was replaced: {built.report}")
    return built


def _outputs(built: Built, first: Tensor) -> list[Tensor]:
    if built.report is not None and built.report.fallbacks:
        raise RuntimeError(f"the model ran its own code instead of the kernels: {built.report.fallbacks}")
    return [torch.stack([first, *(call() for call in built.later)])]


def _results(build: Build, seed: int, dtype: torch.dtype) -> list[Tensor]:
    built = _built(build, seed, dtype)
    return _outputs(built, built.run())


def _providers(build: Build, device: torch.device) -> list[Provider]:
    def run(built: Built) -> Tensor:
        return built.run()

    return [
        *kernel_providers(OPERATORS, device, run, setup=partial(_patched, build), outputs=_outputs, about="after jk.patch"),
        Provider("torch-official", run, partial(_built, build), outputs=_outputs, about="as the code base runs it"),
    ]


def _case(name: str, build: Build, flops: float, moved: float, samples: int, tokens: int) -> Case:
    """`moved`: bytes of the weights that a call reads, or of what optimiser and momentum update read and write."""

    def make_inputs(setting: Setting) -> int:
        return setting.seed

    return Case(
        operator="model",
        name=name,
        dtype="bf16",
        shape={"samples": samples, "tokens": tokens},
        make_inputs=make_inputs,
        providers=partial(_providers, build),
        work=lambda _seed: Work(flops, moved, samples, samples * tokens),
        reference=lambda seed: _results(build, seed, EXACT),
        low_precision=lambda seed: _results(build, seed, LOW),
        peer="torch-official",
        tags=frozenset({"full"}),
        tolerance=Tolerance(floor=2.0**-8),
    )


def _weights(dim: int, depth: int) -> int:
    return 12 * dim * dim * depth


def _step_bytes(encoder: int, predictor: int) -> float:
    """AdamW's 28 bytes a trained weight, the momentum update's 12 a target's."""
    return 28.0 * (encoder + predictor) + 12.0 * encoder


def _inference_flops(samples: int, tokens: int, dim: int, depth: int, predictor_dim: int = 0) -> float:
    flops = formulas.transformer_flops(samples * tokens, samples * tokens**2, dim, depth)
    if predictor_dim:  # all tokens as context, and all as targets
        flops += formulas.transformer_flops(2 * samples * tokens, samples * (2 * tokens) ** 2, predictor_dim, 12)
    return flops


def _ijepa_flops(batch: int, dim: int) -> float:
    """Target encoder on all tokens, context encoder on 70, predictor on 70 + 36 tokens of 4 targets."""
    flops: float = formulas.transformer_flops(batch * 196, batch * 196**2, dim, 12)
    flops += formulas.transformer_flops(batch * 70, batch * 70**2, dim, 12, backward=True)
    return flops + formulas.transformer_flops(4 * batch * 106, 4 * batch * 106**2, 384, 6, backward=True)


def _vjepa2_flops(batch: int) -> float:
    generator = torch.Generator().manual_seed(0)
    contexts, targets = jk.masks.MultiBlockMask3D((8, 8, 8), generator=generator)(batch)
    flops: float = formulas.transformer_flops(batch * 512, batch * 512**2, 384, 12)
    for context, target in zip(contexts, targets, strict=True):
        kept, both = context.shape[1], context.shape[1] + target.shape[1]
        flops += formulas.transformer_flops(batch * kept, batch * kept**2, 384, 12, backward=True)
        flops += formulas.transformer_flops(batch * both, batch * both**2, 384, 12, backward=True)
    return flops


def cases() -> list[Case]:
    """Inference of transformers and timm, and training steps in the official forms."""
    base, small, predictor = _weights(768, 12), _weights(384, 12), _weights(384, 12)
    vjepa2_base, clip = "transformers-vjepa2-vitb-16f-128", (1, 512)
    encoder_only = partial(transformers_vjepa2, skip_predictor=True)
    small_ijepa = partial(ijepa_step, width=384, heads=6, batch=16)
    return [
        _case(vjepa2_base, transformers_vjepa2, _inference_flops(1, 512, 768, 12, 384), 2.0 * (base + predictor), *clip),
        _case(f"{vjepa2_base}-encoder", encoder_only, _inference_flops(1, 512, 768, 12), 2.0 * base, *clip),
        _case("transformers-ijepa-vitb16-b2", transformers_ijepa, _inference_flops(2, 196, 768, 12), 2.0 * base, 2, 196),
        _case("timm-vitb16-b2", timm_vit, _inference_flops(2, 197, 768, 12), 2.0 * base, 2, 197),
        _case("vjepa2-step-vits-16f-128-b2", vjepa2_step, _vjepa2_flops(2), _step_bytes(small, predictor), 2, 512),
        _case("ijepa-step-vitb16-b4", ijepa_step, _ijepa_flops(4, 768), _step_bytes(base, predictor // 2), 4, 196),
        _case("ijepa-step-vits16-b16", small_ijepa, _ijepa_flops(16, 384), _step_bytes(small, predictor // 2), 16, 196),
    ]

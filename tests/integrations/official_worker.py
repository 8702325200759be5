"""Worker of test_official_checkouts.py, run inside a checkout: a training step before and after the patch, or its own tests."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

import jepa_kernels as jk


def stub_imports() -> None:
    """What the models import and these tests do not need, where it is absent: drop_path of timm, rearrange of einops."""
    for name, attribute in (("timm.models.layers", "drop_path"), ("einops", "rearrange")):
        try:
            importlib.import_module(name)
        except Exception:
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                module = types.ModuleType(".".join(parts[:depth]))
                module.__path__ = []
                sys.modules[module.__name__] = module
            setattr(sys.modules[name], attribute, lambda x, *_: x)


def gather(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.gather(x, 1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def ids(tokens: int, total: int) -> torch.Tensor:
    return torch.stack([torch.randperm(total)[:tokens].sort()[0] for _ in range(2)])


def vjepa2() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    encoders = importlib.import_module("src.models.vision_transformer")
    predictors = importlib.import_module("src.models.predictor")
    wrappers = importlib.import_module("src.utils.wrappers")
    sizes = {"img_size": 64, "num_frames": 4, "use_rope": True}
    encoder = encoders.vit_tiny(**sizes)
    predictor = predictors.vit_predictor(
        **sizes, embed_dim=192, predictor_embed_dim=96, depth=2, num_heads=3, use_mask_tokens=True, zero_init_mask_tokens=False
    )
    target = encoders.vit_tiny(**sizes).requires_grad_(False)
    model = nn.ModuleList(
        [wrappers.MultiSeqWrapper(encoder), wrappers.PredictorMultiSeqWrapper(predictor), wrappers.MultiSeqWrapper(target)]
    )
    contexts, targets = [[ids(9, 32), ids(5, 32)]], [[ids(14, 32), ids(20, 32)]]
    clips = [torch.randn(2, 3, 4, 64, 64)]

    def loss() -> torch.Tensor:
        h = functional.layer_norm(model[2](clips)[0], (192,))
        z = model[1](model[0](clips, contexts), contexts, targets)
        return torch.stack([(p - gather(h, t)).abs().mean() for p, t in zip(z[0], targets[0], strict=True)]).mean()

    return model, loss


def vjepa2_ac() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    module = importlib.import_module("src.models.ac_predictor")
    model = module.vit_ac_predictor(
        img_size=64, num_frames=8, embed_dim=96, predictor_embed_dim=96, depth=2, num_heads=3, use_activation_checkpointing=True
    )
    inputs = (torch.randn(2, 3 * 16, 96), torch.randn(2, 3, 7), torch.randn(2, 3, 7))
    return model, lambda: model(*inputs).square().mean()


def jepa() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    encoders = importlib.import_module("src.models.vision_transformer")
    predictors = importlib.import_module("src.models.predictor")
    sizes = {"img_size": 64, "num_frames": 4}
    encoder, target = encoders.vit_tiny(**sizes), encoders.vit_tiny(**sizes).requires_grad_(False)
    predictor = predictors.vit_predictor(
        **sizes, embed_dim=192, predictor_embed_dim=96, depth=2, num_heads=3, use_mask_tokens=True, zero_init_mask_tokens=False
    )
    model = nn.ModuleList([encoder, predictor, target])
    contexts, targets, clips = ids(9, 32), ids(14, 32), torch.randn(2, 3, 4, 64, 64)

    def loss() -> torch.Tensor:
        h = gather(functional.layer_norm(target(clips), (192,)), targets)
        return (predictor(encoder(clips, contexts), h, contexts, targets) - h).abs().mean()

    return model, loss


def ijepa() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    module = importlib.import_module("src.models.vision_transformer")
    encoder, target = module.vit_tiny(img_size=[64]), module.vit_tiny(img_size=[64]).requires_grad_(False)
    predictor = module.vit_predictor(num_patches=16, embed_dim=192, predictor_embed_dim=96, depth=2, num_heads=3)
    model = nn.ModuleList([encoder, predictor, target])
    contexts, targets, images = [ids(6, 16)], [ids(4, 16) for _ in range(4)], torch.randn(2, 3, 64, 64)

    def loss() -> torch.Tensor:
        h = functional.layer_norm(target(images), (192,))
        h = torch.cat([gather(h, mask) for mask in targets])
        return functional.smooth_l1_loss(predictor(encoder(images, contexts), contexts, targets), h)

    return model, loss


def compare(build: Callable[[], tuple[nn.Module, Callable[[], torch.Tensor]]]) -> None:
    torch.manual_seed(0)
    model, loss = build()
    results = []
    for patched in (False, True):
        if patched:
            report = jk.patch(model)
            print(report)
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((value.item(), gradients))
    assert report.replaced and not report.fallbacks, report.fallbacks
    (before, old), (after, new) = results
    assert abs(before - after) <= 1e-5, (before, after)
    assert list(old) == list(new)
    # A bias of the keys has the gradient 0 in exact arithmetic; the floor keeps its rounding noise out of the ratio.
    floor = 1e-3 * max(gradient.abs().max().item() for gradient in old.values())
    for name, gradient in old.items():
        assert (new[name] - gradient).abs().max().item() <= 1e-4 * max(gradient.abs().max().item(), floor), name
    print("equal")


def own_tests(paths: list[str]) -> int:
    """The checkout's tests, with every module that they build patched before its first call."""
    import pytest

    original = nn.Module.__call__
    seen: set[int] = set()

    def patching_call(self: nn.Module, *args: object, **kwargs: object) -> object:
        if id(self) not in seen:
            jk.patch(self)
            seen.update(id(module) for module in self.modules())
        return original(self, *args, **kwargs)

    nn.Module.__call__ = patching_call
    return int(pytest.main(["-x", "-q", *paths]))


if __name__ == "__main__":
    stub_imports()
    if sys.argv[1] == "own-tests":
        sys.exit(own_tests(sys.argv[2:]))
    compare({"vjepa2": vjepa2, "vjepa2-ac": vjepa2_ac, "jepa": jepa, "ijepa": ijepa}[sys.argv[1]])

"""One V-JEPA 2 training step, its optimiser, and the reading of released checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .configs import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY
from .vjepa2 import VJEPA2


def make_optimizer(
    model: VJEPA2,
    lr: float = LEARNING_RATE,
    weight_decay: float = WEIGHT_DECAY,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    **kwargs: Any,
) -> torch.optim.AdamW:
    """AdamW over the encoder and the predictor in the official four groups.

    Their order: encoder and predictor with weight decay, then encoder and predictor without. Biases and all 1-D parameters
    are not decayed; the mask tokens, which are 3-D, are. `kwargs` go to `torch.optim.AdamW` (`fused=True`, ...).

    Example:
        >>> from jepa_kernels.models import build_vjepa2
        >>> model = build_vjepa2("vit_tiny", img_size=32, num_frames=4, pred_depth=1, encoder={"depth": 1})
        >>> [group["weight_decay"] for group in make_optimizer(model).param_groups]
        [0.04, 0.04, 0.0, 0.0]
    """
    halves = [_split(model.encoder), _split(model.predictor)]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay} for decayed, _ in halves]
    groups += [{"params": other, "weight_decay": 0.0} for _, other in halves]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, **kwargs)


def _split(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    decayed: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (other if "bias" in name or parameter.ndim == 1 else decayed).append(parameter)
    return decayed, other


def train_step(
    model: VJEPA2,
    clips: Tensor,
    masks_enc: Iterable[Tensor],
    masks_pred: Iterable[Tensor],
    optimizer: torch.optim.Optimizer,
    momentum: float = MOMENTUM,
    *,
    autocast_dtype: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """One step of V-JEPA 2 pretraining: loss, backward, optimiser, then the target encoder.

    The order is the official one: `optimizer.step()`, `zero_grad()`, EMA, so that the target follows the weights that the
    step has just written.

    Shapes: those of `VJEPA2`; clips and masks move to the model's device. Returns the detached loss of the weights before the
    step, still on the device, and the stats of `VJEPA2`; nothing here waits for the device.

    Dtypes: with `autocast_dtype=torch.bfloat16` the forward pass runs under autocast. There is no gradient scaler: bfloat16
    has the range of float32, and float16, which would need one, is refused.

    Raises:
        ValueError: float16, and whatever `VJEPA2` refuses.

    Deterministic: equal weights, clips and masks give equal steps, as far as the matrix products of the device do.

    Source: V-JEPA 2 (Assran et al., 2025).

    Example:
        >>> from jepa_kernels.models import build_vjepa2
        >>> model = build_vjepa2("vit_tiny", img_size=32, num_frames=4, pred_depth=1, encoder={"depth": 1}, seed=0)
        >>> clips = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
        >>> masks = [torch.tensor([[0, 1, 4]])], [torch.tensor([[2, 7]])]
        >>> loss, stats = train_step(model, clips, *masks, make_optimizer(model))
        >>> bool(loss > 0), loss.requires_grad
        (True, False)
    """
    if autocast_dtype is torch.float16:
        raise ValueError("autocast_dtype=torch.float16 needs a gradient scaler; use torch.bfloat16 or None")
    device = next(model.parameters()).device
    clips = clips.to(device, non_blocking=True)
    context_ids = [ids.to(device, non_blocking=True) for ids in masks_enc]
    target_ids = [ids.to(device, non_blocking=True) for ids in masks_pred]

    with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        loss, stats = model(clips, context_ids, target_ids)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.update_target(momentum)
    return loss.detach(), stats


def load_official_checkpoint(model: VJEPA2, checkpoint: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Load a checkpoint of the official V-JEPA 2 code: its `encoder`, `predictor` and `target_encoder` entries.

    `checkpoint` is what `torch.load(path, map_location="cpu", weights_only=True)` returns; the prefixes `module.` and
    `backbone.` of its wrappers are dropped. Without a `target_encoder` entry the target becomes the encoder.

    Raises:
        ValueError: the encoder's or the predictor's entry is missing.
        RuntimeError: keys or shapes do not fit the model (torch names them).
    """
    for part in ("encoder", "predictor"):
        if part not in checkpoint:
            raise ValueError(f"the checkpoint has no {part!r} entry; it has {', '.join(map(str, checkpoint))}")
    model.encoder.load_state_dict(_bare_keys(checkpoint["encoder"]))
    model.predictor.load_state_dict(_bare_keys(checkpoint["predictor"]))
    model.target_encoder.load_state_dict(_bare_keys(checkpoint.get("target_encoder", checkpoint["encoder"])))


def _bare_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("module.").removeprefix("backbone."): value for key, value in state.items()}

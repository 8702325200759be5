"""One training step of a model of this package, its optimiser, and the reading of released checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import attach_copies
from ..optim import AdamWEMA, EMATarget, parameter_groups
from ..optim.pairing import is_sharded, shadows_of, unwrapped
from .configs import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY
from .vjepa2 import VJEPA2


def make_optimizer(
    model: nn.Module,
    lr: float = LEARNING_RATE,
    weight_decay: float = WEIGHT_DECAY,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    **kwargs: Any,
) -> torch.optim.AdamW:
    """AdamW over the trained modules of a model; of a JEPA in the official four groups.

    Their order: encoder and predictor (or head) with weight decay, then both without. Biases and all 1-D parameters are not
    decayed; the mask tokens, which are 3-D, are. `kwargs` go to `torch.optim.AdamW` (`fused=True`, ...).

    Example:
        >>> from jepa_kernels.models import build_vjepa2
        >>> model = build_vjepa2("vit_tiny", img_size=32, num_frames=4, pred_depth=1, encoder={"depth": 1})
        >>> [group["weight_decay"] for group in make_optimizer(model).param_groups]
        [0.04, 0.04, 0.0, 0.0]
    """
    return torch.optim.AdamW(_official_groups(model, weight_decay), lr=lr, betas=betas, eps=eps, **kwargs)


def make_adamw_ema(
    model: nn.Module,
    lr: float | Tensor = LEARNING_RATE,
    weight_decay: float = WEIGHT_DECAY,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    *,
    momentum: float | Callable[[int], float] = MOMENTUM,
    shadow_dtype: torch.dtype | None = torch.bfloat16,
    narrow_gradients: bool | None = None,
    **kwargs: Any,
) -> AdamWEMA:
    """`jk.AdamWEMA` over the groups of `make_optimizer`: it also moves the target, if any, and writes low-precision weights.

    The target keeps the values it has. `momentum` is a number or a function of the step number (`jk.optim.LinearMomentum`);
    the one that `train_step` is given takes its place. With `shadow_dtype` every `jk.nn.Linear` of the networks gets
    copies of its weights in that dtype, which the step writes and forward passes under autocast read, in place of a cast each;
    2 bytes a parameter. `shadow_dtype=None`, and models sharded by FSDP2 (whose `MixedPrecisionPolicy` casts), keep no copies.

    A weight's gradient through its copy is a sum in float32, rounded once to `shadow_dtype`, as under autocast. With
    `narrow_gradients` it stays in that dtype (the parameter's `grad_dtype` becomes None) and the step reads it so: the same
    numbers, without 6 bytes a parameter of casting. Choose False to add up several backward passes before a step, in float32.
    None means True unless `torch.distributed` is in use, whose gradient buckets have the parameters' dtype.

    `kwargs` go to `jk.AdamWEMA` (`max_grad_norm`, `capturable`, ...).

    Call it when the model is on its device, and before or after wrapping it with DDP; after `fully_shard`.

    Raises:
        ValueError: what `jk.AdamWEMA` and `jk.EMATarget` refuse.

    Example:
        >>> from jepa_kernels.models import build_vjepa2
        >>> model = build_vjepa2("vit_tiny", img_size=32, num_frames=4, pred_depth=1, encoder={"depth": 1})
        >>> optimizer = make_adamw_ema(model, max_grad_norm=1.0)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.04, 0.04, 0.0, 0.0]
    """
    inner: Any = unwrapped(model)
    keeps = shadow_dtype is not None and not is_sharded(inner)
    pair, target = inner.pair(), None
    if pair is not None:
        kept = shadow_dtype if keeps else None
        target = EMATarget(pair[0], momentum, target=pair[1], overwrite=False, shadow_dtype=kept)
    shadows: dict[Tensor, Tensor] = {}
    if keeps:
        assert shadow_dtype is not None
        for module in inner.trained():
            shadows |= attach_copies(module, shadow_dtype)
        if target is not None:
            assert target.shadow is not None
            attach_copies(target.module, shadow_dtype, shadows_of(target.module, target.shadow))
        if narrow_gradients or (narrow_gradients is None and not _distributed()):
            for parameter in shadows:
                parameter.grad_dtype = None
    groups = _official_groups(inner, weight_decay)
    return AdamWEMA(groups, lr, betas, eps, target=target, shadows=shadows, **kwargs)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _official_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    inner: Any = unwrapped(model)
    return parameter_groups(inner.trained(), weight_decay)


def train_step(
    model: nn.Module,
    clips: Tensor | Sequence[Tensor],
    masks_enc: Iterable[Tensor],
    masks_pred: Iterable[Tensor],
    optimizer: torch.optim.Optimizer,
    momentum: float | None = None,
    *,
    autocast_dtype: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """One step of pretraining: loss, backward, optimiser, then the target encoder.

    The order is the official one: `optimizer.step()`, `zero_grad()`, EMA, so that the target follows the weights that the
    step has just written. An optimiser of `make_adamw_ema` moves the target itself; with any other `model.update_target` does.
    `momentum` None means the schedule of such an optimiser, and V-JEPA 2's 0.99925 otherwise.

    Shapes: those of the model, which may be wrapped by DDP; clips (for objectives on views, a list of them) and masks move to its
    device. Returns the detached loss of the weights before the step, still on the device, and the model's stats; nothing here
    waits for the device.

    Dtypes: with `autocast_dtype=torch.bfloat16` the forward pass runs under autocast. There is no gradient scaler: bfloat16
    has the range of float32, and float16, which would need one, is refused.

    Raises:
        ValueError: float16, and whatever the model refuses.

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
    network: Any = model
    inner: Any = unwrapped(network)
    device = next(network.parameters()).device
    inputs: Any
    if isinstance(clips, Tensor):
        inputs = clips.to(device, non_blocking=True)
    else:
        inputs = [view.to(device, non_blocking=True) for view in clips]
    context_ids = [ids.to(device, non_blocking=True) for ids in masks_enc]
    target_ids = [ids.to(device, non_blocking=True) for ids in masks_pred]

    with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        loss, stats = network(inputs, context_ids, target_ids)
    loss.backward()
    if isinstance(optimizer, AdamWEMA) and optimizer.target is not None:
        optimizer.step(momentum=momentum)
        optimizer.zero_grad(set_to_none=True)
    else:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        inner.update_target(MOMENTUM if momentum is None else momentum)
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

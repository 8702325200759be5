"""Which parameter of the target belongs to which of the online module, through wrappers and shards; low-precision
twins."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `DistributedDataParallel`, `DataParallel` and `torch.compile`; FSDP2 wraps nothing."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = module.module
        elif hasattr(module, "_orig_mod"):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def _fsdp_modules(module: nn.Module) -> list[Any]:
    if not torch.distributed.is_available():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [child for child in module.modules() if isinstance(child, FSDPModule)]


def reshard(module: nn.Module) -> None:
    """Brings parameters that FSDP2 has gathered for a forward pass back to their shards."""
    for child in _fsdp_modules(module):
        child.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 manages any part of the module."""
    return bool(_fsdp_modules(module))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: the local shard of a DTensor, otherwise the tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    if to_local is None:
        return tensor
    with torch.no_grad():
        return to_local()


def same_placement(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are cut in the same way over the same processes."""
    return getattr(first, "placements", None) == getattr(second, "placements", None) and (
        getattr(first, "device_mesh", None) == getattr(second, "device_mesh", None)
    )


def paired(target: nn.Module, online: nn.Module, *, buffers: bool) -> list[tuple[str, Tensor, Tensor]]:
    """(name, tensor of the target, tensor of the online module) of every parameter and, on request, buffer.

    Raises:
        ValueError: a name is missing on one side, or shapes or shards differ; the message names the first such
            tensor.
    """
    ours, theirs = dict(_named(target, buffers)), dict(_named(online, buffers))
    for name in theirs:
        if name not in ours:
            raise ValueError(
                f"EMATarget: the online module has {name!r}, the target does not; make a new EMATarget after "
                f"changing modules"
            )
    for name, tensor in ours.items():
        if name not in theirs:
            raise ValueError(
                f"EMATarget: the target has {name!r}, the online module does not; make a new EMATarget after "
                f"changing modules"
            )
        source = theirs[name]
        if tensor.shape != source.shape:
            raise ValueError(
                f"EMATarget: {name!r} has shape {tuple(tensor.shape)} in the target, {tuple(source.shape)} in the "
                f"online module"
            )
        if not same_placement(tensor, source):
            raise ValueError(
                f"EMATarget: {name!r} is sharded differently in target and online module; apply fully_shard alike to "
                f"both"
            )
    return [(name, tensor, theirs[name]) for name, tensor in ours.items()]


def _named(module: nn.Module, buffers: bool) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    if buffers:
        yield from module.named_buffers()


def dictionaries(module: nn.Module, *, buffers: bool) -> list[dict[str, Any]]:
    """The dictionaries that hold a module's structure: children and parameters, and buffers on request, of every
    submodule."""
    found: list[Any] = []
    for child in module.modules():
        found += [child._modules, child._parameters]
        if buffers:
            found.append(child._buffers)
    return [dictionary for dictionary in found if dictionary]


def parameter_groups(modules: nn.Module | Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimiser: weight decay for matrices, none for biases and parameters of one dimension.

    Frozen parameters are left out. Each module gives two groups, the decayed ones of all modules first, as the
    official code orders them.

    Example:
        >>> [len(group["params"]) for group in parameter_groups(nn.Linear(2, 2), 0.04)]
        [1, 1]
    """
    modules = [modules] if isinstance(modules, nn.Module) else list(modules)
    split = [_split(module) for module in modules]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay} for decayed, _ in split]
    return groups + [{"params": other, "weight_decay": 0.0} for _, other in split]


def _split(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    decayed: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (other if name.endswith("bias") or parameter.ndim == 1 else decayed).append(parameter)
    return decayed, other


def shadow_module(module: nn.Module, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A copy of a module with every floating-point parameter and buffer in `dtype`, for forward passes without
    casts.

    Train it through `AdamWEMA(..., shadows=shadows_of(module, twin))`: the step reads the twin's gradients, updates
    the float32 parameters of `module`, and writes their rounded values back.

    Raises:
        ValueError: the module is sharded by FSDP2, whose `MixedPrecisionPolicy(param_dtype=...)` casts shards
            itself, or `dtype` is neither bfloat16 nor float16.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"shadow_module: dtype must be torch.bfloat16 or torch.float16, got {dtype}")
    module = unwrapped(module)
    if is_sharded(module):
        raise ValueError(
            "shadow_module: FSDP2 modules cannot be copied; use its MixedPrecisionPolicy(param_dtype=...) instead"
        )
    cast: dict[int, Any] = {}  # what the copy takes in place of copies: no second model in the old dtype
    for parameter in module.parameters():
        if parameter.is_floating_point():
            cast[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
    twin = copy.deepcopy(module, cast)
    for parameter in twin.parameters():
        parameter.grad = None
    return twin.to(dtype)


def shadows_of(module: nn.Module, twin: nn.Module) -> dict[Tensor, Tensor]:
    """{parameter of `module`: its low-precision twin in `twin`}, by name.

    Raises:
        ValueError: names or shapes differ.
    """
    return {tensor: shadow for _, shadow, tensor in paired(unwrapped(twin), unwrapped(module), buffers=False)}

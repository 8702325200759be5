"""The operator `ema_update_`: schema, fake and backends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _native, backends
from ..reference import ema_update as reference
from ._library import define, on_device
from .plans import PlanCache, captured, direct, prepared
from .registry import Backend, Operator, register

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Elements that one program of the GPU kernels walks: 61,000 programs for a billion parameters.
GPU_CHUNK = 16384


def _strided_alike(targets: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """`others` with the memory order of `targets`: those that differ are copied, so that kernels can walk flat
    memory."""
    return [
        other if other.stride() == target.stride() else torch.empty_like(target, dtype=other.dtype).copy_(other)
        for target, other in zip(targets, others, strict=True)
    ]


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one run of memory, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _why_not_flat(targets: Sequence[Tensor], shadows: Sequence[Tensor]) -> str | None:
    """Native kernels walk each target as one run of memory."""
    for index, target in enumerate(targets):
        if not (target.is_contiguous() or _is_dense(target)):
            return f"target {index} has gaps in memory (shape {tuple(target.shape)}, strides {target.stride()})"
        if shadows and shadows[index].stride() != target.stride():
            return f"shadow {index} has strides {shadows[index].stride()}, its target {target.stride()}"
    return None


def _supports_reference(targets, online, shadows, *scalars) -> str | None:
    return None


def _supports_cpu(targets, online, shadows, *scalars) -> str | None:
    if targets[0].device.type != "cpu":
        return f"cpu kernels need CPU tensors, got {targets[0].device}"
    return _native.why_no_cpu() or _why_not_flat(targets, shadows)


def _supports_triton(targets, online, shadows, *scalars) -> str | None:
    dtypes = {tensor.dtype for tensor in (*targets, *online, *shadows)}
    if torch.float64 in dtypes:
        return "the triton kernel computes in float32; float64 tensors run on the reference, cpu or cuda backend"
    return backends.why_no_triton(targets[0].device, tuple(dtypes)) or _why_not_flat(targets, shadows)


def _supports_cuda(targets, online, shadows, *scalars) -> str | None:
    if targets[0].device.type != "cuda":
        return f"cuda kernels need CUDA tensors, got {targets[0].device}"
    for index, (target, source) in enumerate(zip(targets, online, strict=True)):
        if torch.float64 in (target.dtype, source.dtype) and target.dtype != source.dtype:
            found = f"tensor {index} mixes {target.dtype} and {source.dtype}"
            return f"{found}; the cuda kernel takes float64 only with float64"
    return _native.why_no_cuda() or _why_not_flat(targets, shadows)


def _run_reference(targets, online, shadows, momentum, stochastic_rounding, seed) -> None:
    reference.ema_update_(
        targets, online, momentum, shadows=shadows or None, stochastic_rounding=stochastic_rounding, seed=seed
    )


def _plan_cpu(targets: Sequence[Tensor], online: Sequence[Tensor], shadows: Sequence[Tensor]) -> Callable[..., None]:
    tensors = _native.cpu().EmaTensors(
        _entries(targets), _entries(online), _entries(shadows) if shadows else [None] * len(targets)
    )

    def run(momentum: float | Tensor, stochastic_rounding: bool, seed: int | Tensor) -> None:
        tensors.update(1.0 - float(momentum), stochastic_rounding, int(seed), torch.get_num_threads())

    return run


def _entries(tensors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    return [(tensor.data_ptr(), _native.DTYPE_CODES[tensor.dtype], tensor.numel()) for tensor in tensors]


@dataclass(frozen=True)
class DevicePlan:
    """The update as a GPU kernel reads it: one row a tensor, one row a program; tensors of like dtypes and alignment
    together.

    table: int64 (tensors, 5): addresses of target, online and shadow (0 for none), element count, place in the caller's
        list.
    chunks: int32 (programs, 2): row of `table`, number of the chunk of GPU_CHUNK elements in it.
    """

    table: Tensor
    chunks: Tensor
    target_dtype: torch.dtype
    online_dtype: torch.dtype
    shadow_dtype: torch.dtype | None
    aligned: bool


def device_plans(
    targets: Sequence[Tensor], online: Sequence[Tensor], shadows: Sequence[Tensor]
) -> tuple[DevicePlan, ...]:
    """The plans of these tensors, from a cache: the copy to the device happens only when a tensor moved or changed."""
    rows = tuple(
        (
            target.data_ptr(),
            source.data_ptr(),
            shadows[index].data_ptr() if shadows else 0,
            target.numel(),
            index,
            target.dtype,
            source.dtype,
            shadows[index].dtype if shadows else None,
        )
        for index, (target, source) in enumerate(zip(targets, online, strict=True))
        if target.numel() > 0
    )
    return _plans_of_rows(rows, targets[0].device)


@functools.lru_cache(maxsize=32)
def _plans_of_rows(rows: tuple, device: torch.device) -> tuple[DevicePlan, ...]:
    groups: dict[tuple, list[tuple]] = {}
    for row in rows:
        aligned = all(address % 16 == 0 for address in row[:3])
        groups.setdefault((*row[5:], aligned), []).append(row[:5])
    plans = []
    for (target_dtype, online_dtype, shadow_dtype, aligned), members in groups.items():
        chunks = [(place, chunk) for place, row in enumerate(members) for chunk in range(-(-row[3] // GPU_CHUNK))]
        plans.append(
            DevicePlan(
                torch.tensor(members, dtype=torch.int64, device=device),
                torch.tensor(chunks, dtype=torch.int32, device=device),
                target_dtype,
                online_dtype,
                shadow_dtype,
                aligned,
            )
        )
    return tuple(plans)


def _plan_triton(
    targets: Sequence[Tensor], online: Sequence[Tensor], shadows: Sequence[Tensor]
) -> Callable[..., None]:
    from ..kernels import ema_update as kernel

    device, plans = targets[0].device, device_plans(targets, online, shadows)

    def run(momentum: float | Tensor, stochastic_rounding: bool, seed: int | Tensor) -> None:
        with on_device(device):  # a prepared call comes past the dispatcher, whose operators see to it
            captured(plans, device)
            for plan in plans:
                kernel.launch(
                    plan.table,
                    plan.chunks,
                    momentum,
                    seed,
                    target_dtype=plan.target_dtype,
                    online_dtype=plan.online_dtype,
                    shadow_dtype=plan.shadow_dtype,
                    aligned=plan.aligned,
                    stochastic=stochastic_rounding and plan.target_dtype == torch.bfloat16,
                    chunk=GPU_CHUNK,
                )

    return run


def _plan_cuda(targets: Sequence[Tensor], online: Sequence[Tensor], shadows: Sequence[Tensor]) -> Callable[..., None]:
    device, plans = targets[0].device, device_plans(targets, online, shadows)

    def run(momentum: float | Tensor, stochastic_rounding: bool, seed: int | Tensor) -> None:
        weight = 0.0 if isinstance(momentum, Tensor) else 1.0 - momentum
        key = 0 if isinstance(seed, Tensor) else seed
        momentum_tensor = momentum.double() if isinstance(momentum, Tensor) else None
        seed_tensor = seed if isinstance(seed, Tensor) else None
        with on_device(device):
            captured(plans, device)
            for plan in plans:
                _native.cuda().ema_update(
                    _native.view(plan.table),
                    _native.view(plan.chunks),
                    _native.DTYPE_CODES[plan.target_dtype],
                    _native.DTYPE_CODES[plan.online_dtype],
                    -1 if plan.shadow_dtype is None else _native.DTYPE_CODES[plan.shadow_dtype],
                    plan.aligned,
                    weight,
                    _native.view(momentum_tensor),
                    stochastic_rounding,
                    key,
                    _native.view(seed_tensor),
                    GPU_CHUNK,
                    torch.cuda.current_stream(device).cuda_stream,
                )

    return run


def _forward(plan: Callable[..., Callable[..., None]]) -> Callable[..., None]:
    """The backend's forward out of its plan: prepared and run at once, after copies of online tensors in another
    memory order."""

    def run(targets, online, shadows, momentum, stochastic_rounding, seed) -> None:
        online = _strided_alike(targets, online)  # named, so that copies live until the call is over
        plan(targets, online, shadows)(momentum, stochastic_rounding, seed)

    return run


OPERATOR = register(
    Operator(
        "ema_update",
        {
            "reference": Backend("reference", _supports_reference, {"forward": _run_reference}),
            "cpu": Backend("cpu", _supports_cpu, {"forward": _forward(_plan_cpu), "plan": _plan_cpu}),
            "triton": Backend("triton", _supports_triton, {"forward": _forward(_plan_triton), "plan": _plan_triton}),
            "cuda": Backend("cuda", _supports_cuda, {"forward": _forward(_plan_cuda), "plan": _plan_cuda}),
        },
        dtypes={
            "reference": (torch.float64, *_FLOATS),
            "cpu": (torch.float64, *_FLOATS),
            "triton": _FLOATS,
            "cuda": (torch.float64, *_FLOATS),
        },
    )
)


# Calls prepared for tensors that come again, every step.
PLANS = PlanCache("ema_update")


def forced() -> str | None:
    """The backend that the context or the environment forces for this operator."""
    return backends.forced("ema_update")


def remember(targets: list[Tensor], online: list[Tensor], shadows: list[Tensor]) -> None:
    """Prepares the call for the next step with these tensors, which `functional` has checked."""
    if not targets or not direct() or any(a.stride() != b.stride() for a, b in zip(targets, online, strict=True)):
        return
    run = prepared(OPERATOR, targets, (targets, online, shadows, 1.0, False, 0), (targets, online, shadows))
    if run is not None:
        PLANS.keep(run, targets, online, shadows)


def _implementation(
    targets: list[Tensor],
    online: list[Tensor],
    shadows: list[Tensor],
    momentum: float,
    momentum_tensor: Tensor | None,
    stochastic_rounding: bool,
    seed: int,
    seed_tensor: Tensor | None,
) -> None:
    if not targets:
        return
    moved = momentum if momentum_tensor is None else momentum_tensor
    key = seed if seed_tensor is None else seed_tensor
    arguments = (targets, online, shadows, moved, stochastic_rounding, key)
    backends.resolve(OPERATOR, targets[0].device, arguments).functions["forward"](*arguments)


def _fake(*arguments: object) -> None:
    return None


ema_update_ = define(
    "ema_update_(Tensor(a!)[] targets, Tensor[] online, Tensor(b!)[] shadows, float momentum, Tensor? momentum_tensor, "
    "bool stochastic_rounding, int seed, Tensor? seed_tensor) -> ()",
    _implementation,
    _fake,
)

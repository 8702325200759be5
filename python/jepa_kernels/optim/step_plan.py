"""One step of `AdamWEMA` over a set of parameters, kept from step to step while only gradients move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..ops import adamw_ema as operator
from ..ops import plans
from ..ops.adamw_ema import Scalars, Tensors
from .ema_target import EMATarget
from .pairing import local

OPERATOR = "adamw_ema"


class StepPlan:
    """The tensors of a step, checked once, and the backend's plan of them.

    `device`: where they lie; `none`: the empty tensor that stands for nothing; `rest`: places of the target that the
    step does not move.
    """

    def __init__(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        groups: list[int],
        state: Mapping[Tensor, dict[str, Any]],
        target: EMATarget | None,
        shadows: Mapping[Tensor, Tensor],
        check: Callable[[dict[str, list[Tensor]]], None],
    ) -> None:
        self._params, self._groups, self._target = params, groups, target
        self._pairing = None if target is None else target.targets
        self.device = local(params[0]).device
        self.none = torch.empty(0, dtype=torch.float64, device=self.device)
        absent = torch.empty(0, device=self.device)
        places = [None if target is None else _fused_place(target, param) for param in params]
        fused = {place for place in places if place is not None}
        self.rest = [] if target is None else [i for i in range(len(target.targets)) if i not in fused]
        targets = [absent if target is None or i is None else target.targets[i] for i in places]
        copies = [absent if target is None or i is None or not target.shadows else target.shadows[i] for i in places]
        lists = {
            "params": [local(param) for param in params],
            "grads": grads,
            "exp_avgs": [local(state[param]["exp_avg"]) for param in params],
            "exp_avg_sqs": [local(state[param]["exp_avg_sq"]) for param in params],
            "steps": [state[param]["step"] for param in params],
            "targets": targets,
            "param_shadows": [shadows.get(param, absent) for param in params],
            "target_shadows": copies,
        }
        check(lists)
        self._kept = [tensor for name, column in lists.items() if name != "grads" for tensor in column]
        self._watch = plans.watch_tensors(self._kept)
        self._slots = plans.watch_slots([state[param] for param in params])
        self._written = [tensor for name in ("params", "targets", "param_shadows", "target_shadows") for tensor in lists[name]]
        tensors = Tensors(**lists, groups=groups)
        self._local = lists["params"]  # of the gradients nothing is kept, or their memory would be
        self._grads = [(grad.data_ptr(), grad.dtype) for grad in grads]
        self._forced = backends.forced(OPERATOR)
        scalars = Scalars(self.none, self.none, self.none, self.none)
        entry = backends.resolve(operator.OPERATOR, self.device, (*tensors, *scalars, False))
        self._plan = entry.functions["plan"](tensors)

    def fits(self, params: list[Tensor], target: EMATarget | None) -> bool:
        """Whether this plan is of these parameters and this target, and none of its tensors moved or was replaced."""
        return (
            len(params) == len(self._params)
            and all(a is b for a, b in zip(params, self._params, strict=True))
            and target is self._target
            and (target is None or target.targets is self._pairing)
            and self._forced == backends.forced(OPERATOR)
            and self._slots.unchanged()
            and self._watch.unchanged(self._kept)
        )

    def set_grads(self, grads: list[Tensor]) -> None:
        """Takes the gradients of the coming step.

        Raises:
            ValueError: a gradient on another device, or of another shape than its parameter.
        """
        found = [(grad.data_ptr(), grad.dtype) for grad in grads]
        for grad, param in zip(grads, self._local, strict=True):
            if grad.shape != param.shape or grad.device != self.device:
                raise ValueError(
                    f"AdamWEMA: a gradient of shape {tuple(grad.shape)} on {grad.device} for a parameter of "
                    f"{tuple(param.shape)} on {self.device}"
                )
        if found != self._grads or any(
            grad.stride() != param.stride() for grad, param in zip(grads, self._local, strict=True)
        ):
            self._plan.set_grads(grads)
            self._grads = found

    def sum_of_squares(self) -> Tensor:
        """Of the gradients that this process holds; float64 on the device."""
        return self._plan.sum_of_squares()

    def update(self, scalars: Scalars) -> None:
        """The step itself."""
        self._plan.update(scalars)
        plans.written(self._written)


def _fused_place(target: EMATarget, param: Tensor) -> int | None:
    """The place of a parameter's target, if the fused pass can move it: stochastic rounding is the EMA update's own."""
    place = target.index_of(param)
    if place is not None and target.stochastic_rounding and target.targets[place].dtype == torch.bfloat16:
        return None
    return place


def reduced_squares(plan: StepPlan, grads: Sequence[Tensor]) -> Tensor:
    """The sum of squares of all gradients, over all processes that hold shards of them. Replicated gradients count
    once."""
    layouts = {(getattr(grad, "device_mesh", None), tuple(getattr(grad, "placements", ()))) for grad in grads}
    if len(layouts) == 1:
        return _over_shards(plan.sum_of_squares(), *layouts.pop())
    total = torch.zeros((), dtype=torch.float64, device=plan.device)
    for mesh, placements in sorted(layouts, key=str):  # one order on every process
        members = [
            local(g)
            for g in grads
            if (getattr(g, "device_mesh", None), tuple(getattr(g, "placements", ()))) == (mesh, placements)
        ]
        total += _over_shards(operator.reference.sum_of_squares(members), mesh, placements)
    return total


def _over_shards(squares: Tensor, mesh: Any, placements: tuple[Any, ...]) -> Tensor:
    for dimension, placement in enumerate(placements):
        if placement.is_shard():
            torch.distributed.all_reduce(squares, group=mesh.get_group(dimension))
    return squares

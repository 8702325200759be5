"""A linear map that reads kept low-precision copies of its weights where autocast would cast them in every forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Copy(NamedTuple):
    """A low-precision copy of a parameter, and by how much their version counters differ while it is current.

    Whoever writes both counts up both, so the difference stays; whoever writes the parameter alone changes it.
    """

    parameter: Tensor
    copy: Tensor
    lead: int


class Linear(nn.Linear):
    """`nn.Linear` that under autocast takes the copies which `attach_copies` gave it; otherwise exactly `nn.Linear`.

    Formula: y = x W^T + b, with x, W and b rounded to the autocast dtype, as autocast rounds them. The gradients of W and b
    are sums in float32 over all rows of x, rounded once to that dtype, and reach the parameters themselves.

    Shapes: (..., in_features) -> (..., out_features).

    Copies serve where autocast is on in their dtype and the parameters are the very ones they were made of: sharded or
    replaced parameters, `torch.compile` and calls without autocast take the usual way. A copy whose parameter was written
    since (by another optimiser, by `load_state_dict`) is written anew first; writes through `.data`, which autograd does
    not see, go unnoticed until the next step.

    State dict: `weight`, `bias`; copies are not part of it.

    Example:
        >>> Linear(4, 2)(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    _copies: tuple[_Copy, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        copies = self._current_copies(x)
        if copies is None:
            return F.linear(x, self.weight, self.bias)
        weight, bias = copies
        with torch.autocast(x.device.type, enabled=False):
            return _ThroughCopies.apply(x.to(weight.dtype), self.weight, self.bias, weight, bias)

    def _current_copies(self, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """The copies of weight and bias, up to date; None where this call has to take the parameters."""
        if not self._copies or torch.compiler.is_compiling():
            return None
        dtype, kind = self._copies[0].copy.dtype, x.device.type
        if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) != dtype:
            return None
        parameters = [parameter for parameter in (self.weight, self.bias) if parameter is not None]
        for index, (parameter, kept) in enumerate(zip(parameters, self._copies, strict=True)):
            if kept.parameter is not parameter or kept.copy.device != parameter.device:
                return None
            if parameter._version - kept.copy._version != kept.lead:
                with torch.no_grad():
                    kept.copy.copy_(parameter)
                self._copies = (*self._copies[:index], _tied(parameter, kept.copy), *self._copies[index + 1 :])
        return self._copies[0].copy, self._copies[1].copy if len(self._copies) > 1 else None


def _tied(parameter: Tensor, copy: Tensor) -> _Copy:
    return _Copy(parameter, copy, parameter._version - copy._version)


def attach_copies(module: nn.Module, copies: Mapping[Tensor, Tensor]) -> None:
    """Gives every `Linear` in a module the low-precision copies of its parameters, as `jk.optim.shadows_of` pairs them.

    Whoever writes the parameters should write the copies with them, as `jk.AdamWEMA(shadows=...)` does; a copy that is
    found out of date is written before it is read.

    Raises:
        KeyError: a parameter of a `Linear` has no copy.
    """
    for child in module.modules():
        if isinstance(child, Linear):
            parameters = [parameter for parameter in (child.weight, child.bias) if parameter is not None]
            with torch.no_grad():
                for parameter in parameters:
                    copies[parameter].copy_(parameter)
            child._copies = tuple(_tied(parameter, copies[parameter]) for parameter in parameters)


class _ThroughCopies(torch.autograd.Function):
    """x W^T + b by the copies of W and b; the gradients go to the parameters."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, weight_copy: Tensor, bias_copy: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight_copy)
        return F.linear(x, weight_copy, bias_copy)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        dx = (rows @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        dweight = rows.t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        dbias = rows.sum(0, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None, None

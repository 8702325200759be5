"""A linear map that reads kept low-precision copies of its weights under autocast, and multiplies through oneDNN on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..ops.plans import direct

# Reordering a widening bfloat16 weight into oneDNN's blocks first pays from about this many rows on (measured: 8 % at 576 rows,
# 15 % at 1024, nothing for weights that narrow).
PACK_ROWS = 512


class _Copy(NamedTuple):
    """A low-precision copy of a parameter, and by how much their version counters differ while it is current.

    Whoever writes both counts up both, so the difference stays; whoever writes the parameter alone changes it.
    """

    parameter: Tensor
    copy: Tensor
    lead: int


class Linear(nn.Linear):
    """`nn.Linear` whose products run the fastest way that gives the same numbers; everywhere else exactly `nn.Linear`.

    Formula: y = x W^T + b. Two things differ from `nn.Linear`, neither in the mathematics:

    - Under autocast it reads the copies that `attach_copies` gave it, which hold what autocast would cast anew. The gradients
      are those of autocast, sums in float32 over all rows of x rounded once to its dtype, and reach the parameters themselves.
    - Float32 products on a CPU go to oneDNN, where torch takes MKL: a sum in another order, twice as fast on AMD's Zen 5.

    Shapes: (..., in_features) -> (..., out_features).

    Copies serve where autocast is on in their dtype and the parameters are the very ones they were made of: sharded or
    replaced parameters, `torch.compile`, `torch.func` and calls without autocast take the usual way. A copy whose parameter was
    written since (by another optimiser, by `load_state_dict`) is written anew first; writes through `.data`, which autograd
    does not see, go unnoticed until the next step.

    Second derivatives raise RuntimeError where one of the two is in use.

    State dict: `weight`, `bias`; copies are not part of it.

    Example:
        >>> Linear(4, 2)(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    _copies: tuple[_Copy, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """For `copy.deepcopy` and pickle: copies belong to whoever writes them, so they stay behind."""
        return {name: value for name, value in self.__dict__.items() if name != "_copies"}

    def forward(self, x: Tensor) -> Tensor:
        found = self._found(x)
        if found is None:
            return F.linear(x, self.weight, self.bias)
        weight, bias = found
        return _Product.apply(x.to(weight.dtype), self.weight, self.bias, weight, bias)

    def then_gelu(self, x: Tensor) -> Tensor:
        """The exact GELU of the map, in one pass with it on a CPU where no gradient is wanted."""
        found = None if torch.is_grad_enabled() else self._found(x)
        if found is None or not _onednn(x.device, found[0].dtype):
            return F.gelu(self(x))
        return _linear(x.to(found[0].dtype), *found, "gelu")

    def _found(self, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias to read in place of the parameters, or to multiply by oneDNN; None for the usual way."""
        if not direct() or torch._C._functorch.peek_interpreter_stack() is not None:
            return None
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            return self._current_copies(torch.get_autocast_dtype(kind))
        return (self.weight, self.bias) if _float32_by_onednn(x, self.weight) else None

    def _current_copies(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None] | None:
        """The copies of weight and bias in this dtype, up to date; None where they are not of these parameters."""
        if not self._copies or self._copies[0].copy.dtype != dtype:
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


def attach_copies(
    module: nn.Module, dtype: torch.dtype = torch.bfloat16, given: Mapping[Tensor, Tensor] | None = None
) -> dict[Tensor, Tensor]:
    """Gives every `Linear` in a module copies of its parameters in `dtype`, and returns {parameter: its copy}.

    Whoever writes the parameters should write the copies with them, as `jk.AdamWEMA(shadows=...)` does with what is
    returned; a copy that is found out of date is written before it is read. `given` holds copies that exist already.

    Example:
        >>> copies = attach_copies(Linear(4, 2))
        >>> [tuple(copy.shape) for copy in copies.values()]
        [(2, 4), (2,)]
    """
    found: dict[Tensor, Tensor] = {}
    for child in module.modules():
        if isinstance(child, Linear):
            parameters = [parameter for parameter in (child.weight, child.bias) if parameter is not None]
            for parameter in parameters:
                copy = None if given is None else given.get(parameter)
                if copy is None:
                    copy = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
                with torch.no_grad():
                    found[parameter] = copy.copy_(parameter)
            child._copies = tuple(_tied(parameter, found[parameter]) for parameter in parameters)
    return found


def float32_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """x W^T + b by oneDNN; None where that does not serve: other dtypes, devices or tensor classes, autocast, tracing."""
    if not direct() or torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    if not _float32_by_onednn(x, weight) or torch.is_autocast_enabled(x.device.type):
        return None
    # The view is made out here: the caller may write into the result, which autograd forbids on a view that a Function returns.
    return _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias, weight, bias).view(*x.shape[:-1], -1)


def _float32_by_onednn(x: Tensor, weight: Tensor) -> bool:
    plain = all(type(tensor) in (Tensor, nn.Parameter) for tensor in (x, weight))  # no shards
    return plain and x.dtype == weight.dtype == torch.float32 and _onednn(x.device, torch.float32)


def _onednn(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch._C._get_mkldnn_enabled():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """x W^T + b, or its GELU."""
    if not x.numel() or not _onednn(x.device, weight.dtype):
        y = F.linear(x, weight, bias)
        return F.gelu(y) if then == "gelu" else y
    rows = x.numel() // x.shape[-1]
    if weight.dtype == torch.bfloat16 and rows >= PACK_ROWS and weight.shape[0] > weight.shape[1]:
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")


class _Product(torch.autograd.Function):
    """x W^T + b by the weights that are read; the gradients go to the parameters."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, parameter: Tensor, bias_parameter: Tensor | None, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, inputs = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = dweight = dbias = None
        # Measured: oneDNN's plain product is the faster one for these two in bfloat16, and half as slow as MKL's in float32.
        exact = weight.dtype == torch.float32
        if ctx.needs_input_grad[0]:
            dx = (_linear(rows, weight.t(), None) if exact else rows @ weight).view(x.shape)
        if ctx.needs_input_grad[1]:
            dweight = _linear(rows.t(), inputs.t(), None) if exact else rows.t() @ inputs
        if ctx.needs_input_grad[2]:
            dbias = rows.sum(0)
        return dx, dweight, dbias, None, None

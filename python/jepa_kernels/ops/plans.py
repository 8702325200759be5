"""Calls prepared once for tensors that stay: native code keeps their addresses, and a quick look each step says
whether they still hold."""

from __future__ import annotations

import operator
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _native, backends

_KEPT = 16  # prepared calls of one operator
_captured: dict[int, Any] = {}


class _TensorWatch:
    """The native `TensorWatch` in Python, for installations without native code."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._references = [weakref.ref(tensor) for tensor in tensors]
        self._layout = _layout(tensors)

    def unchanged(self, *lists: list[Tensor]) -> bool:
        tensors = [tensor for each in lists for tensor in each]
        return (
            len(tensors) == len(self._references)
            and all(map(operator.is_, [reference() for reference in self._references], tensors))
            and _layout(tensors) == self._layout
        )


def _layout(tensors: Sequence[Tensor]) -> list[tuple[int, torch.dtype, int]]:
    return [(tensor.data_ptr(), tensor.dtype, tensor.numel()) for tensor in tensors]


class _SlotWatch:
    """The native `SlotWatch` in Python, for installations without native code."""

    def __init__(self, dictionaries: list[dict[str, Any]]) -> None:
        self._seen = [(dictionary, dict(dictionary)) for dictionary in dictionaries]

    def unchanged(self) -> bool:
        return all(
            len(dictionary) == len(seen)
            and all(map(operator.is_, dictionary, seen))
            and all(map(operator.is_, dictionary.values(), seen.values()))
            for dictionary, seen in self._seen
        )


def watch_tensors(tensors: list[Tensor]) -> Any:
    """An object whose `unchanged(*lists)` says whether the lists together hold the very same tensors, where they were.

    Compared are identity, address, element type and element count. Only views of one storage can differ in shape and
    still agree in all of these. The references are weak: a watch keeps no tensor alive, and one that died matches
    nothing.
    """
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if _native.why_no_cpu() or exchange is None:
        return _TensorWatch(tensors)
    return _native.cpu().TensorWatch(tensors, exchange)


def watch_slots(dictionaries: list[dict[str, Any]]) -> Any:
    """An object whose `unchanged()` says whether these dictionaries still hold the same objects under the same keys, in
    the same order."""
    return _SlotWatch(dictionaries) if _native.why_no_cpu() else _native.cpu().SlotWatch(dictionaries)


def direct() -> bool:
    """Whether a call may go to native code without torch's dispatcher: nothing traces it or stands in for its tensors."""
    return not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0


def native_values(*tensors: Tensor) -> bool:
    """Whether native CPU code may read these tensors here and now: nothing traces the call or stands in for its tensors."""
    return (
        direct()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
        and all(type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" for tensor in tensors)
        and _native.why_no_cpu() is None
    )


def bystanders(*arguments: Any) -> bool:
    """Whether torch's dispatcher has something to do for an operator on CPU tensors beside recording a gradient: trace, switch
    autocast off, show the operator to a profiler."""
    if not direct():  # first: torch.compile traces this far
        return True
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    return torch.autograd._profiler_enabled() or torch.is_autocast_enabled("cpu") or not native_values(*tensors)


def needs_dispatcher(*arguments: Any) -> bool:
    """The same, or a gradient to record. Where there is neither, going past the dispatcher saves tens of microseconds a call."""
    if bystanders(*arguments):
        return True
    return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in arguments)


def captured(tables: Any, device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream. It then holds the addresses of these tables, and nobody says
    when its last replay will be: they are kept for good."""
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        return False
    _captured[id(tables)] = tables
    return True


def upload(values: Sequence[int] | Sequence[float], destination: Tensor) -> None:
    """Copies numbers into a tensor. On a GPU by way of pinned memory, which torch uses again only after the copy: from pageable
    memory the host would wait until the device has done all that comes before."""
    on_gpu = destination.is_cuda
    destination.copy_(torch.tensor(values, dtype=destination.dtype, pin_memory=on_gpu), non_blocking=on_gpu)


class PlanCache:
    """Prepared calls of one operator, found again by the tensors they were prepared for."""

    def __init__(self, operator_name: str) -> None:
        self._operator_name = operator_name
        self._plans: OrderedDict[tuple[int, ...], tuple[Any, str | None, Callable[..., None]]] = OrderedDict()

    def find(self, *lists: list[Tensor]) -> Callable[..., None] | None:
        """The prepared call for exactly these lists of tensors under the backend that is now forced, or None."""
        if not lists[0] or not direct():
            return None
        key = (id(lists[0][0]), *map(len, lists))
        watch, forced, run = self._plans.get(key, (None, None, None))
        if watch is None or forced != backends.forced(self._operator_name) or not watch.unchanged(*lists):
            return None
        self._plans.move_to_end(key)
        return run

    def keep(self, run: Callable[..., None], *lists: Sequence[Tensor]) -> None:
        """Remembers a prepared call. Tensors of other classes, or without an address, are left to the dispatcher
        every time."""
        tensors = [tensor for each in lists for tensor in each]
        plain = all(type(tensor) in (Tensor, nn.Parameter) and not tensor.is_inference() for tensor in tensors)
        if not tensors or not plain or not direct() or not all(tensor.data_ptr() for tensor in tensors):
            return
        key = (id(tensors[0]), *map(len, lists))
        self._plans[key] = (
            watch_tensors(tensors),
            backends.forced(self._operator_name),
            run,
        )
        while len(self._plans) > _KEPT:
            self._plans.popitem(last=False)


def written(tensors: Sequence[Tensor]) -> None:
    """Tells autograd of a write that bypassed the dispatcher, so that a backward pass that saved the old value raises."""
    torch.autograd.graph.increment_version(tensors)


def prepared(
    operator_entry: Any, tensors: Sequence[Tensor], arguments: Sequence[Any], lists: Sequence[Any]
) -> Callable[..., None] | None:
    """The prepared call that the resolved backend makes of these lists of tensors, or None where it has none."""
    plan = backends.resolve(operator_entry, tensors[0].device, arguments).functions.get("plan")
    return None if plan is None else plan(*lists)

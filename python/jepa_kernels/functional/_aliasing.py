"""Looks for memory that a call would write and read, or write twice, through different tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

Named = tuple[str, Tensor]


def check_aliasing(operator: str, written: Iterable[Named], read: Iterable[Named]) -> None:
    """Makes sure that each written element belongs to one tensor alone, and to that one once.

    Read tensors may share memory among each other. Views of one storage are fine as long as no element is shared,
    as with columns of a matrix.

    Raises:
        ValueError: names the two tensors, or the one that overlaps itself.
    """
    spans = []
    for is_written, tensors in ((True, written), (False, read)):
        for name, tensor in tensors:
            if tensor.numel() == 0 or tensor.data_ptr() == 0:
                continue
            if is_written and _overlaps_itself(tensor):
                raise ValueError(
                    f"{operator}: {name} has elements that share memory (shape {tuple(tensor.shape)}, strides "
                    f"{tensor.stride()}); make it contiguous"
                )
            start = tensor.data_ptr()
            spans.append((start, start + _extent(tensor), is_written, name, tensor))
    spans.sort(key=lambda span: span[:2])
    open_spans: list[tuple[int, int, bool, str, Tensor]] = []
    for span in spans:
        open_spans = [other for other in open_spans if other[1] > span[0]]
        for other in open_spans:
            if (span[2] or other[2]) and _share_elements(span[4], other[4]):
                first, second = (span, other) if span[2] and not other[2] else (other, span)
                raise ValueError(
                    f"{operator}: {first[3]} shares memory with {second[3]}; give each tensor its own memory and "
                    f"list it once"
                )
        open_spans.append(span)


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element to behind the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or _extent(tensor) == tensor.nbytes


def _overlaps_itself(tensor: Tensor) -> bool:
    if tensor.is_contiguous():
        return False
    reach = 0  # of the dimensions with smaller strides
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return len(torch.unique(_offsets(tensor))) < tensor.numel()
        reach += (size - 1) * stride
    return False


def _share_elements(first: Tensor, second: Tensor) -> bool:
    """For tensors whose extents meet."""
    if _is_dense(first) and _is_dense(second):
        return True
    unit = math.gcd(first.element_size(), second.element_size(), first.data_ptr() - second.data_ptr())
    origin = min(first.data_ptr(), second.data_ptr())
    return bool(torch.isin(_units(first, origin, unit), _units(second, origin, unit)).any())


def _units(tensor: Tensor, origin: int, unit: int) -> Tensor:
    """The places, in units of bytes from an origin, that a tensor's elements cover."""
    item = tensor.element_size() // unit
    begin = (tensor.data_ptr() - origin) // unit
    return ((begin + _offsets(tensor) * item).unsqueeze(-1) + torch.arange(item)).flatten()


def _offsets(tensor: Tensor) -> Tensor:
    """Of all elements, in elements from the first."""
    offsets = torch.zeros(1, dtype=torch.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = (offsets.unsqueeze(-1) + torch.arange(size) * stride).flatten()
    return offsets

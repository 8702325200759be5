"""Collectives with gradients.

`torch.distributed.nn.functional` has the same sum, but is deprecated, and where it is first imported after
`init_process_group` its default arguments hold the world's group for good: Gloo's threads then outlive
`destroy_process_group` and can abort the process while the interpreter ends.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_reduce_sum(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of x over the ranks of a group, on every rank; its gradient is the sum of the ranks' gradients.

    Any shape and dtype that the group's backend adds. The ranks must call it, and its backward, in the same order.
    """
    return _AllReduceSum.apply(x, group)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return all_reduce_sum(dy, ctx.group), None

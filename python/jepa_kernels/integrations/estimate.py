"""What a patch saves, from counts: FLOPs, bytes and kernels of a model's forward, before and after.

Every operator that reaches the dispatcher counts as one kernel, but views; its bytes are those of its tensors, each read or
written once. On a machine a kernel takes at least the larger of FLOPs / rate and bytes / bandwidth. The sum of that over all
kernels, before over after, is the gain to expect where neither launches nor slow kernels rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .verify import outputs_of

_ATTENTION = ("masked_attention", "masked_attention_packed")


@dataclass
class Work:
    """Kernels, FLOPs of the matrix products, bytes, and the least time in seconds on the machine asked for."""

    kernels: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0


class _Counter(TorchDispatchMode):
    """Adds up the work of every operator that is not a view."""

    def __init__(self, flops_per_second: float, bytes_per_second: float) -> None:
        super().__init__()
        self.rates = (flops_per_second, bytes_per_second)
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if not func.is_view and func not in _FREE and tensors:
            flops = _flops(func, args, kwargs or {}, out)
            moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.work.kernels += 1
            self.work.flops += flops
            self.work.bytes += moved
            self.work.seconds += max(flops / self.rates[0], moved / self.rates[1])
        return out


_FREE = (
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.detach.default,
    torch.ops.aten._unsafe_view.default,
)


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    name = func._schema.name.removeprefix("jepa_kernels::")
    if name in _ATTENTION:
        q = args[0]  # packed (B, N, 3, H, D), or (B, H, N, D) with the keys beside
        if name.endswith("packed"):
            batch, tokens, _, heads, width = q.shape
            return 4.0 * batch * heads * tokens * tokens * width
        return 4.0 * q.numel() * args[1].shape[2]
    if name == "patch_embed":
        tokens = out if isinstance(out, Tensor) else out[0]
        return 2.0 * tokens.numel() * args[1][0].numel()
    formula = flop_registry.get(func.overloadpacket)
    return float(formula(*args, **kwargs, out_val=out)) if formula is not None else 0.0


def measure(model: nn.Module, inputs: Any, flops_per_second: float, bytes_per_second: float) -> Work:
    """The work of `model(inputs)` in evaluation mode, which runs once; `inputs` is a tensor, a tuple or a dict."""
    counter = _Counter(flops_per_second, bytes_per_second)
    with counter:
        outputs_of(model, inputs)
    return counter.work


def comparison(before: Work, after: Work) -> str:
    """Both in a table, and their ratios."""
    rows = [
        ("kernels", before.kernels, after.kernels),
        ("GFLOP", before.flops / 1e9, after.flops / 1e9),
        ("GB", before.bytes / 1e9, after.bytes / 1e9),
        ("roofline, ms", before.seconds * 1e3, after.seconds * 1e3),
    ]
    lines = [f"{'':14s}{'before':>12s}{'after':>12s}{'ratio':>9s}"]
    for name, old, new in rows:
        ratio = f"{old / new:8.2f}x" if new else "        -"
        lines.append(f"{name:14s}{old:12.4g}{new:12.4g}{ratio}")
    return "\n".join(lines)

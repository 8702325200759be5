"""SIGReg as a module: seeded by a step counter, as LeJEPA's library, or unseeded, as its minimal script."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..functional.sigreg import sigreg


class SIGReg(nn.Module):
    """`jk.sigreg` with fresh directions at every call.

    Formula, shapes, dtypes, cost and determinism: those of `jepa_kernels.sigreg`.

    Args:
        num_slices, num_points, t_max: as there. LeJEPA's minimal script uses 256 slices, its library 1024.
        seeded: draw the directions of call i from seed i, so that all ranks agree and a resumed run repeats them. The
            counter lives on the host, in the state dict as `global_step`, so no call waits for a device; ranks must
            make the same number of calls. False draws from torch's default generator and joins no processes: the
            minimal script.
        group: processes to join; None joins the default group where torch.distributed is initialised (only if
            `seeded`).

    Raises:
        ValueError: a group without `seeded`, and what `jepa_kernels.sigreg` raises.

    Source: Balestriero and LeCun, LeJEPA (2025).

    Example:
        >>> import torch, jepa_kernels as jk
        >>> regulariser = jk.nn.SIGReg(num_slices=64)
        >>> x = torch.zeros(2, 32, 8, requires_grad=True)
        >>> regulariser(x).shape, int(regulariser.state_dict()["global_step"])
        (torch.Size([]), 1)
    """

    def __init__(
        self,
        num_slices: int = 1024,
        num_points: int = 17,
        t_max: float = 3.0,
        *,
        seeded: bool = True,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if group is not None and not seeded:
            raise ValueError("SIGReg: ranks of a group must draw the same directions; use seeded=True")
        self.num_slices, self.num_points, self.t_max = num_slices, num_points, t_max
        self.seeded, self.group = seeded, group
        # No buffer: a buffer would move to the device, and reading the seed would wait for it.
        self.global_step = torch.zeros((), dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """The statistic of x (*, N, D)."""
        options: dict[str, Any] = {"num_slices": self.num_slices, "num_points": self.num_points, "t_max": self.t_max}
        if not self.seeded:
            return sigreg(x, **options)
        seed = self.global_step.clone()
        self.global_step.add_(1)
        return sigreg(x, seed=seed, group=self._group(), **options)

    def _group(self) -> dist.ProcessGroup | None:
        if self.group is None and dist.is_available() and dist.is_initialized():
            return dist.group.WORLD
        return self.group

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "global_step"] = self.global_step.clone()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "global_step"
        if key in state_dict:
            self.global_step = torch.as_tensor(state_dict[key]).to("cpu", torch.int64, copy=True).reshape(())
        elif strict:
            missing_keys.append(key)
        kept = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(kept, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def extra_repr(self) -> str:
        return f"num_slices={self.num_slices}, num_points={self.num_points}, t_max={self.t_max}, seeded={self.seeded}"

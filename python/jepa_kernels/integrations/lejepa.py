"""The official lejepa repository: its sliced Epps-Pulley test; from its interface and formula alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..functional.sigreg import sigreg
from .pieces import tensor_reason
from .targets import Target

_T_MAX = "_jepa_kernels_t_max"


def _sliced_test(self: Any, x: Tensor) -> Tensor:
    seed = int(self.global_step)
    self.global_step.add_(1)
    options = {"num_slices": self.num_slices, "num_points": self.univariate_test.n_points, "t_max": getattr(self, _T_MAX)}
    statistic = sigreg(x, seed=seed, **options)
    return statistic * self.num_slices * x.shape[:-2].numel() if self.reduction == "sum" else statistic


def _sliced_reason(self: Any, x: Any) -> str | None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return "several processes, whose means the original joins"
    if isinstance(x, Tensor) and x.ndim < 2:
        return "fewer than two axes"
    return tensor_reason(x)


def _refuse(self: Any) -> str | None:
    test = self.univariate_test
    if type(test).__name__ != "EppsPulley" or not all(hasattr(test, name) for name in ("t", "phi", "weights", "n_points")):
        return f"its univariate test is a {type(test).__name__}, not a known EppsPulley"
    if self.reduction not in ("mean", "sum") or self.clip_value is not None or self.sampler != "gaussian":
        return "it clips, does not reduce, or samples otherwise than from a normal distribution"
    t = test.t.detach().cpu()
    if not torch.equal(t, torch.linspace(0, float(t[-1]), test.n_points)):
        return "its points are not evenly spaced from 0"
    return None


def _install(self: nn.Module) -> None:
    self.__dict__[_T_MAX] = float(self.univariate_test.t[-1])  # type: ignore[union-attr, index, operator]


def _uninstall(self: nn.Module) -> None:
    self.__dict__.pop(_T_MAX, None)


TARGETS = (
    Target(
        "lejepa",
        "SlicingUnivariateTest",
        (("x",),),
        ("univariate_test", "num_slices", "reduction", "sampler", "clip_value", "global_step"),
        "the statistic without a tensor of samples x slices x points",
        _sliced_test,
        _sliced_reason,
        _refuse,
        install=_install,
        uninstall=_uninstall,
    ),
)

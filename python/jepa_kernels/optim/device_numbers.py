"""A few numbers as a float64 tensor that stays in place: uploaded only when they change, copied on the device where
they are tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.plans import upload


class DeviceNumbers:
    """`set(values)` returns the tensor. A captured CUDA graph copies the tensors among the values at every replay;
    plain numbers must have been set before the capture, with the values that they have in it."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._tensor = torch.zeros(count, dtype=torch.float64, device=device)
        self._plain: list[float] | None = None

    def fits(self, count: int, device: torch.device) -> bool:
        """Whether this holds as many numbers, on that device."""
        return self._tensor.numel() == count and self._tensor.device == device

    def set(self, values: Sequence[float | Tensor]) -> Tensor:
        """Brings the tensor to these values.

        Raises:
            RuntimeError: a plain number changed inside a graph capture.
        """
        plain = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
        if plain != self._plain:
            if self._tensor.is_cuda and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "AdamWEMA: a hyperparameter changed inside a CUDA graph capture; run a step before, or pass it "
                    "as a tensor"
                )
            upload(plain, self._tensor)
            self._plain = plain
        for index, value in enumerate(values):
            if isinstance(value, Tensor):
                self._tensor[index].copy_(value.reshape(()))
        return self._tensor

"""Dynamic tanh: what transformers without normalisation have in the place of LayerNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ALPHA_INIT = 0.5


class DynamicTanh(nn.Module):
    """A squashing of every feature by itself in the place of LayerNorm, with one learned slope for all of them.

    Formula: y = weight * tanh(alpha * x) + bias.

    Shapes: (..., D) -> (..., D); `weight` and `bias` (D,), `alpha` (1,).

    Dtypes: the tanh has x's dtype, the result that of the parameters, as LayerNorm's under autocast.

    Errors: RuntimeError of torch where x has another number of features.

    Cost: x read once and y written once; no statistics, so no pass over x before the one that writes. Backward keeps the tanh.

    State dict: `alpha`, `weight`, `bias`, the published keys.

    Deterministic: yes.

    Source: Zhu et al., Transformers without Normalization (2025).

    Example:
        >>> norm = DynamicTanh(4)
        >>> norm(torch.tensor([0.0, 2.0, -2.0, 100.0])).round(decimals=3)
        tensor([ 0.0000,  0.7620, -0.7620,  1.0000], grad_fn=<RoundBackward1>)
    """

    def __init__(self, features: int, alpha: float = ALPHA_INIT) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, self.weight, torch.tanh(self.alpha.to(x.dtype) * x).to(self.weight.dtype))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}"

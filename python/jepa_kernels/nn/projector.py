"""The head of LeJEPA and VICReg: linear maps with batch norm and ReLU between them."""

from __future__ import annotations

from torch import Tensor, nn

from .linear import Linear


class Projector(nn.Module):
    """Maps the features of an image to the space where objectives on views compare them.

    Formula: `depth` linear maps; after each but the last, batch norm over the rows and ReLU.

    Shapes: (N, in_features) -> (N, out_features), N the rows over which batch norm takes its statistics, at least two in
    training.

    Dtypes: follow autocast; batch norm sums in float32.

    Errors: ValueError for fewer than two layers, and of torch for one row in training.

    State dict: `layers.i.weight` and `.bias` (`last_bias` False leaves the last out), `norms.i.*` with the running statistics.

    Deterministic: as the matrix products of the device are.

    Source: the projector of LeJEPA (Balestriero and LeCun, 2025) and, with `last_bias=False`, the expander of VICReg (Bardes et
    al., 2022).

    Example:
        >>> import torch
        >>> Projector(8, 32, 16)(torch.zeros(4, 8)).shape
        torch.Size([4, 16])
    """

    def __init__(
        self, in_features: int, hidden_features: int, out_features: int, depth: int = 3, last_bias: bool = True
    ) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"a projector has at least 2 layers; got depth = {depth}")
        widths = [in_features, *[hidden_features] * (depth - 1)]
        inner = [Linear(before, hidden_features) for before in widths[:-1]]
        self.layers = nn.ModuleList([*inner, Linear(hidden_features, out_features, bias=last_bias)])
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden_features) for _ in inner)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            x = norm(layer(x)).relu()
        return self.layers[-1](x)

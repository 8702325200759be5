"""Linear layers and MLPs inside the models that the other modules here recognise: faster products, GELU in their epilogues."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.linear import float32_product
from ..ops import linear as products
from .pieces import tensor_reason
from .swap import is_patched
from .targets import Target


def _linear(self: Any, input: Tensor) -> Tensor:
    if products.why_not(input, self) is None:
        return products.linear(input, self)
    exact = float32_product(input, self.weight, self.bias)
    return F.linear(input, self.weight, self.bias) if exact is None else exact


def _mlp(names: tuple[str, ...], self: Any, x: Tensor) -> Tensor:
    first, second = getattr(self, names[0]), getattr(self, names[2])
    if products.why_not(x, first, second) is None:
        return products.mlp(x, first, second)
    return second(F.gelu(first(x)))


def _first_half(names: tuple[str, ...], self: Any, x: Tensor) -> Tensor:
    layer = getattr(self, names[0])
    return products.linear_gelu(x, layer) if products.why_not(x, layer) is None else F.gelu(layer(x))


def _reason(names: tuple[str, ...], self: Any, x: Any) -> str | None:
    reason = tensor_reason(x)
    if reason is not None:
        return reason
    for part in self.children():
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            return "hooks on its layers"
        if isinstance(part, nn.Dropout) and part.training and part.p > 0:
            return f"dropout {part.p} in training"
    return _refuse(names, self)


def _refuse(names: tuple[str, ...], self: Any) -> str | None:
    """None, or why this is not linear, exact GELU, linear, with nothing but dropout between."""
    layers, activation = [getattr(self, name) for name in names[::2]], getattr(self, names[1])
    if not all(_plain_linear(layer) for layer in layers):
        return "its layers are not plain linear layers"
    if not _exact_gelu(activation):
        return "its activation is not the exact GELU"
    known = {id(part) for part in (*layers, activation)}
    others = [part for part in self.children() if id(part) not in known]
    if not all(isinstance(part, (nn.Dropout, nn.Identity)) for part in others):
        return "it has further layers"
    return None


def _plain_linear(layer: Any) -> bool:
    return type(layer) is nn.Linear or (is_patched(layer) and isinstance(layer, nn.Linear))


def _exact_gelu(activation: Any) -> bool:
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return type(activation).__name__ == "GELUActivation" and getattr(activation, "act", None) is F.gelu


def _probe(names: tuple[str, ...], self: Any) -> Tensor:
    weight = getattr(self, names[0]).weight
    return torch.randn(3, weight.shape[1], device=weight.device, dtype=weight.dtype)


def _foreign_forward(self: nn.Module) -> str | None:
    owner = next(cls for cls in type(self).__mro__ if "forward" in cls.__dict__)
    return None if owner is nn.Linear else "its forward is not that of torch.nn.Linear"


def _target(code_base: str, class_name: str, argument: str, names: tuple[str, ...]) -> Target:
    """An MLP whose first layer, activation and second layer have these names, or the first half of one."""
    run = _mlp if len(names) == 3 else _first_half
    return Target(
        code_base,
        class_name,
        ((argument,),),
        names,
        "products with the GELU and its derivative in their epilogues",
        lambda self, *args, **kwargs: run(names, self, *args, *kwargs.values()),  # one argument, whatever it is called
        lambda self, *args, **kwargs: _reason(names, self, *args, *kwargs.values()),
        lambda self: _refuse(names, self),
        probe=lambda self: _probe(names, self),
        within=True,
    )


TARGETS = (
    Target(
        "torch",
        "Linear",
        (("input",),),
        ("in_features", "out_features", "weight", "bias"),
        "bfloat16 products that convert their weights on the way; float32 ones by oneDNN",
        _linear,
        refuse=_foreign_forward,
        within=True,
    ),
    _target("official", "MLP", "x", ("fc1", "act", "fc2")),
    _target("timm", "Mlp", "x", ("fc1", "act", "fc2")),  # and dinov2
    _target("transformers", "VJEPA2MLP", "hidden_state", ("fc1", "activation", "fc2")),
    _target("transformers", "IJepaMLP", "hidden_states", ("fc1", "activation_fn", "fc2")),
    _target("transformers", "IJepaIntermediate", "hidden_states", ("dense", "intermediate_act_fn")),
)

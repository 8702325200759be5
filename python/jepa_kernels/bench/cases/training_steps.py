"""Whole training steps: our model on each backend against an eager model in its official form, from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..correctness import Tolerance
from ..providers import kernel_providers
from .base import Case, Provider, Setting, Work

OPERATORS = ("patch_embed", "patch_embed_pair", "masked_attention", "jepa_loss", "adamw_ema")
CHECKED_STEPS = 3
# The loss is one number, and PyTorch's own error in it can be small by luck: allow about one rounding of the dtype.
FLOOR = {"bf16": 2.0**-8, "fp32": 2.0**-18}

Step = Callable[[], Tensor]


class Shape(Protocol):
    """Sizes of a step; every field of it is told in the results."""

    @property
    def batch(self) -> int: ...


@dataclass(frozen=True)
class StepInputs:
    """uint8 pixels, the masks, and the weights that every provider starts from."""

    pixels: Tensor
    masks_enc: list[Tensor]
    masks_pred: list[Tensor]
    state: dict[str, Tensor]
    config: Any
    shape: Any
    dtype: str

    @property
    def autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.dtype == "bf16" else None


@dataclass(frozen=True)
class Family:
    """One kind of model: ours of a shape and a seed, the eager one of a configuration and its step, the target's momentum."""

    build: Callable[[Any, int], Any]
    eager_model: Callable[[Any], Any]
    eager_step: Callable[..., Tensor]
    momentum: float

    def inputs(
        self,
        shape: Any,
        dtype: str,
        setting: Setting,
        pixels: Tensor,
        masks: tuple[Sequence[Tensor], Sequence[Tensor]],
        config: Any,
    ) -> StepInputs:
        """The inputs on the device of the setting, with the weights of its seed."""
        context, target = ([mask.to(setting.device) for mask in part] for part in masks)
        state = {name: value.detach().clone() for name, value in self.build(shape, setting.seed).state_dict().items()}
        return StepInputs(pixels.to(setting.device), context, target, state, config, shape, dtype)

    def kernel_setup(self, inputs: StepInputs) -> Step:
        """A step of our model."""
        from ... import models

        model = self.build(inputs.shape, 0)
        model.load_state_dict(inputs.state)
        model.to(inputs.pixels.device)
        optimizer = models.make_adamw_ema(model, shadow_dtype=inputs.autocast, momentum=self.momentum)

        def step() -> Tensor:
            masks = inputs.masks_enc, inputs.masks_pred
            options: dict[str, Any] = {"momentum": self.momentum, "autocast_dtype": inputs.autocast}
            return models.train_step(model, inputs.pixels, *masks, optimizer, **options)[0]

        return step

    def eager_setup(self, inputs: StepInputs, *, double: bool = False, fused: bool = False, compiled: bool = False) -> Step:
        """A step of the eager model."""
        from ...models import configs

        model, device = self.eager_model(inputs.config), inputs.pixels.device
        model.load_state_dict(inputs.state)
        model.to(device, torch.float64 if double else torch.float32)
        if compiled:
            model.compile(dynamic=False)
        return partial(
            self.eager_step,
            model,
            inputs.pixels,
            inputs.masks_enc,
            inputs.masks_pred,
            model.make_optimizer(configs.LEARNING_RATE, configs.WEIGHT_DECAY, fused=fused),
            mean=torch.tensor(configs.PIXEL_MEAN, dtype=torch.float64, device=device),
            std=torch.tensor(configs.PIXEL_STD, dtype=torch.float64, device=device),
            momentum=self.momentum,
            autocast_dtype=None if double else inputs.autocast,
        )

    def case(
        self,
        name: str,
        shape: Shape,
        dtype: str,
        tags: set[str],
        make_inputs: Callable[[Setting], StepInputs],
        work: Callable[[StepInputs], Work],
    ) -> Case:
        """One case; the name gains its batch.

        Compiling takes longer than a quick run has, and models train in bf16. At larger sizes a step of the reference, whose
        attention keeps its scores, would take the time of the others' rounds.
        """
        small = "quick" in tags
        return Case(
            operator="train_step",
            name=f"{name}-b{shape.batch}",
            dtype=dtype,
            shape=dict(vars(shape)),
            make_inputs=make_inputs,
            providers=partial(self._providers, reference=small, compiled=dtype == "bf16" and not small),
            work=work,
            reference=partial(self._eager_losses, double=True),
            low_precision=self._eager_losses,
            peer="torch-eager",
            tags=frozenset(tags),
            tolerance=Tolerance(floor=FLOOR[dtype]),
        )

    def _providers(self, device: torch.device, *, reference: bool, compiled: bool) -> list[Provider]:
        def official(name: str, about: str, *, fused: bool = False, compiled: bool = False) -> Provider:
            setup = partial(self.eager_setup, fused=fused, compiled=compiled)
            return Provider(name, _run, setup, outputs=_losses, about=about)

        ours = kernel_providers(OPERATORS, device, _run, setup=self.kernel_setup, outputs=_losses)
        found = [
            *(provider for provider in ours if reference or provider.name != "jk-reference"),
            official("torch-eager", "eager, in the official form"),
            official("torch-eager-fused", "the same, AdamW(fused=True)", fused=True),
        ]
        if compiled:
            found.append(official("torch-compile", "model compiled, AdamW(fused=True)", fused=True, compiled=True))
        return found

    def _eager_losses(self, inputs: StepInputs, *, double: bool = False) -> list[Tensor]:
        step = self.eager_setup(inputs, double=double)
        return _losses(step, step())


def _run(step: Step) -> Tensor:
    return step()


def _losses(step: Step, first: Tensor) -> list[Tensor]:
    """Losses of the first steps: the later ones depend on gradients, optimiser and target update."""
    return [torch.stack([first, *(step() for _ in range(CHECKED_STEPS - 1))])]

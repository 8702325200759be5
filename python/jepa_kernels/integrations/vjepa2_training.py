"""The parts of vjepa2's training step that live in closures of its `train.py`, where no patch can reach them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.ema_update import ema_update_
from ..functional.jepa_loss import share_of_loss


@dataclass(frozen=True)
class TrainStepHooks:
    """Replacements for the closures `forward_target`, `forward_context` and `loss_fn`, and for the momentum update.

    Example: in `train.py`, before the loop, `hooks = train_step_hooks(encoder, predictor, target_encoder, loss_exp)`; in it
    `h = hooks.forward_target(clips)`, `z = hooks.forward_context(clips, masks_enc, masks_pred)`,
    `loss = hooks.loss_fn(z, h, masks_pred)` and, after the optimiser, `hooks.momentum_update(next(momentum_scheduler))`.
    """

    encoder: nn.Module
    predictor: nn.Module
    target_encoder: nn.Module
    loss_exp: float = 1.0

    @torch.no_grad()
    def forward_target(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Target tokens (B, N, D) of each clip length, not yet normalised: the loss normalises those it needs."""
        return self.target_encoder(clips)

    def forward_context(
        self, clips: Sequence[Tensor], masks_enc: Sequence[Sequence[Tensor]], masks_pred: Sequence[Sequence[Tensor]]
    ) -> list[list[Tensor]]:
        """Predicted tokens, a list of masks for each clip length."""
        return self.predictor(self.encoder(clips, masks_enc), masks_enc, masks_pred)

    def loss_fn(
        self, z: Sequence[Sequence[Tensor]], h: Sequence[Tensor], masks_pred: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        """Mean over all masks of mean |z - layer_norm(h)[ids]|**loss_exp / loss_exp, in float32; see `jk.jepa_loss`."""
        count = sum(map(len, z))
        if not count:
            raise ValueError("loss_fn: z holds no prediction; pass one for each mask")
        losses: list[Any] = []
        for predictions, target, masks in zip(z, h, masks_pred, strict=True):
            for prediction, ids in zip(predictions, masks, strict=True):
                losses.append(share_of_loss(prediction, target.detach(), ids, 1 / count, power=self.loss_exp))
        return torch.stack(losses).sum()

    def momentum_update(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * encoder, all parameters in one call; see `jk.ema_update_`."""
        ema_update_(list(self.target_encoder.parameters()), list(self.encoder.parameters()), momentum)


def train_step_hooks(
    encoder: nn.Module, predictor: nn.Module, target_encoder: nn.Module, loss_exp: float = 1.0
) -> TrainStepHooks:
    """The hooks for these modules, wrapped (MultiSeqWrapper, DistributedDataParallel) as the training loop has them.

    The wrapped modules are called as the original closures call them, so patch them with `jk.patch` beside.

    Raises:
        ValueError: `loss_exp` is below 1, or the encoders have different parameters.

    Example:
        >>> import torch
        >>> encoder, target = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).requires_grad_(False)
        >>> hooks = train_step_hooks(encoder, torch.nn.Identity(), target)
        >>> hooks.momentum_update(0.0)
        >>> torch.equal(target.weight, encoder.weight)
        True
    """
    if loss_exp < 1:
        raise ValueError(f"train_step_hooks: loss_exp is {loss_exp}; give 1 or more")
    shapes = [[parameter.shape for parameter in module.parameters()] for module in (encoder, target_encoder)]
    if shapes[0] != shapes[1]:
        raise ValueError("train_step_hooks: encoder and target_encoder have different parameters; the target is a copy")
    return TrainStepHooks(encoder, predictor, target_encoder, loss_exp)

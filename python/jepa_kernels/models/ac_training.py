"""The losses of V-JEPA 2-AC: teacher forcing over all frames, and a short rollout on the model's own predictions."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional.jepa_loss import jepa_loss
from .ac_predictor import VisionTransformerPredictorAC
from .objective import TARGET_NORM_EPS


class ACLosses(NamedTuple):
    """The sum, with its gradient, and its two detached terms."""

    loss: Tensor
    teacher_forcing: Tensor
    rollout: Tensor


def normalize_tokens(x: Tensor) -> Tensor:
    """LayerNorm over channels without parameters, eps 1e-5, in float32 at least: how V-JEPA 2-AC compares representations."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.layer_norm(x.to(wide), (x.shape[-1],), eps=TARGET_NORM_EPS)


def ac_losses(
    predictor: VisionTransformerPredictorAC,
    tokens: Tensor,
    actions: Tensor,
    states: Tensor,
    extrinsics: Tensor | None = None,
    *,
    auto_steps: int = 2,
    loss_exp: float = 1.0,
    normalize_reps: bool = True,
    train_targets: bool = False,
) -> ACLosses:
    """How far the predictor is from the frames that came, told the true past, and left to its own predictions.

    Formula: with h the frames' tokens, f the predictor followed by `normalize_tokens` (or by nothing),
    z_tf[t + 1] = f(h[0..t], actions[0..t], states[0..t]), and z_ar[0] = h[0], z_ar[t + 1] = f(z_ar[0..t], ...) for
    `auto_steps` steps, the first of which is that of teacher forcing,

        loss = mean |z_tf - h|^p / p + mean |z_ar - h|^p / p,   p = loss_exp, means over all predicted tokens and channels.

    Gradients flow through the whole rollout, into the predictor and, where `tokens` require them, into what the predictor is
    given; into the targets only with `train_targets`, for an encoder that learns along (and needs something else to keep it
    from collapse). V-JEPA 2-AC's encoder is frozen.

    Shapes: tokens (B, T * P, D), as `normalize_tokens` leaves them; actions (B, T - 1, A) or longer, states (B, T - 1, A) or
    longer, extrinsics likewise (B, ., A - 1).

    Dtypes: the predictor follows autocast; normalisation and losses are float32.

    Raises:
        ValueError: fewer than two frames, `auto_steps` below 1 or beyond the frames, and what the predictor refuses.

    Cost: one pass over T - 1 frames, and one each over 2, ..., auto_steps frames.

    Deterministic: as the predictor is.

    Source: V-JEPA 2 (Assran et al., 2025).

    Example:
        >>> predictor = VisionTransformerPredictorAC(32, 16, embed_dim=64, predictor_embed_dim=48, depth=1, num_heads=2)
        >>> tokens = normalize_tokens(torch.randn(2, 4 * 4, 64))
        >>> losses = ac_losses(predictor, tokens, torch.zeros(2, 3, 7), torch.zeros(2, 4, 7))
        >>> losses.loss.requires_grad, losses.rollout.requires_grad
        (True, False)
    """
    patches = predictor.patches_per_frame
    steps = tokens.shape[1] // patches - 1
    if steps < 1 or not 1 <= auto_steps <= steps:
        raise ValueError(f"{steps + 1} frames allow 1 to {steps} auto_steps, and at least 2 frames are needed; got {auto_steps}")

    def predict(x: Tensor, count: int) -> Tensor:
        cut = None if extrinsics is None else extrinsics[:, :count]
        predicted = predictor(x, actions[:, :count], states[:, :count], cut)
        return normalize_tokens(predicted) if normalize_reps else predicted

    forced = predict(tokens[:, :-patches], steps)
    rolled = torch.cat([tokens[:, :patches], forced[:, :patches]], dim=1)
    for count in range(2, auto_steps + 1):
        rolled = torch.cat([rolled, predict(rolled, count)[:, -patches:]], dim=1)
    targets = tokens[:, patches:]
    terms = (forced, targets), (rolled[:, patches:], targets[:, : auto_steps * patches])
    forcing, rollout = (jepa_loss(z, h.detach(), power=loss_exp, normalize=False) for z, h in terms)
    loss = forcing + rollout
    if train_targets:
        # The penalty is symmetric: with the roles exchanged it has the same value, and the gradient that the targets lack.
        mirrored = torch.stack([jepa_loss(h, z.detach(), power=loss_exp, normalize=False) for z, h in terms]).sum()
        loss = loss + mirrored - mirrored.detach()
    return ACLosses(loss, forcing.detach(), rollout.detach())

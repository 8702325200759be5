"""Surprise window by window, nothing shared: what `surprise` computes, as its definition reads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models import VJEPA2
from ..models.objective import normalised
from .windows import Windows


@torch.no_grad()
def surprise_per_window(model: VJEPA2, frames: Tensor, windows: Windows | None = None) -> Tensor:
    """Scores (windows, contexts) of one clip (T, H, W, C) uint8: every window and context length by calls of its own.

    The target is computed for every context length anew, and every frame embedded for every window, as published. For tests and
    comparisons; `surprise` gives the same scores."""
    windows = windows or Windows()
    device, tubelet = next(model.parameters()).device, model.encoder.tubelet_size
    rows = []
    for start in windows.starts(len(frames)):
        clip = frames[start : start + windows.length].to(device).permute(3, 0, 1, 2)[None]
        depth, height, width = model.encoder.grid(clip)
        ids = torch.arange(depth * height * width, device=device)[None]
        scores = []
        for context in windows.contexts:
            seen = context // tubelet * height * width
            known, hidden = ids[:, :seen], ids[:, seen:]
            predicted = model.predictor(model.encoder(clip, masks=known), known, hidden, mask_index=0)
            target = normalised(model.target_encoder(clip))
            scores.append((predicted.float() - target[:, seen:]).abs().mean())
        rows.append(torch.stack(scores))
    return torch.stack(rows).cpu()

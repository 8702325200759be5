"""Surprise of a clip: how far what follows is from what the model predicted, everything that windows share computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import VJEPA2
from ..models.objective import normalised
from ..models.packed import encode, predict, unpack
from .windows import Windows, check_frames, embed_tubelets, gather_windows

AGGREGATES = ("mean", "max")


@dataclass(frozen=True)
class Surprise:
    """Scores (windows, contexts) float32 on the CPU, the first frame of each window, and the windows' settings."""

    scores: Tensor
    starts: list[int]
    windows: Windows

    @property
    def filtered(self) -> Tensor:
        """The least surprise over the contexts, one number a window: what no length of context explains. (windows,)"""
        return self.scores.amin(dim=1)

    def of_clip(self, aggregate: str = "mean", context: int | None = None) -> float:
        """One number for the clip: mean or max over windows, at one context length or (None) of the filtered scores.

        Raises:
            ValueError: an aggregate or a context that is none.
        """
        if aggregate not in AGGREGATES:
            raise ValueError(f"aggregate must be one of {', '.join(AGGREGATES)}; got {aggregate!r}")
        if context is None:
            values = self.filtered
        elif context in self.windows.contexts:
            values = self.scores[:, self.windows.contexts.index(context)]
        else:
            raise ValueError(f"context must be one of {list(self.windows.contexts)} frames; got {context}")
        return float(values.mean() if aggregate == "mean" else values.amax())


@torch.no_grad()
def surprise(model: VJEPA2, frames: Tensor, windows: Windows | None = None, *, batch_windows: int = 16) -> Surprise:
    """The surprise of a model at every window of a clip, for several lengths of context.

    Formula: for the window of frames s .. s + length - 1 and the context of c frames, with h = LN(target_encoder(window))
    without affine parameters and K the tokens from frame c on,

        score[s, c] = mean over K and channels of |predictor(encoder(first c frames), K) - h[K]|.

    Shapes: frames (T, H, W, C) uint8 of the model's size -> scores (1 + (T - length) // stride, len(contexts)). Frames behind the
    last whole window are not scored.

    Dtypes: those of the model and of any autocast; the difference is taken in float32.

    Raises:
        ValueError: a clip shorter than a window; frames of another size or type; windows that the model cannot score.

    Cost: one patch embedding of every frame by each of the two encoders, one target per window, and of every window and context
        one encoding of the context and one prediction, packed, `batch_windows` windows in memory at a time. A position is that
        within a window, and enters after the embedding; so sharing embeddings changes no score.

    Deterministic: as the model's operators are.

    Source: intuitive physics from video prediction (Garrido et al., 2025).

    Example:
        >>> from jepa_kernels.models import build_vjepa2
        >>> model = build_vjepa2("vit_tiny", img_size=32, pred_depth=1, encoder={"depth": 1}, seed=0)
        >>> surprise(model, torch.zeros(20, 32, 32, 3, dtype=torch.uint8)).scores.shape
        torch.Size([3, 5])
    """
    windows = windows or Windows()
    windows.check(model)
    if frames.ndim != 4:
        raise ValueError(f"frames must be (T, H, W, C); got shape {tuple(frames.shape)}")
    check_frames(model, tuple(frames.shape), frames.dtype)
    if batch_windows < 1:
        raise ValueError(f"batch_windows must be at least 1; got {batch_windows}")
    starts = list(windows.starts(len(frames)))
    if not starts:
        raise ValueError(f"the clip has {len(frames)} frames, less than one window of {windows.length}; give a longer one")
    tubelet = model.encoder.tubelet_size
    own, target = embed_tubelets(model, frames[: starts[-1] + windows.length])
    rows = []
    for first in range(0, len(starts), batch_windows):
        chosen = [start // tubelet for start in starts[first : first + batch_windows]]
        some_own, some_target = (gather_windows(part, chosen, windows.length // tubelet) for part in (own, target))
        rows.append(score_windows(model, some_own, some_target, windows).cpu())
    return Surprise(torch.cat(rows), starts, windows)


@torch.no_grad()
def score_windows(model: VJEPA2, own: Tensor, target: Tensor, windows: Windows) -> Tensor:
    """Scores (W, contexts) of W windows from their patch embeddings without positions, (W, N, D) by each encoder.

    The arguments are taken as checked: see `surprise`."""
    encoder, count = model.encoder, own.shape[0]
    grid = (windows.length // encoder.tubelet_size, model.predictor.grid_height, model.predictor.grid_width)
    own, target = _placed(own, encoder.positions(grid)), _placed(target, model.target_encoder.positions(grid))
    frame = grid[1] * grid[2]
    ids = torch.arange(own.shape[1], device=own.device).expand(count, -1)
    hidden = normalised(encode(model.target_encoder, target.flatten(0, 1), [ids], grid[1:]).view(*target.shape))
    seen = [context // encoder.tubelet_size * frame for context in windows.contexts]
    known, unknown = [ids[:, :end] for end in seen], [ids[:, end:] for end in seen]
    context = encode(encoder, torch.cat([own[:, :end].flatten(0, 1) for end in seen]), known, grid[1:])
    # Token 0 is the one that training uses.
    predicted = predict(model.predictor, context, known, unknown, model.predictor.mask_tokens[0][0], own.shape[1])
    errors = [
        (part.float() - hidden[:, end:]).abs().mean(dim=(1, 2))
        for part, end in zip(unpack(predicted, unknown), seen, strict=True)
    ]
    return torch.stack(errors, dim=1)


def _placed(tokens: Tensor, positions: Tensor | None) -> Tensor:
    return tokens if positions is None else tokens + positions

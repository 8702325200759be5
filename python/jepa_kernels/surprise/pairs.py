"""How often the impossible clip of a pair surprises more than the possible one; by a model, and by the pixels alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ..models import VJEPA2
from .scenes import Clip, Pair
from .score import AGGREGATES, surprise
from .windows import Windows

Scores = dict[str, float]


def model_scores(model: VJEPA2, clip: Clip, windows: Windows | None = None) -> Scores:
    """All ways to sum a clip up: "mean 2", .. "max filtered"."""
    found = surprise(model, torch.from_numpy(clip), windows)
    contexts = [*found.windows.contexts, None]
    return {
        f"{aggregate} {'filtered' if context is None else context}": found.of_clip(aggregate, context)
        for aggregate in AGGREGATES
        for context in contexts
    }


def pixel_scores(clip: Clip) -> Scores:
    """The same from pixels alone: mean and maximum over frames of the mean difference from the frame before."""
    change = torch.from_numpy(clip).float().diff(dim=0).abs().mean(dim=(1, 2, 3))
    return {"mean pixels": float(change.mean()), "max pixels": float(change.amax())}


def pairwise_accuracy(pairs: Iterable[Pair], score: Callable[[Clip], Scores]) -> Scores:
    """Share of the pairs whose impossible clip has the higher score, for each score; a tie is half.

    Raises:
        ValueError: there is no pair.

    Example:
        >>> from jepa_kernels.surprise import clip_pair
        >>> pairwise_accuracy([clip_pair(0, "vanish")], pixel_scores)
        {'mean pixels': 0.0, 'max pixels': 1.0}
    """
    right: dict[str, list[float]] = {}
    for pair in pairs:
        possible, impossible = score(pair.possible), score(pair.impossible)
        for name, value in impossible.items():
            right.setdefault(name, []).append(0.5 if value == possible[name] else float(value > possible[name]))
    if not right:
        raise ValueError("pairwise accuracy needs at least one pair")
    return {name: sum(values) / len(values) for name, values in right.items()}

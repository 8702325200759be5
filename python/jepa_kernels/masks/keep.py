"""From the token ids of each sample to masks, cut to the smallest, cut to a budget or left as they are; what samplers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..ragged import RaggedIds

Masks: TypeAlias = list[Any]
"""One mask an entry: int64 (B, K), or `RaggedIds`."""

KEEP_MODES = ("batch", "ragged", "budget")

# Sets that cannot be drawn, whatever the corners, end in an error and not in a loop.
MAX_DRAWS = 1000


def check_keep(keep: str) -> None:
    """Raises ValueError unless `keep` is one of KEEP_MODES."""
    if keep not in KEEP_MODES:
        raise ValueError(f"keep must be one of {', '.join(KEEP_MODES)}; got {keep!r}")


def check_budget(keep: str, budget: Sequence[Sequence[int]] | None, masks: int) -> list[tuple[int, int]] | None:
    """The (context, target) token counts of each mask; there are some exactly where `keep` is "budget"."""
    if (keep == "budget") != (budget is not None):
        raise ValueError(f'keep="budget" and budget= belong together; got keep={keep!r} and budget={budget!r}')
    if budget is None:
        return None
    pairs = [(int(pair[0]), int(pair[1])) for pair in budget if len(pair) == 2]
    if len(pairs) != len(budget) or len(pairs) != masks or min(map(min, pairs)) < 1:
        raise ValueError(
            f"budget holds one pair (context, target) of token counts, 1 or more, for each of {masks} masks; got {budget}"
        )
    return pairs


def joined(ids: Sequence[Tensor], keep: str, limit: int | None = None) -> Any:
    """One mask of a batch: cut to the smallest set (and `limit`), always the first ids, or ragged."""
    if keep == "ragged":
        return RaggedIds.from_list(ids)
    count = min(len(entry) for entry in ids)
    return torch.stack([entry[: count if limit is None else min(count, limit)] for entry in ids])


def subset(ids: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the ids, each as likely as any other, ascending; all of them where there are no more."""
    if len(ids) <= count:
        return ids
    return ids[torch.randperm(len(ids), generator=generator)[:count]].sort().values


def complement(ids: Tensor, num_tokens: int) -> Tensor:
    """The ids below `num_tokens` that are not among these, ascending."""
    outside = torch.ones(num_tokens, dtype=torch.bool)
    outside[ids] = False
    return outside.nonzero().flatten()


def uniform(bounds: tuple[float, float], draw: float) -> float:
    """A draw from [0, 1) stretched to the bounds."""
    low, high = bounds
    return low + draw * (high - low)


def check_range(name: str, bounds: tuple[float, float], upper: float | None = 1.0) -> None:
    """Raises ValueError unless 0 < low <= high <= upper."""
    low, high = bounds
    if not 0.0 < low <= high or (upper is not None and high > upper):
        limit = "" if upper is None else f" <= {upper:g}"
        raise ValueError(f"{name} must satisfy 0 < low <= high{limit}; got {(low, high)}")


class Sampler:
    """Draws masks batch after batch; what it carries along is the number of the next batch, and its generator."""

    step: int
    generator: torch.Generator

    def draw(self, step: int, generators: Sequence[torch.Generator]) -> tuple[Masks, Masks]:
        """The masks of batch number `step`, what is of sample b from `generators[b]`."""
        raise NotImplementedError

    def __call__(self, batch_size: int) -> tuple[Masks, Masks]:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        drawn = self.draw(self.step, [self.generator] * batch_size)
        self.step += 1
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """The batch number and the generator's state."""
        return {"step": self.step, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self.step = int(state["step"])
        self.generator.set_state(state["generator"])

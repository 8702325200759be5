"""Learning rate, weight decay and momentum as functions of the step, as the official training scripts compute them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import Optimization


@dataclass(frozen=True)
class Schedules:
    """The values of a run of `steps_per_epoch * epochs` steps. Steps count from 0.

    Formula: with i = step + 1, W = int(warmup_epochs * steps_per_epoch) and S = int(ipe_scale * epochs * steps_per_epoch),

        lr = start + i / W (ref - start)                                   while i < W,
        lr = final + (ref - final) (1 + cos(pi (i - W) / (S - W))) / 2     then, never below final,
        weight decay = final + (ref - final) (1 + cos(pi i / S)) / 2, never beyond final,
        momentum = m0 + step (m1 - m0) / (epochs * steps_per_epoch * ipe_scale);

    with `schedule = "linear"` lr = ref + i / S (final - ref) throughout.

    Source: the training scripts of I-JEPA, V-JEPA and V-JEPA 2; the first step of each already counts as 1.

    Example:
        >>> settings = Optimization(epochs=2, lr=1.0, warmup_epochs=1.0, ema=(0.5, 1.0))
        >>> schedules = Schedules(settings, steps_per_epoch=4)
        >>> schedules.lr(0), schedules.lr(3), schedules.momentum(4)
        (0.25, 1.0, 0.75)
    """

    settings: Optimization
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.settings.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        return int(self.settings.warmup_epochs * self.steps_per_epoch)

    @property
    def _length(self) -> int:
        return int(self.settings.ipe_scale * self.steps)

    def lr(self, step: int) -> float:
        s, done = self.settings, step + 1
        if s.schedule == "linear":
            return s.lr + done / max(1, self._length) * (s.final_lr - s.lr)
        if done < self.warmup_steps:
            return s.start_lr + done / max(1, self.warmup_steps) * (s.lr - s.start_lr)
        progress = (done - self.warmup_steps) / max(1, self._length - self.warmup_steps)
        return max(s.final_lr, _cosine(s.lr, s.final_lr, progress))

    def weight_decay(self, step: int) -> float:
        s = self.settings
        value = _cosine(s.weight_decay, s.final_weight_decay, (step + 1) / max(1, self._length))
        limit = max if s.final_weight_decay <= s.weight_decay else min
        return limit(s.final_weight_decay, value)

    def momentum(self, step: int) -> float:
        start, end = self.settings.ema
        return start + step * (end - start) / (self.steps * self.settings.ipe_scale)

    def clips(self, step: int) -> bool:
        """Whether gradients are clipped at this step: in epochs after the one in which the warm-up ends, as V-JEPA does."""
        return self.settings.clip_grad > 0 and step // self.steps_per_epoch > self.settings.warmup_epochs


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * progress))

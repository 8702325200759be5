"""Statistics of timing samples: median, spread, drift, and paired ratios with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import require

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 4000


@dataclass(frozen=True)
class Summary:
    """Location and spread of one provider's samples, in seconds."""

    median: float
    q1: float
    q3: float
    ci_low: float
    ci_high: float
    drift: float
    rounds: int

    @property
    def relative_ci(self) -> float:
        """Width of the 95 % interval of the median, over the median."""
        return (self.ci_high - self.ci_low) / self.median


@dataclass(frozen=True)
class Ratio:
    """How many times faster a provider is than its peer: peer seconds / provider seconds."""

    value: float
    ci_low: float
    ci_high: float
    rounds: int

    @property
    def relative_ci(self) -> float:
        """Width of the 95 % interval of the ratio, over the ratio."""
        return (self.ci_high - self.ci_low) / self.value


def bootstrap_median(samples: Floats, seed: int) -> tuple[float, float]:
    """Expanded percentile bootstrap interval of the median.

    The median rather than the mean: one preempted round on a shared machine must not move the result. The plain
    percentile interval of n samples is too narrow by about sqrt((n - 1) / n) and a normal for a t quantile, so its
    tail is taken further out. Source: Hesterberg, The American Statistician 69 (2015), section 5.3.
    """
    if samples.size == 1:
        return float(samples[0]), float(samples[0])
    tail = _expanded_tail(samples.size)
    low, high = np.quantile(bootstrap_medians(samples, seed), [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_medians(samples: Floats, seed: int) -> Floats:
    """Medians of resamples drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(0, samples.size, size=(RESAMPLES, samples.size))
    medians: Floats = np.median(samples[drawn], axis=1)
    return medians


def _expanded_tail(size: int) -> float:
    stats = require("scipy.stats")
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, size - 1)
    return float(stats.norm.cdf(-quantile * (size / (size - 1)) ** 0.5))


def drift(samples: Floats) -> float:
    """Relative change of the median from the first to the second half of the rounds, in run order."""
    if samples.size < 4:
        return 0.0
    half = samples.size // 2
    first, second = float(np.median(samples[:half])), float(np.median(samples[-half:]))
    return second / first - 1


def summarise(samples: Sequence[float], seed: int = 0) -> Summary:
    """Median, quartiles, bootstrap interval and drift of seconds per call, given in run order."""
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0 or not np.all(values > 0):
        raise ValueError(f"samples must be positive seconds and not empty, got {list(samples)[:5]}")
    low, high = bootstrap_median(values, seed)
    q1, median, q3 = (float(v) for v in np.quantile(values, [0.25, 0.5, 0.75]))
    return Summary(median, q1, q3, low, high, drift(values), int(values.size))


def paired_ratio(provider: dict[int, float], peer: dict[int, float], seed: int = 0) -> Ratio | None:
    """Speed-up of a provider over a peer from the rounds that both completed.

    exp(median_r log(peer_r / provider_r)): a slow round slows both sides, so drift of the machine cancels.
    """
    rounds = sorted(provider.keys() & peer.keys())
    if len(rounds) < 2:
        return None
    logs = np.log([peer[r] / provider[r] for r in rounds])
    low, high = bootstrap_median(logs, seed)
    return Ratio(float(np.exp(np.median(logs))), float(np.exp(low)), float(np.exp(high)), len(rounds))

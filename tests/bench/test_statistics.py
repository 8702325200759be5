"""Statistics on known distributions."""

from __future__ import annotations

import numpy as np
import pytest

from jepa_kernels.bench.statistics import drift, paired_ratio, summarise


def test_summary_of_known_samples() -> None:
    summary = summarise([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (summary.q1, summary.median, summary.q3, summary.rounds) == (2.0, 3.0, 4.0, 5)
    assert 1.0 <= summary.ci_low <= 3.0 <= summary.ci_high <= 5.0


def test_interval_of_equal_providers_contains_one_in_95_percent_of_runs() -> None:
    generator = np.random.default_rng(3)
    misses = 0
    for run in range(200):
        a, b = (dict(enumerate(1 + 0.2 * generator.random(20))) for _ in range(2))
        ratio = paired_ratio(a, b, seed=run)
        assert ratio is not None
        misses += not ratio.ci_low <= 1 <= ratio.ci_high
    assert misses <= 10


def test_ratio_pairs_rounds_by_number() -> None:
    ratio = paired_ratio({0: 1.0, 1: 10.0, 7: 4.0}, {1: 20.0, 7: 8.0, 9: 1.0})
    assert ratio is not None
    assert (ratio.value, ratio.rounds) == (pytest.approx(2.0), 2)


def test_no_ratio_without_common_rounds() -> None:
    assert paired_ratio({0: 1.0, 1: 1.0}, {2: 1.0, 3: 1.0}) is None


def test_drift_is_the_change_between_halves() -> None:
    assert drift(np.array([1.0, 1.0, 1.2, 1.2])) == pytest.approx(0.2)


@pytest.mark.parametrize("samples", [[], [1.0, 0.0], [1.0, float("nan")]])
def test_samples_that_are_no_durations_are_refused(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        summarise(samples)

"""A cold cache is claimed only for bytes that were really written between two calls."""

from __future__ import annotations

import pytest
import torch

from jepa_kernels.bench.cache import CacheState, Eviction, eviction_for, verified
from jepa_kernels.bench.errors import BenchInputError
from jepa_kernels.bench.timing import Timed, TimingOptions, interleave

from .toys import VirtualMachine

MB = 1_000_000


def test_one_megabyte_tensors_are_cold_after_three_times_a_50_mb_cache() -> None:
    machine = VirtualMachine()
    tensor = torch.zeros(MB, dtype=torch.uint8)
    timed = Timed("read", lambda: (tensor.sum(), machine.work(1e-4)()))
    timed.eviction = Eviction(torch.device("cpu"), 50 * MB)
    interleave([timed], machine.clock(), TimingOptions(rounds=3, warmup_max_s=0.001), now=machine.seconds)
    assert timed.calls_per_sample == 1 and len(timed.samples) == 3
    assert timed.eviction.state() == CacheState("cold", 150 * MB, 50 * MB)


def test_every_sample_is_preceded_by_a_write_that_changes_memory() -> None:
    eviction = Eviction(torch.device("cpu"), 1000)
    seen = []
    for _ in range(3):
        eviction.evict()
        seen.append(int(eviction._buffer[-1]))
    assert len(set(seen)) == 3  # equal bytes could stay unwritten


@pytest.mark.parametrize(
    ("touched", "cache", "words"),
    [(149 * MB, 50 * MB, "150000000"), (0, 50 * MB, "0 bytes touched"), (150 * MB, None, "unknown")],
)
def test_too_few_bytes_are_told_as_warm(touched: int, cache: int | None, words: str) -> None:
    state = verified(touched, cache)
    assert state.state == "warm" and state.reason is not None and words in state.reason


def test_a_buffer_limited_by_memory_is_told_as_warm() -> None:
    eviction = Eviction(torch.device("cpu"), 50 * MB, max_bytes=100 * MB)
    eviction.evict()
    assert eviction.state().state == "warm" and "100000000 bytes touched" in str(eviction.state().reason)


def test_warm_runs_evict_nothing_and_unknown_states_are_named() -> None:
    assert eviction_for("warm", torch.device("cpu"), MB) is None
    with pytest.raises(BenchInputError, match="'tepid'"):
        eviction_for("tepid", torch.device("cpu"), MB)

"""Masks of forecasting: the counts, the order, what lies behind the target, and what is refused."""

import pytest
import torch

from jepa_kernels.masks import ForecastMask


def test_the_first_frames_are_seen_and_those_behind_them_predicted():
    seen, unseen = ForecastMask.from_clip(10, 32, 8, 2, [(6, 4), (4, 2)])(3)
    assert [mask.shape for mask in seen] == [(3, 48), (3, 32)]
    assert [mask.shape for mask in unseen] == [(3, 32), (3, 16)]
    for context, target, end in zip(seen, unseen, (80, 48), strict=True):
        for row in range(3):
            assert torch.equal(torch.cat([context[row], target[row]]), torch.arange(end))


def test_every_batch_is_alike_and_rows_are_memory_of_their_own():
    sampler = ForecastMask((4, 2, 2), [(2, 1)])
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    (first,), _ = sampler.draw(0, generators)
    (again,), _ = sampler.draw(7, generators)
    assert torch.equal(first, again)
    first[0] += 1
    assert first[1].tolist() == list(range(8))
    sampler(2)
    assert sampler.state_dict()["step"] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ForecastMask((4, 0, 2), [(2, 1)]), "each at least 1"),
        (lambda: ForecastMask((4, 2, 2), []), r"1 or more each and 4 together at most; got \[\]"),
        (lambda: ForecastMask((4, 2, 2), [(2, 1), (3, 2)]), r"got \[\(2, 1\), \(3, 2\)\]"),
        (lambda: ForecastMask((4, 2, 2), [(4, 0)]), "1 or more each"),
        (lambda: ForecastMask((4, 2, 2), [(1, 1, 1)]), "pairs"),
        (lambda: ForecastMask.from_clip(8, 32, 8, 2, [(3, 4)]), r"spans must be multiples of 2 frames; got \[\(3, 4\)\]"),
        (lambda: ForecastMask((4, 2, 2), [(2, 1)])(0), "batch_size must be at least 1; got 0"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

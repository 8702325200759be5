"""The masks of MAE and VideoMAE: published counts, tubes, equal chances, and one generator a sample."""

import pytest
import torch

from jepa_kernels.masks import RandomMask


@pytest.mark.parametrize(
    ("grid", "ratio", "kept", "hidden"),
    [
        ((1, 14, 14), 0.75, 49, 147),  # MAE ViT/16 at 224
        ((8, 14, 14), 0.9, 160, 1408),  # VideoMAE: int(0.9 * 196) hidden in a frame
        ((1, 10, 10), 0.9, 10, 90),  # 100 * (1 - 0.9) is a little less than 10 in binary
        ((2, 10, 10), 0.7, 60, 140),
    ],
)
def test_the_published_counts(grid, ratio, kept, hidden):
    (first,), (second,) = RandomMask(grid, ratio)(3)
    assert first.shape == (3, kept) and second.shape == (3, hidden)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(torch.cat([a, b]).sort().values, torch.arange(kept + hidden))
        assert torch.equal(a, a.sort().values) and torch.equal(b, b.sort().values)


def test_tubes_go_through_all_frames():
    (kept,), _ = RandomMask.from_clip(8, 64, 8, 2, ratio=0.9)(2)
    places = kept.view(2, 4, -1) - 64 * torch.arange(4)[:, None]
    assert torch.equal(places, places[:, :1].expand_as(places)) and not torch.equal(places[0], places[1])


def test_every_place_is_as_likely_as_any_other():
    (kept,), _ = RandomMask((1, 4, 4), 0.75)(1500)
    share = torch.bincount(kept.flatten(), minlength=16) / 1500
    assert (share - 0.25).abs().max() < 0.05


def test_a_sample_depends_on_its_generator_alone_and_a_state_goes_on():
    sampler = RandomMask((1, 4, 4))

    def generator(seed):
        return torch.Generator().manual_seed(seed)

    (pair,), _ = sampler.draw(0, [generator(1), generator(2)])
    (alone,), _ = sampler.draw(5, [generator(2)])
    assert torch.equal(pair[1:], alone)
    sampler(2)
    state = sampler.state_dict()
    expected = sampler(2)[0][0]
    other = RandomMask((1, 4, 4), generator=generator(9))
    other.load_state_dict(state)
    assert torch.equal(other(2)[0][0], expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandomMask((1, 4, 4), 0.99), "keep and hide at least one of 16 places; got 0.99"),
        (lambda: RandomMask((1, 4, 4), 0.0), "keep and hide"),
        (lambda: RandomMask((0, 4, 4)), "each at least 1"),
        (lambda: RandomMask((1, 4, 4))(0), "batch_size must be at least 1"),
        (lambda: RandomMask.from_clip(1, 30, 8), "height = 30 is not a multiple of patch_size = 8"),
    ],
)
def test_what_it_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()

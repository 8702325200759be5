"""The 2-D mask sampler: I-JEPA's draws and definitions."""

import pytest
import torch

from jepa_kernels.masks import IJEPA_MASKS, MultiBlockMask2D, RectangleMasks

GRID = (14, 14)


def sampler(seed=0, grid=GRID, **settings):
    masks = RectangleMasks(**settings) if settings else IJEPA_MASKS
    return MultiBlockMask2D(grid, masks, torch.Generator().manual_seed(seed))


def test_draws_are_the_official_ones():
    # Two batches of two images, as the official collator draws them after torch.manual_seed(3).
    draw = sampler(seed=3, grid=(6, 8), num_pred_masks=2, min_keep=4)
    (context,), targets = draw(2)
    assert context.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 8, 9, 14, 16, 17, 22, 24, 25, 30, 32],
        [3, 4, 5, 6, 11, 19, 24, 25, 26, 27, 32, 33, 34, 35, 36, 37, 38],
    ]
    assert [ids.tolist() for ids in targets] == [
        [[11, 12, 13, 19, 20, 21, 27, 28, 29], [0, 1, 2, 8, 9, 10, 16, 17, 18]],
        [[10, 11, 12, 18, 19, 20, 26, 27, 28], [12, 13, 14, 20, 21, 22, 28, 29, 30]],
    ]
    (context,), targets = draw(2)
    assert context[1].tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27, 32, 33, 34, 35]
    assert targets[1][0].tolist() == [4, 5, 6, 12, 13, 14, 20, 21, 22]


def test_masks_of_the_published_setting():
    draw = sampler(seed=1, grid=(16, 16))
    contexts = []
    for _ in range(10):
        (context,), targets = draw(8)
        assert len(targets) == 4 and len({ids.shape for ids in targets}) == 1
        assert (context.diff(dim=1) > 0).all() and context.shape[1] > 10
        assert not any(torch.isin(row, ids[b]).any() for b, row in enumerate(context) for ids in targets)
        assert 35 <= targets[0].shape[1] <= 54  # 15 to 20 % of 256, rounded to rectangles
        contexts.append(context)
    # Corners are drawn below H - h, not up to it: the last row and the last column are never seen.
    assert max(int(ids.max()) for ids in contexts) // 16 == 14


def test_overlap_may_be_allowed():
    (context,), targets = sampler(allow_overlap=True)(4)
    assert any(torch.isin(context[b], ids[b]).any() for ids in targets for b in range(4))


def test_a_constraint_is_dropped_where_no_context_is_left():
    # Six targets of half the image cover almost everything: only with fewer of them do more than 25 tokens remain.
    draw = sampler(grid=(8, 8), pred_mask_scale=(0.5, 0.5), num_pred_masks=6, min_keep=25)
    (context,), targets = draw(3)
    assert context.shape[1] > 25
    overlaps = [torch.isin(context[b], ids[b]).any().item() for ids in targets for b in range(3)]
    assert any(overlaps) and not torch.isin(context[0], targets[0][0]).all()


def test_equal_seeds_draw_equal_masks_and_the_state_goes_on():
    first, second, other = sampler(seed=3), sampler(seed=3), sampler(seed=4)
    assert first(4)[0][0].equal(second(4)[0][0])
    second.load_state_dict(first.state_dict())
    assert first(4)[0][0].equal(second(4)[0][0])
    assert not (other(4)[1][0].equal(first(4)[1][0]))


def test_sampling_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    sampler()(4)
    assert torch.equal(before, torch.random.get_rng_state())


def test_from_image_counts_tokens():
    assert MultiBlockMask2D.from_image((224, 256), 16).grid == (14, 16)
    with pytest.raises(ValueError, match="height = 220 is not a multiple of patch_size = 16"):
        MultiBlockMask2D.from_image(220, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"enc_mask_scale": (0.5, 0.2)}, "enc_mask_scale"),
        ({"pred_mask_scale": (0.0, 0.2)}, "pred_mask_scale"),
        ({"aspect_ratio": (0.0, 1.0)}, "aspect_ratio"),
        ({"num_pred_masks": 0}, "num_pred_masks"),
        ({"min_keep": 0}, "min_keep"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        sampler(**settings)


def test_rectangles_that_hold_too_few_tokens_are_an_error():
    with pytest.raises(ValueError, match=r"2x2 tokens on the grid \(5, 5\) cannot hold more than min_keep = 10"):
        sampler(grid=(5, 5))(1)
    with pytest.raises(ValueError, match="grid"):
        sampler(grid=(1, 5))
    with pytest.raises(ValueError, match="batch_size"):
        sampler()(0)

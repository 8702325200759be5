"""The 3-D mask sampler: V-JEPA's draws, definitions and statistics."""

import pytest
import torch

from jepa_kernels.masks import BlockMask, MultiBlockMask3D

GRID = (8, 16, 16)  # 16 frames of 256x256 pixels
NUM_TOKENS = 8 * 16 * 16


def sampler(*masks, seed=0, grid=GRID):
    generator = torch.Generator().manual_seed(seed)
    return MultiBlockMask3D(grid, masks, generator) if masks else MultiBlockMask3D(grid, generator=generator)


def test_ids_ascend_and_never_meet():
    for context, target in zip(*sampler()(6), strict=True):
        for ids in (context, target):
            assert ids.dtype == torch.int64 and ids.shape[0] == 6
            assert (ids.diff(dim=1) > 0).all() and ids.min() >= 0 and ids.max() < NUM_TOKENS
        for row_context, row_target in zip(context, target, strict=True):
            assert not torch.isin(row_context, row_target).any()


def test_single_sample_splits_the_grid():
    # With one sample nothing is cut off, so the context is the exact complement of the blocks.
    for context, target in zip(*sampler()(1), strict=True):
        assert torch.cat([context, target], dim=1).sort().values.tolist() == [list(range(NUM_TOKENS))]


def test_blocks_span_all_frames():
    context, _ = sampler()(1)
    for ids in context:
        frames = ids[0].view(GRID[0], -1)  # the same rows and columns are free in every frame
        assert (frames - frames[0] == 256 * torch.arange(8).view(8, 1)).all()


def test_one_block_is_a_rectangle_of_the_drawn_size():
    draw = sampler(BlockMask((0.15, 0.15), num_blocks=1))
    for _ in range(20):
        _, (target,) = draw(3)
        place = target[:, : target.shape[1] // GRID[0]]  # its first frame
        rows, columns = place // 16, place % 16
        height = rows.amax(1) - rows.amin(1) + 1
        width = columns.amax(1) - columns.amin(1) + 1
        assert (height * width == place.shape[1]).all()
        assert (height == height[0]).all(), "one size is drawn for the whole batch"
        # 15 % of 256 is 38 tokens; the aspect height/width lies in .75 .. 1.5, before rounding to whole tokens
        assert 5 <= height[0] <= 8 and 5 <= width[0] <= 7


def test_corners_reach_both_edges():
    # The corner range is inclusive: with blocks of 14 or so on 16 tokens, some touch the first row, some the last.
    draw = sampler(BlockMask((0.7, 0.7), num_blocks=1))
    rows = torch.cat([draw(8)[1][0].flatten() // 16 % 16 for _ in range(10)])
    assert rows.min() == 0 and rows.max() == 15


def test_counts_match_the_official_sampler():
    # Tokens per mask after cutting to the smallest of 24 samples: mean, three standard errors of the mean of 300
    # batches, and range, all from 3000 batches of the official sampler.
    expected = (
        ((495.5, 15, 180, 740), (129.3, 9, 64, 370)),
        ((968.5, 15, 580, 1230), (1439.3, 8, 1330, 1570)),
    )
    draw = sampler()
    batches = [draw(24) for _ in range(300)]
    for sets, masks in enumerate(expected):
        for mask, (mean, tolerance, low, high) in enumerate(masks):
            counts = torch.tensor([batch[sets][mask].shape[1] for batch in batches], dtype=torch.float64)
            assert counts.mean().item() == pytest.approx(mean, abs=tolerance)
            assert low <= counts.min() and counts.max() <= high


def test_equal_seeds_draw_equal_masks():
    first, second, other = sampler(seed=3), sampler(seed=3), sampler(seed=4)
    for _ in range(3):
        one, two = first(4), second(4)
        assert all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))
    assert any(a.shape != b.shape or not a.equal(b) for a, b in zip(other(4)[0], one[0], strict=True))


def test_sampling_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    sampler()(4)
    assert torch.equal(before, torch.random.get_rng_state())


def test_options_of_the_official_sampler():
    block = {"spatial_scale": (0.15, 0.15), "num_blocks": 8}
    (context,), _ = sampler(BlockMask(**block, max_keep=50))(4)
    assert context.shape == (4, 50)

    (context,), (target,) = sampler(BlockMask(**block, max_temporal_keep=0.5))(4)
    assert context.max() < NUM_TOKENS // 2  # the first 4 of 8 frames

    every = list(range(NUM_TOKENS))
    for option in ("full_complement", "pred_full_complement"):
        (context,), (target,) = sampler(BlockMask(**block, **{option: True}))(4)
        for row in torch.cat([context, target], dim=1).sort().values:
            assert row.tolist() == every

    (context,), (target,) = sampler(BlockMask(**block))(4)
    (inverse_context,), (inverse_target,) = sampler(BlockMask(**block, inv_block=True))(4)
    assert context.equal(inverse_target) and target.equal(inverse_context)


def test_empty_contexts_are_drawn_again():
    # Two blocks of 3/4 of the columns on a 1x1x4 grid leave nothing about half of the time.
    draw = sampler(BlockMask((0.75, 0.75), num_blocks=2, aspect_ratio=(0.3, 0.3)), grid=(1, 1, 4))
    assert draw._block_size(draw.masks[0], torch.Generator()) == (1, 1, 3)
    assert all(draw(16)[0][0].shape[1] >= 1 for _ in range(10))


def test_impossible_context_is_an_error():
    with pytest.raises(ValueError, match="left no context.*lower spatial_scale"):
        sampler(BlockMask((1.0, 1.0), num_blocks=1, aspect_ratio=(1.0, 1.0)))(2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("spatial_scale", (0.5, 0.2)),
        ("temporal_scale", (0.0, 1.0)),
        ("aspect_ratio", (0.0, 1.0)),
        ("num_blocks", 0),
        ("max_keep", 0),
        ("max_temporal_keep", 1.5),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        sampler(BlockMask(**{"spatial_scale": (0.15, 0.15), "num_blocks": 1, field: value}))


def test_bad_grid_and_batch_are_named():
    with pytest.raises(ValueError, match="grid"):
        MultiBlockMask3D((0, 4, 4))
    with pytest.raises(ValueError, match="batch_size"):
        sampler()(0)


def test_from_clip_counts_tokens():
    assert MultiBlockMask3D.from_clip(16, 256).grid == GRID
    assert MultiBlockMask3D.from_clip(8, (64, 96), patch_size=8, tubelet_size=4).grid == (2, 8, 12)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ((15, 256), "num_frames = 15 is not a multiple of tubelet_size = 2; make it one, such as 14 or 16"),
        ((16, (250, 256)), "height = 250 is not a multiple of patch_size = 16; make it one, such as 240 or 256"),
        ((16, (256, 8)), "width = 8 is not a multiple of patch_size = 16; make it one, such as 16"),
        ((16, 256, 0), "patch_size must be at least 1; got 0"),
    ],
)
def test_from_clip_drops_no_pixels(clip, message):
    with pytest.raises(ValueError, match=message):
        MultiBlockMask3D.from_clip(*clip)


def test_draws_are_the_official_ones():
    # Two batches of two clips, as the official collator draws them after torch.manual_seed(3).
    mask = BlockMask((0.15, 0.3), num_blocks=2, temporal_scale=(0.5, 1.0))
    draw = sampler(mask, seed=3, grid=(2, 4, 6))
    expected = [
        [[0, 1, 2, 6, 7, 8, 30, 31, 32, 36], [25, 26, 27, 31, 32, 33, 34, 38, 39, 40]],
        [[6, 7, 12, 13, 16, 17, 22, 23], [13, 14, 16, 17, 19, 20, 22, 23]],
    ]
    first_contexts = []
    for targets in expected:
        (context,), (target,) = draw(2)
        assert target.tolist() == targets
        first_contexts.append(context[0].tolist())
    assert first_contexts[0] == [*range(3, 6), *range(9, 30), *range(33, 36), *range(39, 48)]


def test_the_state_goes_on_where_it_was_taken():
    draw, again = sampler(seed=5), sampler(seed=6)
    draw(2)
    again.load_state_dict(draw.state_dict())
    for one, two in zip(draw(3)[0], again(3)[0], strict=True):
        assert one.equal(two)

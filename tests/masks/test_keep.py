"""What cutting masks to the smallest of a batch does to the tokens, and that the other two ways do not."""

import pytest
import torch

from jepa_kernels import RaggedIds
from jepa_kernels.masks import BlockMask, MultiBlockMask2D, MultiBlockMask3D, RectangleMasks

GRID = (4, 8, 8)
MASKS = (BlockMask((0.15, 0.15), num_blocks=4), BlockMask((0.5, 0.5), num_blocks=2))
BUDGET = [(64, 64), (16, 120)]


def clips(keep, seed=0):
    budget = BUDGET if keep == "budget" else None
    return MultiBlockMask3D(GRID, MASKS, torch.Generator().manual_seed(seed), keep, budget)


def share_by_frame(keep, batches=60, batch=12):
    """Of the tokens of each frame, the share that is in either set. Blocks span all frames: frames are alike. [T]"""
    draw, used = clips(keep), torch.zeros(len(MASKS), 4 * 64)
    for _ in range(batches):
        for sets in draw(batch):
            for mask, ids in enumerate(sets):
                used[mask] += torch.bincount(ids.ids if keep == "ragged" else ids.flatten(), minlength=256)
    return used.view(len(MASKS), 4, 64).mean(dim=2) / (batches * batch)


def test_cutting_to_the_smallest_takes_the_last_frames_away():
    shares = share_by_frame("batch")
    assert (shares[:, 0] > 0.98).all(), shares
    assert (shares[:, 3] < 0.65).all(), shares
    assert (1 - shares.mean()).item() == pytest.approx(0.2, abs=0.08)  # the tokens that no loss and no encoder sees


def test_ragged_masks_use_every_token():
    assert torch.equal(share_by_frame("ragged"), torch.ones(2, 4))


def test_a_budget_is_drawn_from_all_frames_alike():
    shares = share_by_frame("budget")
    expected = torch.tensor([sum(pair) for pair in BUDGET]) / 256
    torch.testing.assert_close(shares, expected[:, None].expand(2, 4), rtol=0.03, atol=0)


def test_images_lose_their_lower_rows_in_the_same_way():
    def share_by_row(keep):
        budget = (40, 20) if keep == "budget" else None
        draw = MultiBlockMask2D((12, 12), generator=torch.Generator().manual_seed(2), keep=keep, budget=budget)
        used = torch.zeros(144)
        for _ in range(60):
            (ids,), _ = draw(12)
            used += torch.bincount(ids.ids if keep == "ragged" else ids.flatten(), minlength=144)
        return used.view(12, 12).mean(dim=1)

    cut, whole, budget = share_by_row("batch"), share_by_row("ragged"), share_by_row("budget")
    # Rows 1 and 9 lie alike, as corners reach rows 0 to 10.
    assert whole[9] > 0.9 * whole[1] and budget[9] > 0.9 * budget[1]
    assert cut[9] < 0.6 * cut[1]


def test_sets_are_the_same_before_they_are_cut():
    cut, ragged = clips("batch"), clips("ragged")
    for sets, whole in zip(cut(5), ragged(5), strict=True):
        for ids, entry in zip(sets, whole, strict=True):
            assert isinstance(entry, RaggedIds) and entry.cu_seqlens.dtype == torch.int32
            lengths = entry.cu_seqlens.diff()
            assert ids.shape[1] == lengths.min() < lengths.max()
            for row, full in zip(ids, entry.ids.split(lengths.tolist()), strict=True):
                assert torch.equal(row, full[: len(row)])


def test_budgets_keep_their_shapes_and_stay_disjoint():
    draw = clips("budget")
    for _ in range(5):
        for context, target, sizes in zip(*draw(6), BUDGET, strict=True):
            assert (context.shape[1], target.shape[1]) == sizes
            assert (context.diff(dim=1) > 0).all() and (target.diff(dim=1) > 0).all()
            assert not any(torch.isin(*rows).any() for rows in zip(context, target, strict=True))


def test_a_sample_depends_on_its_own_generator_alone():
    def generators(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    whole, part = clips("ragged").draw(7, generators(range(6))), clips("ragged").draw(7, generators(range(2, 5)))
    for sets, some in zip(whole, part, strict=True):
        for ids, entry in zip(sets, some, strict=True):
            bounds = ids.cu_seqlens.tolist()
            assert torch.equal(ids.ids[bounds[2] : bounds[5]], entry.ids)


def test_bad_budgets_are_named():
    with pytest.raises(ValueError, match="keep must be one of batch, ragged, budget; got 'some'"):
        clips("some")
    with pytest.raises(ValueError, match="belong together"):
        MultiBlockMask3D(GRID, MASKS, keep="budget")
    with pytest.raises(ValueError, match="one pair .* for each of 2 masks"):
        MultiBlockMask3D(GRID, MASKS, keep="budget", budget=[(8, 8)])
    with pytest.raises(ValueError, match=r"less than the budget \(250, 1\)"):
        MultiBlockMask3D(GRID, MASKS[1:], keep="budget", budget=[(250, 1)])(1)
    with pytest.raises(ValueError, match="target rectangles have 20 tokens: lower the budget"):
        MultiBlockMask2D((12, 12), RectangleMasks(pred_mask_scale=(0.15, 0.15)), keep="budget", budget=(8, 60))(1)

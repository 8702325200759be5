"""`apply_masks` gathers the tokens that ids name."""

import pytest
import torch

from jepa_kernels.masks import apply_masks


def test_apply_masks_is_mask_major():
    x = torch.randn(3, 10, 4)
    masks = [torch.tensor([[0, 9], [1, 2], [5, 5]]), torch.tensor([[3, 4], [0, 1], [8, 9]])]
    out = apply_masks(x, masks)
    assert out.shape == (6, 2, 4)
    for m, mask in enumerate(masks):
        for b in range(3):
            assert torch.equal(out[m * 3 + b], x[b, mask[b]])
    assert torch.equal(apply_masks(x, masks[0]), out[:3])
    lengths = [part.shape[1] for part in apply_masks(x, [masks[0], masks[1][:, :1]], concat=False)]
    assert lengths == [2, 1]


def test_apply_masks_adds_gradients_of_repeated_ids():
    x = torch.zeros(1, 3, 2, dtype=torch.float64, requires_grad=True)
    apply_masks(x, [torch.tensor([[0, 2]]), torch.tensor([[2, 2]])]).sum().backward()
    assert x.grad[0, :, 0].tolist() == [1.0, 0.0, 3.0]


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.tensor([[0, 10]]), ValueError, r"0\.\.9.*got 0\.\.10"),
        (torch.tensor([[-1, 0]]), ValueError, r"got -1\.\.0"),
        (torch.tensor([[0.0]]), TypeError, "int64"),
        (torch.tensor([0, 1]), ValueError, r"\(B, K\)"),
        (torch.tensor([[0], [1]]), ValueError, "B = 1"),
    ],
)
def test_apply_masks_rejects(mask, error, message):
    with pytest.raises(error, match=message):
        apply_masks(torch.zeros(1, 10, 2), [mask])

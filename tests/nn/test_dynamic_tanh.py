"""Dynamic tanh: its formula and gradients, its place in the blocks, and the published keys."""

import torch
from torch import nn

from jepa_kernels.models import build_encoder
from jepa_kernels.nn import Block, DynamicTanh


def test_it_is_its_formula_with_every_gradient():
    norm = DynamicTanh(6, alpha=0.8).double()
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(0))
        norm.bias.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    weight, bias, alpha = (getattr(norm, name).detach() for name in ("weight", "bias", "alpha"))
    torch.testing.assert_close(norm(x), weight * torch.tanh(alpha * x) + bias)

    def function(x, alpha, weight, bias):
        return torch.func.functional_call(norm, {"alpha": alpha, "weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(function, (x, norm.alpha, norm.weight, norm.bias))


def test_it_takes_the_place_of_every_layer_norm_under_the_published_keys():
    plain = build_encoder("vit_tiny", img_size=32, patch_size=8, depth=2)
    free = build_encoder("vit_tiny", img_size=32, patch_size=8, depth=2, normalization="dynamic_tanh")
    assert not any(isinstance(module, nn.LayerNorm) for module in free.modules())
    added = set(free.state_dict()) - set(plain.state_dict())
    assert added == {f"blocks.{i}.norm{j}.alpha" for i in range(2) for j in (1, 2)} | {"norm.alpha"}
    assert set(plain.state_dict()) < set(free.state_dict()) and free.norm.alpha.shape == (1,)
    assert torch.equal(free.norm.alpha, torch.full((1,), 0.5))


def test_under_autocast_the_result_has_the_parameters_dtype():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert DynamicTanh(4)(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.float32
        block = Block(16, num_heads=2, normalization="dynamic_tanh")
        assert torch.isfinite(block(torch.ones(1, 3, 16))).all()

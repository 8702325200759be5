"""dinov2's attention, embedding and teacher update, and lejepa's sliced test, as small re-creations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import jepa_kernels as jk

from .helpers import assert_same, operators
from .official.common import MLP


class Attention(nn.Module):
    def __init__(self, dim: int = 64, num_heads: int = 2, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.scale, self.attn_drop = num_heads, (dim // num_heads) ** -0.5, attn_drop
        self.qkv, self.proj, self.proj_drop = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Dropout(0.0)

    def init_weights(self) -> None:
        nn.init.normal_(self.qkv.weight)

    def forward(self, x, is_causal=False):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=self.attn_drop if self.training else 0, is_causal=is_causal
        )
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))


class MemEffAttention(Attention):
    def forward(self, x, attn_bias=None):
        if attn_bias is not None:
            raise AssertionError("no xFormers")
        return super().forward(x)


class PatchEmbed(nn.Module):
    def __init__(self, flatten_embedding: bool = True) -> None:
        super().__init__()
        self.patch_size, self.flatten_embedding, self.embed_dim = (4, 4), flatten_embedding, 64
        self.proj, self.norm = nn.Conv2d(3, 64, 4, stride=4), nn.LayerNorm(64)

    def forward(self, x):
        x = self.proj(x)
        rows, columns = x.shape[-2:]
        x = self.norm(x.flatten(2).transpose(1, 2))
        return x if self.flatten_embedding else x.unflatten(1, (rows, columns))


class Block(nn.Module):
    def __init__(self, attention: type[Attention]) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(64), attention(), nn.LayerNorm(64), MLP(64, 96)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@pytest.mark.parametrize("attention", [Attention, MemEffAttention])
def test_dinov2(attention):
    model = nn.Sequential(PatchEmbed(), Block(attention))
    report = assert_same(model, lambda module: module(torch.ones(2, 3, 8, 12)))
    assert [(entry.code_base, entry.class_name) for entry in operators(report)] == [
        ("dinov2", "PatchEmbed"),
        ("dinov2", attention.__name__),
    ]
    assert report.left == [] and report.fallbacks == {}


def test_dinov2_calls_that_stay():
    causal = Attention()
    x = torch.randn(2, 5, 64)
    assert_same(causal, lambda module: module(x, is_causal=True))
    efficient = MemEffAttention()
    report = jk.patch(efficient)
    with pytest.raises(AssertionError, match="no xFormers"):
        efficient(x, attn_bias=object())
    assert report.fallbacks == {("MemEffAttention", "an attention bias of xFormers"): 1}
    assert jk.patch(PatchEmbed(flatten_embedding=False)).left[0].text == "its output is not flattened to tokens"


def test_dinov2_teacher_update():
    student = nn.ModuleDict({"backbone": nn.Linear(3, 2), "head": nn.Linear(2, 2)})
    teacher = nn.ModuleDict({"backbone": nn.Linear(3, 2), "head": nn.Linear(2, 2)}).requires_grad_(False)
    expected = [0.75 * k + 0.25 * q for k, q in zip(teacher.parameters(), student.parameters(), strict=True)]
    jk.integrations.dinov2.update_teacher(student, teacher, 0.75)
    torch.testing.assert_close([*teacher.parameters()], expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="the teacher has no head"):
        jk.integrations.dinov2.update_teacher(student, {"backbone": teacher["backbone"]}, 0.75)


class EppsPulley(nn.Module):
    def __init__(self, t_max: float = 3.0, n_points: int = 17) -> None:
        super().__init__()
        self.n_points = n_points
        self.register_buffer("t", torch.linspace(0, t_max, n_points))
        self.register_buffer("phi", (-self.t.square() / 2).exp())
        step = torch.full((n_points,), 2 * t_max / (n_points - 1))
        step[0] = step[-1] = t_max / (n_points - 1)
        self.register_buffer("weights", step * self.phi)

    def forward(self, x):
        angle = x[..., None] * self.t
        error = (angle.cos().mean(-3) - self.phi).square() + angle.sin().mean(-3).square()
        return error @ self.weights * x.shape[-2]


class SlicingUnivariateTest(nn.Module):
    def __init__(self, univariate_test: nn.Module, num_slices: int, reduction: str | None = "mean", clip_value=None) -> None:
        super().__init__()
        self.univariate_test, self.num_slices, self.reduction = univariate_test, num_slices, reduction
        self.sampler, self.clip_value = "gaussian", clip_value
        self.register_buffer("global_step", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        generator = torch.Generator(x.device).manual_seed(int(self.global_step))
        directions = torch.randn(x.shape[-1], self.num_slices, generator=generator, device=x.device)
        self.global_step.add_(1)
        statistics = self.univariate_test(x @ (directions / directions.norm(dim=0)))
        return {"mean": torch.mean, "sum": torch.sum, None: lambda s: s}[self.reduction](statistics)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_lejepa(reduction):
    model = SlicingUnivariateTest(EppsPulley(), 64, reduction)
    results = []
    for patched in (False, True):
        report = jk.patch(model) if patched else None
        model.global_step.fill_(5)
        x = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        value = model(x)
        value.backward()
        results.append((value.detach(), x.grad))
        assert int(model.global_step) == 6
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    report.undo()
    assert type(model) is SlicingUnivariateTest and "_jepa_kernels_t_max" not in model.__dict__


def test_lejepa_variants_are_left():
    for model, text in (
        (SlicingUnivariateTest(nn.Identity(), 8), "its univariate test is a Identity, not a known EppsPulley"),
        (SlicingUnivariateTest(EppsPulley(), 8, None), "it clips, does not reduce"),
        (SlicingUnivariateTest(EppsPulley(), 8, clip_value=0.1), "it clips, does not reduce"),
    ):
        assert jk.patch(model).left[0].text.startswith(text)
    uneven = SlicingUnivariateTest(EppsPulley(), 8)
    uneven.univariate_test.t[3] += 0.01
    assert jk.patch(uneven).left[0].text == "its points are not evenly spaced from 0"

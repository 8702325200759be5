"""eb_jepa's losses as small re-creations: patched equals unpatched, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import jepa_kernels as jk


class HingeStdLoss(nn.Module):
    def __init__(self, std_margin=1.0):
        super().__init__()
        self.std_margin = std_margin

    def forward(self, x):
        return functional.relu(self.std_margin - (x.var(dim=0) + 1e-4).sqrt()).mean()


class CovarianceLoss(nn.Module):
    def off_diagonal(self, x):
        return x[~torch.eye(len(x), dtype=torch.bool)]

    def forward(self, x):
        return self.off_diagonal(torch.atleast_2d(x.T.cov())).square().mean()


class VICRegLoss(nn.Module):
    def __init__(self, std_coeff=1.0, cov_coeff=1.0, margin=1.0):
        super().__init__()
        self.std_coeff, self.cov_coeff = std_coeff, cov_coeff
        self.std_loss_fn, self.cov_loss_fn = HingeStdLoss(margin), CovarianceLoss()

    def forward(self, z1, z2):
        parts = {
            "invariance_loss": functional.mse_loss(z1, z2),
            "var_loss": self.std_loss_fn(z1) + self.std_loss_fn(z2),
            "cov_loss": self.cov_loss_fn(z1) + self.cov_loss_fn(z2),
        }
        invariance, variance, covariance = parts.values()
        return {"loss": invariance + self.std_coeff * variance + self.cov_coeff * covariance, **parts}


class VCLoss(nn.Module):
    def __init__(self, std_coeff, cov_coeff, proj=None):
        super().__init__()
        self.std_coeff, self.cov_coeff, self.proj = std_coeff, cov_coeff, proj or nn.Identity()
        self.std_loss_fn, self.cov_loss_fn = HingeStdLoss(), CovarianceLoss()

    def forward(self, x, actions=None):
        features = self.proj(x.movedim(1, -1).flatten(0, -2))
        variance, covariance = self.std_loss_fn(features), self.cov_loss_fn(features)
        loss = self.std_coeff * variance + self.cov_coeff * covariance
        return loss, variance + covariance, {"std_loss": variance.item(), "cov_loss": covariance.item()}


class BCS(nn.Module):
    def __init__(self, num_slices=256, lmbd=10.0):
        super().__init__()
        self.num_slices, self.step, self.lmbd = num_slices, 0, lmbd

    def statistic(self, x):
        t = torch.linspace(-3, 3, 10, device=x.device)
        normal = (-t.square() / 2).exp()
        means = torch.exp(1j * x[..., None] * t).mean(0)
        return torch.trapz(normal * (means - normal).abs().square(), t, dim=1).mean()

    def forward(self, z1, z2):
        generator = torch.Generator(z1.device).manual_seed(self.step)
        directions = torch.randn(z1.shape[1], self.num_slices, generator=generator, device=z1.device)
        directions = directions / directions.norm(dim=0)
        self.step += 1
        bcs = (self.statistic(z1 @ directions) + self.statistic(z2 @ directions)) / 2
        invariance = functional.mse_loss(z1, z2)
        return {"loss": invariance + self.lmbd * bcs, "bcs_loss": bcs, "invariance_loss": invariance}


def results(loss, inputs, weights=(1.0, 2.0, 3.0, 4.0)):
    """Every value, and the gradients of a weighted sum of all that are tensors."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    loss.zero_grad()
    found = loss(*inputs)
    values = list(found.values()) if isinstance(found, dict) else [*found[:2]] if isinstance(found, tuple) else [found]
    extra = list(found[2].values()) if isinstance(found, tuple) else []
    sum(w * v for w, v in zip(weights, values, strict=False)).backward()
    gradients = [*(x.grad for x in inputs), *(p.grad for p in loss.parameters())]
    return [*(v.detach() for v in values), *(torch.tensor(v) for v in extra), *gradients]


VIEWS = [torch.randn(24, 12, generator=torch.Generator().manual_seed(i)) * 0.8 for i in (1, 2)]
CLIP = torch.randn(3, 6, 2, 2, 3, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("build", "inputs", "replaced"),
    [
        (CovarianceLoss, VIEWS[:1], {"CovarianceLoss"}),
        (lambda: VICRegLoss(2.0, 3.0, margin=0.9), VIEWS, {"VICRegLoss", "CovarianceLoss"}),
        (lambda: VCLoss(2.0, 3.0), [CLIP], {"VCLoss", "CovarianceLoss"}),
        (lambda: VCLoss(2.0, 3.0, nn.Linear(6, 9)), [CLIP], {"VCLoss", "CovarianceLoss"}),
        (lambda: BCS(64), VIEWS, {"BCS"}),
    ],
    ids=["covariance", "vicreg", "vc", "vc-projected", "bcs"],
)
def test_values_and_gradients(build, inputs, replaced, dtype):
    loss = build().to(dtype)
    inputs = [x.to(dtype) for x in inputs]
    if isinstance(loss, BCS) and dtype == torch.float64:
        pytest.skip("the original multiplies by float32 directions")
    before = results(loss, inputs)
    if isinstance(loss, BCS):
        loss.step = 0
    report = jk.patch(loss)
    assert {entry.class_name for entry in report.replaced} == replaced and report.left == []
    assert {entry.code_base for entry in report.replaced} == {"eb_jepa"}
    torch.testing.assert_close(results(loss, inputs), before, rtol=1e-5, atol=1e-6)
    assert report.fallbacks == {}
    if isinstance(loss, BCS):
        assert loss.step == 1
        assert not torch.equal(loss(*inputs)["bcs_loss"], before[1])  # other directions each step
    report.undo()
    assert type(loss) in (CovarianceLoss, VICRegLoss, VCLoss, BCS)


def test_calls_that_stay():
    loss = VICRegLoss()
    report = jk.patch(loss)
    one = torch.randn(1, 4)
    assert loss(one, one)["var_loss"].isnan()
    assert report.fallbacks["VICRegLoss", "not a matrix of at least two samples and features"] == 1
    seen = []
    loss.std_loss_fn.register_forward_hook(lambda *args: seen.append(1))
    loss(*VIEWS)
    assert len(seen) == 2 and report.fallbacks["VICRegLoss", "hooks on its parts"] == 1
    narrow = VCLoss(1.0, 1.0, nn.Linear(6, 1))
    jk.patch(narrow)
    assert narrow(CLIP)[0].isnan()  # as the mean over no element is


def test_others_of_the_same_name_are_left():
    class Other(CovarianceLoss):
        pass

    Other.__name__ = "CovarianceLoss"
    Other.forward = lambda self, x: x.square().mean()
    Other.forward.__name__ = "forward"
    assert jk.patch(Other()).left[0].text.startswith("it is not the eb_jepa CovarianceLoss")
    loss = VICRegLoss()
    loss.cov_loss_fn = nn.Identity()
    assert jk.patch(loss).left[0].text == "its parts are HingeStdLoss and Identity, not a known HingeStdLoss and CovarianceLoss"

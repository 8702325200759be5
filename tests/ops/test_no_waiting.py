"""No operator waits for the GPU: the host runs ahead of it, through every call and its gradients, once kernels are compiled."""

from __future__ import annotations

import pytest
import torch

import jepa_kernels as jk

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _triton():
    with jk.backend("triton"):
        yield


def draw(*shape):
    return torch.randn(*shape, device="cuda", requires_grad=True)


def embedding():
    pixels, weight, bias = torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device="cuda"), draw(8, 3, 16, 16), draw(8)
    positions, keep = draw(4, 8), torch.tensor([[0, 3], [2, 2]], device="cuda")
    return lambda step: jk.patch_embed(
        pixels, weight, bias, keep=keep, pos_embed=positions, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0)
    ).sum().backward()  # fmt: skip


def embedding_pair():
    pixels, weights = torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device="cuda"), [draw(8, 3, 16, 16) for _ in range(2)]
    keep = [torch.tensor([[0, 3], [2, 2]], device="cuda"), torch.tensor([[1], [0]], device="cuda")]
    return lambda step: jk.patch_embed_pair(pixels, weights[0], None, weights[1], None, keep=keep)[1][0].sum().backward()


def attention(mask):
    qkv = draw(40, 3, 2, 32) if isinstance(mask, jk.Ragged) else draw(2, 40, 3, 2, 32)
    positions = torch.zeros(40, 3, device="cuda")
    return lambda step: jk.masked_attention(qkv, mask=mask, rope=jk.Rope3D(positions)).sum().backward()


def loss():
    pred, target, ids = draw(2, 3, 64), torch.randn(2, 9, 64, device="cuda"), torch.tensor([[0, 4, 8], [1, 2, -1]], device="cuda")
    return lambda step: jk.jepa_loss(pred, target, ids).backward()


def sigreg():
    x = draw(2, 64, 16)
    return lambda step: jk.sigreg(x, num_slices=64, seed=step).backward()


def target():
    follower = jk.EMATarget(torch.nn.Linear(64, 64, device="cuda"), momentum=jk.optim.LinearMomentum(0.9, 1.0, 9))
    return lambda step: follower.update()


def optimiser():
    """Gradients that moved, and another learning rate and momentum at every step."""
    online = torch.nn.Linear(64, 64, device="cuda")
    follower = jk.EMATarget(online, momentum=jk.optim.LinearMomentum(0.9, 1.0, 9))
    optimizer = jk.AdamWEMA(online.parameters(), target=follower, max_grad_norm=1.0)

    def call(step):
        optimizer.param_groups[0]["lr"] = 1e-3 / (step + 1)
        for parameter in online.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    return call


CALLS = {
    "patch_embed": embedding,
    "patch_embed_pair": embedding_pair,
    "attention": lambda: attention(None),
    "attention-frames": lambda: attention(jk.FrameCausal(8)),
    "attention-padding": lambda: attention(jk.KeyPadding(torch.tensor([7, 40], device="cuda"))),
    "attention-ragged": lambda: attention(jk.Ragged.from_lengths([10, 30], device="cuda")),
    "attention-bool": lambda: attention(torch.ones(40, 40, dtype=torch.bool, device="cuda")),
    "jepa_loss": loss,
    "sigreg": sigreg,
    "ema_update": target,
    "adamw_ema": optimiser,
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_for_the_device(name):
    call = CALLS[name]()
    call(0)  # compiles, and uploads tables
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        call(1)
        call(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")

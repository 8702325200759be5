"""A model of one's own against torch.compile: `jepa-kernels bench run --own examples/bench_own_model.py`.

Replace `build` and `inputs` by your model and its arguments, and add what you want compared to `variants`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import jepa_kernels as jk
from jepa_kernels.bench.cases import Case, model_case

DIM, HEADS, TOKENS = 192, 3, 196


class Block(nn.Module):
    """One transformer block; `fused` attends by `jk.masked_attention` instead of PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = False
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def attend(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, HEADS, DIM // HEADS))  # (B, N, 3, H, D)
        if self.fused:
            out = jk.masked_attention(qkv)
        else:
            out = nn.functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind())
        return self.proj(out.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def build() -> nn.Module:
    """The model to measure."""
    return nn.Sequential(Block(), Block())


def inputs(generator: torch.Generator) -> tuple[Tensor]:
    """Arguments of its forward, batch first."""
    return (torch.randn(4, TOKENS, DIM, generator=generator),)


def with_our_attention(model: nn.Module) -> nn.Module:
    """The same model, attending by `jk.masked_attention`."""
    for block in model:
        block.fused = True
    return model


def cases() -> list[Case]:
    """Forward, and forward with backward; the first variant is what the others are held against."""
    variants = {"torch-eager": lambda model: model, "jk-attention": with_our_attention}
    return [
        model_case("two-blocks-forward", build, inputs, variants, dtype="bf16"),
        model_case("two-blocks-train", build, inputs, variants, dtype="bf16", train=True),
    ]

"""Does a joint-embedding encoder collapse? A small encoder on crops of real photographs, trained in three ways.

    python examples/collapse.py --plot docs/img/collapse.svg

Two random crops of one photograph's neighbourhood are embedded, and one embedding shall predict the other. Without
more, the constant embedding is a perfect solution, and the encoder finds it. SIGReg, or a target encoder that follows
by an exponential moving average (EMA), keeps the embeddings apart. Collapse shows in the effective rank of the
embeddings of held-out crops: the exponential of the entropy of their normalised singular values (Roy and Vetterli,
2007), 1 for embeddings that are all alike, 64 at most here.

Needs scikit-image, and matplotlib for the plot; runs on a CPU in about a minute.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor, nn

import jepa_kernels as jk

WIDTH = 64
CROP = 32
SHIFT = 6  # pixels between the two crops, at most
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
WAYS = {"none": "no regulariser", "sigreg": "SIGReg", "ema": "EMA target"}


def photographs() -> list[Tensor]:
    """Photographs that come with scikit-image, uint8 (3, height, width)."""
    from skimage import data

    return [torch.from_numpy(getattr(data, name)()).permute(2, 0, 1).contiguous() for name in PHOTOGRAPHS]


def crop_pairs(images: list[Tensor], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two crops (count, 3, CROP, CROP) each: the second lies up to SHIFT pixels from the first and may be mirrored."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    first, second = [], []
    for _ in range(count):
        image = images[draw(0, len(images) - 1)]
        row, column = (draw(SHIFT, size - CROP - SHIFT) for size in image.shape[1:])
        down, right = draw(-SHIFT, SHIFT), draw(-SHIFT, SHIFT)
        first.append(image[:, row : row + CROP, column : column + CROP])
        other = image[:, row + down : row + down + CROP, column + right : column + right + CROP]
        second.append(other.flip(2) if draw(0, 1) else other)
    return torch.stack(first), torch.stack(second)


class Encoder(nn.Module):
    """Patches of 8 x 8 uint8 pixels, then a perceptron over all of them, to one embedding of WIDTH features."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, stride=8)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(16 * 32, 256), nn.GELU(), nn.Linear(256, WIDTH))

    def forward(self, crops: Tensor) -> Tensor:
        tokens = jk.patch_embed(crops, self.patches.weight, self.patches.bias, mean=[128.0] * 3, std=[64.0] * 3)
        return self.head(tokens.flatten(1))


def effective_rank(embeddings: Tensor) -> float:
    """exp(entropy of the normalised singular values); embeddings (N, D) are not centred, so a constant gives 1."""
    values = torch.linalg.svdvals(embeddings.double())
    share = values / values.sum().clamp(min=1e-300)
    return float(torch.exp(-(share * share.clamp(min=1e-300).log()).sum()))


def train(way: str, steps: int, batch: int, every: int) -> list[tuple[int, float]]:
    """Trains one encoder and returns (step, effective rank of 512 held-out crops)."""
    torch.manual_seed(0)
    images = photographs()
    generator = torch.Generator().manual_seed(1)
    held_out, _ = crop_pairs(images, 512, torch.Generator().manual_seed(2))
    encoder = Encoder()
    predictor = (
        nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH)) if way == "ema" else nn.Identity()
    )
    target = copy.deepcopy(encoder).requires_grad_(False)
    regulariser = jk.nn.SIGReg(num_slices=256)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=1e-3, weight_decay=0.0)
    ranks = []
    for step in range(steps + 1):
        if step % every == 0:
            with torch.no_grad():
                ranks.append((step, effective_rank(encoder(held_out))))
        first, second = crop_pairs(images, batch, generator)
        if way == "ema":
            loss = jk.jepa_loss(predictor(encoder(first)), target(second), kind="smooth_l1")
        else:
            views = torch.stack((encoder(first), encoder(second)))
            # The squared difference with its gradient for both views: each is the other's target once.
            loss = jk.jepa_loss(views, views.flip(0).detach(), kind="l2", normalize=False)
            if way == "sigreg":
                loss = loss + 0.05 * regulariser(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if way == "ema":
            jk.ema_update_(list(target.parameters()), list(encoder.parameters()), 0.99)
    return ranks


def plot(results: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Effective rank against the step, one line a way of training."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "collapse"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4))
    for way, ranks in results.items():
        axes.plot(*zip(*ranks, strict=True), label=WAYS[way])
    axes.set(
        xlabel="step",
        ylabel=f"effective rank (of {WIDTH})",
        yscale="log",
        title="Embeddings of held-out photograph crops",
    )
    axes.set_yticks([1, 2, 4, 8, 16, 32, 64], labels=["1", "2", "4", "8", "16", "32", "64"])
    axes.minorticks_off()
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--every", type=int, default=20, help="steps between two measurements")
    parser.add_argument("--plot", type=Path, help="where to write the plot (.svg, .png)")
    options = parser.parse_args()
    results = {}
    for way, label in WAYS.items():
        results[way] = train(way, options.steps, options.batch, options.every)
        print(
            f"{label:<15} effective rank {results[way][0][1]:5.1f} at first, "
            f"{results[way][-1][1]:5.1f} after {options.steps} steps",
            flush=True,
        )
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()

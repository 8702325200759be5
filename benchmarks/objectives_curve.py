"""Probe accuracy against seconds of training, for each objective on photographs: `python benchmarks/objectives_curve.py`.

    nice python benchmarks/objectives_curve.py [--plot FILE.svg] [--json FILE] [--page FILE.md] [--steps N] [OBJECTIVE ...]

The images are grey tiles of fourteen photographs that come with scikit-image; the class of a tile is its photograph, and every
second tile a test. Each objective trains with its packaged tiny configuration; at a few steps its encoder is frozen and
classified by nearest neighbours and by a linear map. Seconds are CPU seconds of one thread in the training steps, without
reading, augmentation and probes, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepa_kernels.bench.readme import replace_block
from jepa_kernels.train import probe
from jepa_kernels.train.config import load_config
from jepa_kernels.train.dataset import batches
from jepa_kernels.train.distributed import World
from jepa_kernels.train.loop import Options, Trainer

OBJECTIVES = ("ijepa", "lejepa", "dino", "vicreg", "mae")
LABELS = {"ijepa": "I-JEPA", "lejepa": "LeJEPA", "dino": "DINO", "vicreg": "VICReg", "mae": "MAE"}
COLOURS = {"ijepa": "#1f6fb4", "lejepa": "#d1642a", "dino": "#7a4fa3", "vicreg": "#2e8b57", "mae": "#666666"}
PROBED = (0, 25, 50, 100, 150, 200, 250, 300)  # steps
PHOTOGRAPHS = (
    "astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry", "retina", "hubble_deep_field", "brick", "grass",
    "gravel", "camera", "moon", "coins", "cell",
)  # fmt: skip
TILE, EACH = 48, 24
NO_JOULES = "an energy counter counts the whole machine, which this run shares; it was not read"


def write_tiles(folder: Path) -> Path:
    """The tiles as files, `train/CLASS/` and `test/CLASS/`."""
    from PIL import Image
    from skimage import data

    for name in PHOTOGRAPHS:
        photograph = Image.fromarray(getattr(data, name)()).convert("L")
        photograph.thumbnail((640, 640))
        pixels = np.asarray(photograph)
        places = [(r, c) for r in range(pixels.shape[0] // TILE) for c in range(pixels.shape[1] // TILE)]
        counts = {"train": 0, "test": 0}
        for row, column in np.random.default_rng(0).permutation(places):
            part = ("train", "test")[(row + column) % 2]
            if counts[part] < EACH:
                tile = pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
                (folder / part / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(tile).save(folder / part / name / f"{counts[part]:02d}.png")
                counts[part] += 1
    return folder


def curve(objective: str, data: Path, steps: int, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Trains one objective and probes its encoder on the way."""
    config = load_config(f"{objective}_tiny", settings)
    trainer = Trainer(config, Options(data / "train", data / "unused"), World(0, 1, torch.device("cpu")))
    splits, names, _ = probe.read_splits(data, config)
    steps = min(steps, trainer.schedules.steps)
    points, spent, losses = [], 0.0, []

    def look(batch: Any) -> None:
        found = probe.score(trainer.model.encoder, splits, names)
        told = trainer.diagnostics(batch) if batch is not None else {}
        points.append({"step": trainer.progress.step, "seconds": spent, **asdict(found), **told})

    look(None)
    for batch in batches(trainer.files, trainer.sampler, config, 0, steps):
        begin = time.process_time()
        trainer.step(batch)
        spent += time.process_time() - begin
        losses.append(float(trainer.progress.losses[-1]))
        if trainer.progress.step in PROBED or trainer.progress.step == steps:
            look(batch)
    test = splits[1][1]
    return {
        "objective": objective,
        "points": points,
        "first_losses": float(np.mean(losses[:10])),
        "last_losses": float(np.mean(losses[-10:])),
        "chance": float(torch.bincount(test, minlength=len(names)).max()) / len(test),
        "joules": None,
        "joules_reason": NO_JOULES,
    }


def plot(curves: Sequence[dict[str, Any]], path: Path) -> None:
    """Linear probe accuracy over CPU seconds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "objectives"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.8))
    for found in curves:
        seconds = [point["seconds"] for point in found["points"]]
        accuracy = [100 * point["linear"] for point in found["points"]]
        name = found["objective"]
        axes.plot(seconds, accuracy, marker="o", markersize=3, color=COLOURS[name], label=LABELS[name])
    axes.axhline(100 * curves[0]["chance"], color="#999999", linewidth=0.8, linestyle=":", label="largest class")
    axes.set(xlabel="CPU seconds of training steps, one thread", ylabel="linear probe, % of test tiles")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def table(curves: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: the last point of each objective, and the encoder before training."""
    lines = [
        "| objective | steps | CPU seconds | linear probe | nearest neighbours | loss, first and last ten steps | feature std "
        "| effective rank |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in curves:
        last = found["points"][-1]
        lines.append(
            f"| {LABELS[found['objective']]} | {last['step']} | {last['seconds']:.0f} | {last['linear']:.1%} | "
            f"{last['neighbours']:.1%} | {found['first_losses']:.3g}, {found['last_losses']:.3g} | {last['feature_std']:.2f} | "
            f"{last['effective_rank']:.1f} |"
        )
    first = curves[0]["points"][0]
    return [*lines, f"| random weights | 0 | 0 | {first['linear']:.1%} | {first['neighbours']:.1%} | | | |"]


BEGIN, END = "<!-- objectives curve: begin -->", "<!-- objectives curve: end -->"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objectives", nargs="*", metavar="OBJECTIVE", help=f"of {', '.join(OBJECTIVES)} (default: all)")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write the table between its markers")
    parser.add_argument("--steps", type=int, default=PROBED[-1])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a setting of all of them")
    options = parser.parse_args(arguments)
    if unknown := set(options.objectives) - set(OBJECTIVES):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(OBJECTIVES)}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = write_tiles(Path(folder))
        curves = [curve(name, data, options.steps, options.set) for name in options.objectives or OBJECTIVES]
    if options.json is not None:
        options.json.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot(curves, options.plot)
    if options.page is not None:
        replace_block(options.page, BEGIN, END, "\n".join(table(curves)))
    print("\n".join(table(curves)))


if __name__ == "__main__":
    main()

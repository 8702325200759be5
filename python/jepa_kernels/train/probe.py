"""What the features of a checkpoint are worth: classes told apart by nearest neighbours and by a linear map, encoder frozen."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.clips import IMAGE_SUFFIXES, clip_files
from ..data.errors import DataError
from ..data.image import read_image
from ..data.video import read_video
from . import state
from .augment import centred
from .build import build_model, pixels_first
from .config import Config, from_record
from .dataset import generator_of
from .errors import TrainError

_TEMPERATURE = 0.07  # of the neighbours' votes, as DINO's evaluation has it
_PENALTY = 1e-3  # L2, of the linear map on standardised features
_ITERATIONS = 100


@dataclass(frozen=True)
class Scores:
    """Shares of the test images whose class was found."""

    neighbours: float
    linear: float


@dataclass(frozen=True)
class Result:
    """The scores of the trained encoder and of one with random weights, on the same images."""

    trained: Scores
    random: Scores
    chance: float
    classes: int
    train_images: int
    test_images: int
    skipped: int


def probe(
    checkpoint: Path, data: Path, part: str | None = None, neighbours: int = 10, batch: int = 64
) -> Result:
    """Classifies the images or videos of a folder, whose subfolders are the classes, by frozen features.

    Features are the tokens of `part`, "target_encoder" (None: that, or the only encoder) or "encoder", averaged over each
    image. Half of each class, drawn at random, is the memory of the nearest neighbours (cosine, weighted votes) and trains
    the linear map (logistic regression); the other half is the test. With subfolders `train` and `test`, which hold the
    classes, these are used. The encoder with random weights is the one that the run of the checkpoint started from.

    Raises:
        TrainError: no checkpoint of `train`; fewer than two classes, or a class with fewer than two images.
        DataError: the folder is missing or holds nothing to read.

    Deterministic: yes, as far as the operators are.
    """
    found = state.read(checkpoint)
    if "config" not in found:
        raise TrainError(f"{checkpoint} tells no configuration; probe takes checkpoints of `jepa-kernels train`")
    config = from_record(found["config"], str(checkpoint))
    part = part or state.default_part(found)
    if part not in found:
        raise TrainError(f"{checkpoint} has no {part!r}; it has {', '.join(map(str, found))}")
    splits, names, skipped = read_splits(data, config)
    model = build_model(config).eval()
    random = score(getattr(model, part), splits, names, neighbours, batch)
    state.load_parts(model, found, str(checkpoint))
    trained = score(getattr(model, part), splits, names, neighbours, batch)
    test = splits[1][1]
    chance = float(torch.bincount(test, minlength=len(names)).max()) / len(test)
    return Result(trained, random, chance, len(names), len(splits[0][1]), len(test), skipped)


def report(checkpoint: Path, data: Path, part: str | None, neighbours: int, batch: int, as_json: bool) -> str:
    """The result of `probe` as text for people, or as JSON."""
    result = probe(checkpoint, data, part, neighbours, batch)
    if as_json:
        return json.dumps(asdict(result), indent=1)
    lines = [
        f"{result.classes} classes, {result.train_images} images to learn from, {result.test_images} to test on; "
        f"always the largest class: {result.chance:.1%}",
        f"{'':<16}{'nearest neighbours':>20}{'linear':>10}",
    ]
    for name, scores in (("trained", result.trained), ("random weights", result.random)):
        lines.append(f"{name:<16}{scores.neighbours:>20.1%}{scores.linear:>10.1%}")
    if result.skipped:
        lines.append(f"{result.skipped} files could not be read")
    return "\n".join(lines)


def read_splits(data: Path, config: Config) -> tuple[list[tuple[Tensor, Tensor]], list[str], int]:
    """(pixels, labels) of the training and of the test images, the classes' names, and how many files were unreadable."""
    given = [data / "train", data / "test"]
    folders = given if all(folder.is_dir() for folder in given) else [data]
    read = [_labelled(folder, config) for folder in folders]
    names = sorted({name for part, _ in read for name, _ in part})
    if len(names) < 2:
        raise TrainError(f"{data} has {len(names)} classes; put the images of each class into a subfolder of its own")
    parts = [(torch.stack([p for _, p in part]), torch.tensor([names.index(n) for n, _ in part])) for part, _ in read]
    if len(parts) == 1:
        pixels, labels = parts[0]
        first = _half(labels, config.run.seed)
        parts = [(pixels[first], labels[first]), (pixels[~first], labels[~first])]
    for index, name in enumerate(names):
        if any(not (labels == index).any() for _, labels in parts):
            raise TrainError(f"class {name!r} of {data} needs at least two readable images, one to learn from and one to test on")
    return parts, names, sum(skipped for _, skipped in read)


def _labelled(folder: Path, config: Config) -> tuple[list[tuple[str, Tensor]], int]:
    entries, skipped = [], 0
    for file in clip_files(folder):
        name = file.relative_to(folder).parts[0]
        if name == file.name:
            continue  # beside the classes, of none
        try:
            entries.append((name, _pixels(file, config)))
        except DataError:
            skipped += 1
    if not entries:
        raise DataError(f"{folder} holds no readable image in a subfolder; put the images of each class into one")
    return entries, skipped


def _pixels(file: Path, config: Config) -> Tensor:
    model = config.model
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        clip = read_video(file, model.num_frames, config.data.frame_step, model.img_size)
    else:
        clip = centred(read_image(file, None)[None], model.img_size).expand(model.num_frames, -1, -1, -1)
    return clip[0] if model.num_frames == 1 else clip


def _half(labels: Tensor, seed: int) -> Tensor:
    """Which images to learn from: every second one of each class, in random order."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        places = (labels == label).nonzero().flatten()
        order = torch.randperm(len(places), generator=generator_of(seed, int(label)))
        chosen[places[order[: (len(places) + 1) // 2]]] = True
    return chosen


def score(
    encoder: nn.Module, splits: list[tuple[Tensor, Tensor]], names: list[str], neighbours: int = 10, batch: int = 64
) -> Scores:
    """The scores of a frozen encoder: see `probe`; `splits` and `names` are those of `read_splits`."""
    (train, train_labels), (test, test_labels) = ((_features(encoder, pixels, batch), labels) for pixels, labels in splits)
    mean, std = train.mean(dim=0), train.std(dim=0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    near = _nearest(train, train_labels, test, min(neighbours, len(train)), len(names))
    linear = _linear(train, train_labels, test, len(names))
    return Scores(*(float((found == test_labels).double().mean()) for found in (near, linear)))


@torch.no_grad()
def _features(encoder: nn.Module, pixels: Tensor, batch: int) -> Tensor:
    """One row an image: the mean of its tokens. [N, D]"""
    return torch.cat([encoder(pixels_first(part)).float().mean(dim=1) for part in pixels.split(batch)])


def _nearest(train: Tensor, labels: Tensor, test: Tensor, count: int, classes: int) -> Tensor:
    similar, places = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(count, dim=1)
    votes = torch.zeros(len(test), classes)
    return votes.scatter_add_(1, labels[places], (similar / _TEMPERATURE).exp()).argmax(dim=1)


def _linear(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    weight: Any = torch.zeros(classes, train.shape[1], requires_grad=True)
    bias: Any = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(train, weight, bias), labels) + _PENALTY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return F.linear(test, weight.detach(), bias.detach()).argmax(dim=1)

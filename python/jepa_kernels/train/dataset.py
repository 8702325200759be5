"""Batches of a run: what sample stands where is a function of the seed, the step and the place in the global batch.

Nothing else decides the order of the data, the crops and the masks: a run that goes on after any step, with any number of
loader processes, or on another number of processes with the same global batch, sees the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.clips import IMAGE_SUFFIXES, clip_files
from ..data.errors import DataError
from ..data.image import read_image
from ..data.random_clip import WholeVideo, random_clip
from .augment import augment
from .config import VIEW_FAMILIES, Config
from .views import make_views

# Files that are tried for one place in a batch before the data is called unreadable.
_TRIES = 32

_ORDER, _SAMPLE, _MASK = range(3)  # what a seed is for


def generator_of(*numbers: int) -> torch.Generator:
    """A generator that depends on these numbers alone."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


@dataclass
class Batch:
    """What one process trains on in one step, and the files that could not be read for it, with the reason."""

    inputs: Tensor | list[Tensor]  # a list of views, (B, size, size, 3) each, for objectives that compare them
    masks_enc: list[Any]
    masks_pred: list[Any]
    skipped: dict[str, str]
    error: str = ""

    def pin_memory(self) -> Batch:
        """The pixels in memory from which a GPU copies by itself; the loader calls this."""
        self.inputs = self.inputs.pin_memory() if isinstance(self.inputs, Tensor) else [v.pin_memory() for v in self.inputs]
        return self

    @property
    def examined(self) -> Tensor:
        """The pixels on which diagnostics look: all of them, or the first view."""
        return self.inputs if isinstance(self.inputs, Tensor) else self.inputs[0]


@dataclass(frozen=True)
class _Key:
    step: int
    place: int  # in the global batch
    index: int  # of the file


@dataclass
class _Sample:
    key: _Key
    frames: Tensor | list[Tensor] | None
    skipped: dict[str, str]


class FileDataset(Dataset[_Sample]):
    """Random crops of the images, or of clips of the videos, of a folder; what cannot be read is replaced and told."""

    def __init__(self, files: Sequence[Path], config: Config) -> None:
        self.files, self.config = list(files), config
        self._bad: dict[int, str] = {}  # read once, not again; what replaces a file does not depend on it
        self._whole: dict[int, WholeVideo] = {}  # with data.in_memory

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: _Key) -> _Sample:
        generator = generator_of(_SAMPLE, self.config.run.seed, key.step, key.place)
        skipped: dict[str, str] = {}
        index = key.index
        for _ in range(_TRIES):
            frames = self._read(index, generator)
            if frames is not None:
                return _Sample(key, frames, skipped)
            skipped[str(self.files[index])] = self._bad[index]
            index = int(torch.randint(0, len(self.files), (1,), generator=generator))
        return _Sample(key, None, skipped)

    def _read(self, index: int, generator: torch.Generator) -> Tensor | list[Tensor] | None:
        if index in self._bad:
            return None
        data, model, file = self.config.data, self.config.model, self.files[index]
        try:
            if file.suffix.lower() in IMAGE_SUFFIXES:
                frames = read_image(file, None)[None]
            else:
                settings = (
                    model.num_frames,
                    data.frame_step,
                    lambda count: int(torch.randint(0, count, (1,), generator=generator)),
                    data.fps,
                )
                frames = self._kept(index).random_clip(*settings) if data.in_memory else random_clip(file, *settings)
        except DataError as error:
            self._bad[index] = str(error)
            return None
        if model.family in VIEW_FAMILIES:
            return make_views(frames, self.config, generator)
        cut = augment(frames, model.img_size, data.crop_scale, data.crop_ratio, data.horizontal_flip, generator)
        # An image is a clip that stands still, as in V-JEPA 2.
        return cut.expand(model.num_frames, -1, -1, -1) if len(cut) < model.num_frames else cut

    def _kept(self, index: int) -> WholeVideo:
        if index not in self._whole:
            self._whole[index] = WholeVideo.read(self.files[index])
        return self._whole[index]


class _Order(Sampler[list[_Key]]):
    """The keys of each batch of this process, from `first_step` on: pass after pass over the files, each in its own order."""

    def __init__(self, files: int, config: Config, first_step: int, steps: int, rank: int, world: int) -> None:
        self.files, self.config = files, config
        self.first_step, self.steps, self.rank, self.world = first_step, steps, rank, world

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[_Key]]:
        size = self.config.data.batch_size
        for step in range(self.first_step, self.steps):
            places = range(self.rank * size, (self.rank + 1) * size)
            yield [_Key(step, place, self._file(step * size * self.world + place)) for place in places]

    def _file(self, number: int) -> int:
        return _permutation(self.files, self.config.run.seed, number // self.files)[number % self.files]


@lru_cache(maxsize=2)  # a batch may end one pass and begin the next
def _permutation(files: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(files, generator=generator_of(_ORDER, seed, epoch)).tolist()


class _Collate:
    """Stacks the samples and draws their masks."""

    def __init__(self, sampler: Any, config: Config) -> None:
        self.sampler, self.config = sampler, config

    def __call__(self, samples: list[_Sample]) -> Batch:
        skipped = {file: reason for sample in samples for file, reason in sample.skipped.items()}
        frames = [sample.frames for sample in samples if sample.frames is not None]
        if len(frames) < len(samples):
            reasons = "; ".join(list(skipped.values())[:3])
            return Batch(torch.empty(0), [], [], skipped, f"{_TRIES} files in a row could not be read: {reasons}")
        inputs = _stacked(frames, self.config)
        generators = [generator_of(_MASK, self.config.run.seed, s.key.step, s.key.place) for s in samples]
        try:
            masks_enc, masks_pred = self.sampler.draw(samples[0].key.step, generators)
        except ValueError as error:  # an exception of a loader process would arrive with a traceback
            return Batch(inputs, [], [], skipped, str(error))
        return Batch(inputs, masks_enc, masks_pred, skipped)


def _stacked(samples: list[Any], config: Config) -> Tensor | list[Tensor]:
    if config.model.family in VIEW_FAMILIES:
        return [torch.stack(view) for view in zip(*samples, strict=True)]
    clips = torch.stack(samples)
    return clips[:, 0] if config.model.num_frames == 1 else clips


def training_files(folder: str | Path) -> list[Path]:
    """The images and videos of a folder and its subfolders, in path order; raises DataError as `data.clips.clip_files`."""
    return clip_files(folder)


def batches(
    files: Sequence[Path], sampler: Any, config: Config, first_step: int, steps: int, rank: int = 0, world: int = 1,
    pin: bool = False,
) -> DataLoader[Any]:  # fmt: skip
    """A loader of `Batch`es: those of the steps from `first_step` up to `steps`, of process `rank` of `world`; `pin` for GPUs."""
    workers = config.data.num_workers
    return DataLoader(
        FileDataset(files, config),
        batch_sampler=_Order(len(files), config, first_step, steps, rank, world),
        collate_fn=_Collate(sampler, config),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_quiet_worker if workers else None,
        generator=torch.Generator(),  # its own: a loader would take a number from the global one, whose state is saved
    )


def _quiet_worker(worker: int) -> None:
    import signal

    # Ctrl-C reaches every process of the terminal; the main one ends these when it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

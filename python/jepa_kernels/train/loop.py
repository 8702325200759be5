"""The training loop: batches, steps, schedules, metrics, checkpoints, and an orderly end on a signal."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.errors import DataError
from ..models import Objective, make_adamw_ema, train_step
from ..optim import AdamWEMA
from . import metrics, state
from .build import build_model, build_sampler, pixels_first
from .config import Config
from .dataset import Batch, batches, training_files
from .distributed import World, replicated, sharded
from .errors import SaveError, TrainError
from .schedules import Schedules

OK, INTERRUPTED = 0, 130


@dataclass
class Options:
    """What the command line says beside the configuration."""

    data: Path
    output: Path
    resume: bool = False
    init: Path | None = None
    stop_after: int | None = None  # steps of the whole run after which this process ends, as on a signal


@dataclass
class Progress:
    """Where the run is, and what happened since something was last told."""

    step: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    new_skipped: dict[str, str] = field(default_factory=dict)
    losses: list[torch.Tensor] = field(default_factory=list)
    waited_s: float = 0.0
    since_s: float = field(default_factory=time.perf_counter)


class _Signals:
    """SIGINT and SIGTERM ask the loop to end; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)

    @contextmanager
    def watched(self) -> Iterator[_Signals]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Trainer:
    """One run in this process: the model, its optimiser, and everything that a step needs."""

    def __init__(self, config: Config, options: Options, world: World) -> None:
        self.config, self.options, self.world = config, options, world
        self.sampler = build_sampler(config)
        self.files = training_files(options.data)
        batch = config.data.batch_size * world.size
        self.schedules = Schedules(
            config.optimization, config.optimization.iterations_per_epoch or max(1, len(self.files) // batch)
        )
        torch.manual_seed(config.run.seed)  # nothing here draws from it; a model of one's own may
        self.model: Objective = build_model(config).to(world.device)
        if options.init is not None:
            state.initialise(self.model, options.init)
        fsdp = world.size > 1 and config.run.distributed == "fsdp2"
        if fsdp:
            sharded(self.model, world)
        self.dtype = torch.bfloat16 if config.run.dtype == "bfloat16" else None
        settings = config.optimization
        self.optimizer: AdamWEMA = make_adamw_ema(
            self.model, settings.lr, 1.0, settings.betas, settings.eps, shadow_dtype=self.dtype
        )
        # Places, not groups: loading a state puts new groups in their places.
        self._decayed = [place for place, group in enumerate(self.optimizer.param_groups) if group["weight_decay"]]
        self.progress = Progress()
        if options.resume:
            self.progress.step, self.progress.skipped = state.resume(
                options.output / state.FILE, config, self.model, self.optimizer, world
            )
        self.network: nn.Module = replicated(self.model) if world.size > 1 and not fsdp else self.model
        self.optimizer.register_step_pre_hook(self._clip)

    def _clip(self, *ignored: Any) -> None:
        if self.schedules.clips(self.progress.step):
            for part in self.model.trained():
                nn.utils.clip_grad_norm_(part.parameters(), self.config.optimization.clip_grad)

    def step(self, batch: Batch) -> dict[str, Any]:
        """One training step; returns the model's stats."""
        if batch.error:
            raise DataError(batch.error)
        number = self.progress.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedules.lr(number)
        for place in self._decayed:
            self.optimizer.param_groups[place]["weight_decay"] = self.schedules.weight_decay(number)
        self.model.begin_step(number / self.schedules.steps_per_epoch)
        loss, stats = train_step(
            self.network,
            batch.inputs,
            batch.masks_enc,
            batch.masks_pred,
            self.optimizer,
            self.schedules.momentum(number),
            autocast_dtype=self.dtype,
        )
        self.progress.step += 1
        self.progress.losses.append(loss)
        self.progress.new_skipped |= {k: v for k, v in batch.skipped.items() if k not in self.progress.skipped}
        return stats

    def record(self, batch: Batch, stats: dict[str, Any]) -> dict[str, Any]:
        """The metrics of the steps since the last record; waits for the device, and all processes must call it."""
        progress, done = self.progress, self.progress.step
        steps = len(progress.losses)
        loss = float(torch.stack(progress.losses).mean())
        told = {name: value for name, value in stats.items() if isinstance(value, torch.Tensor) and value.ndim == 0}
        loss, *means = self.world.mean([loss, *map(float, told.values())])
        if not math.isfinite(loss):
            raise TrainError(f"the loss of step {done} is {loss}; lower optimization.lr, or look at the data")
        now = time.perf_counter()
        size = self.config.data.batch_size * self.world.size
        found = {
            "step": done,
            "epoch": done / self.schedules.steps_per_epoch,
            "loss": loss,
            "lr": self.schedules.lr(done - 1),
            "weight_decay": self.schedules.weight_decay(done - 1),
            **({} if self.optimizer.target is None else {"momentum": self.schedules.momentum(done - 1)}),
            **dict(zip(told, means, strict=True)),
            **{name: value for name, value in stats.items() if isinstance(value, list)},
            "samples_per_s": steps * size / (now - progress.since_s),
            "data_wait_s": progress.waited_s / steps,
        }
        new = self.world.union(progress.new_skipped)
        progress.skipped |= new
        found["skipped_files"] = len(progress.skipped)
        if done % self.config.run.diagnostics_every < self.config.run.log_every or done == self.schedules.steps:
            found |= self.diagnostics(batch)
        progress.losses, progress.waited_s, progress.new_skipped = [], 0.0, {}
        progress.since_s = time.perf_counter()
        return found

    def diagnostics(self, batch: Batch) -> dict[str, float]:
        """Collapse diagnostics of the target (or only) encoder on this batch; all processes must call it."""
        with torch.autocast(self.world.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            features = self.model.examined(pixels_first(batch.examined.to(self.world.device)))
        return metrics.collapse(features)

    def save(self) -> None:
        """Writes the checkpoint; all processes must call it, and all of them learn of a failure."""
        failure: SaveError | None = None
        path = self.options.output / state.FILE
        try:
            state.save(
                path, self.progress.step, self.config, self.model, self.optimizer, self.progress.skipped, self.world
            )
        except SaveError as error:
            failure = error
        if self.world.any(failure is not None):
            raise failure or SaveError(f"the first process could not write {path}")


def train(config: Config, options: Options, world: World) -> int:
    """Runs, or goes on with, a training run; returns the command's exit code: 0 done, 130 ended by a signal, all saved.

    Files in `options.output`: `checkpoint.pt`, replaced every `run.checkpoint_every` steps and at the end, and `metrics.jsonl`.

    Raises:
        TrainError, DataError: what the user can mend, told before the first step where possible. SaveError: the last
            checkpoint could not be written.
    """
    _prepare_output(options, world)
    with _Signals().watched() as signals:
        trainer = Trainer(config, options, world)
        steps = trainer.schedules.steps
        log = metrics.Log(options.output / metrics.FILE, trainer.progress.step) if world.is_first else None
        with metrics.terminal(steps, world.is_first) as shown:
            if shown is not None:
                shown.say(_introduction(trainer))
            try:
                _run(trainer, signals, log, shown)
            finally:
                if log is not None:
                    log.close()
            trainer.save()
            ended_early = trainer.progress.step < steps
            if shown is not None:
                word = "stopped" if ended_early else "done"
                shown.say(f"{word} after step {trainer.progress.step}; checkpoint: {options.output / state.FILE}")
                for file, reason in sorted(trainer.progress.skipped.items()):
                    shown.say(f"skipped {file}: {reason}")
    return INTERRUPTED if signals.asked and ended_early else OK


def _run(trainer: Trainer, signals: _Signals, log: metrics.Log | None, shown: metrics.Terminal | None) -> None:
    world, run, steps = trainer.world, trainer.config.run, trainer.schedules.steps
    last = min(steps, trainer.options.stop_after or steps)
    loader = batches(
        trainer.files, trainer.sampler, trainer.config, trainer.progress.step, last, world.rank, world.size,
        pin=world.device.type == "cuda",
    )  # fmt: skip
    before = time.perf_counter()
    for batch in loader:
        trainer.progress.waited_s += time.perf_counter() - before
        stats = trainer.step(batch)
        done = trainer.progress.step
        if done % run.log_every == 0 or done == last:
            record = trainer.record(batch, stats)
            if log is not None and shown is not None:
                log.write(record)
                shown.step(done)
                shown.say(metrics.line(record, steps))
        if done % run.checkpoint_every == 0 and done < last:
            try:
                trainer.save()
            except SaveError as error:  # nothing is lost: the run goes on, and the next attempt may find space
                if shown is not None:
                    shown.say(f"warning: {error}")
        if world.any(signals.asked):
            return
        before = time.perf_counter()


def _prepare_output(options: Options, world: World) -> None:
    exists = (options.output / state.FILE).exists()
    if exists and not options.resume:
        raise TrainError(f"{options.output} holds a checkpoint; go on with --resume, or choose another --output")
    if options.resume and not exists:
        raise TrainError(f"{options.output / state.FILE} does not exist, so there is nothing to resume; leave --resume out")
    if world.is_first:
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainError(f"{options.output} cannot be made: {error.strerror}; choose another --output") from None


def _introduction(trainer: Trainer) -> str:
    model, count = trainer.config.model, sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    words = [
        f"{model.family} {model.encoder}, {count / 1e6:.1f} M trained parameters",
        f"{len(trainer.files)} files",
        f"{trainer.schedules.steps} steps of {trainer.config.data.batch_size} x {trainer.world.size} samples",
    ]
    if trainer.world.size > 1:
        words.append(f"{trainer.world.size} processes ({trainer.config.run.distributed})")
    if trainer.progress.step:
        words.append(f"going on after step {trainer.progress.step}")
    return ", ".join(words)

"""Checkpoints of a run: written whole or not at all, read back bit for bit; weights from other checkpoints; export."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models import Objective
from ..optim import AdamWEMA, save_checkpoint
from .config import Config, as_record, differing_keys, from_record
from .distributed import World, gathered, shard_as
from .errors import SaveError, TrainError

FILE = "checkpoint.pt"
_SHOWN = 4  # differing keys of each kind that a message lists


def save(
    path: Path, step: int, config: Config, model: Objective, optimizer: AdamWEMA, skipped: Mapping[str, str], world: World
) -> None:
    """Writes what a run needs to go on after `step` steps; all processes must call it, the first writes.

    Entries: the model's parts (`encoder`, `predictor`, `target_encoder` of a JEPA) and `opt` as in the official checkpoints,
    then `step`, `config`, `global_batch`, `rng` (torch's global generator) and `skipped`. Order of data, crops and masks
    follow from these.

    Raises:
        SaveError: the disk is full, or the folder cannot be written; the file of before is whole.
    """
    first = world.is_first
    state: dict[str, Any] = {part: gathered(getattr(model, part).state_dict(), first) for part in model.PARTS}
    state["opt"] = gathered(optimizer.state_dict(), first)
    state |= {
        "step": step,
        "config": as_record(config),
        "global_batch": config.data.batch_size * world.size,
        "rng": torch.get_rng_state(),
        "skipped": dict(skipped),
    }
    if not first:
        return
    try:
        save_checkpoint(state, path)
    except (OSError, RuntimeError) as error:  # torch reports some failures of the file as RuntimeError
        kept = f"; the checkpoint before it, {path}, is whole" if path.exists() else ""
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise SaveError(
            f"the checkpoint of step {step} could not be written to {path} ({reason}){kept}; free some space"
        ) from None


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint as a dict, tensors on the CPU; nothing but data is unpickled.

    Raises:
        TrainError: no such file, no checkpoint, or one that holds more than data.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainError(f"{path} does not exist; give a checkpoint file") from None
    except Exception as error:  # torch raises whatever the damaged bytes led it to
        raise TrainError(
            f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0]}); it is damaged, or no checkpoint of "
            "tensors and plain data"
        ) from None
    if not isinstance(found, dict):
        raise TrainError(f"{path} holds a {type(found).__name__}, not the dict of a checkpoint")
    return found


def resume(
    path: Path, config: Config, model: Objective, optimizer: AdamWEMA, world: World
) -> tuple[int, dict[str, str]]:
    """Loads the state that `save` wrote; returns the number of steps done and the files skipped so far.

    Raises:
        TrainError: the file is missing or damaged, or its run had other settings (they are listed).
    """
    state = read(path)
    if "config" not in state or "step" not in state:
        raise TrainError(f"{path} is no checkpoint of this command; start from its weights with --init")
    mine, theirs = as_record(config), as_record(from_record(state["config"], str(path)))
    # How often to tell and to save, how files are read, and on how many processes, changes nothing.
    for record, batch in ((mine, config.data.batch_size * world.size), (theirs, state["global_batch"])):
        record["run"] = {key: record["run"][key] for key in ("dtype", "seed")}
        record["data"] = {**record["data"], "num_workers": 0, "batch_size": 0, "in_memory": False}
        record["global batch"] = batch
    if changes := differing_keys(theirs, mine):
        raise TrainError(f"{path} was made with other settings: {'; '.join(changes)}; use those, or --init for a new run")
    load_parts(model, state, str(path))
    load_optimizer(optimizer, state["opt"])
    if optimizer.target is not None:
        optimizer.target.step = state["step"]
    torch.set_rng_state(state["rng"])
    return state["step"], dict(state["skipped"])


def load_parts(model: Objective, checkpoint: Mapping[str, Any], name: str) -> None:
    """Loads a model's parts, of a run or of an official checkpoint, whose prefixes are dropped.

    Without a `target_encoder` the target becomes the encoder.

    Raises:
        TrainError: an entry is missing, or keys or shapes do not fit; they are listed, and nothing is loaded.
    """
    states = {}
    for part in model.PARTS:
        entry = checkpoint.get(part) or (checkpoint.get("encoder") if part == "target_encoder" else None)
        if not isinstance(entry, Mapping):
            raise TrainError(f"{name} has no {part!r}; it has {', '.join(map(str, checkpoint))}")
        states[part] = {_bare(key): value for key, value in entry.items()}
    missing, foreign, reshaped = [], [], []
    for part, state in states.items():
        shapes = {key: tuple(value.shape) for key, value in getattr(model, part).state_dict().items()}
        missing += [f"{part}.{key}" for key in shapes if key not in state]
        foreign += [f"{part}.{key}" for key in state if key not in shapes]
        reshaped += [
            f"{part}.{key} {tuple(state[key].shape)}, here {shape}"
            for key, shape in shapes.items()
            if key in state and tuple(state[key].shape) != shape
        ]
    if missing or foreign or reshaped:
        kinds = (("missing", missing), ("not of this model", foreign), ("of another shape", reshaped))
        lists = "; ".join(_listed(what, keys) for what, keys in kinds if keys)
        raise TrainError(f"{name} is of another architecture: {lists}. Choose the configuration that it was made with")
    for part, state in states.items():
        network = getattr(model, part)
        network.load_state_dict({key: shard_as(state[key].to(value.dtype), value) for key, value in network.state_dict().items()})


def _listed(what: str, keys: list[str]) -> str:
    more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} keys {what}: {', '.join(keys[:_SHOWN])}{more}"


def _bare(key: str) -> str:
    return key.removeprefix("module.").removeprefix("backbone.")


def load_optimizer(optimizer: AdamWEMA, state: dict[str, Any]) -> None:
    """Loads an optimiser's state whose tensors are whole, cutting them as the parameters are."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    cut = {}
    for index, entry in state["state"].items():
        like = params[index]
        cut[index] = {
            key: shard_as(value, like) if isinstance(value, Tensor) and value.shape == like.shape else value
            for key, value in entry.items()
        }
    optimizer.load_state_dict({**state, "state": cut})


def initialise(model: Objective, path: str | os.PathLike[str]) -> None:
    """Starts from the weights of a checkpoint, of this command or a published one; raises TrainError as `read`, `load_parts`."""
    load_parts(model, read(path), str(path))


def default_part(state: Mapping[str, Any]) -> str:
    """The encoder that published evaluations use: the target's, or the only one."""
    return "target_encoder" if "target_encoder" in state else "encoder"


def export(
    checkpoint: str | os.PathLike[str], output: str | os.PathLike[str], part: str | None = None
) -> tuple[str, int]:
    """Writes one network of a checkpoint, by default its target encoder or only encoder, as safetensors under its bare keys.

    Returns the network's name and the number of tensors.

    Raises:
        TrainError: safetensors is not installed, the checkpoint cannot be read or has no such entry, or the file cannot be
            written.
    """
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise TrainError(
            "writing safetensors needs safetensors, which cannot be imported; install it with "
            "`pip install 'jepa-kernels[export]'`"
        ) from None
    state = read(checkpoint)
    part = part or default_part(state)
    if part not in state:
        raise TrainError(f"{checkpoint} has no {part!r}; it has {', '.join(map(str, state))}")
    tensors = {_bare(key): value.contiguous() for key, value in state[part].items()}
    try:
        save_file(tensors, str(output), metadata={"format": "pt", "part": part})
    except OSError as error:
        raise TrainError(f"{output} cannot be written: {error.strerror or error}") from None
    return part, len(tensors)

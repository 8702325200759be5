"""Checkpoints written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(state: Any, path: str | os.PathLike[str]) -> None:
    """`torch.save` that leaves the old file whole until the new one is: an interrupted write changes nothing under
    `path`.

    The state goes to a temporary file in the same folder, is flushed to the disk, and takes the name in one step
    (`os.replace`). A process killed on the way leaves at most a file `.<name>.*.partial` behind, which nothing
    reads.

    Raises:
        OSError: the folder is missing, not writable or full; the old file is untouched.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint({"step": 3}, f"{folder}/last.pt")
        ...     torch.load(f"{folder}/last.pt")
        {'step': 3}
    """
    path = Path(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name survives a loss of power, too
    finally:
        os.close(folder)

"""The command `jepa-kernels tune`: what it may start from, and the table that it writes."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from .. import backends, hardware
from .errors import NoGPUError, TuneError

OK, LEFT = 0, 4
OPERATOR = "masked_attention"


def add(commands: Any) -> None:
    """Adds the command to the parser of `jepa-kernels`."""
    parser = commands.add_parser(
        "tune",
        help="time tiles of a GPU kernel on this GPU, and write the table of its architecture",
        epilog="Exit codes: 0 done, 2 usage, 4 the budget ended before the last entry (the same command goes on), "
        "5 no NVIDIA GPU, or Triton is not here.",
    )
    parser.add_argument("operator", choices=(OPERATOR,), help="what to tune")
    parser.add_argument("--arch", metavar="NAME", help="such as sm_90; a GPU of another architecture is refused")
    parser.add_argument("--budget", default="5m", metavar="TIME", help="limit of the search, such as 5m (default)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the table (default runs/tuned/ARCH.json); one that is there is gone on with"
    )
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command; raises `TuneError` for what the user can mend."""
    from ..cli import parse_duration

    end = time.monotonic() + parse_duration("--budget", options.budget)
    if not torch.cuda.is_available():
        raise NoGPUError("tune times kernels and needs an NVIDIA GPU; torch sees none")
    architecture = hardware.architecture(torch.cuda.current_device())
    if options.arch not in (None, architecture):
        raise TuneError(f"--arch {options.arch} is not this GPU's architecture, {architecture}: tiles are timed, not guessed")
    table = Table(options.output or Path("runs/tuned") / f"{architecture}.json", architecture, identity())
    from ..static.occupancy import MULTIPROCESSORS
    from . import candidates, search
    from .compiling import Compiler
    from .timing import OnDevice

    number = int(architecture.removeprefix("sm_"))
    if number not in MULTIPROCESSORS:
        raise TuneError(f"the limits of {architecture} are not known: one of {', '.join(f'sm_{n}' for n in MULTIPROCESSORS)}")
    left = [entry for entry in candidates.entries() if not table.has(entry)]
    with Compiler(number) as compiler:
        parts = candidates.tiles, compiler, OnDevice(), table.save
        left = search.search(left, *parts, end, time.monotonic, lambda line: print(line, flush=True))
    print(f"{len(candidates.entries()) - len(left)} entries tuned, {len(left)} left: {table.path}", flush=True)
    return LEFT if left else OK


def identity() -> dict[str, Any]:
    """What the times belong to: they are not mixed with those of anything else."""
    from ..bench.environment import commit

    return {"gpu": torch.cuda.get_device_name(), **hardware.versions(("torch", "triton")), "commit": commit()}


class Table:
    """The table as it grows: the shipped one, with the winners, and under `tuning` how each entry came about."""

    def __init__(self, path: Path, architecture: str, identity: dict[str, Any]) -> None:
        self.path = path
        shipped = json.loads(json.dumps(backends.tuned_table(architecture)))  # a copy
        self._document = {"automatic": shipped.get("automatic", {}), **shipped}
        if path.is_file():
            self._document = _read(path)
            before = self._of_tuning().get("of")
            if before != identity:
                raise TuneError(f"{path} was tuned with {before}, this is {identity}; choose another --output")
        self._of_tuning()["of"] = identity
        path.parent.mkdir(parents=True, exist_ok=True)

    def _of_tuning(self) -> dict[str, Any]:
        found: dict[str, Any] = self._document.setdefault("tuning", {}).setdefault(OPERATOR, {"entries": {}})
        return found

    def has(self, entry: Any) -> bool:
        """Whether an entry was finished before."""
        return entry.name in self._of_tuning()["entries"]

    def save(self, entry: Any, found: Any) -> None:
        """Note an entry's outcome on the disk at once."""
        from ..bench.store import write_atomic
        from .search import as_entry, record

        kernel = self._document.setdefault(OPERATOR, {}).setdefault(entry.kernel, {})
        kernel.pop(entry.key, None)
        if found.winner is not None:
            kernel[entry.key] = as_entry(found.winner)
        self._of_tuning()["entries"][entry.name] = _finite(record(found))
        write_atomic(self.path, json.dumps(self._document, indent=1) + "\n")


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["tuning"][OPERATOR]["entries"], dict):
            raise TypeError("entries must be an object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TuneError(f"{path} is no table that tune wrote: {error!r}; choose another --output") from error
    return dict(found)

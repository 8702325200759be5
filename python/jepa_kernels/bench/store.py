"""A run's folder: one fsynced line per cell, so that an interruption loses nothing, and the environment.

The environment says by `finished`, an instant, that all cases were run. The reports and the JSON document are made of these
two files, and can be made again from them.

Of the keys of a record, `energy` is `energy.EnergyReading` and `energy_model` is `energy.model.ModelledEnergy`, which is
no measurement. `timeline` is the state of the machine while the provider ran, or None where it was not timed:

    reason         why there are no samples, else None
    begin_unix_s   wall-clock time of t_s = 0; one zero for all providers of a case
    t_s            seconds of each row
    phase          of each row: "round" (after a sample of the rounds), "energy" (in a window), "idle" (of the whole case)
    power_w        GPU board, or CPU packages as the mean since the row before; watts
    sm_mhz, memory_mhz, temperature_c, utilisation (0 to 1)     GPU
    events         GPU: bits of the reasons for lower clocks, named by event_names {"bit": name}
    cpu_mhz, steal (0 to 1, since the row before), load (1 min) CPU
    throttled_s    {cause: seconds slowed down during the provider's rounds, None where it is not counted}
    windows        [{phase: "idle" | "energy", begin_s, end_s}], in order, on the scale of t_s

Each column from power_w on is a list as long as t_s, or None where this machine does not have it.
`energy["windows"]` holds, in the same order, {t0, t1 on the scale of t_s; e0, e1 joules; n_calls; busy (0 to 1)}.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .errors import BenchInputError

RESULTS, ENVIRONMENT, DOCUMENT, REPORT = "results.jsonl", "environment.json", "run.json", "report.html"
MARKDOWN, SUPERSEDED, PROFILES = "report.md", "superseded.jsonl", "profiles"
STDOUT = Path("-")
SCHEMA = 2  # of the records and the environment; a reader refuses every other
Record = dict[str, Any]


class RunStore:
    """Writes one run. `append` returns only when the record is on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._results = open(folder / RESULTS, "ab", buffering=0)  # noqa: SIM115 - open for the whole run
        try:
            fcntl.flock(self._results, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._results.close()
            raise BenchInputError(f"{folder} is being written by another process; wait for it to end") from error

    @classmethod
    def create(cls, output: Path) -> RunStore:
        """A new folder `<output>/<time>-<four hex digits>`; raises `BenchInputError` where it cannot be written."""
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        folder = output / f"{stamp}-{secrets.token_hex(2)}"
        try:
            folder.mkdir(parents=True)
            return cls(folder)
        except OSError as error:
            raise BenchInputError(
                f"output folder {output} cannot be written: {error.strerror}; choose another with --output"
            ) from error

    @classmethod
    def reopen(cls, folder: Path, keep: Iterable[Record], drop: Iterable[Record]) -> RunStore:
        """Go on with an interrupted run: `keep` become its records, `drop` move to `superseded.jsonl`.

        A torn last line disappears with the rewriting. Raises `BenchInputError` where the folder cannot be written.
        """
        try:
            cls(folder).close()  # nobody else writes it
            dropped = "".join(_line(record) for record in drop)
            if dropped:
                with open(folder / SUPERSEDED, "a", encoding="utf-8") as file:
                    file.write(dropped)
            write_atomic(folder / RESULTS, "".join(_line(record) for record in keep))
            return cls(folder)
        except OSError as error:
            raise BenchInputError(f"{folder} cannot be written: {error.strerror}") from error

    @property
    def run_id(self) -> str:
        return self.folder.name

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one cell's record. Raises `BenchInputError` when the disk is full; what was there before stays whole."""
        end = os.fstat(self._results.fileno()).st_size
        data = memoryview(_line(record).encode())
        try:
            while data:
                data = data[self._results.write(data) :]
            os.fsync(self._results.fileno())
        except OSError as error:
            os.truncate(self.folder / RESULTS, end)  # a half-written line would hide those after it
            raise BenchInputError(_cannot_save(self.folder, error)) from error

    def write(self, name: str, text: str) -> Path:
        """Write a whole file under a temporary name and rename it, so that it is never seen half-written."""
        try:
            return write_atomic(self.folder / name, text)
        except OSError as error:
            raise BenchInputError(_cannot_save(self.folder, error)) from error

    def close(self) -> None:
        self._results.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _cannot_save(folder: Path, error: OSError) -> str:
    return (
        f"{folder} cannot be written: {error.strerror}; the records until here are kept. Mend that and go on with "
        f"`jepa-kernels bench run --resume {folder}`"
    )


def write_atomic(path: Path, text: str) -> Path:
    """Replace a file by rename after an fsync; a failure leaves the old file and no other."""
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise
    return path


def to_json(value: Any) -> str:
    """JSON as all files of a run hold it: indented, without NaN."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def emit_json(target: Path, text: str) -> None:
    """Write JSON to a file, or to stdout for `-`; raises `BenchInputError` where it cannot be written."""
    if target == STDOUT:
        print(text, end="")
        return
    try:
        write_atomic(target, text)
    except OSError as error:
        raise BenchInputError(f"--json {target} cannot be written: {error.strerror}") from error


def read_results(folder: Path) -> list[Record]:
    """Records of a run in order. A torn last line, left by a killed process, is passed over.

    Raises `BenchInputError` when the folder holds no run, or when a line before the last is broken.
    """
    path = folder / RESULTS
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise BenchInputError(f"{folder} holds no benchmark run: {path.name}: {error.strerror}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline after it: the write did not finish
                break
            raise BenchInputError(f"{path} line {number} is broken: {error}") from error
    return records


def read_environment(folder: Path) -> dict[str, Any]:
    """The environment of a run; raises `BenchInputError` when it is missing, broken or of another schema."""
    path = folder / ENVIRONMENT
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise BenchInputError(f"{folder} holds no benchmark run: {path.name}: {error}") from error
    found = loaded.get("schema") if isinstance(loaded, dict) else None
    if found != SCHEMA:
        raise BenchInputError(
            f"{folder} was written with schema {found}, this version reads {SCHEMA}; measure again, or read it with "
            "the version that wrote it"
        )
    return loaded

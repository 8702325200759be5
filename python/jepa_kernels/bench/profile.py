"""`bench profile`: starts the profiling process of a case, and tells what it found as text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import other_profilers, summary
from .cases import Case, Provider
from .devices import choose_device
from .errors import BenchInputError
from .runner import select_providers
from .store import to_json, write_atomic
from .suite import Suite

REQUEST, PROFILE, TEXT, LOG = "request.json", "profile.json", "profile.md", "profile.log"
LIMIT_S = 600.0
OURS = ("jk-cuda", "jk-triton", "jk-cpu")  # their `supports` does not look at inputs


@dataclass(frozen=True)
class Request:
    """What the profiling process runs."""

    case: str
    provider: str
    device: str = "auto"
    own: str = ""
    input: str = ""
    seed: int = 0
    calls: int = 3


def choose(pattern: str, provider: str | None, device: str, own: str) -> tuple[str, list[str]]:
    """The one case that a glob names and the providers asked for, by default the peer and ours.

    Raises `BenchInputError` for a glob that names several cases, and for a provider that the case lacks.
    """
    cases = Suite(name="profile", own=own, cases=(pattern,)).chosen()
    if len(cases) > 1:
        raise BenchInputError(f"{pattern!r} matches {len(cases)} cases, profile takes one: {', '.join(c.id for c in cases)}")
    case, chosen = cases[0], choose_device(device)
    found = select_providers(case, chosen, (provider,) if provider else ())
    if not found:
        known = ", ".join(p.name for p in case.providers(chosen))
        raise BenchInputError(f"{case.id} has no provider {provider!r}; known: {known}")
    if provider is not None:
        return case.id, [p.name for p in found]
    return case.id, default_providers(case, found)


def default_providers(case: Case, providers: Sequence[Provider]) -> list[str]:
    """The first of our backends that can be asked here, and the peer."""
    ours = [p.name for p in providers if p.name in OURS and p.supports(None) is None]
    return [*ours[:1], *(p.name for p in providers if p.name == case.peer)]


def in_own_process(request: Request, folder: Path, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Run the request in a new process and return its profile; files are written to the folder.

    Raises `BenchInputError` when the folder cannot be written, and `RuntimeError` when the process fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = write_atomic(folder / REQUEST, to_json(asdict(request)))
    except OSError as error:
        raise BenchInputError(f"{folder} cannot be written: {error.strerror}") from error
    (folder / PROFILE).unlink(missing_ok=True)
    command = [sys.executable, "-m", "jepa_kernels.bench.profile_worker", str(path)]
    with open(folder / LOG, "w", encoding="utf-8") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s).returncode
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"stopped after {limit_s:.0f} s; see {folder / LOG}") from error
    if code != 0 or not (folder / PROFILE).is_file():
        raise RuntimeError(f"the profiling process ended with code {code}; see {folder / LOG}")
    found: dict[str, Any] = json.loads((folder / PROFILE).read_text(encoding="utf-8"))
    if "error" in found:
        raise RuntimeError(found["error"])
    write_atomic(folder / TEXT, as_markdown(found))
    return found


def folder_name(case_id: str, provider: str) -> str:
    """A folder name of letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", f"{case_id}--{provider}")


def as_markdown(found: Mapping[str, Any]) -> str:
    """The profile as a page: parts of the step, the operators with the most time, what to change."""
    total = sum(found["parts"].values()) or 1.0
    lines = [
        f"# Profile of {found['case_id']}, {found['provider']}",
        "",
        f"{summary.seconds(found['wall_s'])} a call under the profiler ({found['calls']} calls on {found['device']}; "
        "slower than without it). Open "
        f"`{found['trace']}` in https://ui.perfetto.dev or chrome://tracing.",
        "",
        "| part | time a call | share |",
        "|---|---:|---:|",
        *(f"| {k} | {summary.seconds(v)} | {v / total:.0%} |" for k, v in found["parts"].items() if v > 0),
        "",
        "| kind of work | time a call | share |",
        "|---|---:|---:|",
        *(f"| {k} | {summary.seconds(v)} | {v / total:.0%} |" for k, v in found["kinds"].items() if v > 0),
        "",
        "| operator | part | calls | time a call | share |",
        "|---|---|---:|---:|---:|",
        *(
            f"| {o['name']} | {o['part']} | {o['calls']:g} | {summary.seconds(o['seconds'])} | {o['share']:.1%} |"
            for o in found["operators"]
        ),
        "",
        "What to change:",
        "",
        *(f"- {line}" for line in found["advice"]),
        "",
        *(f"{name}: {text}." for name, text in found["tools"].items()),
        "",
    ]
    return "\n".join(lines)


def run(request: Request, folder: Path) -> dict[str, Any]:
    """Profile, by Proton and ncu too where they are; print the page and where the trace is."""
    found = in_own_process(request, folder)
    found["tools"] = other_profilers.run(folder / REQUEST, found["device"])
    write_atomic(folder / PROFILE, to_json(found))
    write_atomic(folder / TEXT, as_markdown(found))
    print(as_markdown(found))
    print(f"trace: {folder / found['trace']}")
    return found

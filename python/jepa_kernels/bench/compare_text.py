"""`bench compare` as text and exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import compare as comparing
from .compare import IMPROVED, INCONCLUSIVE, REGRESSED, SAME, Change, Comparison, Thresholds
from .store import read_environment, read_results

PASS, REGRESSION, UNDECIDED, BROKEN = 0, 1, 3, 4


def load(base: Path, head: Path, *, force: bool, **options: Any) -> Comparison:
    """Compare two run folders; raises `BenchInputError` when one is no run, or they cannot be compared."""
    environments = [read_environment(folder) for folder in (base, head)]
    warnings = comparing.check_comparable(environments[0], environments[1], force=force)
    return comparing.compare(read_results(base), read_results(head), warnings=warnings, **options)


def exit_code(found: Comparison, *, strict: bool) -> int:
    """4 when a cell broke, 1 when one regressed, 3 with `strict` when one is undecided or missing, else 0."""
    if found.broken:
        return BROKEN
    if found.verdicts(REGRESSED):
        return REGRESSION
    return UNDECIDED if strict and (found.verdicts(INCONCLUSIVE) or found.missing) else PASS


def as_markdown(found: Comparison) -> str:
    """What regressed first, then a table of every row, then the controls."""
    regressed = found.verdicts(REGRESSED)
    lines = [f"warning: {text}" for text in found.warnings]
    lines += [f"broken: {name} was timed in the base and fails in the head" for name in found.broken]
    lines += [f"missing: {name} was timed in the base and not in the head" for name in found.missing]
    counted = ", ".join(f"{len(found.verdicts(v))} {v}" for v in (IMPROVED, SAME, REGRESSED, INCONCLUSIVE))
    lines += ["", f"{counted}; threshold {_shares(found.thresholds)}, scatter between the runs {found.run_noise:.1%}", ""]
    lines += [f"REGRESSED {c.case_id} {c.provider}: {c.ratio - 1:+.1%} ({c.measure})" for c in regressed]
    lines += ["" if regressed else "no regression", ""]
    lines += _table("ours", lambda c: not c.control, found) + _table("controls", lambda c: c.control, found)
    return "\n".join(lines).strip() + "\n"


def _shares(thresholds: Thresholds) -> str:
    parts = [f"{thresholds.time:.0%}"]
    if thresholds.energy is not None:
        parts.append(f"of energy {thresholds.energy:.0%}")
    return ", ".join([*parts, *(f"of {glob} {share:.0%}" for glob, share in thresholds.by_case)])


def _table(title: str, wanted: Callable[[Change], bool], found: Comparison) -> list[str]:
    rows = [c for c in found.changes if wanted(c)]
    if not rows:
        return []
    head = f"| case ({title}) | provider | measure | head / base | 95 % interval | verdict |"
    body = [
        f"| {c.case_id} | {c.provider} | {c.measure} | {c.ratio:.3f} | {c.ci_low:.3f} to {c.ci_high:.3f} | "
        f"{c.verdict}{f' ({c.note})' if c.note else ''} |"
        for c in rows
    ]
    return [head, "|---|---|---|---:|---:|---|", *body, ""]


def as_json(found: Comparison) -> str:
    return json.dumps(found.as_dict(), indent=1, allow_nan=False) + "\n"

"""`bench run --dry-run`: the cells of a run and the most time that it may take."""

from __future__ import annotations

from . import runner
from .devices import choose_device
from .suite import Suite

CHECK_S = 3.0  # inputs, references and first calls of a case, roughly; compiling and large models take longer


def describe(suite: Suite, device_name: str) -> str:
    """One line a case, and an estimate: every round and every warm-up at its limit."""
    device = choose_device(device_name)
    cases = runner.chosen_cases(suite, device)
    lines, total = [], suite.ahead_s
    for case in cases:
        providers = runner.select_providers(case, device, suite.providers)
        can_run = [p for p in providers if p.name.split("-")[0] != "jk" or p.supports(None) is None]
        seconds = min(suite.case_budget_s, len(can_run) * suite.timing.rounds * suite.timing.sample_s)
        seconds += len(can_run) * suite.timing.warmup_max_s + CHECK_S
        lines.append(f"{case.id}: {', '.join(p.name for p in can_run)}; about {seconds:.0f} s at most for short calls")
        total += min(suite.case_budget_s + len(can_run) * suite.timing.warmup_max_s, max(seconds, 1.0))
    limit = f", cut at {suite.time_budget_s:.0f} s" if suite.time_budget_s else ""
    lines.append(f"{len(cases)} cases on {device}: about {total / 60:.1f} min{limit}")
    return "\n".join(lines)

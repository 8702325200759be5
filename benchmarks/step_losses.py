"""Losses and memory of a training step's forms over many steps: `python benchmarks/step_losses.py CASE [--steps 20]`.

CASE is one that `jepa-kernels bench list --filter 'train_step/*'` names. From the same weights, on the same masks and pixels at
every step: our model, the official form in the case's dtype, and the official form in float64 that tells both errors. Each form
has a process of its own, whose highest resident memory is told, less what it was before the model was built. Exit code 1 where
our largest error exceeds twice the official form's and one rounding of the dtype.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from jepa_kernels.bench.cases import all_cases, train_step, train_step_ijepa
from jepa_kernels.bench.cases.base import Setting
from jepa_kernels.bench.cases.training_steps import FLOOR, Family
from jepa_kernels.bench.video import load_clip

FORMS = {"exact": "official, float64", "official": "official", "ours": "ours"}


def family_of(case_id: str) -> Family:
    """The family that a training-step case belongs to."""
    return (train_step_ijepa if "/ijepa-" in case_id else train_step).FAMILY


def run_form(case_id: str, form: str, steps: int) -> dict[str, Any]:
    """Losses of one form, and how far its resident memory rose."""
    case = next(case for case in all_cases() if case.id == case_id)
    inputs = case.make_inputs(Setting(0, torch.device("cpu"), lambda: load_clip(None)))
    before = resident("VmRSS")
    family = family_of(case_id)
    step = family.kernel_setup(inputs) if form == "ours" else family.eager_setup(inputs, double=form == "exact")
    losses = [float(step()) for _ in range(steps)]
    return {"losses": losses, "rise_bytes": resident("VmHWM") - before}


def resident(key: str) -> int:
    """Bytes of this process that are resident (VmRSS), or were at most (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def in_process(case_id: str, form: str, steps: int) -> dict[str, Any]:
    """`run_form` in a process of its own."""
    command = [sys.executable, __file__, case_id, "--steps", str(steps), "--form", form]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: the first and last loss, the largest error, and the memory of each form."""
    lines = ["| form | first loss | last loss | largest error | memory rose by |", "|---|---|---|---|---|"]
    for form, name in FORMS.items():
        part = found[form]
        error = "" if form == "exact" else f"{largest_error(found, form):.1e}"
        rise = "" if form == "exact" else f"{part['rise_bytes'] / 2**20:.0f} MiB"
        lines.append(f"| {name} | {part['losses'][0]:.5f} | {part['losses'][-1]:.5f} | {error} | {rise} |")
    return "\n".join(lines)


def largest_error(found: dict[str, dict[str, Any]], form: str) -> float:
    """Of a form's losses against float64, over all steps."""
    return max(abs(a - b) for a, b in zip(found[form]["losses"], found["exact"]["losses"], strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("case", choices=sorted(case.id for case in all_cases() if case.operator == "train_step"), metavar="CASE")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="where to write every loss")
    parser.add_argument("--form", choices=FORMS, help="one form alone, as JSON")
    options = parser.parse_args()
    if options.form:
        print(json.dumps(run_form(options.case, options.form, options.steps)))
        return 0
    found = {form: in_process(options.case, form, options.steps) for form in FORMS}
    if options.json:
        options.json.write_text(json.dumps({"case": options.case, "torch": torch.__version__, "forms": found}, indent=1) + "\n")
    print(table(found))
    floor = FLOOR[options.case.rsplit("-", 1)[-1]] * max(found["exact"]["losses"])
    return int(largest_error(found, "ours") > 2 * largest_error(found, "official") + floor)


if __name__ == "__main__":
    sys.exit(main())

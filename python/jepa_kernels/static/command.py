"""The command `jepa-kernels explain`: which backend runs an operator here, or with --static what its compiled kernels need."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .. import info
from ..ops import registry
from .errors import StaticError

OK = 0


def add(commands: Any) -> None:
    """Adds the command to the parser of `jepa-kernels`."""
    parser = commands.add_parser(
        "explain",
        help="which backend runs an operator here and why; with --static what its GPU kernels need, without a GPU",
        epilog="Exit codes: 0 done, 2 usage, 4 a kernel does not compile, 5 Triton or the disassembler is not here.",
    )
    parser.add_argument("operator", metavar="OPERATOR", help=f"one of {', '.join(registry.OPERATOR_NAMES)}")
    parser.add_argument(
        "--static",
        action="store_true",
        help="compile the Triton kernels (seconds each) and tell registers, spills, shared memory, occupancy and instructions; "
        "of the CUDA module too, where it was built",
    )
    parser.add_argument(
        "--arch", metavar="NAMES", help="such as sm_90,sm_100, or all (default: of this machine's GPUs, otherwise sm_90)"
    )
    parser.add_argument("--quick", action="store_true", help="the main cases only")
    parser.add_argument("--filter", action="append", default=[], metavar="GLOB", help="only cases whose name matches")
    parser.add_argument("--cold", action="store_true", help="leave Triton's cache aside, and tell how long each kernel compiles")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command; raises `StaticError` for what the user can mend."""
    if options.static:
        return _static(options)
    given = [name for name in ("arch", "quick", "filter", "cold") if getattr(options, name)]
    if given:
        raise StaticError(f"--{given[0]} belongs to --static: add --static, or leave it out")
    if options.operator not in registry.OPERATOR_NAMES:
        raise StaticError(f"unknown operator {options.operator!r}: one of {', '.join(registry.OPERATOR_NAMES)}")
    found = info.collect()
    state = found["operators"][options.operator]
    if options.json:
        print(json.dumps({"operator": options.operator, "device": found["device"], **state}, indent=1))
    else:
        print(f"{options.operator}   (automatic on {found['device']}: {', '.join(state['automatic'])})")
        print("\n".join(f"  {name:<12}{reason}" for name, reason in state["backends"].items()))
    return OK


def _static(options: argparse.Namespace) -> int:
    from . import report

    targets = report.architectures(options.arch)
    chosen = {target: report.chosen_cases(options.operator, options.quick, options.filter, target) for target in targets}
    work = [(target, case) for target, cases in chosen.items() for case in cases]
    found = report.rows(options.operator, work, _progress, options.cold)
    if not options.filter:
        found += report.cuda_rows(options.operator, targets)
    if options.json:
        print(json.dumps(report.as_json(options.operator, found), indent=1))
    else:
        print(report.markdown(options.operator, found))
    return OK


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""The command `jepa-kernels`: what this machine offers, training, the benchmark, and the check on a GPU."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .bench import commands as bench_commands
from .static import command as static_command
from .train import command as train_command
from .tune import command as tune_command

OK, USAGE, INTERRUPTED = 0, 2, 130


def build_parser() -> argparse.ArgumentParser:
    """The argument parser of all commands."""
    parser = argparse.ArgumentParser(prog="jepa-kernels", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="what this machine offers: CPU, GPUs, native modules, backends")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(handler=_info)
    support = commands.add_parser("support", help="operator x backend x element type x architecture, in Markdown")
    support.add_argument(
        "--write", type=Path, metavar="README", help="write it between the markers of a Markdown file"
    )
    support.set_defaults(handler=_support)
    check = commands.add_parser(
        "gpu-check",
        help="everything that needs a GPU, from a source tree: build, tests, benchmark, sanitizer; one results folder, "
        "with which the same command goes on",
        epilog="Exit codes: 0 all passed, 2 usage, 4 a step failed or ran out of time, 5 no NVIDIA GPU.",
    )
    check.add_argument("--budget", default="9m", metavar="TIME", help="limit of the whole check, such as 9m (default)")
    check.add_argument("--output", type=Path, default=Path("runs/gpu-check"), metavar="DIR", help="the results folder")
    check.add_argument("--tests", type=Path, default=Path("tests"), metavar="DIR", help="the source tree's tests")
    check.set_defaults(handler=_gpu_check)
    _add_doctor(commands)
    static_command.add(commands)
    tune_command.add(commands)
    _add_patch_report(commands)
    train_command.add(commands)
    _add_plan(commands)
    _add_surprise(commands)
    bench = commands.add_parser("bench", help="measure against PyTorch and write a report")
    actions = bench.add_subparsers(dest="action", required=True)
    _add_doctor(actions)
    _add_list(actions)
    _add_run(actions)
    bench_commands.add(actions)
    report = actions.add_parser("report", help="write the report of a run again")
    report.add_argument("run", type=Path, help="a run's folder")
    report.set_defaults(handler=_report)
    readme = actions.add_parser("readme-table", help="write a run's table between the markers of a README")
    readme.add_argument("run", type=Path, help="a run's folder")
    readme.add_argument("readme", type=Path, help="the Markdown file")
    readme.set_defaults(handler=_readme_table)
    return parser


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what can be measured on this machine, what cannot, why, and what mends it",
        epilog="Exit codes: 0 examined, 2 usage, 5 something required cannot be measured here.",
    )
    doctor.add_argument(
        "--energy", action="store_true", help="also check that the energy adds up under a load: a minute on an idle machine"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument(
        "--require", action="append", default=[], choices=("energy", "gpu"), help="end with code 5 where it is missing"
    )
    doctor.set_defaults(handler=_doctor)


def _add_patch_report(commands: Any) -> None:
    patching = commands.add_parser(
        "patch-report",
        help="what jk.patch would replace in a model, and the gain to expect from counts of FLOPs and bytes",
        epilog="FACTORY is a function without arguments that returns a model, or (model, inputs) for the counts.",
    )
    patching.add_argument("factory", metavar="MODULE:FACTORY", help="such as mymodels:build; the current folder counts")
    patching.add_argument("--gflops", type=float, metavar="RATE", help="matrix rate in GFLOP/s (default: measured)")
    patching.add_argument("--bandwidth", type=float, metavar="GB/S", help="memory bandwidth in GB/s (default: measured)")
    patching.set_defaults(handler=_patch_report)


def _add_plan(commands: Any) -> None:
    from .planning import command

    planning = commands.add_parser("plan", help="let a world model choose actions, in an environment or between two images")
    command.add_arguments(planning)
    planning.set_defaults(handler=_plan)


def _add_surprise(commands: Any) -> None:
    from .surprise import command

    command.add(commands)


def _add_list(actions: Any) -> None:
    listing = actions.add_parser("list", help="the cases and their providers")
    _add_selection(listing)
    listing.set_defaults(handler=_list)


def _add_run(actions: Any) -> None:
    run = actions.add_parser(
        "run",
        help="run a suite",
        epilog="Exit codes: 0 done, 2 usage or input, 4 a provider failed, 5 the device is not there, or energy was "
        "required and there is none, 130 interrupted (everything is saved).",
    )
    _add_selection(run)
    run.add_argument(
        "--input",
        type=Path,
        metavar="PATH",
        help="video or image whose pixels are used, or a folder: its first readable one (default: a sample video)",
    )
    run.add_argument("--output", type=Path, default=Path("runs"), metavar="DIR", help="parent of the run's folder")
    run.add_argument("--time-budget", metavar="TIME", help="limit of the whole run, such as 4m, 90s or 1h")
    run.add_argument(
        "--energy", choices=("auto", "require", "off"), help="auto (default); require ends with code 5 where there is none"
    )
    run.add_argument("--seed", type=int, help="seed of inputs and of the order of providers")
    run.add_argument("--cache", choices=("warm", "cold"), help="cold evicts the caches before every timed call")
    run.add_argument("--clock", help="auto (default), wall, device_event or device_graph")
    run.add_argument("--no-profile", action="store_true", help="do not profile whole training steps after the timing")
    run.add_argument("--isolate", action="store_true", help="each case in a process of its own: a crash costs one case")
    run.add_argument("--json", type=Path, metavar="FILE", help="write the JSON document there too; - prints it alone")
    run.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run, with its suite and input")
    run.add_argument("--dry-run", action="store_true", help="say what would be measured and for how long at most")
    run.add_argument("--dump-config", action="store_true", help="print the suite as TOML, for --suite, and stop")
    run.set_defaults(handler=_run)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    suite = parser.add_mutually_exclusive_group()
    suite.add_argument("--quick", action="store_true", help="small sizes: about a minute on two CPU cores")
    where = "cases and options from a file, or by name from the source tree's benchmarks/suites"
    suite.add_argument("--suite", "--config", type=Path, metavar="FILE.toml|NAME", help=where)
    parser.add_argument("--own", type=Path, metavar="FILE.py", help="measure the cases() of this file: your own model")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="only cases with this tag")
    globs: dict[str, Any] = {"action": "append", "default": [], "metavar": "GLOB"}
    parser.add_argument("--filter", help="only cases whose id matches; !GLOB leaves those out", **globs)
    parser.add_argument("--provider", help="only providers whose name matches; !GLOB leaves those out", **globs)
    parser.add_argument("--baseline", metavar="NAME", help="the provider of all ratios, where a case has it (default: its peer)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a mistake of the user becomes one line on stderr and code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = build_parser().parse_args(arguments)
    except SystemExit as leave:  # argparse has printed help or the mistake
        return int(leave.code or 0)
    options.argv = arguments
    from .bench.errors import BenchInputError
    from .data.errors import DataError
    from .static.errors import StaticError
    from .train.errors import TrainError
    from .tune.errors import TuneError

    try:
        return int(options.handler(options))
    except (BenchInputError, DataError, StaticError, TrainError, TuneError) as error:
        print(f"jepa-kernels: error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", USAGE)
    except KeyboardInterrupt:
        print("jepa-kernels: interrupted", file=sys.stderr)
        return INTERRUPTED


def _info(options: argparse.Namespace) -> int:
    from . import info

    found = info.collect()
    print(json.dumps(found, indent=1) if options.json else info.as_text(found))
    return OK


def _support(options: argparse.Namespace) -> int:
    from . import support

    if options.write is None:
        print(support.markdown())
        return OK
    from .bench.readme import replace_block

    replace_block(options.write, support.BEGIN, support.END, support.markdown())
    print(f"table written to {options.write}")
    return OK


def _doctor(options: argparse.Namespace) -> int:
    from .bench import doctor

    return doctor.run(options.require, as_json=options.json, check=options.energy)


def _patch_report(options: argparse.Namespace) -> int:
    from .bench.ceilings import measure_ceilings
    from .bench.errors import BenchInputError
    from .integrations import command

    def roofs(device: Any, dtype: str) -> tuple[float, float]:
        ceilings = measure_ceilings(device, quick=True)
        return ceilings.matrix(dtype), ceilings.copy_bytes_per_s

    try:
        print(command.patch_report(options.factory, roofs, options.gflops, options.bandwidth))
    except command.FactoryError as error:
        raise BenchInputError(str(error)) from error
    return OK


def _plan(options: argparse.Namespace) -> int:
    from .bench.errors import BenchInputError
    from .planning import command

    try:
        print(command.run(options))
    except ValueError as error:
        raise BenchInputError(str(error)) from error
    return OK


def _gpu_check(options: argparse.Namespace) -> int:
    from .bench import gpu_check
    from .bench.errors import BenchInputError

    budget_s = parse_duration("--budget", options.budget)
    if not options.tests.is_dir():
        raise BenchInputError(f"--tests {options.tests} is not a folder; run gpu-check from the source tree")
    return gpu_check.run(budget_s, options.output, options.tests.resolve().parent)


def _suite(options: argparse.Namespace) -> Any:
    from .bench import suite as suites

    chosen = suites.QUICK if options.quick else suites.FULL
    if options.suite is not None:
        chosen = suites.load_suite(options.suite)
    changes: dict[str, Any] = {}
    if options.own is not None:  # what a suite leaves out of the package's cases says nothing of these
        changes |= {"own": str(options.own.resolve()), "cases": (), "providers": ()}
    if options.filter:
        changes["cases"] = tuple(options.filter)
    if options.provider:
        changes["providers"] = tuple(options.provider)
    if options.baseline is not None:
        changes["baseline"] = options.baseline
    if options.tag:
        changes["tags"] = tuple(options.tag)
    if getattr(options, "seed", None) is not None:
        changes["seed"] = options.seed
    if getattr(options, "energy", None) is not None:
        changes["energy"] = options.energy
    if getattr(options, "time_budget", None) is not None:
        changes["time_budget_s"] = parse_duration("--time-budget", options.time_budget)
    if getattr(options, "no_profile", False):
        changes["profile"] = False
    if getattr(options, "isolate", False):
        changes["isolate"] = True
    timing = {key: getattr(options, key) for key in ("cache", "clock") if getattr(options, key, None) is not None}
    return replace(chosen, **changes, timing=replace(chosen.timing, **timing))


def _list(options: argparse.Namespace) -> int:
    from .bench import devices, runner

    suite, device = _suite(options), devices.choose_device(options.device)
    cases = runner.chosen_cases(suite, device)
    for case in cases:
        names = ", ".join(p.name for p in runner.select_providers(case, device, suite.providers))
        print(f"{case.id}\n    against {case.peer}; {names}")
    return OK


def _run(options: argparse.Namespace) -> int:
    from .bench import plan, session
    from .bench.suite import as_toml

    suite = _suite(options)
    if options.resume is not None:
        _check_resume(options)
    if options.dump_config:
        print(as_toml(suite), end="")
        return OK
    if options.dry_run:
        print(plan.describe(suite, options.device))
        return OK
    return session.run(
        session.RunOptions(
            suite=suite,
            resume=options.resume,
            output=options.output,
            input=options.input,
            device=options.device,
            argv=tuple(options.argv),
            json=options.json,
        )
    )


def _check_resume(options: argparse.Namespace) -> None:
    """A resumed run keeps its own options: others are a mistake, not a wish."""
    from .bench.errors import BenchInputError

    names = (
        "quick", "suite", "own", "filter", "tag", "provider", "baseline", "input", "seed", "cache", "clock", "energy",
        "no_profile", "isolate",
    )  # fmt: skip
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    if options.device != "auto":
        given.append("--device")
    if given:
        raise BenchInputError(f"--resume goes on with the run's own options; leave out {', '.join(given)}")


def _report(options: argparse.Namespace) -> int:
    from .bench.report import write_report

    print(f"report: {write_report(options.run)}")
    return OK


def _readme_table(options: argparse.Namespace) -> int:
    from .bench.readme import update_readme

    update_readme(options.run, options.readme)
    print(f"table written to {options.readme}")
    return OK


def parse_duration(option: str, text: str) -> float:
    """Seconds of a duration such as `90s`, `4m`, `1.5h` or `90`; raises `BenchInputError` for anything else."""
    from .bench.errors import BenchInputError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise BenchInputError(f"{option} {text!r} is not a duration; write 90s, 4m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


if __name__ == "__main__":
    sys.exit(main())

"""The parsers and handlers of `jepa-kernels bench compare`, `history` and `profile`; what they need is imported when run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .errors import BenchInputError


def add(actions: Any) -> None:
    """Add the three commands to the sub-parsers of `bench`."""
    _add_compare(actions)
    _add_history(actions)
    _add_profile(actions)


def _add_compare(actions: Any) -> None:
    compare = actions.add_parser(
        "compare",
        help="hold two runs against each other, case by case",
        epilog="Exit codes: 0 no regression, 1 regression, 2 usage or runs that cannot be compared, "
        "3 undecided (with --strict), 4 a cell that the base timed fails in the head, 130 interrupted.",
    )
    compare.add_argument("base", type=Path, help="folder of the run before")
    compare.add_argument("head", type=Path, help="folder of the run after")
    compare.add_argument(
        "--threshold", action="append", default=[], metavar="[GLOB=]SHARE",
        help="smallest change that counts (default 0.05), of all cases or of those that the glob names",
    )  # fmt: skip
    compare.add_argument("--energy-threshold", metavar="SHARE", help="smallest change of energy that counts (default: as time)")
    compare.add_argument("--absolute", action="store_true", help="judge raw times instead of the ratio to the peer")
    compare.add_argument("--strict", action="store_true", help="undecided and missing rows give exit code 3")
    compare.add_argument("--force", action="store_true", help="compare although machine or software differ")
    compare.add_argument(
        "--confirm", action="store_true", help="measure regressed cases again here, and count those that regress twice"
    )
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the comparison as JSON; - prints it alone")
    compare.set_defaults(handler=_compare)


def _compare(options: argparse.Namespace) -> int:
    from . import compare_text as text

    chosen = {"thresholds": _thresholds(options), "absolute": options.absolute}
    found = text.load(options.base, options.head, force=options.force, **chosen)
    if options.confirm:
        from .confirm import confirm

        found = confirm(found, options.base, options.head, force=options.force, **chosen)
    _emit(options.json, text.as_json(found), text.as_markdown(found))
    return text.exit_code(found, strict=options.strict)


def _thresholds(options: argparse.Namespace) -> Any:
    from .compare import Thresholds

    pairs = [text.rpartition("=") for text in options.threshold]
    general = [_share("--threshold", share) for glob, _, share in pairs if not glob]
    named = tuple((glob, _share("--threshold", share)) for glob, _, share in pairs if glob)
    energy = options.energy_threshold
    return Thresholds(
        general[-1] if general else Thresholds.time, None if energy is None else _share("--energy-threshold", energy), named
    )


def _share(option: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise BenchInputError(f"{option} {text} is not a share; write 0.05 for five percent")
    return share


def _emit(json_path: Path | None, as_json: str, as_text: str) -> None:
    """Text on stdout, and JSON to a file; `-` prints the JSON and nothing else."""
    from .store import STDOUT, emit_json

    if json_path != STDOUT:
        print(as_text, end="")
    if json_path is not None:
        emit_json(json_path, as_json)


def _add_history(actions: Any) -> None:
    history = actions.add_parser("history", help="the trend of each case over a folder of runs")
    history.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="folder of run folders (default runs)")
    history.add_argument("--filter", action="append", default=[], metavar="GLOB", help="only cases whose id matches")
    history.add_argument("--json", type=Path, metavar="FILE", help="write the series as JSON; - prints it alone")
    history.set_defaults(handler=_history)


def _history(options: argparse.Namespace) -> int:
    from . import history
    from .store import to_json

    found = history.select(history.read(options.folder), options.filter)
    _emit(options.json, to_json(found.as_dict()), history.as_markdown(found))
    return 0


def _add_profile(actions: Any) -> None:
    profile = actions.add_parser(
        "profile",
        help="one case under torch.profiler: trace, top operators, parts of the step, what to change",
        epilog="Exit codes: 0 done, 2 usage or input, 4 the profiled process failed, 5 the device is not there.",
    )
    profile.add_argument("case", help="id of the case, or a glob that matches one")
    profile.add_argument("--provider", metavar="GLOB", help="which providers (default: our backend and the peer)")
    profile.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    profile.add_argument("--own", default="", metavar="FILE.py", help="take the case from this file's cases()")
    profile.add_argument("--calls", type=int, default=3, help="profiled calls (default 3)")
    profile.add_argument(
        "--output", type=Path, default=Path("runs/profiles"), metavar="DIR", help="parent of one folder a provider"
    )
    profile.set_defaults(handler=_profile)


def _profile(options: argparse.Namespace) -> int:
    import sys

    from . import profile

    if options.calls < 1:
        raise BenchInputError(f"--calls {options.calls}: at least one call is needed")
    case, providers = profile.choose(options.case, options.provider, options.device, options.own)
    for provider in providers:
        request = profile.Request(case, provider, options.device, options.own, calls=options.calls)
        try:
            profile.run(request, options.output / profile.folder_name(case, provider))
        except RuntimeError as error:
            print(f"jepa-kernels: {case} {provider}: {error}", file=sys.stderr)
            return 4
    return 0

"""Comparing two runs: who changed, who did not, which runs cannot be compared, and the exit codes."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from jepa_kernels import cli
from jepa_kernels.bench import compare as comparing
from jepa_kernels.bench.compare import IMPROVED, INCONCLUSIVE, REGRESSED, SAME, Thresholds, compare
from jepa_kernels.bench.confirm import merge
from jepa_kernels.bench.statistics import Summary
from jepa_kernels.bench.suite import QUICK

from .runs import EQUAL, environment, record, records, write


def slower(case: str, provider: str, factor: float) -> dict[str, dict[str, float]]:
    changed = {name: dict(providers) for name, providers in EQUAL.items()}
    changed[case][provider] *= factor
    return changed


def test_equal_runs_rarely_show_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 pairs of runs, two judged cells each, on a noisy machine that is 10 % slower and drifts in the second run.

    At a threshold of zero, for the false alarms themselves: 10 of these 200, and 31 in 1,000 pairs of five times as many
    seeds. At the default threshold, none in 200.
    """
    alarms = 0
    pair = {f"toy/case{i}-fp32": {"jk-cpu": 1e-3, "torch-a": 2e-3} for i in range(2)}
    monkeypatch.setattr("tests.bench.runs.summarise", lambda seconds: Summary(1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 0.0, 20))
    monkeypatch.setattr("tests.bench.runs.paired_ratio", lambda *_: None)  # neither is read here
    for seed in range(200):
        base = records(pair, seed=2 * seed, rounds=20)
        head = records(pair, seed=2 * seed + 1, drift=0.2, shift=1.1, rounds=20)
        found = compare(base, head, thresholds=Thresholds(0.0), seed=seed)
        alarms += bool(found.verdicts(REGRESSED) or found.verdicts(IMPROVED))
    assert alarms <= 10  # 5 %


@pytest.mark.parametrize(("factor", "verdict"), [(1.12, REGRESSED), (0.85, IMPROVED)])
def test_the_one_changed_kernel_is_named_under_drift(factor: float, verdict: str) -> None:
    changed = slower("toy/case3-fp32", "jk-cpu", factor)
    found = compare(records(EQUAL, seed=1, noise=0.005), records(changed, seed=2, noise=0.005, drift=0.2, shift=1.3))
    assert [(c.case_id, c.provider) for c in found.verdicts(verdict)] == [("toy/case3-fp32", "jk-cpu")]
    assert {c.verdict for c in found.changes if not c.control and c.case_id != "toy/case3-fp32"} == {SAME}


def test_five_percent_is_detected_with_a_threshold_of_two() -> None:
    found = compare(
        records(EQUAL, seed=3, noise=0.01),
        records(slower("toy/case0-fp32", "jk-cpu", 1.05), seed=4, noise=0.01, drift=0.2),
        thresholds=Thresholds(0.02),
    )
    assert [c.case_id for c in found.verdicts(REGRESSED)] == ["toy/case0-fp32"]


def test_thresholds_of_energy_and_of_single_cases() -> None:
    found = Thresholds(0.05, 0.1, (("ema/*", 0.2), ("*-bf16", 0.3)))
    rows = [("a/b-fp32", "time", 0.05), ("a/b-fp32", "energy", 0.1), ("ema/b-fp32", "energy", 0.2), ("ema/b-bf16", "time", 0.3)]
    assert [found.of(case, measure) for case, measure, _ in rows] == [share for *_, share in rows]
    head = records(slower("toy/case0-fp32", "jk-cpu", 1.3), seed=2, noise=0.005)
    base = records(EQUAL, seed=1, noise=0.005)
    assert compare(base, head).verdicts(REGRESSED)
    assert not compare(base, head, thresholds=Thresholds(by_case=(("toy/case0*", 0.5),))).verdicts(REGRESSED)


def test_slower_machine_is_a_regression_only_in_absolute_times() -> None:
    base, head = records(EQUAL, seed=5), records(EQUAL, seed=6, shift=1.5)
    assert not compare(base, head).verdicts(REGRESSED)
    assert len(compare(base, head, absolute=True).verdicts(REGRESSED)) == len(base)


def test_scatter_of_the_controls_widens_every_interval() -> None:
    """Between the runs PyTorch's own forms moved by up to 30 % against each other: 12 % of ours prove nothing."""
    moved = slower("toy/case3-fp32", "jk-cpu", 1.12)
    for index, case in enumerate(moved):
        moved[case]["torch-b"] *= 1.3 if index % 2 else 0.75
        moved[case]["torch-c"] *= 0.8 if index % 2 else 1.25
    found = compare(records(EQUAL, seed=7), records(moved, seed=8))
    assert found.run_noise > 0.15 and not found.verdicts(REGRESSED)


def test_case_that_something_disturbed_is_not_blamed_on_a_kernel() -> None:
    """In one case of the second run everything became slower, ours most: another process took the memory's bandwidth."""
    disturbed = slower("toy/case3-fp32", "jk-cpu", 7.0)
    for name in ("torch-a", "torch-b", "torch-c"):
        disturbed["toy/case3-fp32"][name] *= 2.5
    found = compare(records(EQUAL, seed=7, noise=0.005), records(disturbed, seed=8, noise=0.005))
    assert not found.verdicts(REGRESSED)
    assert [c.case_id for c in found.verdicts(INCONCLUSIVE)] == ["toy/case3-fp32"]


def test_without_its_peer_a_row_is_judged_by_what_raw_times_do_between_the_runs() -> None:
    def lost(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        gone = {"stats": None, "samples": None, "status": "failed"}
        return [c | gone if c["provider"] == "torch-a" and c["case_id"] == "toy/case3-fp32" else c for c in cells]

    head = lost(records(slower("toy/case3-fp32", "jk-cpu", 1.1), seed=2, shift=1.4))
    (change,) = [
        c for c in compare(lost(records(EQUAL, seed=1)), head).changes
        if (c.case_id, c.provider) == ("toy/case3-fp32", "jk-cpu")
    ]  # fmt: skip
    assert (change.measure, change.verdict) == ("time", INCONCLUSIVE) and change.ci_low < 1


def test_noisy_cells_are_inconclusive() -> None:
    found = compare(records(EQUAL, seed=9, noise=0.25), records(EQUAL, seed=10, noise=0.25))
    assert len(found.verdicts(INCONCLUSIVE)) == len(EQUAL)


def test_throttled_cell_is_not_judged() -> None:
    head = records(slower("toy/case0-fp32", "jk-cpu", 1.5), seed=2)
    head[0]["flags"] = ["thermal throttling during 40 % of the time"]
    (change, *_) = compare(records(EQUAL, seed=1), head).changes
    assert change.verdict == INCONCLUSIVE and "not judged" in change.note


def test_energy_is_judged_apart_from_time() -> None:
    def with_energy(cells: list[dict[str, Any]], joules: float) -> list[dict[str, Any]]:
        windows = [{"t0": 0.0, "t1": 1.0, "e0": 0.0, "e1": joules * (1 + i / 1000), "n_calls": 10} for i in range(6)]
        return [cell | {"energy": {"windows": windows}} for cell in cells]

    found = compare(with_energy(records(EQUAL, seed=1), 10.0), with_energy(records(EQUAL, seed=2), 12.0))
    assert {c.measure for c in found.verdicts(REGRESSED)} == {"energy"}
    assert {c.measure for c in found.verdicts(SAME)} == {"time / torch-a"}


def test_own_providers_are_judged_by_their_raw_times() -> None:
    def own(factor: float, seed: int) -> list[dict[str, Any]]:
        seconds = {"model/x-fp32": {"mine": 1e-3 * factor, "torch-a": 1e-3}}
        return [cell | {"peer": "mine"} for cell in records(seconds, seed=seed)]

    (mine, control) = compare(own(1.0, 1), own(1.5, 2)).changes
    assert (mine.verdict, mine.measure) == (REGRESSED, "time") and control.control


def test_other_clock_or_shape_is_not_compared() -> None:
    head = records(EQUAL, seed=2)
    head[0]["clock"] = "device_graph"
    found = compare(records(EQUAL, seed=1), head)
    assert "clock, cache state or shape differs" in found.warnings[0]
    assert ("toy/case0-fp32", "jk-cpu") not in {(c.case_id, c.provider) for c in found.changes}


def test_holm_adjusts_by_rank() -> None:
    assert comparing._holm({0: 0.01, 1: 0.04, 2: 0.03}) == pytest.approx({0: 0.03, 2: 0.06, 1: 0.06})


GPU = [{"name": "H200"}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hardware": {"cpu": {"name": "Other"}, "gpus": []}}, "hardware.cpu.name: Toy in the base, Other in the head"),
        ({"hardware": {"cpu": {"name": "Toy"}, "gpus": GPU}}, "hardware.gpus"),
        ({"device": "cuda"}, "device: cpu in the base, cuda in the head"),
        ({"system": {"threads": 8}}, "system.threads"),
        ({"versions": {"torch": "2.14", "python": "3.11", "triton": None, "cuda": None}}, "versions.torch"),
        ({"suite": asdict(replace(QUICK, name="full"))}, "a quick run is no baseline"),
        ({"input": {"sha256": "1"}}, "input.sha256"),
        ({"schema": 1}, "schema 1"),
    ],
)
def test_runs_that_cannot_be_compared_exit_2_and_say_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    base = write(tmp_path / "base", records(EQUAL, seed=1))
    head = write(tmp_path / "head", records(EQUAL, seed=2), **changes)
    assert cli.main(["bench", "compare", str(base), str(head)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    if "schema" not in changes:
        assert cli.main(["bench", "compare", str(base), str(head), "--force"]) == 0
        assert words in capsys.readouterr().out


def test_moved_ceilings_are_a_warning() -> None:
    head = copy.deepcopy(environment())
    head["ceilings"]["copy_bytes_per_s"] *= 0.9
    assert comparing.check_comparable(environment(), head) == [
        "ceiling copy_bytes_per_s moved by -10%: the machine was not in the same state"
    ]


@pytest.mark.parametrize(
    ("head", "arguments", "code", "words"),
    [
        (records(EQUAL, seed=2), [], 0, "no regression"),
        (records(slower("toy/case1-fp32", "jk-cpu", 2), seed=2), [], 1, "REGRESSED toy/case1-fp32 jk-cpu: +"),
        (records(slower("toy/case1-fp32", "jk-cpu", 2), seed=2), ["--threshold", "2"], 2, "not a share"),
        (records(slower("toy/case1-fp32", "jk-cpu", 1.2), seed=2), ["--threshold", "*case1*=0.5"], 0, "of *case1* 50%"),
        (records(EQUAL, seed=2), ["--energy-threshold", "much"], 2, "--energy-threshold much is not a share"),
        (records(EQUAL, seed=2, noise=0.3), [], 0, "6 inconclusive"),
        (records(EQUAL, seed=2, noise=0.3), ["--strict"], 3, "6 inconclusive"),
        (records(EQUAL, seed=2)[1:], [], 0, "missing: toy/case0-fp32 jk-cpu"),
        (records(EQUAL, seed=2)[1:], ["--strict"], 3, "missing: toy/case0-fp32 jk-cpu"),
        (
            [*records(EQUAL, seed=2)[1:], record("toy/case0-fp32", "jk-cpu", [1.0], [1.0], stats=None, status="failed")],
            [], 4, "broken: toy/case0-fp32 jk-cpu",
        ),
    ],
)  # fmt: skip
def test_exit_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: Any, arguments: list[str], code: int, words: str
) -> None:
    folders = [str(write(tmp_path / "base", records(EQUAL, seed=1))), str(write(tmp_path / "head", head))]
    assert cli.main(["bench", "compare", *folders, *arguments]) == code
    captured = capsys.readouterr()
    assert words in captured.out + captured.err


def test_json_is_the_only_output_with_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write(tmp_path / name, records(EQUAL, seed=seed))) for seed, name in enumerate(("a", "b"))]
    assert cli.main(["bench", "compare", *folders, "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)["changes"]) == sum(map(len, EQUAL.values()))
    assert cli.main(["bench", "compare", *folders, "--json", str(tmp_path / "none" / "x.json")]) == 2


def test_folder_without_a_run_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "compare", str(tmp_path), str(tmp_path)]) == 2
    assert "holds no benchmark run" in capsys.readouterr().err


def test_runs_without_a_common_cell_are_refused(tmp_path: Path) -> None:
    other = {"toy/other-fp32": EQUAL["toy/case0-fp32"]}
    folders = [str(write(tmp_path / n, records(s, seed=1))) for n, s in (("a", EQUAL), ("b", other))]
    assert cli.main(["bench", "compare", *folders]) == 2


def test_only_what_regresses_twice_is_confirmed() -> None:
    base = records(EQUAL, seed=1)
    both = slower("toy/case1-fp32", "jk-cpu", 1.5)
    both["toy/case2-fp32"]["jk-cpu"] *= 1.5
    first = compare(base, records(both, seed=2))
    second = compare(base, records(slower("toy/case1-fp32", "jk-cpu", 1.5), seed=3))
    merged = merge(first, second)
    assert [c.case_id for c in merged.verdicts(REGRESSED)] == ["toy/case1-fp32"]
    assert [c.note for c in merged.verdicts(INCONCLUSIVE)] == ["not confirmed by a second measurement"]


def test_sleep_in_one_kernel_is_named(toy_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two whole runs of the command line; in the second one kernel of two sleeps for a millisecond."""
    import time

    from .toys import toy_case

    def sleeping(x: Any) -> Any:
        time.sleep(1e-3)
        return x * 2

    names = ("one", "two")
    folders = []
    for index, kernels in enumerate(([None, None], [None, sleeping])):
        cases = [toy_case(kernel, name=name) for name, kernel in zip(names, kernels, strict=True)]
        code, _ = toy_run(cases, "--output", str(tmp_path / str(index)))
        assert code == 0
        folders.append(str(next((tmp_path / str(index)).iterdir())))
    capsys.readouterr()
    assert cli.main(["bench", "compare", *folders, "--force"]) == 1
    out = capsys.readouterr().out
    assert "REGRESSED toy/two-fp32 jk-cpu" in out and "REGRESSED toy/one" not in out
    assert cli.main(["bench", "compare", *folders, "--force", "--confirm"]) == 1  # it still sleeps
    toy_run([toy_case(name=name) for name in names])  # mended
    capsys.readouterr()
    assert cli.main(["bench", "compare", *folders, "--force", "--confirm"]) == 0
    assert "not confirmed by a second measurement" in capsys.readouterr().out

"""The benchmark cases under pytest-benchmark: `pytest benchmarks --jepa-suite quick --benchmark-json out.json`.

Each test is one provider of one case. A provider that this machine cannot run is skipped with the reason; one whose
result is wrong fails and is not timed. For paired ratios in interleaved rounds use `jepa-kernels bench run`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from jepa_kernels.backends import BackendError
from jepa_kernels.bench import energy_run, runner
from jepa_kernels.bench.cases import Case, Provider, Setting, Work, all_cases
from jepa_kernels.bench.ceilings import Ceilings
from jepa_kernels.bench.devices import choose_device
from jepa_kernels.bench.suite import QUICK
from jepa_kernels.bench.timing import Timed
from jepa_kernels.bench.video import load_clip

Measure = Callable[[Case, Provider], None]
Made = tuple[Any, list[torch.Tensor], list[torch.Tensor]]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jepa-kernels")
    group.addoption("--jepa-suite", choices=("quick", "full", "gpu"), default="quick", help="sizes of the cases")
    group.addoption("--jepa-energy", choices=energy_run.MODES, default="auto", help="as `jepa-kernels bench run --energy`")
    group.addoption("--jepa-device", default="auto", help="auto, cpu, cuda or cuda:N")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each provider of the cases of the module's OPERATOR."""
    operator = metafunc.module.OPERATOR
    device = choose_device(metafunc.config.getoption("--jepa-device"))
    suite = metafunc.config.getoption("--jepa-suite")
    cases = [c for c in all_cases() if c.operator == operator and suite in c.tags]
    cells = [(case, provider) for case in cases for provider in case.providers(device)]
    metafunc.parametrize(("case", "provider"), cells, ids=[f"{c.id}-{p.name}" for c, p in cells])


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest) -> Callable[[Case], Made]:
    """Inputs, float64 reference and PyTorch's low-precision result of a case; only the latest case is kept."""
    device = choose_device(request.config.getoption("--jepa-device"))
    clip = load_clip(None)
    kept: dict[str, Made] = {}

    def make(case: Case) -> Made:
        if case.id not in kept:
            kept.clear()
            inputs = case.make_inputs(Setting(0, device, lambda: clip))
            kept[case.id] = (inputs, case.reference(inputs), case.low_precision(inputs))
        return kept[case.id]

    return make


@pytest.fixture(scope="session")
def bench_session(request: pytest.FixtureRequest) -> runner.Session:
    """The meters of the device; ceilings and inputs are not needed for energy."""
    device = choose_device(request.config.getoption("--jepa-device"))
    suite = replace(QUICK, energy=request.config.getoption("--jepa-energy"))
    setting = Setting(0, device, lambda: load_clip(None))
    nothing = Ceilings(str(device), 1.0, 0, None, 1.0, 1.0, 0)
    return runner.Session(suite, setting, nothing, meters=energy_run.prepare(device, suite))


def energy_of(
    case: Case, provider: Provider, prepared: runner.Prepared, work: Work, session: runner.Session, seconds: float
) -> dict[str, Any]:
    """Joules of a call in windows after the timing, or null and the reason."""
    cell = runner.Cell(provider, timed=Timed(provider.name, prepared.call, provider.context, samples={0: seconds}))
    energy_run.measure_cells(case, [cell], work, session, energy_run.timeline(session), session.suite.case_budget_s)
    return cell.energy.as_dict()


@pytest.fixture
def measure(
    benchmark: Any, made: Callable[[Case], Made], bench_session: runner.Session, request: pytest.FixtureRequest
) -> Measure:
    """Check a provider, then hand it to pytest-benchmark; `extra_info["jepa"]` has what its format has no place for."""
    device = choose_device(request.config.getoption("--jepa-device"))

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def run(case: Case, provider: Provider) -> None:
        try:
            inputs, reference, low_precision = made(case)
            reason = provider.supports(inputs)
            if reason is not None:
                pytest.skip(reason)
            prepared = runner.prepare(case, provider, inputs, reference, low_precision, synchronise)
        except BackendError as error:
            pytest.skip(str(error))
        assert prepared.check.passed, prepared.check.message

        def call() -> None:
            prepared.call()
            synchronise()

        work = case.work(inputs)
        benchmark.group = case.id
        with provider.context():
            benchmark(call)
        seconds = benchmark.stats.stats.median if benchmark.stats else prepared.first_call_s
        benchmark.extra_info["jepa"] = {
            "case_id": case.id,
            "provider": provider.name,
            "clock": "wall",
            "work": asdict(work),
            "first_call_s": prepared.first_call_s,
            "correctness": prepared.check.as_dict(),
            "energy": energy_of(case, provider, prepared, work, bench_session, seconds),
        }

    return run

"""Every Triton kernel compiles for every supported GPU, without spills, within shared memory, with tensor cores where meant."""

import importlib
import inspect
import pkgutil

import pytest

pytest.importorskip("triton")

import jepa_kernels.kernels
from aot import ARCHITECTURES, SHARED_LIMIT, compile_case, resources

QUICK_ARCHITECTURES = (90, 120)  # wgmma; and the least shared memory with the older tensor-core instruction


def _cases(quick: bool):
    """The cases of every module of jepa_kernels.kernels that defines aot_cases."""
    for info in pkgutil.iter_modules(jepa_kernels.kernels.__path__):
        module = importlib.import_module(f"jepa_kernels.kernels.{info.name}")
        function = getattr(module, "aot_cases", None)
        if inspect.isfunction(function) and function.__module__ == module.__name__:
            yield from function(quick=quick)


def _parameters(quick: bool, architectures):
    return [pytest.param(case, arch, id=f"{case.name}-sm_{arch}") for case in _cases(quick) for arch in architectures]


def _check(case, architecture):
    compiled = compile_case(case, architecture)
    used = resources(compiled)
    assert used.stack == 0 and used.local == 0, f"registers spill: {used}"
    assert 0 < used.registers <= 255, used
    assert used.shared <= SHARED_LIMIT[architecture], (
        f"{used.shared} bytes of shared memory, {SHARED_LIMIT[architecture]} there"
    )
    if case.expects_mma:
        assert used.tensor_core, "no tensor-core instruction in the PTX"


@pytest.mark.parametrize("case, architecture", _parameters(True, QUICK_ARCHITECTURES))
def test_compiles_without_spills(case, architecture):
    _check(case, architecture)


@pytest.mark.aot_full
@pytest.mark.parametrize("case, architecture", _parameters(False, ARCHITECTURES))
def test_every_case_compiles_without_spills(case, architecture):
    _check(case, architecture)


def test_the_main_attention_tiles_use_wgmma_on_sm_90():
    cases = [case for case in _cases(True) if "bfloat16-frame_causal" in case.name and case.expects_mma]
    assert len(cases) == 3  # forward, query gradient, key gradient
    for case in cases:
        assert resources(compile_case(case, 90)).tensor_core.get("wgmma", 0) > 0, case.name


def test_a_spill_would_be_seen():
    """The reader of the machine code reports a stack when a kernel is squeezed into few registers."""
    case = next(case for case in _cases(True) if case.expects_mma)
    assert resources(compile_case(case, 80, maxnreg=64)).stack > 0

"""Every Triton kernel compiles for every supported GPU, without spills, within shared memory, with tensor cores where meant."""

from dataclasses import replace

import pytest

pytest.importorskip("triton")

import jepa_kernels.kernels.masked_attention_tiles as tiles
from jepa_kernels.static.occupancy import ARCHITECTURES, MULTIPROCESSORS
from jepa_kernels.static.triton_cases import cases, compile_case, resources

QUICK_ARCHITECTURES = (90, 120)  # wgmma; and the least shared memory with the older tensor-core instruction


def _parameters(quick: bool, architectures, operator=None):
    return [
        pytest.param(case, arch, id=f"{case.name}-sm_{arch}") for arch in architectures for case in cases(operator, quick, arch)
    ]


def _check(case, architecture):
    compiled = compile_case(case, architecture)
    used = resources(compiled)
    assert used.stack == 0 and used.local == 0, f"registers spill: {used}"
    assert 0 < used.registers <= 255, used
    assert used.shared <= MULTIPROCESSORS[architecture].shared_block, (
        f"{used.shared} bytes of shared memory, {MULTIPROCESSORS[architecture].shared_block} there"
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


def _persistent(quick: bool, architectures):
    """The ragged attention kernels in the form that a table of tiles may choose: programs that share the items.

    Tiles of larger head dims than these have no register left for the loop over items.
    """
    ragged = [case for case in cases("masked_attention") if "-ragged-" in case.name and case.expects_mma]
    chosen = [case for case in ragged if (case.constants["HEAD_DIM"] == 64 if quick else case.constants["HEAD_DIM"] <= 96)]
    return [
        pytest.param(replace(case, constants={**case.constants, "PERSISTENT": True}), arch, id=f"{case.name}-sm_{arch}")
        for case in chosen
        for arch in architectures
    ]


@pytest.mark.parametrize("case, architecture", _persistent(True, [90]))
def test_persistent_programs_compile_without_spills(case, architecture):
    _check(case, architecture)


@pytest.mark.aot_full
@pytest.mark.parametrize("case, architecture", _persistent(False, ARCHITECTURES))
def test_every_persistent_case_compiles_without_spills(case, architecture):
    _check(case, architecture)


def _copies(case, architecture: int) -> int:
    """Loads that the pipeline starts ahead of the step that uses them."""
    return compile_case(case, architecture).asm["ttgir"].count("ttg.async_copy_global_to_local")


@pytest.mark.parametrize("case, architecture", _persistent(True, [90]))
def test_persistent_programs_keep_the_pipeline_of_the_key_loop(case, architecture):
    alone = replace(case, constants={**case.constants, "PERSISTENT": False})
    assert _copies(case, architecture) == _copies(alone, architecture) > 0


def _uses_wgmma(case) -> bool:
    """Tiles of 64 rows, which one wgmma takes; float32 has no tensor-core product, and head dim 256 no room for the tiles."""
    return case.expects_mma and case.constants["HEAD_DIM"] <= 128


def _check_wgmma(case):
    assert resources(compile_case(case, 90)).tensor_core.get("wgmma", 0) > 0, case.name


@pytest.mark.parametrize("case, _", _parameters(True, [90], "masked_attention"))
def test_the_main_attention_tiles_use_wgmma_on_sm_90(case, _):
    if _uses_wgmma(case):
        _check_wgmma(case)


@pytest.mark.aot_full
@pytest.mark.parametrize("case, _", _parameters(False, [90], "masked_attention"))
def test_every_16_bit_attention_tile_up_to_head_dim_128_uses_wgmma_on_sm_90(case, _):
    if _uses_wgmma(case):
        _check_wgmma(case)


def test_every_tuned_attention_tile_is_compiled(monkeypatch):
    """The gate covers each entry of each table of tiles."""
    chosen = set()
    fitting = tiles._fitting

    def recording(table, head_dim):
        chosen.add((id(table), next(limit for limit in table if head_dim <= limit)))
        return fitting(table, head_dim)

    monkeypatch.setattr(tiles, "_fitting", recording)
    assert cases("masked_attention")
    tables = {name: table for name, table in vars(tiles).items() if name.isupper() and isinstance(table, dict)}
    assert len(tables) >= 8
    missing = [(name, limit) for name, table in tables.items() for limit in table if (id(table), limit) not in chosen]
    assert not missing


def test_a_spill_would_be_seen():
    """The reader of the machine code reports a stack when a kernel is squeezed into few registers."""
    case = next(case for case in cases(quick=True) if case.expects_mma)
    assert resources(compile_case(case, 80, maxnreg=64)).stack > 0

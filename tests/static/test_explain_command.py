"""`jepa-kernels explain`: what it prints, its JSON, and one line with the remedy where something is wrong or missing."""

from __future__ import annotations

import json
import sys

import pytest

from jepa_kernels import backends, cli
from jepa_kernels.static import tools


def run(capsys, *arguments):
    code = cli.main(["explain", *arguments])
    return code, *capsys.readouterr()


def test_without_static_it_says_which_backend_runs(capsys):
    code, text, _ = run(capsys, "masked_attention")
    assert code == 0
    assert text.startswith("masked_attention   (automatic on ") and all(name in text for name in backends.NAMES)
    code, text, _ = run(capsys, "masked_attention", "--json")
    assert code == 0 and json.loads(text)["backends"]["reference"] == "available"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("attention",), "unknown operator 'attention': one of patch_embed"),
        (("attention", "--static"), "unknown operator 'attention': one of patch_embed"),
        (("masked_attention", "--arch", "sm_90"), "--arch belongs to --static"),
        (("masked_attention", "--static", "--arch", "sm_70"), "--arch 'sm_70' is not one of sm_80, sm_86"),
        (("masked_attention", "--static", "--filter", "*nothing*"), "--filter *nothing* matches no case of masked_attention"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(capsys, arguments, message):
    if "--static" in arguments:
        pytest.importorskip("triton")
    code, text, error = run(capsys, *arguments)
    assert code == 2 and not text
    assert message in error and error.count("\n") == 1


def test_without_triton_it_names_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    code, _, error = run(capsys, "masked_attention", "--static")
    assert code == 5 and "pip install 'jepa-kernels[triton]'" in error and error.count("\n") == 1


def test_without_a_disassembler_it_names_what_brings_one(capsys, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(tools, "find", lambda name: None)
    code, _, error = run(capsys, "masked_attention", "--static", "--quick")
    assert code == 5 and "cuobjdump was not found" in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def document():
    """One small kernel for two architectures, from a cold cache."""
    pytest.importorskip("triton")
    if tools.find("cuobjdump") is None or tools.find("nvdisasm") is None:
        pytest.skip("needs the disassembler")
    from jepa_kernels.static import report

    cases = report.chosen_cases("masked_attention", True, ["rotate_kernel-64*"])
    return report, report.rows("masked_attention", [(target, case) for target in (80, 100) for case in cases], cold=True)


def test_a_row_tells_what_the_kernel_needs(document):
    report, rows = document
    assert [row.architecture for row in rows] == ["sm_80", "sm_100"]
    for row in rows:
        assert row.case.startswith("rotate_kernel-64-") and row.backend == "triton"
        assert row.spilled_bytes == row.spill_instructions == 0 and 16 <= row.registers <= 64
        assert row.warps == 4 and row.stages == 1 and row.matrix == {}
        assert row.blocks_per_sm * 4 == row.warps_per_sm <= row.most_warps_per_sm == 64
        assert row.limited_by and row.global_loads[128] >= 5  # x, and both halves of both tables
        assert row.compile_seconds > 0
    found = json.loads(json.dumps(report.as_json("masked_attention", rows)))
    assert found["versions"]["triton"] and found["rows"][1]["architecture"] == "sm_100"


def test_the_text_has_a_table_an_architecture(document):
    report, rows = document
    text = report.markdown("masked_attention", rows)
    assert "**sm_80**" in text and "**sm_100**" in text and text.count("| rotate_kernel-64") == 2
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len({len(line) for line in table[:3]}) == 1


def test_the_default_architecture_is_that_of_the_gpu(monkeypatch):
    pytest.importorskip("triton")
    from jepa_kernels.static import report

    monkeypatch.setattr(report.torch.cuda, "device_count", lambda: 0)
    assert report.architectures(None) == [90]
    monkeypatch.setattr(report.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(report.hardware, "architecture", lambda index: ("sm_100", "sm_80")[index])
    assert report.architectures(None) == [80, 100]
    assert report.architectures("sm_90, sm_90,sm_86") == [90, 86]
    assert report.architectures("all") == [80, 86, 90, 100, 120]


def test_kernels_of_the_cuda_module_are_told_apart(document, monkeypatch):
    report, rows = document
    kernel = report.cuda_module.CudaKernel(
        source="masked_attention",
        name="attention_kernel<bf16>",
        threads=128,
        usage=report.machine_code.Usage(registers=168, stack=8, local=0, shared=1024),
        instructions=report.machine_code.Instructions(total=900, matrix={"HMMA": 64}, local_memory=2, global_loads={128: 8}),
    )
    monkeypatch.setattr(report.cuda_module, "module_path", lambda: None)
    assert report.cuda_rows("masked_attention", [90]) == []
    monkeypatch.setattr(report.cuda_module, "module_path", lambda: "_cuda.so")
    monkeypatch.setattr(report.cuda_module, "kernels", lambda module, operator, architecture: [kernel])
    (row,) = report.cuda_rows("masked_attention", [90])
    assert (row.backend, row.warps, row.blocks_per_sm, row.spilled_bytes, row.limited_by) == ("cuda", 4, 3, 8, ("registers",))
    text = report.markdown("masked_attention", [*rows, row])
    assert "**sm_90**, CUDA C++" in text and "| masked_attention: attention_kernel<bf16> |" in text and "64 HMMA" in text

"""Tuned tables: what they may hold, who reads which, and that a launch takes the entry without another result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from jepa_kernels import backends, hardware
from jepa_kernels.kernels import masked_attention_cases, tuned_tiles
from jepa_kernels.kernels.masked_attention_tiles import Tile
from jepa_kernels.static import triton_cases

ENTRY = {"block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 3}
ENTRY_TILE = Tile(64, 32, 4, 3)
ENTRIES = {"forward": {"64-long": ENTRY}, "key_gradient": {"96-short": ENTRY}, "cuda_path": "warp"}
TABLE = {"automatic": {}, "masked_attention": ENTRIES}


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give an architecture a table of its own, instead of the shipped ones."""
    tables: dict[str, Any] = {}
    monkeypatch.setattr(backends, "tuned_table", lambda architecture: tables.get(architecture, {}))
    tuned_tiles.table.cache_clear()
    yield tables
    tuned_tiles.table.cache_clear()


def tile(kernel: str, head_dim: int, rows: int, dtype: torch.dtype = torch.bfloat16, mask: bool = False) -> Tile:
    return tuned_tiles.choose(kernel, torch.empty(1, 1, rows, head_dim, dtype=dtype, device="meta"), rows, mask)


def test_entry_serves_its_head_dims_rows_and_dtypes_on_its_architecture(shipped: dict[str, Any]) -> None:
    shipped["sm_90"] = TABLE
    with tuned_tiles.compiling_for("sm_90"):
        for head_dim, rows in ((64, 2048), (40, 321)):
            assert tile("forward", head_dim, rows) == tile("forward", head_dim, rows, torch.float16) == ENTRY_TILE
        assert tile("key_gradient", 88, 320) == ENTRY_TILE
        for head_dim, rows in ((64, 320), (32, 2048), (80, 2048), (256, 2048)):
            assert tile("forward", head_dim, rows) == tuned_tiles.default("forward", head_dim, torch.bfloat16, rows)
        assert tile("query_gradient", 64, 2048) == tuned_tiles.default("query_gradient", 64, torch.bfloat16, 2048)
        assert tile("forward", 64, 2048, torch.float32) != ENTRY_TILE != tile("forward", 64, 2048, mask=True)
    with tuned_tiles.compiling_for("sm_80"):
        assert tile("forward", 64, 2048) == tuned_tiles.default("forward", 64, torch.bfloat16, 2048)
    assert tile("forward", 64, 2048) == tuned_tiles.default("forward", 64, torch.bfloat16, 2048)


def test_tensor_on_a_gpu_reads_the_table_of_that_gpu(shipped: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two GPUs its own, whatever is compiled for."""
    shipped["sm_90"] = TABLE
    monkeypatch.setattr(hardware, "architecture", lambda index: ("sm_80", "sm_90")[index])

    class OnGPU:
        shape, dtype = (1, 1, 2048, 64), torch.bfloat16

        def __init__(self, index: int) -> None:
            self.device = torch.device("cuda", index)

    with tuned_tiles.compiling_for("sm_90"):
        chosen = [tuned_tiles.choose("forward", OnGPU(index), 2048, False) for index in (0, 1)]  # type: ignore[arg-type]
    assert chosen == [tuned_tiles.default("forward", 64, torch.bfloat16, 2048), ENTRY_TILE]


def test_compile_gate_builds_what_would_run_on_each_architecture(shipped: dict[str, Any]) -> None:
    shipped["sm_90"] = TABLE
    plain, tuned = triton_cases.cases("masked_attention"), triton_cases.cases("masked_attention", architecture=90)
    assert [c.name for c in plain] == [c.name for c in triton_cases.cases("masked_attention", architecture=80)]
    blocks = {c.name: (c.constants.get("BLOCK_M"), c.constants.get("BLOCK_N"), c.num_stages) for c in tuned}
    changed = [n for n in blocks if "forward_kernel-64-bfloat16-frame_causal" in n and blocks[n] == (64, 32, 3)]
    assert changed
    # An entry that no case reaches, such as head dim 96 in short rows, has a case of its own, for this architecture alone.
    short = f"key_gradient_kernel-96-bfloat16-frame_causal-rope-{masked_attention_cases.SHORT}"
    assert [n for n in blocks if n.endswith(short)] and not [c for c in plain if c.name.endswith(short)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], r"configs/sm_90.json: masked_attention is \[\]; it must be an object"),
        ({"sideways": {}}, "sm_90.json: masked_attention: unknown kernel 'sideways'"),
        ({"forward": {"65-long": ENTRY}}, "masked_attention.forward: unknown key '65-long'"),
        ({"forward": {"64-long": {**ENTRY, "blok": 1}}}, "forward.64-long: unknown field 'blok'"),
        ({"forward": {"64-long": {"block_m": 64}}}, "forward.64-long: missing field 'block_n'"),
        ({"forward": {"64-long": {**ENTRY, "num_warps": "4"}}}, "forward.64-long.num_warps is '4'"),
        ({"forward": {"64-long": {**ENTRY, "num_stages": 0}}}, "forward.64-long.num_stages is 0"),
        ({"forward": {"64-long": {**ENTRY, "block_m": 48}}}, "block_m is 48; it must be a power of two"),
        ({"forward": {"64-long": {**ENTRY, "max_registers": True}}}, "max_registers is True"),
    ],
)
def test_malformed_table_is_told_with_file_and_key(shipped: dict[str, Any], table: Any, message: str) -> None:
    shipped["sm_90"] = {"masked_attention": table}
    with pytest.raises(ValueError, match=message):
        tuned_tiles.table("sm_90")


def test_fields_with_a_default_may_stand_or_be_left_out() -> None:
    assert tuned_tiles.tile_of({**ENTRY, "max_registers": 128}, "here").max_registers == 128
    assert tuned_tiles.tile_of({**ENTRY, "max_registers": None}, "here") == ENTRY_TILE


def test_file_that_is_no_json_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr(backends.resources, "files", lambda _package: tmp_path)
    backends.tuned_table.cache_clear()
    for text, message in (("{", "sm_1.json is not JSON"), ("[]", "sm_1.json must hold a JSON object")):
        (tmp_path / "configs" / "sm_1.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            backends.tuned_table("sm_1")
    assert backends.tuned_table("sm_2") == {}
    backends.tuned_table.cache_clear()


def test_shipped_tables_can_be_read() -> None:
    folder = Path(backends.__file__).parents[2] / "kernels" / "jepa_triton" / "configs"
    names = sorted(path.stem for path in folder.glob("*.json"))
    assert "sm_90" in names
    for name in names:
        tuned_tiles.table(name)


PROGRAM = """
import json, sys, torch
from jepa_kernels import backends
backends.tuned_table = lambda architecture: json.loads(sys.argv[1])
from jepa_kernels.kernels import masked_attention as kernel, tuned_tiles
from jepa_kernels.kernels.launch import Launch
torch.manual_seed(0)
shape = (1, 2, 400, 32)  # long rows
q, k, v, dout = (torch.randn(shape, dtype=torch.float16) for _ in range(4))
def run():
    out, lse = torch.full(shape, float("nan"), dtype=torch.float16), torch.empty(1, 2, 400)
    grads = [torch.full(shape, float("nan"), dtype=torch.float16) for _ in range(3)]
    kernel.forward(q, k, v, out, lse, scale=0.2)
    kernel.backward(dout, q, k, v, out, lse, *grads, scale=0.2)
    return out, *grads
blocks, launch = [], Launch.run
def noted(self):
    blocks.append((self.arguments["BLOCK_M"], self.arguments["BLOCK_N"]))
    launch(self)
Launch.run = noted
plain = run()
with tuned_tiles.compiling_for("sm_90"):
    tuned = run()
assert blocks[3:] == [(64, 32), (32, 32), (32, 64)], blocks
assert all(a != b for a, b in zip(blocks[:3], blocks[3:]))
for one, other in zip(plain, tuned):
    assert (one - other).abs().max() < 4e-3 * one.abs().max(), (one - other).abs().max()
print("same result")
"""


def test_entry_changes_no_result() -> None:
    """In Triton's interpreter, with other tiles for all three kernels."""
    entries = {
        "forward": {"32-long": ENTRY},
        "query_gradient": {"32-long": {**ENTRY, "block_m": 32}},
        "key_gradient": {"32-long": {**ENTRY, "block_m": 32, "block_n": 64}},
    }
    command = [sys.executable, "-c", PROGRAM, json.dumps({"masked_attention": entries})]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of Triton 3.6 turns 1-element arrays into loop bounds, which numpy 2.4 refuses")
    assert done.returncode == 0 and "same result" in done.stdout, done.stderr[-3000:]

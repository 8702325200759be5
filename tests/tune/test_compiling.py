"""What tuning compiles in other processes is what launches look for, and what does not fit is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import driver

from jepa_kernels.kernels import masked_attention_cases, tuned_tiles
from jepa_kernels.kernels.masked_attention_tiles import Tile
from jepa_kernels.static import triton_cases
from jepa_kernels.tune import compiling, timing
from jepa_kernels.tune.candidates import Entry

TARGET = GPUTarget("cuda", 90, 32)


class Driver:
    """Of a GPU that is not there."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


class Compiled(Exception):
    """Ends a compilation before it begins, with what was asked for."""


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs another and returns the key under which Triton's cache keeps what it would compile."""

    def stop(source: Any, target: Any = None, options: Any = None, **_more: Any) -> None:
        # Launches of Triton 3.9 list constants among the attributes, without any: there a launch compiles once more.
        source.attrs = {place: attributes for place, attributes in source.attrs.items() if attributes}
        backend = make_backend(target)
        parsed = backend.parse_options(dict(options))
        raise Compiled((source.hash(), target, parsed.hash(), backend.hash()))

    monkeypatch.setattr(triton, "compile", stop)
    monkeypatch.setattr("triton.compiler.compile", stop)
    before = driver._active
    driver._active = Driver()

    def key(call: Any) -> Any:
        with pytest.raises(Compiled) as ended:
            call()
        return ended.value.args[0]

    yield key
    driver._active = before


@pytest.mark.parametrize("form", [compiling.TIMED, compiling.WHOLE])
def test_a_launch_finds_what_was_compiled_ahead(asked_for: Any, form: tuple[str, bool]) -> None:
    """Else the GPU would wait for every candidate to be compiled once more."""
    mask, rope = form
    launches = masked_attention_cases.launches(64, torch.bfloat16, mask, rope, 1024)
    assert len(launches) == (3 if form == compiling.TIMED else 6)
    for launch in launches:
        launch.kernel.device_caches.clear()
        ahead = asked_for(lambda launch=launch: triton_cases.compile_case(launch.aot_case(), 90))
        launched = asked_for(launch.run)
        launch.kernel.device_caches.clear()
        assert ahead == launched, launch.kernel.__name__


def test_timed_launch_is_the_one_that_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs on the meta device in place of the GPU's: the same kernel, constants and options for each entry and tile."""
    empty = torch.empty

    def without_values(*sizes: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return empty(*sizes, device="meta", **options)

    monkeypatch.setattr(timing.torch, "randn", without_values)
    monkeypatch.setattr(timing.torch, "empty", without_values)
    monkeypatch.setattr("jepa_kernels.kernels.masked_attention.forward", lambda *_tensors, **_extras: None)
    ran: list[Any] = []
    monkeypatch.setattr("jepa_kernels.kernels.launch.Launch.run", lambda launch: ran.append(launch))
    for kernel in tuned_tiles.KERNELS:
        entry, tile = Entry(kernel, 80, "short"), Tile(64, 64, 4, 1)
        timing._inputs.cache_clear()
        timing._call(entry, tile, timing._inputs(entry.head_dim, entry.tokens))()
        with tuned_tiles.forcing(kernel, tile):
            compiled = masked_attention_cases.launches(80, torch.bfloat16, *compiling.TIMED, entry.tokens)
        (wanted,) = (launch.aot_case() for launch in compiled if launch.kernel.__name__ == f"{kernel}_kernel")
        found = ran[-1].aot_case()
        assert (found.kernel, found.signature, found.num_warps, found.num_stages, found.max_registers) == (
            wanted.kernel, wanted.signature, wanted.num_warps, wanted.num_stages, wanted.max_registers,
        )  # fmt: skip
        assert found.constants == wanted.constants and found.constants["BLOCK_M"] == 64
    assert [launch.kernel.__name__ for launch in ran].count("query_gradient_kernel") == 2  # it writes what key_gradient reads
    timing._inputs.cache_clear()


def test_candidate_that_spills_or_does_not_fit_is_told() -> None:
    entry = Entry("forward", 128, "long")
    assert compiling.why_not(entry, Tile(64, 32, 4, 2), 90, compiling.TIMED) is None
    assert "spill" in str(compiling.why_not(entry, Tile(128, 128, 4, 1, 128), 90, compiling.TIMED))
    assert "shared memory" in str(compiling.why_not(entry, Tile(128, 128, 8, 4), 120, compiling.TIMED))


def test_wrong_result_and_poison_are_seen() -> None:
    wanted = [torch.ones(8)]
    assert timing._difference([torch.ones(8) * 1.001], wanted) is None
    assert "wrong result" in str(timing._difference([torch.ones(8) * 1.1], wanted))
    assert "wrong result" in str(timing._difference([torch.full((8,), float("nan"))], wanted))

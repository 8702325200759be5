"""Ragged Triton attention in the interpreter."""

import pytest

triton = pytest.importorskip("triton")

from interpreter import run_interpreted  # noqa: E402


@pytest.mark.skipif(
    triton.__version__.startswith("3.6."),
    reason="the interpreter of Triton 3.6 turns 1-element arrays into loop bounds, which numpy 2.4 refuses",
)
def test_ragged_masked_attention_in_the_interpreter():
    run_interpreted("masked_attention_ragged", timeout=900.0)

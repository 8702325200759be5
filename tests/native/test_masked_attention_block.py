"""The sources of the CUDA attention's blocks, run on the host thread by thread and compared with float64."""

from __future__ import annotations

import pytest

from jepa_kernels.ops.masked_attention_cuda import HEAD_DIMS


@pytest.mark.parametrize("source", ["masked_attention_block", "masked_attention_warpgroup"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_blocks_equal_the_definition(source, head_dim, run_program):
    run_program(source, HEAD_DIM=head_dim)

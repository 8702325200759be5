"""The source of the patch embedding's blocks on compute capability 9.0, run on the host and compared with float64."""

from __future__ import annotations


def test_blocks_equal_the_definition(run_program):
    run_program("patch_embed_warpgroup")

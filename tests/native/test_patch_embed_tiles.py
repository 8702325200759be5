"""The index arithmetic of the CUDA patch embedding, run on the host: fragments, swizzle, banks, columns, alignment."""

from __future__ import annotations


def test_every_value_of_a_tile_finds_its_place(run_program):
    run_program("patch_embed_tiles")

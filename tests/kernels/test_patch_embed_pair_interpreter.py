"""The Triton target and context patch embedding in the interpreter."""

from interpreter import run_interpreted


def test_patch_embed_pair_in_the_interpreter():
    run_interpreted("patch_embed_pair")

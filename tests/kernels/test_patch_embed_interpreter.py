"""The Triton patch embedding in the interpreter."""

from interpreter import run_interpreted


def test_patch_embed_in_the_interpreter():
    run_interpreted("patch_embed")

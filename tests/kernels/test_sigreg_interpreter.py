"""The Triton SIGReg in the interpreter."""

from interpreter import run_interpreted


def test_sigreg_in_the_interpreter():
    run_interpreted("sigreg")

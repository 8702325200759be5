"""The Triton JEPA loss in the interpreter."""

from interpreter import run_interpreted


def test_jepa_loss_in_the_interpreter():
    run_interpreted("jepa_loss")

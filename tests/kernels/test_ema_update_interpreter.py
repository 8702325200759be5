"""The Triton EMA update in the interpreter."""

from interpreter import run_interpreted


def test_ema_update_in_the_interpreter():
    run_interpreted("ema_update")

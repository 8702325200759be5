"""The Triton kernels of AdamW with EMA in the interpreter."""

from interpreter import run_interpreted


def test_adamw_ema_in_the_interpreter():
    run_interpreted("adamw_ema")

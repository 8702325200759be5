"""The host's emulation of warpgroups, which tests of kernels rely on: layouts, products, every mistake noticed."""

from __future__ import annotations


def test_emulation_follows_the_manual_and_notices_mistakes(run_program):
    run_program("warpgroup_emulation")

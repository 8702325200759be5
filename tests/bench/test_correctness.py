"""The rule before every timing: at most twice PyTorch's own error."""

from __future__ import annotations

import pytest
import torch

from jepa_kernels.bench.correctness import Tolerance, check

REFERENCE = torch.tensor([1.0, -2.0, 4.0, 0.5], dtype=torch.float64)
ERROR = 1e-3
LOW = REFERENCE + ERROR * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize(("factor", "passes"), [(0.0, True), (1.9, True), (2.1, False)])
def test_twice_the_error_of_pytorch_is_the_limit(factor: float, passes: bool) -> None:
    outcome = check([REFERENCE + factor * (LOW - REFERENCE)], [REFERENCE], [LOW], Tolerance(floor=1e-9))
    assert outcome.passed is passes
    assert outcome.max_error == pytest.approx(factor * ERROR / 4, abs=1e-12)


def test_one_wrong_element_is_seen_in_the_largest_error() -> None:
    wrong = REFERENCE.clone()
    wrong[2] += 3 * ERROR
    outcome = check([wrong], [REFERENCE], [LOW], Tolerance())
    assert not outcome.passed and outcome.message is not None and "output 0" in outcome.message


def test_small_error_everywhere_is_seen_in_the_rms() -> None:
    spike = REFERENCE.clone()
    spike[0] += ERROR
    outcome = check([LOW * (1 + 1e-3)], [REFERENCE], [spike], Tolerance(floor=0.0))
    assert not outcome.passed


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([torch.full((4,), float("nan"))], "not finite"),
        ([torch.zeros(3)], "shape"),
        ([], "0 outputs"),
    ],
)
def test_unusable_outputs_fail(outputs: list[torch.Tensor], words: str) -> None:
    outcome = check(outputs, [REFERENCE], [LOW], Tolerance())
    assert not outcome.passed and outcome.message is not None and words in outcome.message


def test_every_output_is_checked() -> None:
    outcome = check([LOW, LOW + 1], [REFERENCE, REFERENCE], [LOW, LOW], Tolerance())
    assert not outcome.passed and outcome.message is not None and "output 1" in outcome.message

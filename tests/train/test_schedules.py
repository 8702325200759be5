"""Learning rate, weight decay and momentum at the steps where the official schedules were read off."""

import math

import pytest

from jepa_kernels.train.config import load_config
from jepa_kernels.train.schedules import Schedules


def test_the_schedules_of_vjepa():
    schedules = Schedules(load_config("vjepa_vitl16").optimization, 300)
    length = 1.25 * 300 * 300  # steps over which they are stretched
    assert schedules.steps == 90000 and schedules.warmup_steps == 12000
    assert schedules.lr(0) == pytest.approx(2e-4 + (6.25e-4 - 2e-4) / 12000)
    assert schedules.lr(11998) == pytest.approx(2e-4 + 11999 / 12000 * (6.25e-4 - 2e-4))
    assert schedules.lr(11999) == pytest.approx(6.25e-4)
    progress = (90000 - 12000) / (length - 12000)
    assert schedules.lr(89999) == pytest.approx(1e-6 + (6.25e-4 - 1e-6) * (1 + math.cos(math.pi * progress)) / 2)
    assert schedules.weight_decay(0) == pytest.approx(0.04, rel=1e-4)
    expected = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * 0.8)) / 2
    assert schedules.weight_decay(89999) == pytest.approx(expected)
    assert schedules.momentum(0) == 0.998 and schedules.momentum(45000) == pytest.approx(0.998 + 0.002 * 45000 / length)
    assert not schedules.clips(41 * 300 - 1) and schedules.clips(41 * 300)


def test_the_schedules_of_ijepa_and_vjepa2_end_where_they_should():
    image = Schedules(load_config("ijepa_vith14").optimization, 625)
    assert image.lr(image.steps - 1) == pytest.approx(1e-6)
    assert image.weight_decay(image.steps - 1) == pytest.approx(0.4)
    assert image.momentum(image.steps) == pytest.approx(1.0) and not image.clips(image.steps)
    pretraining = Schedules(load_config("vjepa2_vitg16").optimization, 300)
    assert {pretraining.lr(step) for step in (12000, 100000, pretraining.steps)} == {5.25e-4}
    assert pretraining.momentum(77) == 0.99925 and pretraining.weight_decay(77) == 0.04
    cooldown = Schedules(load_config("vjepa2_vitg16_64f").optimization, 30)
    assert cooldown.lr(0) == pytest.approx(5.25e-4 + 1 / 150 * (1e-6 - 5.25e-4))
    assert cooldown.lr(119) == pytest.approx(5.25e-4 + 120 / 150 * (1e-6 - 5.25e-4))

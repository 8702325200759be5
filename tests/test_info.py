"""`jepa-kernels info` names every operator and backend, and says why one is missing."""

from __future__ import annotations

import json

import pytest

from jepa_kernels import _native, backends, cli, info
from jepa_kernels.ops import registry


def test_json_lists_every_operator_and_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["operators"]) == list(registry.OPERATOR_NAMES)
    for state in found["operators"].values():
        assert list(state["backends"]) == list(backends.NAMES)
        assert state["backends"]["reference"] == info.AVAILABLE
        assert state["automatic"][-1] == "reference"
    assert found["cpu"]["torch_threads"] >= 1


def test_text_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for operator, state in info.collect()["operators"].items():
        assert operator in text
        assert all(reason in text for reason in state["backends"].values())


def test_missing_native_module_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "why_no_cpu", lambda: "it was not built")
    found = info.collect()
    assert found["operators"]["ema_update"]["backends"]["cpu"] == "it was not built"
    assert "the native CPU module is absent" in info.as_text(found)

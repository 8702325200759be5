"""NVML through the real bindings over a pretended library: every error has a reason, every odd board its flag."""

from __future__ import annotations

import os
import sys

import pytest

from jepa_kernels.bench.energy import meters as energy_meters
from jepa_kernels.bench.energy import nvml
from jepa_kernels.bench.energy.errors import Unavailable
from jepa_kernels.bench.energy.meters import board_meters

from .fake_nvml import UUID, FakeBoard, FakeLibrary, VirtualTime, install

COUNTER = "nvmlDeviceGetTotalEnergyConsumption"


@pytest.fixture
def board() -> FakeBoard:
    return FakeBoard(VirtualTime())


def test_counter_is_read_in_joules_by_uuid(monkeypatch: pytest.MonkeyPatch, board: FakeBoard) -> None:
    other = FakeBoard(board.time, uuid="GPU-99999999-0000-0000-0000-000000000000", offset_mj=7e9)
    install(monkeypatch, FakeLibrary(other, board))
    for uuid in (UUID, UUID.removeprefix("GPU-")):  # torch gives it without the prefix
        found = board_meters(uuid)
        assert found.main is not None and found.main.read() == pytest.approx(5000.0)
        assert (found.main.source, found.main.scope, found.flags) == ("nvml-counter", "GPU board", ())


@pytest.mark.parametrize("order", ["0,1", "1,0"])
def test_device_is_chosen_by_what_cuda_says_not_by_its_number(
    monkeypatch: pytest.MonkeyPatch, board: FakeBoard, order: str
) -> None:
    """With CUDA_VISIBLE_DEVICES=1,0 CUDA's device 0 is NVML's device 1; the UUID is the same in both."""
    other = FakeBoard(board.time, uuid="GPU-99999999-0000-0000-0000-000000000000", offset_mj=7e9)
    install(monkeypatch, FakeLibrary(board, other))
    visible = [(board, other)[int(i)] for i in order.split(",")]
    monkeypatch.setattr(energy_meters, "device_uuid", lambda device: visible[device.index].uuid)
    import torch

    for index, expected in enumerate(visible):
        found = energy_meters.open_meters(torch.device("cuda", index))
        assert found.main is not None and found.main.read() == pytest.approx(expected.offset_mj * 1e-3)


@pytest.mark.parametrize(
    ("code", "words"),
    [(3, "Volta or newer"), (4, "not permitted"), (13, "too old")],
)
def test_counter_that_is_refused_gives_a_labelled_integral(
    monkeypatch: pytest.MonkeyPatch, board: FakeBoard, code: int, words: str
) -> None:
    board.codes[COUNTER] = code
    install(monkeypatch, FakeLibrary(board))
    found = board_meters(UUID)
    assert found.main is not None and found.main.source == "nvml-power"
    assert found.flags == ("power_integral",)
    assert found.reason is not None and words in found.reason and "integrated from power" in found.reason


def test_counter_and_power_refused_give_null_and_both_reasons(
    monkeypatch: pytest.MonkeyPatch, board: FakeBoard
) -> None:
    board.codes |= {COUNTER: 4, "nvmlDeviceGetPowerUsage": 3, "field:186": 3}
    install(monkeypatch, FakeLibrary(board))
    found = board_meters(UUID)
    assert found.main is None and found.reason is not None
    assert "not permitted" in found.reason and "no power reading" in found.reason


@pytest.mark.parametrize(
    ("code", "words"), [(9, "modprobe"), (12, "utility"), (15, "bus"), (18, "reboot"), (17, "/dev/nvidiactl")]
)
def test_library_that_cannot_start_names_the_fix(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    install(monkeypatch, FakeLibrary(init_code=code))
    found = board_meters(UUID)
    assert found.main is None and found.reason is not None and words in found.reason
    assert found.flags == ("no_nvml",)


def test_board_that_is_lost_while_in_use(monkeypatch: pytest.MonkeyPatch, board: FakeBoard) -> None:
    install(monkeypatch, FakeLibrary(board))
    meter = board_meters(UUID).main
    assert meter is not None
    board.codes[COUNTER] = 15
    with pytest.raises(Unavailable, match="fallen off the bus"):
        meter.read()


def test_absent_bindings_and_the_wrong_package_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Unavailable, match=r"pip install 'jepa-kernels\[bench\]'"):
        nvml.load()
    monkeypatch.setitem(sys.modules, "pynvml", os)
    with pytest.raises(Unavailable, match="pip uninstall pynvml"):
        nvml.load()


def test_unknown_uuid_is_told(monkeypatch: pytest.MonkeyPatch, board: FakeBoard) -> None:
    install(monkeypatch, FakeLibrary(board))
    found = board_meters("GPU-00000000-0000-0000-0000-000000000000")
    assert found.main is None and found.reason is not None and "--gpus all" in found.reason


def test_mig_has_no_energy(monkeypatch: pytest.MonkeyPatch, board: FakeBoard) -> None:
    board.mig = True
    install(monkeypatch, FakeLibrary(board))
    found = board_meters(UUID)
    assert found.main is None and found.flags == ("mig",)
    assert found.reason is not None and "cannot split it" in found.reason


@pytest.mark.parametrize("prefix", ["MIG-", ""])
def test_uuid_of_a_mig_instance_is_recognised(monkeypatch: pytest.MonkeyPatch, board: FakeBoard, prefix: str) -> None:
    bare = "aaaaaaaa-2222-3333-4444-555555555555"
    install(monkeypatch, FakeLibrary(board, FakeBoard(board.time, uuid=f"MIG-{bare}")))
    found = board_meters(prefix + bare)
    assert found.main is None and found.flags == ("mig",)


def test_module_scope_is_flagged(monkeypatch: pytest.MonkeyPatch, board: FakeBoard) -> None:
    board.module_only = True
    install(monkeypatch, FakeLibrary(board))
    found = board_meters(UUID)
    assert found.main is not None and found.main.scope == "GPU module (GPU and CPU)"
    assert found.flags == ("module_scope",) and found.main.read() == pytest.approx(5000.0)
    assert found.board is not None and found.board.power_scope() == "GPU module (GPU and CPU)"


def test_other_processes_are_flagged(monkeypatch: pytest.MonkeyPatch, board: FakeBoard) -> None:
    install(monkeypatch, FakeLibrary(board))
    for pids, flags in (((), ()), ((os.getpid(),), ()), ((1,), ()), ((os.getpid(), 7), ("other_processes",))):
        board.pids = pids  # one unknown process is this one under the number that the host gave it
        assert board_meters(UUID).flags == flags
    opened = nvml.open_board(UUID)
    board.pids = (7, 8)
    assert (opened.other_processes(), opened.other_processes(computing=True)) == (2, 1)


def test_snapshot_and_description_tell_none_for_what_is_absent(
    monkeypatch: pytest.MonkeyPatch, board: FakeBoard
) -> None:
    board.events, board.throttle_ns = 0x44, {74: 5, 270: 9}
    install(monkeypatch, FakeLibrary(board))
    opened = nvml.open_board(UUID)
    assert opened.snapshot() == {
        "power_w": 60.0,
        "sm_mhz": 1980,
        "memory_mhz": 2619,
        "temperature_c": 45,
        "utilisation": None,
        "events": 0x44,
    }
    assert opened.throttle_ns() == {
        "power_cap": 5,
        "thermal_policy": None,
        "software_thermal": None,
        "hardware_thermal": 9,
        "power_brake": None,
    }
    described = opened.describe()
    assert described["uuid"] == UUID and described["driver"] == "999.01" and described["ecc"] is None


def test_all_boards_are_listed(monkeypatch: pytest.MonkeyPatch, board: FakeBoard) -> None:
    install(monkeypatch, FakeLibrary(board, FakeBoard(board.time, uuid="GPU-2")))
    assert [b.uuid() for b in nvml.boards()] == [UUID, "GPU-2"]

"""`jepa-kernels train` and `export`: whole runs, going on bit for bit, and what a user may get wrong."""

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from train_helpers import SMALL, assert_bit_equal, load

from jepa_kernels.models import build_ijepa
from jepa_kernels.train import metrics

VIDEO = ("model.patch_size=8", "model.num_frames=4", "run.log_every=2")


def lines(folder):
    return [json.loads(line) for line in (folder / metrics.FILE).read_text().splitlines()]


def subprocess_of(photographs, output, *settings, **options):
    sets = [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
    command = [sys.executable, "-m", "jepa_kernels.cli", "train", "--config", "ijepa_tiny", "--data", photographs]
    return subprocess.Popen(
        [*map(str, command), "--output", str(output), *sets],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


def wait_for_lines(folder, count):
    for _ in range(1200):
        if (folder / metrics.FILE).exists() and len((folder / metrics.FILE).read_text().splitlines()) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("the run wrote no metrics")


@pytest.mark.parametrize(("config", "settings"), [
    ("ijepa_tiny", ()), ("vjepa_tiny", VIDEO), ("vjepa2_tiny", VIDEO), ("vjepa2_tiny", (*VIDEO, 'masks.keep="ragged"')),
    ("vjepa21_tiny", (*VIDEO, "head.context_warmup_epochs=0.0")),
])  # fmt: skip
def test_a_run_from_beginning_to_end(train, photographs, videos, tmp_path, config, settings):
    data = photographs if config == "ijepa_tiny" else videos
    code, out, _ = train(data, tmp_path / "run", config=config, settings=settings)
    assert code == 0 and "done after step 12" in out
    records = lines(tmp_path / "run")
    assert records[-1]["step"] == 12 and records[-1]["loss"] < records[0]["loss"]
    assert {"lr", "weight_decay", "momentum", "samples_per_s", "effective_rank", "feature_std"} <= records[-1].keys()
    state = load(tmp_path / "run")
    assert state["step"] == 12 and {"encoder", "predictor", "target_encoder", "opt"} <= state.keys()
    if config != "ijepa_tiny":
        assert records[-1]["skipped_files"] >= 2 and "skipped" in out and "text.mp4" in out


@pytest.fixture(scope="module")
def whole_run(photographs, tmp_path_factory):
    """An uninterrupted run of twelve steps, in a process of its own."""
    folder = tmp_path_factory.mktemp("whole")
    assert subprocess_of(photographs, folder / "run").wait(120) == 0
    return folder / "run"


def test_a_stopped_run_goes_on_bit_for_bit(train, photographs, whole_run, tmp_path):
    output = tmp_path / "run"
    assert train(photographs, output, "--stop-after", 5)[0] == 0
    assert load(output)["step"] == 5
    code, out, _ = train(photographs, output, "--resume", settings=("data.num_workers=1",))
    assert code == 0 and "going on after step 5" in out
    first, second = load(whole_run), load(output)
    first["config"]["data"]["num_workers"] = 1
    assert_bit_equal(first, second)
    losses = [[(r["step"], r["loss"]) for r in lines(folder)] for folder in (whole_run, output)]
    assert losses[0] == losses[1]


def test_a_run_killed_at_a_random_moment_goes_on_bit_for_bit(train, photographs, whole_run, tmp_path):
    output = tmp_path / "run"
    process = subprocess_of(photographs, output, "run.checkpoint_every=2")
    try:
        wait_for_lines(output, 3)
        time.sleep(torch.rand(1).item() * 0.05)
    finally:
        process.kill()
        process.wait()
    assert 2 <= load(output)["step"] <= 12  # whole, wherever the kill fell
    assert train(photographs, output, "--resume", settings=("run.checkpoint_every=2",))[0] == 0
    first, second = load(whole_run), load(output)
    first["config"]["run"]["checkpoint_every"] = 2
    assert_bit_equal(first, second)
    losses = [[(r["step"], r["loss"]) for r in lines(folder)] for folder in (whole_run, output)]
    assert losses[0] == losses[1]  # no step is told twice


def test_ctrl_c_saves_and_ends(photographs, tmp_path):
    settings = ("optimization.epochs=2000", "data.num_workers=1")
    process = subprocess_of(photographs, tmp_path / "run", *settings, start_new_session=True)
    try:
        wait_for_lines(tmp_path / "run", 2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader processes, too
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "stopped after step" in out and "Traceback" not in out
    assert load(tmp_path / "run")["step"] == lines(tmp_path / "run")[-1]["step"]


def test_sigterm_saves_and_ends(train, photographs, tmp_path):
    def stop():
        wait_for_lines(tmp_path / "run", 2)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper, before = threading.Thread(target=stop), signal.getsignal(signal.SIGTERM)
    stopper.start()
    code, out, _ = train(photographs, tmp_path / "run", settings=("optimization.epochs=2000",))
    stopper.join()
    assert code == 130 and "stopped after step" in out and signal.getsignal(signal.SIGTERM) == before
    assert load(tmp_path / "run")["step"] == lines(tmp_path / "run")[-1]["step"] < 8000


def test_a_full_disk_leaves_the_old_checkpoint_whole(train, photographs, tmp_path, monkeypatch):
    output = tmp_path / "run"
    assert train(photographs, output, "--stop-after", 3)[0] == 0
    before = (output / "checkpoint.pt").read_bytes()
    # The system refuses to write files beyond this size, as a full disk would refuse any.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        code, out, err = train(photographs, output, "--resume", settings=("run.checkpoint_every=4",))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 4 and "the checkpoint before it" in err and "is whole" in err
    assert "warning: the checkpoint of step 4 could not be written" in out  # and the run went on
    assert lines(output)[-1]["step"] == 12
    assert (output / "checkpoint.pt").read_bytes() == before and len(list(output.iterdir())) == 2
    assert train(photographs, output, "--resume", settings=("run.checkpoint_every=4",))[0] == 0
    assert load(output)["step"] == 12


def test_what_a_run_refuses(train, photographs, tmp_path):
    output = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((tmp_path / "empty", output), "holds no video and no image"),
        ((tmp_path / "none", output), "does not exist"),
        ((photographs, output, "--resume"), "nothing to resume"),
        ((photographs, output, "--init", tmp_path / "x.pt"), "does not exist; give a checkpoint"),
        ((photographs, output, "--resume", "--init", tmp_path / "x.pt"), "leave --init out"),
    ):
        code, _, err = train(*arguments)
        assert code == 2 and message in err and err.count("\n") == 1, err
    (tmp_path / "broken.png").write_text("no image")
    code, _, err = train(tmp_path / "broken.png", output)
    assert code == 2 and "32 files in a row could not be read" in err and "broken.png" in err


def test_what_a_resumed_run_refuses(train, photographs, tmp_path):
    output = tmp_path / "run"
    assert train(photographs, output, "--stop-after", 1)[0] == 0
    code, _, err = train(photographs, output)
    assert code == 2 and "go on with --resume, or choose another --output" in err
    code, _, err = train(photographs, output, "--resume", settings=("optimization.lr=0.5", "run.seed=3"))
    assert code == 2 and "optimization.lr: 0.002 -> 0.5; run.seed: 0 -> 3" in err
    code, _, err = train(photographs, output, "--resume", settings=("data.batch_size=2",))
    assert code == 2 and "global batch: 4 -> 2" in err
    (output / "checkpoint.pt").write_bytes((output / "checkpoint.pt").read_bytes()[:1000])
    code, _, err = train(photographs, output, "--resume")
    assert code == 2 and "cannot be read as a checkpoint" in err


def test_a_loss_that_is_not_finite_ends_the_run(train, photographs, tmp_path):
    code, _, err = train(photographs, tmp_path / "run", settings=("optimization.lr=1e30", "optimization.start_lr=1e30"))
    assert code == 2 and "lower optimization.lr" in err


def test_published_checkpoints_start_a_run_and_others_are_refused(train, photographs, tmp_path):
    size = {"depth": 1, "embed_dim": 48, "num_heads": 2}
    model = build_ijepa("vit_tiny", img_size=32, patch_size=4, pred_depth=1, pred_embed_dim=24, pred_num_heads=1, encoder=size)
    parts = ("encoder", "predictor", "target_encoder")
    published = {part: {f"module.{k}": v for k, v in getattr(model, part).state_dict().items()} for part in parts}
    torch.save({**published, "epoch": 3, "opt": {}}, tmp_path / "official.pth.tar")
    still = ("optimization.lr=1e-30", "optimization.start_lr=0.0", "optimization.final_lr=0.0", "optimization.epochs=1")
    assert train(photographs, tmp_path / "run", "--init", tmp_path / "official.pth.tar", settings=still)[0] == 0
    trained = load(tmp_path / "run")
    for key, value in model.encoder.state_dict().items():
        torch.testing.assert_close(trained["encoder"][key], value, rtol=0, atol=1e-20)

    code, _, err = train(
        photographs, tmp_path / "other", "--init", tmp_path / "official.pth.tar",
        settings=("model.encoder_depth=2", "model.encoder_width=64"),
    )  # fmt: skip
    assert code == 2 and "is of another architecture: 24 keys missing: encoder.blocks.1.norm1.weight" in err
    assert "of another shape: encoder.pos_embed (1, 64, 48), here (1, 64, 64)" in err and "more. Choose" in err
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    code, _, err = train(photographs, tmp_path / "other", "--init", tmp_path / "foreign.pt")
    assert code == 2 and "has no 'encoder'; it has model" in err


def test_bfloat16_runs_and_clips(train, photographs, tmp_path):
    code, _, _ = train(photographs, tmp_path / "run", settings=('run.dtype="bfloat16"', "optimization.clip_grad=1e-6"))
    assert code == 0 and lines(tmp_path / "run")[-1]["loss"] < 1.0


def test_export(command, whole_run, tmp_path):
    output = tmp_path / "encoder.safetensors"
    code, out, err = command("export", "--checkpoint", whole_run / "checkpoint.pt", "--output", output)
    if importlib.util.find_spec("safetensors") is None:
        assert code == 2 and "pip install 'jepa-kernels[export]'" in err and not output.exists()
        return
    from safetensors.torch import load_file

    assert code == 0 and "tensors of target_encoder" in out
    assert_bit_equal(load_file(output), load(whole_run)["target_encoder"])


def test_effective_rank_and_collapse():
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(400, 16, generator=generator)
    assert 15 < metrics.effective_rank(wide) <= 16
    assert metrics.effective_rank(wide[:, :1] @ torch.ones(1, 16)) == pytest.approx(1.0, abs=1e-6)
    assert metrics.effective_rank(torch.zeros(4, 4)) == 0.0
    # Tokens that tell only where they are: collapsed, though they differ from each other.
    positions = torch.randn(1, 9, 16, generator=generator).expand(8, -1, -1)
    assert metrics.collapse(positions)["feature_std"] == pytest.approx(0.0, abs=1e-6)
    alive = metrics.collapse(positions + torch.randn(8, 9, 16, generator=generator))
    assert alive["feature_std"] == pytest.approx(1.0, abs=0.15) and alive["effective_rank"] > 12

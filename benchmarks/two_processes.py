"""How much faster two processes of the training command are than one: `python benchmarks/two_processes.py DATA`.

Each run is the training command itself on the folder DATA, with one thread a process and the same batch a process; the speed is
the median of what its metrics say, without the first record. The cases are interleaved. Two processes that know nothing of each
other show what the machine itself gives to a second one; the rest of the loss is the exchange.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS = (
    "model.encoder_depth=12", "model.pred_depth=4", "data.num_workers=0", "optimization.iterations_per_epoch=1",
    "optimization.epochs=10", "optimization.warmup_epochs=0.0", "run.log_every=2", "run.diagnostics_every=1000",
    "run.checkpoint_every=1000", "masks.keep='budget'", "masks.budget=[[10, 16], [4, 24]]",
)  # fmt: skip
# Name -> (commands side by side, processes of each, how these exchange)
CASES = {
    "one process": (1, 1, "ddp"),
    "two that exchange nothing": (2, 1, "ddp"),
    "two, DDP": (1, 2, "ddp"),
    "two, FSDP2": (1, 2, "fsdp2"),
}
ROUNDS = 2


def start(data: str, batch: int, processes: int, kind: str, folder: Path) -> subprocess.Popen[bytes]:
    """Starts one training command."""
    settings = (*SETTINGS, f"data.batch_size={batch}", f"run.distributed='{kind}'")
    sets = [word for setting in settings for word in ("--set", setting)]
    command = ["-m", "jepa_kernels.cli", "train", "--config", "vjepa2_tiny", "--data", data, "--output", str(folder), *sets]
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.DEVNULL)


def samples_per_second(data: str, batch: int, case: tuple[int, int, str], folder: Path) -> float:
    """Samples a second of all commands of a case together."""
    commands, processes, kind = case
    runs = [start(data, batch, processes, kind, folder / str(number)) for number in range(commands)]
    if any(run.wait() for run in runs):
        raise SystemExit("a training command failed; its message is above")
    speeds = []
    for number in range(commands):
        records = [json.loads(line) for line in (folder / str(number) / "metrics.jsonl").read_text().splitlines()]
        speeds.append(statistics.median(record["samples_per_s"] for record in records[1:]))
    return sum(speeds)


def main() -> None:
    data, batch = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 16
    speeds: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for name, case in CASES.items():
                speeds[name].append(samples_per_second(data, batch, case, Path(folder, f"{name}-{number}")))
    for name, found in speeds.items():
        copies = CASES[name][0] * CASES[name][1]
        shares = [f"{speed / (copies * one):.0%}" for speed, one in zip(found, speeds["one process"], strict=True)]
        print(f"{name:<26} {statistics.median(found):6.2f} samples/s  efficiency {', '.join(shares)}")


if __name__ == "__main__":
    main()

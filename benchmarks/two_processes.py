"""How much faster two processes of the training command are than one: `python benchmarks/two_processes.py DATA`.

Each run is the training command itself on the folder DATA, with one thread a process and the same batch a process; the speed is
the median of what its metrics say, without the first record. The pairs are interleaved.
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
    "model.encoder_depth=12", "model.pred_depth=4", "data.batch_size=4", "data.num_workers=0",
    "optimization.iterations_per_epoch=1", "optimization.epochs=15", "optimization.warmup_epochs=0.0",
    "run.log_every=3", "run.diagnostics_every=1000", "run.checkpoint_every=1000",
    "masks.keep='budget'", "masks.budget=[[10, 16], [4, 24]]",
)  # fmt: skip
ROUNDS = 2


def samples_per_second(data: str, processes: int, kind: str, folder: Path) -> float:
    """Speed of one run."""
    sets = [word for setting in (*SETTINGS, f"run.distributed='{kind}'") for word in ("--set", setting)]
    arguments = ["-m", "jepa_kernels.cli", "train", "--config", "vjepa2_tiny", "--data", data, "--output", str(folder), *sets]
    if processes > 1:
        arguments = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(record["samples_per_s"] for record in records[1:])


def main() -> None:
    cases = {"one process": (1, "ddp"), "two, DDP": (2, "ddp"), "two, FSDP2": (2, "fsdp2")}
    speeds: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for name, (processes, kind) in cases.items():
                speeds[name].append(samples_per_second(sys.argv[1], processes, kind, Path(folder, f"{name}-{number}")))
    alone = speeds["one process"]
    for name, found in speeds.items():
        ratios = [speed / one for speed, one in zip(found, alone, strict=True)]
        efficiency = [ratio / cases[name][0] for ratio in ratios]
        print(f"{name:<12} {statistics.median(found):6.2f} samples/s  efficiency {', '.join(f'{e:.0%}' for e in efficiency)}")


if __name__ == "__main__":
    main()

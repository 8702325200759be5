"""The commands `train`, `export` and `probe`: their options, and what runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

OK = 0
# Networks of a checkpoint; those of the models, so that the parser needs no torch.
_PARTS = ("encoder", "target_encoder", "predictor", "projector", "decoder", "head", "target_head")


def add(commands: Any) -> None:
    """Adds the three commands to the parser of `jepa-kernels`."""
    _add_train(commands)
    _add_export(commands)
    _add_probe(commands)


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train I-JEPA, V-JEPA, V-JEPA 2, LeJEPA, DINO, VICReg, MAE or VideoMAE on a folder of images or videos",
        epilog="Exit codes: 0 done, 2 usage or input, 4 the last checkpoint could not be written, 130 ended by SIGINT or "
        "SIGTERM (everything is saved; --resume goes on). Several processes: torchrun --nproc-per-node N -m jepa_kernels.cli "
        "train ...",
    )
    train.add_argument(
        "--config", required=True, metavar="FILE|NAME", help="a TOML file, or the name of a packaged one such as vjepa2_tiny"
    )
    train.add_argument("--data", type=Path, metavar="DIR", help="folder of images or videos, subfolders included")
    train.add_argument("--output", type=Path, metavar="DIR", help="the run's folder (default: runs/<config>)")
    train.add_argument("--resume", action="store_true", help="go on after the output's checkpoint, bit for bit")
    train.add_argument(
        "--init", type=Path, metavar="FILE", help="start from the weights of a checkpoint, of this command or a published one"
    )
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a setting, such as optimization.lr=1e-4"
    )
    train.add_argument("--stop-after", type=int, metavar="STEPS", help="end after this many steps of the run, as on a signal")
    train.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto (default): a GPU if there is one")
    train.add_argument("--dump-config", action="store_true", help="print all settings as JSON and stop")
    train.set_defaults(handler=_train)


def _add_export(commands: Any) -> None:
    export = commands.add_parser("export", help="write a network of a checkpoint as safetensors")
    export.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="of this package, or published")
    export.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors")
    export.add_argument(
        "--part", choices=_PARTS, help="default: target_encoder, or encoder for an objective without a target"
    )
    export.set_defaults(handler=_export)


def _add_probe(commands: Any) -> None:
    probe = commands.add_parser(
        "probe",
        help="classify images by the features of a checkpoint, and by those of the same encoder with random weights",
    )
    probe.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a checkpoint of `train`")
    probe.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder whose subfolders are the classes")
    probe.add_argument(
        "--part",
        choices=("encoder", "target_encoder"),
        help="default: target_encoder (after a short run it still lags behind the encoder), or encoder where there is no target",
    )
    probe.add_argument("--neighbours", type=int, default=10, metavar="K", help="default: 10")
    probe.add_argument("--batch", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    probe.add_argument("--json", action="store_true", help="print JSON")
    probe.set_defaults(handler=_probe)


def _train(options: argparse.Namespace) -> int:
    import json

    from . import config as configs
    from . import distributed, loop
    from .errors import TrainError

    config = configs.load_config(options.config, options.set)
    if options.dump_config:
        print(json.dumps(configs.as_record(config), indent=1))
        return OK
    if options.data is None:
        raise TrainError("--data is missing; give a folder of images or videos")
    if options.resume and options.init is not None:
        raise TrainError("--resume goes on with the run's own weights; leave --init out")
    output = options.output or Path("runs") / Path(options.config).stem
    world = distributed.join(options.device)
    try:
        chosen = loop.Options(options.data, output, options.resume, options.init, options.stop_after)
        return loop.train(config, chosen, world)
    finally:
        distributed.leave()


def _export(options: argparse.Namespace) -> int:
    from . import state

    part, count = state.export(options.checkpoint, options.output, options.part)
    print(f"{count} tensors of {part} written to {options.output}")
    return OK


def _probe(options: argparse.Namespace) -> int:
    from . import probe

    print(probe.report(options.checkpoint, options.data, options.part, options.neighbours, options.batch, options.json))
    return OK

"""The settings of a training run: strict TOML files, found by path or, if packaged, by name."""

from __future__ import annotations

import difflib
import importlib
import importlib.resources
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..masks import KEEP_MODES, VJEPA2_MASKS, BlockMask, RectangleMasks
from ..nn import NORMALIZATIONS
from .errors import TrainError

IMAGE_FAMILIES = ("ijepa", "lejepa", "dino", "vicreg", "mae")
FAMILIES = (*IMAGE_FAMILIES, "vjepa", "vjepa2", "vjepa21", "videomae")
JEPA_FAMILIES = ("ijepa", "vjepa", "vjepa2")
FORECASTING = ("vjepa", "vjepa2", "vjepa21")  # those that can train on forecasts
VIEW_FAMILIES = ("lejepa", "dino", "vicreg")  # those whose loss compares views of an image
_PACKAGED = "jepa_kernels.train.configs"
_T = TypeVar("_T")


class ConfigError(TrainError):
    """A setting that is missing, unknown, of the wrong type or out of range; the message names it."""


@dataclass(frozen=True)
class Model:
    """The network; 0 stands for the value of the named size, or, of `pred_num_heads`, for the encoder's. `pred_*` of MAE are its
    decoder's."""

    family: str
    encoder: str
    img_size: int
    patch_size: int
    num_frames: int = 1
    tubelet_size: int = 2
    pred_depth: int = 12
    pred_embed_dim: int = 384
    pred_num_heads: int = 0
    encoder_depth: int = 0
    encoder_width: int = 0
    encoder_heads: int = 0
    loss_exp: float = 1.0
    normalization: str = "layer_norm"
    activation_checkpointing: bool = False


@dataclass(frozen=True)
class Data:
    """How samples are read; `batch_size` is that of one process. `fps` 0 means: every `frame_step`-th frame.

    `in_memory` keeps every video decoded once it was read (in each loader process, if there are any): for sets that fit.
    """

    batch_size: int
    num_workers: int = 4
    frame_step: int = 4
    fps: int = 0
    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    horizontal_flip: bool = False
    in_memory: bool = False


@dataclass(frozen=True)
class Views:
    """The crops of LeJEPA, DINO and VICReg (of two), `data.crop_scale` that of global ones, and their colours.

    `jitter` are the strengths of brightness, contrast, saturation and hue; `blur` and `solarize` the probabilities in the first
    global view, in the other global views, and in local views.
    """

    global_crops: int = 2
    local_crops: int = 0
    local_size: int = 96
    local_scale: tuple[float, float] = (0.05, 0.4)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    solarize: tuple[float, float, float] = (0.0, 0.2, 0.0)


@dataclass(frozen=True)
class Head:
    """What LeJEPA, DINO and VICReg put on the encoder, and the numbers of all losses but V-JEPA 2's; each reads its own.

    `hidden_dim` is the width of the projector's layers and `out_dim` that of the embeddings, of DINO's bottleneck.
    `normalize_patches`: MAE reconstructs the pixels of each patch at mean 0 and variance 1.
    `levels`: after how many blocks V-JEPA 2.1 takes its outputs, () for each quarter; `context_weight` is that of its visible
    tokens, which rises from 0 over `context_warmup_epochs`.
    """

    hidden_dim: int = 2048
    out_dim: int = 256
    sigreg_weight: float = 0.02
    sigreg_slices: int = 1024
    prototypes: int = 65536
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    centre_momentum: float = 0.9
    vicreg_weights: tuple[float, float, float] = (25.0, 25.0, 1.0)
    normalize_patches: bool = True
    levels: tuple[int, ...] = ()
    context_weight: float = 0.5
    context_warmup_epochs: float = 0.0


@dataclass(frozen=True)
class Masks:
    """The sampler: `rectangles` for I-JEPA, one of `blocks` a mask for V-JEPA, the share `ratio` of the patches hidden for MAE.
    `keep` and `budget` are the samplers' own. With `forecasts`, pairs of frames seen and frames to predict behind them, V-JEPA
    forecasts in place of filling in blocks."""

    keep: str = "batch"
    ratio: float = 0.75
    budget: tuple[tuple[int, ...], ...] = ()
    rectangles: RectangleMasks = RectangleMasks()
    blocks: tuple[BlockMask, ...] = VJEPA2_MASKS
    forecasts: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Optimization:
    """AdamW, its schedules and the target's momentum. An epoch has `iterations_per_epoch` steps; 0 means one pass over the data.

    The schedules are stretched to `ipe_scale` times the length of the run. `schedule` is "cosine" (after a linear warm-up) or
    "linear" (from `lr` to `final_lr`, without one). `clip_grad` 0 does not clip; otherwise the gradients of the encoder and of
    the predictor are clipped to this norm each, after the warm-up.
    """

    epochs: int
    lr: float
    iterations_per_epoch: int = 0
    ipe_scale: float = 1.0
    warmup_epochs: float = 0.0
    start_lr: float = 0.0
    final_lr: float = 0.0
    weight_decay: float = 0.04
    final_weight_decay: float = 0.04
    ema: tuple[float, float] = (0.996, 1.0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_grad: float = 0.0
    schedule: str = "cosine"


@dataclass(frozen=True)
class Run:
    """Precision, seed, and how often (in steps) something is told, examined and saved."""

    dtype: str = "bfloat16"
    seed: int = 0
    log_every: int = 10
    diagnostics_every: int = 100
    checkpoint_every: int = 500
    distributed: str = "ddp"


@dataclass(frozen=True)
class Config:
    """All settings; one table of the TOML file each."""

    model: Model
    data: Data
    optimization: Optimization
    masks: Masks = field(default_factory=Masks)
    views: Views = field(default_factory=Views)
    head: Head = field(default_factory=Head)
    run: Run = field(default_factory=Run)


def packaged_names() -> list[str]:
    """The configurations that come with the package."""
    folder = importlib.resources.files(_PACKAGED)
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_config(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a TOML file, or the packaged configuration of that name; `overrides` are `table.key=value` with a TOML value.

    Raises:
        ConfigError: no such file or name (the closest is named), bad TOML, an unknown key (likewise), a value of the wrong type
            or out of range.

    Example:
        >>> load_config("vjepa2_tiny", ["optimization.lr=1e-3"]).optimization.lr
        0.001
    """
    where, text = _read(path_or_name)
    toml = _toml()
    try:
        record = toml.loads(text)
        for override in overrides:
            _merge(record, toml.loads(override))
    except toml.TOMLDecodeError as error:
        raise ConfigError(f"{where} or an override is not TOML: {error}; strings need quotes") from None
    return from_record(record, where)


def from_record(record: Mapping[str, Any], where: str) -> Config:
    """The configuration of a nested dict, as TOML gives it or a checkpoint holds it; raises ConfigError as `load_config`."""
    config = _filled(Config, record, where, "")
    _check(config, where)
    return config


def as_record(value: Any) -> Any:
    """The configuration as nested dicts and lists, which `from_record` reads back."""
    if is_dataclass(value):
        return {f.name: as_record(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) is not None}
    return [as_record(entry) for entry in value] if isinstance(value, tuple | list) else value


def differing_keys(first: Any, second: Any, prefix: str = "") -> list[str]:
    """Where two records differ: `table.key: this -> that`."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return [] if first == second else [f"{prefix}: {first!r} -> {second!r}"]
    found = []
    for key in sorted({*first, *second}):
        name = f"{prefix}.{key}" if prefix else key
        found += differing_keys(first.get(key), second.get(key), name)
    return found


def _read(path_or_name: str | Path) -> tuple[str, str]:
    path = Path(path_or_name)
    if path.suffix == ".toml" or path.exists():
        try:
            return str(path), path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"configuration {path} cannot be read: {error.strerror}; {_names(path.stem)}") from None
    name = str(path_or_name)
    if name not in packaged_names():
        raise ConfigError(f"no configuration is named {name!r}; {_names(name)}")
    return name, (importlib.resources.files(_PACKAGED) / f"{name}.toml").read_text(encoding="utf-8")


def _names(wanted: str) -> str:
    known = packaged_names()
    return f"packaged are {', '.join(known)}{_closest(wanted, known)}"


def _closest(wanted: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _toml() -> Any:
    for name in ("tomllib", "tomli"):  # the first is Python 3.11's
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ConfigError("reading configurations on Python 3.10 needs tomli; `pip install 'jepa-kernels[train]'` brings it")


def _merge(record: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(record.get(key), dict):
            _merge(record[key], value)
        else:
            record[key] = value


def _filled(kind: type[_T], record: Any, where: str, prefix: str) -> _T:
    if not isinstance(record, Mapping):
        raise ConfigError(f"{where}: {prefix.rstrip('.') or 'the file'} must be a table; got {record!r}")
    hints = typing.get_type_hints(kind)
    for key in record:
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {prefix}{key}{_suggestion(key, prefix, list(hints))}")
    missing = [name for name in hints if name not in record and _required(kind, name)]
    if missing:
        raise ConfigError(f"{where}: {', '.join(prefix + name for name in missing)} must be given")
    values = {key: _converted(hints[key], value, where, prefix + key) for key, value in record.items()}
    return kind(**values)


def _required(kind: Any, name: str) -> bool:
    found = next(f for f in fields(kind) if f.name == name)
    return found.default is found.default_factory  # both MISSING


def _suggestion(key: str, prefix: str, known: list[str]) -> str:
    """The key that may be meant: of that name in another table, or the closest of this one."""
    for table, kind in typing.get_type_hints(Config).items():
        if key in typing.get_type_hints(kind):
            return f"; did you mean {table}.{key!s}?"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return (f"; did you mean {prefix}{close[0]}?" if close else "") + f" Known: {', '.join(known)}"


def _converted(hint: Any, value: Any, where: str, name: str) -> Any:
    """A TOML value as its field's type: numbers, strings, booleans, tuples of these, tables."""
    if is_dataclass(hint):
        return _filled(hint, value, where, f"{name}.")  # type: ignore[arg-type]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # only `int | None`
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        length = None if inner[-1] is Ellipsis else len(inner)
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise ConfigError(f"{where}: {name} must be a list of {length or 'any number of'} values; got {value!r}")
        return tuple(_converted(inner[0], entry, where, f"{name}[{i}]") for i, entry in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: {name} must be {hint.__name__}; got {value!r}")
    return value


def _check(config: Config, where: str) -> None:
    model, optimization, run = config.model, config.optimization, config.run
    choices = (
        ("model.family", model.family, FAMILIES),
        ("model.normalization", model.normalization, NORMALIZATIONS),
        ("masks.keep", config.masks.keep, KEEP_MODES),
        ("optimization.schedule", optimization.schedule, ("cosine", "linear")),
        ("run.dtype", run.dtype, ("bfloat16", "float32")),
        ("run.distributed", run.distributed, ("ddp", "fsdp2") if model.family in JEPA_FAMILIES else ("ddp",)),
    )
    for name, value, known in choices:
        if value not in known:
            raise ConfigError(f"{where}: {name} must be one of {', '.join(known)}; got {value!r}")
    positive = {
        "data.batch_size": config.data.batch_size,
        "data.frame_step": config.data.frame_step,
        "optimization.epochs": optimization.epochs,
        "optimization.lr": optimization.lr,
        "optimization.ipe_scale": optimization.ipe_scale,
        "run.log_every": run.log_every,
        "run.diagnostics_every": run.diagnostics_every,
        "run.checkpoint_every": run.checkpoint_every,
    }
    for name, number in positive.items():
        if not number > 0:
            raise ConfigError(f"{where}: {name} must be greater than 0; got {number}")
    if (model.family in IMAGE_FAMILIES) != (model.num_frames == 1):
        images = ", ".join(IMAGE_FAMILIES)
        raise ConfigError(f"{where}: model.num_frames is 1 for {images} and more for the others; got {model.num_frames}")
    _check_views(config, where)
    if config.masks.forecasts and (model.family not in FORECASTING or config.masks.keep != "batch"):
        raise ConfigError(f'{where}: masks.forecasts is for {", ".join(FORECASTING)} with masks.keep = "batch"')
    if config.masks.forecasts and config.masks.budget:
        raise ConfigError(f"{where}: masks.forecasts fixes the numbers of tokens; leave out masks.budget")
    if not 0.0 < config.data.crop_scale[0] <= config.data.crop_scale[1] <= 1.0:
        raise ConfigError(f"{where}: data.crop_scale must satisfy 0 < low <= high <= 1; got {config.data.crop_scale}")


def _check_views(config: Config, where: str) -> None:
    views, scale = config.views, config.views.local_scale
    if config.model.family not in VIEW_FAMILIES:
        return
    if views.global_crops < 1 or views.local_crops < 0 or views.global_crops + views.local_crops < 2:
        crops = f"{views.global_crops} and {views.local_crops}"
        raise ConfigError(f"{where}: views.global_crops must be at least 1, and with views.local_crops at least 2; got {crops}")
    if config.model.family == "vicreg" and (views.global_crops, views.local_crops) != (2, 0):
        raise ConfigError(f"{where}: VICReg compares two views; set views.global_crops = 2 and views.local_crops = 0")
    if not 0.0 < scale[0] <= scale[1] <= 1.0:
        raise ConfigError(f"{where}: views.local_scale must satisfy 0 < low <= high <= 1; got {scale}")
    if views.local_crops and views.local_size % config.model.patch_size:
        raise ConfigError(
            f"{where}: views.local_size must be a multiple of model.patch_size = {config.model.patch_size}; "
            f"got {views.local_size}"
        )
    for name in ("jitter", "blur", "solarize", "jitter_probability", "grayscale"):
        value = getattr(views, name)
        if not all(0.0 <= entry <= 1.0 for entry in (value if isinstance(value, tuple) else (value,))):
            raise ConfigError(f"{where}: views.{name} must lie in [0, 1]; got {value}")


def changed(config: Config, **run: Any) -> Config:
    """The configuration with other values in its table `run`.

    >>> changed(load_config("ijepa_tiny"), seed=7).run.seed
    7
    """
    return replace(config, run=replace(config.run, **run))

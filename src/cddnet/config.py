"""Files that people write, checked: training recipes and patient splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from cddnet.errors import CddnetError
from cddnet.files import read_text

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


LONGEST_TEXT, DEEPEST, MOST_VALUES = 1 << 20, 20, 200_000
LONGEST_NUMBER = 64
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class ConfigError(CddnetError):
    """A configuration file that does not say what it must."""


class PatientSplit(BaseModel, frozen=True, extra="forbid"):
    """Patients and their series folders, relative to the data folder; no patient on two sides."""

    collections: tuple[str, ...] = Field(description="licence and source of the images")
    train: dict[str, tuple[str, ...]] = Field(description="patient -> series folders")
    validation: dict[str, tuple[str, ...]] = Field(description="for choices")
    test: dict[str, tuple[str, ...]] = Field(description="for the final figures, no choice")
    cut: tuple[str, ...] = Field(
        (), description="patients whose slices cut the body: texture is right, depth is not"
    )

    @model_validator(mode="after")
    def _sides_are_apart(self) -> PatientSplit:
        sides = (self.train, self.validation, self.test)
        patients = [patient for side in sides for patient in side]
        folders = [folder for side in sides for entry in side.values() for folder in entry]
        for values in (patients, folders):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"on two sides of the split or listed twice: {', '.join(twice)}")
        unknown = sorted(set(self.cut) - set(patients))
        if unknown:
            raise ValueError(f"cut names patients that are on no side: {', '.join(unknown)}")
        return self


class LossWeights(BaseModel, frozen=True, extra="forbid"):
    """Of the methods that compare with the full dose pixel by pixel."""

    error: Literal["charbonnier", "mse", "l1"] = Field(
        "charbonnier", description="of the image; charbonnier relative to the inserted noise"
    )
    image: float = Field(1.0, ge=0, description="error of the restored image")
    local_mean: float = Field(0.5, ge=0, description="error of means over 16 pixels: keeps HU true")
    depth: float = Field(0.01, ge=0, description="error of the estimated radiological depth")
    lesion_bias: float = Field(
        0.0, ge=0, description="square of the mean share of contrast that inserted lesions lose"
    )
    lesion: float = Field(
        0.0, ge=0, description="error of means over 5 pixels within inserted lesions"
    )


class NoiseRange(BaseModel, frozen=True, extra="forbid"):
    """What is drawn at random for each slice. Ranges around the calibrated scanner."""

    dose_fraction: tuple[float, float] = Field((0.1, 0.6), description="log-uniform")
    own_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="slices given a fraction of their series' own dose, with its kernel; the "
        "others of the calibrated scanner's",
    )
    full_dose_share: float = Field(0.02, ge=0, le=1, description="slices left without added noise")
    photons: tuple[float, float] = Field((0.6, 1.5), description="times the calibrated flux")
    electronic_std: tuple[float, float] = Field((5.0, 15.0), description="photons per reading")
    soft_cutoff_per_mm: tuple[float, float] = Field((0.55, 1.0), description="soft kernels")
    sharp_cutoff_per_mm: tuple[float, float] = Field((1.2, 1.9), description="sharp kernels")
    sharp_boost: tuple[float, float] = Field((0.0, 0.3), description="edge boost, sharp kernels")
    sharp_share: float = Field(0.25, ge=0, le=1, description="slices given a sharp kernel")
    modulation: tuple[float, float] = Field((0.0, 0.6), description="tube-current exponent")
    bowtie_ratio: tuple[float, float] = Field((3.0, 10.0), description="centre over edge")


class LesionStratum(BaseModel, frozen=True, extra="forbid"):
    """Lesions of one kind; the bias of each kind counts on its own."""

    diameter_mm: tuple[float, float]
    contrast_hu: tuple[float, float] = Field(description="of either sign")


class LesionRange(BaseModel, frozen=True, extra="forbid"):
    """Lesions put into the slices that are learned from, low and full dose alike."""

    per_slice: int = Field(0, ge=0, description="at most; 0: none")
    edge_mm: tuple[float, float] = Field((0.3, 0.9), description="standard deviation of the blur")
    strata: tuple[LesionStratum, ...] = Field(
        (
            LesionStratum(diameter_mm=(2.5, 5.0), contrast_hu=(20.0, 60.0)),
            LesionStratum(diameter_mm=(4.0, 8.0), contrast_hu=(12.0, 40.0)),
            LesionStratum(diameter_mm=(8.0, 14.0), contrast_hu=(6.0, 25.0)),
        ),
        min_length=1,
    )


class TrainConfig(BaseModel, frozen=True, extra="forbid"):
    """A training recipe; configs/train_cddnet.yaml is the one of the shipped network."""

    model: str = Field("cddnet", description="a file name in models/")
    options: dict[str, bool | int | float | str] = Field({}, description="options of the model")
    start: str | None = Field(
        None, description="weights to fine-tune: a shipped name or a .safetensors file"
    )
    method: str = Field("supervised", description="a file name in training/methods/")
    method_options: dict[str, Any] = Field({}, description="options of the method, if it has any")
    split: str | None = Field(
        None, description="patient split, relative to the recipe; a prepared set has its own"
    )
    steps: int = Field(12_000, gt=0, description="training steps")
    crop: int = Field(256, gt=0, multiple_of=8, description="pixels per side")
    crops_per_slice: int = Field(2, gt=0, description="crops taken of one noisy slice")
    slices_per_step: int = Field(2, gt=0, description="noisy slices in one step, all processes")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW at its largest")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of AdamW")
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="of the rate; cosine: warm-up over a hundredth, down to a hundredth"
    )
    clip: float = Field(1.5, ge=0, description="gradients, times their usual norm; 0: never")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights")
    give_up_after: int = Field(
        50, gt=0, description="steps in a row with a gradient that is not finite"
    )
    precision: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto", description="auto: bfloat16 in the networks where the hardware has it"
    )
    validate_every: int = Field(1000, gt=0, description="steps between validations")
    validation_slices: int = Field(4, gt=0, description="of each patient, at most, evenly chosen")
    checkpoint_every: int = Field(500, gt=0, description="steps between checkpoints")
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="the longest time without one, however slow the steps are"
    )
    log_every: int = Field(100, gt=0, description="steps between lines of the log")
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is one")
    threads: int = Field(1, gt=0, description="of the network on a processor")
    workers: int = Field(
        1, ge=0, description="processes that make noise; 0: none but the network's"
    )
    noise_folder: Path | None = Field(
        None, description="keeps noisy slices, 2 MB each, for other runs with the same noise"
    )
    tensorboard: bool = Field(False, description="curves and pictures besides the log")
    loss: LossWeights = LossWeights()
    noise: NoiseRange = NoiseRange()
    lesions: LesionRange = LesionRange()
    validation_dose: Literal["calibrated", "own"] = Field(
        "calibrated", description="validate at a quarter of the calibrated or the series' own dose"
    )
    cut_bodies: bool = Field(
        True, description="learn also from patients whose slices cut the body, by the split"
    )
    depth_target: Literal["radiological", "euclidean", "shuffled"] = Field(
        "radiological", description="what the depth is to be; the other two are for ablations"
    )

    @model_validator(mode="after")
    def _lesions_where_needed(self) -> TrainConfig:
        for name in ("lesion", "lesion_bias"):
            if getattr(self.loss, name) and not self.lesions.per_slice:
                raise ValueError(f"loss.{name} needs lesions; set lesions.per_slice, such as 40")
        return self

    def decisive(self) -> dict[str, Any]:
        """What decides the weights: everything but speed and record, as JSON holds it."""
        return self.model_dump(mode="json", exclude=_SPEED_AND_RECORD)


_SPEED_AND_RECORD = {
    "checkpoint_every",
    "checkpoint_minutes",
    "log_every",
    "device",
    "threads",
    "workers",
    "noise_folder",
    "tensorboard",
}


Checked = TypeVar("Checked", bound=BaseModel)


def load_config(path: Path, kind: type[Checked], overrides: Sequence[str] = ()) -> Checked:
    """Read a YAML file into its checked form.

    overrides: "key=value" or "key.key=value", the value in YAML, in place of what the file says.
    Raises: ConfigError naming every wrong key, and the nearest right one.
    """
    return checked(overridden(read_yaml(path), overrides), kind, str(path))


def read_yaml(path: Path) -> object:
    """What a YAML file holds, not checked.  Raises ConfigError where it cannot be read."""
    try:
        return _values_of(read_text(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: cannot be read, because it is no text in UTF-8 or UTF-16; save it as UTF-8."
        ) from error
    except Exception as error:
        # The library also lets out what its own conversions raise, as for the date 2001-99-99.
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error


def _values_of(text: str) -> object:
    """The values of a YAML text.  Raises ConfigError where they would fill memory or time."""
    if len(text) > LONGEST_TEXT:
        raise ConfigError(f"has {len(text)} characters, expected at most {LONGEST_TEXT}.")
    count, sizes = 0, dict[str, int]()
    begun: list[tuple[str, int]] = []
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            sizes[anchor] = count - before
        elif isinstance(event, yaml.AliasEvent):
            # What is not whole yet would hold itself.
            count += sizes.get(event.anchor or "", MOST_VALUES)
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            if isinstance(event, yaml.CollectionStartEvent):
                begun.append((event.anchor or "", count))
            else:
                sizes[event.anchor or ""] = 1
        if len(begun) > DEEPEST or count >= MOST_VALUES:
            raise ConfigError(
                f"is nested more than {DEEPEST} levels deep, or holds itself or more than "
                f"{MOST_VALUES} values; write it flatter and without aliases (*)."
            )
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """YAML in which 1:30 is a text, and no number is long enough to take time.

    YAML 1.1 takes 1:30 for 90: a port or a time of the day would silently be another one.
    """

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """A whole number of at most `LONGEST_NUMBER` characters."""
        return self.construct_yaml_int(_short(node))

    def construct_float(self, node: yaml.ScalarNode) -> float:
        """A number of at most `LONGEST_NUMBER` characters."""
        return self.construct_yaml_float(_short(node))


def _short(node: yaml.ScalarNode) -> yaml.ScalarNode:
    if len(node.value) > LONGEST_NUMBER:
        raise ConfigError(
            f"line {node.start_mark.line + 1} holds a number of {len(node.value)} characters, "
            f"expected at most {LONGEST_NUMBER}; put a text that looks like a number in quotes."
        )
    return node


# Those of YAML 1.1 without numbers to the base of 60.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (_INT, _FLOAT)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT,
    re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"(?:(?:[-+]?[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor(_INT, _Loader.construct_int)
_Loader.add_constructor(_FLOAT, _Loader.construct_float)


def overridden(values: object, overrides: Sequence[str]) -> object:
    """Values with those of "key=value" texts in their place; see `load_config`."""
    for override in overrides:
        values = _overridden(values, override)
    return values


def checked(values: object, kind: type[Checked], where: str) -> Checked:
    """Values in their checked form.  Raises ConfigError naming every wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = (
            f"{'.'.join(str(part) for part in item['loc']) or 'file'}: {_reason(item, kind)}"
            for item in error.errors()
        )
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


def nearest(word: str, known: Iterable[str]) -> str:
    """The question after a wrong name, empty if nothing is near."""
    close = get_close_matches(word, tuple(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _reason(item: ErrorDetails, kind: type[BaseModel]) -> str:
    if item["type"] != "extra_forbidden":
        return item["msg"]
    *above, key = item["loc"]
    within: Any = kind
    for part in above:
        # A number is a place in a list of parts that are alike.
        inner = get_args(within)[0] if isinstance(part, int) else within.model_fields[part]
        within = getattr(inner, "annotation", inner)
    return f"there is no such key{nearest(str(key), within.model_fields)}"


def _overridden(values: object, override: str) -> object:
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as steps=100.")
    try:
        value = _values_of(text)
    except Exception as error:
        raise ConfigError(f"--set {override}: the value is no YAML: {error}") from error
    if not isinstance(values, dict):
        return values
    whole = dict(values)
    *above, key = name.split(".")
    part = whole
    for step in above:
        held = part.get(step)
        part[step] = dict(held) if isinstance(held, dict) else {}
        part = part[step]
    part[key] = value
    return whole

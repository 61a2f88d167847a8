"""The published project's `training.yml` as a recipe of ours, and what became of each of its keys.

What the published code does with a key was read in its train.py; it takes several keys and never
looks at them. Keys that related projects have are taken too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cddnet.config import ConfigError, TrainConfig, checked, nearest, overridden, read_yaml
from cddnet.training.store import PreparedSet, is_prepared

# What its config.py assumes where the file says nothing.
_DEFAULTS = {"OPTIM.BATCH_SIZE": 1, "OPTIM.NUM_EPOCHS": 100, "OPTIM.LR_INITIAL": 2e-4}

_CONSTANTS: dict[str, object] = {
    "model": "cddnet_published",
    "method": "cddnet_literal",
    # It resizes every training image to 512 x 512 and takes it whole.
    "crop": 512,
    "crops_per_slice": 1,
    "betas": [0.9, 0.999],
    "weight_decay": 1e-8,
    "schedule": "cosine",
    "clip": 0.0,
    "ema": 0.0,
    "precision": "float32",
    "seed": 1234,
}

# Of the rate, for the depth estimator.
_ESTIMATOR_SHARE = 0.1

_NEVER_READ = "the published code ignores it too"
_IGNORED_THERE_TOO = {
    "VERBOSE": f"{_NEVER_READ}.",
    "MODEL.MODE": f"{_NEVER_READ}: it is copied and never looked at again.",
    "MODEL.SESSION": f"{_NEVER_READ}: it is copied and never looked at again.",
    "OPTIM.NEPOCH_DECAY": f"{_NEVER_READ}: its rate falls by a cosine over all epochs.",
    "OPTIM.LR_MIN": f"{_NEVER_READ}: its cosine ends at 1e-6, a constant in the code.",
    "OPTIM.BETA1": f"{_NEVER_READ}: its Adam has the constants 0.9 and 0.999.",
    "TRAINING.VAL_AFTER_EVERY": f"{_NEVER_READ}: it validates about four times per epoch.",
    "TRAINING.TRAIN_PS": f"{_NEVER_READ}: it trains on whole images resized to 512 x 512.",
    "TRAINING.VAL_PS": f"{_NEVER_READ}: it validates on whole images.",
    "TRAINING.SAVE_IMAGES": f"{_NEVER_READ}.",
    "TRAINING.SAVE_AE_DIR": f"{_NEVER_READ}.",
    "TRAINING.TRAIN_DIR_RLE": f"{_NEVER_READ}.",
    "TRAINING.VAL_DIR_RLE": f"{_NEVER_READ}.",
}

_TRAIN_DIR = (
    "not opened; run cddnet prepare on it (IN/ and GT/, pairs by name) and give the result as "
    "--data."
)
_VAL_DIR = "not opened; cddnet prepare takes validation patients from the set it is given."
_WITHOUT_MEANING_HERE = {
    "GPU": "has no meaning here; `device` chooses, and torchrun starts one process per card.",
    "TRAINING.RESUME": (
        "has no meaning here; the same command goes on with an unfinished run. The published code "
        "goes on from its best epoch, not its last."
    ),
    "TRAINING.SAVE_DIR": "has no meaning here; give --out.",
    "TRAINING.TRAIN_DIR": _TRAIN_DIR,
    "TRAINING.TRAIN_DIR_KCL": _TRAIN_DIR,
    "TRAINING.VAL_DIR": _VAL_DIR,
    "TRAINING.VAL_DIR_KCL": _VAL_DIR,
}

_KNOWN = (*_DEFAULTS, *_IGNORED_THERE_TOO, *_WITHOUT_MEANING_HERE)
_SECTIONS = {key.split(".")[0] for key in _KNOWN if "." in key}


class Translation(NamedTuple):
    """values: of a `TrainConfig`.  told: a sentence for each key of the file, and each default."""

    values: dict[str, object]
    told: tuple[str, ...]


class Recipe(NamedTuple):
    """told: of a published training.yml, what became of its keys."""

    config: TrainConfig
    told: tuple[str, ...] = ()


def load_recipe(path: Path, data: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of ours, or a published training.yml for the prepared set `data`.

    overrides: of our keys, as for `load_config`.
    Raises: ConfigError for what is wrong in it; FormatError where the set cannot be read.
    """
    told: tuple[str, ...] = ()
    values = read_yaml(path)
    if isinstance(values, Mapping) and is_published(values):
        values, told = translated(values, _training_slices(path, data), str(path))
    return Recipe(checked(overridden(values, overrides), TrainConfig, str(path)), told)


def _training_slices(path: Path, data: Path) -> int:
    if not is_prepared(data):
        raise ConfigError(
            f"{path}: a published training.yml needs a prepared set, and {data} is none; run "
            "cddnet prepare on the folder of its IN/ and GT/ first."
        )
    return sum(item.shape[0] for item in PreparedSet.open(data).manifest.of_side("train"))


def is_published(values: object) -> bool:
    """Whether a parsed file is a published training.yml: its keys are capitals, ours never are."""
    return isinstance(values, Mapping) and any(str(key).isupper() for key in values)


def translated(values: Mapping[object, object], slices: int, where: str) -> Translation:
    """Our recipe for a published training.yml.

    slices: of the training side, of which it takes each once per epoch, the last batch cut short.
    Raises: ConfigError naming every unknown key and the nearest known one, or a wrong value.
    """
    found = dict(_flat(values, where))
    _require_known(found, where)
    given = _DEFAULTS | {key: value for key, value in found.items() if key in _DEFAULTS}
    batch, epochs = (
        _whole(given[key], f"{where}: {key}") for key in ("OPTIM.BATCH_SIZE", "OPTIM.NUM_EPOCHS")
    )
    rate = _rate(given["OPTIM.LR_INITIAL"], f"{where}: OPTIM.LR_INITIAL")
    per_epoch = math.ceil(slices / batch)
    recipe = _CONSTANTS | {
        "slices_per_step": batch,
        "steps": epochs * per_epoch,
        "validate_every": per_epoch,
        "learning_rate": rate,
        "method_options": {"estimator_rate": rate * _ESTIMATOR_SHARE},
    }
    used = {
        "OPTIM.BATCH_SIZE": (
            f"slices_per_step {batch}, crops of 512 x 512, which are flipped and turned; the "
            "published code resizes to 512 x 512 and does neither."
        ),
        "OPTIM.NUM_EPOCHS": (
            f"{epochs} epochs of {per_epoch} steps ({slices} slices, {batch} in each), "
            f"{epochs * per_epoch} steps."
        ),
        "OPTIM.LR_INITIAL": (
            f"learning_rate {rate:g}, a tenth of it for the depth estimator, falling by a cosine."
        ),
    }
    told = [f"{key} (not given, the published default): {used[key]}" for key in used.keys() - found]
    reasons = {key: f"used as {text}" for key, text in used.items()}
    reasons |= _IGNORED_THERE_TOO | _WITHOUT_MEANING_HERE
    return Translation(recipe, (*(f"{key}: {reasons[key]}" for key in found), *sorted(told)))


def _flat(values: Mapping[object, object], where: str) -> Iterator[tuple[str, object]]:
    """Keys with their section, such as OPTIM.BATCH_SIZE."""
    for key, value in values.items():
        if str(key) not in _SECTIONS:
            yield str(key), value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", held) for inner, held in value.items())
        elif value is not None:
            raise ConfigError(f"{where}: {key}: expected keys below it, found {value!r}.")


def _require_known(found: Mapping[str, object], where: str) -> None:
    unknown = [key for key in found if key not in _KNOWN]
    if unknown:
        reasons = "; ".join(
            f"{key}: a published training.yml has no such key{nearest(key.upper(), _KNOWN)}"
            for key in unknown
        )
        raise ConfigError(f"{where}: {reasons}")


def _whole(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{where}: expected a whole number above 0, found {value!r}.")
    return value


def _rate(value: object, where: str) -> float:
    """YAML takes 1e-3, as the published file writes it, for a text: it lacks the point."""
    try:
        rate = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise ConfigError(f"{where}: expected a number above 0, found {value!r}.")
    return rate

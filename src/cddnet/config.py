"""Files that people write, checked: training recipes and patient splits."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from cddnet.errors import CddnetError


class ConfigError(CddnetError):
    """A configuration file that does not say what it must."""


class PatientSplit(BaseModel, frozen=True, extra="forbid"):
    """Patients and their series folders, relative to the data folder; no patient on two sides."""

    collections: tuple[str, ...] = Field(description="licence and source of the images")
    train: dict[str, tuple[str, ...]] = Field(description="patient -> series folders")
    validation: dict[str, tuple[str, ...]] = Field(description="for choices")
    test: dict[str, tuple[str, ...]] = Field(description="for the final figures, no choice")

    @model_validator(mode="after")
    def _sides_are_apart(self) -> PatientSplit:
        sides = (self.train, self.validation, self.test)
        patients = [patient for side in sides for patient in side]
        folders = [folder for side in sides for entry in side.values() for folder in entry]
        for values in (patients, folders):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"on two sides of the split or listed twice: {', '.join(twice)}")
        return self


class LossWeights(BaseModel, frozen=True, extra="forbid"):
    image: float = Field(1.0, ge=0, description="Charbonnier of the restored image")
    local_mean: float = Field(0.5, ge=0, description="error of means over 16 pixels: keeps HU true")
    depth: float = Field(0.01, ge=0, description="error of the estimated radiological depth")


class NoiseRange(BaseModel, frozen=True, extra="forbid"):
    """What is drawn at random for each slice. Ranges around the calibrated scanner."""

    dose_fraction: tuple[float, float] = Field((0.1, 0.6), description="log-uniform")
    full_dose_share: float = Field(0.02, ge=0, le=1, description="slices left without added noise")
    photons: tuple[float, float] = Field((0.6, 1.5), description="times the calibrated flux")
    electronic_std: tuple[float, float] = Field((5.0, 15.0), description="photons per reading")
    soft_cutoff_per_mm: tuple[float, float] = Field((0.55, 1.0), description="soft kernels")
    sharp_cutoff_per_mm: tuple[float, float] = Field((1.2, 1.9), description="sharp kernels")
    sharp_boost: tuple[float, float] = Field((0.0, 0.3), description="edge boost, sharp kernels")
    sharp_share: float = Field(0.25, ge=0, le=1, description="slices given a sharp kernel")
    modulation: tuple[float, float] = Field((0.0, 0.6), description="tube-current exponent")
    bowtie_ratio: tuple[float, float] = Field((3.0, 10.0), description="centre over edge")


class TrainConfig(BaseModel, frozen=True, extra="forbid"):
    """A training recipe; configs/train_cddnet.yaml is the one of the shipped network."""

    model: str = Field("cddnet", description="a file name in models/")
    options: dict[str, int | float | str] = Field({}, description="options of the model")
    split: str | None = Field(
        None, description="patient split, relative to the recipe; a prepared set has its own"
    )
    steps: int = Field(12_000, gt=0, description="optimiser steps")
    crop: int = Field(256, multiple_of=64, description="pixels per side")
    crops_per_slice: int = Field(2, gt=0, description="crops taken of one noisy slice")
    slices_per_step: int = Field(2, gt=0, description="noisy slices in one step")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW, cosine to a hundredth")
    weight_decay: float = Field(1e-4, ge=0)
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights")
    validate_every: int = Field(1000, gt=0, description="steps between validations")
    seed: int = Field(0, ge=0)
    threads: int = Field(1, gt=0, description="of the network; the noise has a process of its own")
    loss: LossWeights = LossWeights()
    noise: NoiseRange = NoiseRange()


Checked = TypeVar("Checked", bound=BaseModel)


def load_config(path: Path, kind: type[Checked]) -> Checked:
    """Read a YAML file into its checked form.  Raises ConfigError naming every wrong key."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = (
            f"{'.'.join(str(part) for part in item['loc']) or 'file'}: {item['msg']}"
            for item in error.errors()
        )
        raise ConfigError(f"{path}: " + "; ".join(lines)) from error

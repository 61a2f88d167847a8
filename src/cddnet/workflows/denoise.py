"""Denoise: read_volume -> to_network -> network -> to_hu -> write_volume."""

# Shapes: D slice, H row, W column; tensors (B, C, H, W).

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cddnet import __version__
from cddnet.errors import CddnetError, FormatError, ModelError
from cddnet.formats import raster, read_volume, write_volume
from cddnet.intensity.hu import air_for_padding
from cddnet.intensity.normalise import to_hu, to_network
from cddnet.models._cards import Card
from cddnet.runtime import store
from cddnet.volume import CTVolume, Derivation, Mask, SliceHU
from cddnet.workflows._pictures import picture_names, sides, write_named

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class DenoiseOptions:
    """model: a shipped name or a weights file.  strength: 0 (the source) to 1 (the network), None
    for the model card's default.  device: auto, cpu, cuda or mps.  series: of a folder that holds
    several.  window_hu: of 8- or 16-bit pictures.  image_type: SECONDARY or PRIMARY.
    """

    model: str | Path = "default"
    strength: float | None = None
    device: str = "auto"
    series: str | None = None
    window_hu: tuple[float, float] | None = None
    image_type: str = "SECONDARY"


def denoise_file(
    source: Path, target: Path, options: DenoiseOptions, progress: Progress
) -> CTVolume:
    """Read a series, denoise it slice by slice, write it; returns the denoised volume (lazy).

    source: `IN/` is taken of a folder that holds pictures in `IN/` and none itself.
    target: a new folder (DICOM; pictures keep their names, as PNG, or TIFF if they hold HU) or a
    file.  progress: called with (slices done, slices in all).
    """
    if target.suffix.lower() in raster.JPEG_SUFFIXES:
        raise FormatError(
            f"{target}: JPEG would change the denoised values; write .png, or give a folder for "
            "PNG of the same names."
        )
    layout = sides(source)
    source = layout.low_dose if layout else source
    volume = read_volume(source, series=options.series, window_hu=options.window_hu)
    denoised = _denoised(volume, options)
    if layout and layout.full_dose:
        note = "only IN was denoised; cddnet evaluate compares with GT"
        denoised = replace(denoised, notes=(*denoised.notes, note))
    names = () if target.suffix else picture_names(source, volume)
    if names:
        window_hu = None if raster.WINDOW_UNUSED in volume.notes else options.window_hu
        write_named(_watched(denoised, progress), target, names, window_hu)
    else:
        write_volume(_watched(denoised, progress), target, window_hu=options.window_hu)
    return denoised


def denoise_volume(
    volume: CTVolume, model: str | Path = "default", strength: float | None = None
) -> CTVolume:
    """The volume with denoised slices, computed as they are read; the input is not changed.

    model: a shipped name or a weights file; strength: 0 to 1, None for the model card's default.
    Raises: ModelError for an unknown model or a strength outside 0 to 1.
    """
    return _denoised(volume, DenoiseOptions(model=model, strength=strength))


def denoise_hu(
    hu: NDArray[np.float32],
    spacing_mm: tuple[float, float, float],
    model: str | Path = "default",
    strength: float | None = None,
) -> NDArray[np.float32]:
    """Denoise an array in HU.

    Parameters: hu (D, H, W) or (H, W) float32, not modified; spacing_mm (slice, row, column).
    Returns: an array of the same shape, float32 HU.
    Raises: CddnetError for another shape, type or values that are not finite.
    """
    if hu.dtype != np.float32:
        raise CddnetError(f"hu is {hu.dtype}, expected float32 in HU; convert it first.")
    if not np.isfinite(hu).all():
        raise CddnetError("hu holds values that are not finite; replace them, with -1000 for air.")
    volume = CTVolume.from_hu(hu, spacing_mm)
    return denoise_volume(volume, model, strength).hu.reshape(hu.shape)


def _denoised(volume: CTVolume, options: DenoiseOptions) -> CTVolume:
    network, card = store.load(options.model)
    strength = card.strength if options.strength is None else options.strength
    if not 0 <= strength <= 1:
        raise ModelError(f"strength is {strength}, expected 0 (source) to 1 (network).")
    device = choose_device(options.device)
    network.to(device)

    def read_slice(index: int) -> SliceHU:
        source = volume.read_slice(index)
        if strength == 0:
            return source
        return denoise_slice(source, volume.padding(index), network, strength=strength)

    return volume.derived(read_slice, _step(card, strength, device, options.image_type))


def denoise_slice(hu: SliceHU, padding: Mask, network: nn.Module, *, strength: float) -> SliceHU:
    """One slice (H, W) in HU; padding is air to the network and comes back as it was."""
    device = next((weights.device for weights in network.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        image = torch.from_numpy(air_for_padding(hu, padding))[None, None].to(device)
        restored = to_hu(network(to_network(image)).image)[0, 0].cpu().numpy()
    blended = hu + np.float32(strength) * (restored - hu)
    result: SliceHU = np.where(padding, hu, blended)
    return result


def _step(card: Card, strength: float, device: str, image_type: str) -> Derivation:
    percent = f"{strength:.0%}"
    return Derivation(
        label=f"{card.name} {percent}",
        description=(
            f"Low-dose CT denoising, network {card.name}, strength {percent}, "
            f"weights SHA-256 {card.sha256[:16]}, cddnet {__version__}. Research use only."
        ),
        parameters=(
            ("device", device),
            ("engine", _engine(device)),
            ("model", card.name),
            ("precision", "float32"),
            ("strength", repr(float(strength))),
        ),
        version=__version__,
        weights_sha256=card.sha256,
        image_type=image_type,
    )


def _engine(device: str) -> str:
    """What decides the last bit of a sum: the library's version and the processor's units."""
    units = torch.backends.cpu.get_cpu_capability() if device == "cpu" else device
    return f"torch {torch.__version__} {units}"


def choose_device(name: str) -> str:
    """cpu, cuda or mps for a name or auto.  Raises ModelError for one this machine lacks."""
    found = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return "cuda" if found["cuda"] else "cpu"
    if not found.get(name, False):
        usable = ", ".join(key for key, value in found.items() if value)
        raise ModelError(f"device '{name}' is not usable on this machine; choose auto, {usable}.")
    return name


def _watched(volume: CTVolume, progress: Progress) -> CTVolume:
    def read_slice(index: int) -> SliceHU:
        hu = volume.read_slice(index)
        progress(index + 1, volume.shape[0])
        return hu

    return replace(volume, read_slice=read_slice)

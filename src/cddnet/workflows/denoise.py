"""Denoise: read_volume -> to_network -> network -> to_hu -> write_volume."""

# Shapes: B batch, D slice, H row, W column; tensors (B, C, H, W).

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet import __version__
from cddnet.errors import CddnetError, FormatError, ModelError
from cddnet.formats import raster, read_volume, write_volume
from cddnet.formats.dicom import DicomHeaders
from cddnet.intensity.hu import air_for_padding
from cddnet.intensity.normalise import to_hu, to_network
from cddnet.models._cards import Card, read_card
from cddnet.runtime import store
from cddnet.runtime.engines import Described, Engine, device_for, open_engine
from cddnet.runtime.streaming import InOrder, ahead, batches
from cddnet.volume import CTVolume, Derivation, Mask, SliceHU
from cddnet.workflows._pictures import picture_names, sides, write_named
from cddnet.workflows.fitness import admitted, forced

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[int, int], None]

# Slices read before the network wants them, and batches denoised before the writer does.
_READ_AHEAD = 4
_DENOISED_AHEAD = 2
# Decoded slices that wait for a writer, which may not be one that asks for them.
_MOST_KEPT = 64


@dataclass(frozen=True, kw_only=True)
class DenoiseOptions:
    """model: a shipped name or a weights file.  strength: 0 (the source) to 1 (the network), None
    for the model card's default.  device: auto, cpu, cuda or mps.  series: of a folder that holds
    several.  window_hu: of 8- or 16-bit pictures.  image_type: SECONDARY or PRIMARY.  engine: auto
    or a file of `runtime.engines`.  threads: None for the cores there are, at most 8.  force: also
    what the fitness check refuses.  forced: kinds that an earlier check refused; None: check now.
    """

    model: str | Path = "default"
    strength: float | None = None
    device: str = "auto"
    series: str | None = None
    window_hu: tuple[float, float] | None = None
    image_type: str = "SECONDARY"
    engine: str = "auto"
    threads: int | None = None
    force: bool = False
    forced: str | None = None


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
    found = read_volume(source, series=options.series, window_hu=options.window_hu)
    volume, plan = _decoded_once(found), _plan(options)
    denoised = _checked(found, plan, options)
    if layout and layout.full_dose:
        note = "only IN was denoised; cddnet evaluate compares with GT"
        denoised = replace(denoised, notes=(*denoised.notes, note))
    names = () if target.suffix else picture_names(source, volume)
    with closing(_stream(volume, plan)) as stream:
        read_slice = InOrder(stream, denoised.read_slice)
        streamed = replace(denoised, read_slice=read_slice, headers=volume.headers)
        streamed = _watched(streamed, progress)
        if names:
            window_hu = None if raster.WINDOW_UNUSED in volume.notes else options.window_hu
            write_named(streamed, target, names, window_hu)
        else:
            write_volume(streamed, target, window_hu=options.window_hu)
    return denoised


def denoise_volume(
    volume: CTVolume, model: str | Path = "default", strength: float | None = None
) -> CTVolume:
    """The volume with denoised slices, computed as they are read; the input is not changed.

    model: a shipped name or a weights file; strength: 0 to 1, None for the model card's default.
    Whether it is fit for that, `cddnet.workflows.fitness.examine` says, which is not asked here.
    Raises: ModelError for an unknown model or a strength outside 0 to 1.
    """
    return denoise_with(volume, DenoiseOptions(model=model, strength=strength, forced=""))


def denoise_with(volume: CTVolume, options: DenoiseOptions) -> CTVolume:
    """As `denoise_volume`, with all options but those of reading and writing.

    Raises: UnfitError where the fitness check refuses it and nothing forces it; ModelError also for
    an engine or device that cannot run here.
    """
    return _checked(volume, _plan(options), options)


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


class _Plan(NamedTuple):
    """What is done to every slice.  step: the record of it."""

    engine: Engine
    strength: float
    step: Derivation


class _Source(NamedTuple):
    """A slice as read: hu and padding (H, W)."""

    hu: SliceHU
    padding: Mask


def _plan(options: DenoiseOptions) -> _Plan:
    weights = store.find(options.model)
    card = read_card(weights)
    strength = card.strength if options.strength is None else options.strength
    if not 0 <= strength <= 1:
        raise ModelError(f"strength is {strength}, expected 0 (source) to 1 (network).")
    engine = open_engine(
        weights, card, name=options.engine, device=options.device, threads=options.threads
    )
    return _Plan(engine, strength, _step(card, strength, engine.described, options.image_type))


def _checked(volume: CTVolume, plan: _Plan, options: DenoiseOptions) -> CTVolume:
    """Denoised, if the fitness check lets it or is overruled; its notes, and that, go along."""
    if options.forced is not None:
        return _denoised(volume, plan._replace(step=forced(plan.step, options.forced)))
    fitness = admitted(_decoded_once(volume), force=options.force)
    notes = fitness.notes
    if fitness.refusal:
        notes = (f"forced, although {fitness.refusal}", *notes)
    marked = _denoised(volume, plan._replace(step=forced(plan.step, fitness.refused_kinds)))
    return replace(marked, notes=(*marked.notes, *notes))


def _denoised(volume: CTVolume, plan: _Plan) -> CTVolume:
    def read_slice(index: int) -> SliceHU:
        return _restored([_read(volume, index)], plan)[0]

    return volume.derived(read_slice, plan.step)


def _stream(volume: CTVolume, plan: _Plan) -> Generator[SliceHU]:
    """Denoised slices in order; reading, network and whoever takes them work at the same time."""
    reads = (partial(_read, volume, index) for index in range(volume.shape[0]))
    with closing(ahead(reads, _READ_AHEAD + plan.engine.batch)) as sources:
        jobs = (partial(_restored, batch, plan) for batch in batches(sources, plan.engine.batch))
        with closing(ahead(jobs, _DENOISED_AHEAD)) as restored:
            for slices in restored:
                yield from slices


def _read(volume: CTVolume, index: int) -> _Source:
    return _Source(volume.read_slice(index), volume.padding(index))


def _restored(sources: list[_Source], plan: _Plan) -> list[SliceHU]:
    """Slices of one size; padding is air to the network and comes back as it was."""
    if plan.strength == 0:
        return [source.hu for source in sources]
    images = np.stack([air_for_padding(*source) for source in sources])[:, None]
    restored = to_hu(plan.engine.run(to_network(images)))[:, 0]
    return [
        _blended(source, one, plan.strength) for source, one in zip(sources, restored, strict=True)
    ]


def _blended(source: _Source, restored: SliceHU, strength: float) -> SliceHU:
    blended = source.hu + np.float32(strength) * (restored - source.hu)
    result: SliceHU = np.where(source.padding, source.hu, blended)
    return result


def denoise_slice(hu: SliceHU, padding: Mask, network: nn.Module, *, strength: float) -> SliceHU:
    """One slice (H, W) in HU; padding is air to the network and comes back as it was."""
    import torch

    device = next((weights.device for weights in network.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        image = torch.from_numpy(air_for_padding(hu, padding))[None, None].to(device)
        restored = to_hu(network(to_network(image)).image)[0, 0].cpu().numpy()
    return _blended(_Source(hu, padding), restored, strength)


def choose_device(name: str) -> str:
    """cpu, cuda or mps for a name or auto.  Raises ModelError for one this machine lacks."""
    return device_for(name)


def _step(card: Card, strength: float, described: Described, image_type: str) -> Derivation:
    percent = f"{strength:.0%}"
    return Derivation(
        label=f"{card.name} {percent}",
        description=(
            f"Low-dose CT denoising, network {card.name}, strength {percent}, "
            f"weights SHA-256 {card.sha256[:16]}, cddnet {__version__}. Research use only."
        ),
        parameters=(
            ("device", described.device),
            ("engine", described.engine),
            ("model", card.name),
            ("precision", described.precision),
            ("strength", repr(float(strength))),
        ),
        version=__version__,
        weights_sha256=card.sha256,
        image_type=image_type,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _DecodedOnce(DicomHeaders):
    """Keeps what was decoded until the slice is written: its HU, its padding, then its bits."""

    kept: dict[int, tuple[int, NDArray[Any]]] = field(default_factory=dict)
    uses: int

    def read_stored(self, index: int) -> NDArray[Any]:
        left, stored = self.kept.pop(index, (self.uses, None))
        if stored is None:
            # Not super(): slots give the class another identity.
            stored = DicomHeaders.read_stored(self, index)
        if left > 1:
            self.kept[index] = left - 1, stored
            self.kept.pop(index - _MOST_KEPT, None)
        return stored


def _decoded_once(volume: CTVolume) -> CTVolume:
    """The volume with DICOM slices that are decoded once for all that is read of them in turn."""
    headers = volume.headers
    if not isinstance(headers, DicomHeaders):
        return volume
    padded = volume.read_padding is not None
    once = _DecodedOnce(frames=headers.frames, enhanced=headers.enhanced, uses=2 + padded)
    return replace(
        volume,
        headers=once,
        read_slice=once.read_hu,
        read_padding=once.read_padding if padded else None,
    )


def _watched(volume: CTVolume, progress: Progress) -> CTVolume:
    def read_slice(index: int) -> SliceHU:
        hu = volume.read_slice(index)
        progress(index + 1, volume.shape[0])
        return hu

    return replace(volume, read_slice=read_slice)

"""Denoise: read_volume -> to_network -> network -> to_hu -> write_volume.

Above 300 lines: the journey of a slice, in one file.
"""

# Shapes: B batch, D slice, H row, W column; tensors (B, C, H, W).

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cddnet import __version__
from cddnet.errors import CddnetError, FormatError, ModelError
from cddnet.formats import is_folder, raster, read_volume, write_volume
from cddnet.intensity.background import with_background
from cddnet.intensity.hu import air_for_padding
from cddnet.intensity.normalise import to_hu, to_network
from cddnet.models._cards import Card, read_card
from cddnet.runtime import store
from cddnet.runtime.engines import Described, Engine, device_for, open_engine
from cddnet.runtime.streaming import InOrder, ahead, batches
from cddnet.volume import CTVolume, Derivation, Mask, SliceHU
from cddnet.workflows._decoding import decoded_once
from cddnet.workflows._pictures import picture_names, sides, write_named
from cddnet.workflows.fitness import Fitness, admitted, forced, forced_notes

if TYPE_CHECKING:
    from torch import nn

    from cddnet.workflows._uncertainty_file import Judged
    from cddnet.workflows.uncertainty import Estimator

Progress = Callable[[int, int], None]
Made = TypeVar("Made")

# Slices read before the network wants them, and batches denoised before the writer does.
_READ_AHEAD = 4
_DENOISED_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class DenoiseOptions:
    """model: a shipped name or a weights file.  strength: 0 (the source) to 1 (the network), None
    for the model card's default.  device: auto, cpu, cuda or mps.  series: of a folder that holds
    several.  acquisition: of a series that holds several at its places.  window_hu: of 8- or 16-bit
    pictures.  image_type: SECONDARY or PRIMARY.  engine: auto or a file of `runtime.engines`.
    threads: None for the cores there are, at most 8.  force: also what the fitness check refuses.
    forced: kinds that an earlier check refused; None: check now.  uncertainty: a new file for the
    expected error of each pixel, of `denoise_file` alone.  created: the moment of creation for the
    headers, with a time zone; None: they do not say.
    """

    model: str | Path = "default"
    strength: float | None = None
    device: str = "auto"
    series: str | None = None
    acquisition: str | None = None
    window_hu: tuple[float, float] | None = None
    image_type: str = "SECONDARY"
    engine: str = "auto"
    threads: int | None = None
    force: bool = False
    forced: str | None = None
    uncertainty: Path | None = None
    created: datetime | None = None
    slice_axis: int | None = None
    """Axis of the slices (0, 1 or 2) in arrays that state no orientation."""


def denoise_file(
    source: Path, target: str | Path, options: DenoiseOptions, progress: Progress
) -> CTVolume:
    """Read a series, denoise it slice by slice, write it; returns the denoised volume (lazy).

    source: `IN/` is taken of a folder that holds pictures in `IN/` and none itself.
    target: a new folder (DICOM; pictures keep their names, as PNG, or TIFF if they hold HU) or a
    file; text that ends with / is a folder.  progress: called with (slices done, slices in all).
    """
    path = Path(target)
    layout = sides(source)
    source = layout.low_dose if layout else source
    with ThreadPoolExecutor(1) as thread:
        # To compile the network takes about as long as to look through a folder and judge it.
        opening = thread.submit(_plan, options)
        found = read_volume(
            source,
            series=options.series,
            window_hu=options.window_hu,
            acquisition=options.acquisition,
            slice_axis=options.slice_axis,
        )
        folder = is_folder(target, from_folder=found.headers is not None or source.is_dir())
        _require_lossless(path, folder)
        fitness = _fitness(found, options)
        volume, plan = decoded_once(found), opening.result()
    denoised = _checked(found, plan, options, fitness)
    if layout and layout.full_dose:
        note = "only IN was denoised; cddnet evaluate compares with GT"
        denoised = replace(denoised, notes=(*denoised.notes, note))
    estimator = _estimator(found, path, plan, options)
    if estimator:
        denoised = replace(denoised, notes=(*denoised.notes, *estimator.notes))
    names = picture_names(source, volume) if folder else ()
    with _opened(volume, denoised, plan, estimator) as stream:
        read_slice = InOrder(stream, denoised.read_slice)
        streamed = replace(denoised, read_slice=read_slice, headers=volume.headers)
        streamed = _watched(streamed, progress)
        if names:
            window_hu = None if raster.WINDOW_UNUSED in volume.notes else options.window_hu
            write_named(streamed, path, names, window_hu)
        else:
            write_volume(streamed, target, window_hu=options.window_hu)
    return denoised


def _require_lossless(path: Path, folder: bool) -> None:
    if not folder and path.suffix.lower() in raster.JPEG_SUFFIXES:
        raise FormatError(
            f"{path}: JPEG would change the denoised values; write .png, or give a folder for "
            "PNG of the same names."
        )


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
    return _checked(volume, _plan(options), options, _fitness(volume, options))


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
    volume = with_background(CTVolume.from_hu(hu, spacing_mm))
    return denoise_volume(volume, model, strength).hu.reshape(hu.shape)


class _Plan(NamedTuple):
    """What is done to every slice.  step: the record of it."""

    engine: Engine
    card: Card
    strength: float
    step: Derivation


class _Source(NamedTuple):
    """A slice as read: hu and padding (H, W), and its place in the series."""

    hu: SliceHU
    padding: Mask
    slice_index: int = 0


def _plan(options: DenoiseOptions) -> _Plan:
    weights = store.find(options.model)
    card = read_card(weights)
    strength = card.strength if options.strength is None else options.strength
    if not 0 <= strength <= 1:
        raise ModelError(f"strength is {strength}; give 0 (source) to 1 (network).")
    engine = open_engine(
        weights, card, name=options.engine, device=options.device, threads=options.threads
    )
    return _Plan(engine, card, strength, _step(card, strength, engine.described, options))


def _fitness(volume: CTVolume, options: DenoiseOptions) -> Fitness | None:
    """What the fitness check lets pass; None where an earlier one counts."""
    if options.forced is not None:
        return None
    return admitted(volume, force=options.force)


def _checked(
    volume: CTVolume, plan: _Plan, options: DenoiseOptions, fitness: Fitness | None
) -> CTVolume:
    """Denoised; the notes of the fitness check, and that it was overruled, go along."""
    if fitness is None:
        return _denoised(volume, plan._replace(step=forced(plan.step, options.forced or "")))
    notes = (*forced_notes(fitness.refusal), *fitness.notes)
    marked = _denoised(volume, plan._replace(step=forced(plan.step, fitness.refused_kinds)))
    return replace(marked, notes=(*marked.notes, *notes))


def _denoised(volume: CTVolume, plan: _Plan) -> CTVolume:
    def read_slice(index: int) -> SliceHU:
        return _restored([_read(volume, index)], plan)[0]

    return volume.derived(read_slice, plan.step)


def _estimator(
    volume: CTVolume, target: Path, plan: _Plan, options: DenoiseOptions
) -> Estimator | None:
    if options.uncertainty is None:
        return None
    # It brings torch along, which other runs may do without.
    from cddnet.workflows._uncertainty_file import require_writable
    from cddnet.workflows.uncertainty import Estimator

    require_writable(options.uncertainty, target, volume)
    return Estimator(volume, options.uncertainty, plan.card, strength=plan.strength)


@contextmanager
def _opened(
    volume: CTVolume, denoised: CTVolume, plan: _Plan, estimator: Estimator | None
) -> Iterator[Iterator[SliceHU]]:
    """Denoised slices in order; their uncertainty goes into its file where one is asked for."""
    batch = plan.engine.batch
    if estimator is None:
        with closing(_stream(volume, batch, partial(_restored, plan=plan))) as stream:
            yield stream
        return
    judge = partial(_judged, plan=plan, estimator=estimator)
    with (
        estimator.kept(denoised) as maps,
        closing(_stream(volume, batch, judge)) as judged,
    ):
        yield maps.filled(judged, estimator.step())


def _stream(
    volume: CTVolume, batch: int, work: Callable[[list[_Source]], list[Made]]
) -> Generator[Made]:
    """What is made of the slices, in order; reading, network and the taker work at one time."""
    reads = (partial(_read, volume, index) for index in range(volume.shape[0]))
    with closing(ahead(reads, _READ_AHEAD + batch)) as sources:
        jobs = (partial(work, several) for several in batches(sources, batch))
        with closing(ahead(jobs, _DENOISED_AHEAD)) as made:
            for slices in made:
                yield from slices


def _read(volume: CTVolume, index: int) -> _Source:
    return _Source(volume.read_slice(index), volume.padding(index), index)


def _restored(sources: list[_Source], plan: _Plan) -> list[SliceHU]:
    """Slices of one size; padding is air to the network and comes back as it was."""
    if plan.strength == 0:
        return [source.hu for source in sources]
    restored = _by_network(_filled(sources), plan)
    return [
        _blended(source, one, plan.strength) for source, one in zip(sources, restored, strict=True)
    ]


def _judged(sources: list[_Source], plan: _Plan, estimator: Estimator) -> list[Judged]:
    """As `_restored`, each with its map."""
    paddings = [source.padding for source in sources]
    indices = [source.slice_index for source in sources]
    network = partial(_by_network, plan=plan)
    found = estimator.judged(_filled(sources), paddings, indices, network)
    return [
        one._replace(hu=_blended(source, one.hu, plan.strength))
        for source, one in zip(sources, found, strict=True)
    ]


def _filled(sources: list[_Source]) -> NDArray[np.float32]:
    """(B, H, W) HU."""
    filled = [air_for_padding(source.hu, source.padding) for source in sources]
    return np.stack(filled) if len(filled) > 1 else filled[0][None]


def _by_network(images: NDArray[np.float32], plan: _Plan) -> NDArray[np.float32]:
    """(B, H, W) HU to the same at strength 1."""
    restored: NDArray[np.float32] = to_hu(plan.engine.run(to_network(images[:, None])))[:, 0]
    return restored


def _blended(source: _Source, restored: SliceHU, strength: float) -> SliceHU:
    if strength == 0:
        return source.hu
    blended: SliceHU = restored - source.hu
    blended *= np.float32(strength)
    blended += source.hu
    np.copyto(blended, source.hu, where=source.padding)
    return blended


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


def _step(card: Card, strength: float, described: Described, options: DenoiseOptions) -> Derivation:
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
        image_type=options.image_type,
        created=options.created,
    )


def _watched(volume: CTVolume, progress: Progress) -> CTVolume:
    def read_slice(index: int) -> SliceHU:
        hu = volume.read_slice(index)
        progress(index + 1, volume.shape[0])
        return hu

    return replace(volume, read_slice=read_slice)

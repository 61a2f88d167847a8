"""One series of an archive, from its source to a whole folder of results: what a worker does.

It reads and writes files itself; only names go to it and only figures come back.
"""

# Shapes: D slice, H row, W column.

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from cddnet.errors import CddnetError, DicomError, FormatError, GeometryError, UnfitError
from cddnet.formats import write_volume
from cddnet.formats._facts import read_facts
from cddnet.formats.dicom import DicomHeaders, read_files
from cddnet.metrics import noise
from cddnet.node.archive.manifest import Outcome
from cddnet.node.archive.query import Remote, fetch, silence
from cddnet.node.store.images import flush_folder
from cddnet.volume import CTVolume, SliceHU

SERIES, SPOOL = "series", "spool"
NOISE_SLICES = 5
LONGEST_NAME = 64
# A shorter name cannot be told from a number in the same sentence, and names nobody.
SHORTEST_HIDDEN = 3
_UID = re.compile(r"[0-9]+(?:\.[0-9]+){3,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What is done to every series of an archive, frozen at its first run.

    model: a shipped name with its version, or a weights file.  created: the date in the headers;
    None: they have none.  force: also what the fitness check refuses; the results say so.
    """

    model: str
    weights_sha256: str
    strength: float | None
    image_type: str
    created: datetime | None
    force: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """key: name of the series without its UID. out: folder of the archive. files: of the series, or
    empty where `remote` has it under its two UIDs.
    """

    key: str
    out: Path
    recipe: Recipe
    files: tuple[Path, ...] = ()
    remote: Remote | None = None
    study_uid: str = ""
    series_uid: str = ""


def denoise_series(task: Task) -> Outcome:
    """Denoise a series into `out/series/<key>`, whole or not at all; an error is an answer here.

    Nothing is raised, because a cluster logs what a task was given along with what it raised.
    """
    began, cpu = time.monotonic(), time.process_time()
    try:
        with silence(), _originals(task) as files:
            outcome = _denoised(task, files)
    except (DicomError, GeometryError, UnfitError) as error:
        outcome = Outcome("refused", _told(error, task.files), type(error).__name__)
    except Exception as error:
        outcome = Outcome("failed", _told(error, task.files), type(error).__name__)
    return outcome._replace(
        seconds=time.monotonic() - began,
        cpu_seconds=time.process_time() - cpu,
        files=len(task.files),
    )


def _denoised(task: Task, files: Sequence[Path]) -> Outcome:
    from cddnet.workflows.denoise import DenoiseOptions, denoise_with

    if not files:
        return Outcome("failed", "no file of it is left in the source", "FileNotFoundError")
    volume = read_files(files)
    facts = read_facts(_first_slice(volume))
    if facts.ours:
        return Outcome("refused", "was made by cddnet; give the series that it was made from")
    recipe = task.recipe
    options = DenoiseOptions(model=recipe.model, strength=recipe.strength, force=recipe.force)
    derived = _dated(denoise_with(volume, options), recipe)
    step = derived.derivation[-1]
    if step.weights_sha256 != recipe.weights_sha256:
        raise FormatError(
            "this worker has other weights under that name; install the same version."
        )
    target = task.out / SERIES / task.key
    wanted = _sampled(volume.shape[0])
    if target.exists():
        kept = _adopted(volume, target, wanted)
    else:
        kept = {}
        write_volume(_keeping(derived, wanted, kept), target)
        flush_folder(target.parent)
    before = {index: volume.read_slice(index) for index in wanted}
    before_hu, after_hu = noise_levels_hu(volume.spacing_mm[1], before, kept)
    settings = dict(step.parameters)
    return Outcome(
        "done",
        output=f"{SERIES}/{task.key}",
        slices=volume.shape[0],
        noise_before_hu=before_hu,
        noise_after_hu=after_hu,
        weights_sha256=step.weights_sha256,
        manufacturer=_short(facts.manufacturer),
        model=_short(facts.scanner),
        kernel=_short(facts.kernel),
        engine=", ".join(settings.get(name, "") for name in ("engine", "precision", "device")),
    )


def _first_slice(volume: CTVolume) -> Path:
    """A file of the series that is one of its slices."""
    headers = volume.headers
    if not isinstance(headers, DicomHeaders):
        raise FormatError("it came as no DICOM; convert the series to DICOM.")
    return headers.frames[0].path


def noise_levels_hu(
    pixel_mm: float, before: dict[int, SliceHU], after: dict[int, SliceHU]
) -> tuple[float | None, float | None]:
    """Global noise level of some slices (H, W) before and after, at the same places.

    The places are the soft tissue of the slices before. (None, None) where there is none.
    Source: Christianson et al., AJR 205:W63, 2015.
    """
    window = noise.window_pixels(pixel_mm)
    levels: tuple[list[SliceHU], list[SliceHU]] = ([], [])
    for index, hu in before.items():
        tissue = noise.soft_tissue(hu, window)
        for found, image in zip(levels, (hu, after[index]), strict=True):
            found.append(noise.noise_map_hu(image, pixel_mm)[tissue].astype(np.float32))
    try:
        first, second = (noise.global_noise_level_hu(np.concatenate(found)) for found in levels)
    except ValueError:
        return None, None
    return first, second


def _sampled(depth: int) -> tuple[int, ...]:
    """Slices to measure the noise in, spread over the middle eight tenths."""
    places = np.linspace(0.1, 0.9, NOISE_SLICES) * (depth - 1)
    return tuple(sorted({round(place) for place in places.tolist()}))


def _keeping(volume: CTVolume, wanted: Iterable[int], kept: dict[int, SliceHU]) -> CTVolume:
    """The volume, some slices of which stay in `kept` when they are read."""

    def read_slice(index: int) -> SliceHU:
        hu = volume.read_slice(index)
        if index in wanted:
            kept[index] = hu
        return hu

    return replace(volume, read_slice=read_slice)


def _adopted(volume: CTVolume, target: Path, wanted: Iterable[int]) -> dict[int, SliceHU]:
    """Slices of a result that an earlier run wrote and had no time to note."""
    made = read_files(sorted(target.iterdir()))
    if made.shape != volume.shape or made.positions_mm != volume.positions_mm:
        raise FormatError(
            f"its folder in {SERIES}/ holds {made.shape[0]} slices and the source "
            f"{volume.shape[0]}, or at other places; move that folder away and run again."
        )
    return {index: made.read_slice(index) for index in wanted}


def _dated(volume: CTVolume, recipe: Recipe) -> CTVolume:
    *earlier, last = volume.derivation
    step = replace(last, created=recipe.created, image_type=recipe.image_type)
    return replace(volume, derivation=(*earlier, step))


@contextmanager
def _originals(task: Task) -> Iterator[tuple[Path, ...]]:
    """Files of the series; fetched ones are there only while they are needed."""
    if task.remote is None:
        yield task.files
        return
    (task.out / SPOOL).mkdir(mode=0o700, exist_ok=True)
    # A name of its own: a cluster may take a worker for dead that is only slow.
    spool = Path(mkdtemp(prefix=f"{task.key}-", dir=task.out / SPOOL))
    try:
        yield fetch(task.remote, task.study_uid, task.series_uid, spool)
    finally:
        shutil.rmtree(spool, ignore_errors=True)


def _told(error: BaseException, files: Sequence[Path]) -> str:
    """Our own words without UIDs and names of files; of another error nothing but its class."""
    if not isinstance(error, CddnetError):
        return "an error of the system or a library"
    text = str(error)
    for folder in {str(file.parent) for file in files}:
        text = text.replace(folder, "(folder)")
    names = {file.name for file in files}
    if files:
        start, mark, rest = text.partition(": ")
        text = f"(file){mark}{rest}" if start in names else text
        long = sorted((re.escape(n) for n in names if len(n) >= SHORTEST_HIDDEN), key=len)[::-1]
        text = re.sub(rf"(?<!\w)(?:{'|'.join(long)})(?!\w)", "(file)", text) if long else text
    return _UID.sub("(UID)", text)


def _short(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)[:LONGEST_NAME]

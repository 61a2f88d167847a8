"""Explain: what of a low-dose slice decides a denoised region.

Above 300 lines: one verb, from its region to what is said of it.
"""

# Shapes: D slice, H row, W column; h, w of the region.

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from cddnet import __version__
from cddnet.errors import CddnetError, GeometryError, ModelError
from cddnet.formats import read_volume
from cddnet.formats._atomic import new_folder
from cddnet.grid import plane_notes
from cddnet.intensity.normalise import to_hu, to_network
from cddnet.metrics._body import body_mask
from cddnet.physics.dose import rng_for
from cddnet.runtime import store
from cddnet.training.slices import filled
from cddnet.volume import CTVolume
from cddnet.workflows._causal import (
    PSNR_WINDOW_HU,
    Attribution,
    Box,
    EffectMap,
    EffectSettings,
    Scene,
    SliceHU,
    Watch,
    attribution,
    effect_map,
)
from cddnet.workflows._effect_panels import Overlay, Shown, draw
from cddnet.workflows._layouts import Entry
from cddnet.workflows._pairing import LeftOutError, positions_of, twin_of
from cddnet.workflows.denoise import choose_device
from cddnet.workflows.fitness import forced_notes, require_hu

__all__ = ["EffectSettings", "ExplainOptions", "ExplainResult", "Watch", "explain_file"]

SHOWN_WINDOW_HU = (-160.0, 240.0)
EFFECT_LIMIT_HU = 1.0
_DONORS = 16
_STEPS = 8
_SMALLEST_BLOCK = 4


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """slice_number: from 1.  roi: row and column of the centre, from 0, and the side, pixels.
    roi_mm: x and y of the centre in patient coordinates (LPS) and the side, mm; one of the two.
    reference: the series in full dose, None for the network's own output.  model, strength, device,
    series, acquisition, window_hu: as in denoising.  seed: of the replacements.
    force: also what is no HU.
    """

    slice_number: int
    roi: tuple[int, int, int] | None = None
    roi_mm: tuple[float, float, float] | None = None
    reference: Path | None = None
    model: str | Path = "default"
    strength: float | None = None
    device: str = "auto"
    seed: int = 0
    series: str | None = None
    acquisition: str | None = None
    window_hu: tuple[float, float] | None = None
    force: bool = False
    effects: EffectSettings = field(default_factory=EffectSettings)
    slice_axis: int | None = None
    """Axis of the slices (0, 1 or 2) in arrays that state no orientation."""


class ExplainResult(NamedTuple):
    """record: what explanation.json holds.  described: the same in a few lines for people.
    files: in the new folder.
    """

    record: dict[str, object]
    described: tuple[str, ...]
    files: tuple[str, ...]


def explain_file(
    source: Path, target: Path, options: ExplainOptions, watch: Watch
) -> ExplainResult:
    """Write a new folder: maps (.npy), explanation.png and explanation.json.

    Raises: CddnetError for a slice or region outside the series, a series of one slice, or a
    reference that does not fit; UnfitError for values that are no HU, unless forced; else what
    reading, loading or writing raises.
    """
    volume = read_volume(
        source,
        series=options.series,
        window_hu=options.window_hu,
        acquisition=options.acquisition,
        slice_axis=options.slice_axis,
    )
    index = options.slice_number - 1
    if not 0 <= index < volume.shape[0]:
        raise GeometryError(
            f"slice {options.slice_number} is not in the series; choose 1 to {volume.shape[0]}."
        )
    if volume.shape[0] == 1:
        raise CddnetError(
            f"{source}: the series has one slice, and replacements are taken from other slices of "
            "the same series, which have its dose and kernel; give the whole series."
        )
    region = region_of(volume, index, options)
    if not _SMALLEST_BLOCK <= options.effects.block <= min(volume.shape[1:]):
        raise CddnetError(
            f"block is {options.effects.block} pixels, which does not fit; give "
            f"{_SMALLEST_BLOCK} to {min(volume.shape[1:])}."
        )
    refusal = require_hu(volume, force=options.force)
    reference = _reference(volume, index, region, options)
    network, card = store.load(options.model)
    strength = card.strength if options.strength is None else options.strength
    if not 0 <= strength <= 1:
        raise ModelError(f"strength is {strength}; give 0 (source) to 1 (network).")
    device = choose_device(options.device)
    rng = rng_for(volume.series_uid, index, options.seed)
    others = [other for other in range(volume.shape[0]) if other != index]
    donors = sorted(rng.choice(others, min(_DONORS, len(others)), replace=False).tolist())
    with new_folder(target) as folder:
        stack = np.stack([filled(volume, donor) for donor in donors])
        scene = Scene(
            hu=filled(volume, index),
            region=region,
            denoise=denoiser(network.to(device), strength),
            reference=reference,
            donors=stack,
            donor_body=np.stack([body_mask(slice_hu) for slice_hu in stack]),
        )
        effects = effect_map(scene, options.effects, rng, watch)
        watch.announce(f"gradients: {_STEPS} steps")
        weights = attribution(scene, _STEPS)
        record: dict[str, object] = {
            "format": 1,
            "version": __version__,
            "use": "research use only",
            "model": card.name,
            "weights_sha256": card.sha256,
            "strength": strength,
            "device": device,
            "slice": options.slice_number,
            "slices": volume.shape[0],
            "region": region._asdict() | {"of": "row, column, height, width in voxels from 0"},
            "seed": options.seed,
            "replacements_from_slices": [donor + 1 for donor in donors],
            "settings": asdict(options.effects),
            "compared_with": _compared_with(reference),
            "effects": _counts(effects, reference is not None),
            "attribution": _summary(weights, region),
        }
        if refusal:
            record["forced"] = refusal
        files = _write(folder, record, _Drawn(scene, effects, weights))
    said = (*forced_notes(refusal), *plane_notes(volume.direction))
    notes = tuple(f"note: {note}" for note in said)
    return ExplainResult(record, (*notes, *_described(effects, weights, scene)), files)


def denoiser(network: nn.Module, strength: float) -> Callable[[Tensor], Tensor]:
    """Slices (B, H, W) in HU to denoised ones, as `denoise_slice` does without padding."""
    network.requires_grad_(False)

    def denoise(hu: Tensor) -> Tensor:
        device = next((weights.device for weights in network.parameters()), hu.device)
        source = hu.to(device)
        restored = to_hu(network(to_network(source[:, None])).image)[:, 0]
        blended: Tensor = source + strength * (restored - source)
        return blended

    return denoise


def region_of(volume: CTVolume, index: int, options: ExplainOptions) -> Box:
    """The region in voxels.  Raises: GeometryError unless it lies inside the slice."""
    if (options.roi is None) == (options.roi_mm is None):
        found = "none" if options.roi is None else "both"
        raise CddnetError(
            f"a region is needed and {found} of --roi (voxels) and --roi-mm (patient mm) is given; "
            "give one of them."
        )
    if options.roi is not None:
        row, column, side = options.roi
        height = width = side
    else:
        row, column, height, width = _voxels(volume, index, options.roi_mm or (0.0, 0.0, 0.0))
    if height < 1 or width < 1:
        raise GeometryError(f"the region is {height} x {width} pixels; give a side above 0.")
    region = Box(row - height // 2, column - width // 2, height, width)
    rows, columns = volume.shape[1:]
    if (
        min(region.row, region.column) < 0
        or region.row + height > rows
        or region.column + width > columns
    ):
        raise GeometryError(
            f"the region covers rows {region.row} to {region.row + height - 1} and columns "
            f"{region.column} to {region.column + width - 1}, the slice has {rows} x {columns} "
            "pixels; choose one inside."
        )
    return region


def _voxels(
    volume: CTVolume, index: int, roi_mm: tuple[float, float, float]
) -> tuple[int, int, int, int]:
    """Row, column, height and width of a region given in mm."""
    x_mm, y_mm, side_mm = roi_mm
    _, row_mm, column_mm = volume.spacing_mm
    step_mm = np.array([row_mm, column_mm])[:, None] * np.array(volume.direction[1:])
    across = step_mm[:, :2].T
    # Where x and y change less than half as fast as the pixels, they do not name one.
    if abs(np.linalg.det(across)) < row_mm * column_mm / 2:
        raise GeometryError("x and y do not name a pixel of these slices; give --roi in voxels.")
    corner = positions_of(volume)[index][:2]
    row, column = np.rint(np.linalg.solve(across, np.array([x_mm, y_mm]) - corner)).astype(int)
    return int(row), int(column), round(side_mm / row_mm), round(side_mm / column_mm)


def _reference(
    volume: CTVolume, index: int, region: Box, options: ExplainOptions
) -> SliceHU | None:
    """Region (h, w) of the full-dose slice at the same position."""
    if options.reference is None:
        return None
    full = read_volume(
        options.reference, window_hu=options.window_hu, slice_axis=options.slice_axis
    )
    require_hu(full, f"{options.reference}", force=options.force)
    own, other = volume.acquisition.patient_id, full.acquisition.patient_id
    if own and other and own != other:
        raise GeometryError(f"{options.reference}: is of another patient; give the same one's.")
    entries = Entry(options.reference.name, "", ()), Entry("the input", "", ())
    try:
        twin = twin_of((entries[0], full), [(entries[1], volume)])
    except LeftOutError as error:
        raise GeometryError(
            f"{options.reference}: does not belong to the input: {error}; give the same series "
            "in full dose."
        ) from error
    indices = [whole for whole, low in twin.rows if low == index]
    if not indices:
        raise GeometryError(
            f"{options.reference}: has no slice at the position of slice {index + 1}; choose "
            "another slice or the complete series."
        )
    return filled(full, indices[0])[region.inside]


def _compared_with(reference: SliceHU | None) -> str:
    if reference is None:
        return (
            "the network's own output: sensitivity, how much a block moves the region, not whether "
            "it helps; no effect in dB, because an image has no PSNR against itself"
        )
    low, high = PSNR_WINDOW_HU
    return f"full dose; PSNR in window [{low:g}, {high:g}] HU, range {high - low:g} HU"


def _counts(effects: EffectMap, has_reference: bool) -> dict[str, object]:
    known = effects.hu[np.isfinite(effects.hu)]
    record: dict[str, object] = {
        "positive": int((known > 0).sum()),
        "negative": int((known < 0).sum()),
        "zero": int((known == 0).sum()),
        "left_out_at_region": int(effects.hu.size - known.size),
        "replaced_one_by_one": effects.reached,
        "refined": effects.refined,
        "beyond_moved_at_most_hu": effects.beyond_hu,
        "baseline_rmse_hu": effects.baseline_rmse_hu,
        "frame": effects.frame._asdict(),
    }
    for unit, values in (("hu", effects.hu), ("db", effects.db if has_reference else None)):
        finite = None if values is None else values[np.isfinite(values)]
        some = finite is not None and finite.size > 0
        record[f"least_{unit}"] = float(finite.min()) if finite is not None and some else None
        record[f"largest_{unit}"] = float(finite.max()) if finite is not None and some else None
    return record


def _described(effects: EffectMap, weights: Attribution, scene: Scene) -> tuple[str, ...]:
    known = effects.hu[np.isfinite(effects.hu)]
    compared = _compared_with(scene.reference)
    if known.size == 0:
        return (f"compared with {compared}", "every block touches the region; none is left")
    lines = [
        f"compared with {compared}",
        f"blocks: {int((known > 0).sum())} without which the region's RMSE rises, "
        f"{int((known < 0).sum())} without which it falls, {int((known == 0).sum())} without "
        f"effect; {known.min():.2f} to {known.max():.2f} HU",
    ]
    if scene.reference is not None:
        known_db = effects.db[np.isfinite(effects.db)]
        lines.append(
            f"RMSE {effects.baseline_rmse_hu:.2f} HU as it is; PSNR lost without a block: "
            f"{known_db.min():.2f} to {known_db.max():.2f} dB"
        )
    share = _share_inside(weights, scene.region)
    if share is not None:
        lines.append(f"weight of the region's own pixels in its mean: {share:.0%} of all")
    return tuple(lines)


def _summary(weights: Attribution, region: Box) -> dict[str, object]:
    return {
        "unit": "HU of the region's mean per HU of a pixel",
        "steps": _STEPS,
        "sum": float(weights.weight.sum(dtype=np.float64)),
        "share_in_region": _share_inside(weights, region),
        "change_along_path_hu": weights.change_hu,
        "explained_hu": weights.explained_hu,
    }


def _share_inside(weights: Attribution, region: Box) -> float | None:
    size = np.abs(weights.weight.astype(np.float64))
    total = float(size.sum())
    return float(size[region.inside].sum()) / total if total else None


class _Drawn(NamedTuple):
    scene: Scene
    effects: EffectMap
    weights: Attribution


def _write(folder: Path, record: dict[str, object], drawn: _Drawn) -> tuple[str, ...]:
    scene, effects, weights = drawn
    maps = {"effect_hu.npy": effects.pixels(effects.hu), "attribution.npy": weights.weight}
    if scene.reference is not None:
        maps["effect_db.npy"] = effects.pixels(effects.db)
    for name, values in maps.items():
        np.save(folder / name, values)
    # A network that changes nothing weighs each pixel of the region by one over their number.
    own_weight = 1 / (scene.region.height * scene.region.width)
    truth = "own output: sensitivity" if scene.reference is None else "full dose: red helps"
    overlays = [
        Overlay(
            f"effect of a block, RMSE of the region against {truth}",
            effects.pixels(effects.hu),
            EFFECT_LIMIT_HU,
            (f"-{EFFECT_LIMIT_HU:g} HU", f"{EFFECT_LIMIT_HU:g} HU"),
        ),
        Overlay(
            "weight of a pixel in the region's mean, HU per HU",
            weights.weight,
            own_weight,
            (f"-1/{round(1 / own_weight)}", f"1/{round(1 / own_weight)}"),
        ),
    ]
    shown = Shown(
        hu=scene.hu,
        window_hu=SHOWN_WINDOW_HU,
        region=scene.region,
        title=f"slice {record['slice']} of {record['slices']}, {record['model']}, strength "
        f"{record['strength']:.0%}. Research use only.",
        note="Region outlined in green; blocks that touch it are left out of the effects.",
    )
    draw(shown, overlays).save(folder / "explanation.png", optimize=True)
    (folder / "explanation.json").write_text(
        json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    return (*maps, "explanation.png", "explanation.json")

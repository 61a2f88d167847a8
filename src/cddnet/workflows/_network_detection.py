"""What a network does to the detectability of lesions, on the reference of an evaluation."""

# Shapes: H row, W column.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cddnet.metrics._body import body_mask
from cddnet.metrics.fidelity import psnr
from cddnet.physics.dose import SCANNER_FLOOR_HU, insert_noise, rng_for
from cddnet.runtime import store
from cddnet.training.pairs import Learnable
from cddnet.training.slices import full_dose_slices
from cddnet.volume import CTVolume, SliceHU
from cddnet.workflows._detection import Denoise, detect_in_slices
from cddnet.workflows._detection_words import findings, statements
from cddnet.workflows._evaluation import Physics
from cddnet.workflows._observer import DetectionOptions
from cddnet.workflows.denoise import denoise_slice

_WINDOW_HU = (-160.0, 240.0)
_SCORED = 12


def detected(references: Sequence[CTVolume], model: str | Path) -> Physics:
    """Lesions inserted into full-dose slices, seen before and after the network.

    The low dose, a quarter of the calibrated one, is simulated; the network works at its default
    strength.  Raises: ModelError for an unknown network, CddnetError where flat tissue is missing.
    """
    network, card = store.load(model)

    def denoise(hu: SliceHU) -> SliceHU:
        return denoise_slice(hu, np.zeros(hu.shape, np.bool_), network, strength=card.strength)

    slices = [piece for volume in references for piece in full_dose_slices(volume)]
    name = f"{card.name} {card.strength:.0%}"
    # Few slices have few places; each is seen under several noises then.
    options = DetectionOptions(realisations=max(1, -(-_SCORED // len(slices))))
    rows = detect_in_slices(slices, {name: denoise}, options)
    gain_db = _psnr_gain_db(slices, denoise, options)
    low, high = _WINDOW_HU
    where = f"; PSNR in the window [{low:g}, {high:g}] HU, range {high - low:g} HU, body mask"
    said = tuple(text + where for text in statements(rows, {name: gain_db}))
    return Physics(findings=findings(rows), statements=said)


def joined(one: Physics, other: Physics) -> Physics:
    """Both; what the second states comes first, because it weighs more."""
    return Physics(
        findings=(*one.findings, *other.findings),
        curves=one.curves | other.curves,
        statements=(*other.statements, *one.statements),
    )


def _psnr_gain_db(
    slices: Sequence[Learnable], denoise: Denoise, options: DetectionOptions
) -> float:
    """PSNR of the output less that of the low dose, window [-160, 240] HU, body, evenly chosen."""
    gains = []
    for index in np.unique(np.linspace(0, len(slices) - 1, min(len(slices), _SCORED)).astype(int)):
        source = slices[int(index)]
        rng = rng_for(source.series_uid, source.slice_index, options.seed)
        fraction = options.dose_fraction
        low = insert_noise(source.hu, source.geometry, rng, dose_fraction=fraction).hu
        low = np.maximum(low, np.float32(SCANNER_FLOOR_HU))
        full, mask = source.hu, body_mask(source.hu)
        before, after = (
            psnr(full, hu, window_hu=_WINDOW_HU, mask=mask) for hu in (low, denoise(low))
        )
        gains.append(after - before)
    return float(np.mean(gains))

"""Lesions before and after a method: a blur shows more PSNR and no more lesions."""

import numpy as np
import pytest
from scipy import ndimage

from cddnet.errors import CddnetError
from cddnet.metrics.detectability import Estimate
from cddnet.metrics.fidelity import psnr
from cddnet.physics import phantom
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import add_noise
from cddnet.physics.lesion import Lesion, lesion_image
from cddnet.training.pairs import FullDoseSlice
from cddnet.workflows._detection import detect_in_slices, detect_in_water, flat_places
from cddnet.workflows._detection_words import findings, statement, statements
from cddnet.workflows._observer import FULL_DOSE, LOW_DOSE, DetectionOptions

PIXEL_MM, SIZE = 1.4, 181
SMALL = Lesion(diameter_mm=5.0, contrast_hu=30.0)
LOW_DOSE_FRACTION = 0.05


def blur(hu):
    return ndimage.gaussian_filter(hu, 1.0)


def wide_blur(hu):
    return ndimage.gaussian_filter(hu, 2.0)


def forgetful(hu):
    """A wide median: small lesions lose more than the noise does."""
    return ndimage.median_filter(hu, 5)


def erased(hu):
    return np.zeros_like(hu)


@pytest.fixture(scope="module")
def in_water():
    options = DetectionOptions(
        lesions=(SMALL,), dose_fraction=LOW_DOSE_FRACTION, most_places=200, seed=3
    )
    methods = {"blur": blur, "wide blur": wide_blur, "forgetful": forgetful, "erased": erased}
    rows = detect_in_water(SliceGeometry(PIXEL_MM), SIZE, methods, options)
    return {row.row: row for row in rows}


@pytest.fixture(scope="module")
def psnr_gain_db():
    geometry = SliceGeometry(PIXEL_MM)
    water = phantom.render(phantom.build("water-200"), SIZE, PIXEL_MM)
    full, low = (
        add_noise(water, geometry, np.random.default_rng(seed), dose_fraction=dose).hu
        for seed, dose in ((0, 1.0), (1, LOW_DOSE_FRACTION))
    )
    rows, columns = np.indices(water.shape)
    inside = np.hypot(rows - SIZE // 2, columns - SIZE // 2) * PIXEL_MM < 80

    def db(hu):
        return psnr(full, hu, window_hu=(-160, 240), mask=inside)

    return {
        name: db(method(low)) - db(low)
        for name, method in (("blur", blur), ("wide blur", wide_blur), ("forgetful", forgetful))
    }


@pytest.mark.parametrize("name", ["blur", "wide blur"])
def test_a_linear_blur_raises_psnr_and_not_detectability(in_water, psnr_gain_db, name):
    low, row = in_water[LOW_DOSE].detection.d_prime, in_water[name]
    assert psnr_gain_db[name] > 3
    assert low.low < row.detection.d_prime.value < low.high
    # Far better known than either; nothing beyond the 5 % that count as nothing.
    assert row.change.high - row.change.low < (low.high - low.low) / 2
    assert row.change.low < 0.05 * low.value
    assert row.change.high > -0.05 * low.value
    said = statements([in_water[LOW_DOSE], row], psnr_gain_db)
    assert len(said) == 1
    assert said[0].startswith(f"PSNR up, detectability not: {name}, 5 mm, +30 HU disc gains ")


def test_a_loss_is_called_a_loss(in_water, psnr_gain_db):
    row = in_water["forgetful"]
    assert row.change.high < 0
    said = statements(list(in_water.values()), psnr_gain_db)
    sentence = next(text for text in said if "forgetful" in text)
    assert sentence.startswith("PSNR up, detectability down: ")


def test_what_erases_everything_leaves_chance(in_water):
    row = in_water["erased"]
    assert row.detection.d_prime == (0, 0, 0)
    assert row.detection.auc == (0.5, 0.5, 0.5)
    assert row.recovery == (0, 0, 0)
    assert row.change.high < 0


def test_more_dose_is_more_detectable_and_says_nothing(in_water):
    full, low = in_water[FULL_DOSE], in_water[LOW_DOSE]
    assert full.change.low > low.detection.d_prime.value
    assert statements([low, full], {FULL_DOSE: 10.0}) == ()
    # d' goes with the root of the dose, less a little for electronic noise.
    ratio = full.detection.d_prime.value / low.detection.d_prime.value
    relative = [
        (r.detection.d_prime.high / r.detection.d_prime.value - 1) / 1.96 for r in (full, low)
    ]
    assert ratio == pytest.approx(np.sqrt(1 / LOW_DOSE_FRACTION), rel=4 * np.hypot(*relative))


@pytest.mark.parametrize(("name", "method"), [("blur", blur), ("wide blur", wide_blur)])
def test_a_linear_filter_keeps_what_it_passes(in_water, name, method):
    centre = np.array([[40, 40]])
    signal = lesion_image((81, 81), centre, SMALL, pixel_mm=PIXEL_MM)
    rows, columns = np.indices(signal.shape)
    disc = np.hypot(rows - 40, columns - 40) * PIXEL_MM <= SMALL.diameter_mm / 2
    expected = method(signal)[disc].mean() / signal[disc].mean()
    assert expected < 0.8
    # Noise of tens of HU in float32, over 30 HU.
    assert in_water[name].recovery.value == pytest.approx(expected, abs=1e-4)
    assert in_water[LOW_DOSE].recovery.value == pytest.approx(1, abs=1e-5)
    assert in_water["forgetful"].recovery.high < 0.6


def test_findings_carry_rows_units_and_intervals(in_water):
    found = findings(list(in_water.values()))
    names = {finding.name.split(",")[0] for finding in found if finding.row == "blur"}
    assert names == {
        "d' (LG-CHO)",
        "d' over low dose (LG-CHO)",
        "AUC (LG-CHO)",
        "contrast recovery",
    }
    low = {finding.name.split(",")[0] for finding in found if finding.row == LOW_DOSE}
    assert low == names - {"d' over low dose (LG-CHO)"}
    for finding in found:
        assert finding.value.low <= finding.value.value <= finding.value.high
        assert "water phantom" in finding.within
        assert "read with care" not in finding.within


ALONE, BETTER = Estimate(2.0, 1.8, 2.2), Estimate(2.5, 2.3, 2.7)


@pytest.mark.parametrize(
    ("gain_db", "change", "expected"),
    [
        (5.0, Estimate(0.0, -0.2, 0.2), "not"),
        (5.0, Estimate(0.06, 0.02, 0.1), "not"),
        (5.0, Estimate(-0.3, -0.4, -0.2), "down"),
        (5.0, Estimate(0.5, 0.3, 0.7), None),
        (-1.0, Estimate(0.0, -0.2, 0.2), None),
        (0.0, Estimate(-0.3, -0.4, -0.2), None),
        (float("nan"), Estimate(0.0, -0.2, 0.2), None),
    ],
)
def test_the_sentence_follows_from_the_numbers(gain_db, change, expected):
    said = statement("A", gain_db, low_dose=ALONE, d_prime=BETTER, change=change)
    if expected is None:
        assert said is None
    else:
        assert said.startswith(f"PSNR up, detectability {expected}: A gains {gain_db:.2f} dB")
        assert "2.50 [2.30, 2.70] against 2.00 [1.80, 2.20]" in said


@pytest.fixture(scope="module")
def tissue():
    """Full-dose slices of a water cylinder at 50 HU with a vessel, 2 mm pixels."""
    rows, columns = np.indices((121, 129))
    radius = np.hypot(rows - 60, columns - 64)
    slices = []
    for index in range(3):
        hu = np.where(radius < 55, 50.0, -1000.0)
        hu[np.hypot(rows - 60, columns - 40) < 4] = 150.0
        noise = np.random.default_rng(index).normal(0, 4, hu.shape)
        slices.append(
            FullDoseSlice((hu + noise).astype(np.float32), SliceGeometry(2.0), "1.2", index)
        )
    return slices


def test_places_lie_in_flat_tissue_and_apart(tissue):
    side = 11
    centres = flat_places(tissue[0].hu, side)
    assert len(centres) > 20
    gaps = np.abs(centres[:, None] - centres[None]).max(axis=-1)
    assert gaps[~np.eye(len(centres), dtype=bool)].min() >= side
    half = side // 2
    for row, column in centres:
        region = tissue[0].hu[row - half : row + half + 1, column - half : column + half + 1]
        assert region.min() > 30
        assert region.max() < 80
    assert len(flat_places(np.full((50, 50), -1000.0), side)) == 0


def test_lesions_in_slices(tissue):
    options = DetectionOptions(lesions=(SMALL,))
    rows = {r.row: r for r in detect_in_slices(tissue, {"blur": blur}, options)}
    assert list(rows) == [LOW_DOSE, "blur", FULL_DOSE]
    assert rows[FULL_DOSE].recovery.value == pytest.approx(1, abs=1e-5)
    # The lesions themselves change the inserted noise by a few thousandths.
    assert rows[LOW_DOSE].recovery.value == pytest.approx(1, abs=0.02)
    assert rows["blur"].recovery.high < 0.8
    assert rows[FULL_DOSE].change.low > 0
    places = rows[LOW_DOSE].detection.places
    assert places >= 100
    assert "in 2 of 3 slices" in rows[LOW_DOSE].within
    repeated = detect_in_slices(tissue, {"blur": blur}, options)
    assert repeated[0].detection.d_prime == rows[LOW_DOSE].detection.d_prime
    twice = detect_in_slices(tissue, {}, DetectionOptions(lesions=(SMALL,), realisations=2))
    assert twice[0].detection.images == 2 * places
    assert twice[0].detection.places == places


@pytest.mark.parametrize("route", ["slices", "water"])
def test_images_with_and_without_a_lesion_have_noise_of_their_own(tissue, route):
    seen = []

    def spy(hu):
        seen.append(hu)
        return hu

    if route == "slices":
        detect_in_slices(tissue, {"spy": spy}, DetectionOptions(lesions=(SMALL,)))
    else:
        options = DetectionOptions(lesions=(SMALL,), most_places=100)
        detect_in_water(SliceGeometry(2.0), 127, {"spy": spy}, options)
    for without, bare, with_lesions in zip(*(seen[first::3] for first in range(3)), strict=True):
        middle = np.s_[40:80, 40:80]
        noise_hu = (without - bare)[middle].std()
        assert noise_hu > 5
        # The lesions alone, to the little by which they change the inserted noise.
        lesions = (with_lesions - bare)[middle]
        assert lesions.max() > 20
        assert np.median(np.abs(lesions)) < noise_hu / 5


def test_slices_are_left_out_evenly(tissue):
    options = DetectionOptions(lesions=(SMALL,), most_places=1)
    assert "in 1 of 3 slices" in detect_in_slices(tissue, {}, options)[0].within


def test_too_little_is_refused(tissue):
    large = DetectionOptions(lesions=(Lesion(diameter_mm=15.0, contrast_hu=10.0),))
    with pytest.raises(CddnetError, match="at least 100"):
        detect_in_slices(tissue[:1], {}, large)
    air = tissue[0]._replace(hu=np.full((64, 64), -1000, np.float32))
    with pytest.raises(CddnetError, match="no flat place"):
        detect_in_slices([air], {}, large)
    other = tissue[1]._replace(geometry=SliceGeometry(1.9))
    with pytest.raises(CddnetError, match=r"2 and 1\.9 mm"):
        detect_in_slices([tissue[0], other], {}, DetectionOptions(lesions=(SMALL,)))
    with pytest.raises(CddnetError, match="do not hold the phantom"):
        detect_in_water(SliceGeometry(0.5), 128, {}, large)

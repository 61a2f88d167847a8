"""Series whose slices state different thicknesses: each slice has the photons of its own."""

from dataclasses import replace

import numpy as np
import pytest

from cddnet.physics.beam import DEFAULT_SCANNER, SliceGeometry
from cddnet.physics.dose import add_noise, insert_noise, rng_for
from cddnet.physics.kernel import SOFT_KERNEL
from cddnet.volume import CTVolume
from cddnet.workflows import noise_map
from cddnet.workflows._matching import SourceNoise, match_source
from cddnet.workflows.fitness import examine
from cddnet.workflows.simulate import SimulateOptions, calibrated_source, simulate_volume

SHAPE, PIXEL_MM = (201, 240), 0.9
THICKNESSES_MM = (2.0, 2.0, 8.0, 8.0)
HALF = SimulateOptions(dose_fraction=0.5)


def body():
    rows, columns = np.indices(SHAPE)
    inside = ((rows - 100) / 85) ** 2 + ((columns - 120) / 110) ** 2 <= 1
    return np.where(inside, 50.0, -1000.0).astype(np.float32)


def geometry(thickness_mm):
    return SliceGeometry(pixel_mm=PIXEL_MM, thickness_mm=thickness_mm)


@pytest.fixture(scope="module")
def series():
    """A uniform body in thin and thick slices, as the calibrated scanner measures it."""
    slices = [
        add_noise(
            body(),
            geometry(thickness_mm),
            rng_for("made", index, 0),
            dose_fraction=1.0,
            scanner=DEFAULT_SCANNER,
            kernel=SOFT_KERNEL,
        ).hu
        for index, thickness_mm in enumerate(THICKNESSES_MM)
    ]
    spacing = (4.0, PIXEL_MM, PIXEL_MM)
    return CTVolume.from_hu(np.stack(slices), spacing, thicknesses_mm=THICKNESSES_MM)


@pytest.fixture(scope="module")
def matched(series):
    return match_source(series)


def test_the_dose_is_found_in_slices_of_any_thickness(series, matched):
    assert matched.scanner.photons == pytest.approx(DEFAULT_SCANNER.photons, rel=0.25)
    assert [matched.geometry_of(index) for index in range(4)] == list(map(geometry, THICKNESSES_MM))
    assert matched.basis.endswith("2 to 8 mm slices.")
    # Both kinds of slices are among the quiet ones: thin slices are noisier, not worse.
    assert matched.measured.slices == 4
    assumed = match_source(replace(series, thicknesses_mm=()))
    assert "(assumed)" in assumed.basis


def test_each_slice_gets_the_noise_of_its_own_thickness(series, matched):
    low_dose = simulate_volume(series, matched, HALF)
    for index, thickness_mm in enumerate(THICKNESSES_MM):
        expected = insert_noise(
            series.read_slice(index),
            geometry(thickness_mm),
            rng_for("", index, 0),
            dose_fraction=0.5,
            scanner=matched.scanner,
            kernel=matched.kernel,
        ).hu
        inside = series.read_slice(index) > -900
        np.testing.assert_array_equal(low_dose.read_slice(index)[inside], expected[inside])
    added = [
        np.std((low_dose.read_slice(index) - series.read_slice(index))[60:140, 80:160])
        for index in range(4)
    ]
    # Four times as thick: half the noise, each standard deviation from thousands of pixels.
    assert added[0] / added[3] == pytest.approx(2.0, rel=0.15)


def test_the_record_tells_different_thicknesses_and_nothing_new_of_equal_ones(series, matched):
    (step,) = simulate_volume(series, matched, HALF).derivation
    assert dict(step.parameters)["slice_thickness_mm"] == "2 (2), 8 (2)"
    assert list(step.parameters) == sorted(step.parameters)
    equal = replace(series, thicknesses_mm=(), thickness_mm=2.0)
    (step,) = simulate_volume(equal, replace(matched, thicknesses_mm=()), HALF).derivation
    names = [name for name, _ in step.parameters]
    assert names == ["dose_fraction", "kernel", "scanner", "seed", "slice"]


def test_the_calibrated_scanner_has_one_thickness(series):
    assert calibrated_source(series).geometry_of(3).thickness_mm == 3.0


def test_an_unstated_thickness_is_assumed_as_in_a_series_without_any(series):
    some = replace(series, thicknesses_mm=(2.0, None, 8.0, 8.0))
    found = match_source(some)
    assert [found.geometry_of(index).thickness_mm for index in range(4)] == [2.0, 3.0, 8.0, 8.0]


def test_maps_of_noise_follow_the_thickness(monkeypatch):
    source = SourceNoise(
        kernel=SOFT_KERNEL,
        scanner=replace(DEFAULT_SCANNER, electronic_std=0.0),
        geometry=geometry(3.0),
        measured=None,
        model_frequency_per_mm=None,
        basis="",
        thicknesses_mm=THICKNESSES_MM,
    )
    monkeypatch.setattr(noise_map, "match_source", lambda _: source)
    same = CTVolume.from_hu(np.stack([body()] * 4), (4.0, PIXEL_MM, PIXEL_MM))
    read = noise_map.noise_reader(same)
    np.testing.assert_allclose(read(0), 2 * read(3), rtol=1e-3)


def test_every_thickness_is_compared_with_that_of_training(series):
    for thicknesses_mm, notes in (
        ((4.0, 4.0, 7.0, 7.0), []),
        ((4.0, None, 10.0, 10.0), ["10 mm"]),
        ((0.3, 4.0, 10.0, 10.0), ["0.3 mm", "10 mm"]),
    ):
        found = examine(replace(series, thicknesses_mm=thicknesses_mm)).notes
        stated = [note for note in found if note.startswith("slice thickness is")]
        assert [note.split(",")[0].split("is ")[1] for note in stated] == notes

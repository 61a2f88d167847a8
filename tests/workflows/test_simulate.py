"""Low dose inserted into a series, slice by slice."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from cddnet.errors import CddnetError, FormatError, GeometryError
from cddnet.formats import read_volume
from cddnet.physics.beam import Scanner, SliceGeometry
from cddnet.physics.dose import insert_noise, rng_for
from cddnet.physics.kernel import Kernel
from cddnet.volume import CTVolume
from cddnet.workflows.demo import demo_series
from cddnet.workflows.simulate import (
    SimulateOptions,
    calibrated_source,
    simulate_file,
    simulate_volume,
)

QUARTER = SimulateOptions(dose_fraction=0.25, seed=7)


@pytest.fixture
def body():
    """Two slices of a disc in air with a padded corner."""
    rows, columns = np.indices((63, 80))
    inside = np.hypot(rows - 31, columns - 40) < 25
    hu = np.where(inside, 40.0, -1000.0).astype(np.float32)
    hu[:9, :9] = -2000
    return np.stack([hu, hu])


def volume_of(hu, **fields):
    fields = {"thickness_mm": 5.0, "series_uid": "1.2.3"} | fields
    padding = hu[0] == -2000
    return CTVolume.from_hu(hu, (5.0, 3.0, 3.0), read_padding=lambda index: padding, **fields)


def simulated(volume, options=QUARTER, **changes):
    return simulate_volume(volume, replace(calibrated_source(volume), **changes), options)


def test_the_noise_is_that_of_the_physics_and_padding_stays(body):
    changes = {
        "kernel": Kernel(cutoff_per_mm=1.1, boost=0.2),
        "scanner": Scanner(photons=1e8, electronic_std=20.0),
        "geometry": SliceGeometry(pixel_mm=3.0, thickness_mm=1.0),
    }
    out = simulated(volume_of(body), **changes)
    padding = body[0] == -2000
    for index in (0, 1):
        filled = np.where(padding, np.float32(-1000), body[index])
        expected = insert_noise(
            filled,
            changes["geometry"],
            rng_for("1.2.3", index, 7),
            dose_fraction=0.25,
            scanner=changes["scanner"],
            kernel=changes["kernel"],
        )
        expected = np.where(padding, body[index], np.maximum(expected.hu, -1024))
        assert np.array_equal(out.read_slice(index), expected)
    assert not np.array_equal(*out.hu)


def test_each_slice_depends_on_itself_alone(body):
    out = simulated(volume_of(body))
    last_first = [out.read_slice(1), out.read_slice(0)][::-1]
    assert np.array_equal(np.stack(last_first), out.hu)
    other = simulated(volume_of(body, series_uid="1.2.4"))
    assert not np.array_equal(other.hu, out.hu)


def test_the_full_dose_is_the_source(body):
    assert np.array_equal(simulated(volume_of(body), SimulateOptions(dose_fraction=1.0)).hu, body)


def test_what_lies_below_the_floor_already_is_not_lifted(body):
    body[:, 40:, :9] = -1030
    out = simulated(volume_of(body), SimulateOptions(dose_fraction=0.001)).hu
    below = body == -1030
    assert out[below].min() == -1030
    assert out[~below & (body != -2000)].min() == -1024


def test_the_record_decides_the_pixels(body):
    (step,) = simulated(volume_of(body)).derivation
    told = dict(step.parameters)
    assert (told["dose_fraction"], told["seed"]) == ("0.25", "7")
    assert list(step.parameters) == sorted(step.parameters)
    assert step.description.isascii()
    assert "SIMULATED" in step.description


def test_pixels_that_are_not_square_are_refused(body):
    with pytest.raises(GeometryError, match="square"):
        calibrated_source(CTVolume.from_hu(body, (5.0, 3.0, 2.0)))


@pytest.mark.parametrize("dose", [0.0, -1.0, 1.5, float("nan")])
def test_a_dose_that_is_no_fraction_is_refused(body, dose):
    with pytest.raises(CddnetError, match="fraction"):
        simulated(volume_of(body), SimulateOptions(dose_fraction=dose))


def test_electronic_noise_below_zero_is_refused(body):
    with pytest.raises(CddnetError, match="electronic"):
        simulated(volume_of(body), scanner=Scanner(electronic_std=-1.0))


# Files.


def hashes(folder):
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())]


def quiet(done, total):
    pass


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """The demo series at a quarter of its own dose, twice with a seed and once with another."""
    folder = tmp_path_factory.mktemp("simulated")
    results = [
        simulate_file(demo_series(), folder / name, SimulateOptions(seed=seed), quiet)
        for name, seed in (("first", 7), ("again", 7), ("other", 8))
    ]
    return folder, results


def test_a_seed_gives_the_same_files_bit_for_bit(twins):
    folder, _ = twins
    first, again, other = (hashes(folder / name) for name in ("first", "again", "other"))
    assert len(first) == 12
    assert first == again
    assert not set(first) & set(other)


def test_the_twin_says_that_it_is_simulated(twins):
    folder, _ = twins
    pydicom = pytest.importorskip("pydicom")
    for file in (folder / "first").iterdir():
        header = pydicom.dcmread(file)
        assert header.ImageType[0] == "DERIVED"
        assert "simulated" in header.SeriesDescription
        assert "SIMULATED low dose" in header.DerivationDescription
        assert "seed=7" in header.DerivationDescription
        assert "Research use only" in header.DerivationDescription


def test_the_twin_has_the_noise_of_a_quarter_of_its_own_dose(twins):
    """Noise variance goes with one over dose: in flat tissue 3 times the source's own is added."""
    folder, (result, _, _) = twins
    low, full = read_volume(folder / "first"), read_volume(demo_series())
    assert result.source.measured is not None
    added = np.concatenate(
        [
            (low_hu - full_hu)[(full_hu > 60) & (full_hu < 160)]
            for low_hu, full_hu in zip(low.slices(), full.slices(), strict=True)
        ]
    )
    # The rays through all soft tissue against those through its flat regions: 15 %.
    assert added.std() == pytest.approx(np.sqrt(3) * result.source.measured.noise_hu, rel=0.15)
    assert result.starved_slices == 0
    assert result.starvation == ""


def test_starvation_is_reported(tmp_path, body):
    wide = np.full((1, 65, 129), 300.0, np.float32)
    np.save(tmp_path / "wide.npy", wide)
    source = calibrated_source(CTVolume.from_hu(wide, (3.0, 4.0, 4.0)))
    dark = replace(source, scanner=Scanner(photons=1e6))
    found = []
    simulate_volume(CTVolume.from_hu(wide, (3.0, 4.0, 4.0)), dark, QUARTER, found.append).hu  # noqa: B018
    assert found[0].starved > 0
    assert found[0].fewest_photons < 25


def test_an_existing_folder_is_refused(twins):
    folder, _ = twins
    before = hashes(folder / "first")
    with pytest.raises(FormatError, match="exist"):
        simulate_file(demo_series(), folder / "first", QUARTER, quiet)
    assert hashes(folder / "first") == before

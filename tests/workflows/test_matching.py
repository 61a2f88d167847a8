"""A series made with known physics, and the physics found in it again."""

import numpy as np
import pytest
from scipy import ndimage

from cddnet.errors import CddnetError, GeometryError
from cddnet.formats import read_volume
from cddnet.physics.beam import DEFAULT_SCANNER, TYPICAL_SCANNER, Scanner, SliceGeometry
from cddnet.physics.dose import add_noise, insert_noise, rng_for
from cddnet.physics.kernel import SHARP_KERNEL, SOFT_KERNEL, kernel_named
from cddnet.volume import Acquisition, CTVolume
from cddnet.workflows._matching import match_source, measure_noise, quiet_slices
from cddnet.workflows.demo import demo_series

SHAPE, PIXEL_MM, SLICES = (201, 240), 0.9, 3

# A difference that readers notice, far below the distance of soft and sharp.
TEXTURE_PER_MM = 0.03


def body():
    rows, columns = np.indices(SHAPE)
    inside = ((rows - 100) / 85) ** 2 + ((columns - 120) / 110) ** 2 <= 1
    return np.where(inside, 50.0, -1000.0).astype(np.float32)


def series(kernel, scanner=DEFAULT_SCANNER, *, thickness_mm=3.0, dose_fraction=1.0, **fields):
    """A uniform body of SLICES slices as the scanner measures it."""
    geometry = SliceGeometry(pixel_mm=PIXEL_MM, thickness_mm=thickness_mm)
    slices = [
        add_noise(
            body(),
            geometry,
            rng_for("made", index, 0),
            dose_fraction=dose_fraction,
            scanner=scanner,
            kernel=kernel,
        ).hu
        for index in range(SLICES)
    ]
    return volume_of(np.stack(slices), thickness_mm=thickness_mm, **fields)


def volume_of(hu, **fields):
    return CTVolume.from_hu(hu, (3.0, PIXEL_MM, PIXEL_MM), **fields)


@pytest.mark.parametrize(
    ("kernel", "dose", "thickness_mm"),
    [(SOFT_KERNEL, 1.0, 3.0), (SOFT_KERNEL, 0.3, 1.0), (SHARP_KERNEL, 2.0, 5.0)],
)
def test_texture_and_dose_of_a_series_are_found(kernel, dose, thickness_mm):
    true = Scanner(photons=dose * DEFAULT_SCANNER.photons)
    volume = series(kernel, true, thickness_mm=thickness_mm)
    found = match_source(volume)
    measured = found.measured
    assert found.geometry == SliceGeometry(pixel_mm=PIXEL_MM, thickness_mm=thickness_mm)
    assert abs(found.model_frequency_per_mm - measured.mean_frequency_per_mm) <= TEXTURE_PER_MM
    frequency = np.linspace(0.1, 0.5 / PIXEL_MM, 40)
    shapes = [np.sqrt(frequency) * k.response(frequency) for k in (found.kernel, kernel)]
    shapes = [shape / np.linalg.norm(shape) for shape in shapes]
    assert shapes[0] @ shapes[1] > 0.99
    # Photons of the quietest quarter of the regions: each has about 5 % of the noise as error.
    assert found.scanner.photons == pytest.approx(true.photons, rel=0.25)
    assert f"{thickness_mm:g} mm" in found.basis


def test_water_of_a_phantom_will_do_where_there_is_no_tissue():
    volume = series(SHARP_KERNEL)
    water = volume_of(volume.hu - 50.0, thickness_mm=3.0)
    found = match_source(water)
    assert found.measured is not None
    assert found.scanner.photons == pytest.approx(DEFAULT_SCANNER.photons, rel=0.35)
    assert found.kernel.cutoff_per_mm > 1


def test_inserted_noise_takes_the_series_to_the_lower_dose():
    true = Scanner(photons=0.6 * DEFAULT_SCANNER.photons)
    volume = series(SOFT_KERNEL, true)
    low = series(SOFT_KERNEL, true, dose_fraction=0.25)
    found = match_source(volume)
    middle = np.s_[70:130, 80:160]
    made = [
        insert_noise(
            volume.read_slice(index),
            found.geometry,
            rng_for("inserted", index, 0),
            scanner=found.scanner,
            kernel=found.kernel,
        ).hu[middle]
        for index in range(SLICES)
    ]
    before, after, expected = (
        np.std([plane[middle] for plane in volume.slices()]),
        np.std(made),
        np.std([plane[middle] for plane in low.slices()]),
    )
    assert after == pytest.approx(expected, rel=0.12)
    assert after > 1.7 * before


def test_soft_and_sharp_are_told_apart_and_the_tag_is_judged():
    acquisition = Acquisition(manufacturer="SIEMENS", kernel="B30f")
    soft, sharp = (
        match_source(series(kernel, acquisition=acquisition))
        for kernel in (SOFT_KERNEL, SHARP_KERNEL)
    )
    gap = sharp.measured.mean_frequency_per_mm - soft.measured.mean_frequency_per_mm
    assert gap > 2 * TEXTURE_PER_MM
    assert "tag B30f agrees" in soft.basis
    assert "tag B30f disagrees" in sharp.basis


def test_the_same_series_is_matched_the_same():
    volume = series(SOFT_KERNEL)
    assert match_source(volume) == match_source(volume)


@pytest.mark.parametrize(
    ("asked", "kernel"),
    [("soft", SOFT_KERNEL), ("sharp", SHARP_KERNEL), ("B40f", kernel_named("B40f"))],
)
def test_a_kernel_that_is_asked_for_is_used_and_the_level_still_measured(asked, kernel):
    volume = series(SOFT_KERNEL, Scanner(photons=0.5 * DEFAULT_SCANNER.photons))
    found = match_source(volume, kernel=asked)
    assert found.kernel == kernel
    assert "as asked for" in found.basis
    flat = quiet_slices(volume, found.geometry)
    noise = [
        insert_noise(
            item.hu,
            found.geometry,
            rng_for("again", item.slice_index, 0),
            dose_fraction=0.5,
            scanner=found.scanner,
            kernel=kernel,
        ).hu
        - item.hu
        for item in flat
    ]
    inserted, _ = measure_noise(flat, found.geometry, noise)
    # Half the dose inserts as much quantum noise as there is; electronic noise adds a little.
    assert 0.9 < inserted.noise_hu / found.measured.noise_hu < 1.25


def test_an_unknown_kernel_is_refused():
    with pytest.raises(CddnetError, match="mystery"):
        match_source(volume_of(body()), kernel="mystery")


@pytest.mark.parametrize(
    ("acquisition", "kernel", "word"),
    [
        (Acquisition(manufacturer="SIEMENS", kernel="B70f"), kernel_named("B70f"), "tag B70f"),
        (Acquisition(kernel="mystery"), SOFT_KERNEL, "soft kernel assumed"),
        (Acquisition(), SOFT_KERNEL, "soft kernel assumed"),
    ],
)
def test_without_flat_tissue_the_tag_decides(acquisition, kernel, word):
    lung = np.full((2, *SHAPE), -850, np.float32)
    found = match_source(volume_of(lung, thickness_mm=1.25, acquisition=acquisition))
    assert (found.kernel, found.scanner, found.measured) == (kernel, TYPICAL_SCANNER, None)
    assert found.geometry.thickness_mm == 1.25
    assert word in found.basis
    assert "uncertain" in found.basis


def test_a_series_without_noise_has_no_level_to_measure():
    found = match_source(volume_of(np.stack([body()] * 2)))
    assert found.measured is None
    assert "no noise" in found.basis


@pytest.mark.parametrize("fine_hu", [0.0, 2.0])
def test_a_denoised_series_is_called_coarse(rng, fine_hu):
    """Blotches, alone and with the fine noise that an iterative reconstruction leaves."""
    white = rng.normal(0, 1, (2, SLICES, *SHAPE))
    blotches = ndimage.gaussian_filter(white[0], (0, 5, 5))
    hu = body() + 8 * blotches / blotches.std() + fine_hu * white[1]
    assert "coarser" in match_source(volume_of(hu.astype(np.float32))).basis
    assert "coarser" not in match_source(series(SOFT_KERNEL)).basis


def test_pixels_that_are_not_square_are_refused():
    volume = CTVolume.from_hu(np.zeros((1, 40, 40), np.float32), (1.0, 1.0, 2.0))
    with pytest.raises(GeometryError, match="square"):
        match_source(volume)


def test_the_texture_of_a_real_series_is_met():
    """From 0.1 per mm on; below, the anatomy of a real liver outweighs its noise."""
    volume = read_volume(demo_series())
    found = match_source(volume)
    flat = quiet_slices(volume, found.geometry)

    def texture(images):
        frequency, power = measure_noise(flat, found.geometry, images)[1]
        kept = frequency >= 0.1
        return power[kept] @ frequency[kept] / power[kept].sum()

    def inserted(kernel):
        rng = rng_for("inserted", 0, 0)
        options = {"scanner": found.scanner, "kernel": kernel}
        return texture(
            [insert_noise(item.hu, found.geometry, rng, **options).hu - item.hu for item in flat]
        )

    own = texture([item.hu for item in flat])
    assert abs(inserted(found.kernel) - own) < 0.01
    assert min(abs(inserted(kernel) - own) for kernel in (SOFT_KERNEL, SHARP_KERNEL)) > 0.03
    assert "tag STANDARD agrees" in found.basis

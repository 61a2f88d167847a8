"""The fitness check lets CT through, and says of each misfit what it is.

Above 300 lines: each misfit has a series of its own.
"""

import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from scipy import ndimage

from cddnet.formats import read_volume, write_volume
from cddnet.formats._facts import HeaderFacts
from cddnet.intensity.plausible import value_signs
from cddnet.metrics.noise import (
    flat_regions,
    mean_frequency_per_mm,
    noise_power_spectrum,
    radial_power,
)
from cddnet.metrics.plausibility import (
    measured_values,
    metal_mm2,
    noise_texture,
    value_levels,
)
from cddnet.physics.kernel import SOFT_KERNEL, Kernel
from cddnet.volume import Acquisition, CTVolume, Derivation
from cddnet.workflows._fitness_header import Kind
from cddnet.workflows._fitness_texture import expected_per_mm
from cddnet.workflows.fitness import METAL_MM2, Outcome, examine, forced

DEMO = Path(str(files("cddnet") / "data" / "demo" / "series"))
PIXEL_MM = 0.8
SHAPE = (1, 257, 301)
DERIVED, OURS = {"image_type": ("DERIVED",)}, {"ours": True}
NETWORK = Derivation(
    label="fast@1 75%",
    description="Denoised.",
    parameters=(("model", "fast@1"),),
    version="0",
    weights_sha256="ab" * 32,
)
SIMULATED = Derivation(
    label="simulated dose x0.25", description="SIMULATED.", parameters=(), version="0"
)


def noise_of(kernel, shape, seed=0):
    """Noise of filtered back projection: white noise times the root of its power, std 1."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(
        *np.meshgrid(*(np.fft.fftfreq(n, PIXEL_MM) for n in shape[-2:]), indexing="ij")
    )
    root = np.sqrt(frequency) * np.abs(kernel.response(frequency))
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=shape)) * root).real
    return noise / noise.std()


def body(kernel=SOFT_KERNEL, noise_hu=12.0):
    """Slices (D, H, W) of a trunk: skin of fat, soft tissue, two lungs and a spine."""
    _, height, width = SHAPE
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    hu = np.full((height, width), -1000.0)
    for centre_y, centre_x, half_y, half_x, value in (
        (0, 0, 0.8, 0.9, -100),
        (0, 0, 0.7, 0.8, 50),
        (-0.15, -0.45, 0.35, 0.2, -850),
        (-0.15, 0.45, 0.35, 0.2, -850),
        (0.45, 0, 0.1, 0.1, 500),
    ):
        hu[((y - centre_y) / half_y) ** 2 + ((x - centre_x) / half_x) ** 2 <= 1] = value
    return np.rint(hu + noise_hu * noise_of(kernel, SHAPE)).astype(np.float32)


def volume_of(stack, **fields):
    return CTVolume.from_hu(
        np.asarray(stack, np.float32), (5.0, PIXEL_MM, PIXEL_MM), **({"thickness_mm": 5.0} | fields)
    )


def kinds(fitness):
    return {finding.kind for finding in fitness.findings}


def test_a_trunk_is_fit():
    fitness = examine(volume_of(body()))
    assert fitness.findings == ()
    assert fitness.outcome is Outcome.fit
    assert fitness.refusal is None
    assert fitness.notes == ()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Two slices of the demo series."""
    folder = tmp_path_factory.mktemp("demo")
    for file in sorted(DEMO.iterdir())[:2]:
        shutil.copy(file, folder)
    return read_volume(folder)


def test_a_real_series_is_fit_with_and_without_its_header(demo):
    bare = replace(demo, headers=None, acquisition=Acquisition(), thickness_mm=None)
    assert examine(demo).outcome is Outcome.fit
    assert examine(bare).outcome is Outcome.fit


@pytest.mark.parametrize("shift", [-1024, -1000, 1000, 1024])
@pytest.mark.parametrize("lowest", [-3024, -1024])
def test_an_offset_of_a_thousand_is_refused(shift, lowest):
    fitness = examine(volume_of(np.maximum(body() + shift, lowest)))
    assert kinds(fitness) == {Kind.values}
    assert fitness.outcome is Outcome.refused
    assert "RescaleIntercept" in fitness.refusal


def test_a_field_of_view_without_air_is_fit():
    inside = body()[:, 40:215, 120:185]
    assert value_signs(inside.ravel()).airy == 0
    assert kinds(examine(volume_of(inside))) == set()


@pytest.mark.parametrize("intercept", [0, -1024])
def test_a_real_mr_image_is_refused(intercept):
    image = pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array.astype(np.float32)
    fitness = examine(volume_of(image + intercept))
    assert fitness.outcome is not Outcome.fit
    assert Kind.values in kinds(fitness)


@pytest.mark.parametrize("window_hu", [(-160, 240), (-1350, 150), (-1024, 3071), (-127, 128)])
def test_grey_levels_are_noted(window_hu):
    low, high = window_hu
    levels = np.rint(np.clip((body() - low) / (high - low), 0, 1) * 255)
    assert Kind.levels in kinds(examine(volume_of(np.rint(levels / 255 * (high - low) + low))))
    assert examine(volume_of(levels)).outcome is Outcome.refused


def test_a_phantom_of_few_values_is_no_picture_of_eight_bits():
    assert kinds(examine(volume_of(body(noise_hu=0.0)))) == {Kind.noise}


def test_metal_is_noted_from_its_area_on():
    stack = body()
    pixels = int(METAL_MM2 / PIXEL_MM**2)
    stack[0, 120, 60 : 60 + pixels] = 3500
    assert metal_mm2(stack[0], PIXEL_MM**2) == pytest.approx(pixels * PIXEL_MM**2)
    assert Kind.metal not in kinds(examine(volume_of(stack)))
    stack[0, 120, 60 + pixels] = 3500
    assert Kind.metal in kinds(examine(volume_of(stack)))


def test_blurred_slices_are_noted_and_refused_where_the_kernel_is_known():
    stack = np.rint(ndimage.gaussian_filter(body(noise_hu=40), (0, 1.5, 1.5)))
    tagged = HeaderFacts(kernel="B30f", manufacturer="SIEMENS")
    assert examine(volume_of(body(noise_hu=40)), tagged).outcome is Outcome.fit
    assert kinds(examine(volume_of(stack))) == {Kind.smooth}
    assert examine(volume_of(stack)).outcome is Outcome.noted
    assert examine(volume_of(stack), tagged).outcome is Outcome.refused


def test_beside_metal_texture_refuses_nothing():
    stack = np.rint(ndimage.gaussian_filter(body(noise_hu=40), (0, 1.5, 1.5)))
    stack[0, 120:130, 60:70] = 3500
    fitness = examine(volume_of(stack), HeaderFacts(kernel="B30f", manufacturer="SIEMENS"))
    assert kinds(fitness) == {Kind.metal, Kind.smooth}
    assert fitness.outcome is Outcome.noted


def test_noise_outside_training_is_noted():
    assert kinds(examine(volume_of(body(noise_hu=2.0)))) == {Kind.noise}
    assert Kind.noise in kinds(examine(volume_of(body(noise_hu=160.0))))
    sharpest = Kernel(cutoff_per_mm=8.0, boost=20.0, aperture_mm=0.0)
    assert kinds(examine(volume_of(body(sharpest, 40.0)))) == {Kind.sharp}


def test_pixels_and_slices_outside_training_are_noted():
    wide = replace(volume_of(body()), spacing_mm=(5.0, 1.5, 1.5))
    assert Kind.pixel_size in kinds(examine(wide))
    assert kinds(examine(volume_of(body(), thickness_mm=10.0))) == {Kind.thickness}
    assert kinds(examine(volume_of(body(), thickness_mm=None))) == set()


def test_small_slices_are_not_judged_by_their_values():
    fitness = examine(volume_of(np.zeros((1, 33, 47))))
    assert Kind.small in kinds(fitness)
    assert fitness.outcome is Outcome.noted


def test_mirrored_slices_come_to_the_same():
    stack = body(noise_hu=3.0) + 1000
    expected = kinds(examine(volume_of(stack)))
    assert expected
    for axis in (1, 2):
        assert kinds(examine(volume_of(np.flip(stack, axis)))) == expected


@pytest.mark.parametrize(
    ("fields", "kind", "outcome"),
    [
        ({"kernel": "AICE_BODY_SHARP"}, Kind.learned, Outcome.refused),
        ({"series_description": "ABD TrueFidelity-H 1.25"}, Kind.learned, Outcome.refused),
        ({"series_description": "Chest Precise Image smooth"}, Kind.learned, Outcome.refused),
        ({"series_description": "Thorax PixelShine A3"}, Kind.denoised, Outcome.refused),
        ({"series_description": "Abdomen ADMIRE 3"}, Kind.iterative, Outcome.noted),
        ({"series_description": "SAFIRE_2 thin"}, Kind.iterative, Outcome.noted),
        ({"series_description": "ASiR-V 40%"}, Kind.iterative, Outcome.noted),
        ({"series_description": "STD BRAIN 1MM, iDose (3)"}, Kind.iterative, Outcome.noted),
        ({"series_description": "AIDR3De STD"}, Kind.iterative, Outcome.noted),
        ({"kernel": "Br30d\\3", "manufacturer": "SIEMENS"}, Kind.iterative, Outcome.noted),
        ({"kernel": "I31f", "manufacturer": "SIEMENS"}, Kind.iterative, Outcome.noted),
        (DERIVED | {"series_description": "MonoE 70 keV"}, Kind.derived, Outcome.refused),
        ({"series_description": "MonoE 70 keV"}, Kind.derived, Outcome.noted),
        (DERIVED | {"series_description": "CBF"}, Kind.derived, Outcome.refused),
        ({"series_description": "Scout"}, Kind.localizer, Outcome.noted),
        (OURS | {"series_description": "A fast@1 75% research"}, Kind.denoised, Outcome.refused),
        (OURS | {"series_description": "renamed"}, Kind.denoised, Outcome.refused),
    ],
)  # fmt: skip
def test_headers_name_what_was_done(fields, kind, outcome):
    fitness = examine(volume_of(body()), HeaderFacts(**fields))
    assert kinds(fitness) == {kind}
    assert fitness.outcome is outcome


@pytest.mark.parametrize(
    "text",
    ["PET-CT SERIES", "LOCALIZATION", "DYNAMIC MODE", "ThoraxRoutine 8.0.0 B70f", "Iris clinic II",
     "simulated dose x0.25 research", "Abdomen primrose", "Vestibular", "5mm VEOlia"],
)  # fmt: skip
def test_plain_headers_name_nothing(text):
    facts = HeaderFacts(
        series_description=text, kernel="Br30d", manufacturer="SIEMENS", ours="simulated" in text
    )
    assert examine(volume_of(body()), facts).outcome is Outcome.fit


def test_a_recorded_network_refuses_and_a_simulation_does_not(tmp_path):
    volume = volume_of(body())
    for step, outcome in ((NETWORK, Outcome.refused), (SIMULATED, Outcome.fit)):
        target = tmp_path / f"{step.label[:4]}.nii.gz"
        write_volume(volume.derived(volume.read_slice, step), target)
        assert examine(read_volume(target)).outcome is outcome


def test_a_denoised_dicom_series_is_refused_and_a_simulated_one_is_not(tmp_path, demo):
    for number, (steps, outcome) in enumerate(
        [
            ((SIMULATED,), Outcome.fit),
            ((NETWORK,), Outcome.refused),
            ((SIMULATED, NETWORK), Outcome.refused),
            ((NETWORK, SIMULATED), Outcome.refused),
        ]
    ):
        made = demo
        for step in steps:
            made = made.derived(made.read_slice, step)
        write_volume(made, tmp_path / str(number))
        fitness = examine(read_volume(tmp_path / str(number)))
        assert fitness.outcome is outcome
        assert (Kind.denoised in kinds(fitness)) == (outcome is Outcome.refused)


def test_force_stands_in_the_derived_header(tmp_path, demo):
    refused = examine(replace(demo, derivation=(NETWORK,)))
    step = forced(NETWORK, refused.refused_kinds)
    write_volume(demo.derived(demo.read_slice, step), tmp_path / "made")
    header = pydicom.dcmread(next((tmp_path / "made").iterdir()), stop_before_pixels=True)
    mark = "FORCED although the fitness check refused it: denoised"
    assert mark in header.DerivationDescription
    assert mark in header.ContributingEquipmentSequence[-1].ContributionDescription
    assert dict(step.parameters)["forced"] == "denoised"


def test_values_cut_to_a_window_are_judged_by_what_it_left():
    brain = volume_of(np.clip(body(), 0, 80))
    assert examine(brain).outcome is Outcome.refused
    assert examine(replace(brain, window_hu=(0.0, 80.0))).outcome is not Outcome.refused
    # Black there would be -160 HU, and nothing is.
    assert examine(replace(brain, window_hu=(-160.0, 240.0))).outcome is Outcome.refused
    # Nothing of that window says whether it is HU.
    bone = replace(volume_of(np.clip(body(), 300, 1500)), window_hu=(300.0, 1500.0))
    assert any("no soft tissue" in note for note in examine(bone).notes)


def test_force_changes_nothing_of_a_fit_series():
    assert forced(NETWORK, examine(volume_of(body())).refused_kinds) == NETWORK


@pytest.mark.parametrize("kernel", [SOFT_KERNEL, Kernel(cutoff_per_mm=1.87, boost=0.3)])
def test_the_expected_frequency_is_that_of_the_kernels_noise(kernel):
    # A corner on every 40th pixel: the regions are independent.
    side, places = 16, np.indices((12, 12)).reshape(2, -1).T * 40
    found = []
    for noise in noise_of(kernel, (6, 512, 512), seed=3):
        power = noise_power_spectrum(flat_regions(noise, places, side), PIXEL_MM).mean(axis=0)
        found.append(float(mean_frequency_per_mm(radial_power(power, PIXEL_MM))))
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    expected = expected_per_mm(kernel, PIXEL_MM)
    assert abs(np.mean(found) - expected) < 4 * error
    assert error < 0.01 * expected


def test_white_noise_has_all_frequencies_alike():
    rng = np.random.default_rng(5)
    noise = 50 + rng.normal(0, 20, (4, 512, 512))
    found = [noise_texture([hu], PIXEL_MM) for hu in noise]
    shares = np.array([texture.high_share for texture in found])
    assert abs(shares.mean() - 1) < 4 * shares.std(ddof=1) / 2 + 0.01
    # The quietest quarter of regions of 250 degrees of freedom lies 1.27 of their spread low.
    low = 20 * (1 - 1.27 / np.sqrt(2 * 250))
    assert np.mean([texture.level_hu for texture in found]) == pytest.approx(low, rel=0.01)


def test_shares_of_values_are_counted():
    values = np.repeat([-1000.0, -300.0, -100.0, 50.0, 400.0, 900.0], [4, 1, 1, 2, 1, 1])
    signs = value_signs(values)
    assert signs == pytest.approx((0.4, 0.6, 0.3, 0.5, 1 / 6, 1 / 6))
    assert value_signs(values[4:]).airy == 0
    assert value_levels(values) == (6, 1.0, 0.1)
    assert value_levels(np.arange(5.0)) == (5, 0.0, 0.2)


def test_padding_counts_as_no_value_whether_told_or_not():
    inside = np.full((1, 20, 20), 40.0)
    inside[0, :10] = -2000
    told = measured_values(inside, inside == -2000)
    untold = measured_values(inside, np.zeros(inside.shape, bool))
    assert set(told) == set(untold) == {40.0}
    air = np.where(inside == -2000, -1000, inside)
    assert set(measured_values(air, np.zeros(air.shape, bool))) == {-1000.0, 40.0}


def test_the_check_needs_no_torch():
    code = "import sys, cddnet.workflows.fitness; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Structure that left with the noise, and structure that was not there."""

import numpy as np
import pytest
from scipy import ndimage

from cddnet.errors import CddnetError
from cddnet.metrics.structure import (
    ScanningFrc,
    _crossings,
    residual_power,
    residual_structure,
    scanning_frc,
)

SIDE, PIXEL_MM = 193, 0.7


@pytest.fixture
def anatomy():
    """Soft tissue with round organs, clean (H, W)."""
    rng = np.random.default_rng(4)
    rows, columns = np.indices((SIDE, SIDE + 20))
    hu = np.full(rows.shape, 40.0)
    for _ in range(25):
        row, column, radius = rng.uniform(0, SIDE), rng.uniform(0, SIDE + 20), rng.uniform(6, 18)
        hu[np.hypot(rows - row, columns - column) < radius] = rng.uniform(10, 120)
    return ndimage.gaussian_filter(hu, 1.0)


def smooth_noise(shape, rng, sigma_hu=20.0):
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 1.2)
    return sigma_hu * noise / noise.std()


def test_removing_noise_alone_leaves_no_structure(anatomy, rng):
    noise = rng.standard_normal(anatomy.shape)
    found = residual_structure(anatomy, anatomy + 20 * noise, anatomy)
    assert abs(found.correlation) < 4 / np.sqrt(anatomy.size)


def test_chance_covers_correlated_noise(anatomy, rng):
    source = anatomy + smooth_noise(anatomy.shape, rng)
    found = residual_structure(anatomy, source, anatomy)
    assert found.by_chance
    assert found.chance_low < 0 < found.chance_high


def test_removed_edges_are_seen(anatomy, rng):
    source = anatomy + smooth_noise(anatomy.shape, rng, sigma_hu=5.0)
    blurred = ndimage.gaussian_filter(source, 2.0)
    found = residual_structure(anatomy, source, blurred)
    assert found.correlation > 0.1
    assert not found.by_chance
    noiseless = residual_structure(anatomy, anatomy, ndimage.gaussian_filter(anatomy, 2.0))
    assert noiseless.correlation > 0.6


def test_the_correlation_is_that_of_the_formula(anatomy, rng):
    source = anatomy + smooth_noise(anatomy.shape, rng)
    output = ndimage.gaussian_filter(source, 1.0)
    mask = np.zeros(anatomy.shape, bool)
    mask[20:150, 30:170] = True
    smooth = ndimage.gaussian_filter(anatomy, 1.5)
    gradient = np.hypot(*np.gradient(smooth))[mask]
    removed = np.abs(source - output)[mask]
    x, y = gradient - gradient.mean(), removed - removed.mean()
    by_hand = (x @ y) / np.sqrt((x @ x) * (y @ y))
    found = residual_structure(anatomy, source, output, mask=mask)
    # A derivative of the Gaussian against differences of the smoothed image.
    assert found.correlation == pytest.approx(by_hand, abs=0.01)


def test_structure_needs_a_residual_edges_and_room(anatomy):
    with pytest.raises(CddnetError, match="residual is the same everywhere"):
        residual_structure(anatomy, anatomy, anatomy)
    flat = np.zeros_like(anatomy)
    with pytest.raises(CddnetError, match="gradient of the reference"):
        residual_structure(flat, anatomy, flat)
    with pytest.raises(CddnetError, match="too small"):
        residual_structure(flat[:40], anatomy[:40], flat[:40])


def test_removed_and_added_power(anatomy, rng):
    full = np.full(anatomy.shape, 50.0)
    low = full + smooth_noise(full.shape, rng)
    perfect = residual_power(full, low, full, PIXEL_MM)
    np.testing.assert_allclose(perfect.removed.power, perfect.added.power)
    half = residual_power(full, low, (full + low) / 2, PIXEL_MM)
    np.testing.assert_allclose(half.removed.power, perfect.added.power / 4, atol=1e-9)
    nothing = residual_power(full, low, low, PIXEL_MM)
    assert not nothing.removed.power.any()
    with pytest.raises(CddnetError, match="no flat region"):
        residual_power(full - 500, low, full, PIXEL_MM)


def test_identical_images_agree_everywhere(anatomy, rng):
    image = anatomy + smooth_noise(anatomy.shape, rng)
    found = scanning_frc(image, image, pixel_mm=PIXEL_MM)
    np.testing.assert_allclose(found.frc, 1.0)
    nyquist = 1 / (2 * PIXEL_MM)
    np.testing.assert_allclose(found.crossing_per_mm, nyquist)
    assert found.frequency_per_mm[-1] == pytest.approx(nyquist)
    assert len(found.flagged(nyquist)) == 0


def test_independent_noise_does_not_agree(rng):
    first, second = rng.standard_normal((2, 320, 320))
    found = scanning_frc(first, second, pixel_mm=PIXEL_MM, step=64)
    mean = found.frc.mean(axis=0)
    error = found.frc.std(axis=0, ddof=1) / np.sqrt(len(found.frc))
    assert np.all(np.abs(mean) < 4 * error)
    assert np.median(found.crossing_per_mm) < 3 / (64 * PIXEL_MM)


def test_equal_signal_and_noise_agree_as_the_formula_says(rng):
    """Common white signal of variance S, noise of variance N in each: FRC is S / (S + N)."""
    shared, first, second = rng.standard_normal((3, 320, 320))
    found = scanning_frc(shared + first / 2, shared + second / 2, pixel_mm=PIXEL_MM, step=64)
    beyond = found.frc[:, 9:]
    error = beyond.mean(axis=1).std(ddof=1) / np.sqrt(len(beyond))
    assert abs(beyond.mean() - 0.8) < 4 * error + 0.005


def test_agreement_ends_where_the_shared_band_ends(rng):
    """Common content below 0.3 cycles per mm, loud noise of each image above."""
    axis = np.fft.fftfreq(320, PIXEL_MM)
    frequency = np.hypot(axis[:, None], axis)

    def band(passed):
        return np.fft.ifft2(np.fft.fft2(rng.standard_normal((320, 320))) * passed).real

    shared = band(frequency < 0.3)
    first, second = (shared + 2 * band(frequency >= 0.3) for _ in range(2))
    found = scanning_frc(first, second, pixel_mm=PIXEL_MM, step=64)
    # To a ring of the patch and the width of its window.
    np.testing.assert_allclose(found.crossing_per_mm, 0.3, atol=2 / (64 * PIXEL_MM))


def test_a_patch_is_correlated_ring_by_ring_under_a_hann_window(anatomy, rng):
    images = [anatomy + smooth_noise(anatomy.shape, rng) for _ in range(2)]
    found = scanning_frc(*images, pixel_mm=PIXEL_MM)
    row, column = found.corners[5]
    hann = np.outer(*[0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1, 65) / 65)] * 2)
    one, two = (
        np.fft.fft2((p - p.mean()) * hann)
        for p in (image[row : row + 64, column : column + 64] for image in images)
    )
    cycles = np.fft.fftfreq(64) * 64
    rings = np.round(np.hypot(*np.meshgrid(cycles, cycles))).astype(int)
    for ring in (1, 7, 32):
        inside = rings == ring
        common = np.vdot(two[inside], one[inside]).real
        expected = common / np.linalg.norm(one[inside]) / np.linalg.norm(two[inside])
        assert found.frc[5, ring - 1] == pytest.approx(expected, abs=1e-9)


def test_gain_does_not_matter_and_sign_does(anatomy):
    found = scanning_frc(anatomy, 3 * anatomy - 20, pixel_mm=PIXEL_MM)
    np.testing.assert_allclose(found.frc, 1.0, atol=1e-6)
    opposite = scanning_frc(anatomy, -anatomy, pixel_mm=PIXEL_MM)
    np.testing.assert_allclose(opposite.frc, -1.0, atol=1e-6)
    assert np.all(opposite.crossing_per_mm < 1 / (64 * PIXEL_MM))


def test_a_planted_fake_is_flagged_where_it_is(anatomy, rng):
    reference = anatomy + smooth_noise(anatomy.shape, rng, sigma_hu=2.0)
    output = anatomy + smooth_noise(anatomy.shape, rng, sigma_hu=2.0)
    honest = scanning_frc(reference, output, pixel_mm=PIXEL_MM)
    limit = honest.distribution()["least"]
    rows, columns = np.indices(anatomy.shape)
    fake = output + 150.0 * (np.hypot(rows - 64, columns - 96) < 9)
    found = scanning_frc(reference, fake, pixel_mm=PIXEL_MM)
    flagged = {tuple(corner) for corner in found.flagged(limit)}
    # The patch in whose middle it lies; and none that does not touch it.
    assert (32, 64) in flagged
    touched = {(r, c) for r, c in found.corners if -9 < 64 - r < 73 and -9 < 96 - c < 73}
    assert flagged <= touched
    shares = list(found.distribution().values())
    assert shares == sorted(shares)


def test_only_patches_in_the_mask_and_empty_ones_agree(anatomy):
    mask = np.zeros(anatomy.shape, bool)
    mask[:100] = True
    image = np.where(mask, 0.0, anatomy)
    found = scanning_frc(image, image, pixel_mm=PIXEL_MM, mask=mask)
    assert found.corners[:, 0].max() + 32 < 100
    np.testing.assert_allclose(found.frc, 1.0)
    with pytest.raises(CddnetError, match="mask holds"):
        scanning_frc(image, image, pixel_mm=PIXEL_MM, mask=np.zeros_like(mask))


def test_other_sizes_are_refused(anatomy):
    with pytest.raises(CddnetError, match="one size"):
        scanning_frc(anatomy, anatomy[:-1], pixel_mm=PIXEL_MM)
    with pytest.raises(CddnetError, match="at least 64"):
        scanning_frc(anatomy[:60], anatomy[:60], pixel_mm=PIXEL_MM)


def test_what_lies_outside_the_mask_does_not_count(anatomy, rng):
    """Neither for the correlation nor for what it is by chance."""
    source = anatomy + smooth_noise(anatomy.shape, rng)
    output = ndimage.gaussian_filter(source, 1.0)
    mask = np.zeros(anatomy.shape, bool)
    mask[30:140, 30:150] = True
    beyond = ~ndimage.binary_dilation(mask, iterations=14)
    loud = source + np.where(mask, 0.0, 500 * rng.standard_normal(source.shape))
    strange = np.where(beyond, 300.0 * rng.standard_normal(anatomy.shape), anatomy)
    found = residual_structure(anatomy, source, output, mask=mask)
    changed = residual_structure(strange, loud, output, mask=mask)
    assert tuple(changed) == pytest.approx(tuple(found), rel=1e-6)


def test_patches_are_those_whose_centre_lies_in_the_mask(anatomy):
    mask = np.zeros(anatomy.shape, bool)
    mask[40:140, 45:100] = True
    mask[96, 96] = False
    found = scanning_frc(anatomy, anatomy, pixel_mm=PIXEL_MM, step=16, mask=mask)
    expected = [
        (row, column)
        for row in range(0, SIDE - 63, 16)
        for column in range(0, SIDE + 20 - 63, 16)
        if mask[row + 32, column + 32]
    ]
    assert found.corners.tolist() == [list(corner) for corner in expected]
    assert 3 < len(expected) < 40


def test_patches_overlap_by_half_unless_said_otherwise(anatomy):
    corners = scanning_frc(anatomy, anatomy, pixel_mm=PIXEL_MM).corners
    rows, columns = (sorted(set(axis)) for axis in corners.T.tolist())
    # The last ones end with the image: 193 and 213 pixels.
    assert rows == [0, 32, 64, 96, 128]
    assert columns == rows


def test_what_one_image_alone_holds_agrees_with_nothing(anatomy):
    found = scanning_frc(anatomy, np.zeros_like(anatomy), pixel_mm=PIXEL_MM)
    assert not found.frc.any()
    assert (found.crossing_per_mm < 1 / (64 * PIXEL_MM)).all()


def test_every_patch_fits_whole(rng):
    image = rng.standard_normal((95, 127))
    corners = scanning_frc(image, image, pixel_mm=PIXEL_MM).corners
    assert corners.tolist() == [[0, 0], [0, 32]]


def test_a_crossing_lies_on_the_line_between_two_rings(rng):
    frequency = np.arange(1, 9) / 5.0
    falling = np.sort(rng.uniform(0.01, 0.99, (20, 8)), axis=1)[:, ::-1]
    # At zero frequency images less their means agree; what never falls crosses at the end.
    for row, found in zip(falling, _crossings(frequency, falling), strict=True):
        line = np.interp(-0.5, -np.concatenate([[1.0], row]), np.concatenate([[0.0], frequency]))
        assert found == pytest.approx(line)
    assert _crossings(frequency, np.full((1, 8), 0.5)) == frequency[-1]


def test_shares_of_crossings_are_percentiles():
    crossing = np.arange(101.0)
    frc = ScanningFrc(np.zeros((101, 2), int), np.ones(1), np.ones((101, 1)), crossing)
    shares = {"least": 0, "5 %": 5, "25 %": 25, "median": 50, "75 %": 75, "most": 100}
    assert frc.distribution() == pytest.approx(shares)

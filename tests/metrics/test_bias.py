"""Bias planted in one tissue is found there and nowhere else."""

import math

import numpy as np
import pytest
from scipy import ndimage, stats

from cddnet.metrics.bias import (
    TISSUES_HU,
    largest_local_mean_hu,
    linearity,
    local_mean_map_hu,
    tissue_masks,
    tissue_means,
)

SHAPE = (151, 187)
TRUE_HU = {"lung": -850.0, "fat": -100.0, "soft": 50.0, "organ": 110.0, "bone": 700.0}
# Rows and columns of a block of each tissue inside the body, whose rest is soft tissue.
BLOCKS = {
    "lung": np.s_[30:70, 40:75],
    "fat": np.s_[30:70, 90:150],
    "organ": np.s_[85:125, 40:90],
    "bone": np.s_[90:120, 110:150],
}


def body():
    """Air, a body of soft tissue with blocks, and a table of foam."""
    hu = np.full(SHAPE, -1000.0)
    hu[15:130, 20:170] = TRUE_HU["soft"]
    for name, block in BLOCKS.items():
        hu[block] = TRUE_HU[name]
    hu[138:148, 10:180] = -850.0
    return hu


def where(name):
    """Every pixel whose true HU is that of the tissue, inside the body."""
    mask = body() == TRUE_HU[name]
    mask[138:148] = False
    return mask


@pytest.mark.parametrize("name", TISSUES_HU)
@pytest.mark.parametrize("planted_hu", [-4.0, 2.5])
def test_a_planted_bias_is_found_in_its_tissue_alone(name, planted_hu, rng):
    noise_hu, slices = 12.0, 3
    pairs = []
    for _ in range(slices):
        reference = body() + rng.normal(0, 4, SHAPE)
        test = reference + rng.normal(0, noise_hu, SHAPE) + planted_hu * where(name)
        pairs.append((reference, np.stack([test, reference])))
    found = tissue_means(pairs)
    assert set(found) == set(TISSUES_HU)
    for tissue, means in found.items():
        expected = planted_hu if tissue == name else 0.0
        assert means.bias_hu[0] == pytest.approx(
            expected, abs=4 * noise_hu / math.sqrt(means.pixels)
        )
        assert means.bias_hu[1] == pytest.approx(0, abs=1e-9)
        assert means.reference_hu == pytest.approx(TRUE_HU[tissue], abs=1)
        assert 4 * noise_hu / math.sqrt(means.pixels) < abs(planted_hu) / 2


@pytest.mark.parametrize("name", TISSUES_HU)
def test_tissues_keep_from_others_air_and_the_table(name, rng):
    mask = tissue_masks(body() + rng.normal(0, 4, SHAPE))[name]
    deep = ndimage.binary_erosion(where(name), iterations=2)
    assert mask.any()
    assert not (mask & ~deep).any()
    # Three pixels of erosion and the reach of the smoothing, not more.
    assert (mask | ~ndimage.binary_erosion(where(name), iterations=9)).all()


def test_noise_of_the_reference_is_no_bias_of_a_better_image(rng):
    truth = np.full(SHAPE, -1000.0)
    truth[15:130, 20:170] = 35.0
    reference = truth + rng.normal(0, 25, SHAPE)
    # Of pixels chosen by their own noise, nearer to the middle of the class than the truth.
    low, high = TISSUES_HU["soft"]
    chosen = (reference >= low) & (reference <= high)
    regression_hu = (truth - reference)[chosen].mean()
    assert regression_hu < -10
    (means,) = tissue_means([(reference, truth[None])]).values()
    assert abs(means.bias_hu[0]) < abs(regression_hu) / 5


def test_a_tissue_that_is_not_there_is_left_out():
    hu = np.full(SHAPE, -1000.0)
    hu[15:130, 20:170] = 50.0
    assert list(tissue_means([(hu, hu[None])])) == ["soft"]
    assert tissue_means([]) == {}


def test_slices_are_pooled_by_their_pixels():
    first, second = body(), np.roll(body(), 3, axis=1)
    second[30:50, 90:150] = 50.0
    counts = [tissue_masks(hu)["fat"].sum() for hu in (first, second)]
    assert counts[0] > counts[1] > 0
    pairs = [(first, first[None] + 2.0), (second, second[None] + 8.0)]
    means = tissue_means(pairs)["fat"]
    expected = (2 * counts[0] + 8 * counts[1]) / sum(counts)
    assert means.pixels == sum(counts)
    assert means.bias_hu[0] == pytest.approx(expected, rel=1e-9)


def test_the_line_is_that_of_scipy(rng):
    truth = np.array([-850.0, -100.0, 50.0, 110.0, 700.0])
    measured = 0.98 * truth + 3 + rng.normal(0, 2, 5)
    found, expected = linearity(truth, measured), stats.linregress(truth, measured)
    assert found.slope == pytest.approx(expected.slope, rel=1e-12)
    assert found.intercept_hu == pytest.approx(expected.intercept, rel=1e-9)
    assert found.r_squared == pytest.approx(expected.rvalue**2, rel=1e-12)
    assert found.largest_deviation_hu == max(measured - truth, key=abs)
    assert linearity(truth, truth) == (1, 0, 1, 0)


def test_one_material_is_no_line():
    with pytest.raises(ValueError, match="at least two materials"):
        linearity(np.array([5.0, 5.0]), np.array([4.0, 6.0]))


def test_local_means_keep_a_plane_and_quieten_noise(rng):
    rows, columns = np.indices(SHAPE)
    inner = np.s_[20:-20, 20:-20]
    plane = 0.3 * rows - 0.2 * columns
    assert local_mean_map_hu(plane, 0.8)[inner] == pytest.approx(plane[inner], abs=1e-9)
    # 25 pixels of 0.8 mm are 20 mm.
    mean = local_mean_map_hu(rng.normal(0, 10, SHAPE), 0.8)
    assert np.abs(mean[inner]).max() < 5 * 10 / 25
    assert mean[inner].std() == pytest.approx(10 / 25, rel=0.5)


@pytest.mark.parametrize("planted_hu", [-6.0, 4.0])
def test_the_largest_local_mean_is_the_one_planted_in_the_body(planted_hu, rng):
    inside = np.zeros(SHAPE, np.bool_)
    inside[15:130, 20:170] = True
    noise = rng.normal(0, 10, SHAPE)
    assert abs(largest_local_mean_hu(noise, 0.8, inside)) < 5 * 10 / 25
    noise[40:75, 60:95] += planted_hu
    noise[~inside] += 100
    found = largest_local_mean_hu(noise, 0.8, inside)
    assert found == pytest.approx(planted_hu, abs=5 * 10 / 25)


def test_a_body_smaller_than_the_square_has_no_local_mean():
    inside = np.zeros(SHAPE, np.bool_)
    inside[15:35, 20:170] = True
    assert largest_local_mean_hu(np.ones(SHAPE), 0.8, inside) is None


def test_tissue_is_chosen_after_a_blur_of_two_pixels():
    """A bright pixel of height A raises its place by A / (2 pi sigma^2)."""
    for smoothed_hu, kept in ((138.0, True), (142.0, False)):
        hu = body()
        hu[105, 65] += (smoothed_hu - TRUE_HU["organ"]) * 2 * np.pi * 2.0**2
        assert tissue_masks(hu)["organ"][105, 65] == kept


def test_three_pixels_of_every_edge_are_left_out():
    """Of the block of organ, 40 x 50 pixels, the smoothed edge of which stays in its place."""
    between = (TRUE_HU["organ"] + TRUE_HU["soft"]) / 2
    assert TISSUES_HU["organ"][0] == between
    found = tissue_masks(body())["organ"][85:125, 40:90]
    expected = np.zeros((40, 50), bool)
    expected[3:-3, 3:-3] = True
    inner = np.s_[10:30, 10:40]
    assert np.array_equal(found[:, inner[1]], expected[:, inner[1]])
    assert np.array_equal(found[inner[0]], expected[inner[0]])


def test_only_squares_that_lie_whole_in_image_and_body_count(rng):
    change, side = rng.normal(0, 1, (27, 33)), 5
    change[0, 0] = 400.0
    body = np.ones(change.shape, bool)
    body[10, 12] = False
    means = [
        change[row : row + side, column : column + side].mean()
        for row in range(27 - side + 1)
        for column in range(33 - side + 1)
        if body[row : row + side, column : column + side].all()
    ]
    expected = max(means, key=abs)
    assert largest_local_mean_hu(change, 1.0, body, side_mm=5.0) == pytest.approx(expected)
    assert abs(expected - 16) < 2


def test_means_are_those_of_the_masked_pixels(rng):
    pairs = [(body() + rng.normal(0, 4, SHAPE), rng.normal(0, 9, (2, *SHAPE))) for _ in range(2)]
    for name, found in tissue_means(pairs).items():
        masks = [tissue_masks(reference)[name] for reference, _ in pairs]
        reference = [image[mask] for (image, _), mask in zip(pairs, masks, strict=True)]
        tests = [image[:, mask] for (_, image), mask in zip(pairs, masks, strict=True)]
        assert found.reference_hu == pytest.approx(np.concatenate(reference).mean(), rel=1e-12)
        mean_hu = np.concatenate(tests, axis=1).mean(axis=1)
        assert found.test_hu == pytest.approx(mean_hu, rel=1e-12, abs=1e-12)

"""Pairs of low and full dose: reproducible, different each time, and really noisier."""

from itertools import islice

import numpy as np
import pytest
import torch

from cddnet.config import NoiseRange, TrainConfig
from cddnet.intensity.normalise import to_hu
from cddnet.physics.beam import Scanner, SliceGeometry
from cddnet.physics.dose import add_noise, rng_for
from cddnet.physics.kernel import Kernel
from cddnet.training.pairs import FullDoseSlice, NoisyPairs, OwnNoise, noisy, own_low_dose

CROP = 64
SHAPE = (97, 83)


def slice_of(index, shape=SHAPE):
    """A disc of 20 + index HU in air, so that a crop tells its slice."""
    rows, columns = np.indices(shape)
    inside = np.hypot(rows - shape[0] / 2, columns - shape[1] / 2) < 38
    hu = np.where(inside, 20.0 + index, -1000.0).astype(np.float32)
    return FullDoseSlice(hu, SliceGeometry(3.0, 5.0), "1.2.3", index)


SLICES = [slice_of(index) for index in range(3)]


def config(**values):
    return TrainConfig(split="none", crop=CROP, **({"crops_per_slice": 1} | values))


def draws(count, *, first=0, **values):
    return list(islice(iter(NoisyPairs(SLICES, config(**values), first)), count))


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_same_draw_gives_the_same_pair():
    once = draws(4)
    assert all(equal(a, b) for a, b in zip(once, draws(4), strict=True))
    assert all(equal(a, b) for a, b in zip(once[2:], draws(2, first=2), strict=True))


def test_different_draws_and_seeds_differ():
    pairs = draws(4) + draws(4, first=4) + draws(4, seed=1)
    for number, pair in enumerate(pairs):
        assert not any(torch.equal(pair.low_dose, other.low_dose) for other in pairs[:number])


def test_each_slice_comes_once_in_a_round():
    pairs = draws(6)
    seen = [round(to_hu(pair.full_dose).max().item()) - 20 for pair in pairs]
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]


def test_crops_of_one_slice_share_its_noise_level_but_not_their_place():
    first, second, third = draws(3, crops_per_slice=2)
    assert first.full_dose.max() == second.full_dose.max() != third.full_dose.max()
    assert not torch.equal(first.low_dose, second.low_dose)


def test_crops_are_in_network_range_and_noisy():
    for pair in draws(6, noise=NoiseRange(full_dose_share=0.0)):
        assert {tensor.shape for tensor in pair[:3]} == {(1, CROP, CROP)}
        assert {tensor.dtype for tensor in pair} == {torch.float32}
        assert all(torch.isfinite(tensor).all() for tensor in pair)
        assert pair.full_dose.min() >= -1000 / 1024
        assert 20 / 1024 <= pair.full_dose.max() <= 22 / 1024
        body = pair.full_dose > 0
        assert body.float().mean() >= 0.2
        assert pair.low_dose.min() >= -1.0
        assert (pair.low_dose - pair.full_dose)[body].std() > 1 / 1024
        assert pair.depth[body].mean() > pair.depth[~body].mean()


def test_crops_of_a_pair_show_the_same_place():
    """Without noise the low dose is the full dose, however it was turned."""
    for pair in draws(6, noise=NoiseRange(full_dose_share=1.0)):
        assert torch.equal(pair.low_dose, pair.full_dose)


def test_turns_and_flips_all_occur():
    """Eight orientations of one square slice that has no symmetry."""
    marked = np.arange(CROP * CROP, dtype=np.float32).reshape(CROP, CROP) / 100
    source = FullDoseSlice(marked, SliceGeometry(3.0, 5.0), "1.2.3", 0)
    pairs = islice(iter(NoisyPairs([source], config(crops_per_slice=60), 0)), 60)
    seen = {pair.full_dose[0, [0, 0, -1, -1], [0, -1, 0, -1]].numpy().tobytes() for pair in pairs}
    assert len(seen) == 8


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_sharp_kernels_are_drawn_as_often_as_asked(share):
    """The spread of differences between neighbours, over the spread, tells the kernel."""
    source = FullDoseSlice(np.zeros((96, 96), np.float32), SliceGeometry(0.7, 3.0), "1.2.3", 0)
    noise = NoiseRange(sharp_share=share, full_dose_share=0.0)
    roughness = []
    for draw in range(6):
        added = noisy(source, noise, rng_for("1.2.3", draw, 0)).hu[20:76, 20:76]
        roughness.append(np.diff(added).std() / added.std())
    # White noise has sqrt 2; a kernel cut at 0.8/mm leaves neighbours correlated.
    assert (np.median(roughness) > 1.0) == (share == 1.0)


def test_doses_stay_in_their_range():
    source = SLICES[0]
    fixed = {"photons": (1.0, 1.0), "electronic_std": (10.0, 10.0), "full_dose_share": 0.0}
    fixed |= {"soft_cutoff_per_mm": (0.7, 0.7), "sharp_share": 0.0, "modulation": (0.0, 0.0)}
    body = source.hu > 0
    stds = [
        (noisy(source, NoiseRange(**fixed, dose_fraction=dose), rng_for("a", 0, 3)).hu - source.hu)[
            body
        ].std()
        for dose in ((0.1, 0.1), (0.1, 0.8), (0.8, 0.8))
    ]
    assert stds[0] > stds[1] > stds[2] > 0


def test_air_is_cut_where_scanners_cut_it():
    low_dose = noisy(
        SLICES[0], NoiseRange(dose_fraction=(0.02, 0.02), full_dose_share=0), rng_for("a", 0, 0)
    )
    assert low_dose.hu.min() == -1024


def test_kept_noise_is_the_noise_that_would_be_made(tmp_path):
    plain = draws(4)
    first = draws(4, noise_folder=tmp_path)
    kept = sorted(tmp_path.glob("*.npz"))
    again = draws(4, noise_folder=tmp_path)
    assert len(kept) == 4
    assert sorted(tmp_path.iterdir()) == kept
    assert all(equal(a, b) for a, b in zip(plain, first, strict=True))
    assert all(equal(a, b) for a, b in zip(plain, again, strict=True))


def test_kept_noise_is_read_and_only_for_the_same_ranges(tmp_path):
    plain = draws(1, noise_folder=tmp_path)
    (kept,) = tmp_path.glob("*.npz")
    with np.load(kept) as found:
        changed = dict(found) | {"hu": found["hu"] + 100}
    np.savez(kept, **changed)
    read = draws(1, noise_folder=tmp_path)
    torch.testing.assert_close(to_hu(read[0].low_dose), to_hu(plain[0].low_dose) + 100)
    other = draws(1, noise_folder=tmp_path, noise=NoiseRange(dose_fraction=(0.1, 0.2)))
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert not torch.equal(other[0].low_dose, plain[0].low_dose)


# A dose far from the calibrated one; without electronic noise variances go with the inverse dose.
OWN = OwnNoise(
    Scanner(photons=4e7, electronic_std=0.0), Kernel(cutoff_per_mm=1.1), SliceGeometry(3.0, 1.0)
)
IN_THE_DISC = np.s_[29:69, 22:62]


def own_variance(source):
    """Of a measurement of the disc at its own dose."""
    once = add_noise(
        source.hu, OWN.geometry, rng_for("own", 0, 0), scanner=OWN.scanner, kernel=OWN.kernel
    )
    return (once.hu - source.hu)[IN_THE_DISC].var()


def test_a_quarter_of_the_own_dose_inserts_three_times_the_own_variance():
    """1600 pixels of correlated noise: a deviation of the ratio of about 0.3 at most."""
    source = slice_of(0)._replace(own=OWN)
    low_dose = own_low_dose(source, 0.25)
    ratio = (low_dose - source.hu)[IN_THE_DISC].var() / own_variance(source)
    assert ratio == pytest.approx(3.0, abs=0.9)
    assert np.array_equal(low_dose, own_low_dose(source, 0.25))
    with pytest.raises(ValueError, match="not measured"):
        own_low_dose(slice_of(0), 0.25)


def test_noise_is_drawn_of_the_own_dose_as_often_as_asked():
    source = slice_of(0)._replace(own=OWN)
    fixed = {"dose_fraction": (0.25, 0.25), "full_dose_share": 0.0}
    expected = 3 * own_variance(source)

    def ratios(source, share):
        noise = NoiseRange(own_share=share, **fixed)
        return [
            (noisy(source, noise, rng_for("a", draw, 0)).hu - source.hu)[IN_THE_DISC].var()
            / expected
            for draw in range(12)
        ]

    assert all(0.7 < ratio < 1.3 for ratio in ratios(source, 1.0))
    assert max(ratios(source, 0.0)) < 0.5
    assert 1 <= sum(ratio > 0.5 for ratio in ratios(source, 0.5)) <= 11
    # Where it was not measured, the calibrated scanner's.
    assert ratios(slice_of(0), 1.0) == ratios(source, 0.0)


def test_slices_that_cut_the_body_have_no_depth():
    cut = SLICES[0]._replace(cut=True)
    pair = next(iter(NoisyPairs([cut], config())))
    assert pair.depth.isnan().all()
    whole = next(iter(NoisyPairs(SLICES[:1], config())))
    assert torch.equal(pair.low_dose, whole.low_dose)
    assert whole.depth.isfinite().all()


def test_slices_smaller_than_a_crop_are_mirrored_at_their_edges():
    small = slice_of(0, (40, 50))
    pair = next(iter(NoisyPairs([small], config())))
    assert pair.low_dose.shape == pair.full_dose.shape == (1, CROP, CROP)
    shown = to_hu(pair.full_dose).numpy()[0]
    expected = np.pad(small.hu, [(0, 24), (0, 14)], "symmetric")
    turns = [np.rot90(side, turn) for side in (expected, expected[:, ::-1]) for turn in range(4)]
    assert min(np.abs(shown - turned).max() for turned in turns) < 1e-3

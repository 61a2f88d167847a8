"""Findings of physics: what is done to a series on purpose is found in the figures.

Above 300 lines: each change has a figure that must find it.
"""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, stats

from cddnet.errors import CddnetError, FormatError, GeometryError
from cddnet.formats import read_volume
from cddnet.volume import CTVolume, Derivation
from cddnet.workflows._physics_phantom import phantom_findings
from cddnet.workflows._physics_report import REFERENCE, paired_findings
from cddnet.workflows.phantom import PhantomOptions, write_phantom

SPACING_MM = (3.0, 0.8, 0.8)
SHAPE = (2, 151, 187)
NOISE_HU = 14.0


def silent(done, total):
    pass


def value(physics, row, name):
    found = [f for f in physics.findings if (f.row, f.name) == (row, name)]
    assert len(found) == 1, [(f.row, f.name) for f in physics.findings]
    return found[0].value.value


def names(physics, row):
    return {f.name for f in physics.findings if f.row == row}


def volume(hu, **fields):
    return CTVolume.from_hu(np.asarray(hu, np.float32), SPACING_MM, **fields)


@pytest.fixture(scope="module")
def patients():
    """Full dose of three patients: air, a body of soft tissue, fat and bone, a little noise."""
    rng = np.random.default_rng(7)
    bodies = []
    for _ in range(3):
        hu = np.full(SHAPE, -1000.0)
        hu[:, 15:136, 20:170] = 50.0
        hu[:, 25:55, 30:160] = -100.0
        hu[:, 100:130, 110:160] = 600.0
        bodies.append(hu + rng.normal(0, 5, SHAPE))
    return bodies


@pytest.fixture(scope="module")
def low_doses(patients):
    rng = np.random.default_rng(8)
    return [hu + rng.normal(0, NOISE_HU, SHAPE) for hu in patients]


def series(stacks):
    return [volume(hu) for hu in stacks]


def test_planted_noise_and_bias_are_found_in_their_row(patients, low_doses):
    shifted = [
        low + 4.0 * ((full > -130) & (full < -70))
        for low, full in zip(low_doses, patients, strict=True)
    ]
    quarter = [full + (low - full) / 4 for low, full in zip(low_doses, patients, strict=True)]
    rows = {"low dose": series(low_doses), "shifted": series(shifted), "less": series(quarter)}
    found = paired_findings(rows, series(patients))
    less_noise = "noise of the difference to full dose"
    # Half of the regions overlap and the trend takes little: 4 errors of three bodies' soft part.
    error = 4 / math.sqrt(2 * 3 * 2 * 40 * 130)
    assert value(found, "low dose", less_noise) == pytest.approx(NOISE_HU, rel=error)
    assert value(found, "less", less_noise) == pytest.approx(
        value(found, "low dose", less_noise) / 4, rel=1e-4
    )
    total_hu = math.hypot(5, NOISE_HU)
    assert value(found, "low dose", "noise of flat regions") == pytest.approx(total_hu, rel=error)
    assert value(found, REFERENCE, "noise of flat regions") == pytest.approx(5, rel=2 * error)
    assert value(found, "low dose", "global noise level") == pytest.approx(total_hu, rel=0.06)
    assert value(found, "low dose", "noise level over full dose") == pytest.approx(
        total_hu / 5, rel=0.06
    )
    for tissue, planted_hu in (("fat", 4.0), ("soft", 0.0), ("bone", 0.0)):
        name = f"{tissue} bias"
        difference = value(found, "shifted", name) - value(found, "low dose", name)
        assert difference == pytest.approx(planted_hu, abs=0.01)
        assert abs(value(found, "low dose", name)) < 0.5
    assert any("shifted: fat is shifted by +" in line for line in found.statements)
    assert not any(line.startswith("less") for line in found.statements)
    # White noise plus white noise: the same ratio in every band.
    for band in ("0-0.1/mm", "0.1-0.3/mm", "0.3-0.5/mm", "above 0.5/mm"):
        ratio = value(found, "low dose", f"noise power over full dose, {band}")
        assert ratio == pytest.approx((total_hu / 5) ** 2, rel=0.25)


def test_a_blur_is_coarser_noise_and_no_bias(patients, low_doses):
    blurred = [ndimage.gaussian_filter(low, (0, 1.5, 1.5)) for low in low_doses]
    found = paired_findings(
        {"low dose": series(low_doses), "blurred": series(blurred)}, series(patients)
    )
    frequency = [value(found, row, "mean frequency") for row in ("low dose", "blurred")]
    assert frequency[1] < 0.6 * frequency[0]
    assert any(
        line.startswith("blurred: what flat tissue shows is coarser") for line in found.statements
    )
    assert abs(value(found, "blurred", "soft bias")) < 0.5
    curves = {curve.name: curve for curve in found.curves["NPS"]}
    assert list(curves) == [REFERENCE, "low dose", "blurred"]
    low, soft = curves["low dose"], curves["blurred"]
    assert low.x == soft.x
    assert low.x[-1] <= 0.5 / 0.8 + 1e-9
    # Gaussian blur squares to exp(-(2 pi sigma f)^2) on white noise.
    sigma_mm, at = 1.5 * 0.8, len(low.x) // 4
    expected = math.exp(-((2 * math.pi * sigma_mm * low.x[at]) ** 2))
    assert soft.y[at] / low.y[at] == pytest.approx(expected, rel=0.2)


def test_intervals_are_over_patients_and_not_over_their_series(patients, low_doses):
    rows = {"low dose": series(low_doses)}
    apart = paired_findings(rows, series(patients))
    interval = next(f.value for f in apart.findings if f.name == "fat bias")
    assert interval.low < interval.value < interval.high
    one = paired_findings(rows, series(patients), patients=["a", "a", "a"])
    interval = next(f.value for f in one.findings if f.name == "fat bias")
    assert (interval.low, interval.high) == (None, None)
    # Two series of one patient count as one half, not as two thirds.
    planted = [patients[0] + 6.0, patients[1] + 6.0, patients[2]]
    two = paired_findings({"x": series(planted)}, series(patients), patients=["a", "a", "b"])
    assert value(two, "x", "fat bias") == pytest.approx(3.0, abs=1e-3)


def test_without_a_reference_the_first_row_is_the_base(low_doses):
    shifted = [low + 3.0 for low in low_doses]
    found = paired_findings({"low dose": series(low_doses), "out": series(shifted)}, None)
    assert value(found, "out", "soft bias") == pytest.approx(3.0, abs=1e-3)
    assert value(found, "out", "largest local change") == pytest.approx(3.0, abs=1e-3)
    assert value(found, "out", "noise level over low dose") == pytest.approx(1.0, abs=1e-4)
    assert value(found, "out", "linearity slope") == pytest.approx(1.0, abs=1e-6)
    assert value(found, "out", "linearity intercept") == pytest.approx(3.0, abs=1e-3)
    assert not any("bias" in name for name in names(found, "low dose"))
    assert {f.row for f in found.findings} == {"low dose", "out"}


def test_one_row_alone_has_its_noise(low_doses):
    found = paired_findings({"low dose": series(low_doses)}, None)
    expected = math.hypot(5, NOISE_HU)
    assert value(found, "low dose", "global noise level") == pytest.approx(expected, rel=0.06)
    assert {f.family for f in found.findings} == {"noise"}


def test_regions_with_vessels_are_left_out(patients):
    crossed = [hu.copy() for hu in patients]
    for hu in crossed:
        hu[:, 62:90:9, 20:44] += 80
    found, plain = (
        paired_findings({"low dose": series(stacks)}, None) for stacks in (crossed, patients)
    )
    for name in ("noise of flat regions", "global noise level"):
        assert value(found, "low dose", name) == pytest.approx(
            value(plain, "low dose", name), rel=0.06
        )


def test_series_without_soft_tissue_say_so():
    rng = np.random.default_rng(3)
    air = volume(rng.normal(-900, 10, (2, 61, 65)))
    found = paired_findings({"low dose": [air], "out": [air]}, [air])
    assert found.curves == {}
    assert any("not measured in 1 of 1 series" in line for line in found.statements)


def test_what_does_not_belong_together_is_refused(low_doses):
    low = series(low_doses)
    with pytest.raises(CddnetError, match="no row"):
        paired_findings({}, low)
    with pytest.raises(CddnetError, match="out: 2 series"):
        paired_findings({"low dose": low, "out": low[:2]}, low)
    with pytest.raises(CddnetError, match="another name than 'full dose'"):
        paired_findings({REFERENCE: low}, low)
    with pytest.raises(CddnetError, match="2 patients named for 3 series"):
        paired_findings({"low dose": low}, None, patients=["a", "b"])
    smaller = [volume(hu[:, :-2]) for hu in low_doses]
    with pytest.raises(GeometryError, match=r"149, 187.*151, 187"):
        paired_findings({"out": smaller}, low)
    coarser = [CTVolume.from_hu(v.hu, (3.0, 0.9, 0.9)) for v in low]
    with pytest.raises(GeometryError, match=r"0\.9.*0\.8"):
        paired_findings({"out": coarser}, low)
    oblong = [CTVolume.from_hu(v.hu, (3.0, 0.8, 0.9)) for v in low]
    with pytest.raises(GeometryError, match="square"):
        paired_findings({"out": oblong}, None)


@pytest.fixture(scope="module")
def rods(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "rods"
    write_phantom(out, PhantomOptions(kind="rods", size=251, slices=4, dose_fraction=0.5), silent)
    return out


@pytest.fixture(scope="module")
def scan(rods):
    return read_volume(rods / "series")


def changed(source, hu, **step):
    """The series with new pixels; a step is recorded where one is named."""
    done = CTVolume.from_hu(hu.astype(np.float32), source.spacing_mm)
    if not step:
        return done
    record = Derivation(label="", description="", parameters=(), version="0", **step)
    return done.derived(done.read_slice, record)


def test_a_phantom_shows_its_truth(rods, scan):
    found = phantom_findings({"scan": scan}, rods / "truth.json")
    assert value(found, "scan", "linearity slope") == pytest.approx(1, abs=0.003)
    assert value(found, "scan", "linearity R2") > 0.99999
    assert abs(value(found, "scan", "largest deviation")) < 2
    assert abs(value(found, "scan", "CT number of water")) < 1
    assert abs(value(found, "scan", "edge less centre")) < 2
    contrasts = (-100, 120, 340, 1000)
    for contrast_hu in contrasts:
        name = f"rod {contrast_hu:+d} HU"
        assert value(found, "scan", f"{name} contrast") == pytest.approx(contrast_hu, abs=3)
    # The soft kernel times the pixel's aperture of 1 mm falls to one half near 0.28 per mm.
    assert value(found, "scan", "rod +1000 HU f50") == pytest.approx(0.28, abs=0.01)
    errors = [value(found, "scan", f"rod {hu:+d} HU f50 standard error") for hu in (120, 340, 1000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.005
    assert [curve.name for curve in found.curves["TTF rod +1000 HU"]] == ["scan"]


def test_what_is_done_to_a_phantom_is_found(rods, scan):
    hu = scan.hu
    mean = hu.mean(axis=0)
    rows = {
        "scan": scan,
        "line": changed(scan, 1.01 * hu + 3.0),
        "quiet": changed(scan, mean + 0.5 * (hu - mean)),
        "blurred": changed(scan, ndimage.gaussian_filter(hu, (0, 1.5, 1.5))),
        "cupped": changed(scan, hu + 8 * (np.hypot(*(np.indices(mean.shape) - 125)) > 60)),
    }
    found = phantom_findings(rows, rods / "truth.json")
    base = {name: value(found, "scan", name) for name in names(found, "scan")}

    assert value(found, "line", "linearity slope") == pytest.approx(
        1.01 * base["linearity slope"], rel=1e-5
    )
    assert value(found, "line", "linearity intercept") == pytest.approx(
        1.01 * base["linearity intercept"] + 3, abs=1e-3
    )
    assert value(found, "line", "CT number of water") == pytest.approx(
        1.01 * base["CT number of water"] + 3, abs=1e-3
    )
    noise = "noise of flat regions"
    assert value(found, "quiet", noise) == pytest.approx(base[noise] / 2, rel=1e-4)
    ratio = value(found, "quiet", "noise power over scan, 0.1-0.3/mm")
    assert ratio == pytest.approx(0.25, rel=1e-4)
    assert value(found, "quiet", "rod +1000 HU f50") == pytest.approx(
        base["rod +1000 HU f50"], rel=1e-5
    )
    for name in ("rod +1000 HU f50", "mean frequency", noise):
        assert value(found, "blurred", name) < 0.8 * base[name]
    assert value(found, "cupped", "edge less centre") == pytest.approx(
        base["edge less centre"] + 8, abs=2
    )
    assert [curve.name for curve in found.curves["NPS"]] == list(rows)


def test_too_little_contrast_for_the_noise_is_said(rods, scan):
    found = phantom_findings({"scan": scan}, rods / "truth.json")
    faint = [f for f in found.findings if f.name == "rod -35 HU f50"]
    assert all("indicative" in f.within for f in faint)
    lines = [line for line in found.statements if "rod -35 HU" in line]
    # As many slices as it takes; that they are no new ones cannot be seen.
    repeated = changed(scan, np.tile(scan.hu, (5, 1, 1)))
    enough = phantom_findings({"scan": repeated}, rods / "truth.json")
    assert len(lines) == 1
    assert not any("rod -35 HU" in line for line in enough.statements)


def test_slices_that_share_neighbours_are_not_counted_twice(rods, scan):
    mixed = changed(scan, ndimage.uniform_filter1d(scan.hu, 3, axis=0), neighbours=1)
    found = phantom_findings({"scan": mixed}, rods / "truth.json")
    within = next(f.within for f in found.findings if f.name == "noise of flat regions")
    assert "ensemble of 2 independent slices" in within


def test_without_noise_there_is_none_to_measure(tmp_path):
    write_phantom(tmp_path / "p", PhantomOptions(kind="inserts", size=251, slices=2), silent)
    truth = read_volume(tmp_path / "p" / "series")
    blurred = changed(truth, ndimage.gaussian_filter(truth.hu, (0, 1.2, 1.2)))
    found = phantom_findings({"truth": truth, "blurred": blurred}, tmp_path / "p" / "truth.json")
    assert any("two slices or more that differ" in line for line in found.statements)
    assert value(found, "truth", "linearity slope") == pytest.approx(1, abs=1e-6)
    assert value(found, "truth", "largest deviation") == pytest.approx(0, abs=0.01)
    assert value(found, "truth", "edge less centre") == pytest.approx(0, abs=1e-6)
    # Of 1000 HU, what a Gaussian of 1.2 mm moves over 4 mm at most; over 2 mm it is 48 HU.
    assert abs(value(found, "blurred", "Teflon bias")) < 1000 * stats.norm.sf(4 / 1.2)
    # Stored air is clipped where noise goes below it.
    assert "air bias" not in names(found, "truth")
    assert "Teflon bias" in names(found, "truth")


def test_a_truth_of_another_phantom_is_refused(rods, scan, tmp_path):
    with pytest.raises(CddnetError, match="at least one"):
        phantom_findings({}, rods / "truth.json")
    smaller = CTVolume.from_hu(scan.hu[:, 1:, 1:], scan.spacing_mm)
    with pytest.raises(GeometryError, match=r"250, 250.*251, 251"):
        phantom_findings({"scan": smaller}, rods / "truth.json")
    coarser = CTVolume.from_hu(scan.hu, (3.0, 2.0, 2.0))
    with pytest.raises(GeometryError, match=r"2\.0.*251"):
        phantom_findings({"scan": coarser}, rods / "truth.json")
    with pytest.raises(FormatError, match=r"truth\.json"):
        phantom_findings({"scan": scan}, tmp_path / "truth.json")
    told = json.loads((rods / "truth.json").read_text(encoding="utf-8"))
    (tmp_path / "truth.json").write_text(json.dumps(told | {"size": 99}), encoding="utf-8")
    shutil.copy(rods / "regions.png", tmp_path)
    with pytest.raises(FormatError, match="not of one phantom"):
        phantom_findings({"scan": scan}, tmp_path / "truth.json")


def test_twice_the_noise_halves_the_index_of_a_linear_observer(tmp_path):
    options = PhantomOptions(kind="rods", size=251, slices=6, dose_fraction=1.0)
    write_phantom(tmp_path / "p", options, silent)
    scan = read_volume(tmp_path / "p" / "series")
    mean = scan.hu.mean(axis=0)
    louder = replace(scan, read_slice=lambda index: 2 * scan.read_slice(index) - mean)
    found = phantom_findings({"scan": scan, "louder": louder}, tmp_path / "p" / "truth.json")
    index = {(f.row, f.name): f.value.value for f in found.findings if f.family == "detectability"}
    names = {name for _, name in index}
    assert len(names) == 4
    for name in names:
        assert index["louder", name] == pytest.approx(index["scan", name] / 2, rel=0.02)
        assert index["scan", name] > 1

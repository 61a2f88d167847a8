"""Evaluation beyond scores: physics beside them, no reference, phantoms, and lesions."""

import numpy as np
import pytest
from scipy import ndimage

from cddnet.errors import CddnetError
from cddnet.formats import read_volume, write_volume
from cddnet.volume import CTVolume
from cddnet.workflows import evaluate as module
from cddnet.workflows.demo import demo_series
from cddnet.workflows.evaluate import (
    LOW_DOSE,
    EvaluateOptions,
    evaluate,
    evaluate_phantom,
    evaluate_unpaired,
)
from cddnet.workflows.phantom import PhantomOptions, write_phantom
from cddnet.workflows.results import summary
from cddnet.workflows.simulate import SimulateOptions, calibrated_source, simulate_volume

SLICES = 3
BLUR_PIXELS = 1.2


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """Full dose, low dose, blurred low dose, and full dose with soft tissue 6 HU off, as files."""
    folder = tmp_path_factory.mktemp("modes")
    source = read_volume(demo_series())
    full = np.stack([source.read_slice(index) for index in (2, 5, 8)])
    volume = CTVolume.from_hu(full, source.spacing_mm, series_uid="1.2.3")
    low = simulate_volume(volume, calibrated_source(volume), SimulateOptions(seed=1)).hu
    soft = (full > 0) & (full < 200)
    images = {
        "full": full,
        "low": low,
        "blurred": ndimage.gaussian_filter(low, (0, BLUR_PIXELS, BLUR_PIXELS)),
        "biased": np.where(soft, full + 6, full).astype(np.float32),
    }
    for name, hu in images.items():
        written = CTVolume.from_hu(hu, source.spacing_mm)
        write_volume(written, folder / f"{name}.nii.gz")
    return {name: folder / f"{name}.nii.gz" for name in images}


def value(evaluation, row, name):
    (found,) = [f for f in evaluation.physics.findings if (f.row, f.name) == (row, name)]
    return found.value.value


@pytest.fixture(scope="module")
def paired(series):
    methods = {"blurred": series["blurred"], "biased": series["biased"]}
    return evaluate(series["full"], methods, protocol="redcnn", low_dose=series["low"], mask="body")


def test_physics_stands_beside_the_scores(paired):
    noise = {row: value(paired, row, "noise of flat regions") for row in (LOW_DOSE, "blurred")}
    assert noise["blurred"] < 0.6 * noise[LOW_DOSE]
    # Noise carries a few pixels of the smoothed tissue beyond 0 to 200 HU.
    assert value(paired, "biased", "soft bias") == pytest.approx(6.0, abs=0.1)
    assert abs(value(paired, "blurred", "soft bias")) < 1.0
    assert {"NPS"} <= set(paired.physics.curves)
    said = summary(paired)
    assert "soft bias (HU)" in said
    assert "window [-160, 240] HU" in said


def test_a_blur_takes_edges_with_the_noise_and_loses_detail(paired):
    assert value(paired, "blurred", "removed against edges, correlation") > 0.2
    assert any("follows edges" in text and "blurred" in text for text in paired.physics.statements)
    detail = "agreement with the reference down to, median patch"
    # What was not touched but for a constant agrees to the last frequency.
    assert value(paired, "biased", detail) > value(paired, LOW_DOSE, detail)


def test_scores_alone_when_asked(series):
    options = EvaluateOptions(with_physics=False)
    found = evaluate(series["full"], {"test": series["blurred"]}, protocol="full", options=options)
    assert found.physics.findings == ()
    assert found.rows[0].mean["PSNR"].value > 0


def test_without_a_reference_there_are_no_scores(series):
    found = evaluate_unpaired(series["low"], {"blurred": series["blurred"]})
    assert found.mode == "unpaired"
    assert found.metrics == ()
    ratio = value(found, "blurred", "noise level over low dose")
    assert 0.2 < ratio < 0.7
    said = summary(found)
    assert "PSNR" not in said
    assert "no full dose" in said


def test_a_phantom_is_measured_against_its_truth(tmp_path):
    options = PhantomOptions(kind="inserts", slices=3, dose_fraction=0.5, size=256)
    write_phantom(tmp_path / "made", options, lambda done, total: None)
    scan = read_volume(tmp_path / "made" / "series")
    place = {"origin_mm": scan.origin_mm, "direction": scan.direction}
    tilted = CTVolume.from_hu(1.05 * scan.hu, scan.spacing_mm, **place)
    write_volume(tilted, tmp_path / "tilted.nii.gz")
    with pytest.raises(CddnetError, match=r"truth\.json"):
        evaluate_phantom(tmp_path, {"test": tmp_path / "tilted.nii.gz"})
    found = evaluate_phantom(tmp_path / "made", {"tilted": tmp_path / "tilted.nii.gz"})
    slopes = {row: value(found, row, "linearity slope") for row in (LOW_DOSE, "tilted")}
    assert slopes[LOW_DOSE] == pytest.approx(1.0, abs=0.005)
    assert slopes["tilted"] == pytest.approx(1.05 * slopes[LOW_DOSE], abs=1e-3)


def test_lesions_are_seen_before_and_after_a_network(series, monkeypatch):
    """A network that returns its input changes nothing; that is said, and PSNR is not up."""
    from cddnet.workflows import _network_detection

    class Card:
        name, strength = "idle", 1.0

    monkeypatch.setattr(_network_detection.store, "load", lambda model: (None, Card))
    monkeypatch.setattr(
        _network_detection, "denoise_slice", lambda hu, padding, network, strength: hu
    )
    options = EvaluateOptions(detect="idle")
    found = evaluate(series["full"], {"test": series["low"]}, protocol="redcnn", options=options)
    changes = [
        f.value
        for f in found.physics.findings
        if f.row == "idle 100%" and f.name.startswith("d' over low dose")
    ]
    assert len(changes) == 2
    assert all(change.value == pytest.approx(0, abs=1e-9) for change in changes)
    assert not any("PSNR up" in text for text in found.physics.statements)
    full = [
        f.value.value
        for f in found.physics.findings
        if f.row == "full dose" and f.name.startswith("d' over low dose")
    ]
    assert min(full) > 0


def test_aligned_rows_follow_the_reference(series, tmp_path):
    """A test series stored upside down is compared slice by slice at equal positions."""
    volume = read_volume(series["full"])
    upside_down = CTVolume.from_hu(
        volume.hu[::-1].copy(),
        volume.spacing_mm,
        origin_mm=tuple(
            start + (volume.shape[0] - 1) * volume.spacing_mm[0] * along
            for start, along in zip(volume.origin_mm, volume.direction[0], strict=True)
        ),
        direction=(tuple(-x for x in volume.direction[0]), *volume.direction[1:]),
    )
    write_volume(upside_down, tmp_path / "down.nii.gz")
    cases = module.find_cases(series["full"], {"down": tmp_path / "down.nii.gz"})
    assert np.array_equal(cases[0].aligned("down").hu, cases[0].reference.hu)

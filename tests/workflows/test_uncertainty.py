"""The uncertainty map: made of its evidence, written with the denoised series, whole or not.

Above 300 lines: the map and the series it is written with belong together.
"""

import errno
import json
import re
import tracemalloc
from importlib.resources import files

import numpy as np
import pytest
from pydicom import dcmread

from cddnet.errors import CddnetError, FormatError, ModelError
from cddnet.formats import read_volume, write_volume
from cddnet.models._cards import read_card
from cddnet.runtime import store
from cddnet.volume import CTVolume, Derivation
from cddnet.workflows import uncertainty
from cddnet.workflows._uncertainty_file import Judged, kept_maps
from cddnet.workflows.denoise import DenoiseOptions, denoise_file, denoise_hu
from cddnet.workflows.noise_map import noise_reader
from cddnet.workflows.uncertainty import Evidence, calibration_of, expected_error_hu
from ct_tree import write_series
from write_faults import NEVER, Disk, contents

SPACING_MM = (3.0, 0.7, 0.7)
SIZE = (61, 47)
STEP = Derivation(label="map", description="A map", parameters=(), version="0")
NOWHERE = np.zeros(SIZE, bool)


def ignore(*_):
    """No bar."""


def calibration(name="fast@1"):
    return calibration_of(read_card(store.find(name)))


@pytest.fixture
def evidence(rng):
    """A step between two tissues, its noise removed but for a little."""
    truth = np.where(np.indices(SIZE)[1] < 23, 40.0, -90.0)
    low_dose, restored, turned = (truth + rng.normal(0, noise, SIZE) for noise in (30, 4, 4))
    noise = np.full(SIZE, 30.0)
    return Evidence(*(a.astype(np.float32) for a in (low_dose, restored, turned, noise)), 0.7)


@pytest.fixture
def calibrated(monkeypatch, tiny_weights):
    """The coefficients of a shipped network, for the tiny one."""
    own = calibration()
    monkeypatch.setattr(uncertainty, "calibration_of", lambda card: own)
    return tiny_weights


@pytest.fixture
def volume(rng):
    """Three odd slices without header."""
    return CTVolume.from_hu(rng.normal(40, 30, (3, *SIZE)).astype(np.float32), SPACING_MM)


# The map


@pytest.mark.parametrize("name", ["fast@1", "quality@1", "cddnet@1"])
def test_a_calibration_belongs_to_the_weights_that_ship(name):
    record = json.loads((files("cddnet") / uncertainty.CALIBRATION).read_text(encoding="utf-8"))
    assert tuple(record["features"]) == uncertainty.FEATURES
    assert record["weights"].keys() <= store.shipped().keys()
    found = calibration(name)
    assert found.coefficients.shape == (len(uncertainty.FEATURES),)
    assert 0 < found.noise_hu[0] < found.noise_hu[1]


def test_the_map_is_the_formula_of_its_evidence(evidence):
    found = expected_error_hu(evidence, calibration(), strength=1.0, padding=NOWHERE)
    expected = np.exp(0.5 * uncertainty.features(evidence) @ calibration().coefficients)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
    assert found.shape == SIZE
    assert found.min() > 0
    # Neither constant nor blind to edges.
    assert found[:, 21:26].mean() > 1.1 * found[:, 3:15].mean()


@pytest.mark.parametrize("field", ["noise", "low_dose", "turned"])
def test_more_noise_removal_or_disagreement_is_more_uncertain(evidence, field):
    more = getattr(evidence, field) * 2 - (0 if field == "noise" else evidence.restored)
    before, after = (
        expected_error_hu(item, calibration(), strength=1.0, padding=NOWHERE)
        for item in (evidence, evidence._replace(**{field: more}))
    )
    assert (after > before).all()


def test_knots_share_each_pixel_and_hold_beyond_their_ends(evidence):
    wide = evidence._replace(restored=np.linspace(-2000, 3000, evidence.noise.size).reshape(SIZE))
    shares = uncertainty.features(wide)[..., : len(uncertainty.KNOTS_HU)]
    np.testing.assert_allclose(shares.sum(axis=-1), 1, rtol=1e-12)
    assert shares.min() >= 0
    assert shares[0, 0, 0] == shares[-1, -1, -1] == 1


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_what_is_not_removed_adds_its_mean_square(evidence, strength):
    full, found = (
        expected_error_hu(evidence, calibration(), strength=s, padding=NOWHERE).astype(float)
        for s in (1.0, strength)
    )
    kept = (1 - strength) ** 2 * uncertainty.removed_variance_hu2(evidence)
    np.testing.assert_allclose(found**2, full**2 + kept, rtol=1e-5)
    assert (found >= full).all()


def test_a_turned_slice_has_a_turned_map(evidence):
    turned = Evidence(*(values.T for values in evidence[:4]), evidence.pixel_mm)
    one, other = (
        expected_error_hu(item, calibration(), strength=0.75, padding=np.zeros(shape, bool))
        for item, shape in ((evidence, SIZE), (turned, SIZE[::-1]))
    )
    np.testing.assert_allclose(other.T, one, rtol=1e-5)


def test_padding_has_no_error(evidence):
    padding = NOWHERE.copy()
    padding[:9] = True
    found = expected_error_hu(evidence, calibration(), strength=0.75, padding=padding)
    assert (found[padding] == 0).all()
    assert (found[~padding] > 0).all()


def test_extremes_stay_finite(evidence):
    for value in (-3.0e4, 0.0, 3.0e4):
        extreme = evidence._replace(restored=np.full(SIZE, value, np.float32))
        found = expected_error_hu(extreme, calibration(), strength=0.75, padding=NOWHERE)
        assert np.isfinite(found).all()


def test_weights_without_calibration_are_refused_by_name_and_by_hash(tiny_weights):
    with pytest.raises(ModelError, match=r"tiny@1: its uncertainty was never calibrated.*fast@1"):
        calibration_of(read_card(tiny_weights))
    card = read_card(store.find("fast@1"))
    other = type(card)(name=card.name, model="x", options={}, version="0", sha256="0" * 64)
    with pytest.raises(ModelError, match="never calibrated"):
        calibration_of(other)


# With the denoised series


@pytest.mark.parametrize(("noise_hu", "said"), [(30, ()), (4, "is [34].. HU"), (0, "not to be")])
def test_a_level_of_noise_that_the_calibration_never_saw_is_told(
    calibrated, rng, tmp_path, noise_hu, said
):
    hu = (40 + noise_hu * rng.standard_normal((1, 64, 64))).astype(np.float32)
    write_volume(CTVolume.from_hu(hu, SPACING_MM), tmp_path / "in.npy")
    made = run(tmp_path / "in.npy", tmp_path / "out.npy", calibrated, tmp_path / "error.npy")
    notes = [note for note in made.notes if note.startswith("uncertainty")]
    assert len(notes) == bool(said)
    for note in notes:
        assert re.search(f"{said}.*too narrow", note)


def run(source, target, weights, path, **options):
    chosen = DenoiseOptions(model=weights, threads=1, uncertainty=path, forced="", **options)
    return denoise_file(source, target, chosen, ignore)


def expected_maps(volume, weights, strength):
    """By other ways to noise and network."""
    noise, padding = noise_reader(volume), np.zeros(SIZE, bool)
    restored = denoise_hu(volume.hu, SPACING_MM, weights, strength=1.0)
    columns = np.ascontiguousarray(volume.hu.swapaxes(1, 2))
    turned = denoise_hu(columns, SPACING_MM, weights, strength=1.0).swapaxes(1, 2)
    return np.stack(
        [
            expected_error_hu(
                Evidence(hu, restored[index], turned[index], noise(index), SPACING_MM[2]),
                calibration(),
                strength=strength,
                padding=padding,
            )
            for index, hu in enumerate(volume.slices())
        ]
    )


@pytest.mark.parametrize("strength", [0.0, 0.75])
def test_arrays_get_an_array_and_are_denoised_as_without(calibrated, volume, tmp_path, strength):
    write_volume(volume, tmp_path / "in.npz")
    run(tmp_path / "in.npz", tmp_path / "a.npz", calibrated, None, strength=strength)
    target, path = tmp_path / "b.npz", tmp_path / "error.npy"
    run(tmp_path / "in.npz", target, calibrated, path, strength=strength)
    one, other = (read_volume(tmp_path / name).hu for name in ("a.npz", "b.npz"))
    np.testing.assert_array_equal(one, other)
    assert np.array_equal(one, volume.hu) == (strength == 0)
    expected = expected_maps(volume, calibrated, strength)
    np.testing.assert_allclose(np.load(tmp_path / "error.npy"), expected, rtol=1e-3)
    assert np.ptp(expected) > 1
    steps = read_volume(tmp_path / "error.npy").derivation
    assert [step.label for step in steps][-1] == "expected error"
    assert dict(steps[-1].parameters)["strength"] == repr(strength)


def test_dicom_gets_a_map_of_the_same_study_and_another_series(calibrated, tmp_path):
    write_series(tmp_path / "ct", "ID", places=range(3))
    run(tmp_path / "ct", tmp_path / "out", calibrated, tmp_path / "error.dcm")
    denoised = [dcmread(path) for path in (tmp_path / "out").iterdir()]
    sources = {str(dcmread(path).SOPInstanceUID) for path in (tmp_path / "ct").iterdir()}
    found = dcmread(tmp_path / "error.dcm")
    assert {found.StudyInstanceUID} == {item.StudyInstanceUID for item in denoised}
    assert found.SeriesInstanceUID not in {item.SeriesInstanceUID for item in denoised}
    assert (found.ContentLabel, found.NumberOfFrames) == ("EXPECTED_ERROR", 3)
    groups = found.PerFrameFunctionalGroupsSequence
    images = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in groups]
    assert {str(image.ReferencedSOPInstanceUID) for image in images} == sources
    values = np.frombuffer(found.FloatPixelData, "<f4")
    assert values.min() > 0
    assert np.ptp(values) > 1
    run(tmp_path / "ct", tmp_path / "again", calibrated, tmp_path / "again.dcm")
    assert (tmp_path / "again.dcm").read_bytes() == (tmp_path / "error.dcm").read_bytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("error.dcm", "no DICOM"),
        ("error.png", "choose such a name"),
        ("out/error.npy", "beside it"),
        ("there.npy", "exists already"),
        ("nowhere/error.npy", "no such folder"),
    ],
)
def test_a_place_that_will_not_do_is_refused_first(calibrated, volume, tmp_path, name, said):
    write_volume(volume, tmp_path / "in.npy")
    (tmp_path / "there.npy").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(FormatError, match=said):
        run(tmp_path / "in.npy", tmp_path / "out", calibrated, tmp_path / name)
    assert contents(tmp_path) == before


def test_a_dicom_series_wants_a_dicom_map(calibrated, tmp_path):
    write_series(tmp_path / "ct", "ID", places=range(1))
    with pytest.raises(FormatError, match=r"is DICOM, .* \.dcm"):
        run(tmp_path / "ct", tmp_path / "out", calibrated, tmp_path / "error.npy")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("kind", ["dicom", "array"])
def test_both_are_there_or_neither(calibrated, volume, tmp_path, monkeypatch, kind, code):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "before.txt").write_text("precious")
    if kind == "dicom":
        source, names = write_series(tmp_path / "ct", "ID", places=range(2)), ("new", "error.dcm")
    else:
        source, names = tmp_path / "in.npy", ("new.npy", "error.npy")
        write_volume(volume, source)
    disk = Disk(tmp_path / "out", monkeypatch, code=code)
    target, path = (disk.folder / name for name in names)
    before = contents(disk.folder)
    with disk.faulty_from(NEVER):
        run(source, target, calibrated, path)
    made, count = contents(disk.folder), len(disk.calls)
    assert {name.split("/")[0] for name in made.keys() - before.keys()} >= set(names)
    for name in made.keys() - before.keys():
        if (disk.folder / name).is_file():
            (disk.folder / name).unlink()
    if target.is_dir():
        target.rmdir()
    for call in sorted({1, count // 4, count // 2, 3 * count // 4, count - 2, count}):
        with disk.faulty_from(call), pytest.raises(CddnetError):
            run(source, target, calibrated, path)
        assert contents(disk.folder) == before, f"call {call} of {count}, {disk.calls[-1]}"


def test_what_lay_beside_a_map_before_is_never_removed(volume, tmp_path):
    (tmp_path / "error.npy.json").write_text("precious")
    zeros = np.zeros(SIZE, np.float32)
    judged = iter([Judged(zeros, zeros)] * 3)
    with (
        pytest.raises(FormatError, match=r"error\.npy\.json"),
        kept_maps(volume.derived(volume.read_slice, STEP), tmp_path / "error.npy") as maps,
    ):
        list(maps.filled(judged, STEP))
    assert (tmp_path / "error.npy.json").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["error.npy.json"]


def test_maps_wait_on_disk_and_not_in_memory(tmp_path):
    count, side = 120, 128
    volume = CTVolume.from_hu(np.zeros((1, side, side), np.float32), SPACING_MM)
    zeros = np.zeros((side, side), np.float32)
    long = CTVolume(shape=(count, side, side), spacing_mm=SPACING_MM, read_slice=lambda _: zeros)
    assert volume.shape[1:] == long.shape[1:]

    def judged():
        for number in range(count):
            yield Judged(zeros, np.full((side, side), number, np.float32))

    tracemalloc.start()
    try:
        with kept_maps(long, tmp_path / "error.npy") as maps:
            for _ in maps.filled(judged(), STEP):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Of 120 maps a few are in memory at a time.
    assert peak < 20 * zeros.nbytes
    stored = np.load(tmp_path / "error.npy", mmap_mode="r")
    assert np.array_equal(stored[:, 5, 7], np.arange(count))


def test_a_shipped_network_knows_where_a_noisy_phantom_is_noisy(tmp_path):
    """Real weights, real coefficients: the map follows the error against another full dose."""
    from cddnet.metrics._body import body_mask
    from cddnet.metrics.coverage import blocks, rank_correlation
    from cddnet.physics import phantom
    from cddnet.physics.beam import SliceGeometry
    from cddnet.physics.dose import add_noise, rng_for

    built, side = phantom.build("abdomen"), 191
    geometry = SliceGeometry(built.field_mm / side)
    truth = phantom.render(built, side, geometry.pixel_mm)
    low, full = (
        add_noise(truth, geometry, rng_for("map", 0, seed), dose_fraction=dose).hu
        for seed, dose in enumerate((0.25, 1.0))
    )
    volume = CTVolume.from_hu(low, (3.0, geometry.pixel_mm, geometry.pixel_mm))
    write_volume(volume, tmp_path / "in.npz")
    options = DenoiseOptions(model="fast@1", threads=1, uncertainty=tmp_path / "e.npy", forced="")
    denoised = denoise_file(tmp_path / "in.npz", tmp_path / "out.npz", options, ignore).hu[0]
    sigma = np.load(tmp_path / "e.npy")[0]
    found = blocks(full - denoised, sigma, body_mask(truth))
    assert rank_correlation(found) > 4 / np.sqrt(len(found.error_hu) - 1)
    assert rank_correlation(found) > 0.5

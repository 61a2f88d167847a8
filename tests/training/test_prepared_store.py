"""Prepared sets as training reads them: mapped, checked when opened, hashed on request."""

import json
import pickle
from itertools import islice

import numpy as np
import pytest
import torch

from cddnet.config import ConfigError, NoiseRange, TrainConfig
from cddnet.errors import FormatError
from cddnet.formats import read_volume
from cddnet.intensity.normalise import to_hu
from cddnet.physics.depth import radiological_depth
from cddnet.training.leaks import LeakError
from cddnet.training.manifest import MANIFEST
from cddnet.training.pairs import FullDoseSlice, MeasuredPair, NoisyPairs
from cddnet.training.slices import calibrated_geometry, full_dose_slices
from cddnet.training.splits import prepared_slices
from cddnet.training.store import PreparedSet, is_prepared, verify
from cddnet.workflows import train
from cddnet.workflows.prepare import PrepareOptions, prepare
from ct_tree import tissue, write_series, write_tree

SIZE = (71, 83)
PATIENTS = ("a", "b", "c")


def body(*what):
    return tissue(*what, size=SIZE)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("cddnet.workflows._appearing.os.fsync", lambda _: None)


@pytest.fixture
def simulated(tmp_path):
    """Three patients with full dose alone."""
    for patient in PATIENTS:
        write_series(
            tmp_path / "s" / patient,
            patient,
            places=range(6),
            pixels=lambda place, patient=patient: body(patient, place),
        )
    return prepared(tmp_path)


@pytest.fixture
def paired(tmp_path):
    for patient in ("L001", "L002", "L003"):
        for dose in ("full", "quarter"):
            write_series(
                tmp_path / "s" / patient / f"{dose}_3mm",
                patient,
                name=dose,
                places=range(3),
                pixels=lambda place, key=(patient, dose): body(*key, place),
            )
    return prepared(tmp_path)


def prepared(folder):
    options = PrepareOptions(collections=("C, CC BY 4.0, doi 1",))
    prepare(folder / "s", folder / "out", options, lambda *_: None)
    return PreparedSet.open(folder / "out")


def all_slices(found):
    return [
        item
        for side in ("train", "validation", "test")
        for group in prepared_slices(found, side).values()
        for item in group
    ]


def config(**values):
    return TrainConfig(crop=64, **({"crops_per_slice": 1} | values))


def test_slices_of_a_prepared_set_are_those_of_its_dicom(simulated, tmp_path):
    expected = {
        piece.hu.tobytes()
        for patient in PATIENTS
        for piece in full_dose_slices(read_volume(tmp_path / "s" / patient))
    }
    pieces = all_slices(simulated)
    assert {piece.hu.tobytes() for piece in pieces} == expected
    assert len(pieces) == len(expected) == 18
    assert {piece.geometry.pixel_mm for piece in pieces} == {0.7}


def test_nothing_is_read_before_it_is_asked_for(simulated, tmp_path):
    pieces = pickle.loads(pickle.dumps(all_slices(simulated)))
    assert pieces[0].hu.shape == SIZE
    for path in (tmp_path / "out" / "slices").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError):
        pieces[1].hu  # noqa: B018


def test_low_dose_of_full_dose_slices_is_simulated_as_ever(simulated):
    stored = all_slices(simulated)
    held = [FullDoseSlice(s.hu, s.geometry, s.series_uid, s.slice_index) for s in stored]
    one, other = (list(islice(NoisyPairs(s, config(), 0), 4)) for s in (stored, held))
    for first, second in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_real_pairs_show_one_place_of_both_doses_and_the_depth_of_the_low_one(paired):
    """Whatever the turn, a crop of the full dose stands for the crop of its own twin."""
    slices = all_slices(paired)
    assert len(slices) == 9
    assert all(isinstance(item, MeasuredPair) for item in slices)
    crop = SIZE[0] - 7
    seen = set()
    for pair in islice(NoisyPairs(slices, config(crops_per_slice=2), 0), 18):
        full, low = (to_hu(values[0]).numpy() for values in (pair.full_dose, pair.low_dose))
        assert full.shape == low.shape == pair.depth[0].shape == (crop, crop) == (64, 64)
        found = [
            (item, turns, flip, at)
            for item in slices
            for turns in range(4)
            for flip in (False, True)
            for at in [place(item.hu, full, turns, flip)]
            if at is not None
        ]
        ((item, turns, flip, at),) = found
        window = np.s_[at[0] : at[0] + 64, at[1] : at[1] + 64]
        assert np.array_equal(turned(item.read_low_dose()[window], turns, flip), low)
        geometry = item.geometry
        depth = radiological_depth(item.read_low_dose(), geometry, dose_fraction=0.25)
        assert np.array_equal(turned(depth[window], turns, flip), pair.depth[0].numpy())
        seen.add(item.slice_index)
    assert seen == {0, 1, 2}


def turned(values, turns, flip):
    result = np.rot90(values, turns)
    return result[:, ::-1] if flip else result


def place(hu, crop, turns, flip):
    """Corner at which a crop, turned back, lies in a slice; None where it does not."""
    straight = np.rot90(crop[:, ::-1] if flip else crop, -turns)
    for row, column in np.argwhere(hu[: hu.shape[0] - 63, : hu.shape[1] - 63] == straight[0, 0]):
        if np.array_equal(hu[row : row + 64, column : column + 64], straight):
            return row, column
    return None


def test_the_twin_of_a_series_is_its_low_dose(paired):
    series = paired.manifest.series[0]
    full, low = paired.full_dose(series), paired.low_dose(series)
    assert full.shape == low.shape == (3, *SIZE)
    assert full.slice_positions_mm() == low.slice_positions_mm() == (0.0, 3.0, 6.0)
    assert not np.array_equal(full.hu, low.hu)
    assert calibrated_geometry(full).pixel_mm == 0.7


def test_full_dose_alone_has_no_real_low_dose(simulated):
    with pytest.raises(FormatError, match="no real low dose"):
        simulated.low_dose(simulated.manifest.series[0])


def test_every_patient_is_on_one_side(simulated):
    sides = {side: simulated.patients(side) for side in ("train", "validation", "test")}
    assert [len(patients) for patients in sides.values()] == [1, 1, 1]
    assert len(set().union(*sides.values())) == 3


def test_verification_finds_what_changed(simulated, tmp_path):
    out = tmp_path / "out"
    assert verify(out).sha256 == simulated.sha256
    file = out / "slices" / simulated.manifest.series[0].full_file.name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert PreparedSet.open(out)
    with pytest.raises(FormatError, match=f"{file.name} was changed"):
        verify(out)
    file.write_bytes(content)
    (out / "slices" / "extra.npy").write_bytes(b"")
    with pytest.raises(FormatError, match=r"extra\.npy was added"):
        verify(out)


@pytest.mark.parametrize("harm", ["cut", "remove", "reshape"])
def test_a_lost_or_shortened_file_is_found_when_the_set_is_opened(simulated, tmp_path, harm):
    file = tmp_path / "out" / "slices" / simulated.manifest.series[1].full_file.name
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif harm == "remove":
        file.unlink()
    else:
        np.save(file, np.load(file)[:-1])
    with pytest.raises(FormatError, match=file.name):
        PreparedSet.open(tmp_path / "out")


def test_a_manifest_that_was_changed_is_refused(simulated, tmp_path):
    path = tmp_path / "out" / MANIFEST
    values = json.loads(path.read_text())
    moved = json.loads(path.read_text())
    moved["series"][0]["study_digests"] = moved["series"][1]["study_digests"]
    for changed, error in (
        (moved, LeakError),
        (values | {"format": 2}, FormatError),
        (values | {"more": 1}, FormatError),
        ("no object", FormatError),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(error):
            PreparedSet.open(tmp_path / "out")
    path.unlink()
    assert not is_prepared(tmp_path / "out")
    (tmp_path / "out" / ".unfinished").mkdir()
    assert is_prepared(tmp_path / "out")
    with pytest.raises(FormatError, match="unfinished"):
        train.train_from_config(recipe(tmp_path), tmp_path / "out", tmp_path / "run")


def recipe(folder, **values):
    values = {"options": {"width": 4, "depth_width": 4}, "steps": 2, "crop": 64} | values
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def test_a_recipe_without_split_needs_a_prepared_set(tmp_path):
    write_tree(tmp_path / "s")
    with pytest.raises(ConfigError, match="prepared set"):
        train.train_from_config(recipe(tmp_path), tmp_path / "s", tmp_path / "run")


def test_a_set_without_patients_to_validate_is_refused(tmp_path):
    write_tree(tmp_path / "s", ["one"])
    prepared(tmp_path)
    with pytest.raises(FormatError, match="0 for validation"):
        train.train_from_config(recipe(tmp_path), tmp_path / "out", tmp_path / "run")


def test_a_crop_larger_than_a_slice_is_refused(simulated, tmp_path):
    with pytest.raises(FormatError, match="3 series are smaller"):
        train.train_from_config(recipe(tmp_path, crop=128), tmp_path / "out", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["simulated", "paired"])
def test_training_reads_a_prepared_set(kind, tmp_path, request):
    """By its own split, with its collections and hash on the card."""
    found = request.getfixturevalue(kind)
    noise = NoiseRange().model_dump(mode="json")
    path = recipe(tmp_path, noise=noise, loss={"image": 1.0})
    train.train_from_config(path, tmp_path / "out", tmp_path / "run")
    training = json.loads((tmp_path / "run" / "weights.json").read_text())["training"]
    assert training["collections"] == ["C, CC BY 4.0, doi 1"]
    assert training["manifest"] == found.sha256
    assert training["patients"] == sorted(found.patients("train"))
    assert training["slices"] == sum(map(len, prepared_slices(found, "train").values()))
    assert training["validation"]["low_dose_db"] > 0

"""Trees of NIfTI and MetaImage files as training data, and what is said of data nobody prepared."""

import csv

import numpy as np
import pytest
import yaml

from cddnet.errors import FormatError
from cddnet.formats import read_volume, write_volume
from cddnet.training.leaks import LeakError
from cddnet.training.store import PreparedSet, verify
from cddnet.volume import CTVolume
from cddnet.workflows.prepare import PrepareOptions, prepare
from cddnet.workflows.train import train_from_config
from ct_tree import write_tree


def body(seed, depth=3):
    """Air around soft tissue: whole HU (D, H, W)."""
    rng = np.random.default_rng(seed)
    hu = np.rint(rng.normal(-1000, 8, (depth, 96, 96))).clip(-1024)
    hu[:, 16:80, 16:80] = np.rint(rng.normal(40, 15, (depth, 64, 64)))
    return hu.astype(np.float32)


NAMES = ("p1/ct.nii.gz", "p1/late/ct.mha", "p2/ct.nii", "p3/ct.mhd")


@pytest.fixture
def volumes(tmp_path):
    source = tmp_path / "source"
    for seed, name in enumerate(NAMES):
        file = source / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_volume(CTVolume.from_hu(body(seed), (2.5, 0.8, 0.8)), file)
    return source


def run(source, out, **options):
    return prepare(source, out, PrepareOptions(**options), lambda *_: None)


def folders(out):
    with (out / "sources.csv").open(newline="", encoding="utf-8") as file:
        return {row["series"]: row["full_dose"] for row in csv.DictReader(file)}


def test_volume_files_are_stored_with_the_patient_of_their_path(volumes, tmp_path):
    out = tmp_path / "out"
    result = run(volumes, out, patient_pattern="^([^/]+)/", split=(0.4, 0.3, 0.3))
    assert result.left_out == ()
    assert sorted(folders(out).values()) == sorted(NAMES)
    prepared = PreparedSet.open(out)
    patients = {}
    for series in prepared.manifest.series:
        name = folders(out)[series.name]
        stored = prepared.full_dose(series)
        np.testing.assert_array_equal(stored.hu, read_volume(volumes / name).hu)
        np.testing.assert_allclose(stored.spacing_mm, (2.5, 0.8, 0.8), rtol=1e-6)
        assert series.pixel_mm == pytest.approx(0.8)
        patients.setdefault(name[:2], set()).add((series.patient_digest, series.side))
    # One patient, one side, although p1 has two series.
    assert [len(found) for found in patients.values()] == [1, 1, 1]
    assert {side for found in patients.values() for _, side in found} == {
        "train",
        "validation",
        "test",
    }
    assert verify(out).manifest == prepared.manifest


def test_a_flat_folder_names_patients_in_the_files(volumes, tmp_path):
    flat = tmp_path / "imagesTr"
    flat.mkdir()
    for seed in range(3):
        write_volume(CTVolume.from_hu(body(seed), (3, 1, 1)), flat / f"case_{seed:04}.nii.gz")
    (flat / "notes.txt").write_text("none")
    result = run(flat, tmp_path / "out", patient_pattern=r"case_(\d+)", split=(0.4, 0.3, 0.3))
    assert len({series.patient_digest for series in result.manifest.series}) == 3


def test_without_a_pattern_the_remedy_is_named(volumes, tmp_path):
    with pytest.raises(FormatError, match=r"name no patient; give --patient-pattern .*--patients"):
        run(volumes, tmp_path / "out")
    with pytest.raises(FormatError, match="tells no patient by the pattern"):
        run(volumes, tmp_path / "out", patient_pattern="(case[0-9]+)")
    assert not (tmp_path / "out").exists()


def test_a_patients_file_may_tell_them_apart(volumes, tmp_path):
    sides = {"train": {"a": ["p1"]}, "validation": {"b": ["p2"]}, "test": {"c": ["p3"]}}
    file = tmp_path / "patients.yaml"
    file.write_text(yaml.safe_dump(sides | {"collections": ["mine, none, none"]}))
    result = run(volumes, tmp_path / "out", patients=file)
    by_name = {folders(tmp_path / "out")[item.name]: item.side for item in result.manifest.series}
    assert by_name == dict(zip(NAMES, ("train", "train", "validation", "test"), strict=True))


def test_volume_files_beside_dicom_are_counted_not_passed_over(volumes, tmp_path):
    write_tree(volumes)
    result = run(volumes, tmp_path / "out")
    assert len(result.manifest.series) == 4
    assert dict(result.left_out)["unfit"] == len(NAMES)
    both = run(volumes, tmp_path / "both", patient_pattern="^(p[0-9])/")
    assert len(both.manifest.series) == 4 + len(NAMES)


def test_the_same_voxels_under_two_patients_are_a_leak(volumes, tmp_path):
    write_volume(CTVolume.from_hu(body(0), (2.5, 0.8, 0.8)), volumes / "p3" / "again.nii.gz")
    with pytest.raises(LeakError, match=r"p1/ct\.nii\.gz.*share the pixels"):
        run(volumes, tmp_path / "out", patient_pattern="^([^/]+)/", split=(0.4, 0.3, 0.3))


def test_a_tree_without_any_series_says_what_it_holds(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    np.save(source / "a.npy", body(0))
    np.save(source / "b.npy", body(1))
    (source / "c.png").write_bytes(b"")
    with pytest.raises(FormatError, match=r"found: 2 \.npy, 1 \.png.*IN/ and GT/"):
        run(source, tmp_path / "out")


# ---- training on what was not prepared


@pytest.fixture
def recipe(tmp_path):
    split = {"train": {"a": ["a"], "e": ["e"]}, "validation": {"b": ["b"]}, "test": {}}
    (tmp_path / "split.yaml").write_text(yaml.safe_dump(split | {"collections": ["x, y, z"]}))
    options = {"width": 4, "depth_width": 4}
    text = {"model": "cddnet", "options": options, "split": "split.yaml", "steps": 1, "crop": 16}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(text))
    return tmp_path / "recipe.yaml"


def test_training_on_a_tree_that_was_not_prepared_says_so(recipe, tmp_path):
    tree = write_tree(tmp_path / "tree")
    with pytest.raises(FormatError, match=r"no prepared set.*1 of the 3.*: e\. .*cddnet prepare"):
        train_from_config(recipe, tree, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_on_volume_files_says_so_too(recipe, volumes, tmp_path):
    with pytest.raises(FormatError, match=r"no prepared set.*3 of the 3.*cddnet prepare"):
        train_from_config(recipe, volumes, tmp_path / "run")
    recipe.write_text(recipe.read_text().replace("split: split.yaml", "split: null"))
    with pytest.raises(Exception, match="cddnet prepare first"):
        train_from_config(recipe, volumes, tmp_path / "run")


def test_training_on_nothing_is_no_question_of_preparing(recipe, tmp_path):
    with pytest.raises(FormatError, match="no such folder"):
        train_from_config(recipe, tmp_path / "nowhere", tmp_path / "run")

"""Preparing training sets: every layout, pairs by position, sides by patient, leaks, kill -9.

Above 300 lines: each layout and each refusal has a tree of its own.
"""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from cddnet.cli import main
from cddnet.config import ConfigError
from cddnet.errors import CddnetError, FormatError
from cddnet.formats import read_volume
from cddnet.training.leaks import LeakError
from cddnet.training.manifest import MANIFEST, load_manifest
from cddnet.training.store import PreparedSet, verify
from cddnet.workflows import _stacks
from cddnet.workflows._prepared import side_sizes
from cddnet.workflows.prepare import PrepareOptions, prepare, split_shares
from ct_tree import tissue, uid_of, write_series, write_slice, write_tree


def run(source, out, **options):
    return prepare(source, out, PrepareOptions(**options), lambda *_: None)


def left_out(out):
    with (out / "left_out.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tree_hash(folder):
    """Names and content of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def stacks(out, series):
    return [np.load(out / "slices" / file.name) for file in series.files]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """No waiting for the disk: only a power cut needs it."""
    monkeypatch.setattr("cddnet.workflows._appearing.os.fsync", lambda _: None)


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "source")


# ---- trees of full dose


def test_a_tree_is_stored_slice_by_slice_as_it_is_read(tree, tmp_path):
    write_series(tree / "e" / "deep", "ID-e", places=[0, 1, 2, 5])
    result = run(tree, tmp_path / "out")
    assert result.manifest.layout == "tree"
    assert result.left_out == ()
    prepared = PreparedSet.open(tmp_path / "out")
    with (tmp_path / "out" / "sources.csv").open(newline="") as file:
        folders = {row["series"]: row["full_dose"] for row in csv.DictReader(file)}
    assert sorted(folders.values()) == ["a", "b", "c", "d", "e/deep"]
    for series in prepared.manifest.series:
        volume = read_volume(tree / folders[series.name])
        stored = prepared.full_dose(series)
        assert np.array_equal(stored.hu, volume.hu)
        assert stored.slice_positions_mm() == pytest.approx(volume.slice_positions_mm())
        assert stored.spacing_mm == volume.spacing_mm
        assert (stored.thickness_mm, series.kernel, series.pixel_mm) == (3.0, "B30f", 0.7)
        assert series.positions_mm[0] == -50.0
        assert series.low_dose == "simulated"
        mapped = np.load(tmp_path / "out" / "slices" / series.full_file.name, mmap_mode="r")
        assert (mapped.dtype, mapped.shape) == (np.int16, (4, 33, 27))


def test_folders_whose_names_are_no_utf8_are_stored_and_listed(tmp_path):
    name = os.fsdecode(b"Z\xfcrich")
    write_tree(tmp_path / "source")
    try:
        write_series(tmp_path / "source" / name, "ID-e")
    except OSError:
        pytest.skip("this file system holds Unicode names alone")
    (tmp_path / "source" / name / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM")
    out = tmp_path / "out"
    run(tmp_path / "source", out)
    with (out / "sources.csv").open(newline="", encoding="utf-8") as file:
        folders = {row["full_dose"] for row in csv.DictReader(file)}
    assert folders == {"a", "b", "c", "d", r"Z\udcfcrich"}
    assert left_out(out)[0]["source"] == r"Z\udcfcrich"


def test_nothing_in_the_manifest_names_a_patient(tree, tmp_path):
    run(tree, tmp_path / "out")
    text = (tmp_path / "out" / MANIFEST).read_text()
    for plain in ("ID-a", uid_of("ID-a", "study"), uid_of("ID-a", "full"), uid_of("ID-a", "frame")):
        assert plain not in text
        # Short ids would be found from a bare hash by trying them all.
        assert hashlib.sha256(plain.encode()).hexdigest() not in text


def test_padding_is_air_and_fractions_are_rounded(tmp_path):
    hu = tissue("padded")
    hu[0] = -2024
    told = {"PixelPaddingValue": -1000, "RescaleSlope": "0.5", "RescaleIntercept": "-512"}
    write_series(tmp_path / "s" / "a", "A", pixels=lambda place: hu + place, places=[0], **told)
    result = run(tmp_path / "s", tmp_path / "out")
    (stored,) = stacks(tmp_path / "out", result.manifest.series[0])
    assert (stored[0, 0] == -1000).all()
    assert np.array_equal(stored[0, 1:], np.rint(hu[1:] * 0.5))


def test_values_beyond_16_bits_are_refused_not_clipped(tree, tmp_path):
    write_series(tree / "e", "ID-e", RescaleSlope="200")
    out = tmp_path / "out"
    assert run(tree, out).left_out == (("beyond 16 bits", 4),)
    (row,) = left_out(out)
    assert row["source"] == "e"
    assert "HU, beyond 16 bits" in row["reason"]


def test_what_is_unfit_is_listed_and_never_fatal(tree, tmp_path):
    write_series(tree / "mr", "ID-m", Modality="MR")
    write_series(tree / "scout", "ID-s", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tree / "flat", "ID-f", PixelSpacing=["0.7", "0.9"])
    write_series(tree / "nobody", "")
    write_series(tree / "air", "ID-air", pixels=lambda place: np.full((9, 7), -1000, np.int16))
    write_series(tree / "cut", "ID-cut")
    for file in (tree / "cut").iterdir():
        file.write_bytes(file.read_bytes()[:-200])
    (tree / "notes.txt").write_text("no image")
    broken = bytearray((tree / "a" / "im0.dcm").read_bytes()[:400])
    (tree / "broken").mkdir()
    (tree / "broken" / "x.dcm").write_bytes(broken)
    out = tmp_path / "out"
    result = run(tree, out)
    assert len(result.manifest.series) == 4
    reasons = {row["source"].split("/")[0]: row["reason"] for row in left_out(out)}
    for folder, word in (
        ("mr", "modality MR"),
        ("scout", "localizer"),
        ("flat", "square"),
        ("nobody", "--patients"),
        ("air", "no tissue"),
        ("cut", "im"),
        ("broken", ""),
    ):
        assert word in reasons.pop(folder)
    assert reasons == {}
    assert all(series.shape[0] == 4 for series in result.manifest.series)


def test_copies_are_stored_once(tree, tmp_path):
    shutil.copytree(tree / "a", tree / "again" / "a")
    write_series(
        tree / "a" / "sub",
        "ID-a",
        name="other",
        places=[0, 1],
        pixels=lambda place: tissue("ID-a", "full", 2) if place else tissue("new"),
    )
    out = tmp_path / "out"
    result = run(tree, out)
    assert dict(result.left_out) == {"duplicate": 5}
    assert sorted(series.shape[0] for series in result.manifest.series) == [1, 4, 4, 4, 4]
    (row,) = [row for row in left_out(out) if row["source"] == "a/sub"]
    assert row["position_mm"] == "-47.000"
    assert "pixels of another" in row["reason"]


def test_a_slice_that_repeats_within_a_series_is_stored_once(tmp_path):
    """As where a file was copied to the place of a missing one, with a new position."""
    write_series(tmp_path / "s", "A", pixels=lambda place: tissue(min(place, 2)))
    result = run(tmp_path / "s", tmp_path / "out")
    (series,) = result.manifest.series
    assert series.positions_mm == (-50.0, -47.0, -44.0)
    assert series.volume_problems == ("1 slices of the series were left out",)
    (stored,) = stacks(tmp_path / "out", series)
    assert np.array_equal(stored, [tissue(place) for place in range(3)])
    assert [row["position_mm"] for row in left_out(tmp_path / "out")] == ["-41.000"]


def test_slices_without_tissue_may_repeat_but_not_alone(tmp_path):
    def pixels(place):
        return np.full((33, 27), -1000, np.int16) if place < 2 else tissue("x", place)

    write_series(tmp_path / "s" / "a", "A", pixels=pixels)
    result = run(tmp_path / "s", tmp_path / "out")
    (series,) = result.manifest.series
    assert series.shape[0] == 4
    assert [bool(digest) for digest in series.full_file.slices] == [False, False, True, True]


# ---- Mayo 2016, TCIA


def mayo(root, patients=("L067", "L096", "L109"), kinds=("3mm",), *, nested=False):
    for patient in patients:
        for kind in kinds:
            for dose in ("full", "quarter"):
                folder = root / patient / f"{dose}_{kind}"
                if nested:
                    folder = root / "3mm B30" / f"{dose}_{kind}" / patient / f"{dose}_{kind}"
                told = {"StudyInstanceUID": uid_of(patient), "FrameOfReferenceUID": uid_of(patient)}
                write_series(
                    folder,
                    "Anonymous",
                    name=f"{patient}{dose}{kind}",
                    ConvolutionKernel="D45" if "sharp" in kind else "B30f",
                    **told,
                )
    return root


def shown(series, out):
    """{position: (full, low)} of a stored pair."""
    full, low = stacks(out, series)
    return {mm: pair for mm, *pair in zip(series.positions_mm, full, low, strict=True)}


@pytest.mark.parametrize("nested", [False, True])
def test_mayo_pairs_are_made_by_patient_kind_and_position(tmp_path, nested):
    source = mayo(tmp_path / "s", kinds=("3mm", "3mm_sharp", "1mm"), nested=nested)
    result = run(source, tmp_path / "out")
    assert result.manifest.layout == "mayo2016"
    assert result.left_out == ()
    assert result.doubts == ()
    assert len({series.patient_digest for series in result.manifest.series}) == 3
    assert len(result.manifest.series) == 9
    prepared = verify(tmp_path / "out")
    expected = {
        tissue("Anonymous", f"{p}full{k}", z).tobytes(): tissue(
            "Anonymous", f"{p}quarter{k}", z
        ).tobytes()
        for p in ("L067", "L096", "L109")
        for k in ("3mm", "3mm_sharp", "1mm")
        for z in range(4)
    }
    found = {}
    for series in prepared.manifest.series:
        assert series.low_dose == "real"
        pairs = shown(series, tmp_path / "out")
        found |= {full.tobytes(): low.tobytes() for full, low in pairs.values()}
    assert found == expected


def test_missing_and_extra_slices_change_no_pair(tmp_path):
    source = mayo(tmp_path / "s", ("L067",))
    for folder, places in (("full_3mm", [0, 1, 2, 4, 5, 6]), ("quarter_3mm", [1, 2, 3, 4, 6, 7])):
        shutil.rmtree(source / "L067" / folder)
        write_series(source / "L067" / folder, "X", name=folder, places=places)
    out = tmp_path / "out"
    result = run(source, out)
    pairs = shown(result.manifest.series[0], out)
    assert list(pairs) == [-47.0, -44.0, -38.0, -32.0]
    for mm, (full, low) in pairs.items():
        place = round((mm + 50) / 3)
        assert np.array_equal(full, tissue("X", "full_3mm", place))
        assert np.array_equal(low, tissue("X", "quarter_3mm", place))
    rows = left_out(out)
    assert {(row["kind"], row["source"], row["position_mm"]) for row in rows} == {
        ("missing twin", "L067/full_3mm", "-50.000"),
        ("missing twin", "L067/full_3mm", "-35.000"),
        ("missing twin", "L067/quarter_3mm", "-41.000"),
        ("missing twin", "L067/quarter_3mm", "-29.000"),
    }


@pytest.mark.parametrize(
    ("told", "kind", "word"),
    [
        ({"PixelSpacing": ["0.8", "0.8"]}, "geometry", "pixel spacing"),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}, "geometry", "orientation"),
        ({"SliceThickness": "1"}, "geometry", "thickness"),
        ({"ConvolutionKernel": "D45"}, "geometry", "kernel"),
        ({"pixels": lambda place: tissue(place, size=(31, 27))}, "geometry", "rows"),
        ({"places": [0.5, 1.5, 2.5]}, "missing twin", "within 0.3 mm"),
        ({"shift": 2.0}, "geometry", "shifted by 2.00 mm"),
    ],
)
def test_twins_on_another_grid_are_left_out(tmp_path, told, kind, word):
    source = mayo(tmp_path / "s", ("L067", "L096"))
    folder = source / "L067" / "quarter_3mm"
    shutil.rmtree(folder)
    shift = told.pop("shift", None)
    if shift:
        for place in range(4):
            told["ImagePositionPatient"] = [-10 + shift, -10, -50 + 3 * place]
            write_series(folder / str(place), "X", places=[place], **told)
        for file in list(folder.glob("*/*")):
            file.rename(folder / f"{file.parent.name}.dcm")
    else:
        write_series(folder, "X", **told)
    result = run(source, tmp_path / "out")
    assert len(result.manifest.series) == 1
    rows = [row for row in left_out(tmp_path / "out") if row["source"] == "L067/full_3mm"]
    assert [row["kind"] for row in rows] == [kind]
    assert word in rows[0]["reason"]


def test_positions_within_a_tenth_of_the_spacing_are_one(tmp_path):
    source = mayo(tmp_path / "s", ("L067",))
    shutil.rmtree(source / "L067" / "quarter_3mm")
    places = [place + 0.09 for place in range(4)]
    write_series(source / "L067" / "quarter_3mm", "X", places=places)
    assert run(source, tmp_path / "out").manifest.series[0].shape[0] == 4


def test_slices_without_a_position_are_no_pair(tmp_path):
    source = mayo(tmp_path / "s", ("L067", "L096"))
    for dose in ("full", "quarter"):
        folder = source / "L067" / f"{dose}_3mm"
        shutil.rmtree(folder)
        write_series(folder, "X", name=dose, places=[0], ImagePositionPatient=None)
    result = run(source, tmp_path / "out")
    assert dict(result.left_out) == {"geometry": 1}
    assert "does not say where" in left_out(tmp_path / "out")[0]["reason"]


def test_a_low_dose_that_is_a_copy_of_the_full_dose_is_no_pair(tmp_path):
    source = mayo(tmp_path / "s", ("L067", "L096"))
    shutil.rmtree(source / "L067" / "quarter_3mm")
    pixels = lambda place: tissue("Anonymous", "L067full3mm", place)  # noqa: E731
    write_series(source / "L067" / "quarter_3mm", "X", name="copy", pixels=pixels)
    result = run(source, tmp_path / "out")
    assert dict(result.left_out) == {"duplicate": 4}


def test_series_without_a_twin_are_listed(tmp_path):
    source = mayo(tmp_path / "s")
    shutil.rmtree(source / "L067" / "full_3mm")
    shutil.rmtree(source / "L096" / "quarter_3mm")
    write_series(source / "stray", "X")
    run(source, tmp_path / "out")
    rows = {row["source"]: row["kind"] for row in left_out(tmp_path / "out")}
    assert rows == {
        "L067/quarter_3mm": "missing twin",
        "L096/full_3mm": "missing twin",
        "stray": "unfit",
    }


def test_tcia_series_are_paired_and_projections_are_counted(tmp_path):
    source = tmp_path / "LDCT"
    for patient in ("L004", "N012"):
        study = source / patient / "08-30-2018-00001-NA-1234"
        for name in ("1.000000-Full Dose Images-12345", "1.000000-Low Dose Images-39882"):
            write_series(study / name, patient, name=name)
        write_series(study / "1.0-Full Dose Projections-24362", patient, name="p")
    result = run(source, tmp_path / "out")
    assert result.manifest.layout == "tcia-ldct"
    assert dict(result.left_out) == {"projections": 8}
    assert len({series.patient_digest for series in result.manifest.series}) == 2
    for series in result.manifest.series:
        pairs = shown(series, tmp_path / "out")
        assert len(pairs) == 4
        (patient,) = (
            p
            for p in ("L004", "N012")
            if np.array_equal(pairs[-50.0][0], tissue(p, "1.000000-Full Dose Images-12345", 0))
        )
        expected = tissue(patient, "1.000000-Low Dose Images-39882", 3)
        assert np.array_equal(pairs[-41.0][1], expected)


# ---- pictures


def pictures(root, names, kind="png", size=(32, 48)):
    for folder in ("IN", "GT"):
        (root / folder).mkdir(parents=True)
        for name in names:
            seed = int(hashlib.sha256(f"{folder}{name}".encode()).hexdigest()[:8], 16)
            grey = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
            Image.fromarray(grey).save(root / folder / f"{name}.{kind}")
    return root


def test_pictures_need_their_window_and_say_what_they_lack(tmp_path):
    source = pictures(tmp_path / "s", ["L067_1", "L067_2", "L096_1"])
    with pytest.raises(FormatError, match="--window"):
        run(source, tmp_path / "out")
    (source / "IN" / "L099_1.png").write_bytes((source / "IN" / "L067_1.png").read_bytes())
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(source / "GT" / "L096_1.png")
    options = {"window_hu": (-160.0, 240.0), "patient_pattern": "^(L[0-9]+)_"}
    assert not (tmp_path / "out").exists()
    result = run(source, tmp_path / "out", **options)
    assert result.manifest.layout == "in-gt"
    assert dict(result.left_out) == {"missing twin": 1, "geometry": 1}
    assert any("1.57 HU, finer differences" in text for text in result.manifest.warnings)
    (series,) = result.manifest.series
    assert (series.pixel_mm, series.low_dose, series.shape) == (None, "real", (2, 32, 48))
    for stored, folder in zip(stacks(tmp_path / "out", series), ("GT", "IN"), strict=True):
        for name, hu in zip(("L067_1", "L067_2"), stored, strict=True):
            grey = np.asarray(Image.open(source / folder / f"{name}.png")).astype(float)
            assert np.array_equal(hu, np.rint(np.float32(grey / 255 * 400 - 160)))


def test_pictures_are_one_patient_unless_a_pattern_tells_them(tmp_path):
    source = pictures(tmp_path / "s", [f"L{i}_1" for i in range(5)], kind="jpg")
    result = run(source, tmp_path / "one", window_hu=(-160.0, 240.0))
    assert {series.side for series in result.manifest.series} == {"train"}
    assert any("one patient" in text for text in result.manifest.warnings)
    assert any("JPEG" in text for text in result.manifest.warnings)
    result = run(source, tmp_path / "two", window_hu=(-160.0, 240.0), patient_pattern="(L.)_")
    assert len({series.patient_digest for series in result.manifest.series}) == 5
    for pattern in ("(", "L.", "(L)(.)"):
        with pytest.raises(FormatError, match="patient-pattern"):
            run(source, tmp_path / "three", window_hu=(0.0, 1.0), patient_pattern=pattern)


# ---- sides


def sides_of(manifest):
    return {series.patient_digest: series.side for series in manifest.series}


def test_all_series_of_a_patient_stay_on_one_side_and_the_seed_decides(tmp_path):
    source = write_tree(tmp_path / "s", [f"p{i}" for i in range(10)])
    for patient in ("p0", "p5"):
        write_series(source / "sharp" / patient, f"ID-{patient}", name="sharp")
    first = run(source, tmp_path / "one").manifest
    sides = sides_of(first)
    assert len(first.series) == 12
    assert sorted(sides.values()) == ["test"] + ["train"] * 8 + ["validation"]
    for series in first.series:
        assert series.side == sides[series.patient_digest]
    again = run(source, tmp_path / "two", seed=1).manifest
    assert sides_of(again) != sides
    assert sides_of(run(source, tmp_path / "three").manifest) == sides


@pytest.mark.parametrize(
    ("patients", "split", "expected"),
    [
        (0, (0.8, 0.1, 0.1), (0, 0, 0)),
        (1, (0.8, 0.1, 0.1), (1, 0, 0)),
        (2, (0.8, 0.1, 0.1), (1, 1, 0)),
        (3, (0.8, 0.1, 0.1), (1, 1, 1)),
        (10, (0.8, 0.1, 0.1), (8, 1, 1)),
        (30, (0.8, 0.1, 0.1), (24, 3, 3)),
        (7, (0.5, 0.5, 0.0), (4, 3, 0)),
        (5, (1.0, 0.0, 0.0), (5, 0, 0)),
        (4, (0.0, 0.0, 1.0), (0, 0, 4)),
    ],
)
def test_sides_are_near_their_shares_and_not_empty(patients, split, expected):
    assert side_sizes(patients, split) == expected


def test_shares_are_read_and_checked(tree, tmp_path):
    assert split_shares("0.7/0.2/0.1") == (0.7, 0.2, 0.1)
    for text in ("0.7/0.3", "a/b/c", ""):
        with pytest.raises(FormatError, match=r"0\.8/0\.1/0\.1"):
            split_shares(text)
    with pytest.raises(FormatError, match="1 together"):
        run(tree, tmp_path / "out", split=(0.7, 0.2, 0.2))


def listed(path, **sides):
    values = {"collections": ["C, CC BY 4.0, doi 1"], "train": {}, "validation": {}, "test": {}}
    path.write_text(yaml.safe_dump(values | sides))
    return path


def test_a_patients_file_decides_patients_and_sides(tree, tmp_path):
    write_series(tree / "e" / "one", "", places=[0, 1, 1])
    write_series(tree / "e" / "two", "", name="more")
    patients = listed(tmp_path / "p.yaml", train={"A": ["a"], "E": ["e"]}, test={"B": ["b", "c"]})
    out = tmp_path / "out"
    manifest = run(tree, out, patients=patients).manifest
    assert sorted(series.side for series in manifest.series) == ["test"] * 2 + ["train"] * 3
    assert len(sides_of(manifest)) == 3
    assert manifest.collections == ("C, CC BY 4.0, doi 1",)
    assert [(row["kind"], row["source"], row["slices"]) for row in left_out(out)] == [
        ("not listed", "d", "1"),
        ("duplicate", "e/one", "1"),
    ]
    with pytest.raises(FormatError, match=r"lacks 1 series folders: nowhere"):
        run(tree, tmp_path / "o2", patients=listed(tmp_path / "q.yaml", train={"A": ["nowhere"]}))
    with pytest.raises(ConfigError):
        run(tree, tmp_path / "o3", patients=listed(tmp_path / "r.yaml", train={"A": "a"}))


def test_collections_are_listed_and_headers_add_theirs(tree, tmp_path):
    write_series(tree / "e", "ID-e", ClinicalTrialProtocolID="TCGA-LUAD")
    stated = ("Own, CC BY 4.0, doi 2", "Own, CC BY 4.0, doi 2")
    manifest = run(tree, tmp_path / "out", collections=stated).manifest
    assert manifest.collections[0] == stated[0]
    assert manifest.collections[1].startswith("TCGA-LUAD, named by headers")
    assert len(manifest.collections) == 2
    known = ("tcga-luad, CC BY 3.0, doi 3",)
    assert run(tree, tmp_path / "two", collections=known).manifest.collections == known


# ---- leaks


def two_sides(path):
    return listed(path, train={"A": ["a"], "B": ["b"]}, test={"C": ["c"]})


def plant_patient(tree):
    write_series(tree / "c", "ID-a", name="later", StudyInstanceUID="1.2", FrameOfReferenceUID="1")


def plant_pixels(tree):
    write_series(tree / "c", "ID-x", pixels=lambda place: tissue("ID-a", "full", place + 2))


def plant_study(tree):
    write_series(tree / "c", "ID-x", StudyInstanceUID=uid_of("ID-a", "study"))


def plant_frame(tree):
    for file in (tree / "c").iterdir():
        file.unlink()
    for place in range(4):
        frame = uid_of("ID-a", "frame") if place == 2 else "1.9"
        write_slice(
            tree / "c" / f"{place}.dcm",
            tissue("c", place),
            PatientID="ID-x",
            StudyInstanceUID="1.5",
            SeriesInstanceUID="1.6",
            SOPInstanceUID=f"1.7.{place}",
            FrameOfReferenceUID=frame,
            ImagePositionPatient=[0, 0, 3 * place],
        )


@pytest.mark.parametrize(
    ("plant", "what"),
    [
        (plant_patient, "patient ID"),
        (plant_pixels, "the pixels of 2 slices"),
        (plant_study, "the study"),
        (plant_frame, "the frame of reference"),
    ],
)
def test_a_planted_leak_is_refused_and_the_cure_works(tree, tmp_path, plant, what):
    """Clean sets pass; so does the same data once both names are one patient."""
    assert run(tree, tmp_path / "clean", patients=two_sides(tmp_path / "p.yaml"))
    plant(tree)
    out = tmp_path / "out"
    with pytest.raises(LeakError) as error:
        run(tree, out, patients=two_sides(tmp_path / "p.yaml"))
    text = str(error.value)
    assert what in text
    assert "a (patient" in text
    assert "c (patient" in text
    assert not (out / MANIFEST).exists()
    with pytest.raises(FormatError, match="unfinished"):
        PreparedSet.open(out)
    cured = listed(tmp_path / "q.yaml", train={"A": ["a", "c"]}, test={"B": ["b"]})
    assert len(run(tree, tmp_path / "cured", patients=cured).manifest.series) == 3


def test_one_patient_under_two_names_on_one_side_is_reported(tree, tmp_path):
    plant_study(tree)
    together = listed(tmp_path / "p.yaml", train={"A": ["a"], "C": ["c"]}, test={"B": ["b"]})
    result = run(tree, tmp_path / "out", patients=together)
    (doubt,) = result.doubts
    assert "the study" in doubt
    again = run(tree, tmp_path / "out", patients=together)
    assert (again.doubts, again.left_out, again.was_finished) == (
        result.doubts,
        result.left_out,
        True,
    )


# ---- killed, refused, full


def test_a_run_that_is_killed_anywhere_ends_the_same(tree, tmp_path):
    """Killed at moments spread over the run, and resumed: the same files, byte by byte."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(tree, whole)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from cddnet.workflows import _stacks\n"
        "from cddnet.workflows.prepare import PrepareOptions, prepare\n"
        "read = _stacks.stored_hu\n"
        "import cddnet.workflows.prepare as p\n"
        "def slow(*a):\n    print('slice', flush=True); time.sleep(0.02); return read(*a)\n"
        "p.stored_hu = slow\n"
        "prepare(Path(sys.argv[1]), Path(sys.argv[2]), PrepareOptions(), lambda *_: None)\n"
    )
    command = [sys.executable, "-c", code, str(tree), str(out)]
    decoded = []
    for slices in (6, 3, None):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines = 0
            for _ in process.stdout:
                lines += 1
                if lines == slices:
                    time.sleep(0.01)
                    process.send_signal(signal.SIGKILL)
                    break
            process.wait()
        decoded.append(lines)
        assert (process.returncode == 0) == (slices is None)
        assert (out / MANIFEST).exists() == (slices is None)
    assert tree_hash(out) == tree_hash(whole)
    assert sum(decoded) > 16 > decoded[-1]
    assert not (out / ".unfinished").exists()


def stop_at(monkeypatch, calls, error):
    """Fail at the n-th slice."""
    read, count = _stacks.stored_hu, iter(range(1000))

    def failing(volume, index):
        if next(count) == calls:
            raise error
        return read(volume, index)

    monkeypatch.setattr("cddnet.workflows.prepare.stored_hu", failing)


def test_a_full_disk_is_said_and_nothing_is_half_valid(tree, tmp_path, monkeypatch):
    run(tree, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(patch, 6, OSError(28, "No space left on device"))
        with pytest.raises(CddnetError, match="disk is full"):
            run(tree, out)
    assert not (out / MANIFEST).exists()
    assert [path.name for path in out.rglob("*.part*")] == []
    assert len(list((out / "slices").iterdir())) == 1
    (out / "slices" / ".part.stale.npy").write_bytes(b"left by a kill")
    run(tree, out)
    assert tree_hash(out) == tree_hash(tmp_path / "whole")


def test_another_source_or_other_options_are_refused(tree, tmp_path, monkeypatch):
    out, done = tmp_path / "out", tmp_path / "done"
    run(tree, done)
    with monkeypatch.context() as patch:
        stop_at(patch, 6, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tree, out)
    for folder, word in ((out, "unfinished set of another"), (done, "set of another source")):
        before = tree_hash(folder)
        with pytest.raises(FormatError, match=word):
            run(tree, folder, seed=1)
        (tree / "extra.txt").write_text("x")
        with pytest.raises(FormatError, match=word):
            run(tree, folder)
        (tree / "extra.txt").unlink()
        assert tree_hash(folder) == before
    assert not run(tree, out).was_finished
    assert run(tree, out).was_finished
    assert tree_hash(out) == tree_hash(done)


def test_folders_that_cannot_be_used_are_refused_and_left_alone(tree, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    (tmp_path / "empty").mkdir()
    for source, out, word in (
        (tree, tmp_path / "mine", "no prepared set"),
        (tree, tree / "out", "in the source"),
        (tree, tmp_path / "no" / "out", "no such folder"),
        (tmp_path / "nowhere", tmp_path / "out", "no folder"),
        (tmp_path / "empty", tmp_path / "o1", "nothing in it"),
        (tmp_path / "mine", tmp_path / "o2", "nothing in it"),
    ):
        with pytest.raises(FormatError, match=word):
            run(source, out)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    assert not (tmp_path / "o2").exists()
    with pytest.raises(FormatError, match="layout flat"):
        run(tree, tmp_path / "out", layout="flat")


def test_the_command_says_what_it_made_and_checks_it(tree, tmp_path, monkeypatch, capsys):
    def cddnet(*arguments):
        monkeypatch.setattr(sys, "argv", ["cddnet", "prepare", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    write_series(tree / "again", "ID-a")
    plant_study(tree)
    out = tmp_path / "out"
    code, text, _ = cddnet(tree, out, "--split", "1/0/0")
    assert code == 0
    for words in ("no collection is stated", "4 patients", "4 slices or files, duplicate"):
        assert words in text
    assert "c (patient" in text
    stated = ("--collection", "One, CC BY 4.0, doi 1", "--collection", "Two, CC0, doi 2")
    code, text, _ = cddnet(tree, tmp_path / "two", "--split", "1/0/0", "--json", *stated)
    record = json.loads(text)
    assert record["collections"] == [stated[1], stated[3]]
    assert record["sides"]["train"]["slices"] == sum(
        series.shape[0] for series in load_manifest(out).series
    )
    assert len(record["doubts"]) == 1
    assert cddnet(out, "--check")[0] == 0
    (out / "slices" / load_manifest(out).series[0].full_file.name).write_bytes(b"")
    code, text, err = cddnet(out, "--check")
    assert (code, text) == (1, "")
    assert "prepare the set again" in err


def test_patients_who_cut_the_body_are_refused(tree, tmp_path):
    """A prepared set would have their depth learned."""
    patients = listed(tmp_path / "p.yaml", train={"A": ["a"]}, cut=["A"])
    with pytest.raises(ConfigError, match="A cut the body"):
        run(tree, tmp_path / "out", patients=patients)
    assert not (tmp_path / "out").exists()


def test_a_patients_file_may_file_real_pairs(tmp_path):
    source = mayo(tmp_path / "s")
    patients = listed(
        tmp_path / "p.yaml", train={"one": ["L067", "L096"]}, test={"two": ["L109/full_3mm"]}
    )
    manifest = run(source, tmp_path / "out", patients=patients).manifest
    assert sorted(series.side for series in manifest.series) == ["test", "train", "train"]
    assert {series.low_dose for series in manifest.series} == {"real"}
    with pytest.raises(FormatError, match="patient-pattern"):
        run(pictures(tmp_path / "q", ["a"]), tmp_path / "o", patients=patients)


def test_the_layout_may_be_stated(tmp_path):
    source = mayo(tmp_path / "s")
    result = run(source, tmp_path / "out", layout="tree")
    assert (result.manifest.layout, result.manifest.series[0].low_dose) == ("tree", "simulated")
    assert len(sides_of(result.manifest)) == 1


def test_the_manifest_is_plain_json_with_a_hash_for_everything(tree, tmp_path):
    run(tree, tmp_path / "out")
    manifest = load_manifest(tmp_path / "out")
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["format"] == 1
    for series in manifest.series:
        path = tmp_path / "out" / "slices" / series.full_file.name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == series.full_file.sha256

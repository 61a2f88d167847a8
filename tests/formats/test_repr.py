"""What is printed of a volume, and of everything in it, names nobody."""

import dataclasses
import functools

import numpy as np
import pytest
from dicom_series import (
    FAMILY_NAME,
    ROOT,
    ct_dataset,
    derive,
    enhanced_dataset,
    read,
    save,
    save_series,
    set_stored,
)
from pydicom import uid

from cddnet.formats import _dicom_scan, read_volume, write_volume
from cddnet.formats._facts import read_facts
from cddnet.formats._parametric import PREDICTED_NOISE, write_parametric_map
from cddnet.formats._parametric_read import read_parametric_map
from cddnet.formats.dicom import list_series
from cddnet.volume import CTVolume
from cddnet.workflows._decoding import decoded_once
from cddnet.workflows.fitness import examine

# Of `ct_dataset`, and a folder that is named after a person.
SECRET = (
    FAMILY_NAME,
    "ID-4711",
    "19500607",
    "20240102",
    "101112",
    "A77",
    "Thorax",
    ROOT,
    "Mustermann",
)
KINDS = ("classic", "implicit", "deflated", "enhanced", "one", "map", "derived", "decoded once")


def source(tmp_path, kind):
    folder = tmp_path / "Mustermann"
    folder.mkdir()
    if kind == "enhanced":
        return save(enhanced_dataset(), folder / "Mustermann.dcm")
    datasets = [ct_dataset(index) for index in range(1 if kind == "one" else 3)]
    for dataset in datasets:
        if kind in ("implicit", "deflated"):
            chosen = {"implicit": uid.ImplicitVRLittleEndian}
            dataset.file_meta.TransferSyntaxUID = chosen.get(
                kind, uid.DeflatedExplicitVRLittleEndian
            )
            set_stored(dataset, np.zeros((9, 9), np.int16))
    return save_series(folder / "Mustermann^Erika", datasets)


def opened(tmp_path, kind):
    path = source(tmp_path, kind)
    volume = read_volume(path)
    if kind == "map":
        write_parametric_map(derive(volume), path / "map.dcm", PREDICTED_NOISE)
        return read_parametric_map(path / "map.dcm")
    if kind == "derived":
        write_volume(derive(volume), tmp_path / "out")
        return derive(read(tmp_path / "out"))
    return decoded_once(volume) if kind == "decoded once" else volume


def carried(value, seen=None):
    """Everything of ours that a value holds, and what it can be called by."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen.values()
    ours = type(value).__module__.startswith("cddnet")
    if ours or callable(value):
        seen[id(value)] = value
    if dataclasses.is_dataclass(value):
        inside = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, list | tuple):
        inside = list(value)
    elif isinstance(value, functools.partial):
        inside = list(value.args)
    else:
        inside = [getattr(value, "__self__", None)]
    for item in inside if ours or not isinstance(value, type) else ():
        if not isinstance(item, str | bytes | int | float | type(None)):
            carried(item, seen)
    return seen.values()


def require_nameless(value):
    for item in carried(value):
        shown = f"{item!r} {item}"
        assert not [secret for secret in SECRET if secret in shown], type(item)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_a_volume_carries_names_anybody(tmp_path, kind):
    volume = opened(tmp_path, kind)
    types = {type(item).__name__ for item in carried(volume)}
    assert types >= {"CTVolume", "Acquisition"}
    assert types & {"DicomHeaders", "_DecodedOnce", "MapHeader"}
    assert kind == "map" or types >= {"Frame"}
    require_nameless(volume)


@pytest.mark.parametrize("kind", ["classic", "enhanced", "deflated"])
def test_what_is_found_on_the_way_names_nobody(tmp_path, kind):
    path = source(tmp_path, kind)
    (series,) = _dicom_scan.find_series(path)
    for found in (series.files, series.frames, read_facts(series.files[0].path)):
        require_nameless(found)
    assert FAMILY_NAME not in repr(series)
    assert FAMILY_NAME not in repr(list_series(path))
    require_nameless(examine(read_volume(path)))


def test_a_volume_shows_shape_spacing_and_description(tmp_path):
    volume = read_volume(source(tmp_path, "classic"))
    assert repr(volume) == (
        "CTVolume(shape=(3, 31, 45), spacing_mm=(5, 0.7, 0.8), series_description='Lung 5.0')"
    )
    assert repr(derive(volume)) == repr(volume)
    bare = CTVolume.from_hu(np.zeros((2, 3, 4), np.float32), (2.5, 0.123456, 1))
    assert repr(bare) == "CTVolume(shape=(2, 3, 4), spacing_mm=(2.5, 0.123456, 1))"


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".npz", ".tif"])
def test_other_formats_show_no_path_and_no_values(tmp_path, ending):
    path = tmp_path / f"Mustermann{ending}"
    write_volume(CTVolume.from_hu(np.zeros((2, 8, 9), np.float32), (2, 1, 1)), path)
    volume = read_volume(path)
    assert repr(volume) == "CTVolume(shape=(2, 8, 9), spacing_mm=(2, 1, 1))"


@pytest.mark.parametrize(
    ("described", "shown"),
    [
        ("Lung 5.0", "Lung 5.0"),
        (f"{FAMILY_NAME} Lung", ""),
        (f"lung of {FAMILY_NAME.upper()}", ""),
        ("J\xfcrgen", ""),
        ("ID-4711 5 mm", ""),
        ("4711", ""),
        ("follows 20240102", ""),
        ("*07.06.1950, 19500607", ""),
    ],
)
def test_a_description_that_repeats_the_patient_is_not_kept(tmp_path, described, shown):
    dataset = ct_dataset()
    dataset.SeriesDescription = described
    volume = read(save(dataset, tmp_path / "a.dcm"))
    assert volume.acquisition.series_description == shown
    assert (described in repr(volume)) == bool(shown)

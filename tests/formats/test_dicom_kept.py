"""Headers take little memory, and their writers see what they would have seen of the file."""

import gc
import tracemalloc

import numpy as np
import pytest
from dicom_series import ct_dataset, derive, enhanced_dataset, read, save, save_series, set_stored
from pydicom import Dataset, dcmread, uid
from pydicom.dataelem import DataElement

from cddnet.formats import dicom
from cddnet.formats._dicom_kept import KeptHeader, SharedElements
from cddnet.formats._dicom_scan import read_header

FEW, MANY = 5, 25
# A slice's own: the tuple of its elements and its Frame, and the elements that no other slice has.
ELEMENT_BYTES = 300
FRAME_BYTES = 2000


def rich_dataset(index=0, undefined=True):
    """A slice with nested sequences, private elements, and numbers of its own."""
    dataset = ct_dataset(index)
    code = _item(CodeValue="1", CodingSchemeDesignator="DCM", CodeMeaning="J\xfcrgen")
    code.private_block(0x11, "SECRET", create=True).add_new(1, "LO", "hidden")
    code.EquivalentCodeSequence = [_item(CodeValue=str(index % 2), CodeMeaning="inner")]
    dataset.AnatomicRegionSequence = [code, _item(CodeValue="2")]
    dataset.ReferencedImageSequence = []
    dataset.RequestAttributesSequence = [_item(ScheduledProcedureStepID="P")]
    for keyword in ("AnatomicRegionSequence", "ReferencedImageSequence"):
        dataset[keyword].is_undefined_length = undefined
        for item in dataset[keyword].value:
            item.is_undefined_length_sequence_item = undefined
    private = dataset.private_block(0x29, "MAKER", create=True)
    private.add_new(0x10, "OB", bytes(range(64)) * (1 + index % 3))
    private.add_new(0x11, "SQ", [_item(PatientID="x")])
    private[0x11].is_undefined_length = undefined
    return dataset


def _item(**fields):
    item = Dataset()
    for keyword, value in fields.items():
        setattr(item, keyword, value)
    return item


def in_syntax(dataset, syntax):
    stored = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, dataset.Columns)
    dataset.file_meta.TransferSyntaxUID = syntax
    set_stored(dataset, stored)
    return dataset


# What is kept


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", ["", "ISO 2022 IR 100"]])
@pytest.mark.parametrize(
    "syntax",
    [
        uid.ExplicitVRLittleEndian,
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    ],
)
def test_the_data_set_is_that_of_the_file(syntax, charset, undefined, tmp_path):
    dataset = in_syntax(rich_dataset(undefined=undefined), syntax)
    dataset.SpecificCharacterSet = charset
    path = save(dataset, tmp_path / "a.dcm")
    scanned = read_header(path)
    expected = dcmread(path, stop_before_pixels=True)
    for _ in range(2):
        same(scanned.header, expected)
    deflated = syntax == uid.DeflatedExplicitVRLittleEndian
    assert isinstance(scanned.kept, Dataset if deflated else KeptHeader)


def same(header, expected):
    """Element by element: order, coding, decoded values, lengths that were not told."""
    assert list(header.keys()) == list(expected.keys())
    assert header.original_encoding == expected.original_encoding
    assert header.original_character_set == expected.original_character_set
    for tag in expected.keys():  # noqa: SIM118
        raw, wanted_raw = header.get_item(tag), expected.get_item(tag)
        if not isinstance(raw, DataElement) and not isinstance(wanted_raw, DataElement):
            assert raw._replace(value_tell=0) == wanted_raw._replace(value_tell=0)
        found, wanted = header[tag], expected[tag]
        assert (found.VR, found.is_undefined_length) == (wanted.VR, wanted.is_undefined_length)
        if wanted.VR != "SQ":
            assert found.value == wanted.value
            continue
        assert len(found.value) == len(wanted.value)
        for item, wanted_item in zip(found.value, wanted.value, strict=True):
            ends = item.is_undefined_length_sequence_item
            assert ends == wanted_item.is_undefined_length_sequence_item
            same(item, wanted_item)


def test_a_repeated_element_is_left_to_the_library(tmp_path):
    path = save(rich_dataset(), tmp_path / "a.dcm")
    content = path.read_bytes()
    start = content.index(b"\x08\x00\x05\x00CS")
    end = start + 8 + int.from_bytes(content[start + 6 : start + 8], "little")
    for last in (start, content.index(b"\x08\x00\x18\x00UI")):
        path.write_bytes(content[:last] + content[start:end] + content[last:])
        same(read_header(path).header, dcmread(path, stop_before_pixels=True))


def test_enhanced_ct_is_decoded_once(tmp_path):
    volume = read(save(enhanced_dataset(), tmp_path / "a.dcm"))
    headers = {id(frame.header) for frame in volume.headers.frames}
    assert len(headers) == 1


# What comes of it


def whole(self, header, elements):
    """As if nothing were shared."""
    return header


@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian]
)
def test_derived_files_are_those_of_headers_that_share_nothing(syntax, tmp_path, monkeypatch):
    datasets = [in_syntax(rich_dataset(index), syntax) for index in range(4)]
    source = save_series(tmp_path / "source", datasets)
    write(source, tmp_path / "shared")
    monkeypatch.setattr(SharedElements, "keep", whole)
    write(source, tmp_path / "whole")
    names = sorted(file.name for file in (tmp_path / "shared").iterdir())
    assert len(names) == 4
    for name in names:
        shared = (tmp_path / "shared" / name).read_bytes()
        assert shared == (tmp_path / "whole" / name).read_bytes()
        assert b"inner" in shared
        assert b"hidden" not in shared


def write(source, target):
    from dataclasses import replace

    from dicom_series import STEP

    step = replace(STEP, timeless=True)
    dicom.write(derive(read(source), lambda hu: hu + 3, step), target, dicom.WriteOptions())


def kept_bytes(files):
    """Memory that a series of these files holds after it was found."""
    gc.collect()
    tracemalloc.start()
    try:
        volume = dicom.read_files(files)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        assert volume.shape[0] == len(files)
        return held
    finally:
        tracemalloc.stop()


def bytes_per_slice(files):
    return (kept_bytes(files[:MANY]) - kept_bytes(files[:FEW])) / (MANY - FEW)


def test_a_slice_holds_what_only_it_tells(tmp_path, monkeypatch):
    """Bound by arithmetic: 8 bytes an element, 300 and its value for each of its own, its Frame."""
    datasets = [rich_dataset(0) for _ in range(MANY)]
    for index, dataset in enumerate(datasets):
        dataset.SOPInstanceUID += f".{index}"
        dataset.InstanceNumber = str(index)
        dataset.ImagePositionPatient = ["-20", "-30", str(index)]
    files = sorted(save_series(tmp_path / "source", datasets).iterdir())
    own = ("SOPInstanceUID", "InstanceNumber", "ImagePositionPatient")
    values = sum(len(str(datasets[-1][keyword].value)) for keyword in own)
    bound = 8 * len(datasets[0]) + ELEMENT_BYTES * len(own) + values + FRAME_BYTES
    # What is imported or cached at first is no part of it.
    kept_bytes(files[:FEW])
    assert bound < 4000
    assert bytes_per_slice(files) < bound
    monkeypatch.setattr(SharedElements, "keep", whole)
    assert bytes_per_slice(files) > 4 * bound

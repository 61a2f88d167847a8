from pathlib import Path

import pydicom
import pytest
from pydicom.encaps import generate_frames

import cddnet
from cddnet.errors import DicomError
from cddnet.formats._dicom_pixels import decode_stored
from cddnet.formats._jpeg_streams import image_of

SAMPLES = Path(cddnet.__file__).parent / "data" / "codecs"


def told():
    """Samples whose stream is told, as (name, dataset, stream)."""
    for file in sorted(SAMPLES.glob("*.dcm")):
        dataset = pydicom.dcmread(file)
        if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            continue
        stream = next(iter(generate_frames(dataset.PixelData, number_of_frames=1)))
        if image_of(stream) is not None:
            yield pytest.param(dataset, stream, id=file.stem)


TOLD = list(told())


def test_every_jpeg_of_the_samples_is_told():
    assert {parameter.id for parameter in TOLD} == {
        file.stem for file in SAMPLES.glob("*jpeg*.dcm")
    }


@pytest.mark.parametrize(("dataset", "stream"), TOLD)
def test_a_stream_says_what_its_header_says(dataset, stream):
    image = image_of(stream)
    assert image[:3] == (dataset.Rows, dataset.Columns, 1)
    assert image.bits <= dataset.BitsAllocated


@pytest.mark.parametrize(("dataset", "stream"), TOLD)
def test_a_stream_of_another_size_reaches_no_decoder(dataset, stream):
    wrong = pydicom.Dataset(dataset)
    wrong.file_meta = dataset.file_meta
    wrong.Rows = dataset.Rows + 1
    with pytest.raises(DicomError, match="but the header says"):
        decode_stored(wrong, name="slice")


@pytest.mark.parametrize(("dataset", "stream"), TOLD)
def test_a_byte_between_markers_is_damage(dataset, stream):
    if stream[:2] != b"\xff\xd8":
        return
    with pytest.raises(ValueError, match="marker"):
        image_of(stream[:2] + b"\x00" + stream[2:])


def test_other_streams_are_not_told():
    assert image_of(b"") is None
    assert image_of(b"RIFF" + bytes(60)) is None

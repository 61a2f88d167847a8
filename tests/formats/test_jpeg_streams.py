from pathlib import Path

import pydicom
import pytest
from pydicom.encaps import generate_frames

import cddnet
from cddnet.errors import DicomError
from cddnet.formats import _decoder_pool
from cddnet.formats._dicom_pixels import decode_stored
from cddnet.formats._jpeg_streams import image_of
from poisoned import POISONS, TWELVE_BITS, image, stream_of

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
    assert dataset.BitsStored <= image.bits <= dataset.BitsAllocated


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


@pytest.mark.parametrize(("name", "poison"), POISONS.values(), ids=POISONS)
def test_a_poisoned_stream_reaches_no_decoder(name, poison, monkeypatch):
    monkeypatch.setattr(_decoder_pool, "decode", None)
    with pytest.raises(DicomError, match=r"its (compressed )?pixel data"):
        decode_stored(image(name, poison), name="slice")


@pytest.mark.parametrize("marker", [b"\xff\xfe\x00\x02", b"\xff\xdc\x00\x04\x00\x20"])
@pytest.mark.parametrize("name", ["jpeg_lossless", "lossy_jpeg_8_bits", *TWELVE_BITS])
def test_nothing_comes_between_the_last_scan_and_the_end(name, marker):
    stream = stream_of(name)
    assert image_of(stream) is not None
    with pytest.raises(ValueError, match="marker"):
        image_of(stream[:-2] + marker + stream[-2:])


@pytest.mark.parametrize("scans", [2, 3])
def test_only_a_progressive_image_has_several_scans(scans):
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x12\x34"
    head = b"\xff\xd8" + b"\xff%c\x00\x0b\x0c\x00\x05\x00\x07\x01\x01\x11\x00"
    assert image_of(head % 0xC2 + scan * scans + b"\xff\xd9")[:2] == (5, 7)
    assert image_of(head % 0xC1 + scan + b"\xff\xd9")[:2] == (5, 7)
    with pytest.raises(ValueError, match="second scan"):
        image_of(head % 0xC1 + scan * scans + b"\xff\xd9")


def test_fill_bytes_and_markers_without_number_take_no_time():
    """Neither is copied or walked through byte by byte."""
    stream = stream_of("jpeg_ls")
    assert image_of(stream[:2] + b"\xff" * (1 << 24) + stream[2:]) == image_of(stream)
    with pytest.raises(ValueError, match="more than"):
        image_of(stream[:2] + b"\xff\xfe\x00\x02" * (1 << 20) + stream[2:])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        # No components, no tile width, tiles of one pixel, the first sample every second pixel.
        (40, b"\x00\x00"),
        (24, b"\x00\x00\x00\x00"),
        (8, b"\x00\x01\x00\x00\x00\x01\x00\x00" + bytes(8) + b"\x00\x00\x00\x01" * 2),
        (43, b"\x02"),
    ],
)
def test_a_size_of_jpeg_2000_that_is_none(place, value):
    stream = stream_of("jpeg_2000")
    assert image_of(stream) == (32, 32, 1, 12)
    with pytest.raises(ValueError, match=r"image|tiles|samples"):
        image_of(stream[:place] + value + stream[place + len(value) :])


def test_other_streams_are_not_told():
    assert image_of(b"") is None
    assert image_of(b"RIFF" + bytes(60)) is None

"""Compressed CT images over which decoders crash, or work without an end."""

from pathlib import Path

from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame

import cddnet

SAMPLES = Path(cddnet.__file__).parent / "data" / "codecs"
TWELVE_BITS = (
    "lossy_jpeg_12_bits",
    "lossy_jpeg_progressive",
    "lossy_jpeg_spectral_selection",
)


def stream_of(name):
    """The one frame of a sample."""
    dataset = dcmread(SAMPLES / f"{name}.dcm")
    return get_frame(dataset.PixelData, 0, number_of_frames=1).rstrip(b"\x00")


def deep(stream):
    """A JPEG 2000 stream whose values have 128 bits, signed: all ones in SIZ."""
    return stream[:42] + b"\xff" + stream[43:]


def endless(stream, marker=b"\xff\xdc"):
    """A marker that claims a length beyond the end: GDCM reads on for ever."""
    return stream[:-2] + marker + stream[-2:]


def crashing(stream):
    """A version of JFIF that does not exist: GDCM ends the process."""
    return stream.replace(b"JFIF\x00\x01", b"JFIF\x00\x07")


POISONS = {
    "deep": ("jpeg_2000", deep),
    **{
        f"{name} {marker.hex()}": (name, lambda stream, marker=marker: endless(stream, marker))
        for name in TWELVE_BITS
        for marker in (b"\xff\xdc", b"\xff\xfe")
    },
}


def image(name, change=lambda stream: stream):
    """A sample as a data set, its stream changed."""
    dataset = dcmread(SAMPLES / f"{name}.dcm")
    dataset.PixelData = encapsulate([change(stream_of(name))])
    return dataset

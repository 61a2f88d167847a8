"""Stored values of one CT slice: decoding every transfer syntax CT is sent in."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config, dcmread, uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from cddnet.errors import DicomError
from cddnet.formats import _decoder_pool
from cddnet.formats._codecs import DECODABLE, JPEG_12_BIT, CodedFrame
from cddnet.formats._decoder_pool import DecodingError
from cddnet.formats._dicom_deflated import require_bounded
from cddnet.formats._dicom_fragments import (
    END_OF_IMAGE,
    FrameIndex,
    OffsetTable,
    index_frames,
    read_frame,
)
from cddnet.formats._jpeg_streams import image_of

Stored = NDArray[np.integer[Any]]

ALWAYS_LOSSY = frozenset({uid.JPEGBaseline8Bit, *JPEG_12_BIT})
LOSSY = ALWAYS_LOSSY | {uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K}
NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian)
UNDEFINED_LENGTH = 0xFFFFFFFF
PREAMBLE_BYTES, META_GROUP = 132, 0x0002
# PS3.3 C.7.6.3
PIXEL_MODULE = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
SEND_AGAIN = "send or export this image again."


class _Quiet:
    """pydicom kept quiet while at least one thread wants it to be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._kept = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._count == 0:
                self._kept = ExitStack()
                self._kept.enter_context(_pydicom_quiet())
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                self._kept.close()


@contextmanager
def _pydicom_quiet() -> Iterator[None]:
    logger = logging.getLogger("pydicom")
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        disabled, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = disabled


_quiet = _Quiet()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from warning or logging: its messages quote values, which may name a patient.

    No thread waits for another: the slow decoding of one must not hold up the headers of the rest.
    """
    with _quiet:
        yield


def transfer_syntax_of(header: Dataset) -> UID:
    """Transfer syntax of a file; one without meta header tells only its byte order.

    Where a meta header and its data set differ in whether value representations are explicit, the
    data set counts.
    """
    named = _named_syntax(header)
    implicit, little = header.original_encoding
    if named and (named not in NATIVE or implicit is None or named.is_implicit_VR == implicit):
        return named
    if not little:
        return UID(uid.ExplicitVRBigEndian)
    return UID(uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian)


def _named_syntax(header: Dataset) -> UID:
    """What the meta header says, "" where it says nothing."""
    return UID(str(getattr(header, "file_meta", Dataset()).get("TransferSyntaxUID") or ""))


class PixelElement(NamedTuple):
    """Where pixel data starts in a file, and its length there; None where it has no fixed one."""

    offset: int
    length: int | None


def skip_meta_header(file: BinaryIO) -> int:
    """Where the data set of a file begins, be there a preamble, a meta header or neither."""
    preamble = file.read(PREAMBLE_BYTES)
    file.seek(PREAMBLE_BYTES if preamble[-4:] == b"DICM" else 0)
    read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != META_GROUP)
    return file.tell()


def read_up_to_pixels(file: BinaryIO, name: str) -> Dataset:
    """The header of a file at its start, which is then at its pixel data.

    Raises DicomError for a coding that is refused, anything else where the file is no DICOM.
    """
    require_bounded(file, name)
    header = dcmread(file, stop_before_pixels=True, force=True)
    implicit = _is_implicit(header)
    if implicit is not None:
        # pydicom keeps what the meta header says, although it reads what is there.
        _, little = header.original_encoding
        header.set_original_encoding(implicit, bool(little), header.original_character_set)
    return header


def _is_implicit(header: Dataset) -> bool | None:
    """Whether a header just read has no value representations; None where it is empty."""
    for element in header.elements():
        if isinstance(element, RawDataElement):
            return bool(element.is_implicit_VR)
    return None


def find_pixels(file: BinaryIO, header: Dataset) -> PixelElement | None:
    """The pixel data of a file whose header was read up to there; None without any."""
    implicit, little = header.original_encoding
    order: Literal["little", "big"] = "little" if little else "big"
    head = file.read(8 if implicit else 12)
    group, element = int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)
    if (group, element) != (0x7FE0, 0x0010):
        return None
    length = int.from_bytes(head[-4:], order)
    return PixelElement(file.tell(), None if length == UNDEFINED_LENGTH else length)


def require_own_syntax(pixels: PixelElement, header: Dataset, name: str) -> None:
    """Refuse compressed pixels where the transfer syntax says native ones, and the other way."""
    syntax = transfer_syntax_of(header)
    if syntax.is_encapsulated == (pixels.length is None):
        return
    state = "compressed" if pixels.length is None else "not compressed"
    stated = (_named_syntax(header) or syntax).name
    raise DicomError(
        f"{name}: its pixel data is {state}, but its transfer syntax says {stated}; {SEND_AGAIN}"
    )


def read_stored(path: Path, frame: int = 0) -> Stored:
    """Stored values (H, W) of one frame of a file; of a multi-frame file only that frame is read.

    Raises DicomError where the pixels are missing, cut short, damaged or in an unknown coding.
    """
    with quiet():
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
                source = _source(path, identity)
                if source.pixels is None:
                    dataset = source.header
                else:
                    dataset, frame = _one_frame(source, file, frame, path.name), 0
        except DicomError:
            raise
        except Exception as error:
            raise DicomError(
                f"{path.name}: cannot be read ({type(error).__name__}); {SEND_AGAIN}"
            ) from error
    return decode_stored(dataset, frame, name=path.name)


class _Source(NamedTuple):
    """What is needed to read a frame of a file."""

    # Of the pixels alone; the whole data set where `pixels` is None.
    header: Dataset
    # None where they have no place in the file, as in a deflated one.
    pixels: PixelElement | None = None
    # Of a compressed file: its extended offsets, and where its frames are if it has several.
    table: OffsetTable | None = None
    places: FrameIndex | None = None


# The frames of a file are read one after the other, and its header once for all of them.
@lru_cache(maxsize=1)
def _source(path: Path, identity: tuple[int, ...]) -> _Source:
    """identity: what changes when the file is written anew."""
    with path.open("rb") as file:
        header = read_up_to_pixels(file, path.name)
        syntax = transfer_syntax_of(header)
        pixels = None
        if syntax.is_transfer_syntax and not syntax.is_deflated:
            pixels = find_pixels(file, header)
        if pixels is None:
            return _Source(dcmread(path, force=True))
        require_own_syntax(pixels, header, path.name)
        alone, frames = _header_of_pixels(header), frame_count(header)
        if not syntax.is_encapsulated:
            return _Source(alone, pixels)
        found = header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths")
        table = found if all(found) else None
        if frames == 1:
            return _Source(alone, pixels, table)
        return _Source(alone, pixels, table, index_frames(file, frames, table, name=path.name))


def _header_of_pixels(header: Dataset) -> Dataset:
    """The elements of a header that say how its pixels are coded."""
    known = (header.get_item(keyword) for keyword in PIXEL_MODULE if keyword in header)
    alone = Dataset({element.tag: element for element in known})
    implicit, little = header.original_encoding
    alone.set_original_encoding(implicit, little, header.original_character_set)
    alone.file_meta = getattr(header, "file_meta", FileMetaDataset())
    return alone


def decode_stored(dataset: Dataset, frame: int = 0, *, name: str = "image") -> Stored:
    """Stored values (H, W) of one frame of a dataset with pixels, by its transfer syntax alone.

    Whether the values are CT in HU is not asked here. Bits above BitsStored are masked out, or
    filled with the sign (PS3.5 8.1.1). What is compressed is decoded in a process of its own.
    Raises DicomError as `read_stored` does, CddnetError where that process cannot be started.
    """
    with quiet():
        syntax = transfer_syntax_of(dataset)
        try:
            _require_pixels(dataset, syntax, name)
            if not syntax.is_encapsulated:
                return _native(dataset, syntax, frame)
            coded = _coded_frame(dataset, syntax, frame, name)
        except DicomError:
            raise
        except Exception as error:
            raise _damaged(name, syntax) from error
    return _decode(coded, syntax, name)


def frame_count(header: Dataset) -> int:
    """Frames in a file; a file that does not say holds one."""
    return int(header.get("NumberOfFrames") or 1)


def frame_bytes(header: Dataset) -> int:
    """Length of one uncompressed frame."""
    samples = int(header.get("SamplesPerPixel") or 1)
    return int(header.Rows * header.Columns * samples * header.BitsAllocated // 8)


def _one_frame(source: _Source, file: BinaryIO, frame: int, name: str) -> Dataset:
    """A data set like that of a file with this frame alone."""
    assert source.pixels is not None
    dataset = _header_of_pixels(source.header)
    compressed, frames = transfer_syntax_of(dataset).is_encapsulated, frame_count(dataset)
    file.seek(source.pixels.offset)
    if source.places is not None:
        value = encapsulate([source.places.read(file, frame)])
    elif compressed:
        value = encapsulate([read_frame(file, frame, frames, source.table, name=name)])
    else:
        length = frame_bytes(dataset)
        file.seek(frame * length, os.SEEK_CUR)
        # Not beyond the element: what follows it are other tags, not pixels.
        value = file.read(max(0, min(length, (source.pixels.length or 0) - frame * length)))
        value += b"\x00" * (len(value) == length and length % 2)
    dataset.add_new("PixelData", "OB" if compressed else "OW", value)
    dataset["PixelData"].is_undefined_length = compressed
    if frames > 1:
        dataset.NumberOfFrames = 1
    return dataset


def _require_pixels(dataset: Dataset, syntax: UID, name: str) -> None:
    if "PixelData" not in dataset:
        raise DicomError(f"{name}: there is no pixel data in it; {SEND_AGAIN}")
    if not dataset["PixelData"].value:
        raise DicomError(f"{name}: its pixel data is empty; {SEND_AGAIN}")
    if not syntax.is_transfer_syntax or (syntax.is_encapsulated and syntax not in DECODABLE):
        raise undecodable(name, syntax)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if samples != 1:
        raise DicomError(
            f"{name}: its pixels have {samples} samples each, where CT has one; choose a CT series."
        )


def _native(dataset: Dataset, syntax: UID, frame: int) -> Stored:
    if "TransferSyntaxUID" not in getattr(dataset, "file_meta", ()):
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
    stored = pixel_array(dataset, index=frame, raw=True)
    return np.ascontiguousarray(stored.astype(stored.dtype.newbyteorder("="), copy=False))


def _coded_frame(dataset: Dataset, syntax: UID, frame: int, name: str) -> CodedFrame:
    """A frame ready for its decoder.  Raises DicomError where its stream cannot be right."""
    stream = get_frame(dataset.PixelData, frame, number_of_frames=frame_count(dataset))
    if syntax != uid.RLELossless:
        _require_sound_stream(stream, dataset, name)
    coded = CodedFrame(
        syntax=str(syntax),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        bits_allocated=int(dataset.BitsAllocated),
        bits_stored=int(dataset.BitsStored),
        signed=int(dataset.PixelRepresentation),
        stream=stream,
    )
    allocated, used = coded.bits_allocated, coded.bits_stored
    if allocated not in (8, 16, 32) or not 1 <= used <= allocated:
        raise ValueError(f"{used} bits in {allocated}")
    if min(coded.rows, coded.columns) < 1:
        raise ValueError("no pixels")
    return coded


def _decode(coded: CodedFrame, syntax: UID, name: str) -> Stored:
    try:
        return _decoder_pool.decode(coded)
    except DecodingError as error:
        reason = error.reason
    if reason == "missing":
        raise undecodable(name, syntax)
    if reason == "damaged":
        raise _damaged(name, syntax)
    what = "crashed or wanted too much memory" if reason == "ended" else "did not come to an end"
    raise DicomError(
        f"{name}: the decoder {what} over its pixel data ({syntax.name}), so it is damaged; "
        f"{SEND_AGAIN}"
    )


def _damaged(name: str, syntax: UID) -> DicomError:
    return DicomError(
        f"{name}: its pixel data ({syntax.name}) is damaged or cut short; {SEND_AGAIN}"
    )


def _require_sound_stream(stream: bytes, dataset: Dataset, name: str) -> None:
    """Refuse what needs no decoder to be refused.

    JPEG decoders fill what is missing of a stream with grey; a CT must not be filled up.
    """
    if not stream.rstrip(b"\x00\xff").endswith(END_OF_IMAGE):
        raise DicomError(f"{name}: its compressed pixel data is cut short; {SEND_AGAIN}")
    # Before any decoder: GDCM ends the process at some damaged streams.
    image = image_of(stream)
    if image is None:
        return
    wanted = dataset.Rows, dataset.Columns, 1
    if image[:3] != wanted or image.bits > dataset.BitsAllocated:
        found, expected = (" x ".join(map(str, size)) for size in (image[:3], wanted))
        raise DicomError(
            f"{name}: its compressed pixel data holds {found} values (rows, columns, samples) of "
            f"{image.bits or 'some'} bits, but the header says {expected} of "
            f"{dataset.BitsAllocated}; {SEND_AGAIN}"
        )


def undecodable(name: str, syntax: UID) -> DicomError:
    """The refusal of a transfer syntax that no permissive decoder reads."""
    return DicomError(
        f"{name}: its pixels are coded as {syntax.name} ({syntax!s}), which cannot be decoded "
        "here; ask the sending system for an uncompressed export (Explicit VR Little Endian)."
    )

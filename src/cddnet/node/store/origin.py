"""Where an image came from, kept in the file meta information of its own file (PS3.10 section 7.1).

A data set says nothing of who sent it. Kept beside it in the same file, this is there as long as
the image is, also where the journal is lost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

PREAMBLE = b"\x00" * 128 + b"DICM"
# Marks the private information below as ours; made once, at random.
CREATOR = UID("2.25.292550880187966202936455373087935100815")
# The group length element, which counts what follows it.
_GROUP_LENGTH_BYTES = 12


class Origin(NamedTuple):
    """How an image came."""

    caller: str  # AE title of the sender
    called: str  # AE title that it called
    peer: str  # its address, "" where it is not known
    received_at: float  # seconds since 1970


class Head(NamedTuple):
    """What a file says before its data set."""

    sop_class: str
    sop_uid: str
    syntax: UID
    length: int  # bytes before the data set
    origin: Origin | None  # None in files that this node did not write


def file_head(sop_class: str, sop_uid: str, syntax: UID, origin: Origin) -> bytes:
    """Preamble and file meta information of a received image."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    meta.TransferSyntaxUID = syntax
    meta.SendingApplicationEntityTitle = origin.caller
    meta.ReceivingApplicationEntityTitle = origin.called
    meta.PrivateInformationCreatorUID = CREATOR
    record = json.dumps({"peer": origin.peer, "received_at": origin.received_at}).encode()
    meta.PrivateInformation = record + b" " * (len(record) % 2)
    stream = DicomBytesIO()
    write_file_meta_info(stream, meta, enforce_standard=True)
    return PREAMBLE + stream.getvalue()


def read_head(file: Path) -> Head:
    """What a file says before its data set.  Raises whatever the library does for a damaged one."""
    meta = dcmread(file, stop_before_pixels=True, specific_tags=[]).file_meta
    return Head(
        str(meta.MediaStorageSOPClassUID),
        str(meta.MediaStorageSOPInstanceUID),
        UID(meta.TransferSyntaxUID),
        len(PREAMBLE) + _GROUP_LENGTH_BYTES + int(meta.FileMetaInformationGroupLength),
        _origin(meta),
    )


def _origin(meta: FileMetaDataset) -> Origin | None:
    if meta.get("PrivateInformationCreatorUID") != CREATOR:
        return None
    try:
        record = json.loads(meta.PrivateInformation)
        return Origin(
            str(meta.SendingApplicationEntityTitle).strip(),
            str(meta.ReceivingApplicationEntityTitle).strip(),
            str(record["peer"]),
            float(record["received_at"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None

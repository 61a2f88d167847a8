"""What is fuzzed: bytes in, and either a checked result or one of the project's errors."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import _fuzz_seeds  # noqa: F401  (says where the synthetic series are)
from cddnet import formats
from cddnet.volume import CTVolume

if TYPE_CHECKING:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    from cddnet.node.station import Station

WINDOW_HU = (-1000.0, 1000.0)
MOST_SLICES = 4
# A journal that grows would be measured instead of the readers.
KEPT_INSTANCES = 200


class Broken(Exception):
    """A result that is not what its type promises."""


class Target(NamedTuple):
    """run: raises what it should not. suffix: of the files kept."""

    run: Callable[[bytes], None]
    suffix: str


def require_volume(volume: CTVolume) -> None:
    """Slices of the shape that the volume states, all finite, with a geometry that is one."""
    if min(volume.shape) < 1:
        raise Broken(f"shape {volume.shape}")
    geometry = (*volume.spacing_mm, *volume.origin_mm, *np.ravel(volume.direction))
    if not np.isfinite(geometry).all() or min(volume.spacing_mm) <= 0:
        raise Broken(f"geometry {geometry}")
    indices = {*range(min(volume.shape[0], MOST_SLICES)), volume.shape[0] - 1}
    for index in sorted(indices):
        hu = volume.read_slice(index)
        if hu.shape != volume.shape[1:] or hu.dtype != np.float32:
            raise Broken(f"slice of shape {hu.shape} and {hu.dtype}")
        if not np.isfinite(hu).all():
            raise Broken("a slice is not finite")
        if volume.padding(index).shape != hu.shape:
            raise Broken("padding of another shape")


def dicom(folder: Path) -> Target:
    """One file alone, then beside a sound slice of the same series."""
    from dicom_series import ct_dataset, save

    from cddnet.errors import CddnetError

    together = folder / "series"
    together.mkdir()
    save(ct_dataset(7, size=(15, 17)), together / "sound.dcm")
    file = together / "fuzzed.dcm"

    def run(data: bytes) -> None:
        file.write_bytes(data)
        try:
            require_volume(formats.read_volume(file))
        except CddnetError:
            for volume in formats.read_all_series(together):
                require_volume(volume)
            raise
        require_volume(formats.read_volume(together))

    return Target(run, ".dcm")


def derived(folder: Path) -> Target:
    """What can be read is written as a derived series, and read again with the same HU."""
    from cddnet.volume import Derivation

    file, out = folder / "fuzzed.dcm", folder / "out"
    step = Derivation(label="fuzz", description="Fuzzing", parameters=(), version="0")

    def run(data: bytes) -> None:
        file.write_bytes(data)
        volume = formats.read_volume(file)
        shutil.rmtree(out, ignore_errors=True)
        formats.write_volume(volume.derived(volume.read_slice, step), out)
        again = formats.read_volume(out)
        require_volume(again)
        if not np.array_equal(volume.read_slice(0), again.read_slice(0)):
            raise Broken("written HU differ from those read")

    return Target(run, ".dcm")


def nifti(folder: Path) -> Target:
    """A NIfTI file, told by its content."""
    return _one_file(folder, ".nii")


def image(folder: Path) -> Target:
    """Pictures, MetaImage and NumPy arrays, told by their content."""
    return _one_file(folder, ".bin")


def _one_file(folder: Path, suffix: str) -> Target:
    file = folder / f"fuzzed{suffix}"

    def run(data: bytes) -> None:
        # A new file: an array that is still mapped onto the old one must not change.
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        require_volume(formats.read_volume(file, window_hu=WINDOW_HU))

    return Target(run, suffix)


def config(folder: Path) -> Target:
    """The first byte chooses the reader, the rest is the file."""
    from cddnet.config import PatientSplit, TrainConfig, load_config
    from cddnet.node.settings.config import load_node
    from cddnet.workflows._published_recipe import load_recipe

    file = folder / "fuzzed.yaml"
    readers: tuple[Callable[[Path], object], ...] = (
        lambda path: load_config(path, TrainConfig).decisive(),
        lambda path: load_config(path, PatientSplit),
        load_node,
        lambda path: load_recipe(path, folder),
    )

    def run(data: bytes) -> None:
        file.write_bytes(data[1:])
        readers[(data[0] if data else 0) % len(readers)](file)

    return Target(run, ".yaml")


def node(folder: Path) -> Target:
    """A data set on its way in: refused and nowhere, or on the disk and in the journal.

    The first byte is the number of the transfer syntax; 255 stands for a file that is uploaded.
    What was stored is then looked at by the rules and read, as the node would.
    """
    from pydicom import uid
    from pynetdicom.dsutils import encode_file_meta

    from cddnet.formats._facts import read_facts
    from cddnet.formats.dicom import read_files
    from cddnet.node.receive.arriving import Refused
    from cddnet.node.receive.inflow import Budget
    from cddnet.node.receive.intake import PREAMBLE, SYNTAXES, Intake, Sent

    uploaded = folder / "uploaded.dcm"
    station = _station(folder / "node")
    intake = Intake(station, Budget(1 << 31))

    def arrive(data: bytes) -> None:
        if data[:1] == b"\xff":
            uploaded.write_bytes(data[1:])
            intake.take_file(uploaded)
            return
        syntax = uid.UID(SYNTAXES[data[0] % len(SYNTAXES)] if data else SYNTAXES[0])
        announced = _announced(data[1:], syntax)
        head = PREAMBLE + encode_file_meta(_meta(announced, syntax))
        intake.accept(Sent("SCANNER", announced, syntax, head, io.BytesIO(data[1:])))

    def run(data: bytes) -> None:
        nonlocal station, intake
        before = set(_files(station.images.folder))
        if len(before) > KEPT_INSTANCES:
            station.close()
            shutil.rmtree(folder / "node")
            station, before = _station(folder / "node"), set()
            intake = Intake(station, Budget(1 << 31))
        try:
            arrive(data)
        except Refused:
            pass
        finally:
            after = set(_files(station.images.folder))
            known = {station.images.path(file) for file, _ in station.journal.files()}
            if after != known:
                raise Broken("the disk and the journal differ")
        for file in after - before:
            # An uploaded file's preamble is replaced.
            if not file.read_bytes().endswith(data[1 + len(PREAMBLE) :]):
                raise Broken("other bytes were stored than came")
            read_facts(file)
            require_volume(read_files([file]))

    return Target(run, ".bin")


def _station(folder: Path) -> Station:
    from cddnet.node.settings.config import NodeConfig
    from cddnet.node.station import Station, Surroundings

    archive = {"kind": "dicom", "host": "127.0.0.1", "port": 4, "ae_title": "ARCHIVE"}
    rule = {"name": "all", "do": [{"strength": 1, "destinations": ["archive"]}]}
    told = {"folder": folder, "allowed_callers": ["SCANNER"], "smallest_free_gb": 0}
    told |= {"destinations": {"archive": archive}, "rules": [rule]}
    return Station(NodeConfig.model_validate(told), Surroundings(stream=io.StringIO()))


def _files(folder: Path) -> Iterator[Path]:
    boxes = (folder / "inbox", folder / "outbox")
    return (item for box in boxes for item in box.rglob("*") if item.is_file())


def _announced(data: bytes, syntax: UID) -> tuple[str, str]:
    """SOP class and instance as the data set has them: a hostile sender tells them alike."""
    from pydicom.filereader import read_dataset

    try:
        header = read_dataset(
            io.BytesIO(data),
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            stop_when=lambda tag, _vr, _length: tag.group > 0x0008,
        )
        told = str(header.SOPClassUID), str(header.SOPInstanceUID)
    except Exception:
        told = ("", "")
    # The library lets no other UID through in a command.
    sound = all(re.fullmatch(r"[0-9.]{1,64}", text) for text in told)
    return told if sound else ("1.2.840.10008.5.1.4.1.1.2", "1.2.3")


def _meta(announced: tuple[str, str], syntax: UID) -> FileMetaDataset:
    from pydicom.dataset import FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = announced
    meta.TransferSyntaxUID = syntax
    return meta


TARGETS: dict[str, Callable[[Path], Target]] = {
    function.__name__: function for function in (dicom, derived, nifti, image, config, node)
}

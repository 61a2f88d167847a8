"""Inputs that fuzzing starts from: whole files of every format, small ones first."""

from __future__ import annotations

import gzip
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "formats"))

CODECS = REPOSITORY / "src" / "cddnet" / "data" / "codecs"
LARGEST_SEED_BYTES = 1 << 17
CROP = 24
# A data set as it arrives, behind one byte that says how: see `_fuzz_targets.node`.
PREAMBLE_BYTES = 132
SHAPE = (3, 7, 9)


def dicom(extra: Path | None) -> Iterator[bytes]:
    """Every codec, both kinds of CT, other modalities, and what a folder holds."""
    from dicom_series import ct_dataset, enhanced_dataset
    from pydicom.data import get_testdata_file

    for file in sorted(CODECS.iterdir()):
        yield file.read_bytes()
    padded = ct_dataset(1, size=(15, 17))
    padded.PixelPaddingValue, padded.PixelPaddingRangeLimit = -500, -400
    rotated = ct_dataset(2, size=(15, 17), slope="0.5", signed=False, bits=12)
    rotated.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]
    for dataset in (padded, rotated, enhanced_dataset(3, size=(15, 17))):
        yield _file_of(dataset)
    for name in ("MR_small.dcm", "test-SR.dcm", "no_ts.dcm", "nested_priv_SQ.dcm", "rtplan.dcm"):
        found = get_testdata_file(name, download=False)
        if found is not None:
            yield Path(found).read_bytes()
    for file in sorted(extra.rglob("*.dcm")) if extra else ():
        yield from _smaller(file)


def nifti(extra: Path | None) -> Iterator[bytes]:
    """NIfTI-1 and NIfTI-2, plain and packed, of several types."""
    import nibabel

    values = np.random.default_rng(1).integers(-1000, 2000, SHAPE[::-1])
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        for dtype in (np.int16, np.float32, np.uint8):
            image = kind(values.astype(dtype), np.diag([0.7, 0.8, 2.0, 1.0]))
            image.header.set_xyzt_units("mm")
            image.header.set_slope_inter(2.0, -1024.0)
            whole = image.to_bytes()
            yield whole
            yield gzip.compress(whole, 1, mtime=0)
    yield from _of_folder(extra, "*.nii*")


def image(extra: Path | None) -> Iterator[bytes]:
    """Pictures in 8 and 16 bits, grey and coloured; TIFF plain and packed; MetaImage; NumPy."""
    import tifffile
    from PIL import Image

    rng = np.random.default_rng(2)
    small, wide = rng.integers(0, 256, (9, 11)), rng.integers(0, 65536, (9, 11))
    grey, deep = small.astype(np.uint8), wide.astype(np.uint16)
    colour = np.repeat(grey[..., None], 3, axis=2)
    for array, kinds in ((grey, ("PNG", "JPEG")), (deep, ("PNG",)), (colour, ("PNG", "JPEG"))):
        for kind in kinds:
            held = io.BytesIO()
            Image.fromarray(array).save(held, kind)
            yield held.getvalue()
    held = io.BytesIO()
    Image.fromarray(grey).convert("P").save(held, "PNG")
    yield held.getvalue()
    for compression in (None, "zlib", "packbits"):
        for array in (deep, rng.normal(0, 100, SHAPE).astype(np.float32)):
            held = io.BytesIO()
            # Some codecs are an optional part of the library.
            try:
                tifffile.imwrite(held, array, compression=compression, photometric="minisblack")
            except (KeyError, ValueError, ImportError):
                continue
            yield held.getvalue()
    yield from _written((".npy", ".npz", ".mha", ".tif"))
    header = (
        b"ObjectType = Image\nNDims = 3\nDimSize = 9 7 3\nElementType = MET_SHORT\n"
        b"ElementSpacing = 0.7 0.8 2\nCompressedData = True\nElementDataFile = LOCAL\n"
    )
    yield header + gzip.compress(rng.integers(-1000, 2000, SHAPE).astype("<i2").tobytes())
    for pattern in ("*.png", "*.jpg", "*.tif", "*.mha", "*.npy", "*.npz"):
        yield from _of_folder(extra, pattern)


def config(extra: Path | None) -> Iterator[bytes]:
    """The recipes, splits and node files of this repository, each behind its reader's number."""
    for file in sorted(REPOSITORY.glob("configs/**/*.y*ml")):
        for number in range(4):
            yield bytes([number]) + file.read_bytes()
    published = b"OPTIM:\n  BATCH_SIZE: 2\n  NUM_EPOCHS: 3\n  LR_INITIAL: 1e-3\nVERBOSE: False\n"
    yield b"\3" + published
    for text in (b"[2001-01-01, 0o17, 1_000, .inf, ~]", b"a: &a [1, 2]\nb: *a\n", b"!!set {a, b}"):
        yield b"\0" + text
    for whole in _of_folder(extra, "*.y*ml"):
        yield b"\0" + whole


def node(extra: Path | None) -> Iterator[bytes]:
    """Data sets of every transfer syntax that the node takes, and whole files that are uploaded."""
    import pydicom

    from cddnet.node.receive.intake import SYNTAXES

    for whole in dicom(extra):
        yield b"\xff" + whole
        try:
            meta = pydicom.dcmread(io.BytesIO(whole), stop_before_pixels=True).file_meta
            number = SYNTAXES.index(meta.TransferSyntaxUID)
            begins = PREAMBLE_BYTES + 12 + int(meta.FileMetaInformationGroupLength)
        except (AttributeError, ValueError, pydicom.errors.InvalidDicomError):
            continue
        yield bytes([number]) + whole[begins:]


def _file_of(dataset: object) -> bytes:
    from dicom_series import save

    with tempfile.TemporaryDirectory() as folder:
        return Path(save(dataset, Path(folder) / "a.dcm")).read_bytes()


def _written(suffixes: tuple[str, ...]) -> Iterator[bytes]:
    """The same small volume in several formats."""
    from cddnet.formats import write_volume
    from cddnet.volume import CTVolume

    hu = np.random.default_rng(3).normal(0, 300, SHAPE).astype(np.float32)
    volume = CTVolume.from_hu(hu, (2.0, 0.8, 0.7))
    with tempfile.TemporaryDirectory() as folder:
        for suffix in suffixes:
            file = Path(folder, f"volume{suffix}")
            write_volume(volume, file)
            yield file.read_bytes()


def _of_folder(extra: Path | None, pattern: str) -> Iterator[bytes]:
    for file in sorted(extra.rglob(pattern)) if extra else ():
        if file.stat().st_size <= LARGEST_SEED_BYTES:
            yield file.read_bytes()


def _smaller(file: Path) -> Iterator[bytes]:
    """A DICOM file as it is if it is small, else with a corner of its uncompressed pixels."""
    from pydicom import dcmread, dcmwrite
    from pydicom.uid import ExplicitVRLittleEndian

    if file.stat().st_size <= LARGEST_SEED_BYTES:
        yield file.read_bytes()
    dataset = dcmread(file)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated or not syntax.is_little_endian or "PixelData" not in dataset:
        return
    corner = np.ascontiguousarray(dataset.pixel_array[..., :CROP, :CROP])
    dataset.Rows, dataset.Columns = corner.shape[-2:]
    dataset.PixelData = corner.astype(f"<u{corner.itemsize}", casting="unsafe").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    held = io.BytesIO()
    dcmwrite(held, dataset, implicit_vr=False, little_endian=True, enforce_file_format=True)
    if len(held.getvalue()) <= LARGEST_SEED_BYTES:
        yield held.getvalue()

"""Tiny CT slices, one in each transfer syntax, by which `cddnet doctor` tries the decoders.

    python benchmarks/codec_samples.py FOLDER

The same slice of 32 x 32 pixels in every file, of nobody. Encoders: pydicom, pyjpegls, OpenJPEG,
Pillow (JPEG of 8 bits) and DCMTK's dcmcjpeg (the other JPEG), which must be installed. There is
none for High-Throughput JPEG 2000.
"""

from __future__ import annotations

import argparse
import io
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

SIDE = 32
ROOT = "2.25.20290116"
PLAIN = {
    "explicit_little_endian": uid.ExplicitVRLittleEndian,
    "implicit_little_endian": uid.ImplicitVRLittleEndian,
    "explicit_big_endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
}
BY_PYDICOM = {
    "rle": (uid.RLELossless, {}),
    "jpeg_ls": (uid.JPEGLSLossless, {}),
    "lossy_jpeg_ls": (uid.JPEGLSNearLossless, {"jls_error": 2}),
    "jpeg_2000": (uid.JPEG2000Lossless, {}),
    "lossy_jpeg_2000": (uid.JPEG2000, {"j2k_cr": [3]}),
}
BY_DCMTK = {
    "jpeg_lossless_first_order": ["+e1"],
    "jpeg_lossless": ["+el", "+sv", "6"],
    "lossy_jpeg_12_bits": ["+ee", "+q", "95"],
    "lossy_jpeg_spectral_selection": ["+es", "+q", "95"],
    "lossy_jpeg_progressive": ["+ep", "+q", "95"],
}


def sample(syntax: uid.UID, bits: int = 12) -> Dataset:
    """A slice of a smooth hill and faint noise."""
    row, column = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    hill = 1000 * np.exp(-8 * (row**2 + column**2))
    hill += np.random.default_rng(7).normal(0, 6, hill.shape)
    stored = np.clip(np.rint(hill + 500) / 2 ** (12 - bits), 0, 2**bits - 1).astype(np.uint16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.1"
    values = {
        "SOPClassUID": uid.CTImageStorage,
        "SOPInstanceUID": f"{ROOT}.1",
        "StudyInstanceUID": f"{ROOT}.2",
        "SeriesInstanceUID": f"{ROOT}.3",
        "FrameOfReferenceUID": f"{ROOT}.4",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientID": "NOBODY",
        "SliceThickness": "1",
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": ["1", "1"],
        "InstanceNumber": 1,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": SIDE,
        "Columns": SIDE,
        "BitsAllocated": 16 if bits > 8 else 8,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "RescaleIntercept": "-1024",
        "RescaleSlope": str(2 ** (12 - bits)),
        "RescaleType": "HU",
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    order = "<" if syntax.is_little_endian else ">"
    dataset.PixelData = stored.astype(f"{order}u2" if bits > 8 else "u1").tobytes()
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    return dataset


def by_pillow() -> Dataset:
    dataset = sample(uid.JPEGBaseline8Bit, bits=8)
    grey = Image.frombytes("L", (SIDE, SIDE), dataset.PixelData)
    stream = io.BytesIO()
    grey.save(stream, "JPEG", quality=95)
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    return dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True)
    for name, syntax in PLAIN.items():
        sample(syntax).save_as(folder / f"{name}.dcm", enforce_file_format=True)
    for name, (syntax, options) in BY_PYDICOM.items():
        dataset = sample(uid.ExplicitVRLittleEndian)
        dataset.compress(syntax, generate_instance_uid=False, **options)
        dataset.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    for name, options in BY_DCMTK.items():
        source = folder / "source.dcm"
        sample(uid.ExplicitVRLittleEndian).save_as(source, enforce_file_format=True)
        target = folder / f"{name}.dcm"
        subprocess.run(["dcmcjpeg", *options, "+un", str(source), str(target)], check=True)
        source.unlink()
    by_pillow().save_as(folder / "lossy_jpeg_8_bits.dcm", enforce_file_format=True)
    for file in sorted(folder.iterdir()):
        syntax = dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID
        print(f"{file.name:40}{syntax.name:60}{file.stat().st_size:6} bytes")


if __name__ == "__main__":
    main()

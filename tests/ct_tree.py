"""Small data sets on disk, in the layouts that CT is published in."""

import hashlib

import numpy as np
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset

SIZE = (33, 27)


def uid_of(*what):
    """A UID that depends on the words alone."""
    return "2.25." + str(int(hashlib.sha256(repr(what).encode()).hexdigest()[:30], 16))


def tissue(*what, size=SIZE):
    """A slice (H, W) of whole HU around water, other for other words."""
    seed = int(hashlib.sha256(repr(what).encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).integers(-200, 300, size).astype(np.int16)


def write_slice(path, hu, **told):
    """One CT image; `told` are header values, on top of those every slice has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = told["SOPInstanceUID"]
    values = {
        "SOPClassUID": uid.CTImageStorage,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "Manufacturer": "Maker",
        "SliceThickness": "3",
        "ConvolutionKernel": "B30f",
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelSpacing": ["0.7", "0.7"],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
    }
    for keyword, value in (values | told).items():
        setattr(dataset, keyword, value)
    dataset.Rows, dataset.Columns = hu.shape
    dataset.PixelData = (hu.astype(np.int32) + 1024).astype("<i2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


def write_series(folder, patient, *, name="full", places=range(4), pixels=None, **told):
    """Slices 3 mm apart, under shuffled file names; study and frame are those of the patient.

    pixels: slice number -> HU (H, W), by patient and name unless given.
    """
    places = list(places)
    names = np.random.default_rng(len(places)).permutation(len(places))
    for number, place in zip(names, places, strict=True):
        values = {
            "PatientID": patient,
            "StudyInstanceUID": uid_of(patient, "study"),
            "FrameOfReferenceUID": uid_of(patient, "frame"),
            "SeriesInstanceUID": uid_of(patient, name),
            "SOPInstanceUID": uid_of(patient, name, str(folder), place),
            "ImagePositionPatient": [-10, -10, -50 + 3 * place],
            "InstanceNumber": int(number),
        }
        hu = tissue(patient, name, place) if pixels is None else pixels(place)
        write_slice(folder / f"im{number}.dcm", hu, **(values | told))
    return folder


def write_tree(root, patients=("a", "b", "c", "d"), **told):
    """A folder per patient."""
    for patient in patients:
        write_series(root / patient, f"ID-{patient}", **told)
    return root

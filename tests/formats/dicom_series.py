"""Synthetic CT series, legal to the letter, for the DICOM tests.

Above 300 lines: each attribute of a legal header is a line.
"""

import hashlib
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite, uid
from pydicom.dataset import FileMetaDataset

from cddnet.formats import ReadOptions, WriteOptions, dicom
from cddnet.volume import Derivation

SIZE = (31, 45)
STEP = Derivation(
    label="cddnet 80%",
    description="Noise reduction by a convolutional network",
    parameters=(("model", "cddnet"), ("strength", "0.8")),
    version="0.1.0",
    weights_sha256="ab" * 32,
)
ROOT = "1.2.826.0.1.3680043.10.999"
SERIES = f"{ROOT}.3"
FAMILY_NAME = "Zyxwvut"


# What Enhanced CT tells of an original acquisition, for all frames.
ACQUISITION = {
    "CTAcquisitionTypeSequence": {
        "AcquisitionType": "SPIRAL",
        "ConstantVolumeFlag": "NO",
        "FluoroscopyFlag": "NO",
    },
    "CTAcquisitionDetailsSequence": {
        "RotationDirection": "CW",
        "RevolutionTime": 0.5,
        "SingleCollimationWidth": 0.6,
        "TotalCollimationWidth": 38.4,
        "TableHeight": "150",
        "GantryDetectorTilt": "0",
        "DataCollectionDiameter": "500",
    },
    "CTTableDynamicsSequence": {
        "TableSpeed": 46.0,
        "TableFeedPerRotation": 23.0,
        "SpiralPitchFactor": 0.6,
    },
    "CTPositionSequence": {
        "DataCollectionCenterPatient": [0.0, 0.0, 0.0],
        "ReconstructionTargetCenterPatient": [0.0, 0.0, 0.0],
        "TablePosition": 0.0,
    },
    "CTGeometrySequence": {
        "DistanceSourceToDetector": "1085",
        "DistanceSourceToDataCollectionCenter": 595.0,
    },
    "CTReconstructionSequence": {
        "ReconstructionAlgorithm": "FILTER_BACK_PROJ",
        "ConvolutionKernel": "B30f",
        "ConvolutionKernelGroup": "BODY",
        "ReconstructionDiameter": "350",
        "ReconstructionPixelSpacing": [0.7, 0.8],
        "ReconstructionAngle": 180.0,
        "ImageFilter": "NONE",
    },
    "CTExposureSequence": {
        "ExposureTimeInms": 500.0,
        "XRayTubeCurrentInmA": 160.0,
        "ExposureInmAs": 80.0,
        "ExposureModulationType": "NONE",
    },
    "CTXRayDetailsSequence": {
        "KVP": "120",
        "FocalSpots": "1.2",
        "FilterType": "WEDGE",
        "FilterMaterial": "TITANIUM",
    },
}


def ct_dataset(index=0, *, size=SIZE, bits=16, signed=True, slope="1", intercept="-1024"):
    """One classic CT slice at z = 5 mm x index, with reproducible stored values."""
    rng = np.random.default_rng(index + 1)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = uid.CTImageStorage
    dataset.SOPInstanceUID = f"{SERIES}.{index + 1}"
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = "20240102"
    dataset.ContentDate = "20240102"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = "101112"
    dataset.ContentTime = "101112"
    dataset.AccessionNumber = "A77"
    dataset.Modality = "CT"
    dataset.Manufacturer = "Maker"
    dataset.ManufacturerModelName = "Model"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "Thorax"
    dataset.SeriesDescription = "Lung 5.0"
    dataset.PatientName = f"{FAMILY_NAME}^J\xfcrgen"
    dataset.PatientID = "ID-4711"
    dataset.PatientBirthDate = "19500607"
    dataset.PatientSex = "O"
    dataset.BodyPartExamined = "CHEST"
    dataset.SliceThickness = "5"
    dataset.KVP = "120"
    dataset.Exposure = "80"
    dataset.ConvolutionKernel = "B30f"
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = f"{ROOT}.2"
    dataset.SeriesInstanceUID = SERIES
    dataset.StudyID = "1"
    dataset.SeriesNumber = "3"
    dataset.AcquisitionNumber = "1"
    dataset.InstanceNumber = str(index + 1)
    dataset.ImagePositionPatient = ["-20", "-30", f"{5 * index:.1f}"]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.FrameOfReferenceUID = f"{ROOT}.4"
    dataset.PositionReferenceIndicator = ""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = size
    dataset.PixelSpacing = ["0.7", "0.8"]
    dataset.BitsAllocated = 16
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.WindowCenter, dataset.WindowWidth = "40", "400"
    dataset.RescaleIntercept = intercept
    dataset.RescaleSlope = slope
    dataset.RescaleType = "HU"
    low = -500 if signed else 0
    stored = rng.integers(low, min(3000, 2 ** (bits - signed) - 1), size, dtype=np.int16)
    set_stored(dataset, stored)
    return dataset


def set_stored(dataset, stored):
    """Put pixels into a dataset, uncompressed, in the byte order of its transfer syntax."""
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    values = np.ascontiguousarray(stored).astype(f"{order}i2", casting="unsafe")
    dataset.add_new("PixelData", "OW", values.tobytes())


def stored_of(dataset):
    """Pixels of an uncompressed little-endian dataset, as they were put in."""
    kind = "<i2" if dataset.PixelRepresentation else "<u2"
    return np.frombuffer(dataset.PixelData, kind).reshape(dataset.Rows, dataset.Columns)


def save(dataset, path):
    """Write as a DICOM file in the transfer syntax of its meta header."""
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    syntax = dataset.file_meta.TransferSyntaxUID
    dcmwrite(
        path,
        dataset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=True,
    )
    return path


def save_series(folder: Path, datasets, *, order=None):
    """One file per dataset, under names in `order` (shuffled by default)."""
    folder.mkdir(parents=True, exist_ok=True)
    datasets = list(datasets)
    order = np.random.default_rng(5).permutation(len(datasets)) if order is None else order
    for name, dataset in zip(order, datasets, strict=True):
        save(dataset, folder / f"im{name}")
    return folder


def enhanced_dataset(frames=4, *, size=SIZE):
    """Legal Enhanced CT; frame i lies at z = 5 mm x (frames - 1 - i), with a slope of its own."""
    first = ct_dataset(size=size)
    dataset = Dataset()
    dataset.file_meta = first.file_meta
    dataset.update(first)
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "WindowCenter",
        "WindowWidth",
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "KVP",
        "Exposure",
        "ConvolutionKernel",
        "AcquisitionDate",
        "AcquisitionTime",
    ):
        del dataset[keyword]
    kind = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.SOPClassUID = uid.EnhancedCTImageStorage
    dataset.ImageType = kind
    dataset.AcquisitionDateTime = "20240102101112"
    dataset.AcquisitionDuration = 1.5
    dataset.ContentQualification = "RESEARCH"
    dataset.DeviceSerialNumber = "7"
    dataset.SoftwareVersions = "1"
    dataset.PixelPresentation = "MONOCHROME"
    dataset.VolumetricProperties = "VOLUME"
    dataset.VolumeBasedCalculationTechnique = "NONE"
    dataset.LossyImageCompression = "00"
    dataset.BurnedInAnnotation = "NO"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.InstanceNumber = "1"
    dataset.NumberOfFrames = frames
    organization = _item(DimensionOrganizationUID=f"{ROOT}.9")
    dataset.DimensionOrganizationSequence = [organization]
    pointers = [(0x00209056, 0x00209111), (0x00209057, 0x00209111)]
    dataset.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=f"{ROOT}.9",
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=group,
        )
        for pointer, group in pointers
    ]
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(PixelSpacing=["0.7", "0.8"], SliceThickness="5")]
    shared.PlaneOrientationSequence = [
        _item(ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])
    ]
    properties = {
        "PixelPresentation": "MONOCHROME",
        "VolumetricProperties": "VOLUME",
        "VolumeBasedCalculationTechnique": "NONE",
    }
    shared.CTImageFrameTypeSequence = [_item(FrameType=kind, **properties)]
    shared.FrameVOILUTSequence = [_item(WindowCenter="40", WindowWidth="400")]
    shared.FrameAnatomySequence = [
        _item(
            FrameLaterality="U",
            AnatomicRegionSequence=[
                _item(CodeValue="51185008", CodingSchemeDesignator="SCT", CodeMeaning="Chest")
            ],
        )
    ]
    shared.IrradiationEventIdentificationSequence = [_item(IrradiationEventUID=f"{ROOT}.8")]
    for sequence, fields in ACQUISITION.items():
        setattr(shared, sequence, [_item(**fields)])
    dataset.AcquisitionContextSequence = []
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups, pixels = [], []
    for index in range(frames):
        place = frames - 1 - index
        group = Dataset()
        group.FrameContentSequence = [
            _item(
                StackID="1",
                InStackPositionNumber=index + 1,
                DimensionIndexValues=[1, index + 1],
                FrameAcquisitionDateTime="20240102101112",
                FrameReferenceDateTime="20240102101112",
                FrameAcquisitionDuration=500.0,
            )
        ]
        group.PlanePositionSequence = [
            _item(ImagePositionPatient=["-20", "-30", f"{5 * place:.1f}"])
        ]
        group.PixelValueTransformationSequence = [
            _item(RescaleIntercept="-1024", RescaleSlope=str(1 + index / 4), RescaleType="HU")
        ]
        groups.append(group)
        pixels.append(stored_of(ct_dataset(index, size=size)))
    dataset.PerFrameFunctionalGroupsSequence = groups
    set_stored(dataset, np.stack(pixels))
    dataset.Rows, dataset.Columns = size
    return dataset


def _item(**fields):
    item = Dataset()
    for keyword, value in fields.items():
        setattr(item, keyword, value)
    return item


def read(path, series=None):
    return dicom.read(Path(path), ReadOptions(series=series))


def write(volume, path):
    dicom.write(volume, Path(path), WriteOptions())
    return Path(path)


def derive(volume, change=lambda hu: hu, step=STEP):
    """The volume after one step that applies `change` to each slice."""
    return volume.derived(lambda index: change(volume.read_slice(index)), step)


def written(path):
    """Datasets of a written folder in the order of their names, or of one file."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [dcmread(file) for file in files]


def fingerprint(folder):
    """Hash over names and bytes of every file in a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()

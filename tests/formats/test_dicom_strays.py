"""Objects with the UID of a CT series that are no slices of it: left out, counted and named."""

import re

import numpy as np
import pytest
from dicom_series import (
    FAMILY_NAME,
    ct_dataset,
    enhanced_dataset,
    read,
    save,
    save_series,
    set_stored,
)
from pydicom import Dataset, uid

from cddnet.errors import DicomError, GeometryError
from cddnet.formats import dicom
from cddnet.formats._facts import read_facts

PLACE = ("ImagePositionPatient", "ImageOrientationPatient")
SCALE = ("RescaleSlope", "RescaleIntercept", "RescaleType")
PLAN = ("SOPClassUID", "Modality", "SOPInstanceUID", "PatientName", "PatientID")


def without_pixels(sop_class, modality):
    """An object that is no image, such as a report."""
    dataset, bare = ct_dataset(90), Dataset()
    for keyword in (*PLAN, "StudyInstanceUID", "SeriesInstanceUID"):
        bare[keyword] = dataset[keyword]
    bare.file_meta, bare.SOPClassUID, bare.Modality = dataset.file_meta, sop_class, modality
    return bare


def page(*, drop=(), **fields):
    """An image that is no slice, such as a screen that was saved."""
    dataset = ct_dataset(90)
    for keyword in drop:
        del dataset[keyword]
    for keyword, value in fields.items():
        setattr(dataset, keyword, value)
    return dataset


def coloured(**fields):
    dataset = page(drop=PLACE, **fields)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
    dataset.PlanarConfiguration, dataset.BitsAllocated = 0, 8
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 7, 0
    dataset.add_new("PixelData", "OB", bytes(31 * 45 * 3 + 1))
    return dataset


STRAYS = {
    "RT Structure Set": without_pixels(uid.RTStructureSetStorage, "RTSTRUCT"),
    "RT Dose": without_pixels(uid.RTDoseStorage, "RTDOSE"),
    "RT Plan": without_pixels(uid.RTPlanStorage, "RTPLAN"),
    "X-Ray Radiation Dose SR": without_pixels(uid.XRayRadiationDoseSRStorage, "SR"),
    "Grayscale Softcopy Presentation State": without_pixels(
        uid.GrayscaleSoftcopyPresentationStateStorage, "PR"
    ),
    "Key Object Selection Document": without_pixels(uid.KeyObjectSelectionDocumentStorage, "KO"),
    "Encapsulated PDF": without_pixels(uid.EncapsulatedPDFStorage, "DOC"),
    "Segmentation": without_pixels(uid.SegmentationStorage, "SEG"),
    "object of a private kind": without_pixels("1.3.12.2.1107.5.9.1", "CT"),
    "Secondary Capture Image": coloured(SOPClassUID=uid.SecondaryCaptureImageStorage),
    "Multi-frame Grayscale Byte Secondary Capture Image": page(
        SOPClassUID=uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage, NumberOfFrames="1"
    ),
    "colour image": coloured(),
}
PAGES = {
    "page of text": [
        page(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]),
        page(ImageType=["DERIVED", "SECONDARY", "OTHER", "CT_SOM7 PROT"]),
        page(ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "DOSE_INFO"]),
    ],
    "page without position": [
        page(drop=(*PLACE, *SCALE), ImageType=["DERIVED", "SECONDARY"]),
        page(drop=PLACE, BurnedInAnnotation="YES"),
        page(drop=PLACE, ConversionType="WSD"),
        page(drop=SCALE, ImagePositionPatient=None, ImageOrientationPatient=[]),
    ],
}
CASES = [*STRAYS.items(), *((kind, one) for kind, several in PAGES.items() for one in several)]


def with_stray(folder, stray):
    """Three slices, and before, among or behind them something else."""
    datasets = [ct_dataset(index) for index in range(3)]
    stray.SOPInstanceUID = f"{datasets[0].SOPInstanceUID}.99"
    return save_series(folder, [*datasets, stray], order=[1, 2, 4, 0])


@pytest.mark.parametrize(("kind", "stray"), CASES, ids=lambda value: str(value)[:24])
def test_what_is_no_slice_is_left_out_and_named(tmp_path, kind, stray):
    folder = with_stray(tmp_path / "ct", stray)
    expected = read(save_series(tmp_path / "alone", [ct_dataset(index) for index in range(3)]))
    for volume in (read(folder), dicom.read_files(sorted(folder.iterdir()))):
        assert volume.shape[0] == 3
        np.testing.assert_array_equal(volume.hu, expected.hu)
        told = f"1 object of the series that is no slice ({kind}) was left out"
        assert volume.notes == (told,)
    (summary,) = dicom.list_series(folder)
    assert (summary.modality, summary.slices, summary.unfit) == ("CT", 3, "")
    assert read_facts(folder / "im0").stray == kind
    assert read_facts(folder / "im1").stray == ""


def test_each_kind_is_counted_by_itself(tmp_path):
    datasets = [ct_dataset(index) for index in range(3)]
    datasets += [without_pixels(uid.RTStructureSetStorage, "RTSTRUCT") for _ in range(2)]
    datasets += [page(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])]
    datasets += [page(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])]
    for index, dataset in enumerate(datasets):
        dataset.SOPInstanceUID = f"1.2.3.{index + 1}"
    assert read(save_series(tmp_path / "ct", datasets)).notes == (
        "2 objects of the series that are no slices (RT Structure Set) were left out",
        "1 localizer images of the series were left out",
        "1 object of the series that is no slice (page of text) was left out",
    )


def test_an_enhanced_image_beside_its_report(tmp_path):
    expected = read(save(enhanced_dataset(), tmp_path / "alone.dcm"))
    report = without_pixels(uid.EnhancedSRStorage, "SR")
    report.SOPInstanceUID += ".5"
    volume = read(save_series(tmp_path / "ct", [enhanced_dataset(), report]))
    np.testing.assert_array_equal(volume.hu, expected.hu)
    assert volume.notes == ("1 object of the series that is no slice (Enhanced SR) was left out",)


@pytest.mark.parametrize("stray", [*STRAYS.values(), *PAGES["page of text"]])
def test_alone_it_is_refused_as_before(tmp_path, stray):
    path = save(stray, tmp_path / "a.dcm")
    with pytest.raises(DicomError, match=r"^a\.dcm: is .*; choose "):
        read(path)


def test_slices_without_places_are_no_pages_of_each_other(tmp_path):
    """What all images of a series lack is no mark of one among them."""
    dataset = page(drop=PLACE, BurnedInAnnotation="YES")
    volume = read(save(dataset, tmp_path / "a.dcm"))
    assert volume.shape[0] == 1


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ({"drop": SCALE}, "RescaleSlope is missing"),
        ({"drop": ("PixelSpacing",)}, "PixelSpacing is missing"),
        ({"Modality": "MR"}, "is no CT image but: CT Image, modality MR"),
        ({"SamplesPerPixel": 3}, "is a colour or palette image"),
        ({"SOPClassUID": "1.2.3.4"}, "is no CT image but: 1.2.3.4"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "was computed from other images"),
        ({"BitsStored": 17}, "17 bits stored"),
    ],
)
def test_a_slice_that_is_damaged_is_refused_with_its_name(tmp_path, damage, found):
    folder = with_stray(tmp_path / "ct", page(**damage))
    with pytest.raises(DicomError) as caught:
        read(folder)
    assert str(caught.value).startswith(f"im0: {found}")
    assert str(caught.value).endswith("If it is no slice of the series, take it out.")
    assert FAMILY_NAME not in str(caught.value)


def test_a_page_that_looks_like_a_slice_is_named(tmp_path):
    """With rescale, without position: it may be a slice that lost its place."""
    folder = with_stray(tmp_path / "ct", page(drop=PLACE))
    with pytest.raises(GeometryError, match=r"im0 has no ImagePositionPatient.*take it out"):
        read(folder)
    larger = page(ImagePositionPatient=["-20", "-30", "90"])
    set_stored(larger, np.zeros((64, 64), np.int16))
    folder = with_stray(tmp_path / "larger", larger)
    with pytest.raises(GeometryError, match=r"matrix size.*im0.*take it out") as caught:
        read(folder)
    assert re.search(r"\(31, 45\) in im\d but \(64, 64\) in im0;", str(caught.value))


def test_pixels_cut_short_among_strays_stay_refused(tmp_path):
    folder = with_stray(tmp_path / "ct", without_pixels(uid.RTStructureSetStorage, "RTSTRUCT"))
    last = folder / "im2"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(DicomError, match="im2: its pixel data is cut short"):
        read(folder)

"""Inputs as other programs write them, one table: what is given, the command, what comes out.

A row makes its input below a folder, runs one command in it and looks at the result with other
software than ours. Variants of each kind are tested beside its reader.
"""

# Shapes: D slice, H row, W column.

import io
import os
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import httpx
import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom import Dataset, dcmread, uid
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.valuerep import PersonName
from safetensors.numpy import load_file

from cddnet import files
from cddnet.cli import main
from cddnet.formats import write_volume
from cddnet.volume import CTVolume
from ct_tree import uid_of, write_series, write_tree
from trunk import trunk

sys.path += [str(Path(__file__).parent / name) for name in ("formats", "node")]
from dicom_series import enhanced_dataset, save, set_stored
from small_node import coded, free_port, node_config, station_at

HU = trunk((3, 96, 112)).clip(-1024)
PIXELS = {"PixelSpacing": ["2", "2"], "SliceThickness": "3"}
DELIMITER = b"\xfe\xff\xdd\xe0" + bytes(4)
DENOISE = "denoise in out --model WEIGHTS --engine torch_eager"
UNCHANGED = f"{DENOISE} --strength 0"


class Result(NamedTuple):
    """folder: where the command ran.  said: all that it printed.  run: runs another one there."""

    folder: Path
    said: str
    run: object

    @property
    def out(self):
        return self.folder / "out"


class Row(NamedTuple):
    """make: writes the input below a folder.  command: its words, WEIGHTS for a small network.

    code: exit code.  said: pattern in what it prints.  check: of the result.
    """

    make: object
    command: str
    said: str = ""
    check: object = None
    code: int = 0


# ---- inputs


def series(folder, name="in", hu=HU, **told):
    """A DICOM series of whole HU (D, H, W)."""
    told = PIXELS | told

    def pixels(place):
        return hu[place]

    write_series(folder / name, "P", places=range(len(hu)), pixels=pixels, **told)
    return folder / name


def each(folder, change):
    """Change the header of every file."""
    for file in sorted(folder.iterdir()):
        dataset = dcmread(file)
        change(dataset)
        dataset.save_as(file, enforce_file_format=True)


def with_text(file, before, after):
    content = file.read_bytes()
    assert before in content
    file.write_bytes(content.replace(before, after))


def stored(folder, change, hu=HU, **told):
    """A series with its stored values changed, which have a type of their own."""
    made = series(folder, hu=hu, **told)

    def put(dataset):
        kind = "<i2" if dataset.PixelRepresentation else "<u2"
        values = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, -1).astype(int)
        dataset.PixelData = change(values).astype(kind).tobytes()

    each(made, put)


def units(value):
    return lambda folder: (series(folder, "plain"), series(folder, RescaleType=value))


def bare(folder):
    """As SimpleITK writes it by GDCM: HU without offset, few elements, unit unspecified."""
    series(folder, "plain")
    stored(folder, lambda values: values - 1024, RescaleIntercept="0", RescaleType="US")

    def strip(dataset):
        for keyword in ("Manufacturer", "ConvolutionKernel", "SliceThickness"):
            del dataset[keyword]
        dataset.ImageType = ["DERIVED", "SECONDARY"]

    each(folder / "in", strip)


def frames(folder, **fields):
    """Enhanced CT of the values; fields of the scale of each frame."""
    dataset = enhanced_dataset(len(HU), size=HU.shape[1:])
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].PixelSpacing = ["2", "2"]
    for group in dataset.PerFrameFunctionalGroupsSequence:
        scale = group.PixelValueTransformationSequence[0]
        scale.RescaleSlope = "1"
        for keyword, value in fields.items():
            setattr(scale, keyword, value)
    # The first frame lies last.
    set_stored(dataset, (HU[::-1] + 1024).astype(np.int16))
    dataset.Rows, dataset.Columns = HU.shape[1:]
    return dataset


def enhanced_us(folder):
    series(folder, "plain")
    (folder / "in").mkdir()
    save(frames(folder, RescaleType="US"), folder / "in" / "a.dcm")


AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])


def nifti(path, hu=HU, affine=AFFINE, sform=1, qform=1):
    """Voxels (W, H, D) of whole HU (D, H, W)."""
    image = nibabel.Nifti1Image(hu.transpose(2, 1, 0).astype(np.int16), affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform, strip_shears=True)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def turned(image, codes):
    orientations = [nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(codes)]
    return image.as_reoriented(nibabel.orientations.ornt_transform(*orientations))


def planes(folder):
    """Axial planes, and the same voxels in coronal ones."""
    nifti(folder / "axial.nii.gz", trunk((8, 96, 112)), np.diag([-2.0, -2.0, 2.0, 1.0]))
    axial = nibabel.load(folder / "axial.nii.gz")
    nibabel.save(turned(axial, "LSP"), folder / "in.nii.gz")


def coronal(folder):
    hu = np.rint(np.repeat(HU[:1, :, :], 4, 0))
    made = series(folder, hu=hu, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])

    def place(dataset):
        dataset.ImagePositionPatient = [0, dataset.ImagePositionPatient[2], 0]

    each(made, place)


def arrays(folder):
    np.save(folder / "target.npy", (HU[0] + 1024) / 4096)
    np.save(folder / "input.npy", (trunk((1, 96, 112), noise_hu=40)[0] + 1024) / 4096)
    np.save(folder / "in.npy", HU + 1024)


def no_intercept(folder):
    write_tree(folder / "in", pixels=lambda place: HU[place % 3], RescaleIntercept="0", **PIXELS)


def runaway(values):
    """A lossless JPEG decoded wrongly: right in one strip, running away beside it."""
    column = np.abs(np.arange(values.shape[1]) - values.shape[1] // 2) - 6
    slope = np.random.default_rng(4).integers(-700, 150, len(values))
    return np.clip(values + slope[:, None] * np.maximum(column, 0), -32768, 32767)


def metal(folder):
    hu = HU.copy()
    hu[1, 40:44, 50:54] = 30000
    series(folder, hu=hu)


def circle_of(constant):
    y, x = np.mgrid[-1 : 1 : 96 * 1j, -1 : 1 : 112 * 1j]
    return np.where(y**2 + x**2 > 1, constant, HU).astype(np.float32)


def link(at, to):
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(to, target_is_directory=True)


def only_a_link(folder):
    link(folder / "in" / "series", series(folder, "elsewhere"))


def mixed(folder):
    first, *rest = sorted(series(folder).iterdir())
    assert first.exists()
    (folder / "rest").mkdir()
    for file in rest:
        file.rename(folder / "rest" / file.name)
    link(folder / "in" / "rest", folder / "rest")


def linked_tree(folder):
    for name in "ac":
        write_series(folder / "in" / name, name, pixels=lambda place: HU[place % 3], **PIXELS)
    link(folder / "in" / "b", series(folder, "elsewhere"))


def one_each(folder):
    """A folder for each slice."""
    for place, file in enumerate(sorted(series(folder).iterdir())):
        (folder / "in" / "abc"[place]).mkdir()
        file.rename(folder / "in" / "abc"[place] / file.name)


PLACE = ("ImagePositionPatient", "ImageOrientationPatient")
SCALE = ("RescaleSlope", "RescaleIntercept")


def stray(sop_class, modality="CT", *, pixels=True, drop=(), **fields):
    """A series and one object with its UID that is no slice."""

    def make(folder):
        made = series(folder)
        dataset = dcmread(made / "im0.dcm")
        if not pixels:
            keep = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
            plain = Dataset({dataset[keyword].tag: dataset[keyword] for keyword in keep})
            plain.file_meta = dataset.file_meta
            dataset = plain
        for keyword in drop:
            del dataset[keyword]
        dataset.SOPClassUID, dataset.Modality = sop_class, modality
        dataset.SOPInstanceUID = uid_of("P", "stray")
        for keyword, value in fields.items():
            setattr(dataset, keyword, value)
        save(dataset, made / "im9.dcm")

    return make


def damaged(folder):
    stray(uid.RTStructureSetStorage, "RTSTRUCT", pixels=False)(folder)
    file = folder / "in" / "im1.dcm"
    file.write_bytes(file.read_bytes()[:-1000])


def padded(folder):
    hu = circle_of(-3024)
    series(folder, "plain", hu, PixelPaddingValue=-2000)
    series(folder, hu=hu)


def padded_mhd(folder):
    series(folder, "plain", circle_of(-3024), PixelPaddingValue=-2000)
    header = {
        "ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False,
        "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "-10 -10 -50",
        "ElementSpacing": "2 2 3", "DimSize": "112 96 3", "ElementType": "MET_SHORT",
        "ElementDataFile": "in.raw",
    }  # fmt: skip
    lines = [f"{key} = {value}\n" for key, value in header.items()]
    (folder / "in.mhd").write_text("".join(lines))
    circle_of(-3024).astype("<i2").tofile(folder / "in.raw")


def libtiff(values, compression, **tags):
    """A TIFF as OpenCV and other users of libtiff write it."""
    numbers = {"predictor": 317, "sample_format": 339}
    told = {numbers[name]: value for name, value in tags.items()}

    def make(folder):
        first, *others = map(Image.fromarray, values)
        options = {"compression": compression, "tiffinfo": told}
        first.save(folder / "in.tif", save_all=True, append_images=others, **options)

    return make


def imagej(intercept):
    def make(folder):
        about = "ImageJ=1.54f\nimages=3\nslices=3\n"
        about += f"cf=0\nc0={intercept:.1f}\nc1=1.0\nvunit=Gray Value\n"
        values = (HU - intercept).astype(np.uint16)
        plain = {"metadata": None, "photometric": "minisblack"}
        tifffile.imwrite(folder / "in.tif", values, description=about, **plain)

    return make


def one_page(folder):
    about = "ImageJ=1.54f\nimages=3\nslices=3\n"
    path, first = folder / "in.tif", HU[0].astype(np.int16)
    tifffile.imwrite(path, first, description=about, metadata=None, photometric="minisblack")
    with tifffile.TiffFile(path) as tiff:
        (start,), (length,) = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
    rest = HU[1:].astype("<i2").tobytes()
    path.write_bytes(path.read_bytes()[: start + length] + rest)


def deeplesion(folder):
    (folder / "in").mkdir()
    for number, one in enumerate(HU):
        Image.fromarray((one + 32768).astype(np.uint16)).save(folder / "in" / f"{103 + number}.png")


def upside_down(folder):
    nifti(folder / "down.nii.gz")
    up = AFFINE.copy()
    up[:3, 3] += up[:3, 1] * (HU.shape[1] - 1)
    up[:3, 1] *= -1
    nifti(folder / "up.nii.gz", HU[:, ::-1], up)


def untrue(implicit, says):
    """The data set is coded otherwise than the meta header says."""

    def make(folder):
        for file in series(folder).iterdir():
            file.write_bytes(coded(dcmread(file), implicit=implicit, says=says))

    return make


def unclosed(zeros):
    def make(folder):
        for file in series(folder).iterdir():
            dataset = dcmread(file)
            dataset.compress(uid.JPEGLSLossless)
            dataset.save_as(file)
            content = file.read_bytes()
            assert content.endswith(DELIMITER)
            file.write_bytes(content[: -len(DELIMITER)] + bytes(zeros))

    return make


def cut(folder):
    unclosed(8)(folder)
    file = folder / "in" / "im1.dcm"
    file.write_bytes(file.read_bytes()[:-400])


KATAKANA = "ﾑﾈ 5mm".encode("shift_jis")
NAME = "ﾃｽﾄ^ｻﾝﾌﾟﾙ".encode("shift_jis")


def katakana(folder):
    def label(dataset):
        dataset.SpecificCharacterSet = "ISO_IR 13"
        tag = tag_for_keyword("SeriesDescription")
        dataset[tag] = DataElement(tag, dictionary_VR(tag), KATAKANA)
        dataset.PatientName = PersonName(NAME)

    each(series(folder), label)


def images(folder, *changes):
    """The slices, and copies of some: (slice, values, header)."""
    made = series(folder, AcquisitionNumber=1)
    by_place = sorted(map(dcmread, made.iterdir()), key=lambda x: x.ImagePositionPatient[2])
    for number, (place, values, fields) in enumerate(changes):
        dataset = by_place[place]
        dataset.SOPInstanceUID = uid_of("P", "more", number)
        for keyword, value in fields.items():
            setattr(dataset, keyword, value)
        set_stored(dataset, (values + 1024).astype(np.int16))
        save(dataset, made / f"more{number}.dcm")


def two_phases(folder):
    second = {"AcquisitionNumber": 2}
    images(folder, *((place, HU[2 - place] + 5, second) for place in range(3)))


def one_slice_again(folder):
    images(folder, (0, HU[0], {"AcquisitionNumber": 2, "InstanceNumber": 4}))


def frames_again(folder):
    dataset = frames(folder)
    groups = dataset.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence = groups[0].PlanePositionSequence
    save(dataset, folder / "in.dcm")


def leaning(folder):
    affine = AFFINE.copy()
    affine[1, 2] += 5 * np.tan(np.radians(15))
    nifti(folder / "in.nii.gz", affine=affine)


def askew(folder):
    affine = AFFINE.copy()
    affine[0, 1] += 2 * np.radians(0.09)
    nifti(folder / "in.nii.gz", affine=affine)


def tilted(cosine, sine):
    def make(folder):
        cosines = [1, 0, 0, 0, cosine, sine]
        series(folder, ImageOrientationPatient=cosines, GantryDetectorTilt="15")

    return make


SMALL = trunk((2, 256, 256), size=0.14)


def array(values):
    def make(folder):
        write_volume(CTVolume.from_hu(np.float32(values), (3.0, 2.0, 2.0)), folder / "in.nii")

    return make


def checkpoint(prefix="", *, inside=False, **beside):
    """Weights as training code saves them, and the same without anything around them."""

    def make(folder):
        import torch

        from cddnet import models

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            state = models.build("wgan_vgg").state_dict()
        torch.save(state, folder / "plain.pth")
        wrapped = OrderedDict((prefix + key, value) for key, value in state.items())
        torch.save({"state_dict": wrapped, **beside} if inside else wrapped, folder / "in.ckpt")

    return make


def listed(coding):
    def make(folder):
        for name in ("first", "second"):
            write_series(folder / name, name, pixels=lambda place: HU[place % 3], **PIXELS)
        (folder / "in.txt").write_bytes("first\r\nsecond\r\n".encode(coding))

    return make


def commas(folder):
    for file in series(folder, PixelSpacing=["2.25", "2.25"]).iterdir():
        with_text(file, b"2.25\\2.25", b"2,25\\2,25")


STEPS = (0, 4, 8, 12, 16, 20, 25.5, 32.5, 39.5)


def head(folder, steps=STEPS):
    made = series(folder, hu=np.resize(HU, (9, *HU.shape[1:])))
    for file in sorted(made.iterdir()):
        dataset = dcmread(file)
        place = STEPS[round((dataset.ImagePositionPatient[2] + 50) / 3)]
        dataset.ImagePositionPatient = [-10, -10, place]
        dataset.SliceThickness = "7" if place > 20 else "4"
        dataset.save_as(file)
        if place not in steps:
            file.unlink()


# ---- what is expected


def datasets(folder):
    """Of a series, from the feet."""
    found = [dcmread(file) for file in folder.rglob("*.dcm")]
    return sorted(found, key=lambda dataset: float(dataset.ImagePositionPatient[2]))


def hu_of(path):
    """HU (D, H, W) as pydicom reads them."""
    if len(list(path.glob("*.dcm"))) > 1:
        return np.stack(
            [x.pixel_array * x.RescaleSlope + x.RescaleIntercept for x in datasets(path)]
        )
    dataset = dcmread(path if path.is_file() else next(path.glob("*.dcm")))
    scales = [
        group.PixelValueTransformationSequence[0]
        for group in dataset.PerFrameFunctionalGroupsSequence
    ]
    places = [
        float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        for group in dataset.PerFrameFunctionalGroupsSequence
    ]
    values = [
        one * scale.RescaleSlope + scale.RescaleIntercept
        for one, scale in zip(dataset.pixel_array, scales, strict=True)
    ]
    return np.stack(values)[np.argsort(places)]


def as_plain(result):
    """Denoised as the plain series is, to 1 HU."""
    code, said = result.run(DENOISE.replace("in out", "plain plain_out"))
    assert code == 0, said
    expected = hu_of(result.folder / "plain_out")
    assert np.abs(expected - HU).max() > 5
    np.testing.assert_allclose(hu_of(result.out), expected, atol=1)


def slices(count):
    def check(result):
        assert len(list(result.out.rglob("*.dcm"))) == count

    return check


def equal_to(hu, atol=0.0):
    """Of what strength 0 leaves as it was."""

    def check(result):
        found = np.load(result.folder / "out.npy") if not result.out.exists() else hu_of(result.out)
        np.testing.assert_allclose(found, hu, atol=atol)

    return check


def nothing(result):
    assert [item.name for item in result.folder.iterdir() if item.name.startswith("out")] == []


def same_voxels(command):
    def check(result):
        code, said = result.run(command.replace("in.nii.gz out", "axial.nii.gz expected"))
        assert code == 0, said
        source = nibabel.load(result.folder / "in.nii.gz")
        found = nibabel.load(result.folder / "out.nii.gz")
        assert found.shape == source.shape
        np.testing.assert_allclose(found.affine, source.affine, atol=1e-5)
        expected = turned(nibabel.load(result.folder / "expected.nii.gz"), "LSP").get_fdata()
        np.testing.assert_array_equal(found.get_fdata(), expected)
        assert np.abs(expected - source.get_fdata()).max() > 5

    return check


def same_depth(result):
    code, said = result.run("depth axial.nii.gz expected --kernel soft")
    assert code == 0, said
    found, expected = (np.load(result.folder / name / "depth.npy") for name in ("out", "expected"))
    assert found.shape == (8, 96, 112)
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(found, expected)


def in_left_out(result):
    assert "HU" in (result.folder / "out" / "left_out.csv").read_text(encoding="utf-8")


def kept_padding(result):
    as_padded(result, hu_of(result.out))


def kept_padding_mhd(result):
    data = np.fromfile(next(result.folder.glob("out*.raw")), "<f4").reshape(HU.shape)
    as_padded(result, data)


def as_padded(result, found):
    code, said = result.run(DENOISE.replace("in out", "plain plain_out"))
    assert code == 0, said
    expected, outside = hu_of(result.folder / "plain_out"), circle_of(-3024) == -3024
    assert (found[outside] == -3024).all()
    assert np.abs(expected - HU)[~outside].max() > 5
    np.testing.assert_allclose(found[~outside], expected[~outside], atol=1)


def only_possible_windows(result):
    windows = re.findall(r"--window (-?\d+) (-?\d+)", result.said)
    assert windows == [("-32768", "32767")]
    nothing(result)


def codes_of_input(result):
    source, found = (
        nibabel.load(result.folder / f"{name}.nii.gz").header for name in ("in", "out")
    )
    assert (found["sform_code"], found["qform_code"]) == (0, 0)
    np.testing.assert_array_equal(found["pixdim"], source["pixdim"])


def sform_of_input(result):
    source, found = (
        nibabel.load(result.folder / f"{name}.nii.gz").header for name in ("in", "out")
    )
    np.testing.assert_allclose(found.get_sform(), source.get_sform(), atol=0.001)


def sheared_sform(result):
    header = nibabel.load(result.folder / "out.nii.gz").header
    assert (header["qform_code"], header["sform_code"]) == (0, 1)
    axes = header.get_sform()[:3, :3]
    lean = axes[:, 1] @ axes[:, 2] / np.linalg.norm(axes[:, 1]) / np.linalg.norm(axes[:, 2])
    np.testing.assert_allclose(abs(lean), np.sin(np.radians(15)), atol=1e-4)


def shown_alike(result):
    before, after = result.run.shown
    assert before == after
    assert len(before) == 3
    assert len(set(before)) == 3


def katakana_kept(result):
    for file in result.out.iterdir():
        dataset = dcmread(file)
        assert dataset.SpecificCharacterSet == "ISO_IR 13"
        described = dataset.get_item(tag_for_keyword("SeriesDescription")).value
        assert described.startswith(KATAKANA)
        assert NAME in file.read_bytes()


def numbers(*expected):
    def check(result):
        found = [int(dataset.AcquisitionNumber) for dataset in datasets(result.out)]
        assert sorted(found) == sorted(expected)

    return check


def same_tensors(result):
    code, said = result.run("models import plain.pth plain --as a")
    assert code == 0, said
    found, expected = (
        load_file(result.folder / name / "a.safetensors") for name in ("out", "plain")
    )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


def own_thickness(result):
    found = [float(dataset.SliceThickness) for dataset in datasets(result.out)]
    assert found == [4] * 6 + [7] * 3


def no_slice_missing(result):
    assert "missing" not in result.said


NO_HU = r"values are not HU"
EVALUATE = "evaluate down.nii.gz up.nii.gz --protocol full --fidelity-only --json out.json"
ARCHIVE = "archive in{} out --workers 0 --model WEIGHTS"
STRAY = r"note: 1 object of the series that is no slice \({}\) was left out"
SIMULATE = "simulate in.nii.gz out.nii.gz --kernel soft"
FOREIGN = {
    "structure set": (
        "RT Structure Set",
        stray(uid.RTStructureSetStorage, "RTSTRUCT", pixels=False),
    ),
    "dose report": (
        "X-Ray Radiation Dose SR",
        stray(uid.XRayRadiationDoseSRStorage, "SR", pixels=False),
    ),
    "presentation state": (
        "Grayscale Softcopy Presentation State",
        stray(uid.GrayscaleSoftcopyPresentationStateStorage, "PR", pixels=False),
    ),
    "secondary capture": (
        "Secondary Capture Image",
        stray(uid.SecondaryCaptureImageStorage, drop=(*PLACE, *SCALE)),
    ),
    "screen save": (
        "page of text",
        stray(uid.CTImageStorage, drop=PLACE, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]),
    ),
    "page without rescale": (
        "page without position",
        stray(uid.CTImageStorage, drop=(*PLACE, *SCALE), ImageType=["DERIVED", "SECONDARY"]),
    ),
}
INT16 = HU.astype(np.int16).view(np.uint16)

ROWS = {
    "01 unit US": Row(units("US"), DENOISE, check=as_plain),
    "01 unit hu": Row(units("hu "), DENOISE, check=as_plain),
    "01 SimpleITK": Row(bare, DENOISE, check=as_plain),
    "01 Enhanced, US": Row(enhanced_us, DENOISE.replace("in ", "in/a.dcm "), check=as_plain),
    **{
        f"01 unit {unit}": Row(units(unit), DENOISE, f"values are in {unit}", nothing, 1)
        for unit in ("ED", "Z_EFF", "MGML", "HU_MOD")
    },
    "01 no HU under US": Row(
        lambda folder: series(folder, hu=HU + 1024, RescaleType="US"), DENOISE, NO_HU, nothing, 1
    ),
    "02 coronal NIfTI, denoise": Row(
        planes,
        (command := DENOISE.replace("in out", "in.nii.gz out.nii.gz")),
        "note: .*coronal",
        same_voxels(command),
    ),
    "02 coronal NIfTI, simulate": Row(planes, SIMULATE, "coronal", same_voxels(SIMULATE)),
    "02 coronal NIfTI, depth": Row(planes, "depth in.nii.gz out --kernel soft", "", same_depth),
    "02 coronal DICOM, denoise": Row(coronal, f"{DENOISE} --force", "note: .*coronal", slices(4)),
    "02 coronal DICOM, simulate": Row(coronal, "simulate in out", "are coronal", nothing, 1),
    "02 coronal DICOM, depth": Row(coronal, "depth in out", "are coronal", nothing, 1),
    "02 rows, columns, slices": Row(
        lambda folder: np.save(folder / "in.npy", trunk((48, 96, 96)).transpose(1, 2, 0)),
        "info in.npy",
        r"refused: .*axis",
    ),
    "03 RED-CNN arrays": Row(
        arrays, "evaluate target.npy input.npy --protocol redcnn", NO_HU, nothing, 1
    ),
    "03 plus 1024, simulate": Row(arrays, "simulate in.npy out.npy", NO_HU, nothing, 1),
    "03 plus 1024, depth": Row(arrays, "depth in.npy out", NO_HU, nothing, 1),
    "03 a tree without intercept": Row(
        no_intercept, "prepare in out --split 0.5/0.25/0.25", r"not in HU: 16", in_left_out, 1
    ),
    **{
        f"04 {name}, {command.split()[0]}": Row(make, command, said, nothing, code)
        for name, make in {
            "sign lost": lambda folder: stored(
                folder,
                lambda values: values - 1024,
                RescaleIntercept="0",
                PixelRepresentation=0,
            ),
            "decoded wrongly": lambda folder: stored(folder, runaway),
        }.items()
        for command, said, code in (("info in", f"refused: the {NO_HU}", 0), (DENOISE, NO_HU, 1))
    },
    "04 twelve bits with a sign": Row(
        lambda folder: stored(
            folder,
            lambda values: np.where(values > 2047, values - 4096, values),
            hu=np.where(HU > 400, 1500, HU),
            BitsStored=12,
            HighBit=11,
        ),
        "info in",
        "refused: .*HU|note: .*no tissue has",
    ),
    "04 metal stays fit": Row(metal, "info in", "may be denoised"),
    "04 one constant outside the circle stays fit": Row(
        lambda folder: series(folder, hu=circle_of(-2048)), "info in", "may be denoised"
    ),
    "05 only a link": Row(only_a_link, "info in", r"3 slices, [\s\S]*may be denoised"),
    "05 a link beside slices": Row(mixed, "info in", r"3 slices, [\s\S]*may be denoised"),
    "05 a circle": Row(
        lambda folder: link(series(folder) / "again", folder / "in"),
        "info in",
        r"3 slices, [\s\S]*may be denoised",
    ),
    "05 a tree": Row(linked_tree, ARCHIVE.format(""), "3 series done", slices(11)),
    **{
        f"06 {name}": Row(make, DENOISE, STRAY.format(kind), slices(3))
        for name, (kind, make) in FOREIGN.items()
    },
    "06 a damaged slice": Row(damaged, DENOISE, "im1.dcm: .*cut short", nothing, 1),
    "08 undeclared": Row(padded, DENOISE, "", kept_padding),
    "08 as in LUNA16": Row(
        padded_mhd, DENOISE.replace("in out", "in.mhd out.mhd"), "", kept_padding_mhd
    ),
    **{
        f"09 {name}": Row(make, f"{UNCHANGED} {window}".replace("in out", "in.tif out.npy"), "", ok)
        for name, make, window, ok in (
            ("LZW", libtiff(INT16, "tiff_lzw", sample_format=2), "", equal_to(HU)),
            (
                "deflate, predictor 3",
                libtiff(HU, "tiff_adobe_deflate", predictor=3, sample_format=3),
                "",
                equal_to(HU),
            ),
            (
                "LZW, predictor 2",
                libtiff((HU[:1] + 1024).astype(np.uint16), "tiff_lzw", predictor=2),
                "--window -1024 64511",
                equal_to(HU[:1], atol=0.5),
            ),
            ("zstd", libtiff(INT16, "zstd", sample_format=2), "", equal_to(HU)),
        )
    },
    **{
        f"10 {name}": Row(make, UNCHANGED.replace("in out", "in.tif out.npy"), "", equal_to(HU))
        for name, make in {
            "signed shorts": imagej(-32768),
            "plus 1024": imagej(-1024),
            "one described page": one_page,
        }.items()
    },
    "10 DeepLesion, no window": Row(deeplesion, DENOISE, "--window", only_possible_windows, 1),
    "10 DeepLesion, its window": Row(deeplesion, f"{DENOISE} --window -32768 32767"),
    "10 DeepLesion, another window": Row(
        deeplesion, f"{DENOISE} --window -1024 64511", NO_HU, nothing, 1
    ),
    "11 no form codes": Row(
        lambda folder: nifti(folder / "in.nii.gz", sform=0, qform=0),
        DENOISE.replace("in out", "in.nii.gz out.nii.gz"),
        "codes are 0",
        codes_of_input,
    ),
    "12 rows up, view": Row(
        upside_down, "view up.nii.gz down.nii.gz --no-browser", "", shown_alike
    ),
    "12 rows up, evaluate": Row(upside_down, EVALUATE, r"test +inf"),
    "13 says implicit": Row(untrue(False, uid.ImplicitVRLittleEndian), UNCHANGED, "", equal_to(HU)),
    "13 says explicit": Row(untrue(True, uid.ExplicitVRLittleEndian), UNCHANGED, "", equal_to(HU)),
    "14 closed by 8 zeros": Row(unclosed(8), UNCHANGED, "delimiter", equal_to(HU)),
    "14 closed by 64 zeros": Row(unclosed(64), UNCHANGED, "delimiter", equal_to(HU)),
    "14 truly cut": Row(cut, DENOISE, "im1.dcm: .*cut short", nothing, 1),
    "17 katakana": Row(katakana, DENOISE, "", katakana_kept),
    "18 two phases": Row(two_phases, DENOISE, "note: .*--acquisition", numbers(1, 1, 1, 2, 2, 2)),
    "18 one phase": Row(two_phases, f"{DENOISE} --acquisition 2", "", numbers(2, 2, 2)),
    "18 one slice again": Row(one_slice_again, DENOISE, "note: copies of 1 slice", slices(3)),
    "18 a frame again": Row(
        frames_again,
        DENOISE.replace("in out", "in.dcm out.dcm"),
        "note: 3 images lie at only 2 positions",
    ),
    "18 positions lost": Row(
        lambda folder: series(folder, ImagePositionPatient=[0, 0, 0]),
        DENOISE,
        "note: all 3 images state one position",
        slices(3),
    ),
    "19 a gantry's shear": Row(
        leaning,
        DENOISE.replace("in out", "in.nii.gz out.nii.gz"),
        "note: .*leans by 15.0 degrees",
        sform_of_input,
    ),
    "19 0.09 degrees off": Row(
        askew,
        DENOISE.replace("in out", "in.nii.gz out.nii.gz"),
        "note: .*90.09 degrees",
        sform_of_input,
    ),
    "19 tilted DICOM": Row(
        tilted(0.965926, -0.258819),
        DENOISE.replace("in out", "in out.nii.gz"),
        "note: .*gantry tilt",
        sheared_sform,
    ),
    "20 a small body": Row(array(SMALL), "info in.nii", "may be denoised"),
    **{
        f"20 {name} stays refused": Row(array(values), "info in.nii", "refused: .*not HU")
        for name, values in {
            "air alone": trunk((2, 256, 256), size=0.001),
            "MR": np.where(SMALL > -300, 400 + SMALL / 4, abs(SMALL + 1000)),
            "0 to 1": (SMALL.clip(-1024) + 1024) / 4096,
            "plus 1024": SMALL + 1024,
        }.items()
    },
    **{
        f"21 {name}": Row(make, "models import in.ckpt out --as a", "", same_tensors)
        for name, make in {
            "Lightning": checkpoint("model.", inside=True, epoch=7),
            "compiled": checkpoint("_orig_mod."),
            "a NumPy number": checkpoint(inside=True, best_psnr_db=np.float64(30.5)),
        }.items()
    },
    **{
        f"22 a list in {coding}": Row(
            listed(coding), ARCHIVE.format(".txt"), "2 series done", slices(8)
        )
        for coding in ("utf-8-sig", "utf-16")
    },
    "23 commas": Row(commas, "info in", r"of 2.250 x 2.250 mm[\s\S]*may be denoised"),
    "23 two digits": Row(
        tilted(0.97, -0.26), "info in", r"note: direction cosines have 2 decimals[\s\S]*may be"
    ),
    "23 4 then 7 mm": Row(head, "info in", "note: .*4, 7 mm", no_slice_missing),
    "23 4 then 7 mm, simulate": Row(head, "simulate in out", "4 to 7 mm", own_thickness),
    "23 a gap": Row(
        lambda folder: head(folder, (0, 4, 12, 16, 20)), "info in", "slices are missing at 1 place"
    ),
}


class Shown:
    """Runs commands in a folder; `view` hands over its slices and does not wait."""

    def __init__(self, patch, weights, capsys):
        self.patch, self.weights, self.capsys, self.shown = patch, weights, capsys, None

    def serve(self, sources, port, **_):
        pair = sources.pair("pair")
        count = range(pair.manifest().slices)
        self.shown = [[pair.slice_bytes(name, i) for i in count] for name in ("before", "after")]

    def __call__(self, command):
        words = command.replace("WEIGHTS", str(self.weights)).split(" ")
        return self.words(*filter(None, words))

    def words(self, *words):
        self.patch.setattr(sys, "argv", ["cddnet", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, "".join(self.capsys.readouterr())


@pytest.fixture
def run(tmp_path, monkeypatch, tiny_weights, capsys):
    import cddnet.node.web.serving

    shown = Shown(monkeypatch, tiny_weights, capsys)
    monkeypatch.setattr(cddnet.node.web.serving, "serve_pair", shown.serve)
    monkeypatch.chdir(tmp_path)
    return shown


@pytest.mark.filterwarnings("ignore:Expected (ex|im)plicit VR")
@pytest.mark.parametrize("name", ROWS)
def test_a_row(name, tmp_path, run):
    row = ROWS[name]
    row.make(tmp_path)
    code, said = run(row.command)
    assert code == row.code, said
    assert re.search(row.said, said), said
    if row.check is not None:
        row.check(Result(tmp_path, said, run))


def test_05_a_closed_folder(tmp_path, run, monkeypatch):
    """Refused here by hand, as the system refuses nobody who is root."""
    real = os.scandir

    def refusing(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    one_each(tmp_path)
    monkeypatch.setattr(files.os, "scandir", refusing)
    code, said = run("info in")
    assert code == 0
    assert "refused: in/b: the folder cannot be read" in said
    assert "slices" not in said


@pytest.mark.parametrize("name", ["1.2.840.113619.2.5", "patient_1.5mm", "dose_0.25/", "Dr. Who"])
def test_07_a_dotted_name(name, tmp_path, run):
    series(tmp_path)
    code, said = run.words("denoise", "in", name, "--strength", "0", "--engine", "torch_eager")
    assert code == 0, said
    np.testing.assert_array_equal(hu_of(tmp_path / name), HU)


@pytest.mark.parametrize("suffix", [".nrrd", ".bmp", ".hdr"])
def test_07_the_suffix_of_another_format(suffix, tmp_path, run):
    series(tmp_path)
    code, said = run.words("denoise", "in", f"out{suffix}")
    assert code == 1
    assert f"{suffix} files cannot be written" in said
    nothing(Result(tmp_path, said, run))


UPLOADS = {
    "another UID, as after anonymising": {},
    "no group length": {"length": None},
    "no preamble": {"preamble": False, "meta": False, "implicit": True},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", UPLOADS)
def test_15_an_upload(name, tmp_path):
    from cddnet.node.receive.receiver import Receiver
    from cddnet.node.web.site import Web

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in series(tmp_path).iterdir():
            dataset = dcmread(file)
            if not UPLOADS[name]:
                dataset.file_meta.MediaStorageSOPInstanceUID = uid_of("before", file.name)
            archive.writestr(file.name, coded(dataset, **UPLOADS[name]))
    station = station_at(node_config(tmp_path / "node", http={"port": free_port()}))
    web = Web(station.config, station, Receiver(station, lambda event: (0, None)))
    try:
        address = f"http://127.0.0.1:{web.port}/api/upload"
        answer = httpx.post(address, content=packed.getvalue())
    finally:
        web.stop(10)
        station.close()
    assert answer.json()["taken"] == 3, answer.text
    np.testing.assert_array_equal(hu_of(next((tmp_path / "node").rglob("*.dcm")).parent), HU)


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
@pytest.mark.parametrize(
    "command",
    ["info in", DENOISE, "simulate in out --kernel soft", "export in out --window -160 240"],
)
def test_16_a_console_of_another_encoding(encoding, command, tmp_path, run, monkeypatch):
    series(tmp_path)
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    weights = str(run.weights)
    words = [{"out": "胸部", "WEIGHTS": weights}.get(word, word) for word in command.split()]
    code, said = run.words(*words)
    console.flush()
    shown = console.buffer.getvalue().decode(encoding)
    assert code == 0, said
    if "out" in command:
        assert "??: 3 slices" in shown
        made = [file for file in (tmp_path / "胸部").iterdir() if file.suffix != ".json"]
        assert len(made) == 3

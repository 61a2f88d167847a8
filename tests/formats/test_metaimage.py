"""MetaImage by hand-made headers and a file of ITK, and what is refused."""

import base64
import zlib

import numpy as np
import pytest

from cddnet.errors import CddnetError, FormatError, GeometryError
from cddnet.formats import read_volume, write_volume
from cddnet.volume import CTVolume

# int16 -12..11 as (2, 3, 4), written compressed by SimpleITK 2.5.7; for its voxel (3, 1, 1), value
# 7, TransformIndexToPhysicalPoint gave ITK_POINT.
ITK_FILE = base64.b64decode(
    "T2JqZWN0VHlwZSA9IEltYWdlCk5EaW1zID0gMwpCaW5hcnlEYXRhID0gVHJ1ZQpCaW5hcnlEYXRhQnl0ZU9yZGVy"
    "TVNCID0gRmFsc2UKQ29tcHJlc3NlZERhdGEgPSBUcnVlCkNvbXByZXNzZWREYXRhU2l6ZSA9IDQ3ClRyYW5zZm9y"
    "bU1hdHJpeCA9IDAuOTU1MzM2NDg5MTI1NjA1OTggMC4yOTU1MjAyMDY2NjEzMzk1NSAwIC0wLjI1OTM0MzM4MDA1"
    "MjIzMDc5IDAuODM4Mzg2NjQzNTk0MjAzNTYgMC40Nzk0MjU1Mzg2MDQyMDMwMSAwLjE0MTY3OTkzNDI0NzAzODA5"
    "IC0wLjQ1ODAxMjcxMDg0NzI5MTk1IDAuODc3NTgyNTYxODkwMzcyNzYKT2Zmc2V0ID0gLTExMi4zIDQ1LjYwMDAw"
    "MDAwMDAwMDAwMSAtNzg5LjEwMDAwMDAwMDAwMDAyCkNlbnRlck9mUm90YXRpb24gPSAwIDAgMApBbmF0b21pY2Fs"
    "T3JpZW50YXRpb24gPSBSQUkKRWxlbWVudFNwYWNpbmcgPSAwLjgwMDAwMDAwMDAwMDAwMDA0IDAuNjk5OTk5OTk5"
    "OTk5OTk5OTYgMi41CkRpbVNpemUgPSA0IDMgMgpFbGVtZW50VHlwZSA9IE1FVF9TSE9SVApFbGVtZW50RGF0YUZp"
    "bGUgPSBMT0NBTAp4XgXBCQJAIAAAwRVJ+f9PUY5sM4enl9Xm7ePrZ/dXYSIwsxBZSWxkCjsDYIUX6Q=="
)
ITK_POINT = (-109.8345329565175, 45.75108736938493, -786.5704457182512)

VOXELS = np.arange(-12, 12).reshape(2, 3, 4)
HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "0 1 0 -1 0 0 0 0 1",
    "Offset": "-1 2 3.5",
    "ElementSpacing": "0.5 0.75 2",
    "DimSize": "4 3 2",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def made(path, voxels=None, **changed):
    """A file from HEADER; a field set to None is left out. The data's place comes last."""
    fields = {key: value for key, value in {**HEADER, **changed}.items() if value is not None}
    data_file = fields.pop("ElementDataFile")
    lines = [*fields.items(), ("ElementDataFile", data_file)]
    text = "".join(f"{key} = {value}\n" for key, value in lines)
    data = VOXELS.astype("<i2").tobytes() if voxels is None else voxels
    path.write_bytes(text.encode() + (data if data_file == "LOCAL" else b""))
    return path


def test_a_voxel_is_where_itk_puts_it(tmp_path):
    path = tmp_path / "itk.mha"
    path.write_bytes(ITK_FILE)
    assert b"CompressedData = True" in ITK_FILE
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.hu, VOXELS)
    steps = np.array(volume.direction) * np.array(volume.spacing_mm)[:, None]
    np.testing.assert_allclose(volume.origin_mm + np.array([1, 1, 3]) @ steps, ITK_POINT)
    swapped = volume.origin_mm + np.array([1, 1, 3]) @ steps.T
    assert not np.allclose(swapped, ITK_POINT)


def test_every_field_counts(tmp_path):
    volume = read_volume(made(tmp_path / "a.mha"))
    np.testing.assert_array_equal(volume.hu, VOXELS)
    assert volume.spacing_mm == (2.0, 0.75, 0.5)
    assert volume.origin_mm == (-1.0, 2.0, 3.5)
    assert volume.direction == ((0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    assert volume.notes == ()


@pytest.mark.parametrize(
    ("element", "dtype"),
    [
        ("MET_CHAR", "i1"),
        ("MET_UCHAR", "u1"),
        ("MET_SHORT", "i2"),
        ("MET_USHORT", "u2"),
        ("MET_INT", "i4"),
        ("MET_UINT", "u4"),
        ("MET_FLOAT", "f4"),
        ("MET_DOUBLE", "f8"),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("key", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_type_in_both_byte_orders(element, dtype, order, key, compressed, tmp_path):
    values = np.arange(24).reshape(2, 3, 4)
    data = values.astype(np.dtype(dtype).newbyteorder(order)).tobytes()
    fields = {"BinaryDataByteOrderMSB": None, key: str(order == ">"), "ElementType": element}
    path = made(
        tmp_path / "a.mha",
        zlib.compress(data) if compressed else data,
        CompressedData=str(compressed),
        **fields,
    )
    np.testing.assert_array_equal(read_volume(path).hu, values)


@pytest.mark.parametrize("position", ["Offset", "Position", "Origin"])
@pytest.mark.parametrize("turn", ["TransformMatrix", "Orientation", "Rotation"])
def test_each_name_of_position_and_direction_is_known(position, turn, tmp_path):
    fields = {
        "Offset": None,
        "TransformMatrix": None,
        position: HEADER["Offset"],
        turn: HEADER["TransformMatrix"],
    }
    expected = read_volume(made(tmp_path / "a.mha"))
    volume = read_volume(made(tmp_path / "b.mha", **fields))
    assert volume.origin_mm == expected.origin_mm
    assert volume.direction == expected.direction


def test_two_names_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(FormatError, match="contradict"):
        read_volume(made(tmp_path / "a.mha", Position="0 0 0"))
    assert read_volume(made(tmp_path / "b.mha", Position=HEADER["Offset"])).shape == (2, 3, 4)


def test_two_dimensions_are_one_slice(tmp_path):
    path = made(
        tmp_path / "a.mha",
        VOXELS[0].astype("<i2").tobytes(),
        NDims="2",
        DimSize="4 3",
        TransformMatrix="0 1 -1 0",
        Offset="7 8",
        ElementSpacing="0.5 0.75",
    )
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.hu, VOXELS[:1])
    assert volume.spacing_mm == (1.0, 0.75, 0.5)
    assert volume.origin_mm == (7.0, 8.0, 0.0)
    assert volume.direction == ((0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    assert any("two dimensions" in note for note in volume.notes)


def test_an_unknown_spacing_is_noted(tmp_path):
    volume = read_volume(made(tmp_path / "a.mha", ElementSpacing=None))
    assert any("no spacing" in note for note in volume.notes)
    volume = read_volume(made(tmp_path / "b.mha", ElementSpacing=None, ElementSize="0.5 0.75 2"))
    assert volume.spacing_mm == (2.0, 0.75, 0.5)
    assert volume.notes == ()


@pytest.mark.parametrize("size", ["12", "-1"])
def test_a_header_before_the_voxels_is_skipped(size, tmp_path):
    (tmp_path / "voxels.raw").write_bytes(bytes(12) + VOXELS.astype("<i2").tobytes())
    path = made(tmp_path / "a.mhd", HeaderSize=size, ElementDataFile="voxels.raw")
    np.testing.assert_array_equal(read_volume(path).hu, VOXELS)


def test_in_one_file_the_header_size_counts_from_its_start(tmp_path):
    data = bytes(12) + VOXELS.astype("<i2").tobytes()
    from_the_end = made(tmp_path / "a.mha", data, HeaderSize="-1")
    np.testing.assert_array_equal(read_volume(from_the_end).hu, VOXELS)
    start = made(tmp_path / "b.mha", data, HeaderSize="000").stat().st_size - 48
    from_the_start = made(tmp_path / "b.mha", data, HeaderSize=f"{start:03}")
    np.testing.assert_array_equal(read_volume(from_the_start).hu, VOXELS)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_may_end_as_on_windows_and_begin_with_a_mark(tmp_path, mark):
    path = made(tmp_path / "a.mha")
    text, voxels = path.read_bytes().split(b"LOCAL\n", 1)
    path.write_bytes(mark + text.replace(b"\n", b"\r\n") + b"LOCAL\r\n" + voxels)
    np.testing.assert_array_equal(read_volume(path).hu, VOXELS)


@pytest.mark.parametrize(
    "name",
    ["../voxels.raw", "/etc/voxels.raw", "sub/voxels.raw", "..", "C:voxels.raw", r"..\voxels.raw"],
)
def test_voxels_outside_the_folder_are_refused(name, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "voxels.raw").write_bytes(VOXELS.astype("<i2").tobytes())
    with pytest.raises(FormatError, match="in the same folder"):
        read_volume(made(inside / "a.mhd", ElementDataFile=name))


def test_a_missing_voxel_file_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"voxels\.raw in the same folder, which is missing"):
        read_volume(made(tmp_path / "a.mhd", ElementDataFile="voxels.raw"))


def test_the_two_files_of_mhd_belong_together(tmp_path):
    volume = CTVolume.from_hu(VOXELS.astype(np.float32), (2.0, 0.75, 0.5))
    write_volume(volume, tmp_path / "scan.mhd")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scan.mhd", "scan.raw"]
    (tmp_path / "scan.mhd").unlink()
    with pytest.raises(FormatError, match=r"scan\.raw: exists already"):
        write_volume(volume, tmp_path / "scan.mhd")


@pytest.mark.parametrize("missing", [1, 47, 48])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_voxels_are_refused(missing, compressed, tmp_path):
    data = VOXELS.astype("<i2").tobytes()
    data = zlib.compress(data[:-missing]) if compressed else data[:-missing]
    path = made(tmp_path / "a.mha", data, CompressedData=str(compressed))
    with pytest.raises(FormatError, match=f"need 48 bytes, found {48 - missing}"):
        _ = read_volume(path).hu


def test_a_truncated_or_damaged_stream_is_refused(tmp_path):
    data = zlib.compress(VOXELS.astype("<i2").tobytes())
    path = made(tmp_path / "a.mha", data[:-1], CompressedData="True")
    with pytest.raises(FormatError, match="ends too early"):
        _ = read_volume(path).hu
    wrong_sum = data[:-1] + bytes([data[-1] ^ 1])
    path = made(tmp_path / "b.mha", wrong_sum, CompressedData="True")
    with pytest.raises(FormatError, match="damaged"):
        _ = read_volume(path).hu


def test_more_voxels_than_described_are_refused(tmp_path):
    data = VOXELS.astype("<i2").tobytes() + b"!"
    with pytest.raises(FormatError, match="holds 49 bytes, but the header describes 48"):
        read_volume(made(tmp_path / "a.mha", data))


def test_a_header_cut_short_is_refused(tmp_path):
    path = made(tmp_path / "a.mha")
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(FormatError, match="before ElementDataFile"):
        read_volume(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ObjectType", "Tube"),
        ("BinaryData", "False"),
        ("ElementNumberOfChannels", "3"),
        ("ElementToIntensityFunctionSlope", "2"),
        ("ElementType", "MET_LONG_LONG"),
        ("ElementType", None),
        ("NDims", "4"),
        ("NDims", "three"),
        ("DimSize", "4 3"),
        ("DimSize", "4 3 2.5"),
        ("DimSize", "4 3 0"),
        ("DimSize", None),
        ("ElementSpacing", "1 1"),
        ("ElementSpacing", "1 1 0"),
        ("ElementSpacing", "1 1 -2"),
        ("ElementSpacing", "1 1 nan"),
        ("Offset", "0 0 inf"),
        ("TransformMatrix", "1 0 0 0 1 0"),
        ("TransformMatrix", "2 0 0 0 1 0 0 0 1"),
        ("CompressedData", "perhaps"),
        ("HeaderSize", "-2"),
        ("ElementDataFile", "LIST"),
    ],
)
def test_what_is_not_supported_is_refused(field, value, tmp_path):
    with pytest.raises(CddnetError, match=r"a\.mha"):
        read_volume(made(tmp_path / "a.mha", **{field: value}))


def test_a_sheared_grid_is_refused(tmp_path):
    with pytest.raises(GeometryError, match=r"meet at 53\.1 degrees"):
        read_volume(made(tmp_path / "a.mha", TransformMatrix="1 0 0 0.6 0.8 0 0 0 1"))

"""TIFF as other programs write it: compressed, calibrated by ImageJ, one page for all slices."""

import re
import struct
import sys
from importlib import import_module

import numpy as np
import pytest
import tifffile
from PIL import Image

from cddnet.errors import FormatError
from cddnet.formats import read_volume

SAMPLE_FORMAT, PREDICTOR = 339, 317


def body(depth=2, seed=3):
    """Air around soft tissue with noise, a bone and a lung: whole HU (D, H, W)."""
    rng = np.random.default_rng(seed)
    hu = np.rint(rng.normal(-1000, 8, (depth, 96, 96))).clip(-1024)
    hu[:, 16:80, 16:80] = np.rint(rng.normal(40, 15, (depth, 64, 64)))
    hu[:, 30:36, 30:36] = 900
    hu[:, 50:60, 24:40] = -820
    return hu.astype(np.int16)


HU = body()


# ---- compression, written by libtiff


def by_libtiff(path, pages, compression, predictor=1):
    first, *others = map(Image.fromarray, pages)
    tags = {SAMPLE_FORMAT: 3 if pages.dtype == np.float32 else 2}
    if predictor > 1:
        tags[PREDICTOR] = predictor
    first.save(path, save_all=True, append_images=others, compression=compression, tiffinfo=tags)


COMPRESSIONS = ["tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "zstd", "lzma"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_lossless_compression_keeps_every_value(compression, dtype, tmp_path):
    stored = HU.view(np.uint16) if dtype == np.int16 else HU.astype(np.float32) / 3
    by_libtiff(tmp_path / "a.tif", stored, compression)
    expected = HU if dtype == np.int16 else stored
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").hu, expected)


@pytest.mark.parametrize(
    ("compression", "dtype", "predictor"),
    [
        ("tiff_lzw", np.int16, 2),
        ("tiff_adobe_deflate", np.int16, 2),
        ("zstd", np.int16, 2),
        ("tiff_lzw", np.float32, 3),
        ("tiff_adobe_deflate", np.float32, 3),
        ("zstd", np.float32, 3),
        ("tiff_lzw", np.float32, 2),
    ],
)
def test_predictors_are_undone(compression, dtype, predictor, tmp_path):
    stored = HU.view(np.uint16) if dtype == np.int16 else HU.astype(np.float32) / 3
    by_libtiff(tmp_path / "a.tif", stored, compression, predictor=predictor)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.pages[0].predictor == predictor
    expected = HU if dtype == np.int16 else stored
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").hu, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_tiles_strips_and_byte_orders_of_a_compressed_tiff(order, tile, tmp_path):
    path = tmp_path / "a.tif"
    how = {"compression": "lzw", "predictor": 2, "photometric": "minisblack"}
    where = {"tile": tile} if tile else {"rowsperstrip": 7}
    tifffile.imwrite(path, HU, byteorder=order, **how, **where)
    np.testing.assert_array_equal(read_volume(path).hu, HU)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "jpegxl"])
def test_compression_that_may_change_values_is_named(compression, tmp_path):
    grey = (HU[0] // 8 + 128).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", grey, compression=compression, photometric="minisblack")
    with pytest.raises(FormatError, match=r"compressed as \w+.*LZW, deflate or zstd"):
        read_volume(tmp_path / "a.tif", window_hu=(-160, 240))


WITH_ZSTD = pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python reads zstd itself")


@pytest.mark.parametrize("compression", ["lzw", pytest.param("zstd", marks=WITH_ZSTD)])
def test_a_missing_library_is_named(compression, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", HU, compression=compression, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", HU, compression="zlib", photometric="minisblack")
    # What tifffile falls back on, and no decoder kept from before.
    monkeypatch.setattr(tifffile.tifffile, "imagecodecs", import_module("tifffile._imagecodecs"))
    monkeypatch.setattr(tifffile.TIFF.DECOMPRESSORS, "_codecs", {1: lambda data, **_: data})
    words = rf"{compression.upper()} of 16 bits needs imagecodecs.*pip install cddnet\[tiff\]"
    with pytest.raises(FormatError, match=words):
        _ = read_volume(tmp_path / "a.tif").hu
    # What Python unpacks itself needs nothing.
    np.testing.assert_array_equal(read_volume(tmp_path / "b.tif").hu, HU)


def test_a_compressed_strip_that_is_cut_is_refused(tmp_path):
    by_libtiff(tmp_path / "a.tif", HU.view(np.uint16), "tiff_lzw")
    whole = (tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        start = tiff.pages[1].dataoffsets[0]
    (tmp_path / "a.tif").write_bytes(whole[: start + 8] + bytes(400) + whole[start + 408 :])
    with pytest.raises(FormatError, match="cannot be read"):
        _ = read_volume(tmp_path / "a.tif").hu


# ---- ImageJ


def description(images, *, calibration=(), unit="Gray Value", function=0):
    lines = ["ImageJ=1.54f"]
    if images > 1:
        lines += [f"images={images}", f"slices={images}"]
    lines += ["min=-1024.0", "max=3071.0"]
    if calibration:
        lines.append(f"cf={function}")
        lines += [f"c{number}={value}" for number, value in enumerate(calibration)]
        lines.append(f"vunit={unit}")
    return "\n".join([*lines, "spacing=5.0", "unit=mm", ""])


def imagej(path, stored, about, **options):
    tifffile.imwrite(
        path, stored, description=about, metadata=None, photometric="minisblack", **options
    )


@pytest.mark.parametrize(
    ("intercept", "slope", "dtype"),
    [
        (-32768, 1, np.uint16),
        (-1024, 1, np.uint16),
        (-2000, 1, ">u2"),
        (-1024, 0.5, np.uint16),
        (-1024, 16, np.uint8),
        (-1024, 1, np.int16),
    ],
)
def test_a_calibration_gives_hu_and_asks_no_window(intercept, slope, dtype, tmp_path):
    stored = np.rint((HU - intercept) / slope).astype(dtype)
    about = description(2, calibration=(f"{intercept:.1f}", f"{slope:.1f}"))
    imagej(tmp_path / "a.tif", stored, about, byteorder=">" if dtype == ">u2" else "<")
    volume = read_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.hu, intercept + slope * stored.astype(float))
    if slope <= 1:
        np.testing.assert_array_equal(volume.hu, HU)
    assert any("calibration" in note for note in volume.notes)
    # A window that is given all the same changes nothing.
    again = read_volume(tmp_path / "a.tif", window_hu=(-160, 240))
    np.testing.assert_array_equal(again.hu, volume.hu)
    assert any("window is not used" in note for note in again.notes)


def test_signed_numbers_with_the_calibration_of_signed_shorts_stand_as_they_are(tmp_path):
    imagej(tmp_path / "a.tif", HU, description(2, calibration=("-32768.0", "1.0")))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").hu, HU)
    # 32-bit pictures have no calibration in ImageJ.
    about = description(2, calibration=("-1024.0", "1.0"))
    imagej(tmp_path / "b.tif", HU.astype(np.float32), about)
    np.testing.assert_array_equal(read_volume(tmp_path / "b.tif").hu, HU)


def test_each_picture_of_a_folder_has_its_own_calibration(tmp_path):
    for number, intercept in enumerate((-32768, -1024)):
        about = description(1, calibration=(f"{intercept}", "1.0"))
        imagej(tmp_path / f"{number}.tif", (HU[number] - intercept).astype(np.uint16), about)
    np.testing.assert_array_equal(read_volume(tmp_path).hu, HU)


def test_a_compressed_calibrated_stack_is_read(tmp_path):
    about = description(2, calibration=("-32768.0", "1.0"))
    stored = (HU.astype(int) + 32768).astype(np.uint16)
    imagej(tmp_path / "a.tif", stored, about, compression="lzw", predictor=2)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").hu, HU)


@pytest.mark.parametrize(
    ("calibration", "options"),
    [
        (("-1024.0", "1.0", "0.2"), {"function": 1}),
        (("-1024.0", "1.0"), {"unit": "mg/cm^3"}),
        (("-1024.0", "0.0"), {}),
        (("NaN", "1.0"), {}),
        (("-1024.0", "one"), {}),
    ],
)
def test_a_calibration_that_yields_no_hu_is_refused(calibration, options, tmp_path):
    about = description(2, calibration=calibration, **options)
    imagej(tmp_path / "a.tif", (HU + 1024).astype(np.uint16), about)
    with pytest.raises(FormatError, match="ImageJ's calibration"):
        read_volume(tmp_path / "a.tif", window_hu=(-1024, 64511))


@pytest.mark.parametrize("about", [description(2), description(2, calibration=("0.0", "1.0"))])
def test_without_a_calibration_grey_levels_still_need_a_window(about, tmp_path):
    imagej(tmp_path / "a.tif", (HU + 1024).astype(np.uint16), about)
    with pytest.raises(FormatError, match="16-bit grey levels"):
        read_volume(tmp_path / "a.tif")
    volume = read_volume(tmp_path / "a.tif", window_hu=(-1024, 64511))
    np.testing.assert_array_equal(volume.hu, HU)


# ---- one page for all slices


def one_page(path, stored, about, *, order="<"):
    """The first slice as a page with a description, the others behind its values."""
    imagej(path, stored[0], about, byteorder=order, rowsperstrip=40)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        start, length = page.dataoffsets[0], sum(page.databytecounts)
    values = stored[1:].astype(stored.dtype.newbyteorder(order)).tobytes()
    path.write_bytes(path.read_bytes()[: start + length] + values)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_all_slices_behind_one_page_are_read(order, dtype, tmp_path):
    hu = body(depth=5).astype(dtype)
    one_page(tmp_path / "a.tif", hu, description(5), order=order)
    volume = read_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.hu, hu)
    np.testing.assert_array_equal(volume.read_slice(3), hu[3])


def test_one_page_with_a_calibration_and_one_with_a_window(tmp_path):
    hu = body(depth=3)
    about = description(3, calibration=("-32768.0", "1.0"))
    one_page(tmp_path / "a.tif", (hu.astype(int) + 32768).astype(np.uint16), about)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").hu, hu)
    one_page(tmp_path / "b.tif", (hu.astype(int) + 1024).astype(np.uint16), description(3))
    volume = read_volume(tmp_path / "b.tif", window_hu=(-1024, 64511))
    np.testing.assert_array_equal(volume.hu, hu)


def test_one_page_that_tifffile_wrote_for_all(tmp_path):
    hu = body(depth=4).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", hu, photometric="minisblack", truncate=True)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert len(tiff.pages) == 1
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").hu, hu)


def test_slices_that_are_described_but_not_there_are_missed(tmp_path):
    hu = body(depth=3)
    one_page(tmp_path / "a.tif", hu, description(3))
    whole = (tmp_path / "a.tif").read_bytes()
    for kept in (len(whole) - 1, len(whole) - hu[0].nbytes, len(whole) - 2 * hu[0].nbytes):
        (tmp_path / "a.tif").write_bytes(whole[:kept])
        with pytest.raises(FormatError, match="describes 3 slices"):
            read_volume(tmp_path / "a.tif")
    imagej(tmp_path / "b.tif", hu, description(4))
    with pytest.raises(FormatError, match="describes 4 slices, but holds 3"):
        read_volume(tmp_path / "b.tif")


def test_a_wild_number_of_slices_takes_no_memory(tmp_path):
    about = description(1).replace("min=", f"images={10**12}\nmin=")
    imagej(tmp_path / "a.tif", HU[0], about)
    with pytest.raises(FormatError, match="describes 1000000000000 slices"):
        read_volume(tmp_path / "a.tif")


def test_one_compressed_page_is_no_stack(tmp_path):
    imagej(tmp_path / "a.tif", HU[0], description(2), compression="lzw")
    with pytest.raises(FormatError, match="page of their own"):
        read_volume(tmp_path / "a.tif")


# ---- windows that are suggested


def suggested(message):
    """Windows (low, high) that a message names."""
    numbers = re.findall(r"--window (-?\d+) (-?\d+)", message)
    return [(int(low), int(high)) for low, high in numbers]


def message_for(folder):
    with pytest.raises(FormatError, match="16-bit grey levels, not HU") as caught:
        read_volume(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (32768, [(-32768, 32767)]),
        # 24 HU apart: either may be meant.
        (1024, [(-1024, 64511), (-1000, 64535)]),
        (0, []),
        (5000, []),
    ],
)
def test_only_windows_that_give_hu_are_suggested(offset, expected, tmp_path):
    for number, one in enumerate(body(depth=3)):
        stored = (one.astype(int) + offset).clip(0).astype(np.uint16)
        Image.fromarray(stored).save(tmp_path / f"{number}.png")
    message = message_for(tmp_path)
    assert suggested(message) == expected
    assert "--window LOW HIGH" in message or expected
    for window in expected:
        hu = read_volume(tmp_path, window_hu=window).hu
        np.testing.assert_allclose(hu, body(depth=3) + (offset + window[0]), atol=0.5)


def test_a_display_window_in_16_bits_is_taken_for_no_offset(tmp_path):
    fraction = np.clip((HU.astype(float) + 160) / 400, 0, 1)
    for number, one in enumerate(fraction):
        Image.fromarray(np.rint(one * 65535).astype(np.uint16)).save(tmp_path / f"{number}.png")
    assert suggested(message_for(tmp_path)) == []
    empty = tmp_path / "empty"
    empty.mkdir()
    Image.fromarray(np.full((64, 64), 1024, np.uint16)).save(empty / "0.png")
    assert suggested(message_for(empty)) == []


def test_a_tiff_of_twelve_bits_has_its_own_top(tmp_path):
    stored = (HU[0] + 1024).astype(np.uint16)
    # Pairs of 12-bit values in three bytes.
    first, second = stored.ravel()[::2].astype(int), stored.ravel()[1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1)
    data = packed.astype(np.uint8).tobytes()
    entries = [(256, 96), (257, 96), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 96)]
    entries.append((279, len(data)))
    table = struct.pack("<H", len(entries))
    for tag, value in entries:
        table += struct.pack("<HHII", tag, 4, 1, value)
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    (tmp_path / "a.tif").write_bytes(header + data + table + bytes(4))
    with pytest.raises(FormatError, match="12-bit grey levels") as caught:
        read_volume(tmp_path / "a.tif")
    windows = suggested(str(caught.value))
    assert windows[0] == (-1024, 3071)
    hu = read_volume(tmp_path / "a.tif", window_hu=windows[0]).hu[0]
    np.testing.assert_allclose(hu, HU[0], atol=1e-3)

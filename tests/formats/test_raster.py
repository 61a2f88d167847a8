"""Pictures: HU or grey levels, order by name, and nothing guessed.

Above 300 lines: one format, and every kind of picture it refuses.
"""

import os
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from cddnet.errors import FormatError
from cddnet.formats import read_volume, write_volume
from cddnet.formats.raster import pairs
from cddnet.volume import CTVolume

WINDOW = (-160.0, 240.0)
GREY = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7) * 7


def png(path, values=GREY, **options):
    Image.fromarray(values).save(path, format="PNG", **options)
    return path


def test_grey_levels_are_spread_over_the_window(tmp_path):
    volume = read_volume(png(tmp_path / "a.png"), window_hu=WINDOW)
    np.testing.assert_allclose(volume.hu[0], GREY / 255 * 400 - 160, rtol=0, atol=2e-5)
    (lost,) = [note for note in volume.notes if "8-bit" in note]
    assert "one level is 1.57 HU" in lost
    assert "outside the window are gone" in lost


def test_sixteen_bits_hold_hu_exactly_in_their_own_window(tmp_path):
    stored = np.array([[0, 1, 1024], [4095, 65534, 65535]], np.uint16)
    Image.fromarray(stored).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png", window_hu=(-1024, 64511))
    np.testing.assert_array_equal(volume.hu[0], stored.astype(int) - 1024)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_grey_levels_without_a_window_are_refused(name, tmp_path):
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, GREY)
    else:
        Image.fromarray(GREY).save(tmp_path / name)
    with pytest.raises(FormatError, match=r"8-bit grey levels, not HU; .*--window -160 240"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("window", [(240, -160), (0, 0), (np.nan, 1), (0, np.inf)])
def test_a_window_must_be_one(window, tmp_path):
    with pytest.raises(FormatError, match="low, then high"):
        read_volume(png(tmp_path / "a.png"), window_hu=window)
    volume = CTVolume.from_hu(np.zeros((3, 4)), (1.0, 1.0, 1.0))
    with pytest.raises(FormatError, match="low, then high"):
        write_volume(volume, tmp_path / "b.png", window_hu=window)


def test_jpeg_says_that_it_is_lossy(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.jpg", quality=95)
    assert any("JPEG" in note for note in read_volume(tmp_path / "a.jpg", window_hu=WINDOW).notes)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_equal_channels_are_one_grey(mode, tmp_path):
    Image.fromarray(GREY).convert(mode).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png", window_hu=WINDOW)
    expected = read_volume(png(tmp_path / "b.png"), window_hu=WINDOW)
    np.testing.assert_array_equal(volume.hu, expected.hu)
    assert any("channels" in note for note in volume.notes)
    assert not any("channels" in note for note in expected.notes)


def coloured():
    colours = np.repeat(GREY[..., None], 3, axis=-1)
    colours[2, 3, 1] += 1
    return colours


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_colour_is_refused(name, tmp_path):
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, coloured(), photometric="rgb")
    else:
        png(tmp_path / name, coloured())
    with pytest.raises(FormatError, match="in colour"):
        read_volume(tmp_path / name, window_hu=WINDOW)


def test_transparency_is_refused(tmp_path):
    image = Image.fromarray(GREY).convert("LA")
    image.putpixel((1, 1), (7, 254))
    image.save(tmp_path / "a.png")
    with pytest.raises(FormatError, match="transparent"):
        read_volume(tmp_path / "a.png", window_hu=WINDOW)


def test_sixteen_bit_colour_is_not_silently_cut_to_eight(tmp_path):
    path = png(tmp_path / "a.png", np.repeat(GREY[..., None], 3, axis=-1))
    data = bytearray(path.read_bytes())
    data[24] = 16
    # The chunk's checksum over type and fields.
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(FormatError, match="16 bits with colour"):
        read_volume(path, window_hu=WINDOW)


@pytest.mark.parametrize("mode", ["1", "CMYK"])
def test_other_modes_are_refused(mode, tmp_path):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.fromarray(GREY).convert(mode).save(tmp_path / name)
    with pytest.raises(FormatError, match=f"mode {mode}"):
        read_volume(tmp_path / name, window_hu=WINDOW)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_damaged_picture_is_refused(name, tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (64, 64)).astype(np.uint8)
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, values)
    else:
        Image.fromarray(values).save(tmp_path / name)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(FormatError, match="cannot be read"):
        _ = read_volume(path, window_hu=WINDOW).hu


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.float64, np.int32, ">i2"])
def test_a_tiff_of_numbers_with_a_sign_is_hu(dtype, tmp_path):
    hu = (np.arange(2 * 5 * 7).reshape(2, 5, 7) * 30 - 1000).astype(dtype)
    order = ">" if dtype == ">i2" else None
    tifffile.imwrite(tmp_path / "a.tif", hu, photometric="minisblack", byteorder=order)
    volume = read_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.hu, hu)
    assert any("no geometry" in note for note in volume.notes)
    unused = read_volume(tmp_path / "a.tif", window_hu=WINDOW)
    np.testing.assert_array_equal(unused.hu, hu)
    assert any("window is not used" in note for note in unused.notes)


@pytest.mark.parametrize("values", [np.uint32, np.complex64, bool])
def test_a_tiff_of_other_numbers_is_refused(values, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(values), photometric="minisblack")
    with pytest.raises(FormatError, match="expected HU with a sign"):
        read_volume(tmp_path / "a.tif", window_hu=WINDOW)


def test_an_inverted_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="miniswhite")
    with pytest.raises(FormatError, match="black lowest"):
        read_volume(tmp_path / "a.tif", window_hu=WINDOW)


def test_channels_of_hu_are_refused(tmp_path):
    hu = np.zeros((5, 7, 3), np.float32)
    tifffile.imwrite(tmp_path / "a.tif", hu, photometric="rgb")
    with pytest.raises(FormatError, match="3 channels of HU"):
        read_volume(tmp_path / "a.tif")


def test_slices_without_a_page_of_their_own_are_refused(tmp_path):
    hu = np.zeros((3, 16, 16), np.float32)
    tifffile.imwrite(tmp_path / "a.tif", hu, photometric="minisblack", volumetric=True)
    with pytest.raises(FormatError, match="page"):
        read_volume(tmp_path / "a.tif")


def test_pages_of_different_size_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for size in (5, 6):
            tiff.write(np.zeros((size, 7), np.float32), photometric="minisblack")
    with pytest.raises(FormatError, match=r"a\.tif \(5 x 7\) and .*page 2 \(6 x 7\)"):
        read_volume(tmp_path / "a.tif")


def test_other_programs_find_spacing_and_values_in_our_tiff(tmp_path):
    hu = np.arange(2 * 5 * 7, dtype=np.float32).reshape(2, 5, 7)
    write_volume(CTVolume.from_hu(hu, (2.5, 0.5, 0.8)), tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        page = tiff.pages[0]
        assert len(tiff.pages) == 2
        assert page.tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER
        per_cm = {name: page.tags[name].value for name in ("XResolution", "YResolution")}
        assert "research use only" in page.description
    assert 10 * per_cm["XResolution"][1] / per_cm["XResolution"][0] == pytest.approx(0.8)
    assert 10 * per_cm["YResolution"][1] / per_cm["YResolution"][0] == pytest.approx(0.5)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), hu)
    with Image.open(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(np.asarray(image), hu[0])


def test_a_folder_is_in_natural_order(tmp_path):
    for number in (10, 9, 100, 1, 2):
        png(tmp_path / f"slice{number}.png", np.full((5, 7), number, np.uint8))
    (tmp_path / ".hidden.png").write_bytes(b"")
    volume = read_volume(tmp_path, window_hu=(0, 255))
    np.testing.assert_allclose(volume.hu[:, 0, 0], [1, 2, 9, 10, 100])
    assert not any("left aside" in note for note in volume.notes)


def test_a_folder_may_mix_suffixes_and_names_what_it_leaves_aside(tmp_path):
    png(tmp_path / "1.png")
    tifffile.imwrite(tmp_path / "2.tif", GREY)
    (tmp_path / "readme.txt").write_text("none")
    (tmp_path / "more").mkdir()
    volume = read_volume(tmp_path, window_hu=WINDOW)
    np.testing.assert_array_equal(volume.hu[0], volume.hu[1])
    assert any("more, readme.txt" in note for note in volume.notes)


def test_a_broken_picture_in_a_folder_is_no_missing_slice(tmp_path):
    for name in ("1.png", "3.png"):
        png(tmp_path / name)
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(FormatError, match=r"2\.png"):
        read_volume(tmp_path, window_hu=WINDOW)


def test_mixed_sizes_are_refused_by_name(tmp_path):
    png(tmp_path / "1.png")
    png(tmp_path / "2.png", GREY[:4])
    with pytest.raises(FormatError, match=r"1\.png \(5 x 7\) and .*2\.png \(4 x 7\)"):
        read_volume(tmp_path, window_hu=WINDOW)


def test_mixed_values_are_refused_by_name(tmp_path):
    png(tmp_path / "1.png")
    png(tmp_path / "2.png", GREY.astype(np.uint16))
    with pytest.raises(FormatError, match=r"1\.png \(8-bit grey.*2\.png \(16-bit grey"):
        read_volume(tmp_path, window_hu=WINDOW)
    (tmp_path / "2.png").unlink()
    tifffile.imwrite(tmp_path / "2.tif", GREY.astype(np.float32))
    with pytest.raises(FormatError, match=r"2\.tif \(HU\)"):
        read_volume(tmp_path, window_hu=WINDOW)


def test_a_stack_among_pictures_is_refused(tmp_path):
    stack = np.stack([GREY, GREY])
    tifffile.imwrite(tmp_path / "1.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "2.tif", GREY)
    with pytest.raises(FormatError, match=r"1\.tif: has 2 pages"):
        read_volume(tmp_path, window_hu=WINDOW)


def ramp(depth=1):
    hu = np.linspace(-300, 400, 5 * 7, dtype=np.float32).reshape(5, 7)
    return CTVolume.from_hu(np.stack([hu + index for index in range(depth)]), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("bits", [8, 16])
def test_levels_are_rounded_and_clipped_not_cut_or_wrapped(bits, tmp_path):
    write_volume(ramp(), tmp_path / "a.png", window_hu=WINDOW, bits=bits)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode in {8: ("L",), 16: ("I;16", "I")}[bits]
        levels = np.asarray(image).astype(float)
    exact = np.clip((ramp().hu[0].astype(float) + 160) / 400, 0, 1) * (2**bits - 1)
    assert np.abs(levels - exact).max() <= 0.5 + 1e-2
    assert np.abs(np.floor(exact) - exact).max() > 0.9


def test_several_slices_become_a_folder(tmp_path):
    write_volume(ramp(depth=3), tmp_path / "out.png", window_hu=WINDOW)
    names = sorted(file.name for file in (tmp_path / "out.png").iterdir())
    assert names == ["0001.png", "0002.png", "0003.png"]


def test_grey_levels_are_not_written_without_a_window(tmp_path):
    with pytest.raises(FormatError, match=r"such as --window -160 240"):
        write_volume(ramp(), tmp_path / "a.png")


@pytest.mark.parametrize(("name", "bits"), [("a.png", 12), ("a.jpg", 16), ("a.jpeg", 16)])
def test_bits_that_do_not_fit_are_refused(name, bits, tmp_path):
    with pytest.raises(FormatError, match=f"{bits} bits were asked for"):
        write_volume(ramp(), tmp_path / name, window_hu=WINDOW, bits=bits)


def test_without_tifffile_the_extra_is_named(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(np.float32))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(FormatError, match=r"pip install cddnet\[tiff\]"):
        read_volume(tmp_path / "a.tif")
    with pytest.raises(FormatError, match=r"pip install cddnet\[tiff\]"):
        write_volume(ramp(), tmp_path / "b.tif")


def layout(root, low_dose, full_dose):
    for folder, names in (("IN", low_dose), ("GT", full_dose)):
        (root / folder).mkdir()
        for name in names:
            (root / folder / name).touch()
    return root


def test_pairs_go_by_name_and_not_by_order(tmp_path):
    names = ["10.png", "2.png", "1.png"]
    found = pairs(layout(tmp_path, names, ["1.png", "2.tif", "10.png"]))
    assert [(low.name, full.name) for low, full in found] == [
        ("1.png", "1.png"),
        ("2.png", "2.tif"),
        ("10.png", "10.png"),
    ]
    assert all((low.parent.name, full.parent.name) == ("IN", "GT") for low, full in found)


def test_missing_twins_are_listed(tmp_path):
    root = layout(tmp_path, ["1.png", "2.png", "3.png"], ["2.png", "4.png"])
    with pytest.raises(FormatError, match=r"only in IN: 1, 3; only in GT: 4"):
        pairs(root)


def test_a_name_taken_twice_is_refused(tmp_path):
    root = layout(tmp_path, ["1.png", "1.jpg"], ["1.png"])
    with pytest.raises(FormatError, match="two files"):
        pairs(root)


def test_an_incomplete_layout_is_refused(tmp_path):
    with pytest.raises(FormatError, match="no folder IN"):
        pairs(tmp_path)
    layout(tmp_path, [], [])
    with pytest.raises(FormatError, match="empty"):
        pairs(tmp_path)
    os.rmdir(tmp_path / "GT")
    with pytest.raises(FormatError, match="no folder GT"):
        pairs(tmp_path)

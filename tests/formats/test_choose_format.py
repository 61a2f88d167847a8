"""Which format reads and writes, and what is said where none does."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cddnet import plugins
from cddnet.errors import FormatError
from cddnet.formats import read_volume, write_volume
from cddnet.volume import CTVolume

WINDOW = (0.0, 255.0)
VOLUME = CTVolume.from_hu(np.zeros((2, 3, 4)), (1.0, 1.0, 1.0))


def png(path, level=0):
    Image.fromarray(np.full((3, 4), level, np.uint8)).save(path, format="PNG")


def test_the_wrong_suffix_does_not_mislead(tmp_path):
    np.save(tmp_path / "a.npy", np.full((3, 4), 7))
    (tmp_path / "a.npy").rename(tmp_path / "a.nii.gz")
    assert (read_volume(tmp_path / "a.nii.gz").hu == 7).all()


def test_a_path_may_be_text(tmp_path):
    write_volume(VOLUME, str(tmp_path / "a.npz"))
    assert read_volume(str(tmp_path / "a.npz")).shape == (2, 3, 4)


def test_suffixes_are_known_in_capitals(tmp_path):
    write_volume(VOLUME, tmp_path / "A.NII.GZ")
    assert (tmp_path / "A.NII.GZ").read_bytes()[:2] == b"\x1f\x8b"
    assert read_volume(tmp_path / "A.NII.GZ").shape == (2, 3, 4)


def refusal(path, **options):
    with pytest.raises(FormatError) as caught:
        read_volume(path, **options)
    return str(caught.value)


def test_each_reason_has_its_own_words(tmp_path):
    (tmp_path / "zero.dcm").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.nii").write_text("no image at all")
    messages = [
        refusal(tmp_path / name) for name in ("missing.dcm", "zero.dcm", "empty", "text.nii")
    ]
    expected = ["no such file", "0 bytes", "folder is empty", "none of the known formats"]
    for message, words in zip(messages, expected, strict=True):
        assert words in message
        assert str(tmp_path) in message
    assert ".nii.gz" in messages[-1]
    assert ".dcm" in messages[-1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in refusal(tmp_path / "pipe")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    png(tmp_path / "1.png")

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / "1.png"))

    monkeypatch.setattr("pathlib.Path.open", denied)
    for path in (tmp_path, tmp_path / "1.png"):
        message = refusal(path, window_hu=WINDOW)
        assert "not permitted" in message
        assert "1.png" in message


def test_a_disk_that_fails_is_no_traceback(tmp_path, monkeypatch):
    png(tmp_path / "1.png")

    def broken(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.open", broken)
    assert "Input/output error" in refusal(tmp_path / "1.png")


def test_a_folder_of_other_things_lists_them(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    np.save(tmp_path / "b.npy", np.zeros((3, 4)))
    (tmp_path / "IN").mkdir()
    png(tmp_path / "IN" / "1.png")
    message = refusal(tmp_path)
    assert "2 *.npy" in message
    assert f"1 IN{os.sep}*.png" in message


def dicom_like(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + bytes(100))


def test_dicom_anywhere_in_a_tree_goes_before_pictures(tmp_path, monkeypatch):
    chosen = []
    dicom = plugins.load("formats", "dicom")
    monkeypatch.setattr(dicom, "read", lambda path, options: chosen.append((path, options.series)))
    png(tmp_path / "1.png")
    assert read_volume(tmp_path, window_hu=WINDOW).shape == (1, 3, 4)
    assert chosen == []
    dicom_like(tmp_path / "deep" / "deeper" / "IMG0001")
    read_volume(tmp_path, series="1.2.3")
    assert chosen == [(tmp_path, "1.2.3")]


def test_a_dicom_file_that_also_begins_like_a_tiff_is_dicom(tmp_path, monkeypatch):
    chosen = []
    dicom = plugins.load("formats", "dicom")
    monkeypatch.setattr(dicom, "read", lambda path, options: chosen.append(path))
    dicom_like(tmp_path / "slide")
    with (tmp_path / "slide").open("r+b") as file:
        file.write(b"II*\0")
    read_volume(tmp_path / "slide")
    assert chosen == [tmp_path / "slide"]


@pytest.mark.parametrize("name", ["series", "one.dcm", ""])
def test_dicom_without_headers_is_refused(name, tmp_path):
    with pytest.raises(FormatError, match=r"carries no DICOM headers; write \.nii\.gz"):
        write_volume(VOLUME, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["series", "one.dcm", ""])
def test_dicom_with_headers_goes_to_dicom(name, tmp_path, monkeypatch):
    chosen = []
    dicom = plugins.load("formats", "dicom")
    monkeypatch.setattr(dicom, "write", lambda volume, path, options: chosen.append(path))
    write_volume(CTVolume.from_hu(np.zeros((3, 4)), (1, 1, 1), headers=object()), tmp_path / name)
    assert chosen == [tmp_path / name]


def test_an_unknown_suffix_lists_the_known(tmp_path):
    with pytest.raises(FormatError, match=r"\.xyz files cannot be written; .*\.nii\.gz.*\.png"):
        write_volume(VOLUME, tmp_path / "a.xyz")


def test_a_slice_of_another_size_is_not_written(tmp_path):
    volume = CTVolume(
        shape=(2, 3, 4),
        spacing_mm=(1.0, 1.0, 1.0),
        read_slice=lambda index: np.zeros((3, 4 + index), np.float32),
    )
    with pytest.raises(FormatError, match=r"slice 2 has shape \(3, 5\)"):
        write_volume(volume, tmp_path / "a.npy")
    assert list(tmp_path.iterdir()) == []


def test_the_package_starts_without_the_libraries_of_its_formats():
    heavy = ["nibabel", "tifffile", "pydicom", "PIL"]
    code = f"import sys, cddnet.formats; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
